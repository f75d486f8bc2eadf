"""What a recipe may say: frozen, strict models of recipe version 1 and the rules that span its fields."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from msao_compile.errors import RecipeError
from msao_compile.manifest.schema import Dialect, Precision
from msao_compile.recipe.targets import find

Role = Literal["draft", "target"]
Component = Literal[
    "vision_encoder",
    "audio_encoder",
    "video_encoder",
    "projector",
    "embed_tokens",
    "decoder",
    "lm_head",
    "text_encoder",
    "classifier",
    "encoder",
]

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
PART = re.compile(r"[A-Za-z_]\w*(?:\.(?:\w+|\*))*", re.ASCII)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
REVISION = re.compile(r"[0-9a-f]{40}")

KV_CAPACITY = 2048
"""Of a recipe without shapes.decoder."""
PARITY_PROMPT_TOKENS = 6
"""What parity asks before it compares its steps; a request with pictures is longer."""

ONE_PRECISION = "one precision"
BY_COMPONENT = "by component"


def refuse(sentence: str) -> PydanticCustomError:
    """The error that carries one finished sentence through Pydantic to the reader of the recipe."""
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def _name(value: str) -> str:
    if NAME.fullmatch(value) is None:
        raise refuse(
            "is not usable as a folder name: use at most 64 letters, digits, '-', '_' and '.', first a letter or digit"
        )
    return value


def _revision(value: str) -> str:
    if REVISION.fullmatch(value) is None:
        raise refuse(f"must be a commit of 40 lower-case hexadecimal digits, not '{value}'")
    return value


def _part(value: str) -> str:
    if PART.fullmatch(value) is None:
        raise refuse(f"must be a component or the dotted name of a part of a model, not '{value}'")
    return value


def _three(value: object) -> object:
    if isinstance(value, tuple) and len(value) != 3:
        raise refuse(f"must be the three integers [min, opt, max], not {len(value)} of them")
    return value


def _ascending(value: tuple[int, int, int]) -> tuple[int, int, int]:
    low, best, high = value
    if not low <= best <= high:
        raise refuse(f"must be [min, opt, max] with min <= opt <= max, not {list(value)}")
    return value


def _device(value: str) -> str:
    try:
        return find(value).target_id
    except RecipeError as error:
        raise refuse(str(error)) from error


def _shape_of_precision(value: object) -> str:
    return BY_COMPONENT if isinstance(value, Mapping) else ONE_PRECISION


Name = Annotated[str, AfterValidator(_name)]
Revision = Annotated[str, AfterValidator(_revision)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Profile = Annotated[tuple[Count, Count, Count], BeforeValidator(_three), AfterValidator(_ascending)]
PrecisionTable = Annotated[Mapping[Component, Precision], Field(min_length=1)]


class Part(BaseModel):
    """A table of the recipe: frozen, strict, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelChoice(Part):
    """One checkpoint: a local folder, or a hub id, whose commit the recipe or its lock file pins."""

    checkpoint: Annotated[str, Field(min_length=1)]
    """A folder relative to the recipe file (absolute once read), or a hub id such as "org/name" where there is no such
    folder or `revision` is given."""
    role: Role
    """Where a task has two models the draft drafts and the target verifies; one that answers alone may be either."""
    revision: Revision | None = None
    """Of a hub id; without it the first build or plan takes the newest one and pins it in the lock file."""
    trust_remote_code: bool = False
    """Run the Python files that the checkpoint's config.json names in `auto_map`, with all that you may do on this
    machine. Without it such a checkpoint is refused; code outside the checkpoint's folder is never fetched."""

    @model_validator(mode="after")
    def _revision_belongs_to_a_hub_id(self) -> Self:
        if self.revision is not None and HUB_ID.fullmatch(self.checkpoint) is None:
            raise refuse(f"has a revision, but checkpoint '{self.checkpoint}' is not a hub id: remove the revision")
        return self


class TaskChoice(Part):
    """A task and the models that serve it."""

    models: Annotated[tuple[str, ...], Field(min_length=1)]


