"""Several GPUs: peer access, and a checked and timed all-reduce (CPU processes without GPUs)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_WORKER = """\
import datetime, json, sys, time
import torch
import torch.distributed as distributed
task = json.loads(sys.argv[1])
rank, world, cuda = task["rank"], task["world"], task["cuda"]
limit = datetime.timedelta(seconds=task["limit"])
device = torch.device("cuda", rank) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)
distributed.init_process_group(
    "nccl" if cuda else "gloo", init_method=task["address"], rank=rank, world_size=world,
    timeout=limit,
)
size = task["elements"]
ones = torch.full((size,), float(rank + 1), device=device)
distributed.all_reduce(ones)
right = bool((ones == world * (world + 1) / 2).all())
if cuda:
    torch.cuda.synchronize()
started = time.perf_counter()
for _ in range(task["times"]):
    distributed.all_reduce(ones)
if cuda:
    torch.cuda.synchronize()
seconds = (time.perf_counter() - started) / task["times"]
distributed.destroy_process_group()
print("answer", json.dumps({"right": right, "seconds": seconds}))
"""


def devices(options: Mapping[str, Any]) -> dict[str, Any]:
    """The GPUs that torch sees, and which pairs can read each other's memory."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    peers = [
        [i, j]
        for i in range(count)
        for j in range(count)
        if i != j and torch.cuda.can_device_access_peer(i, j)
    ]
    return {"count": count, "peers": peers, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


def all_reduce(options: Mapping[str, Any]) -> dict[str, Any]:
    """An all-reduce between GPUs, and if that fails without peer access; else between CPUs."""
    world = options["gpus"] if options["gpus"] > 1 else 2
    cuda = options["gpus"] > 1
    found = _processes(world, cuda, {})
    if cuda and found["error"]:
        found["without_peers"] = _processes(world, cuda, {"NCCL_P2P_DISABLE": "1"})["error"]
    return {**found, "world": world, "backend": "nccl" if cuda else "gloo"}


def _processes(world: int, cuda: bool, extra: Mapping[str, str]) -> dict[str, Any]:
    limit, elements = 40, 2**24 if cuda else 2**18
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **extra}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    task = {
        "world": world,
        "cuda": cuda,
        "limit": limit,
        "elements": elements,
        "times": 5,
        "address": f"tcp://127.0.0.1:{port}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, json.dumps({**task, "rank": rank})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(world)
    ]
    answers, errors = [], []
    for process in processes:
        try:
            out, err = process.communicate(timeout=limit + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            errors.append(f"did not end within {limit + 10} s")
        lines = [line for line in out.splitlines() if line.startswith("answer ")]
        if lines:
            answers.append(json.loads(lines[0].removeprefix("answer ")))
        else:
            errors.append(err.strip()[-600:] or f"exit code {process.returncode}")
    return {
        "error": errors[0] if errors else None,
        "right": [answer["right"] for answer in answers],
        "seconds": max((answer["seconds"] for answer in answers), default=None),
        "bytes": elements * 4,
    }


PROBES = {"multigpu.devices": devices, "multigpu.all-reduce": all_reduce}
