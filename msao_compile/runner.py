"""Ask the store, else run the stage in a child process and keep what came out; the same walk makes a plan."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from msao_compile.errors import GateError, Interrupted, StageError
from msao_compile.farm.job import Job, Progress
from msao_compile.farm.local import run as run_job
from msao_compile.farm.process import stopped_by_signals
from msao_compile.manifest.evidence import StageRun
from msao_compile.manifest.schema import Deployment
from msao_compile.recipe.ledger import at_once, short_here
from msao_compile.recipe.room import memory_here
from msao_compile.recipe.schema import Recipe
from msao_compile.store.explain import explain, nearest
from msao_compile.store.files import free_bytes, full
from msao_compile.store.inputs import Inputs
from msao_compile.store.key import Key
from msao_compile.store.record import Record
from msao_compile.store.store import Store

State = Literal["started", "working", "finished", "reused", "deferred"]
INTERRUPTED = "interrupted; what was finished is kept, and the next build continues"


@dataclass(frozen=True)
class Options:
    """Where to build and what; empty `targets` and `modules` mean all of the recipe's."""

    out: Path
    store: Path
    jobs: int = 1
    targets: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    frozen: bool = False
    """Resolve no hub checkpoint that the lock file does not pin."""
    receipts: tuple[Path, ...] = ()
    """What devices proved of this deployment's engines, to be taken in."""
    trusted_keys: Path | None = None
    """Whose signatures receipts must have; None takes unsigned ones."""


@dataclass(frozen=True)
class Event:
    """What a build tells while it runs; `expected_seconds`, of a start, is learned from earlier runs of the stage."""

    stage: str
    subject: str
    state: State
    begun: int
    """How many were started or found finished, this one included."""
    done: int
    total: int
    seconds: float = 0.0
    expected_seconds: float | None = None
    peak_rss_bytes: int | None = None
    detail: str = ""
    """What a `working` stage says of itself."""


@dataclass(frozen=True)
class Step:
    """One line of a plan."""

    stage: str
    subject: str
    state: Literal["run", "reuse", "deferred"]
    reasons: tuple[str, ...]
    seconds: float | None
    peak_rss_bytes: int | None
    disk_bytes: int | None


@dataclass(frozen=True)
class Built:
    """What a build left."""

    folder: Path
    deployment: Deployment
    ran: int
    reused: int
    seconds: float
    copied_bytes: int = 0
    """Of checkpoint files that could not be linked into the deployment."""


@dataclass(frozen=True)
class Ask:
    """One stage run to ask for.

    `arguments(workspace)` gives what the child is called with; `outputs` are the files it leaves, by name.
    `prepare(workspace)` puts files there first.
    """

    stage: str
    subject: str
    version: int
    fields: Mapping[str, Any]
    arguments: Callable[[Path], dict[str, Any]]
    outputs: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None
    disk_bytes: int | None = None
    peak_bytes: int | None = None
    """Memory that it is expected to need; a run is refused where this machine has less."""
    seconds: float | None = None
    """Time that it is expected to take, where nothing of its subject ran before."""

    @property
    def key(self) -> Key:
        """What names this request in the store."""
        return Key(
            kind=self.stage, stage=self.stage, version=self.version, fields={**self.fields, "subject": self.subject}
        )


