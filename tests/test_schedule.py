"""How long steps would take on a GPU: the engine's schedule in virtual time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest

from tests.test_engine import assert_same
from tests.virtual import OPT_1_3B, OPT_13B, Clock, Machine, VirtualLanes, train
from zo2.engine.deferral import MOST
from zo2.engine.lanes import Waits
from zo2.engine.serving import Serving
from zo2.engine.sweep import Sweep
from zo2.engine.transfer import Slots

H200 = Machine()
run = cache(train)  # tests share runs


def resident(shape, machine=H200):
    return run(shape, machine, 12, blocks=frozenset()).settled()


def over_bound(shape, machine=H200, **where):
    """Step time over the larger of the link's time for what moves and the resident step's."""
    streamed = run(shape, machine, **where)
    link = machine.link(streamed.bytes("up"), streamed.bytes("home"))
    return streamed.settled() / max(link, resident(shape, machine))


# -- the clock ------------------------------------------------------------------------------


def test_copies_of_one_direction_take_turns_and_two_directions_share_the_link():
    clock = Clock(Machine(alone=10.0, both=8.0, copying=0.0))
    up = [clock.copy("up", 40.0, []) for _ in range(2)]
    home = clock.copy("home", 40.0, [up[0]])
    clock.wait(home)
    assert [event.time for event in (*up, home)] == pytest.approx([4.0, 9.0, 9.0])
    clock.wait(clock.copy("up", 40.0, [home]))
    assert clock.now == pytest.approx(13.0)


def test_computation_goes_on_beside_python_and_waits_for_copies():
    clock = Clock(Machine(alone=10.0, copying=0.0))
    first = clock.compute(2.0)
    clock.python(5.0)
    assert (first.time, clock.now) == (2.0, 5.0)
    after = clock.compute(1.0, [clock.copy("up", 30.0, [])])
    assert (clock.now, after.query()) == (5.0, False)
    clock.wait(after)
    assert clock.now == pytest.approx(9.0)


def test_a_small_copy_gets_in_after_the_one_under_way():
    clock = Clock(Machine(alone=10.0, copying=0.0))
    for _ in range(3):
        clock.copy("home", 10.0, [])
    clock.read()
    assert clock.now == pytest.approx(1.0)
    clock.copy("home", 10.0, [clock.copy("up", 100.0, [])])
    clock.python(4.0)
    clock.read()
    assert clock.now == pytest.approx(5.0)


def test_the_harness_does_not_disturb_results():
    shape = replace(OPT_1_3B, blocks=4)
    plain = train(shape, H200, 6, direction="rademacher", blocks=frozenset())
    for where in (
        {}, {"slots": 2, "unit": "leaf"}, {"slots": 1, "write_back_every": 3},
        {"slots": 2, "outside": True, "by_rows": True},
    ):  # fmt: skip
        streamed = train(shape, H200, 6, direction="rademacher", **where)
        assert streamed.losses == plain.losses
        assert_same(plain.weights, streamed.weights)


def test_virtual_time_does_not_depend_on_how_fast_this_computer_is():
    assert train(OPT_1_3B, H200, 5).seconds == train(OPT_1_3B, H200, 5).seconds


# -- how fast steps are ---------------------------------------------------------------------


def test_resident_steps_take_what_a_gpu_was_measured_to_take():
    assert resident(OPT_1_3B) == pytest.approx(0.0305, rel=0.05)
    assert resident(OPT_13B) == pytest.approx(0.235, rel=0.05)


@pytest.mark.parametrize(
    ("where", "most"),
    [
        ({"slots": 3}, 1.02),
        ({"slots": 3, "unit": "leaf"}, 1.02),
        ({"slots": 2}, 1.01),
        ({"slots": 2, "unit": "leaf"}, 1.03),
    ],
)
def test_13b_takes_as_long_as_the_link(where, most):
    assert over_bound(OPT_13B, **where) <= most


@pytest.mark.parametrize(("slots", "most"), [(3, 1.05), (4, 1.02), (5, 1.01), (None, 1.01)])
def test_1_3b_takes_as_long_as_the_link(slots, most):
    assert over_bound(OPT_1_3B, slots=slots) <= most


def test_small_buffers_for_parts_of_blocks_keep_the_link_busier_than_two_large_ones():
    """Eight take a third more memory than two."""
    many, two = (over_bound(OPT_1_3B, unit=u, slots=n) for u, n in (("leaf", 8), ("block", 2)))
    assert many <= 1.05 < two


IN_HOST = {"by_rows": True, "outside": True}  # the embedding


@pytest.mark.parametrize(("slots", "most"), [(2, 1.12), (3, 1.04), (4, 1.01)])
def test_an_embedding_in_host_memory_comes_at_the_speed_of_the_link(slots, most):
    """Twice in a sweep: its parts for the head, and in every fourth one all of it to be updated."""
    streamed = run(OPT_1_3B, H200, slots=slots, **IN_HOST)
    blocks, words = OPT_1_3B.blocks * OPT_1_3B.block_bytes, 206e6
    assert streamed.bytes("up") == pytest.approx(blocks + words * (1 + 1 / MOST), rel=0.01)
    assert streamed.bytes("home") == pytest.approx((blocks + words) / MOST, rel=0.01)
    assert over_bound(OPT_1_3B, slots=slots, **IN_HOST) <= most


def test_parts_that_are_not_fetched_ahead_take_longer(monkeypatch):
    begin = Serving.begin

    def expecting_none(serving, walk):
        begin(serving, walk)
        serving.expected = []

    before = run(OPT_1_3B, H200, slots=3, **IN_HOST).settled()
    monkeypatch.setattr(Serving, "begin", expecting_none)
    assert train(OPT_1_3B, H200, slots=3, **IN_HOST).settled() > 1.2 * before


@pytest.mark.parametrize(
    ("budget", "unit", "most"), [(0.57e9, "block", 1.06), (0.5e9, "leaf", 1.08)]
)
def test_memory_for_a_second_copy_of_a_block_is_better_used_for_buffers(budget, unit, most):
    """With one, and two buffers for blocks or four for parts of them, steps take 1.11 and 1.09."""
    shape = replace(OPT_1_3B, words=700)  # which copies are no larger for than for a block
    streamed = run(shape, H200, budget=budget, unit=unit)
    link = H200.link(streamed.bytes("up"), streamed.bytes("home"))
    assert streamed.settled() <= most * link


@pytest.mark.parametrize("budget", [2.2e9, 3.0e9])
def test_1_3b_within_a_budget_takes_as_long_as_computation(budget):
    assert run(OPT_1_3B, H200, budget=budget).settled() <= 1.01 * resident(OPT_1_3B)


def test_more_memory_never_makes_steps_slower():
    budgets = [0.8e9, 1.0e9, 1.3e9, 1.8e9, 2.2e9, 3.0e9]
    times = [run(OPT_1_3B, H200, budget=budget).settled() for budget in budgets]
    assert all(less <= 1.005 * more for more, less in itertools.pairwise(times)), times
    assert times[-1] == pytest.approx(resident(OPT_1_3B), rel=0.01)


# -- how often weights go home --------------------------------------------------------------


@pytest.mark.parametrize("shape", [OPT_1_3B, OPT_13B], ids=["1.3B", "13B"])
def test_where_the_link_limits_steps_weights_go_home_in_every_fourth_sweep(shape):
    streamed = run(shape, H200, slots=3)
    assert streamed.bytes("home") == pytest.approx(streamed.bytes("up") / MOST)


@pytest.mark.parametrize("asks", [True, False])
def test_where_computation_limits_steps_weights_go_home_in_every_sweep(asks):
    """Also where the model reads from the device, which then has nothing to do for a moment."""
    shape, machine = replace(OPT_13B, asks=asks), Machine(slower=3.0)
    streamed = run(shape, machine)
    assert streamed.bytes("home") == pytest.approx(streamed.bytes("up"))
    assert streamed.settled() <= 1.01 * resident(shape, machine)


def test_where_python_limits_steps_weights_go_home_rarely_too():
    """Each copy takes Python's time, of which computation and the link have enough."""
    machine = Machine(queueing=0.5e-3, passing=0.8e-3, copying=0.2e-3)
    streamed = run(OPT_1_3B, machine)
    assert streamed.settled() > 1.3 * machine.link(streamed.bytes("up"), streamed.bytes("home"))
    assert streamed.bytes("home") == pytest.approx(streamed.bytes("up") / MOST)
    assert streamed.settled() < 0.97 * run(OPT_1_3B, machine, write_back_every=1).settled()


@pytest.mark.parametrize(("units", "host"), [(12, 11 / 12), (4, 0.0)], ids=["many", "few"])
def test_units_that_are_far_apart_do_not_tell_whether_python_is_behind(units, host):
    lanes = VirtualLanes(Clock(H200), scale=1.0)
    for _ in range(2):  # it is known of the sweep before the last one
        assert lanes.waits() is None
        for _ in range(units):
            lanes.compute_after(lanes.computed())
            lanes._clock.python(1.0)
    lanes.waits()
    assert lanes.waits() == Waits(copies=0.0, host=pytest.approx(host))


# -- what the harness sees ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "instead", "slower"),
    [
        (Sweep, "_write_ahead", lambda self: None, 1.01),
        (Sweep, "_is_copied", lambda *args: False, 1.01),
        (Slots, "prefetch", lambda self, units: None, 1.08),
    ],
    ids=["nothing written ahead", "released after passes", "nothing fetched ahead"],
)
def test_a_worse_schedule_takes_longer(owner, name, instead, slower, monkeypatch):
    before = run(OPT_1_3B, H200, slots=3).settled()
    monkeypatch.setattr(owner, name, instead)
    assert train(OPT_1_3B, H200, slots=3).settled() > slower * before
