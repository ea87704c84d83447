"""The host: memory, shared memory, disk, limits, C compiler."""

from __future__ import annotations

from dataclasses import dataclass

from verify.process import Facts
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Tier,
    Verdict,
    failed,
    passed,
    skipped,
    warned,
)

GIB = 2**30
SHM_FOR_NCCL = 1 * GIB  # several GPUs exchange through it
DISK = 1 * GIB
FILES = 1024
_BYTES = 2  # of a weight in half precision
_SLOTS = 4  # device buffers: three that are streamed through, one for perturbed weights
_CONTEXT = 1.5e9  # what CUDA, its libraries and activations take on the device, at ease
_LEAST_CONTEXT = 0.65e9  # and under a budget, activations apart
_PAGE, _ENTRY = 4096, 8  # bytes of a page that is page-locked, and of what the GPU notes of it
_TOKENS, _PER_TOKEN = 2048, 40  # bytes of activations for each token and unit of width
_VOCABULARY = 50_000


def _shared_memory(facts: Facts, context: Context) -> Verdict:
    if not facts["exists"]:
        return skipped("this system has no /dev/shm")
    have = f"{facts['free'] / GIB:.2f} of {facts['total'] / GIB:.2f} GiB free"
    if facts["error"]:
        return failed("host.shm", f"{have}; writing 8 MiB: {facts['error']}", "8 MiB at least")
    if len(context.machine.gpus) > 1 and facts["total"] < SHM_FOR_NCCL:
        return warned("host.shm", have, f"{SHM_FOR_NCCL / GIB:.0f} GiB for several GPUs")
    return passed(have)


def _memory(facts: Facts, context: Context) -> Verdict:
    limit = facts["limit"]
    have = f"{limit / 1e9:.1f} GB, {facts['available'] / 1e9:.1f} GB available"
    if facts["model"] is None:
        return passed(have)
    if facts["parameters"] is None:
        return skipped(
            f"how large {facts['model']} is cannot be told: it is neither on this disk nor has its "
            "name a size; give --for-model a number of billions of parameters"
        )
    needs = needs_of(facts["parameters"])
    host = needs.host
    name = facts["model"]
    billions = f"{facts['parameters'] / 1e9:.3g} billion parameters"
    need = f"{name} ({billions}): {host / 1e9:.1f} GB in half precision, {2 * host / 1e9:.1f} GB "
    need += "in float32"
    values = {"needed": f"{host / 1e9:.0f}", "largest": f"{limit / 1.1 / _BYTES / 1e9:.2g}"}
    if host > limit:
        return failed("host.memory", have, need, **values)
    if host > facts["available"]:
        return warned("host.memory", f"{have}: other programs use the rest", need, **values)
    for gpu in context.machine.gpus:
        if needs.streamed > gpu.memory:
            decide = failed if needs.least > gpu.memory else warned
            return decide(
                "host.device-memory", f"{gpu.name} with {gpu.memory / 1e9:.1f} GB",
                f"{name}: about {needs.least / 1e9:.1f} GB at least, {needs.streamed / 1e9:.1f} GB "
                "without a budget", model="MODEL" if _is_number(name) else name,
                budget=f"{0.95 * gpu.memory / 1e9:.1f}",
            )  # fmt: skip
    if context.machine.gpus:
        smallest = min(gpu.memory for gpu in context.machine.gpus)
        resident = facts["parameters"] * _BYTES + _CONTEXT < 0.9 * smallest
        have += f"; about {needs.streamed / 1e9:.1f} GB on the GPU when streamed" + (
            ", and all of it would fit there (zo2=False)" if resident else ""
        )
    precision = "in float32 too" if 2 * host <= facts["available"] else "in half precision only"
    return passed(f"{have}; {need}. It fits, {precision}", need)


@dataclass(frozen=True)
class Needs:
    """Bytes that streaming a model in half precision takes, about.

    Attributes:
        host: of host memory.
        streamed: of the device's, block by block and without a budget.
        least: of the device's, under the smallest budget that works.
    """

    host: float
    streamed: float
    least: float


