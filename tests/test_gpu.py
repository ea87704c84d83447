"""On a CUDA device: streams, slots and events give the bits of a resident model."""

from __future__ import annotations

import copy
import gc
import logging
import subprocess
import sys

import pytest
import torch

import zo2
from tests.oracle import direction
from tests.tiny import FAMILIES, batch, tiny
from tests.virtual import TakingTurns
from zo2 import assembly, hostbound
from zo2.engine import capturing, streams, zerocopy
from zo2.engine.capturing import CaptureError, CudaCapture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = {"working_device": "cuda:0", "seed": 7, "lr": 1e-4, "weight_decay": 0.1}


@pytest.fixture(autouse=True)
def no_garbage():
    """Models of earlier tests are in cycles, and would hold memory, or a budget's limit."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def deterministic():
    """Experts' outputs are added up in one order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def wide(family="llama", dtype=torch.float16, layers=6, width=512, **more):
    """Blocks of some megabytes, so that copies take long enough to be overtaken."""
    sizes = {
        "llama": {
            "hidden_size": width,
            "intermediate_size": 11 * width // 4,
            "num_hidden_layers": layers,
        },
        "opt": {
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "ffn_dim": 4 * width,
            "num_hidden_layers": layers,
        },
    }
    return tiny(family, dtype=dtype, **sizes[family], **more)


def train(model, steps=12, placement=None, **settings):
    model = copy.deepcopy(model)
    zo2.prepare(model, zo2.ZOConfig(**{**CUDA, **settings}), placement=placement)
    one = batch(model)
    losses = [model(**one).item() for _ in range(steps)]
    return losses, {name: value.cpu().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_streamed_equals_resident(family, dtype):
    model = wide(family, dtype)
    losses, weights = train(model, zo2=False)
    variants = [
        {},
        {"slots": 2},
        {"overlap": False},
        {"offloading_blocks": [0, 2, 4]},
        {"unit": "leaf"},
        {"unit": "leaf", "slots": 2},
        {"slots": 6},
        {"write_back_every": 1},
        {"write_back_every": 2, "slots": 2},
        {"write_back_every": 4, "unit": "leaf"},
        {"offload_embeddings": True},
        {"unit": "leaf", "offload_embeddings": True, "slots": 2},
    ]
    for variant in variants:
        other_losses, other = train(model, **variant)
        assert losses == other_losses, variant
        for name in weights:
            assert torch.equal(weights[name], other[name]), (variant, name)


@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1"])
@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_every_family_and_method_streams(family, method):
    model = wide()
    losses, weights = train(model, 4, zo2=False, direction=family, method=method)
    for every, embeddings in ((1, False), (3, False), (3, True)):
        settings = {"slots": 2, "write_back_every": every, "offload_embeddings": embeddings}
        other_losses, other = train(model, 4, direction=family, method=method, **settings)
        assert losses == other_losses
        assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_model_streams(family, deterministic):
    """Embeddings and heads are perturbed by rows, also where these are read in host memory."""
    model = tiny(family, dtype=torch.bfloat16)
    losses, weights = train(model, 4, zo2=False)
    for variant in ({"slots": 2}, {"unit": "leaf"}, {"offload_embeddings": True}):
        other_losses, other = train(model, 4, **variant)
        assert losses == other_losses, variant
        assert all(torch.equal(weights[name], other[name]) for name in weights), variant


@pytest.mark.parametrize("vocabulary", [997, 1024])
def test_losses_of_a_part_of_the_logits_at_a_time(vocabulary, monkeypatch):
    from zo2.logits import crossentropy, kernel

    model = tiny("llama", dtype=torch.float16, vocab_size=vocabulary)
    whole, _ = train(model, 4, zo2=False)
    folded = []
    monkeypatch.setattr(crossentropy, "CHUNK", 1 << 12)
    monkeypatch.setattr(crossentropy, "COLUMNS", 128)
    monkeypatch.setattr(kernel, "fold", spied(kernel.fold, lambda: folded.append(1)))
    losses, weights = train(model, 4, zo2=False)
    assert folded  # else this shows nothing
    assert losses == pytest.approx(whole, rel=1e-3)
    for variant in (
        {"slots": 2},
        {"slots": 2, "cuda_graphs": True},
        {"zo2": False, "cuda_graphs": True},
    ):
        other_losses, other = train(model, 4, **variant)
        assert losses == other_losses, variant
        assert all(torch.equal(weights[name], other[name]) for name in weights), variant


def test_passes_equal_plain_forwards():
    model = wide(dtype=torch.bfloat16)
    one = {name: value.cuda() for name, value in batch(model).items()}
    from zo2.directions.seeds import child_seed

    z = direction(model, child_seed(7, 0))
    expected = []
    for scale in (1e-3, -1e-3):
        other = copy.deepcopy(model).cuda()
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(parameter.float() + z[name].cuda() * scale)
            expected.append(other(**one).loss.float().item())
    seen = []
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    estimate = model._zo.method.estimate
    model._zo.method.estimate = lambda p, losses, eps: (
        seen.extend(losses) or estimate(p, losses, eps)
    )
    model(**one)
    assert seen == expected


def test_first_update_is_the_same_on_cpu_and_gpu():
    model = tiny("llama")
    one = batch(model)
    results = []
    for device in ("cpu", "cuda:0"):
        other = copy.deepcopy(model)
        zo2.prepare(other, zo2.ZOConfig(**{**CUDA, "working_device": device}))
        other(**one)
        other.opt.projected_grad = 0.5  # the forwards differ by rounding, the update must not
        results.append({k: v.cpu().clone() for k, v in other.state_dict().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("settings", [{}, {"offload_embeddings": True}], ids=str)
def test_evaluation_generation_and_reading_on_a_streamed_model(settings, tmp_path):
    import transformers

    model = wide(dtype=torch.float32)
    ids = batch(model, padded=False)["input_ids"]
    zo2.prepare(model, zo2.ZOConfig(**CUDA, **settings))
    for _ in range(2):
        model(input_ids=ids, labels=ids)
    model.zo_eval()
    logits = model(input_ids=ids).logits
    tokens = model.generate(ids[:, :4].cuda(), max_new_tokens=5, do_sample=False)
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).cuda().eval()
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids.cuda()).logits, logits)
    assert torch.equal(plain.generate(ids[:, :4].cuda(), max_new_tokens=5, do_sample=False), tokens)
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "cpu"
    assert model.model.layers[0].mlp.up_proj.weight.is_pinned()
    released = zo2.release(model)
    assert torch.equal(released.get_parameter("lm_head.weight").cpu(), plain.lm_head.weight.cpu())


