"""Steps that the host holds up: said once, and only of these."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
import torch

import zo2
from tests.test_engine import CPU
from tests.tiny import batch, tiny
from zo2 import assembly, prepared
from zo2.directions import get_family
from zo2.engine import zerocopy
from zo2.engine.weights import TorchArithmetic
from zo2.errors import HostMemoryError
from zo2.hostbound import LONGEST, RARER, STEPS, HostBound


def advised(caplog):
    return caplog.text.count("cuda_graphs=True")


class Graphs:
    """A remedy: ten graphs, two in each step from the fifth one on."""

    def __init__(self, possible=True):
        self.possible, self.happened, self.steps = possible, [], 0
        self.is_gone = False

    def begin(self):
        self.happened.append("begun")
        return self.possible

    def end(self):
        self.happened.append("ended")

    @property
    def applied(self):
        return min(max(2 * (self.steps - 5), 0), 10)


def waiting_for_the_host(host, steps, seconds=0.07, graphs=None):
    for _ in range(steps):
        host.step(seconds, 0.0002)
        if graphs:
            graphs.steps += 1


def begun():
    """A remedy, and what tries it from now on."""
    graphs = Graphs()
    host = HostBound(graphs)
    waiting_for_the_host(host, STEPS)
    assert graphs.happened == ["begun"]
    return host, graphs


@pytest.mark.parametrize("others", [STEPS // 2, STEPS // 2 - 1])
def test_most_of_several_steps_have_to_be_and_it_is_said_once(others, caplog):
    host = HostBound(None)
    for _ in range(others):
        host.step(0.03, 0.02)
    waiting_for_the_host(host, STEPS - others - 1)
    assert host.is_undecided
    assert not advised(caplog)
    waiting_for_the_host(host, 1)
    assert advised(caplog) == (others < STEPS // 2)
    waiting_for_the_host(host, 3 * STEPS)
    assert advised(caplog) == 1
    assert "70 ms" in caplog.text
    assert not host.is_undecided


def test_a_remedy_that_is_impossible_is_not_tried_again(caplog):
    graphs = Graphs(possible=False)
    waiting_for_the_host(HostBound(graphs), 5 * STEPS)
    assert graphs.happened == ["begun"]
    assert advised(caplog) == 1


@pytest.mark.parametrize(("steps", "again"), [(5, False), (12, True)])
def test_a_remedy_that_comes_to_an_end_by_itself_is_waited_for_no_longer(steps, again, caplog):
    caplog.set_level(logging.INFO, "zo2")
    host, graphs = begun()
    waiting_for_the_host(host, steps, 0.045, graphs)
    assert host.is_undecided
    graphs.is_gone = True
    waiting_for_the_host(host, 1, 0.045, graphs)
    assert graphs.happened == ["begun", "ended"]
    assert not host.is_undecided
    assert "with passes through streamed blocks" not in caplog.text
    graphs.is_gone = False
    waiting_for_the_host(host, RARER * STEPS, 0.07, graphs)
    assert (graphs.happened[2:] == ["begun"]) == again


@pytest.mark.parametrize(("seconds", "kept"), [(0.045, True), (0.08, False)])
def test_a_remedy_is_kept_if_steps_are_faster_once_it_is_applied(seconds, kept, caplog):
    caplog.set_level(logging.INFO, "zo2")
    host, graphs = begun()
    waiting_for_the_host(host, 11, 0.5, graphs)  # these are captured
    waiting_for_the_host(host, STEPS - 1, seconds, graphs)
    assert host.is_undecided
    waiting_for_the_host(host, RARER * STEPS, seconds, graphs)
    assert not host.is_undecided
    assert graphs.happened == ["begun", *([] if kept else ["ended"])]
    assert ("70 ms" in caplog.text) == ("45 ms" in caplog.text) == kept


def test_a_remedy_that_never_shows_itself_is_undone():
    host, graphs = begun()
    waiting_for_the_host(host, LONGEST - 1)
    assert graphs.happened == ["begun"]
    waiting_for_the_host(host, 2 * RARER * STEPS)
    assert graphs.happened == ["begun", "ended"]


def test_a_remedy_that_did_not_help_is_tried_again_ever_more_rarely():
    graphs = Graphs()
    host = HostBound(graphs)
    tried = []
    for step in range(2_600):
        before = len(graphs.happened)
        if graphs.happened[-1:] == ["begun"]:
            waiting_for_the_host(host, 1, 0.08 if len(tried) < 3 else 0.045, graphs)
        else:
            graphs.steps = 0
            waiting_for_the_host(host, 1)
        if graphs.happened[before:] == ["begun"]:
            tried.append(step)
    length = tried[1] - tried[0] - RARER * STEPS  # that it took to find that it did not help
    assert tried[0] == STEPS - 1
    assert STEPS < length < 2 * STEPS
    assert tried[2] - tried[1] == RARER**2 * STEPS + length
    assert graphs.happened == ["begun", "ended", "begun", "ended", "begun"]
    assert not host.is_undecided


def test_what_did_not_help_is_not_advised_where_it_is_no_longer_possible(caplog):
    host, graphs = begun()
    waiting_for_the_host(host, 11 + STEPS, 0.08, graphs)
    graphs.possible = False
    waiting_for_the_host(host, 2 * RARER * STEPS)
    assert graphs.happened == ["begun", "ended", "begun"]
    assert not host.is_undecided
    assert not advised(caplog)


@pytest.mark.parametrize("waits", [False, True])
def test_steps_that_wait_for_their_losses_are_not_meant(waits, caplog, monkeypatch):
    monkeypatch.setattr(prepared, "host_bound", lambda *_: HostBound(None))
    read = zerocopy.read

    def late(numbers):
        time.sleep(0.05)
        return read(numbers)

    if waits:
        monkeypatch.setattr(zerocopy, "read", late)
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**CPU))
    for _ in range(3 * STEPS):  # on a busy machine, reading may take long now and then
        model(**batch(model))
    assert advised(caplog) == (not waits)


GPU = torch.device("cuda", 0)
PLENTY, LITTLE = (50, 100), (5, 100)


class StandIn(SimpleNamespace):
    """What is asked of an engine."""

    device, streams, has_replayable_blocks, is_bounded, graph_count = GPU, True, True, False, 0
    error, room, room_for_graphs = None, True, True

    def make_room(self, more):
        assert more == 1 << 20
        return self.room

    def replay_blocks(self, graphs):
        self.asked = [*getattr(self, "asked", []), True]
        if self.error:
            raise self.error
        return self.room_for_graphs

    def replay_nothing(self):
        self.asked = [*getattr(self, "asked", []), False]


@pytest.mark.parametrize(
    ("settings", "engine", "free", "expected"),
    [
        ({}, {}, PLENTY, "tries"),
        ({}, {}, LITTLE, "says"),
        ({}, {"is_bounded": True}, LITTLE, "tries"),
        ({}, {"is_bounded": True, "room": False}, PLENTY, "says to raise it"),
        ({}, {"is_bounded": True, "room_for_graphs": False}, PLENTY, "tries, says to raise it"),
        ({}, {"error": HostMemoryError("no room")}, PLENTY, "tries in vain"),
        ({}, {"error": torch.cuda.OutOfMemoryError("no room")}, PLENTY, "tries in vain"),
        ({"cuda_graphs": False}, {}, PLENTY, "nothing"),
        ({"cuda_graphs": True}, {}, PLENTY, "nothing"),
        ({}, {"has_replayable_blocks": False}, PLENTY, "nothing"),
        ({}, {"device": torch.device("cpu")}, PLENTY, "nothing"),
        ({}, {"streams": False}, PLENTY, "says"),
        ({"triton": False}, {"streams": False}, PLENTY, "nothing"),
    ],
)
def test_what_is_tried(settings, engine, free, expected, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free)
    monkeypatch.setattr(assembly, "capture_stream", lambda device: None)
    monkeypatch.setattr(assembly, "to_take", lambda device: 1 << 20)
    settings = dict(settings)
    fused = settings.pop("triton", True)
    arithmetic = object() if fused else TorchArithmetic(get_family("gaussian"), True)
    engine = StandIn(**engine)
    host = assembly.host_bound(zo2.ZOConfig(**settings), engine, arithmetic)
    waiting_for_the_host(host, STEPS if host else 0)
    in_vain = {"tries in vain": [True, False], "tries, says to raise it": [True]}
    asked = ({"tries": [True]} | in_vain).get(expected, [])
    assert getattr(engine, "asked", []) == asked
    assert advised(caplog) == (expected in {"says", "tries in vain"})
    assert ("larger device_memory_budget" in caplog.text) == ("to raise it" in expected)


def test_on_a_cpu_nothing_is_said(caplog):
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**CPU))
    for _ in range(STEPS):
        model(**batch(model))
    assert not advised(caplog)
