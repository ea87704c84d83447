"""One zeroth-order step of a model of a given shape on a GPU: seconds and device memory.

    python -m benchmarks.step --shape opt-13b --budget 6GB
    python -m benchmarks.step --shape opt-13b --resident
    python -m benchmarks.step --link
    python -m benchmarks.step --reads

prints one JSON object. A process measures one configuration, so that device memory is that of
this configuration alone: all that the GPU had in use at the end, less what it had before the
process began, CUDA context included. torch's cache of freed blocks counts, since it never shrinks
by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import zo2
from benchmarks import mezo, shapes, sharing
from zo2.assembly import host_bound
from zo2.config.base import parse_bytes
from zo2.directions.gpu import available
from zo2.engine import zerocopy
from zo2.engine.deferral import MOST
from zo2.engine.lanes import CudaLanes, Way
from zo2.engine.partition import partition
from zo2.engine.store import PageLock
from zo2.shapes import SHAPES

# steps before those that count, at least: by then it is settled how often weights go home
WARM = 2 * MOST
MOST_WARM = 100  # and at most, for what may be settled later or never


def kinds_of_launches() -> int:
    """How many kernels this process has compiled for the transform of weights, or looked up."""
    if not available():
        return 0
    from zo2.engine.fused import TRANSFORM

    return TRANSFORM.count


def used_before() -> int:
    """Bytes of the first GPU that are in use, asked before this process has a CUDA context."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * 2**20


