"""Arithmetic on weights, against float64 and against itself cut into other pieces."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo2.directions import ParameterShape, get_family
from zo2.directions.gaussian import Gaussian
from zo2.engine import weights as module
from zo2.engine.partition import Weight
from zo2.engine.store import Layout
from zo2.engine.updates import Affine, Update, compose
from zo2.engine.weights import Changes, TorchArithmetic, round_stochastically
from zo2.methods import Perturbation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAMILIES = ("gaussian", "rademacher", "rank1")


def direction(family: str, seed: int, shape: ParameterShape) -> torch.Tensor:
    out = torch.empty(shape.numel)
    get_family(family).fill(out, seed, shape, 0)
    return out.view(shape.shape)


def random_weights(shape: ParameterShape, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape.shape, generator=generator).to(dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([(1,), (37,), (8, 5), (3, 4, 6), (600, 70)]),
    seed=st.integers(0, 2**63 - 1),
    eps=st.sampled_from([1e-3, 1e-2, 1.0]),
)
def test_perturbed_copies_are_w_plus_scale_z_rounded_once(family, dtype, shape, seed, eps):
    shape = ParameterShape(3, shape)
    base = random_weights(shape, dtype)
    before = base.clone()
    outs = [torch.empty_like(base) for _ in range(3)]
    TorchArithmetic(get_family(family), True).perturb(
        base,
        shape,
        Affine(),
        [Perturbation(seed, eps), Perturbation(seed, -eps), Perturbation()],
        outs,
    )
    z = direction(family, seed, shape)
    assert torch.equal(outs[0], (base.float() + z * eps).to(dtype))
    assert torch.equal(outs[1], (base.float() - z * eps).to(dtype))
    assert torch.equal(outs[2], base)
    assert torch.equal(base, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [64, 1000, 1 << 18])
def test_the_size_of_a_chunk_changes_nothing(family, dtype, chunk, monkeypatch):
    shape = ParameterShape(1, (90, 77))
    update = Affine(0.99, ((5, 0.3), (6, -0.2)), rounding_seed=9)

    def results():
        base = random_weights(shape, dtype)
        out = torch.empty_like(base)
        arithmetic = TorchArithmetic(get_family(family), True)
        arithmetic.perturb(base, shape, update, [Perturbation(8, 0.1)], [out])
        arithmetic.apply(base, shape, update)
        return base, out

    whole = results()
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    cut = results()
    if family == "rank1":  # a sum over directions is a matrix product, whose order may differ
        assert all(
            torch.allclose(a.float(), b.float(), rtol=1e-2 if dtype != torch.float32 else 1e-6)
            for a, b in zip(whole, cut, strict=True)
        )
    else:
        assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decayed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_pending_list_equals_step_by_step_updates(family, decayed, count):
    shape = ParameterShape(2, (40, 30))
    updates = [
        Update(((10 + k, -1e-2 * (k + 1)), (500 + k, 3e-3)), decay=0.01 * (k % 3), rounding_seed=k)
        for k in range(count)
    ]
    expected = random_weights(shape, torch.float32).double()
    for update in updates:
        expected *= 1 - (update.decay if decayed else 0.0)
        for seed, coefficient in update.terms:
            expected += coefficient * direction(family, seed, shape).double()
    base = random_weights(shape, torch.float32)
    arithmetic = TorchArithmetic(get_family(family), True)
    arithmetic.apply(base, shape, compose(updates, decayed))
    scale = expected.abs().max()
    assert (base.double() - expected).abs().max() < count * 2.0**-22 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased_and_takes_a_neighbour(dtype):
    values = torch.cat(
        [
            torch.tensor([0.0, 1.0, -1.0, 1.0 + 2.0**-12, -3.14159265, 1e-3, -65000.1, 123.456]),
            torch.tensor([2.0**-14 * 0.7, -(2.0**-20), 3.3e-8, 2.0**-24 * 0.25, 5.9e-8]),
            torch.randn(200, generator=torch.Generator().manual_seed(3)),
        ]
    )
    n = 20000
    bits = torch.randint(-(2**31), 2**31, (n, values.numel()), dtype=torch.int64)
    rounded = round_stochastically(
        values.expand(n, -1).contiguous(), bits.to(torch.int32), dtype
    ).float()
    nearest = values.to(dtype)
    towards = torch.where(nearest.float() > values, -math.inf, math.inf).to(dtype)
    other = (
        torch.nextafter(nearest, towards)
        if dtype == torch.bfloat16
        else _nextafter16(nearest, towards)
    )
    exact = nearest.float() == values
    low = torch.minimum(nearest.float(), torch.where(exact, nearest.float(), other.float()))
    high = torch.maximum(nearest.float(), torch.where(exact, nearest.float(), other.float()))
    assert ((rounded == low) | (rounded == high)).all()
    gap = (high - low).double()
    error = (rounded.double().mean(0) - values.double()).abs()
    assert (error <= 5 * 0.5 * gap / math.sqrt(n) + 1e-12).all()


def _nextafter16(values: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    import numpy

    return torch.from_numpy(numpy.nextafter(values.numpy(), towards.numpy()))


def test_stochastic_rounding_keeps_infinities_and_nan():
    values = torch.tensor([math.inf, -math.inf, math.nan])
    for dtype in (torch.bfloat16, torch.float16):
        got = round_stochastically(values, torch.full((3,), -1, dtype=torch.int32), dtype)
        assert torch.equal(got.float().nan_to_num(7.0), values.nan_to_num(7.0))


def test_small_updates_survive_in_half_precision():
    shape = ParameterShape(0, (1000, 100))
    lost, kept = (torch.ones(shape.shape, dtype=torch.bfloat16) for _ in range(2))
    arithmetic = {flag: TorchArithmetic(get_family("ones"), flag) for flag in (False, True)}
    for step in range(100):  # each update is a fortieth of the distance to the next bfloat16
        update = compose([Update(((step, 1e-4),), 0.0, rounding_seed=step)], False)
        arithmetic[False].apply(lost, shape, update)
        arithmetic[True].apply(kept, shape, update)
    assert lost.eq(1).all()
    assert kept.double().mean().item() == pytest.approx(1.01, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_bits_belong_to_the_update_not_to_the_call(dtype):
    shape = ParameterShape(0, (5000,))
    update = Affine(1.0, ((1, 1e-4),), rounding_seed=7)
    results = []
    for _ in range(2):
        base = random_weights(shape, dtype)
        TorchArithmetic(get_family("gaussian"), True).apply(base, shape, update)
        results.append(base)
    other = random_weights(shape, dtype)
    TorchArithmetic(get_family("gaussian"), True).apply(
        other, shape, Affine(1.0, ((1, 1e-4),), rounding_seed=8)
    )
    assert torch.equal(*results)
    assert not torch.equal(results[0], other)


class Scarce(Gaussian):
    """No memory for more than so many elements at once."""

    most = 1000

    def accumulate(self, out, terms, parameter, start):
        if out.numel() > self.most:
            raise MemoryError
        super().accumulate(out, terms, parameter, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_memory_runs_out_no_weight_of_the_unit_has_been_updated(dtype):
    sizes = [(40, 10), (30,), (70, 30), (50, 10)]
    weights = [
        Weight(nn.Parameter(random_weights(shape, dtype)), f"w{shape.index}", shape, decayed=True)
        for shape in (ParameterShape(index, size) for index, size in enumerate(sizes))
    ]
    layout = Layout(weights)
    base = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for view, weight in zip(layout.views(base), weights, strict=True):
        view.copy_(weight.parameter.data)
    changes = Changes(((Update(((11, 0.01),), 0.1, 99),),), (), (Perturbation(5, 1e-3),))

    def updated(family):
        flat, copy = base.clone(), torch.empty_like(base)
        arithmetic = TorchArithmetic(family, True)
        return flat, lambda: arithmetic.transform(layout, flat, changes, 0, True, [(0, copy)])

    flat, update = updated(Scarce())
    with pytest.raises(MemoryError):
        update()
    assert torch.equal(flat, base)
    flat, update = updated(get_family("gaussian"))
    update()
    for view, weight in zip(layout.views(flat), weights, strict=True):
        assert not torch.equal(view, weight.parameter)
