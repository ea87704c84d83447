"""Predictions against what building the model shows, and their own consistency."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from greenlet import getcurrent, greenlet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zo2
from tests.tiny import FAMILIES, SIZES, tiny
from zo2 import dryrun, planning
from zo2.dryrun import dry_run
from zo2.engine import threadstacks
from zo2.engine.deferral import MOST
from zo2.engine.devicememory import GRAPHS, Usage
from zo2.engine.placement import Placement, perturbed_sizes
from zo2.engine.threadstacks import SmallStacks
from zo2.loading import longest


@pytest.fixture(scope="module")
def opt():
    return planning.work(planning.build("opt-125m", "float16"), "leaf", 1, 512)


def test_weights_are_those_of_the_real_shape(opt):
    found = planning.predict(opt, Placement(budget=1 << 40))
    assert found.weights == pytest.approx(125_239_296 * 2, rel=1e-3)  # published: 125 M
    assert found.up == found.down == found.page_locked == 0


def test_budgets_move_less_the_larger_they_are(opt):
    def within(budget):
        return planning.predict(opt, Placement(budget=budget or 1 << 40))

    rows = list(planning.over_budgets(within))
    moved = [one.up for _, one in rows]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[-1] == 0
    assert all(one.plan.need.total <= budget for budget, one in rows)
    with pytest.raises(zo2.DeviceMemoryError):
        within(int(rows[0][0] * 0.98))


def test_more_passes_cost_compute_and_no_copies():
    built = planning.build("opt-125m", "float16")
    placement = Placement(write_back_every=1)
    few, many = (
        planning.predict(planning.work(built, "block", 1, 128, passes), placement)
        for passes in (2, 9)
    )
    assert many.link == few.link
    assert many.compute == pytest.approx(4.5 * few.compute)
    assert many.plan.need.activations > few.plan.need.activations


def test_more_buffers_keep_the_link_busier_between_sweeps():
    step = planning.work(planning.build("opt-1.3b", "float16"), "block", 1, 2048)
    three, five, eight = (planning.predict(step, Placement(slots=n)) for n in (3, 5, 8))
    assert three.link == five.link == eight.link
    assert three.seconds > five.seconds > eight.seconds >= eight.link


@pytest.mark.parametrize(
    ("link", "gpu", "python", "rarely"),
    [(1e9, 1e15, 1e-9, True), (1e15, 1e9, 1e-9, False), (1e15, 1e15, 1e-3, True)],
    ids=["link", "GPU", "Python"],
)
def test_weights_go_home_by_what_limits_steps(link, gpu, python, rarely, opt):
    machine = replace(
        planning.H200, up=link, both=0.9 * link, compute=gpu, noise=gpu, again=gpu, visit=python,
        call=python, boundary=0.0,
    )  # fmt: skip
    found = planning.predict(opt, Placement(slots=3), machine)
    assert found.every == (MOST if rarely else 1)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f in ("llama", "opt", "qwen3", "gpt2")])
def test_activations_are_what_a_real_forward_allocates(family):
    """A forward on the CPU, its live tensors counted by the same means, but with data."""
    model = tiny(family)
    ids = torch.randint(5, 90, (2, 48))
    with dryrun._Living() as living, torch.no_grad():
        model(input_ids=ids, labels=ids, use_cache=False)
    predicted = dry_run(model.to("meta"), 2, 48).activations("block", passes=1)
    assert predicted == pytest.approx(living.most, rel=0.25)


def test_scores_of_attention_are_those_that_a_gpu_holds():
    """Where torch operations compute them: a GPU's softmax widens what it reads as it goes."""
    tokens, heads = 1024, SIZES["num_attention_heads"]
    model = tiny("gemma2", dtype=torch.bfloat16, attn_implementation="eager")
    predicted = dry_run(model.to("meta"), 1, tokens).activations("block", passes=1)
    scores, softmax, rounded = 2, 4, 2  # bytes of each
    assert predicted == pytest.approx(heads * tokens**2 * (scores + softmax + rounded), rel=0.2)


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("words", [96, 5_000], ids=["blocks", "logits"])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_passes_that_wait_hold_what_lives_where_they_wait(unit, words, passes):
    """Passes in lockstep on the CPU, their live tensors counted by the same means."""
    model = tiny("opt", vocab_size=words)
    layers = model.model.decoder.layers
    places = layers if unit == "block" else [m for m in layers.modules() if len(m._parameters)]
    ids = torch.randint(5, 90, (2, 48))

    def one_pass():
        model(input_ids=ids, labels=ids, use_cache=False)

    def wait(module, args):
        getcurrent().parent.switch()

    with dryrun._Living() as living, torch.no_grad():
        for place in [*places, model.lm_head]:
            place.register_forward_pre_hook(wait)
        running = [greenlet(one_pass) for _ in range(passes)]
        while running:
            for one in running:
                one.switch()
            running = [one for one in running if not one.dead]
    built = tiny("opt", vocab_size=words).to("meta")
    found = dry_run(built, 2, 48).activations(unit, passes)
    assert found == pytest.approx(living.most, rel=0.15)