def test_memory_returns_when_the_model_goes():
    one = torch.ones(8, 8, device="cuda")
    _ = one @ one  # the first product takes memory that stays
    del one, _
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = wide()
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    model(**batch(model))
    assert torch.cuda.memory_allocated() > before
    zo2.release(model)
    del model
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_streamed_model_needs_less_device_memory_than_its_weights():
    model = wide(dtype=torch.float32)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    zo2.prepare(model, zo2.ZOConfig(**CUDA, slots=2))
    assert torch.cuda.memory_allocated() - before < 0.7 * weights


@pytest.mark.parametrize("settings", [{"zo2": False}, {"slots": 2}])
def test_weights_that_turn_out_to_be_held_are_never_twice_on_the_device(settings):
    model = wide("llama", layers=20, width=1024)
    norm, up = model.model.norm, model.model.layers[0].mlp.up_proj
    plain = norm.forward
    norm.forward = lambda x: plain(x) + up.weight.mean()
    one = batch(model)
    zo2.prepare(model, zo2.ZOConfig(**CUDA, **settings))
    engine = model._zo.engine
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert model(**one).isfinite()
    assert any(unit.held for unit in engine.units)
    blocks = sum(unit.nbytes for unit in engine.units if unit.block is not None)
    assert torch.cuda.max_memory_allocated() - before < 0.3 * blocks


# -- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_every_budget_gives_the_same_bits(family):
    model = wide(family, layers=20, width=1024)
    losses, weights = train(model, zo2=False)
    streamed = set()
    for share in (0.0, 0.2, 0.4, 0.6):  # of the blocks' weights, less than what holds them all
        other = copy.deepcopy(model)
        gc.collect()
        torch.cuda.empty_cache()
        zo2.prepare(other, zo2.ZOConfig(**CUDA, device_memory_budget="20GB"))
        one = batch(other)
        found = [other(**one).item()]
        engine = other._zo.engine
        blocks = sum(unit.nbytes for unit in engine.units if unit.block is not None)
        assert not engine.streams
        engine.rebudget(int(engine.need.total - share * blocks))
        found += [other(**one).item() for _ in range(11)]
        streamed.add(len(engine._workspace.streamed))
        state = {name: value.cpu().clone() for name, value in other.state_dict().items()}
        zo2.release(other)
        del other, engine  # their device memory would count as what others need
        assert found == losses, share
        assert all(torch.equal(weights[name], state[name]) for name in weights), share
    assert len(streamed) > 2