class TargetChoice(Part):
    """A device to build for, and the precision of what runs there."""

    device: Annotated[str, AfterValidator(_device)]
    precision: Annotated[
        Annotated[Precision, Tag(ONE_PRECISION)] | Annotated[PrecisionTable, Tag(BY_COMPONENT)],
        Discriminator(_shape_of_precision),
    ]
    dialect: Dialect | None = None
    also_for: tuple[Annotated[str, AfterValidator(_device)], ...] = ()
    """Further devices that the same engine files have to run on: built ahead of time for all of them."""
    jetpack: Annotated[str, Field(min_length=1)] | None = None
    """The JetPack release of a Jetson, which brings its TensorRT; the newest known one where it is not said."""
    level: Literal["draft", "release"] = "release"
    """How long TensorRT may search for fast kernels; TensorRT-RTX chooses them when it loads, and builds as fast."""
    prefer: Literal["speed", "size"] = "speed"
    """Of a CPU: keep a quantised module where it is slower than the unquantised one, for its size."""
    timing_cache: Annotated[str, Field(min_length=1)] | None = None
    """A builder's timing cache to be used as it is, a file relative to the recipe file (absolute once read)."""

    @property
    def graph_dialect(self) -> Dialect:
        """The dialect chosen here, else the device's own."""
        return self.dialect or find(self.device).dialect

    def precision_of(self, component: Component) -> Precision:
        """The precision of a component; one that a precision table leaves out stays fp32."""
        if isinstance(self.precision, str):
            return self.precision
        return self.precision.get(component, "fp32")


class DecoderShapes(Part):
    """Shape profiles [min, opt, max] of the decoder, and its KV cache's capacity in tokens."""

    batch: Profile
    sequence: Profile
    kv_capacity: Count

    @model_validator(mode="after")
    def _sequence_fits(self) -> Self:
        if self.sequence[2] > self.kv_capacity:
            raise refuse(
                f"allows a sequence of {self.sequence[2]} tokens, more than kv_capacity = {self.kv_capacity}: "
                "raise kv_capacity or lower the last number of sequence"
            )
        return self


class VisionShapes(Part):
    """Shape profiles [min, opt, max] of the vision encoder."""

    images: Profile | None = None
    patches: Profile | None = None


class Shapes(Part):
    """Shape profiles by component."""

    decoder: DecoderShapes | None = None
    vision_encoder: VisionShapes | None = None
    dims: Mapping[str, Profile] = Field(default_factory=dict)
    """Ranges of lengths by the names that a graph's inputs give them, where no other field says them."""

    @property
    def kv_capacity(self) -> int:
        """Positions of each sequence's KV cache."""
        return KV_CAPACITY if self.decoder is None else self.decoder.kv_capacity


class Bounds(Part):
    """How far a module of one precision may be from its torch original."""

    min_cosine: Share | None = None
    max_abs: Annotated[float, Field(gt=0)] | None = None
    argmax_agreement: Share | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min_cosine is None and self.max_abs is None and self.argmax_agreement is None:
            raise refuse("sets no bound: give min_cosine, max_abs or argmax_agreement")
        return self


DEFAULT_BOUNDS: Mapping[str, Mapping[str, float | None]] = {
    "fp32": {"min_cosine": 0.9999, "max_abs": 1e-3, "argmax_agreement": None},
    "fp16": {"min_cosine": 0.999}, "bf16": {"min_cosine": 0.99}, "int8": {"min_cosine": 0.98},
    "fp8": {"min_cosine": 0.98}, "int4": {"min_cosine": 0.95},
}  # fmt: skip
"""By precision, of a recipe that sets none."""


class Parity(Part):
    """Parity bounds by precision, and how many decode steps are compared."""

    fp32: Bounds | None = None
    fp16: Bounds | None = None
    bf16: Bounds | None = None
    int8: Bounds | None = None
    fp8: Bounds | None = None
    int4: Bounds | None = None
    steps: Count = 8

    def bounds(self, precision: str) -> dict[str, float | None]:
        """The bounds of a precision, ours where the recipe sets none."""
        given: Bounds | None = getattr(self, precision)
        return dict(DEFAULT_BOUNDS[precision]) if given is None else given.model_dump(mode="json")


