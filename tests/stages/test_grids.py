"""Lengths of packed patches: at each size of a request they belong together."""

from __future__ import annotations

from msao_compile.manifest.schema import Encoder, FileRef, Graph, HostCall, TensorSpec
from msao_compile.recipe.schema import Shapes
from msao_compile.stages import grids
from msao_compile.stages.profiles import profiles

FILE = FileRef(path="modules/a/b.onnx", sha256="0" * 64, size_bytes=1)
INPUTS = {
    "pixel_values": ("num_patches", 12), "vision_position_ids.0.0": ("vision_position_ids.0.0_axis0", 2),
    "vision_window_index.1.0": ("vision_window_index.1.0_axis0",), "vision_window_index.1.1": ("windows",),
}  # fmt: skip
GRAPH = Graph(
    dialect="portable", opset=20, file=FILE, data=(),
    inputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in INPUTS.items()),
    outputs=(TensorSpec(name="image_features", dtype="float32", shape=("vision_window_index.1.0_axis0", 8)),),
)  # fmt: skip
POSITIONS = HostCall(function="vision_position_ids", settings={"include_temporal": False, "spatial_merge_size": 2},
                     inputs={"grid_thw": "image_grid_thw"}, outputs=("vision_position_ids.0.0",))  # fmt: skip
WINDOWS = HostCall(
    function="vision_window_index", settings={"patch_size": 14, "spatial_merge_size": 2, "window_size": 112},
    inputs={"grid_thw": "image_grid_thw"}, outputs=("vision_window_index.1.0", "vision_window_index.1.1"),
)  # fmt: skip
TOWER = Encoder(component="vision_encoder", modality="image", inputs=("pixel_values", "image_grid_thw"), each=True,
                host=(POSITIONS, WINDOWS), placeholder=4)  # fmt: skip


def test_patches_positions_and_windows_are_of_one_picture_at_each_size() -> None:
    found = grids.lengths(TOWER, GRAPH, tokens=81)
    patches, merged = found["num_patches"], found["vision_window_index.1.0_axis0"]
    assert patches == found["vision_position_ids.0.0_axis0"] == (4, 4 * 81, 4 * 4 * 81)
    assert merged == tuple(count // 4 for count in patches)
    assert found["windows"][0] < found["windows"][1] < found["windows"][2]


def test_a_profile_takes_them_and_the_recipe_s_own_before_them() -> None:
    known = grids.lengths(TOWER, GRAPH, tokens=81)
    [profile] = profiles("vision_encoder", GRAPH, Shapes(dims={"windows": (1, 2, 3)}), 81, known)
    shapes = {entry.name: (entry.min, entry.opt, entry.max) for entry in profile.inputs}
    assert shapes["pixel_values"] == ((4, 12), (324, 12), (1296, 12))
    assert shapes["vision_window_index.1.1"] == ((1,), (2,), (3,))


def test_a_clip_has_frames_and_what_takes_no_grid_has_no_lengths_of_its_own() -> None:
    clip = TOWER.model_copy(update={"modality": "video"})
    assert grids.lengths(clip, GRAPH, tokens=3 * 81)["num_patches"] == (4, 3 * 4 * 81, 6 * 4 * 4 * 81)
    assert grids.lengths(TOWER.model_copy(update={"inputs": ("pixel_values",)}), GRAPH, tokens=81) == {}