def test_within_little_memory_embeddings_are_read_in_host_memory_with_the_same_bits():
    model = wide("opt", layers=6, width=1024, vocab_size=50_000)
    losses, weights = train(model, zo2=False)
    budget = _least_budget(model) + (48 << 20)
    other = copy.deepcopy(model)
    zo2.prepare(other, zo2.ZOConfig(**CUDA, unit="block", device_memory_budget=budget))
    one = batch(other)
    found = [other(**one).item() for _ in losses]
    by_rows = {unit.name for unit in other._zo.engine._workspace.by_rows}
    assert "model.decoder.embed_tokens" in by_rows
    assert found == losses
    state = other.state_dict()
    assert all(torch.equal(weights[name], state[name].cpu()) for name in weights)


def test_a_budget_that_is_too_small_is_an_error_and_leaves_the_model_usable():
    model = wide()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(zo2.DeviceMemoryError, match="with everything streamed"):
        zo2.prepare(model, zo2.ZOConfig(**CUDA, device_memory_budget="100MB"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_running_out_of_memory_drops_the_step_and_says_what_to_change():
    model = wide(dtype=torch.float32)
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    one = batch(model)
    model(**one)
    before = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    reserved = torch.cuda.memory_reserved() + (64 << 20)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(reserved / total)
    huge = {name: value.repeat(512, 40)[:, :500] for name, value in one.items()}
    try:
        with pytest.raises(zo2.DeviceMemoryError, match="micro-batches"):
            model(**huge)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name].cpu()) for name in before)
    assert model(**one).isfinite()


@pytest.mark.parametrize("settings", [{"zo2": False}, {"device_memory_budget": "1.6GB"}])
def test_memory_of_models_that_were_let_go_is_found(settings):
    """They are garbage in cycles, for which Python's collector is in no hurry."""
    gc.collect()
    torch.cuda.empty_cache()
    model = wide("opt", layers=40, width=1024)  # a gigabyte
    one = batch(model)
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - (3 << 29), dtype=torch.uint8, device="cuda:0")
    if "device_memory_budget" in settings:
        del taken
        torch.cuda.empty_cache()
    gc.disable()
    try:
        losses = []
        for _ in range(3):
            other = zo2.prepare(copy.deepcopy(model), zo2.ZOConfig(**CUDA, **settings))
            losses.append([other(**one).item() for _ in range(2)])
            del other
        assert losses == losses[:1] * 3
    finally:
        gc.enable()


def test_a_model_that_does_not_fit_is_not_prepared_and_says_so():
    model = wide("opt", layers=40, width=1024)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - (1 << 29), dtype=torch.uint8, device="cuda:0")
    with pytest.raises(zo2.DeviceMemoryError, match=r"was not prepared.*device_memory_budget"):
        zo2.prepare(model, zo2.ZOConfig(**CUDA, zo2=False))
    after = model.state_dict()
    assert {value.device.type for value in after.values()} == {"cpu"}
    assert all(torch.equal(before[name], value) for name, value in after.items())
    del taken
    zo2.prepare(model, zo2.ZOConfig(**CUDA, zo2=False))
    assert model(**batch(model)).isfinite()


# -- streams ----------------------------------------------------------------------------------


def test_each_use_has_one_stream_which_does_not_wait_for_the_default_one():
    device = torch.device("cuda", 0)
    one, other = (streams.stream(device, f"test {number}") for number in range(2))
    assert one == streams.stream(device, "test 0") != other
    torch.ones(1 << 20, device=device).sum().item()  # loads the kernels, for which all work ends
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    with torch.cuda.stream(one):
        filled = torch.ones(1 << 20, device=device)
    one.synchronize()
    assert not torch.cuda.default_stream(device).query()
    assert filled.sum().item() == 1 << 20


# -- past copies ------------------------------------------------------------------------------


@pytest.fixture(params=["up", "home"])
def on_its_way(request):
    """Queues a gigabyte in one direction, and returns the event at its end."""
    host = torch.zeros(1 << 30, dtype=torch.uint8, pin_memory=True)
    weights = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()

    def queue():
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            to, source = (weights, host) if request.param == "up" else (host, weights)
            to.copy_(source, non_blocking=True)
            return stream.record_event()

    return queue


