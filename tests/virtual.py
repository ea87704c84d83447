"""The engine's schedule in virtual time: how long steps would take on a GPU of given figures.

`train` runs the real engine on the CPU with tiny weights. Each of their bytes stands for `scale`
bytes of a real model's, and what a GPU, its link and its host would take for them passes on a
simulated `Clock`: three queues (copies up, copies home, computation), to which Python adds as its
own time passes. Copies and arithmetic themselves happen at once, so results are the real ones.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zo2
from zo2 import planning
from zo2.assembly import arithmetic_for
from zo2.engine import placement, transfer, vocabulary, zerocopy
from zo2.engine.lanes import CudaLanes
from zo2.engine.placement import Placement, Plan
from zo2.engine.vocabulary import Matrix
from zo2.engine.weights import Arithmetic
from zo2.logits import crossentropy


@dataclass(frozen=True)
class Machine:
    """What an H200 on PCIe 5 x16 takes, in seconds and bytes (benchmarks/README.md).

    Attributes:
        in_place: bytes per second, each way, of a kernel that updates weights in host memory.
        alone: bytes per second of one direction of the link while the other one is idle.
        both: bytes per second of each direction while both are busy.
        slower: by how much the GPU is slower than that.
        between: seconds of Python from the losses of a step to the next sweep.
        opening: seconds of Python of each pass until it enters its first block.
        passing: seconds of Python of a pass through a block.
        queueing: seconds of Python to bring a unit and queue its arithmetic.
        copying: seconds of Python to queue a copy.
    """

    in_place: float = 41e9
    alone: float = planning.H200.up
    both: float = planning.H200.both
    slower: float = 1.0
    between: float = 1.5e-3
    opening: float = 0.3e-3
    passing: float = 0.1e-3
    queueing: float = 0.1e-3
    copying: float = 0.02e-3

    def arithmetic(self, weights: float, updates: int, copies: int) -> float:
        """Seconds to update float16 weights and to write perturbed copies of them.

        Fits what kernels were measured to take: bytes read and written, one z for all copies, and
        for each update its z and the bits of stochastic rounding. What is stored beside copies
        takes no longer.
        """
        picoseconds = 0.16 * (2 + 2 * max(copies, 1)) + 0.8 * (copies > 0) + 1.8 * updates
        return 1e-12 * weights * picoseconds

    def link(self, up: float, home: float) -> float:
        """Seconds that the link needs at least for so many bytes each way."""
        return planning.link_time(up, home, self.alone, self.both)


@dataclass(frozen=True)
class Shape:
    """A model of equal blocks, and what a GPU takes for a pass, in seconds."""

    blocks: int
    block_bytes: float
    words: int  # of the tiny model: embedding and head, which are tied, over a block's weights
    block: float
    head: float
    asks: bool = True  # whether each pass reads from the device whether any token is masked


OPT_1_3B = Shape(24, 100.7e6, 1568, block=0.435e-3, head=1.3e-3)
OPT_13B = Shape(40, 629.3e6, 630, block=2.25e-3, head=2.3e-3)


class Event:
    """The end of queued work, which `CudaLanes` takes for a CUDA event."""

    time: float | None = None

    def query(self) -> bool:
        return self.time is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.time is not None
        assert end.time is not None
        return 1e3 * (end.time - self.time)


@dataclass
class _Work:
    left: float  # bytes, or seconds of computation
    after: list[Event]
    done: Event = field(default_factory=Event)

    @property
    def is_ready(self) -> bool:
        return all(event.query() for event in self.after)


class Clock:
    """Virtual time. Each queue does one piece of work at a time, in order; a copy goes on at the
    rate that the other direction leaves it at each moment.

    Attributes:
        now: what the clock shows to Python, which queues work and seldom waits.
        moved: bytes in the queues "up" and "home" so far.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine, self.now = machine, 0.0
        self.moved = {"up": 0.0, "home": 0.0}
        self._queues: dict[str, deque[_Work]] = {"up": deque(), "home": deque(), "gpu": deque()}

    def copy(self, way: str, nbytes: float, after: Sequence[Event]) -> Event:
        self.moved[way] += nbytes
        self.python(self.machine.copying)
        return self._queue(way, nbytes, after)

    def compute(self, seconds: float, after: Sequence[Event] = ()) -> Event:
        return self._queue("gpu", seconds * self.machine.slower, after)

    def python(self, seconds: float) -> None:
        """Python computes for so long, and everything else goes on."""
        until = self.now + seconds
        while self._advance(until):
            pass

    def wait(self, event: Event) -> None:
        """Python waits for an event."""
        while not event.query():
            if not self._advance(math.inf):
                raise AssertionError("nothing that is queued could ever begin")

    def read(self) -> None:
        """Python reads a computed number as usual, by a small copy home: those of weights take
        turns on two streams, so it gets in after the one under way.
        """
        self.wait(self.compute(0.0))
        home, small = self._queues["home"], _Work(0.0, [])
        home.insert(1 if home and home[0].is_ready else 0, small)
        self.wait(small.done)

    def _queue(self, name: str, work: float, after: Sequence[Event]) -> Event:
        piece = _Work(work, list(after))
        self._queues[name].append(piece)
        while self._advance(self.now):  # what takes no time
            pass
        return piece.done

    def _advance(self, until: float) -> bool:
        """Let time pass until a piece of work ends, but not beyond ``until``; whether one ended."""
        active = {n: q[0] for n, q in self._queues.items() if q and q[0].is_ready}
        rate = self.machine.both if {"up", "home"} <= active.keys() else self.machine.alone
        rates = {"up": rate, "home": rate, "gpu": 1.0}
        first = min(active, key=lambda name: active[name].left / rates[name], default=None)
        ends = math.inf if first is None else self.now + active[first].left / rates[first]
        for name, piece in active.items():
            piece.left -= (min(ends, until) - self.now) * rates[name]
        self.now = min(ends, until)
        if first is None or ends > until:
            return False
        self._queues[first].popleft().done.time = self.now
        return True


