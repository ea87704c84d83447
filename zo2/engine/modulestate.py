"""What a pass leaves on the model's modules stays with the pass.

Some forwards keep things on their modules: the state of a recurrence, a mask or rotary table made
for one length, a replaced ``forward`` or a hook that collects intermediate outputs. Passes take
turns, so one would find there what another has left. Therefore every attribute and hook that a
pass sets is exchanged whenever control moves on: each pass sees what it would see alone.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Set
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
)
from torch.utils.hooks import RemovableHandle

_ABSENT = object()
_Key = tuple[int, Any]  # identity of a dictionary, and a key within it
Written = dict[_Key, Any]


class WatchedModules:
    """Modules of classes whose objects tell the sweeps that run what is set on them; until `close`.

    Classes stay watched between sweeps. Whenever a class is changed, Python forgets what it knows
    of its attributes; and after a thousand times (in Python 3.13) it looks them up slowly for ever.
    Nor are modules looked for in every sweep, for which a GPU would wait, but when any has become a
    part of another.
    """

    def __init__(self) -> None:
        self._kinds: set[type] = set()
        self._modules: WeakSet[nn.Module] = WeakSet()  # torch holds this object by the hook
        self._known = False
        self._handle: RemovableHandle | None = None

    def _registered(self, module: nn.Module, name: str, part: nn.Module | None) -> None:
        self._known = False

    def of(self, model: nn.Module) -> Set[nn.Module]:
        """All modules of ``model``, always the same one; from now on they are watched."""
        if self._handle is None:
            self._handle = register_module_module_registration_hook(self._registered)
        if not self._known:
            modules = modules_of(model)
            self._add({type(module) for module in modules} | {RemovableHandle})
            self._modules, self._known = WeakSet(modules), True
        return self._modules

    def _add(self, kinds: Set[type]) -> None:
        """Watch modules of these classes: the model's own classes, not `nn.Module`, since to change
        a class takes the longer the more classes are derived from it. Hooks are watched, too.
        """
        for kind in kinds - self._kinds:
            if not _watchers[kind]:
                _changes[kind] = _watch(kind)
            _watchers[kind] += 1
        self._kinds |= kinds

    def close(self) -> None:
        """Leave the classes as they were, apart from those that others watch."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._known = None, False
        while self._kinds:
            kind = self._kinds.pop()
            _watchers[kind] -= 1
            if not _watchers[kind]:
                del _watchers[kind]
                _changes.pop(kind).close()


class ModuleState:
    """Watches what is set on a model's modules; a context manager.

    Args:
        model: the model whose modules are watched.
        watched: what watches them.
        keep: leave the modules as the last finished pass left them, as calls one after another
            would; otherwise they end as they began.
    """

    def __init__(self, model: nn.Module, watched: WatchedModules, keep: bool) -> None:
        self.watching = False  # whether a pass runs now
        self._model, self._watched, self._keep = model, watched, keep
        self._modules: Set[nn.Module] = set()
        self._before: dict[_Key, tuple[dict[Any, Any], Any]] = {}  # where, and the first value
        self._last: Written = {}  # what the pass that finished last has written

    def __enter__(self) -> ModuleState:
        self._modules = self._watched.of(self._model)
        self._handle = register_module_buffer_registration_hook(
            lambda module, name, buffer: self.note_attribute(module, name)
        )
        _states.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _states.remove(self)
        self._handle.remove()
        self.enter(self._last if self._keep else {})

    def enter(self, written: Written) -> None:
        """Give the modules what a pass wrote, and for the rest what they began with."""
        for key, (place, before) in self._before.items():
            value = written.get(key, before)
            if value is _ABSENT:
                place.pop(key[1], None)
            else:
                place[key[1]] = value

    def leave(self, done: bool) -> Written:
        """Take away what a pass wrote."""
        written = {key: place.get(key[1], _ABSENT) for key, (place, _) in self._before.items()}
        if done:
            self._last = written
        return written

    def has_set_any(self, places: Set[int]) -> bool:
        """Whether a pass has set anything in dictionaries of these identities."""
        return any(place in places for place, _ in self._before)

    def note_attribute(self, module: nn.Module, name: str) -> None:
        """Before a module's attribute is set or deleted."""
        if self.watching and module in self._modules:
            places = (module.__dict__, module._buffers, module._parameters, module._modules)
            self.note(places, name)

    def note(self, places: Iterable[dict[Any, Any]], name: Any) -> None:
        """Before ``name`` is set in one of ``places``."""
        if self.watching:
            for place in places:
                self._before.setdefault((id(place), name), (place, place.get(name, _ABSENT)))


def modules_of(model: nn.Module) -> set[nn.Module]:
    """All modules, as `nn.Module.modules` in a third of its time: a GPU may wait for it."""
    found: set[nn.Module] = set()
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is not None and module not in found:
            found.add(module)
            left += module._modules.values()
    return found


_states: list[ModuleState] = []  # of the sweeps that run: one within another's pass comes last
_watchers: Counter[type] = Counter()
_changes: dict[type, contextlib.ExitStack] = {}  # what undoes them
_WRAPPER = "_zo_replaces"


def _watch(kind: type) -> contextlib.ExitStack:
    """Let objects of a class tell the sweeps what is set on them, until the result is closed."""
    stack = contextlib.ExitStack()
    if kind is RemovableHandle:
        _replace(stack, kind, "__init__", _noting_hooks)
    else:
        for name in ("__setattr__", "__delattr__"):
            _replace(stack, kind, name, _noting_attributes)
    return stack


def _noting_attributes(change: Any) -> Any:
    def noting(module: nn.Module, name: str, *value: Any) -> None:
        for state in _states:
            state.note_attribute(module, name)
        change(module, name, *value)

    return noting


def _noting_hooks(add: Any) -> Any:
    def noting(handle: RemovableHandle, hooks: Any, *, extra_dict: Any = None) -> None:
        add(handle, hooks, extra_dict=extra_dict)
        extra = extra_dict if isinstance(extra_dict, list) else [extra_dict]
        places = [hooks, *(one for one in extra if one is not None)]
        for state in _states:
            state.note(places, handle.id)

    return noting


def _first(kind: type, name: str) -> Any:
    """What a class's attribute is apart from the replacements made here."""
    found = getattr(kind, name)
    while hasattr(found, _WRAPPER):
        found = getattr(found, _WRAPPER)
    return found


def _replace(
    stack: contextlib.ExitStack, kind: type, name: str, noting: Callable[[Any], Any]
) -> None:
    """Let ``noting`` of a class's function stand in for it until ``stack`` closes, or somebody else
    replaces it.
    """
    first = _first(kind, name)
    value = noting(first)
    setattr(value, _WRAPPER, first)
    before = vars(kind).get(name, _ABSENT)

    def undo() -> None:
        if vars(kind).get(name) is value:
            if before is _ABSENT:
                delattr(kind, name)
            else:
                setattr(kind, name, before)

    stack.callback(undo)
    setattr(kind, name, value)