def test_unknown_models_are_named():
    with pytest.raises(zo2.ModelError, match="no/where"):
        planning.build("no/where/here", "float16")


def test_what_is_no_language_model_and_what_is_too_long_is_said(tmp_path):
    import transformers

    transformers.ViTConfig(**SIZES).save_pretrained(tmp_path / "sees")
    with pytest.raises(zo2.ModelError, match="no causal language model"):
        planning.build(str(tmp_path / "sees"), "float16")
    transformers.LlamaConfig(**SIZES, max_position_embeddings=64).save_pretrained(
        tmp_path / "short"
    )
    short = planning.build(str(tmp_path / "short"), "float16")
    assert longest(short) == 64
    with pytest.raises(zo2.ConfigError, match="--tokens 64"):
        planning.work(short, "block", 1, 65)
    assert planning.work(short, "block", 1, 64).tokens == 64


# -- page tables and stacks ------------------------------------------------------------------


def test_page_tables_of_what_is_page_locked_are_planned_for():
    step = planning.work(planning.build("opt-1.3b", "float16"), "block", 1, 64)
    for budget in (None, 3 * 10**9):
        found = planning.predict(step, Placement(budget=budget))
        tables = found.page_locked * 8 // 4096
        stacks = planning.H200.stacks if budget else 0
        expected = planning.H200.context - stacks + tables
        assert found.plan.need.context == pytest.approx(expected, abs=1)


