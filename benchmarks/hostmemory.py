"""Peak host memory of loading a saved model and training it, over the size of its weights.

    python -m benchmarks.hostmemory --shape opt-13b [--folder SCRATCH]

saves a model of that shape with random weights as safetensors (which takes as much host memory, and
disk), loads it in a process of its own and takes three steps of 1 x 32 tokens, on a GPU where there
is one. `benchmarks.cpu` does the same with small models.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

import zo2
from benchmarks import shapes
from zo2.shapes import SHAPES


class PeakMemory:
    """The largest anonymous resident memory of this process, sampled every two milliseconds.

    Pages that only mirror a file on disk are left out: the system takes them back at will.
    """

    def __enter__(self) -> PeakMemory:
        self.base = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel does not report RssAnon")


def save(shape: str, dtype: str, folder: str) -> None:
    """Save a model of a published shape with random weights, in shards of 5 GB."""
    model = shapes.empty(shape, dtype)
    shapes.fill(model)
    model.save_pretrained(folder, max_shard_size="5GB")


def measure(place: str, trained: str) -> dict[str, Any]:
    """Of a saved model, loaded and trained as ``trained`` (a precision) by a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_this_process, args=(place, trained, queue))
    process.start()
    weights, unit, loaded, peak = queue.get()
    process.join()
    return {
        "trained": trained,
        "weights MB": weights / 1e6,
        "largest unit / weights": unit / weights,
        "peak of loading / weights": loaded / weights,
        "peak of loading and three steps / weights": peak / weights,
    }


def _in_this_process(place: str, dtype: str, queue: Any) -> None:
    import transformers

    from zo2.loading import dtype_keyword, load, resolve

    keyword = dtype_keyword(transformers.__version__)
    ids = torch.randint(3, 30000, (1, 32))
    tiny = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=30001,
    )  # fmt: skip
    warm = zo2.prepare(transformers.LlamaForCausalLM(tiny), zo2.ZOConfig(lr=1e-6))
    warm(input_ids=ids, labels=ids), warm(input_ids=ids, labels=ids)
    del warm
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with PeakMemory() as memory:
        if resolve(place).gguf:
            model = load(resolve(place), dtype).model
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                place, **{keyword: getattr(torch, dtype)}
            )
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        loaded = memory.peak
        zo2.prepare(model, zo2.ZOConfig(working_device=device, lr=1e-6))
        for _ in range(3):
            model(input_ids=ids, labels=ids)
    unit = max(unit.nbytes for unit in model._zo.engine.units)
    queue.put((weights, unit, loaded - memory.base, memory.peak - memory.base))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostmemory", description=__doc__)
    parser.add_argument("--shape", default="opt-1.3b", choices=[*SHAPES])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--folder", help="a directory with room for the saved model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        save(options.shape, options.dtype, folder)
        print(json.dumps({"shape": options.shape, **measure(folder, options.dtype)}))


if __name__ == "__main__":
    main()
