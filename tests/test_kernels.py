"""The fused kernels: the bits of the torch operations, and code for every Triton and GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from zo2.directions import ParameterShape, get_family
from zo2.engine.partition import Weight
from zo2.engine.store import Layout
from zo2.engine.updates import Update
from zo2.engine.vocabulary import Matrix
from zo2.engine.weights import Changes, TorchArithmetic
from zo2.methods import Perturbation

pytest.importorskip("triton", reason="Triton comes with torch's CUDA wheels; here it is missing")

SMALL = [(9, 270), (37,), (9, 5), (3, 4, 6), (5000,)]
LARGE = [(300, 270), (37,), (9, 5), (3, 40, 6), (50001,), (7, 1000, 300), (5, 4500), (2, 3, 4100)]
# by how many rows of a matrix a tile of 1024 elements meets at most: one, two, any number
SPANS = [
    [(3, 2048), (37,), (9, 5), (2, 2, 1024), (1, 1500)],
    [(4, 1500), (37,), (9, 5), (2, 2, 1024), (3, 1, 1100)],
    [(3, 2048), (37,), (9, 5), (2, 3, 70), (3, 1, 300)],
]
PERTURBATIONS = (
    Perturbation(5, 1e-3), Perturbation(5, -1e-3), Perturbation(), Perturbation(2**62 + 12345, 1.0),
)  # fmt: skip
ONE, TWO = Update(((11, 0.01),), 0.1, 99), Update(((12, 0.02),), 0.1, 98)
BOTH, DECAY = Update(((11, 0.01), (12, -0.02)), 0.1, 99), Update((), 0.1, 7)
UPDATES = {  # rounds, how many of them the weights have, open updates
    "none": ((), 0, ()),
    "one": (((ONE,),), 0, ()),
    "several": (((BOTH, TWO),), 0, ()),
    "decay": (((DECAY,),), 0, ()),
    "open": ((), 0, (ONE, TWO)),
    "rounds": (((ONE,), (TWO,), (ONE,), (TWO,)), 1, ()),
    "rounds and open": (((ONE,), (TWO,)), 0, (TWO,)),
    "unequal rounds": (((ONE, TWO), (DECAY,), (TWO,)), 0, ()),
    "rounds of decay": (((DECAY,), (DECAY,)), 0, ()),
    "all there": (((ONE,),), 1, ()),
}


def layout_of(shapes, dtypes, frozen):
    weights = []
    for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        meta = torch.empty(shape, device="meta", dtype=dtype)
        parameter = nn.Parameter(meta, requires_grad=i != frozen)
        weights.append(Weight(parameter, f"w{i}", ParameterShape(i + 3, shape), len(shape) > 1))
    return Layout(weights)


def filled(layout, device):
    """Weights of which some are small enough to be subnormal in float16."""
    flat = torch.zeros(layout.nbytes, dtype=torch.uint8, device=device)
    generator = torch.Generator().manual_seed(0)
    for k, view in enumerate(layout.views(flat)):
        values = torch.randn(view.shape, generator=generator) * (1e-6 if k % 3 == 1 else 1)
        view.copy_(values.to(view.dtype))
    return flat


def transformed(arithmetic, layout, source, changes, held, write):
    base = source.clone()
    outs = [base.new_zeros(layout.trained) for _ in changes.perturbations]
    arithmetic.transform(layout, base, changes, held, write, list(enumerate(outs)))
    stored = layout.views(base)
    return [stored, *[layout.copies(flat, stored) for flat in outs]]


def differing(family, dtypes, shapes, device, kinds=tuple(UPDATES)):
    """What differs between the two arithmetics, over kinds of updates."""
    from zo2.engine.fused import FusedArithmetic

    layout = layout_of(shapes, dtypes, frozen=2)
    source = filled(layout, device)
    both = [
        TorchArithmetic(get_family(family), True),
        FusedArithmetic(get_family(family), True, torch.device(device)),
    ]
    found = []
    for name in kinds:
        rounds, held, open = UPDATES[name]
        changes = Changes(rounds, open, PERTURBATIONS)
        for write in {False, held < len(rounds) and not open}:
            results = [transformed(one, layout, source, changes, held, write) for one in both]
            for target, (expected, got) in enumerate(zip(*results, strict=True)):
                for weight, (a, b) in enumerate(zip(expected, got, strict=True)):
                    # torch sums several rank1 directions in a matrix product's own order
                    loose = family == "rank1" and name in ("several", "open", "unequal rounds")
                    same = (a.float() - b.float()).abs().max() < 1e-2 if loose else a.equal(b)
                    if not same:
                        found.append((name, write, target, weight))
    return found


def spans(dtype, device, kinds=("none", "one", "several", "decay", "rounds and open")):
    """Which of `SPANS` the kernels make of each, and what differs then in rank1 directions."""
    from zo2.engine.fused import segments_of

    found = []
    for shapes in SPANS:
        dtypes = [dtype] * len(shapes)
        [segments] = segments_of(layout_of(shapes, dtypes, frozen=2), torch.device(device))
        found.append((segments.span, differing("rank1", dtypes, shapes, device, kinds)))
    return found


def rounded_otherwise(dtype, device):
    """Sums that the two arithmetics round to different numbers: of all numbers of a precision, with
    what makes them fall between, and become zero, subnormal, infinite and no number at all.
    """
    from zo2.engine.fused import FusedArithmetic

    layout = layout_of([(2**16,)], [dtype], frozen=None)
    source = torch.arange(2**16, device=device).to(torch.int16).view(torch.uint8)
    both = [
        TorchArithmetic(get_family("ones"), True),
        FusedArithmetic(get_family("ones"), True, torch.device(device)),
    ]
    found = []
    for c in (1e-9, 3e-8, 1e-5, 0.3, 15.9, 1e4, 3e38, math.inf, math.nan):
        changes = Changes(((Update(((5, c),), 0.0, 99),),))
        (a,), (b,) = (transformed(one, layout, source, changes, 0, True)[0] for one in both)
        differ = (a.view(torch.int16) != b.view(torch.int16)) & ~(a.isnan() & b.isnan())
        found += [(c, index) for index in differ.nonzero()[:3].flatten().tolist()]
    return found


ROUNDS = "all there", "rounds", "unequal rounds", "rounds of decay"  # without open updates


def rows_differ(family, dtype, device, tables, kinds=ROUNDS):
    """Of which tables and perturbations the rows that are looked up, or perturbed a part at a time,
    are not those of a copy.
    """
    from zo2.engine.fused import FusedArithmetic

    layout = layout_of(tables, [torch.float32, *[dtype] * (len(tables) - 1)], frozen=None)
    base = filled(layout, device)
    fused = FusedArithmetic(get_family(family), True, torch.device(device))
    found = []
    for name in kinds:
        rounds, held, _ = UPDATES[name]
        changes = Changes(rounds, (), PERTURBATIONS)
        # torch sums several rank1 directions in a matrix product's own order
        loose = family == "rank1" and name == "unequal rounds"
        whole = fused if loose else TorchArithmetic(get_family(family), True)
        flats = [torch.zeros_like(base) for _ in PERTURBATIONS]
        whole.transform(layout, base, changes, held, False, list(enumerate(flats)))
        copies = [layout.views(flat) for flat in flats]
        for k, weight in enumerate(layout.weights):
            matrix = Matrix(weight, layout, base, changes, held)
            expected = [views[k] for views in copies]
            rows, columns = weight.shape.shape
            for kind in (torch.int64, torch.int32):
                ids = torch.tensor([[0, rows - 1, 1], [rows // 2, 0, rows // 3]], dtype=kind)
                for index, copy in enumerate(expected):
                    got = fused.look_up(matrix, index, ids.to(device))
                    if not got.equal(copy[ids.long().to(device)]):
                        found.append((name, index, weight.shape, kind))
            for start in range(0, rows if columns % 8 == 0 else 0, 256):
                part = slice(start, min(start + 256, rows))
                room = matrix.nbytes(part)
                outs = [torch.full((room,), 7, dtype=torch.uint8, device=device) for _ in expected]
                source = base[matrix.bytes_of(part)]
                fused.perturb_rows(matrix, part, source, list(enumerate(outs)))
                for index, (copy, out) in enumerate(zip(expected, outs, strict=True)):
                    if not matrix.rows_in(out).equal(copy[part]):
                        found.append((name, index, weight.shape, part))
    none = torch.tensor([0, rows, -1], device=device)
    if fused.look_up(matrix, 0, none).isnan().all(1).tolist() != [False, True, True]:
        found.append("rows that there are not")
    if fused.look_up(matrix, 0, none[:0]).numel():
        found.append("no rows")
    return found


TABLES = [(9, 70), (300, 270), (5, 2048), (12, 1500), (520, 32), (300, 24)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1", "ones"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_that_are_looked_up_have_the_bits_of_a_copy_on_a_gpu(family, dtype):
    assert rows_differ(family, dtype, "cuda", [*TABLES, (40000, 2048), (700, 5120)]) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_round_as_torch_does_on_a_gpu(dtype):
    assert rounded_otherwise(dtype, "cuda") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1", "ones"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("few", [0, 1 << 30], ids=["long", "short"])  # programs
def test_kernels_give_the_bits_of_torch_on_a_gpu(family, dtype, few, monkeypatch):
    from zo2.engine import fused

    monkeypatch.setattr(fused, "FEW_PROGRAMS", few)
    assert differing(family, [dtype] * len(LARGE), LARGE, "cuda") == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_of_any_length_on_a_gpu():
    assert spans(torch.float16, "cuda") == [(0, []), (1, []), (2, [])]


# The interpreter's own fma rounds twice.
EXACT_FMA = """
import numpy, torch
from triton.runtime import interpreter
def create_fma(self, x, y, z):
    exact = x.data.astype(numpy.float64) * y.data + z.data
    return interpreter.TensorHandle(exact.astype(numpy.float32), z.dtype)
