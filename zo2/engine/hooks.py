"""Hooks on units' modules: a pass pauses where it enters a unit, whose weights go where it leaves.

Nothing else about the model is changed, so its forward runs as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

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
        at_once: divided blocks that they go through without a stop within.
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
        idle: hooks that do nothing where a block's units are bound, since passes go through it at
            once.
    """

    def __init__(self) -> None:
        self.sweeping: Sweeping | None = None
        self.returning: set[Unit] = set()
        self.idle: frozenset[Callable[..., Any]] = frozenset()
        self._handles: list[Any] = []
        self._last: dict[nn.Module, int] = {}  # which of a module's hooks hides its weights

    def put_on(self, units: Sequence[Unit], divided: Calls, store: Store) -> None:
        """Hook the modules of these units, and divided blocks, instead of those before."""
        self.remove()
        self._units, self._divided, self._store = units, divided, store
        self.returning = set()
        self.add()

    def add(self) -> None:
        """Hook the modules that were hooked before."""
        hooks: list[Callable[..., Any]] = []
        for unit in self._units:
            entering, leaving = self._entering(unit), self._leaving(unit)
            hooks += entering, leaving
            for module in unit.modules:  # others' hooks on it find its weights
                after = module.register_forward_hook(leaving)
                self._last[module] = after.id
                before = module.register_forward_pre_hook(entering, prepend=True)
                self._handles += before, after
        for module in self._divided:
            before = module.register_forward_pre_hook(self._entering_at_once, prepend=True)
            self._handles.append(before)
        self.idle = frozenset(hooks)

    def remove(self) -> None:
        """Leave the modules as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._last = [], {}

    def _entering(self, unit: Unit) -> Callable[..., None]:
        @never_compiled
        def hook(module: nn.Module, args: Any) -> None:
            now = self.sweeping
            one = now.lockstep.current if now else None
            if now is None or one is None or (unit in one.bound and unit in now.at_once.units):
                return
            if module not in unit.modules:  # a copy of one, which has copies of its hooks
                return
            if unit not in one.inside:
                hooks, last = module._forward_hooks, self._last[module]
                if next(reversed(hooks)) != last:
                    hooks.move_to_end(last)  # type: ignore[attr-defined]
                if now.recorder is not None:
                    now.recorder.entered(unit)
                if unit not in one.bound:
                    now.before_pause()
                    one.pause(unit)
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
            one.pause(first)

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