class _VirtualWay:
    """Stands for `zo2.engine.lanes.Way`."""

    def __init__(self, clock: Clock, name: str, scale: float) -> None:
        self._clock, self._name, self._scale = clock, name, scale
        self._last: Event | None = None

    def copy(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Event]) -> Event:
        to.copy_(source)
        self._last = self._clock.copy(self._name, source.nbytes * self._scale, after)
        return self._last

    def synchronize(self) -> None:
        if self._last is not None:
            self._clock.wait(self._last)


class VirtualLanes(CudaLanes):
    """As on a GPU: what they tell of a sweep is told by the same code."""

    def __init__(self, clock: Clock, scale: float) -> None:
        self._clock = clock
        self._up, self._down = (_VirtualWay(clock, way, scale) for way in ("up", "home"))
        self._noted, self._earlier = [], []

    def computed(self) -> Event:
        return self._clock.compute(0.0)

    def compute_after(self, event: Event) -> None:
        self.note(self.computed(), event)
        self._clock.compute(0.0, [event])


@dataclass(frozen=True)
class VirtualPlacement(Placement):
    """Plans for a GPU, on whatever device passes run."""

    def plan(self, units: Sequence[Any], device: str, *sizes: int, **more: Any) -> Plan:
        return super().plan(units, "cuda", *sizes, **more)


@dataclass(frozen=True)
class TakingTurns(VirtualPlacement):
    """With room for one copy of a small block, if the largest unit is not larger."""

    def plan(self, units: Sequence[Any], device: str, *sizes: int, **more: Any) -> Plan:
        plan = super().plan(units, device, *sizes, **more)
        once = placement.perturbed_sizes(units, "cuda").once
        return replace(plan, need=replace(plan.need, perturbed=once))


@dataclass(frozen=True)
class _VirtualArithmetic:
    """Arithmetic that takes a GPU's time."""

    real: Arithmetic
    clock: Clock
    scale: float

    def transform(self, *args: Any) -> None:
        layout, _, changes, held, _, targets = args
        weights = layout.nbytes * self.scale / 2
        updates = len(changes.rounds[held:]) + bool(changes.open)
        self.clock.python(self.clock.machine.queueing)
        self.clock.compute(self.clock.machine.arithmetic(weights, updates, len(targets)))
        self.real.transform(*args)


class _VirtualRows(_VirtualArithmetic):
    """The same by rows, which are taken out of a copy of all."""

    def transform(self, *args: Any) -> None:
        layout, *_, targets = args
        if targets or layout.nbytes * self.scale < LARGE:
            super().transform(*args)
            return
        nbytes = layout.nbytes * self.scale  # the embedding's, where it rests
        for way in ("up", "home"):
            self.clock.moved[way] += nbytes
        self.clock.compute(nbytes / self.clock.machine.in_place)
        self.real.transform(*args)

    def look_up(self, matrix: Matrix, index: int, ids: torch.Tensor) -> torch.Tensor:
        self.clock.python(self.clock.machine.queueing)
        self.clock.compute(LOOK_UP)
        return copy_of(self.real, matrix, index)[ids]

    def perturb_rows(
        self, matrix: Matrix, rows: slice, source: torch.Tensor, targets: Sequence[Any]
    ) -> None:
        self.clock.python(self.clock.machine.queueing)
        weights, updates = source.nbytes * self.scale / 2, matrix.rounds_lacking
        self.clock.compute(self.clock.machine.arithmetic(weights, updates, len(targets)))
        for index, out in targets:
            part = copy_of(self.real, matrix, index)[rows]
            out.copy_(part.reshape(-1).view(torch.uint8))


def copy_of(arithmetic: Arithmetic, matrix: Matrix, index: int) -> torch.Tensor:
    """A perturbed copy of all of a matrix, out of which rows can be taken."""
    out, layout, held = torch.empty_like(matrix.base), matrix.layout, matrix.held
    arithmetic.transform(layout, matrix.base, matrix.changes, held, False, [(index, out)])
    return layout.views(out)[layout.weights.index(matrix.weight)]


