"""Copies that happen late, early or out of turn, as far as events allow, change no bit.

Where copies are synchronous, a wait that is missing goes unnoticed. Here a copy is only queued, and
carried out when something waits for it, or earlier by chance; the GPU tests hold real ones up.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn

import zo2
from tests.test_engine import Toy, assert_same, toy_batch
from tests.tiny import batch, tiny
from tests.virtual import TakingTurns, VirtualPlacement
from zo2.engine import placement, transfer
from zo2.engine.lanes import Waits
from zo2.engine.placement import Placement
from zo2.engine.sweep import Sweep
from zo2.engine.transfer import Slots

CPU = {"working_device": "cpu", "seed": 7, "lr": 1e-2}


@dataclass(eq=False)
class Queued:
    """A copy, and the event at its end."""

    to: torch.Tensor
    source: torch.Tensor
    after: list[Queued]
    happened: bool = False


@dataclass
class LateLanes:
    """Copies in two directions, each in its order. Computation happens when it is queued."""

    chance: random.Random
    ways: dict[str, list[Queued]] = field(default_factory=lambda: {"up": [], "home": []})

    def upload(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Queued]) -> Queued:
        return self._queue("up", to, source, after)

    def write_back(self, to: torch.Tensor, source: torch.Tensor, after: Sequence[Queued]) -> Queued:
        return self._queue("home", to, source, after)

    def computed(self) -> None:
        self._some_happen()

    def compute_after(self, event: Queued) -> None:
        self._some_happen()
        while not event.happened:
            self._one_happens()

    def has_happened(self, event: Queued) -> bool:
        self._some_happen()
        return event.happened

    def waits(self) -> Waits | None:
        return self.chance.choice((None, Waits(0.0, 0.0), Waits(0.5, 0.0), Waits(0.0, 0.5)))

    def synchronize(self) -> None:
        while any(self.ways.values()):
            self._one_happens()

    def _queue(self, way: str, to: torch.Tensor, source: torch.Tensor, after: Sequence[Queued]):
        one = Queued(to, source, [event for event in after if event is not None])
        self.ways[way].append(one)
        self._some_happen()
        return one

    def _some_happen(self) -> None:
        while self.chance.random() < 0.3 and any(self.ways.values()):
            self._one_happens()

    def _one_happens(self) -> None:
        ready = [
            way
            for way, queue in self.ways.items()
            if queue and all(event.happened for event in queue[0].after)
        ]
        one = self.ways[self.chance.choice(ready)].pop(0)
        one.to.copy_(one.source)
        one.happened = True


def train(model, steps=8, inputs=None, placement=None, **settings):
    inputs = inputs or partial(batch, model)
    model = copy.deepcopy(model)
    zo2.prepare(model, zo2.ZOConfig(**CPU, **settings), placement=placement)
    losses = [model(**inputs(seed=step % 2)).item() for step in range(steps)]
    return losses, model.state_dict()


@pytest.fixture
def late(monkeypatch):
    """Trains with copies that happen by chance, cut into pieces of a page."""
    monkeypatch.setattr(transfer, "PIECE", 8192)

    def trained(model, seed, **settings):
        lanes = partial(LateLanes, random.Random(seed))
        monkeypatch.setattr(placement, "HostLanes", lanes)
        return train(model, **settings)

    return trained


def model_of_pages(**sizes):
    return tiny("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=5, **sizes)


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [1, 3, None])
def test_streamed_weights_keep_their_bits(every, slots, unit, late):
    model = model_of_pages()
    losses, weights = train(model, zo2=False)
    where = Placement(slots=slots, copies=True, write_back_every=every)
    for seed in range(4):
        others, found = late(model, seed, placement=where, unit=unit)
        assert others == losses, seed
        assert_same(weights, found)


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_what_has_arrived_and_is_taken_along_keeps_its_bits(slots, late, monkeypatch):
    """It is let go before passes are there, which use copies of it."""
    bound, take = [], Sweep._take_along
    monkeypatch.setattr(
        Sweep, "_take_along", lambda *args: (found := take(*args), bound.append(found))[0]
    )
    model = model_of_pages(vocab_size=700)
    losses, weights = train(model, zo2=False)
    where = VirtualPlacement(slots=slots, copies=True)
    for seed in range(6):
        others, found = late(model, seed, placement=where, unit="leaf")
        assert others == losses, seed
        assert_same(weights, found)
    along = {unit.name for found in bound for unit, _, _ in found}
    assert "model.layers.1.mlp.down_proj" in along


@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("slots", [3, 4, 8])
def test_blocks_that_passes_take_turns_at_keep_their_bits(every, slots, late):
    model = model_of_pages()
    losses, weights = train(model, zo2=False)
    where = TakingTurns(slots=slots, copies=True, write_back_every=every)
    for seed in range(6):
        others, found = late(model, seed, placement=where, unit="leaf")
        assert others == losses, seed
        assert_same(weights, found)


class Uneven(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, width), nn.Linear(width, 32)

    def forward(self, x):
        return x + self.narrow(torch.tanh(self.wide(x)))


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_buffers_of_parcels_of_many_sizes_keep_their_bits(slots, late):
    """What follows a small parcel may not overtake what a large one before it has yet to save."""
    torch.manual_seed(0)
    model = Toy([Uneven(width) for width in (160, 8, 90, 160, 8, 90, 8, 160)], width=32).eval()
    losses, weights = train(model, inputs=toy_batch, zo2=False)
    where = Placement(slots=slots, copies=True, write_back_every=3)
    for seed in range(8):
        others, found = late(model, seed, inputs=toy_batch, placement=where)
        assert others == losses, seed
        assert_same(weights, found)


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("missing", ["for the way home", "for the way up"])
def test_a_wait_that_is_missing_is_noticed(missing, slots, late, monkeypatch):
    model = model_of_pages()
    losses, _ = train(model, zo2=False)
    load = Slots._load

    def hasty(self, unit, slot):
        if missing == "for the way home":
            if slot.unsaved:
                self._save(slot)
            slot.saving = {}
        load(self, unit, slot)
        if missing == "for the way up":
            slot.ready = Queued(slot.buffer, slot.parcel.flat, [], happened=True)
        return slot

    monkeypatch.setattr(Slots, "_load", hasty)
    where = Placement(slots=slots, copies=True, write_back_every=1)
    found = []
    for seed in range(12):
        try:
            found.append(late(model, seed, placement=where)[0])
        except zo2.NonFiniteLossError:
            found.append(None)
    assert any(one != losses for one in found)