def needs_of(parameters: float) -> Needs:
    """What a model of so many parameters needs.

    Shapes are taken to be like OPT's and GPT-3's: width 128 times depth, 12 width^2 weights in a
    block, a third of them in its largest layer; steps to be of 1 x 2048 tokens.
    """
    depth = (parameters / (12 * 128**2)) ** (1 / 3)
    width = 128 * depth
    block, embedding = 12 * width**2 * _BYTES, _VOCABULARY * width * _BYTES
    layer = block / 3
    largest = max(layer, embedding)
    # two buffers for layers, and the embedding beside them or streamed as well; a perturbed copy
    moved = min(2 * layer + embedding, 2 * largest) + largest
    pages = parameters * _BYTES / _PAGE * _ENTRY
    return Needs(
        host=1.1 * parameters * _BYTES,
        streamed=_SLOTS * block + 2 * embedding + _CONTEXT,
        least=moved + pages + _TOKENS * width * _PER_TOKEN + _LEAST_CONTEXT,
    )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _disk(facts: Facts, context: Context) -> Verdict:
    have = (
        f"{facts['temporary'] / GIB:.1f} GiB free for temporary files, "
        f"{facts['cache'] / GIB:.1f} GiB for models"
    )
    if min(facts["temporary"], facts["cache"]) < DISK:
        return warned("host.disk", have, f"{DISK / GIB:.0f} GiB each")
    return passed(have)


def _limits(facts: Facts, context: Context) -> Verdict:
    shown = {name: "unlimited" if value < 0 else f"{value}" for name, value in facts.items()}
    have = ", ".join(f"{name} {value}" for name, value in shown.items())
    if 0 <= facts.get("files", -1) < FILES:
        return warned("host.limits", have, f"files {FILES}", limit=f"-n {FILES}")
    if facts.get("address", -1) >= 0:
        return warned("host.limits", have, "address unlimited", limit="-v unlimited")
    return passed(have)


def _compiler(facts: Facts, context: Context) -> Verdict:
    wrong = failed if context.machine.gpus else warned  # only on a GPU does Triton compile
    if facts["compiler"] is None:
        have = f"CC={facts['asked']}, which is not there" if facts["asked"] else "none on the path"
        return wrong("host.compiler", have, "gcc or clang")
    if not facts["header"]:
        return wrong("host.python-headers", f"{facts['compiler']}, no Python.h", "Python.h")
    if facts["error"] or facts["answer"] != 42:
        return wrong("host.compiler", f"{facts['compiler']}: {facts['error']}", "a working one")
    return passed(f"{facts['compiler']} builds extensions")


GROUP = Group(
    "host",
    "Host",
    (
        Check(
            "host.shm",
            "shared memory",
            "Data loaders with workers, and NCCL, exchange data through /dev/shm.",
            "host",
            _shared_memory,
            "host.shm",
            Tier.QUICK,
        ),
        Check(
            "host.memory",
            "host memory, against the model of --for-model",
            "Streamed weights rest in host memory.",
            "host",
            _memory,
            "host.memory",
            Tier.QUICK,
        ),
        Check(
            "host.disk",
            "disk space",
            "Downloads and checkpoints that do not fit break off half-way.",
            "host",
            _disk,
            "host.disk",
            Tier.QUICK,
        ),
        Check(
            "host.limits",
            "limits of a process",
            "Large models are many files and much locked memory.",
            "host",
            _limits,
            "host.limits",
            Tier.QUICK,
        ),
        Check(
            "host.compiler",
            "a C compiler with Python's headers",
            "Triton builds a launcher with it when the first kernel runs on a GPU.",
            "host",
            _compiler,
            "host.compiler",
        ),
    ),
    (
        Problem(
            "host.shm",
            (
                "This might be caused by insufficient shared memory (shm).",
                "Error while creating shared memory segment",
            ),
            "/dev/shm is full or too small; Docker gives a container 64 MB.",
            "docker run --shm-size=8g (or --ipc=host); on a host: "
            "mount -o remount,size=8G /dev/shm",
        ),
        Problem(
            "host.memory",
            ("The driver refused to page-lock",),
            "There is less host memory than the model's weights need.",
            "Use a host or container with {needed} GB, or a model of up to {largest} billion "
            "parameters",
        ),
        Problem(
            "host.device-memory",
            ("CUDA out of memory",),
            "The GPU has less memory than streaming the model takes without a budget, or with any.",
            "Ask zo2 plan --model {model} --budget {budget}GB whether it fits, and set "
            "device_memory_budget; or take a smaller model",
        ),
        Problem(
            "host.disk",
            ("No space left on device",),
            "The disk is nearly full.",
            "Free space, or set TMPDIR and HF_HOME to a disk that has some",
        ),
        Problem(
            "host.limits",
            ("Too many open files",),
            "A limit of this shell or container is too low.",
            "ulimit {limit} (files in a container: docker run --ulimit nofile=65536)",
        ),
        Problem(
            "host.compiler",
            (
                "Failed to find C compiler. Please specify via CC environment variable",
                "RuntimeError: Failed to find C compiler",
            ),
            "Triton finds no working C compiler.",
            "apt-get install gcc libc6-dev (conda install gcc_linux-64), or set CC",
        ),
        Problem(
            "host.python-headers",
            ("fatal error: Python.h: No such file or directory",),
            "Python's C headers are not installed.",
            "apt-get install python3-dev (of this Python's version)",
        ),
    ),
)