LARGE = 2e8  # bytes: no unit of a block of OPT-1.3B is as large as its embedding
LOOK_UP = 0.9e-3  # seconds, beside copies up
PARTS = (1, 1, 1, 1, 4, 4)  # pages of a block's weights: four of attention, two of the rest
PAGE = 4096  # bytes, the least that goes home by itself
WIDTH = 16


class _Part(nn.Module):
    """A leaf of a block."""

    def __init__(self, pages: int, launch: Callable[[], None]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pages * PAGE // 4 // WIDTH, WIDTH) / 4)
        self._launch = launch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._launch()
        return x + torch.tanh(x * self.weight.mean(0))


class Decoder(nn.Module):
    """Embedding, blocks and a tied head, which take the clock's time."""

    def __init__(self, shape: Shape, clock: Clock) -> None:
        super().__init__()
        self._shape, self._clock = shape, clock

        def launch(pages: int) -> None:
            clock.compute(shape.block * pages / sum(PARTS))
            clock.python(clock.machine.passing / len(PARTS))

        def block() -> nn.Module:
            return nn.Sequential(*(_Part(pages, partial(launch, pages)) for pages in PARTS))

        self.embed = nn.Embedding(shape.words, WIDTH)
        self.layers = nn.ModuleList(block() for _ in range(shape.blocks))
        self.head = nn.Linear(WIDTH, shape.words, bias=False)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.embed(input_ids)
        self._clock.python(self._clock.machine.opening)
        if self._shape.asks:
            self._clock.read()
        for layer in self.layers:
            x = layer(x)
        loss = F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())
        self._clock.compute(self._shape.head)
        return (loss,)


@dataclass
class Run:
    """What `train` found: for each step its loss, its seconds, and the bytes moved each way."""

    losses: list[float]
    seconds: list[float]
    moved: list[dict[str, float]]
    weights: dict[str, torch.Tensor]

    def settled(self, steps: int = 8) -> float:
        """Median seconds of the last steps."""
        return median(self.seconds[-steps:])

    def bytes(self, way: str, steps: int = 8) -> float:
        """Bytes that one of the last steps has moved on average."""
        return sum(one[way] for one in self.moved[-steps:]) / steps


def train(
    shape: Shape,
    machine: Machine,
    steps: int = 20,
    *,
    budget: float | None = None,
    unit: str = "block",
    direction: str = "ones",
    by_rows: bool = False,
    **where: Any,
) -> Run:
    """Steps of MeZO on a model of ``shape``, in the machine's time.

    Args:
        shape: of the model.
        machine: what it runs on.
        steps: their number.
        budget: bytes of the GPU's memory, of which its context and activations take nothing.
        unit: ``"block"`` or ``"leaf"``.
        direction: of the updates; ``"ones"`` takes least time to make.
        by_rows: whether the arithmetic can perturb rows of the embedding.
        where: arguments of `Placement`.
    """
    clock = Clock(machine)
    torch.manual_seed(0)
    model = Decoder(shape, clock).eval()
    scale = shape.block_bytes / (PAGE * sum(PARTS))
    ends: list[tuple[float, dict[str, float]]] = []

    def read(numbers: torch.Tensor) -> Any:
        clock.wait(clock.compute(0.0))
        ends.append((clock.now, dict(clock.moved)))
        clock.python(machine.between)
        return numbers.tolist()

    def arithmetic(*args: Any) -> Arithmetic:
        kind = _VirtualRows if by_rows else _VirtualArithmetic
        return kind(arithmetic_for(*args), clock, scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "HostLanes", partial(VirtualLanes, clock, scale))
        patch.setattr(zerocopy, "read", read)
        patch.setattr("zo2.prepared.arithmetic_for", arithmetic)
        for module, names in (
            (transfer, ("PIECE",)),
            (placement, ("IN_FLIGHT", "IN_FLIGHT_WITHIN_BUDGET", "SMALL_BLOCK")),
            (placement, ("SLACK", "MOST_SLACK")),
            (vocabulary, ("PART",)),
            (crossentropy, ("CHUNK",)),
        ):
            for name in names:
                patch.setattr(module, name, round(getattr(module, name) / scale))
        patch.setattr(vocabulary, "GRAIN", 8)
        config = zo2.ZOConfig(
            working_device="cpu", seed=7, lr=1e-4, unit=unit, debug_mode=direction == "ones",
            **({} if direction == "ones" else {"direction": direction}),
        )  # fmt: skip
        where["budget"] = None if budget is None else round(budget / scale)
        zo2.prepare(model, config, placement=VirtualPlacement(**where))
        ids = torch.arange(24).view(4, 6) % shape.words
        losses = [model(input_ids=ids, labels=ids.roll(-1, 1)).item() for _ in range(steps)]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = list(pairwise(ends))
    seconds = [after - before for (before, _), (after, _) in pairs]
    moved = [{way: b[way] - a[way] for way in a} for (_, a), (_, b) in pairs]
    return Run(losses, seconds, moved, weights)
