"""A decoder's state in device memory: one buffer written in place, two used in turn, or two that grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msao_compile.errors import StageError
from msao_compile.runtime.backends.cuda import DeviceBuffer, Driver, Stream

if TYPE_CHECKING:
    from msao_compile.manifest.schema import StateSpec

GROWS = "past_sequence_length"  # as manifest.schema.GROWS, which a device does not have


class DeviceState:
    """One state tensor of `batch` sequences.

    A graph that says `in_place` writes one buffer of `rows` positions, bound as past and present at once. Where the
    library does not share them (`shared` false) the present is another buffer of that size, and they take turns.
    """

    def __init__(self, spec: StateSpec, itemsize: int, batch: int, rows: int, shared: bool) -> None:
        self.name, self.output, self.update = spec.name, spec.output, spec.update
        self.rollback, self.rows, self.shared = spec.rollback, rows, shared and spec.update == "in_place"
        axis = spec.shape.index(GROWS) if GROWS in spec.shape else len(spec.shape)
        self.before = tuple(batch if isinstance(size, str) else size for size in spec.shape[:axis])
        self.after = tuple(batch if isinstance(size, str) else size for size in spec.shape[axis + 1 :])
        self.grows, self.itemsize = axis < len(spec.shape), itemsize
        self.buffers: list[DeviceBuffer] = []

    def shape(self, length: int) -> tuple[int, ...]:
        """What is bound as past when `length` positions are held."""
        held = self.rows if self.update == "in_place" else length
        return (*self.before, held, *self.after) if self.grows else self.before

    def size_bytes(self, length: int) -> int:
        """Bytes of that shape."""
        return math.prod(self.shape(length)) * self.itemsize

    def start(self, driver: Driver, stream: Stream) -> None:
        """Memory for an empty state. It is zero: what a mask hides is still multiplied, and must not be NaN."""
        self.buffers = [DeviceBuffer(driver, self.size_bytes(0)) for _ in range(1 if self.shared else 2)]
        for buffer in self.buffers:
            buffer.clear(stream)

    def make_room(self, driver: Driver, length: int, capacity: int) -> None:
        """Let the present have `length` positions: its memory doubles, up to `capacity`."""
        if self.update == "concat" and self.buffers[-1].size_bytes < self.size_bytes(length):
            rows = min(1 << max(length - 1, 1).bit_length(), max(capacity, length))
            self.buffers[-1] = DeviceBuffer(driver, self.size_bytes(rows))

    def turn(self) -> None:
        """What was the present is the past from now on."""
        self.buffers.reverse()

    def cut(self, driver: Driver, stream: Stream, held: int, length: int) -> None:
        """Keep the first `length` of `held` positions: each row is shorter then, so that rows move together."""
        if self.update != "concat":
            return  # what lies beyond is overwritten before a mask shows it
        self.make_room(driver, length, length)
        inner, rows = math.prod(self.after) * self.itemsize, math.prod(self.before)
        self.buffers[-1].take_rows(self.buffers[0], rows, (held * inner, length * inner), stream)
        self.turn()


class DeviceCache:
    """The state tensors of `batch` sequences that go on together, on the device throughout.

    Raises:
        StageError: the GPU has not the memory.
    """

    def __init__(self, driver: Driver, states: Sequence[DeviceState], capacity: int) -> None:
        self.driver, self.states, self.length, self.capacity = driver, states, 0, capacity
        self.rows = max((state.rows for state in states), default=capacity)
        driver.use()
        self.stream = Stream(driver)  # its own: the decoder's may be recording a graph on another thread
        for state in states:
            state.start(driver, self.stream)
        self.stream.synchronize()

    @property
    def state_bytes(self) -> int:
        """Device memory that is held now."""
        return sum(buffer.size_bytes for state in self.states for buffer in state.buffers)

    @property
    def stays(self) -> bool:
        """Whether shapes and addresses are those of the step before, or of the one before that."""
        return all(state.update != "concat" for state in self.states)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every past by name."""
        return {state.name: state.shape(self.length) for state in self.states}

    def addresses(self, count: int) -> Mapping[str, int]:
        """Where past and present lie for a step of `count` positions, by tensor name."""
        found = {}
        for state in self.states:
            state.make_room(self.driver, self.length + count, self.capacity)
            found[state.name], found[state.output] = state.buffers[0].address, state.buffers[-1].address
        return found

    def take(self, count: int) -> None:
        """After a step: `count` more positions are known."""
        self.length += count
        for state in self.states:
            state.turn()

    def rollback(self, length: int) -> None:
        """Forget positions from `length` on.

        Raises:
            StageError: the decoder has state that holds nothing of earlier positions.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a KV cache of {self.length} positions cannot roll back to {length}")
        fixed = next((state.name for state in self.states if not state.rollback), None)
        if length < self.length and fixed is not None:
            raise StageError(f"state {fixed} cannot be rolled back from {self.length} positions to {length}")
        self.driver.use()
        for state in self.states if length < self.length else ():
            state.cut(self.driver, self.stream, self.length, length)
        self.stream.synchronize()
        self.length = length


def device_states(
    specs: Sequence[StateSpec], itemsizes: Mapping[str, int], batch: int, rows: int, aliases: Mapping[str, Any]
) -> list[DeviceState]:
    """The states of a decoder; `aliases` has the input whose memory an output shares, where the library says so."""
    return [
        DeviceState(spec, itemsizes[spec.name], batch, rows, aliases.get(spec.output, spec.name) == spec.name)
        for spec in specs
    ]
