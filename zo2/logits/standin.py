"""What a head returns instead of its logits, until somebody reads them.

A large vocabulary makes the logits, and their float32 copies within the loss, the largest
activations of a forward. In a training pass nothing but the loss reads them. So the head returns a
stand-in, which notes what is done to each of them on the way to the loss and then has the cross
entropy taken of a part at a time. Anything else that is asked of it gets all logits, as the head
would have given them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from zo2.logits import crossentropy
from zo2.logits.projection import Projection

Elementwise = Callable[[torch.Tensor], torch.Tensor]


class Logits:
    """The product of hidden states and the head's weights, not computed yet.

    Args:
        hidden: (..., hidden size), what the head was called with.
        head: makes them logits.
        live: takes a reference to every stand-in that comes of this one.
        functions: what is applied to every logit.
        dtype: precision of the result; by default that of ``hidden``.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        head: Projection,
        live: list[weakref.ref[Logits]],
        functions: tuple[Elementwise, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        self._hidden, self._head = hidden, head
        self._functions = functions
        self._whole: torch.Tensor | None = None
        self.dtype = dtype or hidden.dtype
        self._live = live
        live.append(weakref.ref(self))

    # -- what a tensor of logits would say of itself ------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self._hidden.shape[:-1], self._head.vocabulary))

    @property
    def device(self) -> torch.device:
        return self._hidden.device

    @property
    def ndim(self) -> int:
        return self._hidden.ndim

    def dim(self) -> int:
        return self._hidden.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return len(self._hidden)

    # -- what keeps logits apart --------------------------------------------------------------

    def _rows(self, hidden: torch.Tensor) -> Logits:
        return self._like(hidden, self._functions, self.dtype)

    def _each(self, function: Elementwise, dtype: torch.dtype | None = None) -> Logits:
        return self._like(self._hidden, (*self._functions, function), dtype or self.dtype)

    def _like(
        self, hidden: torch.Tensor, functions: tuple[Elementwise, ...], dtype: torch.dtype
    ) -> Logits:
        return Logits(hidden, self._head, self._live, functions, dtype)

    def float(self) -> Any:
        return self._each(torch.Tensor.float, torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        kind = args[0] if args else kwargs.get("dtype")
        if isinstance(kind, torch.dtype) and len(args) + len(kwargs) == 1:
            if kind is torch.float32:
                return self.float()
            return self._each(lambda rows: rows.to(kind), kind)
        return self.whole().to(*args, **kwargs)

    def tanh(self) -> Logits:
        return self._each(torch.tanh)

    def contiguous(self) -> Logits:
        return self

    def detach(self) -> Logits:
        return self

    def view(self, *shape: Any) -> Any:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if sizes and all(isinstance(s, int) for s in sizes) and sizes[-1] == self.shape[-1]:
            return self._rows(self._hidden.reshape(*sizes[:-1], self._hidden.shape[-1]))
        return self.whole().view(*shape)

    reshape = view

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        spared = parts[:-1] if parts[-1] == slice(None) and len(parts) == self.ndim else parts
        plain = all(isinstance(part, slice) or part is Ellipsis for part in spared)
        reaches_last = len(parts) == self.ndim and parts[-1] != slice(None)
        if plain and not reaches_last and (Ellipsis not in spared or parts[-1] == slice(None)):
            return self._rows(self._hidden[index])
        return self.whole()[index]

    def __mul__(self, other: Any) -> Any:
        return self._with_number(torch.mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._with_number(torch.div, other)

    def _with_number(self, function: Callable[..., torch.Tensor], other: Any) -> Any:
        if isinstance(other, (int, float)):
            return self._each(lambda rows: function(rows, other))
        return function(self.whole(), other)

    # -- the loss, and everything else --------------------------------------------------------

    def whole(self) -> torch.Tensor:
        """All logits, as a tensor."""
        if self._whole is None:
            self._whole = _applied(self._functions, self._head.all(self._hidden))
        return self._whole

    def cross_entropy(
        self, target: torch.Tensor, ignore_index: int, reduction: str
    ) -> torch.Tensor:
        """The cross entropy of (rows, vocabulary) logits, a part of them at a time."""
        if self._whole is not None:
            return F.cross_entropy(
                self._whole, target, ignore_index=ignore_index, reduction=reduction
            )
        # a last conversion to float32 is left to the cross entropy, which reads float16 as it is
        widens = self._functions[-1:] == (torch.Tensor.float,)
        functions = self._functions[:-1] if widens else self._functions
        head = self._head

        def product(columns: slice) -> Callable[[slice], torch.Tensor]:
            part = head.part(columns)
            return lambda rows: _applied(functions, part(self._hidden[rows]))

        itemsize = self._hidden.element_size()
        loss = crossentropy.cross_entropy(
            product, head.vocabulary, head.most, itemsize, target, ignore_index, reduction
        )
        return loss.to(self.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tanh and isinstance(args[0], Logits) and not kwargs:
            return args[0].tanh()
        if func is F.cross_entropy and isinstance(args[0], Logits):
            names = ("input", "target", "weight", "size_average", "ignore_index", "reduce")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            logits, target = given.pop("input"), given.pop("target", None)
            ignored, how = given.pop("ignore_index", -100), given.pop("reduction", "mean")
            smoothed = given.pop("label_smoothing", 0.0)
            usual = all(value is None for value in given.values()) and not smoothed
            usual = usual and how in ("mean", "sum") and len(args) <= len(names)
            fits = logits.ndim == 2 and target.shape == logits.shape[:1]
            if usual and fits and target.dtype == torch.int64 and target.device == logits.device:
                return logits.cross_entropy(target, ignored, how)
        return func(*_real(args), **_real(kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)


def _on_tensor(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self.whole(), name)(*_real(args))


for _name in (
    "add", "radd", "sub", "rsub", "rtruediv", "floordiv", "rfloordiv", "mod", "pow", "rpow", "neg",
    "abs", "matmul", "rmatmul", "eq", "ne", "lt", "le", "gt", "ge", "iadd", "isub", "imul",
    "itruediv", "setitem", "iter", "bool", "float", "int",
):  # fmt: skip
    setattr(Logits, f"__{_name}__", _on_tensor(f"__{_name}__"))
Logits.__hash__ = object.__hash__  # type: ignore[method-assign]


def _applied(functions: Sequence[Elementwise], logits: torch.Tensor) -> torch.Tensor:
    for function in functions:
        logits = function(logits)
    return logits


def _real(value: Any) -> Any:
    """``value`` with tensors in place of stand-ins."""
    if isinstance(value, Logits):
        return value.whole()
    if isinstance(value, dict):
        return {name: _real(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_real(one) for one in value)
    return value