class Runner:
    """Runs stages for one build, or with `tell=None` only looks what would run."""

    def __init__(
        self, recipe: Recipe, options: Options, tell: Callable[[Event], None] | None, recipe_path: Path | None = None
    ) -> None:
        self.recipe, self.options, self.tell, self.recipe_path = recipe, options, tell, recipe_path
        self.planning = tell is None
        self.store = Store(options.store)
        self.inputs = Inputs(options.store / "inputs.json", write=not self.planning)
        self.steps: list[Step] = []
        self.stages: list[StageRun] = []
        self.begun = self.ran = self.reused = self.total = 0
        self._lock = threading.Lock()

    @property
    def advice(self) -> str:
        """The command that looks into modules whose parity failed."""
        words = [str(self.recipe_path or "RECIPE"), "--bisect", "--store", str(self.options.store),
                 "--out", str(self.options.out)]  # fmt: skip
        return f"msao-compile parity {shlex.join(words)}"

    def ask(self, asks: Sequence[Ask]) -> list[Record | None]:
        """The records of independent requests, run at most `options.jobs` at a time; None only in a plan.

        Raises:
            MsaoError: the first failure; what finished before it is kept.
            GateError: a run needs more memory than this machine has. StageError: or more disk.
            Interrupted: Ctrl-C or SIGTERM; running children are ended, what finished is kept.
        """
        self.total += len(asks)
        if self.planning:
            return [self._plan(ask) for ask in asks]
        stop = threading.Event()
        jobs = at_once((ask.peak_bytes or 0 for ask in asks), self.options.jobs, memory_here())
        with stopped_by_signals(stop), ThreadPoolExecutor(max_workers=jobs) as pool:
            futures = [pool.submit(self._run, ask, stop) for ask in asks]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for future in done if (error := future.exception()) is not None]
            if failures:
                stop.set()
        if failures:
            raise next((error for error in failures if not isinstance(error, Interrupted)), failures[0])
        if stop.is_set():  # a signal that met no running child must end the build all the same
            raise Interrupted(INTERRUPTED)
        return [future.result() for future in futures]

    def _plan(self, ask: Ask) -> Record | None:
        found = self.store.peek(ask.key, "digest")  # as `_run` looks: a plan that trusts sizes would promise too much
        before = nearest(self.store, ask.key)
        known = found if isinstance(found, Record) else before
        cost = {
            "seconds": ask.seconds if known is None else _number(known, "seconds"),
            "peak_rss_bytes": ask.peak_bytes if known is None else _whole(known, "peak_rss_bytes"),
        }
        if isinstance(found, Record):
            self.steps.append(
                Step(
                    ask.stage,
                    ask.subject,
                    "reuse",
                    ("nothing it reads has changed",),
                    **cost,  # type: ignore[arg-type]
                    disk_bytes=0,
                )
            )
            return found
        reasons = [str(found)] if found is not None else explain(before.key.told if before else None, ask.key.told)
        self.steps.append(Step(ask.stage, ask.subject, "run", tuple(reasons), **cost, disk_bytes=ask.disk_bytes))  # type: ignore[arg-type]
        return None

    def wait_for(self, stage: str, subject: str, reason: str) -> None:
        """In a plan: a step whose key is not known before another one has run."""
        self.steps.append(Step(stage, subject, "run", (reason,), None, None, None))

    def defer(self, subject: str, reason: str, stage: str = "build") -> None:
        """A step that only another machine can do."""
        self.steps.append(Step(stage, subject, "deferred", (reason,), None, None, None))
        if self.tell is not None:
            self._say(stage, subject, "deferred")

    def _run(self, ask: Ask, stop: threading.Event) -> Record:
        with self.store.building(ask.key, "digest") as found:
            if isinstance(found, Record):
                return self._reuse(ask, found)
            if stop.is_set():
                raise Interrupted(INTERRUPTED)
            return self._make(ask, stop)

    def _reuse(self, ask: Ask, found: Record) -> Record:
        with self._lock:
            self.begun += 1
            self.reused += 1
        self._note(ask, found)
        self._say(ask.stage, ask.subject, "reused")
        return found

    def _make(self, ask: Ask, stop: threading.Event) -> Record:
        before = nearest(self.store, ask.key)
        expected = ask.seconds if before is None else _number(before, "seconds")
        self._refuse_shortage(ask)
        with self._lock:
            self.begun += 1
        self._say(ask.stage, ask.subject, "started", expected_seconds=expected)
        started = time.perf_counter()
        with self.store.workspace() as folder:
            if ask.prepare is not None:
                ask.prepare(folder)
            job = Job(
                function=f"msao_compile.stages.{ask.stage}:run",
                arguments=ask.arguments(folder),
                phase=f"{ask.stage} of {ask.subject}",
                threads=self.recipe.runtime.threads,
            )
            result = run_job(job, partial(self._working, ask), stop)
            seconds = time.perf_counter() - started
            payload = {"result": result.value, "seconds": seconds, "peak_rss_bytes": result.peak_rss_bytes}
            record = self.store.commit(ask.key, {name: folder / file for name, file in ask.outputs.items()}, payload)
        with self._lock:
            self.ran += 1
        self._note(ask, record)
        self._say(ask.stage, ask.subject, "finished", seconds=seconds, peak_rss_bytes=result.peak_rss_bytes)
        return record

    def _refuse_shortage(self, ask: Ask) -> None:
        """Before a run is started that this machine cannot finish.

        Raises:
            GateError: too little memory. StageError: too little disk. Both say what is needed and what there is.
        """
        short = None if ask.peak_bytes is None else short_here(ask.peak_bytes, memory_here())
        if short is not None:
            raise GateError(f"{ask.subject}: {short}; build it on a larger machine, or ask for a lower precision")
        if ask.disk_bytes is not None and ask.disk_bytes > free_bytes(self.store.root):
            raise StageError(full(f"{ask.stage} of {ask.subject}", self.store.root, ask.disk_bytes))

    def _working(self, ask: Ask, record: Progress) -> None:
        self._say(
            ask.stage, ask.subject, "working", detail=", ".join(f"{name} {value}" for name, value in record.items())
        )

    def _note(self, ask: Ask, record: Record) -> None:
        run = StageRun(
            stage=ask.stage,
            subject=ask.subject,
            record=record.digest,
            seconds=_number(record, "seconds") or 0.0,
            peak_rss_bytes=_whole(record, "peak_rss_bytes") or 0,
        )
        with self._lock:
            self.stages.append(run)

    def _say(self, stage: str, subject: str, state: State, **more: Any) -> None:
        if self.tell is not None:
            self.tell(Event(stage, subject, state, self.begun, self.ran + self.reused, self.total, **more))


def _number(record: Record | None, name: str) -> float | None:
    value = record.payload.get(name) if record is not None else None
    return float(value) if isinstance(value, int | float) else None


def _whole(record: Record | None, name: str) -> int | None:
    value = _number(record, name)
    return None if value is None else int(value)
