"""The shipped processors, with our code and with transformers': the same tokens and the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import ROOT
from PIL import Image
from transformers import AutoProcessor

from calibration.shapes.gallery import PICTURES
from msao_compile.runtime.api import Runtime

pytestmark = pytest.mark.golden
QUESTION = "how many red circles are there?"


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.png")), ids=lambda path: path.stem)
@pytest.mark.parametrize("model", ["edge", "cloud"])
def test_a_gallery_picture_becomes_the_arrays_of_the_checkpoint_s_own_processor(
    runtime: Runtime, path: Path, model: str
) -> None:
    processor: Any = AutoProcessor.from_pretrained(ROOT / "calibration" / "models" / f"shapes-{model}")
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
    wanted = processor(text=text, images=[Image.open(path).convert("RGB")], return_tensors="np")
    ours = runtime.session(model).prepare(QUESTION, [path])
    assert ours.ids.tolist() == wanted["input_ids"][0].tolist()
    np.testing.assert_allclose(ours.tensors["pixel_values"], wanted["pixel_values"], atol=1e-5)
