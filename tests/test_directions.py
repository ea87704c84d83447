"""z is a pure function with the right moments, the same bits however it is asked for."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zo2.directions import ParameterShape, compiled, get_family
from zo2.directions.normals import box_muller
from zo2.directions.seeds import child_seed
from zo2.directions.words import halves, philox, words
from zo2.errors import ConfigError

FAMILIES = ("gaussian", "rademacher", "rank1")
CPU = torch.device("cpu")
RADIUS_4 = 1441002  # a word whose radius is 4, to the last bit


def z(family: str, seed: int, shape: ParameterShape, start: int = 0, stop: int | None = None):
    out = torch.full(((shape.numel if stop is None else stop) - start,), math.nan)
    get_family(family).fill(out, seed, shape, start)
    return out


@pytest.fixture(params=["torch", "compiled"])
def backend(request, monkeypatch):
    if request.param == "compiled":
        pytest.importorskip("numba", reason="numba is not installed")
    else:
        monkeypatch.setattr(compiled, "available", lambda: False)
    return request.param


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that Random123 publishes for philox4x32-7
        ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    low_high = torch.tensor([counter[0]]) | (torch.tensor([counter[1]]) << 32)
    got = philox(key[0] | key[1] << 32, counter[2], counter[3], low_high)
    assert tuple(int(word) for word in got) == expected


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(7,), (5000,), (64, 33), (300, 123), (50, 3, 2), (3, 70, 50), (40000,)]),
    index=st.integers(0, 1000),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_any_range_is_a_slice_of_the_whole(family, shape, index, seed, data):
    parameter = ParameterShape(index, shape)
    start = data.draw(st.integers(0, parameter.numel - 1))
    stop = data.draw(st.integers(start + 1, parameter.numel))
    whole = z(family, seed, parameter)
    assert torch.equal(z(family, seed, parameter, start, stop), whole[start:stop])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1,), (1023,), (70000,), (129, 515), (9, 4, 5)])
def test_compiled_kernels_give_the_bits_of_the_definition(family, shape, monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed")
    parameter = ParameterShape(3, shape)
    fast = z(family, 2**62 + 12345, parameter)
    monkeypatch.setattr(compiled, "available", lambda: False)
    assert torch.equal(fast, z(family, 2**62 + 12345, parameter))


def test_compiled_half_words_give_the_bits_of_the_definition():
    pytest.importorskip("numba", reason="numba is not installed")
    out = torch.empty(50000, dtype=torch.int32)
    for start in (0, 1000, 3072):
        compiled.fill_halves(out, 77, 5, 4, start)
        assert torch.equal(out.long(), halves(77, 5, 4, start, 50000, CPU))


def test_half_words_are_the_halves_of_the_words():
    """Of 2048 half words the first 1024 are lower halves, the others upper ones."""
    whole = words(77, 5, 4, 0, 3072, CPU).view(3, 1, 1024)
    expected = torch.cat([whole % 2**16, whole // 2**16], dim=1).view(-1)
    assert torch.equal(halves(77, 5, 4, 0, 6144, CPU), expected)


def test_the_radius_is_right():
    """Against a logarithm in double precision; the ends, where errors would show."""
    ends = [torch.arange(2**22), 2**32 - 2**22 + torch.arange(2**22)]
    spread = torch.arange(2**21) * 2039 + 17
    for radius in (*ends, spread):
        angle = torch.zeros_like(radius)  # the cosine is 1 up to its own error, the sign is plus
        z0, z1 = box_muller(radius, angle)
        expected = (-2 * torch.log((radius.double() + 0.5) / 2**32)).sqrt()
        assert z1.eq(0).all()
        assert z0.gt(0).all()
        allowed = (2.3e-5 * expected).clamp(min=3.3e-5).maximum(
            1.1e-6 / expected
        ) + 7.1e-6 * expected
        assert ((z0.double() - expected).abs() <= allowed).all()


def test_cosine_and_sine_are_right():
    angle = torch.arange(0, 2**32, 2053)
    z0, z1 = box_muller(torch.full_like(angle, RADIUS_4), angle)
    turn = 2 * math.pi * (angle.to(torch.int32).double() / 2**33 + (angle & 1) / 2)
    assert (z0.double() / 4 - turn.cos()).abs().max() < 7.1e-6
    assert (z1.double() / 4 - turn.sin()).abs().max() < 8e-7


def test_moments_over_all_words():
    """Radius and angle are independent, so their moments are taken one after the other."""
    few, middles = torch.arange(2**17), torch.arange(2**16, 2**17) + 0.5
    radius = torch.cat([few, *((middles * 2.0**k).long() for k in range(1, 16))])
    weights = torch.cat([torch.ones(2**17), *(torch.full((2**16,), 2.0**k) for k in range(1, 16))])
    angle = torch.arange(2**15, 2**32, 2**16)
    radii, _ = box_muller(radius, torch.zeros_like(radius))
    turns = box_muller(torch.full_like(angle, RADIUS_4), angle)
    unit, _ = box_muller(torch.tensor([RADIUS_4]), torch.tensor([0]))
    for power, moment, error in ((2, 1, 1.2e-7), (4, 3, 2e-7), (6, 15, 2e-6)):
        radial = ((radii.double() / unit).pow(power) * weights).sum() / 2**32
        for z in turns:
            assert abs(radial * z.double().pow(power).mean() / moment - 1) < error


def test_the_angles_are_spread_evenly_over_the_whole_turn():
    angle = torch.arange(0, 2**32, 4099)
    x, y = (one.double() for one in box_muller(torch.full_like(angle, 2**31), angle))
    turn = torch.atan2(y, x).sort().values
    even = torch.linspace(-math.pi, math.pi, turn.numel(), dtype=torch.double)
    assert (turn - even).abs().max() < 1e-4


@pytest.mark.slow
def test_compiled_normals_have_the_bits_of_the_definition_for_every_word():
    """Of the words that round to one float32, one is tried, as radius and, with both signs, as
    angle. Then the radius is a power of two, whose products hide no bit.
    """
    pytest.importorskip("numba", reason="numba is not installed")

    def differ(radius, angle):
        expected = torch.stack([z.view(-1, 2, 256) for z in box_muller(radius, angle)], dim=2)
        pairs = torch.stack([radius.view(-1, 2, 256), angle.view(-1, 2, 256)], dim=2)
        tiles = pairs.view(-1, 1024).numpy().astype(np.uint32)
        got = np.empty(tiles.shape, np.float32)
        for w, z in zip(tiles, got, strict=True):
            compiled.normals_tile(w, w.view(np.int32), w.view(np.float32), z, z.view(np.int32))
        return not torch.equal(torch.from_numpy(got), expected.view(-1, 1024))

    size = 2**22
    for first in range(0, 10 * 2**23, size):  # float32: 2**24 whole numbers, 8 binades
        exponent = max(first // 2**23 - 1, 0)
        part = (torch.arange(first, first + size) - exponent * 2**23) << exponent
        assert not differ(part, torch.zeros_like(part))
        if part[-1] < 2**31:
            four = torch.full_like(part, RADIUS_4)
            assert not differ(four, part)
            assert not differ(four, -part & 0xFFFFFFFF)
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 77]).repeat(64)
    assert not differ(ends, ends.view(64, 8).T.reshape(-1))


def test_thread_count_does_not_change_z(backend):
    parameter = ParameterShape(0, (500, 411))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(z("gaussian", 5, parameter))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_torch_keeps_its_number_of_threads():
    """In a process of its own: numba starts its threads once, and OpenMP has one number for all."""
    pytest.importorskip("numba", reason="numba is not installed")
    code = """