interpreter.InterpreterBuilder.create_fma = create_fma
"""


def interpreted(code):
    """What ``code`` prints, in words, where Triton's kernels are interpreted on a CPU."""
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 2):
        pytest.skip("the interpreter of this Triton does not know a module's constants")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", EXACT_FMA + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


# the interpreter takes a second for each; the others differ from these in numbers only
DISTINCT = "none", "several", "decay", "open", "rounds", "unequal rounds"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1", "ones"])
def test_kernels_give_the_bits_of_torch_when_interpreted(family):
    """It does not round to bfloat16 as a GPU does."""
    code = f"""
from tests.test_kernels import DISTINCT, SMALL, differing
half, single = torch.float16, torch.float32
from zo2.engine import fused
fused.FEW_PROGRAMS = 0 if "{family}" == "gaussian" else fused.FEW_PROGRAMS
print(differing("{family}", [single, half, single, half, half], SMALL, "cpu", DISTINCT))
"""
    assert interpreted(code) == ["[]"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gaussian", "rademacher", "rank1", "ones"])
def test_rows_that_are_looked_up_have_the_bits_of_a_copy_when_interpreted(family):
    code = f"""
from tests.test_kernels import TABLES, rows_differ
kind, small = torch.float16, [(9, 70), (264, 24), (2, 1500)]
print(rows_differ("{family}", kind, "cpu", TABLES, ["all there"]))
print(rows_differ("{family}", kind, "cpu", small, ["unequal rounds"]))
"""
    assert interpreted(code) == ["[]", "[]"]


@pytest.mark.slow
def test_rows_of_any_length_when_interpreted():
    code = """
from tests.test_kernels import spans
print(*spans(torch.float16, "cpu", ("several", "rounds and open")), sep=";")
"""
    assert " ".join(interpreted(code)) == "(0, []);(1, []);(2, [])"


@pytest.mark.slow
def test_kernels_round_as_torch_does_when_interpreted():
    code = """
from tests.test_kernels import rounded_otherwise
for dtype in (torch.bfloat16, torch.float16):
    print(rounded_otherwise(dtype, "cpu"))
"""
    assert interpreted(code) == ["[]"] * 2


@pytest.mark.slow
def test_noise_on_a_gpu_is_that_of_the_definition_when_interpreted():
    code = """
import contextlib
torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
from zo2.directions import gpu, streams
streams._backend = lambda out: None  # the definition, in torch operations
for start, count in ((0, 5000), (1000, 4100), (9000, 17)):
    for name, kind in (
        ("fill_halves", torch.int32), ("fill_normals", torch.float32), ("fill_signs", torch.float32)
    ):
        outs = [torch.full((count,), 7, dtype=kind) for _ in range(2)]
        for module, out in zip((gpu, streams), outs):
            getattr(module, name)(out, 2**62 + 77, 5, 4, start)
        print(outs[0].equal(outs[1]))
"""
    assert interpreted(code) == ["True"] * 9


POINTERS = {"base": "*{}", "out0": "*{}", "out1": "*{}", "segments": "*i64", "seeds": "*i64",
            "numbers": "*fp32", "factors": "*i8", "lanes": "*i32"}  # fmt: skip
SCALARS = ("width", "perturbations", "terms", "rounds", "held", "first", "second")


def machine_code(kernel, signature, constants, capability, options):
    """A kernel as PTX, compiled by the Triton at hand for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3):
        signature = signature | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    else:
        source = ASTSource(fn=kernel, signature=signature, constants=constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options).asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("updates", [1, 2], ids=["one", "several"])
@pytest.mark.parametrize(
    ("family", "dtype", "span"),
    [(0, "fp16", 0), (1, "bf16", 0), (2, "fp32", 0), (2, "fp16", 2)],
    ids=["gaussian", "signs", "rank1", "rank1-short"],
)
def test_kernels_compile_without_a_gpu(
    family, dtype, span, updates, capability, tmp_path, monkeypatch
):
    """For the Triton at hand; the rows of the matrix have 3.0 to the newest."""
    from zo2.engine import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"SEGMENTS": 16, "PAIRS": 4, "FAMILY": family, "UPDATES": updates,
                 "TERMS": updates, "OPEN": False, "WRITE": True, "STOCHASTIC": True, "OUTS": 2,
                 "SHARED": True, "SPAN": span}  # fmt: skip
    signature = {name: kind.format(dtype) for name, kind in POINTERS.items()}
    signature |= dict.fromkeys(SCALARS, "i32")
    options = {"num_warps": 2, "enable_fp_fusion": False}
    code = machine_code(kernels.transform, signature, constants, capability, options)
    assert ".entry transform" in code
    # one rounding per operation, but for 14 of each pair of normals; two pairs in each of four
    # lanes wherever a seed's are made
    fused = 14 * {1: 2, 2: 5}[updates] * 2 * 4 if family == 0 else 0
    assert code.count("fma.rn.f32") == fused
    assert "bar.sync" not in code  # nothing changes places between threads


@pytest.mark.slow
@pytest.mark.parametrize("terms", [0, 2])
@pytest.mark.parametrize("family", [0, 1, 2], ids=["gaussian", "signs", "rank1"])
def test_looking_up_compiles_without_a_gpu(family, terms, tmp_path, monkeypatch):
    from zo2.engine import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"base": "*fp16", "out": "*fp16", "ids": "*i64", "segments": "*i64",
                 "seeds": "*i64", "numbers": "*fp32", "factors": "*i8", "width": "i32",
                 "perturbations": "i32", "terms": "i32", "rounds": "i32", "held": "i32",
                 "which": "i32", "index": "i32", "parts": "i32"}  # fmt: skip
    constants = {
        "SEGMENTS": 16, "FAMILY": family, "LENGTH": 1024, "TERMS": terms, "STOCHASTIC": True
    }  # fmt: skip
    options = {"num_warps": 4, "enable_fp_fusion": False}
    code = machine_code(kernels.looked_up, signature, constants, 90, options)
    assert ".entry looked_up" in code
    # 14 fused operations a pair of normals, of which each element makes its own, of updates, too
    normals = (2 if terms else 1) if family == 0 else 0
    assert code.count("fma.rn.f32") == normals * 14 * 1024 // (4 * 32)


# -- the cross entropy ------------------------------------------------------------------------


def folds_differ(dtype, device, columns=(3000, 4096, 17, 33), rows=9):
    """Columns of which the kernel leaves something else than torch operations; should be none.

    One part of the logits is all minus infinity, one row is that throughout, and a target is no
    column.
    """
    from zo2.logits import crossentropy, kernel

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(sum(columns), (rows,), generator=generator)
    target[1], target[2] = -100, 3001
    ours, theirs = (crossentropy.unknown(rows, device) for _ in range(2))
    start, found = 0, []
    for width in columns:
        logits = torch.randn((rows, width), generator=generator) * 5
        logits[3] = -torch.inf
        if width == columns[0]:
            logits[:5] = -torch.inf
        logits = logits.to(dtype).to(device)
        for fold, known in ((kernel.fold, ours), (crossentropy.fold, theirs)):
            fold(logits, target.to(device), start, known)
        close = torch.allclose(ours[0], theirs[0], rtol=2e-6, atol=1e-6)
        same = torch.equal(ours[1].nan_to_num(7.5), theirs[1].nan_to_num(7.5))
        found += [] if close and same else [(width, close, same)]
        start += width
    return found


@pytest.mark.slow
def test_logits_are_folded_as_by_torch_when_interpreted():
    code = """
from tests.test_kernels import folds_differ
for dtype in (torch.float32, torch.float16):
    print(folds_differ(dtype, "cpu"))
"""
    assert interpreted(code) == ["[]"] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_are_folded_as_by_torch_on_a_gpu(dtype):
    assert folds_differ(dtype, "cuda") == []


@pytest.mark.slow
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_fold_compiles_without_a_gpu(dtype, even, tmp_path, monkeypatch):
    from zo2.logits import kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"logits": f"*{dtype}", "target": "*i64", "known": "*fp32", "stride": "i32",
                 "start": "i32", "count": "i32"}  # fmt: skip
    constants = {"EVEN": even, "LENGTH": kernel.LENGTH}
    options = {"num_warps": 8, "enable_fp_fusion": False}
    code = machine_code(kernel.columns, signature, constants, 90, options)
    assert ".entry columns" in code