def test_a_limit_gives_way_for_a_while_and_only_if_it_is_in_force(monkeypatch):
    """Without a budget, the share that users have set for a process is none of ours."""
    shares = []
    monkeypatch.setattr("zo2.engine.devicememory.LATER", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    device = torch.device("cuda", 0)
    plain, bounded = Usage(device), Usage(device)
    with plain.unlimited():
        pass
    plain.lift()
    assert shares == []
    bounded.limit(4)
    with bounded.unlimited():
        assert shares == [0.4, 1.0]
    assert shares == [0.4, 1.0, 0.4]
    bounded.lift()
    bounded.claim()
    plain.claim()
    assert shares[3:] == [1.0, 0.4, 1.0]


@pytest.fixture
def stacks(monkeypatch):
    """Bytes of a thread's stack, by device."""
    sizes = {torch.device("cuda", index): 1024 for index in range(2)}
    monkeypatch.setattr(threadstacks, "stack_limit", sizes.get)
    monkeypatch.setattr(threadstacks, "set_stack_limit", sizes.__setitem__)
    return sizes


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stacks_are_small_while_anybody_asks_for_it(stacks, events):
    first, second = stacks
    everybody = [SmallStacks(first), SmallStacks(first), SmallStacks(second), SmallStacks(second)]
    asking = set()
    for index, asks in [*events, *((index, False) for index in range(4))]:
        if asks:
            everybody[index].ask()
            asking.add(index)
        else:
            everybody[index].ask_no_more()
            asking.discard(index)
        assert stacks[first] == (128 if asking & {0, 1} else 1024)
        assert stacks[second] == (128 if asking & {2, 3} else 1024)


@pytest.mark.parametrize("chosen", [64, 512, 8192, None])
def test_a_limit_of_stacks_that_somebody_chose_stays(stacks, chosen):
    device = next(iter(stacks))
    stacks[device] = chosen
    one = SmallStacks(device)
    one.ask()
    assert stacks[device] == chosen
    one.ask_no_more()
    assert stacks[device] == chosen


def test_a_limit_of_stacks_that_somebody_chose_later_stays(stacks):
    device = next(iter(stacks))
    one = SmallStacks(device)
    one.ask()
    stacks[device] = 8192
    one.ask_no_more()
    assert stacks[device] == 8192


def test_a_cpu_has_no_such_stacks():
    one = SmallStacks(torch.device("cpu"))
    one.ask()
    one.ask_no_more()


@pytest.mark.parametrize(("page_locked", "context"), [(0, 5 << 28), (4096 << 26, 7 << 28)])
def test_a_context_is_as_large_as_page_tables_make_it(page_locked, context, monkeypatch):
    """What is beyond is another process's: of 10 GiB, 3 are free and 5 are tensors or cache."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 30, 10 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 << 30)
    usage = Usage(torch.device("cuda", 0))
    usage.page_locked = page_locked
    assert usage.context() == context
    assert usage.others(own=3 << 30) == context + (1 << 30)
    assert usage.others(own=3 << 30, to_lock=4096) == context + (1 << 30) + 8


@given(
    before=st.integers(0, 99),
    waiting=st.integers(0, 9),
    phases=st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 99), min_size=1)), min_size=1),
)
def test_what_passes_need_outside_blocks_is_told_from_what_they_need_at_all(
    before, waiting, phases
):
    phases = [(False, [0]), *phases, (False, [0])]
    memory = {"current": before, "peak": 1000}

    def allocate(beyond):
        memory["current"] = before + beyond
        memory["peak"] = max(memory["peak"], memory["current"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zo2.engine.threadstacks.stack_limit", lambda device: None)
        patch.setattr("zo2.engine.devicememory._allocated", lambda device: dict(memory))
        patch.setattr(
            torch.cuda, "reset_peak_memory_stats", lambda d: memory.update(peak=memory["current"])
        )
        usage = Usage(torch.device("cuda", 0), bounded=True)
        for _ in range(3):
            with usage.measured():
                for within, sizes in phases:
                    usage.turn(within)
                    for size in (*sizes, waiting):
                        allocate(size)
                allocate(0)
            usage.learn()
    most = max(waiting, *(size for _, sizes in phases for size in sizes))
    assert usage.activations == usage.peak == most
    elsewhere = max(waiting, *(size for within, sizes in phases if not within for size in sizes))
    if any(within for within, _ in phases):
        assert usage.of_graphs() == elsewhere - waiting // 2 + GRAPHS
    else:
        assert usage.of_graphs() == usage.FIRST_GUESS + GRAPHS


# -- where passes wait ------------------------------------------------------------------------


def test_passes_wait_within_blocks_only_where_there_is_no_room_for_copies_of_one():
    built = planning.build("opt-2.7b", "float16")
    step, more = (planning.work(built, "leaf", 1, 2048, passes) for passes in (2, 9))
    assert step.activations < step.within
    assert more.activations < more.within
    sizes = perturbed_sizes(step.units, "cuda")
    least = planning.predict(step, Placement(budget=1 << 40)).plan.need
    assert (least.perturbed, least.activations) == (sizes.whole, step.activations)
    # passes that take turns need a block to stay in buffers, of which it takes three
    few, enough = (
        planning.predict(more, Placement(slots=slots)).plan.need.activations for slots in (2, 3)
    )
    assert (few, enough) == (more.within, more.activations)

    def within(budget):
        return planning.predict(step, Placement(budget=budget or 1 << 40))

    _, smallest = next(planning.over_budgets(within))
    assert smallest.plan.need.perturbed < sizes.once
    assert smallest.plan.need.activations == step.within


def test_less_memory_takes_embeddings_then_buffers_and_then_divides_blocks():
    built = planning.build("opt-1.3b", "float16")
    steps = [planning.work(built, unit, 1, 2048) for unit in ("block", "leaf")]
    times = []
    for budget, in_host, slots, divided in (
        (1.35, False, 3, False), (1.25, True, 4, False), (1.1, True, 3, False),
        (1.0, True, 2, False), (0.95, True, 4, True),
    ):  # fmt: skip
        found = planning.predict_first(steps, Placement(budget=int(budget * 1e9)))
        assert found.plan.slots == slots
        names = {unit.name for unit in found.plan.by_rows}
        assert names == ({"model.decoder.embed_tokens", "model.decoder.embed_positions"} if in_host
                         else set())  # fmt: skip
        blocks = [unit for one in found.plan.parcels for unit in one.units if unit.block == 0]
        assert (len(blocks) > 1) == divided
        times.append(found.seconds)
    assert times == sorted(times)