def test_losses_are_read_past_weights(on_its_way):
    losses = torch.tensor([[1.5], [float("inf")]], device="cuda")
    zerocopy.read(losses)  # loads the kernel
    arrived = on_its_way()
    assert zerocopy.read(losses) == [[1.5], [float("inf")]]
    assert not arrived.query()


def test_batches_are_brought_past_weights(on_its_way):
    device = torch.device("cuda", 0)
    values = [
        torch.arange(2048).view(1, -1) - 1024,
        torch.arange(12).view(3, 4).T,
        torch.tensor([[True, False]]),
        torch.tensor(float("nan"), dtype=torch.float16),
    ]
    zerocopy.bring(values, device)  # loads the kernel
    arrived = on_its_way()
    brought = zerocopy.bring(values, device)
    assert not arrived.query()
    for one, value in zip(brought, values, strict=True):
        assert one.device == device
        assert (one.dtype, one.shape) == (value.dtype, value.shape)
        torch.testing.assert_close(one.cpu(), value, rtol=0, atol=0, equal_nan=True)


def test_what_is_brought_is_kept_until_it_was_read():
    device = torch.device("cuda", 0)
    torch.cuda._sleep(100_000_000)
    values = [torch.full((64,), number) for number in range(100)]
    brought = [one for i in range(50) for one in zerocopy.bring(values[2 * i : 2 * i + 2], device)]
    assert [one.unique().tolist() for one in brought] == [[number] for number in range(100)]


def test_what_is_large_or_on_the_device_is_brought_as_usual():
    device = torch.device("cuda", 0)
    values = [
        torch.arange(1 << 20),
        torch.empty(0, 3),
        torch.arange(3),
        torch.arange(3, device=device),
    ]
    for few in (values, values[:2]):
        brought = zerocopy.bring(few, device)
        assert [one.device for one in brought] == [device] * len(few)
        assert all(map(torch.equal, (one.cpu() for one in brought), (one.cpu() for one in few)))


def test_a_table_is_rewritten_past_weights_and_not_before_it_was_read(on_its_way):
    table = zerocopy.Table(1 << 10, torch.device("cuda", 0))

    def rewrite(number):
        torch.cuda._sleep(10_000)
        with table.rewriting() as host:
            host[:] = bytes([number]) * len(host)
        return table.there.clone()

    rewrite(255)  # loads the kernels
    arrived = on_its_way()
    seen = [rewrite(number) for number in range(10)]
    assert not arrived.query()
    assert [one.unique().tolist() for one in seen] == [[number] for number in range(10)]


