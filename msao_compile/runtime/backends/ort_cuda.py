"""ONNX Runtime on this machine's NVIDIA GPU: what it needs, how it is set up, and decode steps captured once.

What of it was run on a GPU stands under docs/gpu.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from msao_compile.errors import DeploymentError, MissingTool
from msao_compile.manifest.schema import RuntimeSettings, StateSpec
from msao_compile.runtime.backends import cuda

PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
# In the order in which they need each other, and whether the number is CUDA's own.
LIBRARIES = (("libcudart", True), ("libnvrtc", True), ("libnvJitLink", True), ("libcublasLt", True),
             ("libcublas", True), ("libcurand", False), ("libcufft", False), ("libcudnn", False))  # fmt: skip
logger = logging.getLogger(__name__)
GRAPH_ID = "gpu_graph_id"


def providers(settings: RuntimeSettings, capture: bool = False) -> list[Any]:
    """What a session is made with, the provider that is wanted first; `capture` lets it keep runs as CUDA graphs.

    Raises:
        MissingTool: a GPU is wanted and there is none, or this ONNX Runtime was built without CUDA.
    """
    if settings.provider == "cpu":
        return [CPU_PROVIDER]
    fault = _fault()
    if fault is not None:
        raise MissingTool(fault)
    options = {
        "device_id": "0",
        "use_tf32": "0",  # fp32 is fp32; what may be faster with fewer bits is fp16
        "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search is made again for every new number of pictures
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1" if capture else "0",
    }
    return [(PROVIDER, options), CPU_PROVIDER]


def check_provider(session: ort.InferenceSession, settings: RuntimeSettings) -> None:
    """ONNX Runtime goes on with the CPU where a provider does not load: that is not what was asked for.

    Raises:
        MissingTool: the session has another provider.
    """
    found = session.get_providers()
    if settings.provider == "cuda" and found[:1] != [PROVIDER]:
        raise MissingTool(
            f"ONNX Runtime {ort.__version__} could not load its {PROVIDER} and took {found[0]}: install the CUDA "
            f"{_built_for()} and cuDNN 9 libraries that it was built for, or set provider = cpu"
        )


def check_captured(inputs: Mapping[str, Any], states: tuple[StateSpec, ...]) -> None:
    """Whether steps of this decoder have the same shapes and addresses each time.

    Raises:
        DeploymentError: they have not.
    """
    moving = next((state.name for state in states if state.update != "in_place"), None)
    if moving is None and "write_indices" in inputs:
        return
    what = f"its state {moving} is another tensor after every step" if moving else "it has no input write_indices"
    raise DeploymentError(
        f"cuda_graphs is for decoders of the dialect scatter, which this is not ({what}): choose that dialect or set "
        "cuda_graphs = false"
    )


@cache
def _fault() -> str | None:
    """Why no session on the GPU can be had, or None; asked of the driver before any library of CUDA is loaded."""
    driver = cuda.probe()
    if isinstance(driver, str):
        return f"{driver}, so ONNX Runtime cannot use a GPU: set provider = cpu or install the driver"
    if PROVIDER not in ort.get_available_providers():
        return (
            f"ONNX Runtime {ort.__version__} was built without CUDA: pip uninstall onnxruntime, then "
            "pip install 'msao-compile[gpu]'"
        )
    preload(_nvidia_folders())
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # where the packages stand beside its own
    return None


def preload(folders: Sequence[Path]) -> list[str]:
    """Load the libraries of CUDA and cuDNN that pip packages brought, wherever those stand; the files that loaded.

    What is not among them the system's loader looks for by itself.
    """
    loaded = []
    major = _built_for().partition(".")[0]
    for name, numbered in LIBRARIES:
        pattern = f"*/lib/{name}.so.{major}*" if numbered and major.isdigit() else f"*/lib/{name}.so.*"
        for path in (found for folder in folders for found in sorted(folder.glob(pattern))):
            try:
                ctypes.CDLL(str(path))
                loaded.append(path.name)
            except OSError as error:
                logger.debug("%s does not load: %s", path, error)
    return loaded


def _nvidia_folders() -> list[Path]:
    found = find_spec("nvidia")
    return [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []


def _built_for() -> str:
    return str(getattr(ort, "cuda_version", "") or "12 or 13")


class FixedSteps:
    """Steps of one token at addresses that stay: ONNX Runtime captures the first and replays it for the others.

    `values` are a cache's states, which graphs of the dialect `scatter` write in place, and `outputs` what comes out,
    the states again and `logits` [batch, 1, vocabulary]; a captured graph belongs to them and has their `number`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        number: int,
        values: Mapping[str, Any],
        outputs: Mapping[str, Any],
        device: str,
    ) -> None:
        self.session, self.values, self.device = session, values, device
        self.logits = outputs["logits"]
        self.options = ort.RunOptions()
        self.options.add_run_config_entry(GRAPH_ID, str(number))
        self.binding = session.io_binding()
        self.held: dict[str, Any] = {}
        for name, value in values.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            self.binding.bind_ortvalue_output(name, value)

    def run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits [batch, 1, vocabulary] of one more token for each sequence; `feed` has the same shapes every time."""
        for name, value in feed.items():
            if name in self.held:
                self.held[name].update_inplace(np.ascontiguousarray(value))
            else:
                self.held[name] = device_value(value, self.device)
                self.binding.bind_ortvalue_input(name, self.held[name])
        self.session.run_with_iobinding(self.binding, self.options)
        return np.array(self.logits.numpy())  # on the CPU it would be the memory that the next step writes


def device_value(value: np.ndarray, device: str) -> Any:
    """The same numbers in the memory of `cpu` or `cuda`."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0)


def fixed(feed: Mapping[str, np.ndarray]) -> bool:
    """Whether a step is one that FixedSteps can run: one token, one row of logits."""
    return feed["inputs_embeds"].shape[1] == 1 and len(feed["logits_positions"]) == 1
