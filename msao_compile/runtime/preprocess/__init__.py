"""Pictures to arrays, equal to the checkpoint's own image processor, with NumPy and Pillow alone."""

from msao_compile.runtime.preprocess.decode import MAX_PIXELS, decode
from msao_compile.runtime.preprocess.prepared import Prepared, Preprocessor
from msao_compile.runtime.preprocess.registry import READERS, from_config

__all__ = ["MAX_PIXELS", "READERS", "Prepared", "Preprocessor", "decode", "from_config"]
