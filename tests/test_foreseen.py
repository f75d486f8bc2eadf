"""Before anything was split, a plan lists what the recipe alone tells: models, dialects, precisions and targets."""

from __future__ import annotations

from msao_compile.foreseen import after_split
from msao_compile.recipe.schema import TargetChoice

CPU = TargetChoice(device="local-cpu", precision={"decoder": "int4"})
L4 = TargetChoice(device="nvidia-l4", dialect="scatter", precision="fp16")
ORIN = TargetChoice(device="jetson-agx-orin-32gb", precision={"vision_encoder": "int8", "decoder": "fp16"})
PLAIN = TargetChoice(device="local-cpu", precision="fp32")


def test_what_follows_is_listed_by_model_dialect_precision_and_target() -> None:
    found = list(after_split(["edge", "cloud"], {"cpu": CPU, "l4": L4, "orin": ORIN}))
    assert [(stage, subject) for stage, subject, _ in found] == [
        ("load", "every module of edge"), ("load", "every module of cloud"),
        ("export", "every module (fused)"), ("export", "every module (portable)"), ("export", "every module (scatter)"),
        ("ranges", "edge"), ("ranges", "cloud"),
        ("quantize", "decoder (fused int4)"), ("quantize", "every module (scatter fp16)"),
        ("quantize", "vision_encoder (portable int8)"), ("quantize", "decoder (portable fp16)"),
        ("weigh", "decoder (int4) for cpu"),
        ("parity", "edge"), ("parity", "cloud"),
        ("build", "every module for cpu"), ("engine", "every module for l4"), ("build", "every module for orin"),
        ("measure", "every route"),
    ]  # fmt: skip
    left = {subject: why for _, subject, why in found if why is not None}
    assert left == {"every module for orin": "jetson-agx-orin-32gb builds its engines with on-device tensorrt"}


def test_one_model_in_fp32_on_a_cpu_has_no_step_for_precisions() -> None:
    stages = [stage for stage, _, _ in after_split(["edge"], {"cpu": PLAIN})]
    assert stages == ["load", "export", "parity", "build", "measure"]


def test_without_a_cpu_there_is_nothing_to_measure() -> None:
    assert [stage for stage, _, _ in after_split(["edge"], {"l4": L4})][-1] == "engine"