def test_another_default_device_or_dtype_changes_nothing():
    model = wide(dtype=torch.bfloat16)
    other, one = copy.deepcopy(model), batch(model)
    zo2.prepare(model, zo2.ZOConfig(**CUDA))
    losses = [model(**one).item() for _ in range(3)]
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda:0"):
            zo2.prepare(other, zo2.ZOConfig(**CUDA))
            assert losses == [other(**one).item() for _ in range(3)]
    finally:
        torch.set_default_dtype(torch.float32)
    weights = other.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_compiled_blocks_are_streamed():
    model = wide(dtype=torch.float32)
    losses, _ = train(model, 4)
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    other_losses, _ = train(model, 4)
    assert other_losses == pytest.approx(losses, rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_another_device_than_the_current_one():
    model = wide()
    losses, weights = train(model, 4)
    other_losses, other = train(model, 4, working_device="cuda:1")
    assert losses == other_losses
    assert all(torch.equal(weights[name], other[name]) for name in weights)


# -- races ------------------------------------------------------------------------------------


@pytest.fixture
def late(monkeypatch):
    """Every copy is held up at random, and a buffer is spoilt before it is filled again."""
    import random

    from zo2.engine import transfer
    from zo2.engine.lanes import Way

    monkeypatch.setattr(transfer, "PIECE", 1 << 20)  # several of a block
    chance = random.Random(0)
    copied = Way.copy

    def late(way, to, source, after):
        with torch.cuda.stream(way.stream):
            for event in (*after, way.last):
                if event is not None:
                    way.stream.wait_event(event)
            if to.is_cuda:
                to.fill_(0xFF)  # NaN in every precision
            torch.cuda._sleep(chance.choice((0, 0, 100_000, 3_000_000)))
        return copied(way, to, source, after)

    monkeypatch.setattr(Way, "copy", late)


@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("every", [1, None], ids=["home each time", "home in turn"])
def test_late_copies_and_poisoned_buffers_change_nothing(every, unit, slots, late):
    model = wide()
    losses, weights = train(model, zo2=False)
    for graphs in (False, True):
        settings = {"unit": unit, "slots": slots, "write_back_every": every, "cuda_graphs": graphs}
        other_losses, other = train(model, **settings)
        assert losses == other_losses
        assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize("family", ["llama", "opt"])  # a head of its own, and a tied one
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize("every", [1, 3], ids=["home each time", "home in turn"])
def test_late_parts_of_a_head_in_host_memory_change_nothing(
    every, slots, family, late, monkeypatch
):
    from zo2.engine import vocabulary
    from zo2.logits import crossentropy

    monkeypatch.setattr(vocabulary, "PART", 1 << 18)
    monkeypatch.setattr(crossentropy, "CHUNK", 1 << 16)
    model = wide(family, vocab_size=2000)
    losses, weights = train(model, zo2=False)
    settings = {"slots": slots, "write_back_every": every, "offload_embeddings": True}
    for more in ({}, {"unit": "leaf", "direction": "gaussian"}, {"cuda_graphs": True}):
        other_losses, other = train(model, **settings, **more)
        assert losses == other_losses, more
        assert all(torch.equal(weights[name], other[name]) for name in weights), more


def test_weights_are_read_where_kernels_have_just_written_them():
    """An update in host memory, by a kernel, is waited for when somebody asks for the weights."""
    model = wide("opt", vocab_size=50_000)
    states = []
    for settings in ({"zo2": False}, {"offload_embeddings": True, "write_back_every": 1}):
        other = copy.deepcopy(model)
        zo2.prepare(other, zo2.ZOConfig(**CUDA, **settings))
        weight = other.get_output_embeddings().weight
        found = []
        for _ in range(6):
            other(**batch(other))
            found.append(weight.detach().cpu().clone())
            other.zo_eval()
            other(**batch(other))
            found.append(weight.detach().cpu().clone())
            other.zo_train()
        states.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_what_waits_for_the_link_goes_home_more_rarely(monkeypatch):
    from zo2.engine.lanes import Way

    model = wide()
    zo2.prepare(model, zo2.ZOConfig(**CUDA, slots=2))
    one = batch(model)
    copied, home = Way.copy, []

    def slow(way, to, source, after):
        if to.is_cuda:
            with torch.cuda.stream(way.stream):
                torch.cuda._sleep(30_000_000)
        else:
            home.append(to.data_ptr())
        return copied(way, to, source, after)

    for _ in range(3):  # compiles
        model(**one)
    monkeypatch.setattr(Way, "copy", slow)
    counts = []
    for _ in range(24):
        home.clear()
        model(**one)
        counts.append(len(set(home)))
    assert sum(counts[-8:]) == 2 * 6  # six blocks, each in every fourth sweep


# -- kernels and graphs -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1"])
@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
def test_without_triton_the_results_are_the_same(family, method, monkeypatch):
    from zo2.directions import gpu
    from zo2.engine.fused import FusedArithmetic
    from zo2.engine.weights import TorchArithmetic

    settings = {"direction": family, "method": method, "zo2": False}
    model = wide(dtype=torch.bfloat16)
    losses, weights = train(model, 4, **settings)
    monkeypatch.setattr(gpu, "available", lambda: False)
    kinds = []
    for kind in (FusedArithmetic, TorchArithmetic):
        monkeypatch.setattr(
            kind, "transform", spied(kind.transform, lambda kind=kind: kinds.append(kind))
        )
    other_losses, other = train(model, 4, **settings)
    assert set(kinds) == {TorchArithmetic}
    if family == "rank1" and method == "fzoo":  # torch sums directions in another order
        assert other_losses == pytest.approx(losses, rel=1e-3)
        return
    assert losses == other_losses
    assert all(torch.equal(weights[name], other[name]) for name in weights)


def spied(function, note):
    def spy(*args, **kwargs):
        note()
        return function(*args, **kwargs)

    return spy


@pytest.fixture
def replayed(monkeypatch):
    """One entry for each graph that is replayed."""
    found = []
    replay = spied(torch.cuda.CUDAGraph.replay, lambda: found.append(1))
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    return found


@pytest.mark.parametrize("method", ["mezo-sgd", "fzoo"])
@pytest.mark.parametrize("padded", [True, False])
def test_graphs_replay_the_same_steps(method, padded, replayed):
    model = wide(dtype=torch.float32)
    ones = [batch(model, padded=padded, seed=seed) for seed in range(3)]
    results = []
    for graphs in (False, True):
        other = copy.deepcopy(model)
        config = zo2.ZOConfig(method, **CUDA, zo2=False, cuda_graphs=graphs)
        zo2.prepare(other, config)
        losses = []
        for step in range(12):
            losses.append(other(**ones[step % 3]).item())
            if step == 6:  # reading applies the update; the next step is of another kind
                _ = other.lm_head.weight.sum().item()
            if step == 8:
                other.opt.lr = 5e-5
        results.append((losses, {k: v.clone() for k, v in other.state_dict().items()}))
    (losses, weights), (other_losses, other_weights) = results
    assert len(replayed) > 5
    assert other_losses == pytest.approx(losses, rel=1e-4)
    for name in weights:
        assert torch.allclose(weights[name], other_weights[name], atol=1e-4), name


def test_graphs_of_weights_that_have_moved_since_are_not_replayed(replayed):
    """An evaluation takes converted weights in before the next step comes to the graphs."""
    model, results = wide(), []
    one = batch(model)
    for graphs in (False, True):
        other = copy.deepcopy(model)
        config = {**CUDA, "lr": 1e-3, "zo2": False, "cuda_graphs": graphs}
        zo2.prepare(other, zo2.ZOConfig(**config))
        losses = [other(**one).item() for _ in range(5)]
        replays = len(replayed)
        other.float()
        other.zo_eval()
        losses.append(other(**one).loss.item())
        other.zo_train()
        losses += [other(**one).item() for _ in range(5)]
        results.append((losses, {k: v.clone() for k, v in other.state_dict().items()}))
        assert (len(replayed) > replays > 1) == graphs
    (losses, weights), (other_losses, other_weights) = results
    assert other_losses == pytest.approx(losses, rel=1e-3)
    for name in weights:
        assert torch.allclose(weights[name], other_weights[name], atol=1e-3), name


def test_passes_that_write_to_a_shared_buffer_go_in_file_in_a_graph(monkeypatch):
    from zo2.engine.abreast import Abreast

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(64, 64)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, input_ids, labels):
            self.calls += 1
            return ((self.linear(input_ids) * (1 + 0.1 * self.calls) - labels) ** 2).mean(), None

    forks = []
    monkeypatch.setattr(Abreast, "fork", spied(Abreast.fork, lambda: forks.append(1)))
    torch.manual_seed(0)
    model = Counting()
    one = {"input_ids": torch.randn(8, 64), "labels": torch.randn(8, 64)}
    results = []
    for graphs in (False, True):
        other = copy.deepcopy(model)
        zo2.prepare(other, zo2.ZOConfig(**CUDA, zo2=False, cuda_graphs=graphs))
        losses = [other(**one).item() for _ in range(6)]
        results.append((losses, other.calls.item()))
    assert not forks
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == results[1][1]


