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
from zo2.hostbound import STEPS, HostBound


def said(caplog):
    return caplog.text.count("cuda_graphs=")


@pytest.mark.parametrize("relieved", [True, False])
def test_it_takes_several_steps_in_succession_and_happens_once(relieved, caplog):
    caplog.set_level(logging.INFO, "zo2")
    tried = []
    host = HostBound(lambda: (tried.append(1), relieved)[1])
    for _ in range(STEPS - 1):
        host.step(0.07, 0.0002)
    host.step(0.03, 0.02)
    for _ in range(STEPS - 1):
        host.step(0.07, 0.0002)
    assert not said(caplog)
    for _ in range(3 * STEPS):
        host.step(0.07, 0.0002)
    assert len(tried) == said(caplog) == 1
    assert "70 ms" in caplog.text
    assert ("are replayed" in caplog.text) == relieved
    assert ("cuda_graphs=True" in caplog.text) == (not relieved)


@pytest.mark.parametrize("waits", [False, True])
def test_steps_that_wait_for_their_losses_are_not_meant(waits, caplog, monkeypatch):
    monkeypatch.setattr(prepared, "host_bound", lambda *_: HostBound(lambda: False))
    read = zerocopy.read

    def late(numbers):
        time.sleep(0.05)
        return read(numbers)

    if waits:
        monkeypatch.setattr(zerocopy, "read", late)
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**CPU))
    for _ in range(3 * STEPS):  # on a busy machine, reading may take long now and then
        model(**batch(model))
    assert said(caplog) == (not waits)


GPU = torch.device("cuda", 0)
FREE = {"plenty": 0.5, "little": 0.05}


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize(
    ("settings", "engine", "triton", "expected"),
    [
        ({}, {}, True, "replays"),
        ({"cuda_graphs": False}, {}, True, "nothing"),
        ({"cuda_graphs": True}, {}, True, "nothing"),
        ({"device_memory_budget": "6GB"}, {}, True, "says"),
        ({}, {"has_whole_blocks": False}, True, "nothing"),
        ({}, {"device": torch.device("cpu")}, True, "nothing"),
        ({}, {"streams": False}, True, "says"),
        ({}, {"streams": False}, False, "nothing"),
    ],
)
def test_what_is_done_about_it(settings, engine, triton, expected, free, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "zo2")
    memory = FREE[free] * 100, 100
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: memory)
    replays = []
    engine = SimpleNamespace(
        **{
            "device": GPU, "streams": True, "has_whole_blocks": True,
            "replay_blocks": replays.append, **engine,
        }
    )  # fmt: skip
    arithmetic = object() if triton else TorchArithmetic(get_family("gaussian"), True)
    host = assembly.host_bound(zo2.ZOConfig(**settings), engine, arithmetic)
    for _ in range(STEPS if host else 0):
        host.step(0.07, 0.0)
    replays_now = expected == "replays" and free == "plenty"
    assert len(replays) == replays_now
    assert said(caplog) == (expected != "nothing")
    assert ("cuda_graphs=False" in caplog.text) == replays_now


def test_on_a_cpu_nothing_is_said(caplog):
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**CPU))
    for _ in range(STEPS):
        model(**batch(model))
    assert not said(caplog)