import torch
from zo2.directions import streams
streams.fill_normals(torch.empty(1 << 17), 5, 0, 0, 0)
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "3"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["2"], done.stderr[-2000:]


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_and_variance(family):
    n = 1 << 20
    values = z(family, 11, ParameterShape(2, (1024, 1024))).double()
    assert abs(values.mean()) < 5 / math.sqrt(n)
    # rank1 has unit squares exactly; a normal's squares have variance 2
    assert abs(values.square().mean() - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)])
def test_second_moments_are_the_identity(family, shape):
    parameter, n = ParameterShape(1, shape), 20000
    samples = torch.stack([z(family, child_seed(1, k), parameter) for k in range(n)]).double()
    moments = samples.T @ samples / n
    assert (moments - torch.eye(parameter.numel)).abs().max() < 6 * math.sqrt(2 / n)
    assert samples.mean(0).abs().max() < 5 / math.sqrt(n)


def test_normals_are_normal():
    values = z("gaussian", 4, ParameterShape(0, (1 << 20,))).double().sort().values
    normal_cdf = 0.5 * (1 + torch.erf(values / math.sqrt(2)))
    empirical = torch.arange(1, values.numel() + 1).double() / values.numel()
    distance = (empirical - normal_cdf).abs().max()  # Kolmogorov-Smirnov
    assert distance < 1.95 / math.sqrt(values.numel())  # p = 0.001
    assert values.abs().max() > 4.5
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / values.numel())


