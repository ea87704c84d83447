"""Several GPUs: whether they see each other, and an all-reduce gives the sum, in time."""

from __future__ import annotations

from verify.process import Facts
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Verdict,
    failed,
    passed,
    warned,
)

SLOW = 1e9  # bytes per second between GPUs below which something is wrong


def _devices(facts: Facts, context: Context) -> Verdict:
    count, machine = facts["count"], len(context.machine.gpus)
    if count != machine:
        have = f"torch sees {count}, the driver {machine}"
        return failed("multigpu.devices", have, "the same")
    pairs = count * (count - 1)
    have = f"{count} GPUs, {len(facts['peers'])} of {pairs} pairs read each other's memory"
    return passed(have)


def _all_reduce(facts: Facts, context: Context) -> Verdict:
    where = f"{facts['world']} {'GPUs' if facts['backend'] == 'nccl' else 'CPU processes'}"
    where += f" over {facts['backend']}"
    if facts["error"]:
        have = f"{where}: {facts['error'].splitlines()[-1]}"
        if "without_peers" in facts and not facts["without_peers"]:
            return failed("multigpu.peers", f"{have}; without peer access it works")
        return failed("multigpu.all-reduce", have, "the sum")
    if len(facts["right"]) != facts["world"] or not all(facts["right"]):
        return failed("multigpu.all-reduce", f"{where}: a wrong sum", "the sum")
    rate = facts["bytes"] / facts["seconds"]
    have = f"{where}: {facts['bytes'] / 2**20:.0f} MiB in {facts['seconds'] * 1e3:.1f} ms"
    if facts["backend"] == "nccl" and rate < SLOW:
        return warned("multigpu.slow", have, f"{SLOW / 1e9:.0f} GB/s")
    return passed(have)


def _few(context: Context) -> str:
    count = len(context.machine.gpus)
    return (
        "" if count > 1 else f"{count or 'no'} GPU{'' if count == 1 else 's'}: there are no peers"
    )


GROUP = Group(
    "multigpu",
    "Several GPUs",
    (
        Check(
            "multigpu.devices",
            "GPUs and their peers",
            "GPUs that read each other's memory exchange data without the host.",
            "multigpu",
            _devices,
            "multigpu.devices",
            needs=("torch.import",),
            skip=_few,
        ),
        Check(
            "multigpu.all-reduce",
            "an all-reduce, checked and timed",
            "NCCL can hang or crawl without any error. Without two GPUs, the CPU's are.",
            "multigpu",
            _all_reduce,
            "multigpu.all-reduce",
            needs=("torch.import",),
            limit=120,
        ),
    ),
    (
        Problem(
            "multigpu.devices",
            (),
            "torch sees other GPUs than the driver.",
            "Look at gpu.driver and CUDA_VISIBLE_DEVICES",
        ),
        Problem(
            "multigpu.peers",
            ("NCCL WARN P2P",),
            "GPUs cannot read each other's memory although they say so (often PCIe ACS or an IOMMU "
            "in virtual machines).",
            "export NCCL_P2P_DISABLE=1, or switch ACS off in the BIOS",
        ),
        Problem(
            "multigpu.slow",
            (),
            "An all-reduce between GPUs crawls.",
            "Compare with NCCL_P2P_DISABLE=1, and look at: nvidia-smi topo -m",
        ),
        Problem(
            "multigpu.all-reduce",
            ("ProcessGroupNCCL…Watchdog", "NCCL error"),
            "Processes cannot add up a tensor between them.",
            "Run again with NCCL_DEBUG=INFO; a firewall, /dev/shm (host.shm) or the network "
            "interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME) are usual causes",
        ),
    ),
)
