"""Steps that the host holds up: said once, and only of these."""

from __future__ import annotations

import time

import pytest

import zo2
from tests.test_engine import CPU
from tests.tiny import batch, tiny
from zo2 import prepared
from zo2.engine import zerocopy
from zo2.hostbound import STEPS, HostBound


def said(caplog):
    return caplog.text.count("cuda_graphs=True")


def test_it_takes_several_steps_in_succession_and_is_said_once(caplog):
    host = HostBound()
    for _ in range(STEPS - 1):
        host.step(0.07, 0.0002)
    host.step(0.03, 0.02)
    for _ in range(STEPS - 1):
        host.step(0.07, 0.0002)
    assert not said(caplog)
    for _ in range(3 * STEPS):
        host.step(0.07, 0.0002)
    assert said(caplog) == 1
    assert "70 ms" in caplog.text


@pytest.mark.parametrize("waits", [False, True])
def test_steps_that_wait_for_their_losses_are_not_meant(waits, caplog, monkeypatch):
    monkeypatch.setattr(prepared, "may_replay", lambda *_: True)
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


def test_on_a_cpu_nothing_is_said(caplog):
    model = zo2.prepare(tiny("llama"), zo2.ZOConfig(**CPU))
    for _ in range(STEPS):
        model(**batch(model))
    assert not said(caplog)
