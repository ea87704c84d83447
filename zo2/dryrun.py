"""One forward without data: how large activations get, and how much there is to compute.

The model is on torch's meta device, where operations know shapes and do nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from zo2.engine.partition import Unit, partition
from zo2.engine.placement import tiny_ones
from zo2.errors import ModelError, first_line
from zo2.logits import Head

UNITS = "block", "leaf"  # sizes


@dataclass(frozen=True)
class DryRun:
    """What a forward of one micro-batch shows.

    Attributes:
        flops: floating-point operations of its products and its attention.
        moved: bytes that all other operations read and write.
        calls: of torch operations, each of which takes the host's time.
        units: by their size, the partition.
        held: by the size of units, bytes that a pass holds at each place where it waits, the
            beginning and the end among them.
        most: by the size of units, bytes that it holds at most on its way from each to the next.
    """

    flops: float
    moved: int
    calls: int
    units: Mapping[str, list[Unit]]
    held: Mapping[str, Sequence[int]]
    most: Mapping[str, Sequence[int]]

    def activations(self, unit: str, passes: int) -> int:
        """Bytes that so many passes in lockstep need, beside weights.

        Args:
            unit: ``"block"`` or ``"leaf"``: where passes wait.
            passes: all but one wait, with what they hold, before one unit or the next.
        """
        # while one pass is on its way, others are where it comes from, or where it goes
        waits = map(max, pairwise(self.held[unit]))
        ways = zip(self.most[unit], waits, strict=True)
        return max(way + (passes - 1) * wait for way, wait in ways)


def dry_run(model: nn.Module, batch: int, tokens: int) -> DryRun:
    """Run a causal language model's forward and loss.

    Args:
        model: on the meta device.
        batch: examples of a micro-batch.
        tokens: of each example.

    Raises:
        ModelError: its forward does not run without data.
    """
    ids = torch.zeros((batch, tokens), dtype=torch.long, device="meta")
    units = {size: partition(model, size) for size in UNITS}
    held: dict[str, list[int]] = {size: [0] for size in UNITS}
    most: dict[str, list[int]] = {size: [0] for size in UNITS}  # the last one is not through yet
    living, gpu = _Living(), _AsOnGPU()

    def arrive(size: str, bytes_now: int) -> None:
        for ways in most.values():
            ways[-1] = max(ways[-1], living.most)
        living.most = living.bytes
        held[size].append(bytes_now)
        most[size].append(0)

    handles = [
        module.register_forward_pre_hook(lambda *_, size=size: arrive(size, living.bytes))
        for size in UNITS
        for module in _waiting_at(units[size])
    ]
    counter = FlopCounterMode(display=False)
    try:
        head = Head.of(model).returning_stand_ins()
        with counter, living, torch.no_grad(), _no_autocast(), gpu, head:
            model(input_ids=ids, labels=ids, use_cache=False)
    except (RuntimeError, TypeError, ValueError) as error:  # of torch, or the model's own
        raise ModelError(
            "What this model needs cannot be predicted, since its forward does not run without "
            f"data ({first_line(error)}). Within a device_memory_budget it is measured at the "
            "first step."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for size in UNITS:
        arrive(size, 0)  # a pass that is through holds its loss
    flops = counter.get_total_flops() + gpu.flops
    most = {size: ways[:-1] for size, ways in most.items()}
    return DryRun(flops, living.moved + gpu.moved, living.calls, units, held, most)


def _waiting_at(units: Sequence[Unit]) -> Iterator[nn.Module]:
    """The modules before which passes wait."""
    tiny = tiny_ones(units)
    return (module for unit in units if unit not in tiny for module in unit.modules)


class _Living(TorchDispatchMode):
    """Counts operations, bytes that they move, and those of tensors that live, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.moved = 0
        self.bytes: int = 0
        self.most: int = 0
        self._users: dict[int, int] = {}  # tensors that use a storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # "does the mask keep everything?", as for a batch without padding
        self.calls += 1
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        known = {self._key(tensor) for tensor in given}
        result = func(*args, **(kwargs or {}))
        returned = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        made = [tensor for tensor in returned if self._key(tensor) not in known]
        self.moved += _moved(func, given, returned if func._schema.is_mutable else made)
        for tensor in returned:
            self._add(tensor, self._key(tensor) in known)
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def _add(self, tensor: torch.Tensor, is_view: bool) -> None:
        key, nbytes = self._key(tensor), tensor.untyped_storage().nbytes()
        if is_view and key not in self._users:  # of something that was there before
            return
        if key not in self._users:
            self._users[key] = 0
            self.bytes += nbytes
            self.most = max(self.most, self.bytes)
        self._users[key] += 1
        weakref.finalize(tensor, self._drop, key, nbytes)

    def _drop(self, key: int, nbytes: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.bytes -= nbytes


def _moved(func: Any, given: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> int:
    """Bytes that an operation reads and writes, if it is not counted by what it computes."""
    packet, out = func._overloadpacket, sum(map(_nbytes, written))
    if packet in flop_registry or packet in _EMPTY:
        return 0
    if packet in _LOOKING_UP:
        return 2 * out
    return out + sum(map(_nbytes, given)) if out else 0  # or it is a view


def _nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements, of what is expanded only those that are there."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


_EMPTY = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}
_LOOKING_UP = {
    torch.ops.aten.embedding,
    torch.ops.aten.gather,
    torch.ops.aten.index,
    torch.ops.aten.index_select,
}


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Older releases of torch know no autocast for the meta device, not even a disabled one."""
    original = torch.autocast
    torch.autocast = lambda *args, **kwargs: nullcontext()  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = original  # type: ignore[misc]


class _AsOnGPU(TorchFunctionMode):
    """What a GPU's kernels do otherwise than torch's operations, and what depends on data.

    Attention without its matrix of scores, a softmax that is asked for float32 without its operand
    in float32, and products of experts' weights in any precision. Tokens go to experts evenly.

    Attributes:
        flops: of attention, where it is causal of the half that is computed, and of experts.
        moved: bytes that softmax reads and writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.moved = 0.0, 0
        self._classes = 1  # of the last one-hot vectors: which expert a token goes to

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
            query, key, value = given["query"], given["key"], given["value"]
            products = 2 * query.numel() * key.shape[-2] * (1 + value.shape[-1] / key.shape[-1])
            self.flops += products / 2 if kwargs.get("is_causal") else products
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        if func is F.softmax and kwargs.get("dtype") is torch.float32:
            scores = args[0] if args else kwargs["input"]
            result = torch.empty_like(scores, dtype=torch.float32)
            self.moved += _nbytes(scores) + _nbytes(result)
            return result
        if func in _GROUPED and args[0].ndim == 2 and args[1].ndim == 3:
            rows, weight = args[:2]
            self.flops += 2 * rows.numel() * weight.shape[-1]
            return rows.new_empty((len(rows), weight.shape[-1]))
        if func is F.one_hot:
            self._classes = args[1] if len(args) > 1 else kwargs.get("num_classes", 1)
        if func in (torch.where, torch.nonzero, torch.Tensor.nonzero) and len(args) == 1:
            marked = self._marked(args[0])
            return marked.unbind(1) if func is torch.where else marked
        return func(*args, **kwargs)

    def _marked(self, mask: torch.Tensor) -> torch.Tensor:
        """The places of what is not zero, int64 (places, dimensions): in a part of one-hot vectors,
        which are whole numbers, an even share; elsewhere, such as of experts with any token, all.
        """
        share = 1 if mask.dtype == torch.bool else self._classes
        return mask.new_empty((-(-mask.numel() // share), mask.ndim), dtype=torch.int64)


_GROUPED = [
    function
    for space in (F, torch)
    for name in ("grouped_mm", "_grouped_mm")
    if (function := getattr(space, name, None)) is not None
]
