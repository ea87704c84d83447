"""What a pass leaves on the model's modules stays with the pass.

Some forwards keep things on their modules: the state of a recurrence, a mask or rotary table made
for one length, a replaced ``forward`` or a hook that collects intermediate outputs. Passes take
turns, so one would find there what another has left. Therefore every attribute and hook that a
pass sets is exchanged whenever control moves on: each pass sees what it would see alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Set
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.utils.hooks import RemovableHandle

_ABSENT = object()
_Key = tuple[int, Any]  # identity of a dictionary, and a key within it
Written = dict[_Key, Any]


class ModuleState:
    """Watches what is set on a model's modules; a context manager.

    Args:
        model: the model whose modules are watched.
        keep: leave the modules as the last finished pass left them, as calls one after another
            would; otherwise they end as they began.
    """

    def __init__(self, model: nn.Module, keep: bool) -> None:
        self.watching = False  # whether a pass runs now
        self._model, self._keep = model, keep
        self._modules: set[nn.Module] = set()
        self._before: dict[_Key, tuple[dict[Any, Any], Any]] = {}  # where, and the first value
        self._last: Written = {}  # what the pass that finished last has written

    def __enter__(self) -> ModuleState:
        self._modules = modules_of(self._model)
        self._patched = contextlib.ExitStack()
        for kind in {type(module) for module in self._modules}:
            self._watch(kind)
        add_hook = RemovableHandle.__init__

        def noting_add(handle: RemovableHandle, hooks: Any, *, extra_dict: Any = None) -> None:
            add_hook(handle, hooks, extra_dict=extra_dict)
            extra = extra_dict if isinstance(extra_dict, list) else [extra_dict]
            self._note((hooks, *(one for one in extra if one is not None)), handle.id)

        _replace(self._patched, RemovableHandle, "__init__", noting_add)
        self._handle = register_module_buffer_registration_hook(
            lambda module, name, buffer: self._note_attribute(module, name)
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()
        self._patched.close()
        self.enter(self._last if self._keep else {})

    def _watch(self, kind: type[nn.Module]) -> None:
        """Notice attributes of modules of one class: the model's own classes, not `nn.Module`,
        since to change a class takes the longer the more classes are derived from it.
        """
        set_attribute, delete_attribute = _first(kind, "__setattr__"), _first(kind, "__delattr__")

        def noting_set(module: nn.Module, name: str, value: Any) -> None:
            self._note_attribute(module, name)
            set_attribute(module, name, value)

        def noting_delete(module: nn.Module, name: str) -> None:
            self._note_attribute(module, name)
            delete_attribute(module, name)

        _replace(self._patched, kind, "__setattr__", noting_set)
        _replace(self._patched, kind, "__delattr__", noting_delete)

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

    def _note_attribute(self, module: nn.Module, name: str) -> None:
        if self.watching and module in self._modules:
            places = (module.__dict__, module._buffers, module._parameters, module._modules)
            self._note(places, name)

    def _note(self, places: Iterable[dict[Any, Any]], name: Any) -> None:
        """Before ``name`` is set in one of ``places``."""
        if self.watching:
            for place in places:
                self._before.setdefault((id(place), name), (place, place.get(name, _ABSENT)))


def modules_of(model: nn.Module) -> set[nn.Module]:
    """All modules, as `nn.Module.modules` in a third of its time: a GPU waits for it."""
    found: set[nn.Module] = set()
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is not None and module not in found:
            found.add(module)
            left += module._modules.values()
    return found


_WRAPPER = "_zo_replaces"


def _first(kind: type, name: str) -> Any:
    """What a class's attribute is apart from the replacements made here."""
    found = getattr(kind, name)
    while hasattr(found, _WRAPPER):
        found = getattr(found, _WRAPPER)
    return found


def _replace(stack: contextlib.ExitStack, kind: type, name: str, value: Any) -> None:
    """Set a class's attribute until ``stack`` closes."""
    setattr(value, _WRAPPER, _first(kind, name))
    if name in vars(kind):
        stack.callback(setattr, kind, name, vars(kind)[name])
    else:
        stack.callback(delattr, kind, name)
    setattr(kind, name, value)
