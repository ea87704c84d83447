"""The first pass over a model, watched: when units run, and which weights are read elsewhere.

Execution order is recorded, not assumed from the order of modules. A model may also use a
submodule's weights without calling it (Mamba's convolution, an embedding used as a head): such
a weight would not be perturbed at its unit's entry. Every torch function's arguments are looked
at while the pass runs, so these reads are found, and the partition is corrected.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zo2.engine.partition import Corrections, Unit, is_divisible
from zo2.errors import ModelError

# What may be asked of a weight without reading its values.
_FORM = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.stride,
    torch.Tensor.is_contiguous,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_complex,
    torch.Tensor.element_size,
    torch.Tensor.storage_offset,
    torch.Tensor.__len__,
    torch.Tensor.__hash__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
} | {
    getattr(torch.Tensor, name).__get__
    for name in (
        "shape", "dtype", "requires_grad", "is_meta", "is_sparse", "layout", "ndim", "is_leaf",
        "grad", "grad_fn", "is_quantized", "is_mps", "is_xpu", "is_mkldnn", "is_nested", "names",
        "itemsize", "nbytes", "output_nr", "_backward_hooks",
    )
    if hasattr(torch.Tensor, name)
}  # fmt: skip
_PLACE = {
    torch.Tensor.get_device,
    *(getattr(torch.Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu")),
}
_SETS_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


def reads_values(func: Any) -> bool:
    """Whether a torch function looks at its tensors' values, or changes them."""
    return not (tells_form(func) or tells_place(func) or func == _SETS_DATA)


def tells_form(func: Any) -> bool:
    """Whether a torch function tells of its tensors only what is so wherever their values lie."""
    return func in _FORM


def tells_place(func: Any) -> bool:
    """Whether a torch function tells of its tensors only on which device their values lie."""
    return func in _PLACE


_IN_PLACE = re.compile(
    r"__i(add|sub|mul|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift)__|__setitem__"
    r"|(?!requires_grad_$)[a-z].*[^_]_"
)


def writes_values(func: Any) -> bool:
    """Whether a torch function changes its first argument in place, by torch's naming."""
    return _IN_PLACE.fullmatch(getattr(func, "__name__", "")) is not None


class Recorder(TorchFunctionMode):
    """Watches one pass.

    Args:
        model: the model whose forward is recorded.
        units: its present partition.
        known: what earlier recordings found.
        supply: gives a unit's true weights when one is read where it should not be.

    Attributes:
        order: units in the order of their first entries.
        corrections: what the partition has to take into account.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        known: Corrections,
        supply: Callable[[Unit], None],
    ) -> None:
        super().__init__()
        self.order: list[Unit] = []
        self._known, self._supply = known, supply
        self._home = {
            id(weight.parameter): (unit, weight) for unit in units for weight in unit.weights
        }
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._whole: set[str] = set()
        self._divided: set[str] = set()
        self._held: set[str] = set()

    @property
    def corrections(self) -> Corrections:
        # what a whole module holds need not be held: should it be read outside, that will be seen
        below = tuple(f"{name}." for name in self._whole)
        held = (name for name in self._held if not name.startswith(below))
        return Corrections(frozenset(self._whole), frozenset(self._divided), frozenset(held))

    def entered(self, unit: Unit) -> bool:
        """A pass has entered a unit; returns whether it did so within the unit's block."""
        if unit not in self.order:
            self.order.append(unit)
        return any(self._names.get(module) == unit.root for module in self._running)

    def watch_modules(self) -> list[Any]:
        """Keep track of which modules are running; returns handles to remove."""
        mine = threading.get_ident()  # other threads may run other models meanwhile

        def before(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == mine:
                self._running.append(module)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == mine:
                self._running.pop()

        module = nn.modules.module
        return [
            module.register_module_forward_pre_hook(before),
            module.register_module_forward_hook(after, always_call=True),
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and id(args[0]) in self._home and writes_values(func):
            name = self._home[id(args[0])][1].name
            raise ModelError(
                f"The model's forward changes its weight {name} in place ({func.__name__}), so its "
                "passes cannot share it. Turn that off in the model's config, then prepare it."
            )
        if reads_values(func):
            for value in (*args, *kwargs.values()):
                self._look_at(value)
        return func(*args, **kwargs)

    def _look_at(self, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for element in value:
                self._look_at(element)
        elif isinstance(value, nn.Parameter) and id(value) in self._home:
            unit, weight = self._home[id(value)]
            if unit.held or any(module in self._running for module in unit.modules):
                return
            ancestor = self._ancestor(weight.name, unit)
            if ancestor and unit.name.startswith(f"{ancestor}."):
                self._whole.add(ancestor)
            elif ancestor and self._can_divide(unit):
                self._divided.add(unit.name)
            else:
                self._held.add(weight.name)
            self._supply(unit)

    def _can_divide(self, unit: Unit) -> bool:
        return is_divisible(unit.modules[0]) and unit.name not in self._known.whole

    def _ancestor(self, weight: str, unit: Unit) -> str | None:
        """The innermost running module that holds the weight, if it lies within its root."""
        for module in reversed(self._running):
            name = self._names.get(module)
            if name and weight.startswith(f"{name}."):
                inside = name == unit.root or name.startswith(f"{unit.root}.")
                return name if inside else None
        return None