def seconds(
    run: Any,
    steps: int,
    begin: Callable[[], None] = lambda: None,
    changes: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Seconds from one step's loss to the next one's, as a training loop sees them.

    The device is not made to finish in between: what is copied beside the next step counts there.
    ``begin`` is called when the first of the steps that count begins: kernels are compiled no more,
    and no more changes are to come.
    """
    kinds = [kinds_of_launches()]
    while len(kinds) <= WARM or (
        len(kinds) <= MOST_WARM and (kinds[-1] > kinds[-1 - MOST] or changes())
    ):
        run()
        kinds.append(kinds_of_launches())
    begin()
    times, start = [], time.perf_counter()
    for _ in range(steps):
        run()
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def link() -> dict[str, float]:
    """Bytes per second between page-locked memory and the GPU: up, down, each of both."""
    size, times = 1 << 29, 8
    locks = [PageLock(size) for _ in range(2)]
    there = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]

    def rate(*directions: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            for way in directions:
                pair = (there[0], locks[0].buffer) if way == 0 else (locks[1].buffer, there[1])
                with torch.cuda.stream(streams[way]):
                    pair[0].copy_(pair[1], non_blocking=True)
        torch.cuda.synchronize()
        return size * times / (time.perf_counter() - start)

    rate(0, 1)
    return {"up": rate(0), "down": rate(1), "each of both": rate(0, 1)}


def reads() -> dict[str, float]:
    """Seconds until a number is read off the GPU while 600 MB are on their way home before it.

    These were queued on one stream, or as the engine does; it is read as usual, or as losses are.
    """
    number = torch.ones(1, device="cuda")
    locks = [PageLock(100_000_000) for _ in range(6)]
    there = torch.empty(100_000_000, dtype=torch.uint8, device="cuda")
    home = torch.cuda.Stream()

    def on_one_stream() -> None:
        with torch.cuda.stream(home):
            for lock in locks:
                lock.buffer.copy_(there, non_blocking=True)

    def in_turn() -> None:
        way = Way(there.device, "home")
        for lock in locks:
            way.copy(lock.buffer, there, ())

    def wait(queue: Callable[[], None], read: Callable[[torch.Tensor], Any]) -> float:
        times = []
        for _ in range(9):
            torch.cuda.synchronize()
            queue()
            start = time.perf_counter()
            read(number)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return {
        "as usual, one stream": wait(on_one_stream, torch.Tensor.tolist),
        "as usual, two in turn": wait(in_turn, torch.Tensor.tolist),
        "losses, one stream": wait(on_one_stream, zerocopy.read),
        "losses, two in turn": wait(in_turn, zerocopy.read),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    before = used_before()
    started = time.perf_counter()
    model = shapes.empty(options.shape, options.dtype, options.layers, options.in_host)
    if options.compile:
        for unit in partition(model, "block"):
            if unit.block is not None:
                for block in unit.modules:
                    block.compile()
    shape = options.batch, options.tokens
    ids = torch.randint(49152, shape, generator=torch.Generator().manual_seed(1))
    micro = [{"input_ids": one, "labels": one} for one in ids.split(options.micro or shape[0])]
    if options.unfused:
        model = model.cuda()
        shapes.fill(model)
        batch = {name: value.cuda() for name, value in micro[0].items()}
        arithmetic = mezo.ARITHMETICS[options.unfused]
        found = seconds(lambda: mezo.step(model, batch, arithmetic, 1e-6, 1e-3), options.steps)
        return {**vars(options), **found, "device": in_use() - before}
    budgets = options.budget.split(",") if options.budget else [None]
    config = zo2.ZOConfig(
        options.method, lr=1e-6, eps=1e-3, weight_decay=0.0, seed=1, direction=options.direction,
        zo2=not options.resident, slots=options.slots, unit=options.unit,
        device_memory_budget=budgets[0], update_window=options.window,
        write_back_every=options.every, cuda_graphs=options.graphs,
    )  # fmt: skip
    with sharing.buffers(options.in_host) if options.in_host else contextlib.nullcontext():
        zo2.prepare(model, config)
    ready = time.perf_counter() - started
    shapes.fill(model)
    first = time.perf_counter()
    losses = [float(model.zo_step(micro))]
    first = time.perf_counter() - first
    by_budget: list[dict[str, Any]] = []
    home, waits = _watch_ways_home(), _watch_reads()

    def undecided() -> bool:
        return model._zo._host is not None and model._zo._host.is_undecided

    for budget in budgets:
        engine = model._zo.engine
        if budget != budgets[0]:
            engine.rebudget(parse_bytes(str(budget)))
            _begin_anew(model._zo)
        by_budget.append(
            seconds(
                lambda: losses.append(float(model.zo_step(micro))),
                options.steps,
                home.clear,
                undecided,
            )
            | {
                "budget": budget,
                "graphs": engine.graph_count,
                "undecided": undecided(),  # whether graphs were still being tried
                "home": sum(home) / options.steps,
                "reading": statistics.median(waits[-options.steps :]),
                "streamed": sum(
                    engine.store.layouts[unit].nbytes
                    for unit in engine.units
                    if engine.store.flats[unit].device.type == "cpu"
                ),
                "device": in_use() - before,
                "reserved": torch.cuda.memory_reserved(),
                "retries": torch.cuda.memory_stats().get("num_alloc_retries"),
                "context": engine._usage.context(),
                "activations": engine._usage.activations,
            }
        )
        print(by_budget[-1], file=sys.stderr, flush=True)
    weights = sum(layout.nbytes for layout in engine.store.layouts.values())
    return {
        **vars(options), "first": first, "ready": ready, "weights": weights, "found": by_budget,
        "losses": losses[:3] + losses[-1:], "host": peak_of_host(),
    }  # fmt: skip


def _begin_anew(state: Any) -> None:
    """Whether passes shall be replayed as graphs is found out as by a training that begins now."""
    if state.config.cuda_graphs is None:
        state.engine.replay_nothing()
    state._host = host_bound(state.config, state.engine, state.engine._arithmetic)


def _watch_ways_home() -> list[int]:
    """From now on, the bytes of each copy home."""
    home: list[int] = []
    copy = CudaLanes.write_back

    def watched(lanes: CudaLanes, to: torch.Tensor, *others: Any) -> Any:
        home.append(to.nbytes)
        return copy(lanes, to, *others)

    CudaLanes.write_back = watched  # type: ignore[assignment,method-assign]
    return home


def _watch_reads() -> list[float]:
    """From now on, the seconds for which each step waits for its losses, once it is queued."""
    seconds: list[float] = []
    read = zerocopy.read

    def watched(numbers: torch.Tensor) -> Any:
        start = time.perf_counter()
        values = read(numbers)
        seconds.append(time.perf_counter() - start)
        return values

    zerocopy.read = watched
    return seconds


def peak_of_host() -> int:
    """Largest resident set of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_use() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--shape", default="opt-1.3b", choices=[*SHAPES])
    parser.add_argument(
        "--layers", type=int, help="fewer than the shape has, for a host that cannot hold all"
    )
    parser.add_argument(
        "--in-host", type=int,
        help="of an OPT shape, the layers that host memory holds; the others share it "
        "(benchmarks.sharing): for a host that cannot hold all",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--micro", type=int, help="examples of a micro-batch")
    parser.add_argument("--method", default="mezo-sgd")
    parser.add_argument("--direction", default="gaussian")
    parser.add_argument("--resident", action="store_true", help="all weights on the GPU")
    parser.add_argument(
        "--unfused", choices=mezo.ARITHMETICS, help="MeZO by torch.normal, resident; which products"
    )
    parser.add_argument(
        "--budget", help="device memory in all, such as 6GB; several, ascending, by commas"
    )
    parser.add_argument("--slots", type=int, help="device buffers")
    parser.add_argument("--unit", choices=["block", "leaf"])
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--every", type=int, help="sweeps from one way home to the next")
    parser.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, help="replay steps as CUDA graphs"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--link", action="store_true", help="only the rates of the link")
    parser.add_argument("--reads", action="store_true", help="only what reading a number takes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parse(sys.argv[1:])
    print(json.dumps(link() if chosen.link else reads() if chosen.reads else measure(chosen)))