@pytest.mark.parametrize("family", FAMILIES)
def test_independent_across_parameters_and_seeds(family):
    n = 1 << 16
    base = z(family, 5, ParameterShape(0, (256, 256))).double()
    others = {
        "next parameter": z(family, 5, ParameterShape(1, (256, 256))),
        "next seed": z(family, 6, ParameterShape(0, (256, 256))),
        "seed differing in its high half": z(family, 5 + (1 << 40), ParameterShape(0, (256, 256))),
        "shifted by a tile": base.roll(1024),
        "shifted by one": base.roll(1),
    }
    for name, other in others.items():
        correlation = (base * other.double()).mean().item()
        # rank1's 65,536 elements come from 512 signs: its correlations spread like 1/256
        spread = 1 / math.sqrt(n) if family != "rank1" else 1 / 256
        if family == "rank1" and name.startswith("shifted"):
            continue  # within one rank-1 matrix elements are uncorrelated only on average
        assert abs(correlation) < 5 * spread, (name, correlation)


def test_rank1_is_rank_one_for_every_matrix_of_a_stack():
    stack = z("rank1", 9, ParameterShape(0, (20, 8, 6))).view(20, 8, 6)
    assert stack.abs().eq(1).all()
    for matrix in stack:
        assert torch.equal(matrix, torch.outer(matrix[:, 0], matrix[0]) * matrix[0, 0])
    assert len({tuple(matrix.flatten().tolist()) for matrix in stack}) > 15


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(700,), (40, 30), (6, 10, 9), (3000, 130)])
def test_accumulate_is_the_weighted_sum(family, shape):
    parameter = ParameterShape(4, shape)
    terms = [(1, 0.5), (2, -3.0), (3, 1e-3), (4, 7.25), (5, -0.125)]
    start, stop = parameter.numel // 5, parameter.numel - 3
    out = torch.full((stop - start,), math.nan)
    get_family(family).accumulate(out, terms, parameter, start)
    expected = sum(c * z(family, s, parameter).double()[start:stop] for s, c in terms)
    assert (out.double() - expected).abs().max() < 1e-5


def test_rank1_sums_keep_all_bits_whatever_precision_the_user_chose():
    parameter = ParameterShape(4, (128, 128))
    terms = [(seed, 1.0 + 2.0**-20 * seed) for seed in range(1, 9)]
    get = get_family("rank1").accumulate
    exact, reduced = torch.empty(parameter.numel), torch.empty(parameter.numel)
    get(exact, terms, parameter, 0)
    torch.set_float32_matmul_precision("medium")
    try:
        get(reduced, terms, parameter, 0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(exact, reduced)


def test_child_seeds_do_not_collide_and_stay_in_range():
    seeds = {child_seed(parent, index) for parent in range(100) for index in range(100)}
    assert len(seeds) == 10000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_unknown_family_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'rademacher'"):
        get_family("rademaher")


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_devices_agree_bit_for_bit(family):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for shape in ((5000,), (300, 123), (20, 30, 17)):
        parameter = ParameterShape(2, shape)
        out = torch.empty(parameter.numel, device="cuda")
        get_family(family).fill(out, 2**61 + 1, parameter, 0)
        assert torch.equal(out.cpu(), z(family, 2**61 + 1, parameter))