def test_a_model_that_asks_for_values_goes_on_without_a_graph(caplog):
    model = wide(dtype=torch.float32)
    inner = model.model.forward

    def asking(*args, **kwargs):
        output = inner(*args, **kwargs)
        assert output[0].sum().item() != 0
        return output

    model.model.forward = asking
    zo2.prepare(model, zo2.ZOConfig(**CUDA, zo2=False, cuda_graphs=True))
    one = batch(model)
    losses = [model(**one).item() for _ in range(5)]
    reference = copy.deepcopy(wide(dtype=torch.float32))
    zo2.prepare(reference, zo2.ZOConfig(**CUDA, zo2=False))
    assert losses == [reference(**one).item() for _ in range(5)]
    assert "cannot be a CUDA graph" in caplog.text


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_passes_through_streamed_blocks_are_replayed_bit_for_bit(family, dtype, replayed):
    model = wide(family, dtype)
    resident = {method: train(model, zo2=False, method=method) for method in ("mezo-sgd", "fzoo")}
    leaves = {"unit": "leaf"}  # of blocks that are small enough to be gone through at once
    for settings in (
        {"slots": 3}, {"slots": 1}, {"offloading_blocks": [1, 3]}, {"method": "fzoo"},
        leaves, {**leaves, "slots": 2},
    ):  # fmt: skip
        losses, weights = resident[settings.get("method", "mezo-sgd")]
        replayed.clear()
        others, found = train(model, cuda_graphs=True, **settings)
        assert others == losses, settings
        assert all(torch.equal(weights[name], found[name]) for name in weights), settings
        assert len(replayed) > 100


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("unit", ["block", "leaf"])
@pytest.mark.parametrize("slots", [3, 5])
def test_blocks_that_passes_take_turns_at_keep_their_bits(slots, unit, graphs, replayed):
    model = wide("opt", width=1024)
    losses, weights = train(model, zo2=False)
    where = TakingTurns(slots=slots, copies=True)
    others, found = train(model, placement=where, unit=unit, cuda_graphs=graphs)
    assert others == losses
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert bool(replayed) == graphs


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("bounded", [True, False])
def test_graphs_that_are_tried_unasked_change_no_bit(
    bounded, faster, replayed, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "zo2")
    model = wide("opt", layers=20, width=1024)
    losses, weights = train(model, 24, cuda_graphs=False)
    budget = _budget_that_streams(model)
    seconds = iter([1.0, 0.5 if faster else 2.0])
    monkeypatch.setattr(hostbound, "STEPS", 4)
    monkeypatch.setattr(hostbound, "SHARE", float("inf"))
    monkeypatch.setattr(assembly, "PATIENCE", 4)
    monkeypatch.setattr(hostbound, "median", lambda times: next(seconds))
    settings = {"device_memory_budget": budget, "unit": "block"} if bounded else {}
    others, found = train(model, 24, **settings)
    assert others == losses
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert replayed
    assert caplog.text.count("replayed as CUDA graphs") == faster
    assert next(seconds, None) is None  # both were asked for


