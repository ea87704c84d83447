"""What a process takes of a GPU's memory before it holds any weights, stage by stage.

    python -m benchmarks.context

Of the GPU's memory in use, as its driver says, less what was in use before this process began.
"""

from __future__ import annotations

import torch

from benchmarks.step import in_use, used_before
from zo2.engine import driver, streams, threadstacks


def main() -> None:
    before = used_before()
    device = torch.device("cuda", 0)
    last = 0.0

    def stage(what: str) -> None:
        nonlocal last
        torch.cuda.synchronize()
        now = (in_use() - before) / 2**20
        print(f"{what:36} {now:6.0f} MiB {now - last:+6.0f}", flush=True)
        last = now

    torch.cuda.init()
    in_use()  # which makes the context
    stage("context")
    driver.set_stack_limit(device, threadstacks.SMALL)
    stage("small stacks")
    there = torch.empty(1024, 1024, device=device, dtype=torch.float16)
    stage("torch's first 20 MiB for tensors")
    own = [streams.stream(device, f"number {number}") for number in range(4)]
    stage("four streams of our own")
    host = torch.zeros(1024, 1024, dtype=torch.float16).pin_memory()
    for one in own:
        with torch.cuda.stream(one):
            there.copy_(host, non_blocking=True)
    stage("copies on these")
    there.fill_(1)
    stage("torch's first kernel")
    for one in own:
        with torch.cuda.stream(one):
            there.add_(1)
    stage("kernels on these streams")
    torch.mm(there, there)
    stage("a matrix product, 20 MiB for tensors")
    torch.cuda.Stream()
    stage("torch's first stream")


if __name__ == "__main__":
    main()
