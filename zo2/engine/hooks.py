"""Hooks on units' modules: a pass pauses where it enters a unit, whose weights go where it leaves.

Nothing else about the model is changed, so its forward runs as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from zo2.engine.atonce import AtOnce, Calls
from zo2.engine.eager import never_compiled
from zo2.engine.lockstep import Lockstep
from zo2.engine.partition import Unit
from zo2.engine.record import Recorder
from zo2.engine.store import Store


@dataclass(frozen=True)
class Sweeping:
    """What hooks go by while passes go through the model.

    Attributes:
        lockstep: the passes.
        at_once: divided blocks that they go through without a stop within; hooks within these are
            left out.
        before_pause: called when a pass is about to pause: the weights of the last unit go.
        recorder: watches, where there is one.
    """

    lockstep: Lockstep
    at_once: AtOnce
    before_pause: Callable[[], None]
    recorder: Recorder | None


class Hooks:
    """The hooks on one model.

    Attributes:
        sweeping: set during a sweep; without it the hooks do nothing.
        returning: units that return views of their weights, as far as was recorded.
        outside: units that were entered otherwise than through their block, as far as was recorded.
    """

    def __init__(self) -> None:
        self.sweeping: Sweeping | None = None
        self.returning: set[Unit] = set()
        self.outside: set[Unit] = set()
        self._units: Sequence[Unit] = ()
        self._divided: Calls = {}
        self._of_units: dict[Unit, list[RemovableHandle]] = {}
        self._of_blocks: list[RemovableHandle] = []
        self._last: dict[nn.Module, int] = {}  # which of a module's hooks hides its weights
        self._left_out: AbstractSet[Unit] = frozenset()

    def put_on(self, units: Sequence[Unit], divided: Calls, store: Store) -> None:
        """Hook the modules of these units, and divided blocks, instead of those before."""
        self.remove()
        self._units, self._divided, self._store = units, divided, store
        self.returning, self.outside = set(), set()
        self.add()

    def add(self) -> None:
        """Hook the modules that were hooked before."""
        for unit in self._units:
            self._hook(unit)
        self._of_blocks = [
            module.register_forward_pre_hook(self._entering_at_once, prepend=True)
            for module in self._divided
        ]

    def remove(self) -> None:
        """Leave the modules as they were."""
        for handle in chain(self._of_blocks, *self._of_units.values()):
            handle.remove()
        self._of_units.clear()
        self._last.clear()  # it would keep modules that are the model's no more
        self._left_out = frozenset()

    def leave_out(self, units: AbstractSet[Unit]) -> None:
        """Take the hooks off units that passes do not stop at until further notice: to call them
        takes time. Others are hooked again.
        """
        if units == self._left_out:
            return
        for unit in units - self._left_out:
            for handle in self._of_units.pop(unit):
                handle.remove()
        for unit in self._left_out - units:
            self._hook(unit)
        self._left_out = units

    def _hook(self, unit: Unit) -> None:
        handles: list[RemovableHandle] = []
        entering, leaving = self._entering(unit), self._leaving(unit)
        for module in unit.modules:  # others' hooks on it find its weights
            after = module.register_forward_hook(leaving)
            self._last[module] = after.id
            handles += after, module.register_forward_pre_hook(entering, prepend=True)
        self._of_units[unit] = handles

    def _entering(self, unit: Unit) -> Callable[..., None]:
        @never_compiled
        def hook(module: nn.Module, args: Any) -> None:
            now = self.sweeping
            one = now.lockstep.current if now else None
            if now is None or one is None or module not in unit.modules:
                return  # or it is a copy of one, which has copies of its hooks
            if unit not in one.inside:
                hooks, last = module._forward_hooks, self._last[module]
                if next(reversed(hooks)) != last:
                    hooks.move_to_end(last)  # type: ignore[attr-defined]
                if now.recorder is not None and not now.recorder.entered(unit):
                    self.outside.add(unit)
                if unit not in one.bound:
                    now.before_pause()
                    one.pause(unit, module)
            one.inside.append(unit)

        return hook

    @never_compiled
    def _entering_at_once(self, module: nn.Module, args: Any) -> None:
        """Called before a divided block: passes wait here for what they will enter first."""
        now = self.sweeping
        one = now.lockstep.current if now else None
        if now is None or one is None:
            return
        first = now.at_once.first.get(module)
        if first is not None and first not in one.bound:
            now.before_pause()
            one.pause(first, module)

    def _leaving(self, unit: Unit) -> Callable[..., Any]:
        @never_compiled
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            now = self.sweeping
            one = now.lockstep.current if now else None
            if now is None or one is None or unit not in one.inside or module not in unit.modules:
                return None
            one.inside.remove(unit)
            if unit in one.inside:
                return None
            one.bound.discard(unit)
            if now.recorder is not None and _shares_storage(unit, output):
                self.returning.add(unit)
            self._store.hide(unit)
            if unit in self.returning:
                return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, output)
            return None

        return hook


def _shares_storage(unit: Unit, output: Any) -> bool:
    """Whether a unit returns a view of a weight (a slice of learned positions, say), which must be
    copied: the buffer under it will hold something else before it is used.
    """
    with torch._C.DisableTorchFunction():  # the recorder need not see this
        returned = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves(output)
            if isinstance(leaf, torch.Tensor)
        }
        weights = {w.parameter.untyped_storage().data_ptr() for w in unit.weights}
        return not weights.isdisjoint(returned)