def _budget_that_streams(model):
    """Device memory with which some of a model's blocks are streamed."""

    def find(engine):
        blocks = sum(unit.nbytes for unit in engine.units if unit.block is not None)
        return int(engine.need.total - 0.4 * blocks)

    return _with_plenty(model, find)


def _with_plenty(model, find, **settings):
    """What ``find`` returns for the engine of a copy that has a large budget and took a step."""
    gc.collect()
    config = zo2.ZOConfig(**CUDA, device_memory_budget="20GB", **settings)
    other = zo2.prepare(copy.deepcopy(model), config)
    other(**batch(other))
    found = find(other._zo.engine)
    zo2.release(other)
    del other
    gc.collect()
    torch.cuda.empty_cache()
    return found


def test_where_a_budget_has_no_room_for_graphs_steps_go_on_without(replayed, monkeypatch):
    model = wide("opt", layers=6, width=1024)
    losses, weights = train(model, 12, cuda_graphs=False)
    budget = _least_budget(model) + (16 << 20)
    monkeypatch.setattr(hostbound, "STEPS", 4)
    monkeypatch.setattr(hostbound, "SHARE", float("inf"))
    monkeypatch.setattr(assembly, "PATIENCE", 4)
    monkeypatch.setattr(capturing, "_streams", {})  # another would take memory for good
    others, found = train(model, 12, device_memory_budget=budget, unit="block")
    assert others == losses
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert not replayed
    assert not capturing._streams


def _least_budget(model):
    """Device memory with which all of a model's blocks are streamed, and no less."""

    def find(engine):
        low, high = 0, engine.need.total
        while high - low > 1 << 20:
            middle = (low + high) // 2
            try:
                engine.rebudget(middle)
            except zo2.DeviceMemoryError:
                low = middle
            else:
                high = middle
        return high

    return _with_plenty(model, find, unit="block")


def test_a_budget_is_no_limit_for_another_model():
    model = wide("opt", layers=20, width=1024)
    budget = _budget_that_streams(model)
    one, losses = batch(model), train(model, 3, zo2=False)[0]
    gc.collect()
    config = zo2.ZOConfig(**CUDA, unit="block", device_memory_budget=budget)
    bounded, seen = zo2.prepare(copy.deepcopy(model), config), []

    def more_than_the_budget():
        torch.empty(2 * budget, dtype=torch.uint8, device="cuda:0")
        torch.cuda.empty_cache()

    for _ in losses:
        seen.append(bounded(**one).item())
        with pytest.raises(torch.cuda.OutOfMemoryError):
            more_than_the_budget()
        other = zo2.prepare(copy.deepcopy(model), zo2.ZOConfig(**CUDA, zo2=False))
        more_than_the_budget()
        assert other(**one).item() == losses[0]
        del other
        gc.collect()
    assert seen == losses
    gc.disable()
    try:
        del bounded  # the garbage collector has yet to come by
        train(model, 2, zo2=False)
        more_than_the_budget()
    finally:
        gc.enable()