class Ranges(Part):
    """From which samples activation ranges for int8 and fp8 are taken."""

    samples: Annotated[str, Field(min_length=1)] | None = None
    """JSON lines with `question` and `image`, a file beside it; relative to the recipe file (absolute once read)."""
    synthetic: bool = False
    """Made-up requests instead: ranges of noise, good for trying a build only."""
    limit: Count = 128
    """Samples that are run at most."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.samples is None) != self.synthetic:
            raise refuse("takes either samples or synthetic = true")
        return self


class Mas(Part):
    """Labelled samples for fitting Modality Activation Sparsity, and the accuracy loss allowed."""

    samples: Annotated[str, Field(min_length=1)]
    """JSON lines with `question`, `answer` and, of a picture, `image`, a file beside it; relative to the recipe file
    (absolute once read)."""
    epsilon: Annotated[float, Field(gt=0, lt=1)]
    held_out: Annotated[str, Field(min_length=1)] | None = None
    """A file of other samples to show the loss on; without it, two fifths of `samples`."""
    trials: Annotated[int, Field(ge=1, le=1000)] = 32
    """Points that the search tries."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of the division of the samples and of the search."""


class RuntimeChoice(Part):
    """Settings the runtime starts with."""

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of one session; None leaves the number to the backend."""
    arena: bool = True
    """Keep memory between runs instead of giving it back."""
    warm_up: Annotated[int, Field(ge=0, le=1000)] = 1
    """Runs before the first answer."""


class ExportChoice(Part):
    """What of a checkpoint is exported."""

    exclude: tuple[Annotated[str, AfterValidator(_part)], ...] = ()
    """Encoders by component ("video_encoder"), and parts that no graph can have by the names of their tensors
    ("model.protein_encoder", "talker"): a build that cannot export something and does not find it here fails."""
    weights: Literal["original", "module"] = "original"
    """Where graphs find them: in the checkpoint's files where those have their bytes, or in a file of each module."""


class Recipe(Part):
    """A complete recipe, version 1."""

    recipe: Literal[1]
    name: Name
    models: Annotated[Mapping[Name, ModelChoice], Field(min_length=1)]
    tasks: Annotated[Mapping[Name, TaskChoice], Field(min_length=1)]
    targets: Annotated[Mapping[Name, TargetChoice], Field(min_length=1)]
    shapes: Shapes = Shapes()
    parity: Parity = Parity()
    islands: Mapping[Component, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Blocks of a component that stay fp32 in every precision, by the names that `parity --bisect` tells."""
    ranges: Ranges | None = None
    mas: Mas | None = None
    runtime: RuntimeChoice = RuntimeChoice()
    export: ExportChoice = ExportChoice()

    @model_validator(mode="after")
    def _names_stay_apart_as_folders(self) -> Self:
        for table, names in (("models", self.models), ("tasks", self.tasks), ("targets", self.targets)):
            _refuse_clashes(table, names)
        return self

    @model_validator(mode="after")
    def _parity_fits_the_cache(self) -> Self:
        capacity = self.shapes.kv_capacity
        if self.parity.steps + PARITY_PROMPT_TOKENS > capacity:
            raise refuse(
                f"parity.steps = {self.parity.steps} after a prompt of {PARITY_PROMPT_TOKENS} tokens does not fit "
                f"shapes.decoder.kv_capacity = {capacity}: lower parity.steps or raise kv_capacity"
            )
        return self

    @model_validator(mode="after")
    def _tasks_fit_their_models(self) -> Self:
        for task, choice in self.tasks.items():
            for model in choice.models:
                if model not in self.models:
                    raise refuse(f"tasks.{task}.models names '{model}', {_unknown_model(model, self.models)}")
            if len(set(choice.models)) < len(choice.models):
                raise refuse(f"tasks.{task}.models names a model twice: name each once")
            _refuse_roles(task, {model: self.models[model].role for model in choice.models})
        return self


def _refuse_clashes(table: str, names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise refuse(f"{table}.{other} and {table}.{name} would share a folder where case is ignored: rename one")


def _unknown_model(model: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(model, known, n=1)
    return (
        f"which [models] does not have; did you mean '{near[0]}'?" if near else f"but [models] has {', '.join(known)}"
    )


def _refuse_roles(task: str, roles: Mapping[str, Role]) -> None:
    for role in get_args(Role):
        holders = [model for model, held in roles.items() if held == role]
        if len(holders) > 1:
            raise refuse(f"tasks.{task} has two models of role '{role}', {' and '.join(holders[:2])}: keep one")
