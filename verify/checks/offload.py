"""The offloading path: whether streaming gives the resident model's bits, at the link's speed."""

from __future__ import annotations

from verify.process import Facts
from verify.result import Check, Context, Group, Problem, Verdict, failed, passed, warned

# bytes per second of a lane of each PCIe generation, after line coding
LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
SHARE = 0.5  # of the link that copies should reach at least; a good one gives 0.8 to 0.9
SLACK = 64 * 2**20  # of activations and of the allocator's rounding


def _pin(facts: Facts, context: Context) -> Verdict:
    have = f"{facts['bytes'] / 2**20:.0f} MiB page-locked"
    if not (facts["torch"] and facts["engine"]):
        return failed("offload.pin", f"torch: {facts['torch']}, zo2: {facts['engine']}", "both")
    return passed(have)


def _rate(facts: Facts, context: Context) -> Verdict:
    have = (
        f"{facts['up'] / 1e9:.1f} GB/s to the device, {facts['down'] / 1e9:.1f} back, "
        f"{facts['each_of_both'] / 1e9:.1f} each way at once"
    )
    gpus = context.machine.facts.get("gpus") or []
    links = [(g["link_generation_max"], g["link_width"]) for g in gpus[:1]]
    link = next(((g, w) for g, w in links if g in LANE and w), None)
    if link is None:
        return passed(f"{have}; the link is unknown")
    should = LANE[link[0]] * link[1]
    need = f"PCIe {link[0]} x{link[1]}: {should / 1e9:.0f} GB/s"
    slowest = min(facts["up"], facts["down"])
    return (passed if slowest >= SHARE * should else _slow)(have, need)


def _slow(have: str, need: str) -> Verdict:
    return warned("offload.slow", have, need)


def _parity(facts: Facts, context: Context) -> Verdict:
    where = f"on {facts['device']}"
    for name, one in facts["runs"].items():
        if not one["losses"] or one["different"]:
            what = ", ".join(one["different"][:3]) or "losses"
            return failed("offload.parity", f"{name} {where}: {what} differ", "the same bits")
    return passed(f"{len(facts['runs'])} streamed runs {where} have the resident runs' bits")


def _order(facts: Facts, context: Context) -> Verdict:
    wrong = {slots: names for slots, names in facts["different"].items() if names}
    if wrong:
        slots, names = next(iter(wrong.items()))
        return failed("offload.order", f"{slots} buffers: {names[0]} differs", "the same bits")
    return passed("the same bits with the device held up at random")


def _memory(facts: Facts, context: Context) -> Verdict:
    mib = {name: value / 2**20 for name, value in facts.items()}
    have = f"peak {mib['peak']:.0f} MiB of {mib['weights']:.0f} MiB weights, {mib['left']:.0f} left"
    need = f"about {mib['predicted']:.0f} MiB, and none left"
    if facts["left"] > 0:
        return failed("offload.leak", have, need)
    if facts["peak"] > 1.1 * facts["predicted"] + SLACK:
        return failed("offload.memory", have, need)
    return passed(have, need)


def _no_gpu(context: Context) -> str:
    if context.machine.gpus:
        return ""
    return "there is no GPU: page-locked memory and copies are matters between host and GPU"


_NEEDS = ("torch.import", "transformers.import", "zo2.import", "gpu.kernel")

GROUP = Group(
    "offload",
    "Offloading path",
    (
        Check(
            "offload.pin",
            "page-locked memory",
            "Only from there can copies run while the GPU computes.",
            "engine",
            _pin,
            "offload.pin",
            needs=_NEEDS,
            skip=_no_gpu,
        ),
        Check(
            "offload.rate",
            "rate of copies",
            "Streaming is as fast as the link between host and GPU.",
            "engine",
            _rate,
            "offload.pin",
            needs=(*_NEEDS, "offload.pin"),
            skip=_no_gpu,
        ),
        Check(
            "offload.parity",
            "streamed against resident steps",
            "Streaming must not change a single bit. Without a GPU the buffers are the CPU's.",
            "engine",
            _parity,
            "training.step",
            needs=_NEEDS,
        ),
        Check(
            "offload.order",
            "order of copies and kernels under stress",
            "A copy that overtakes a kernel gives wrong weights, rarely and silently.",
            "engine",
            _order,
            "training.step",
            needs=(*_NEEDS, "offload.pin"),
            limit=120,
            skip=_no_gpu,
        ),
        Check(
            "offload.memory",
            "peak device memory, and what is left afterwards",
            "The point of streaming is that only a few buffers are on the device.",
            "engine",
            _memory,
            "training.step",
            needs=(*_NEEDS, "offload.pin"),
            skip=_no_gpu,
        ),
    ),
    (
        Problem(
            "offload.pin",
            (
                "Need to provide pin_memory allocator to use pin memory.",
                "pin_memory=True requires a CUDA or other accelerator backend",
            ),
            "Host memory cannot be page-locked: there is no working GPU driver, too little memory "
            "is free, or WSL's own limit is reached.",
            "Mend what gpu.* says, free host memory; under WSL raise memory= in .wslconfig",
        ),
        Problem(
            "offload.slow",
            (),
            "Copies between host and GPU reach less than half of what the link should give.",
            "Look at gpu.link; bind the process to the GPU's NUMA node (numactl), and stop other "
            "users of the link",
        ),
        Problem(
            "offload.parity",
            (),
            "Streamed steps differ from resident ones.",
            "Report it with: python -m verify --only offload --json report.json",
        ),
        Problem(
            "offload.order",
            (),
            "Copies and kernels run in a wrong order on this device.",
            "Use ZOConfig(overlap=False), and report it with the output of --json",
        ),
        Problem(
            "offload.memory",
            (),
            "A streamed step takes much more device memory than its buffers.",
            "Report it with: python -m verify --only offload --json report.json",
        ),
        Problem(
            "offload.leak",
            (),
            "Device memory stays in use after the model has gone.",
            "Report it with: python -m verify --only offload --json report.json",
        ),
    ),
)