SMALL_STACKS = """
import copy, torch, zo2
from tests.tiny import batch
from tests.test_gpu import CUDA, wide
from zo2.engine import threadstacks

def context():
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()

model = wide()
zo2.prepare(model, zo2.ZOConfig(**CUDA, device_memory_budget="4GB"))
one = batch(model)
for _ in range(3):
    model(**one)
bounded = context()
copied = copy.deepcopy(model)  # which releases the model for a moment
model(**one)
bounded_still = context()
zo2.release(model)
gpu = torch.cuda.get_device_properties(0)
threads = gpu.multi_processor_count * gpu.max_threads_per_multi_processor
spared = threads * (threadstacks.DEFAULT - threadstacks.SMALL)
print((context() - bounded) / spared, (context() - bounded_still) / spared)
"""


def test_within_a_budget_the_context_takes_less():
    """By stacks of an eighth of their size, for as many threads as the GPU can hold."""
    found = subprocess.run(
        [sys.executable, "-c", SMALL_STACKS], capture_output=True, text=True, check=True
    )
    assert [float(share) for share in found.stdout.split()] == pytest.approx([1, 1], abs=0.1)


def test_passes_find_all_weights_on_their_device():
    model, found = wide(), []
    zo2.prepare(model, zo2.ZOConfig(**CUDA, slots=2))
    model.model.register_forward_pre_hook(
        lambda module, args: found.append({one.device.type for one in module.parameters()})
    )
    for _ in range(3):
        model(**batch(model))
    assert {one.device.type for one in model.parameters()} == {"cpu", "cuda"}
    assert len(found) == 7  # one is recorded
    assert all(one == {"cuda"} for one in found)


def test_replayed_blocks_within_a_budget(replayed):
    model = wide("opt", layers=20, width=1024)
    losses, weights = train(model, zo2=False)
    budget = _budget_that_streams(model)
    others, found = train(model, cuda_graphs=True, unit="block", device_memory_budget=budget)
    assert others == losses
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert replayed


def test_captures_that_fail_or_go_leave_torch_able_to_free_memory_and_to_capture():
    device = torch.device("cuda", 0)
    capture = CudaCapture(device)
    x, out = torch.ones(2, 1 << 20, device=device)

    def asking():
        (x + x).sum().item()

    def taking_too_much():
        torch.add(x, x, out=out)
        torch.empty(1 << 50, dtype=torch.uint8, device=device)

    def fine():
        torch.add(x, x + 1, out=out)

    for work in (asking, taking_too_much, asking):
        with pytest.raises(CaptureError):
            capture(work)
        with pytest.raises(torch.cuda.OutOfMemoryError):  # torch frees what it can before
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        for _ in range(2):  # the second time, the memory of all graphs before is gone
            out.zero_()
            capture(fine)()
            assert torch.equal(out, torch.full_like(out, 3))


def test_a_capture_without_any_memory_to_begin_with_is_an_error():
    gc.collect()
    torch.cuda.empty_cache()
    device = torch.device("cuda", 0)
    x = torch.ones(1 << 20, device=device)
    out = torch.empty_like(x)
    capture = CudaCapture(device)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(device) / total)
    try:
        for _ in range(2):
            with pytest.raises(CaptureError, match="memory"):
                capture(lambda: torch.add(x, x + 1, out=out))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()  # of the failed captures
    capture(lambda: torch.add(x, x + 1, out=out))()
    assert torch.equal(out, torch.full_like(out, 3))


def test_blocks_that_ask_for_values_run_as_they_are(replayed, caplog):
    model = wide()
    losses, _ = train(model)
    for layer in model.model.layers:
        inner = layer.mlp.act_fn
        layer.mlp.act_fn = Asking(inner)
    others, _ = train(model, cuda_graphs=True)
    assert others == losses
    assert not replayed
    assert "cannot be a CUDA graph" in caplog.text


class Asking(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        assert x.isfinite().all()
        return self.inner(x)
