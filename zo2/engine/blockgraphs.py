"""Passes through streamed blocks as CUDA graphs, for hosts whose Python is slower than the link.

Passes find a block's perturbed weights in the same few buffers in every sweep, so what they queue
there can be captured once and queued again by one call. The model's own forward runs as ever
between blocks, and the kernels within are the same, so results keep their bits.

A graph stands for calls of one block that are alike: arguments of the same shapes, weights at the
same addresses, modules with the same settings. The first such call runs as it is, which shows
whether a graph can stand for it; a later one is captured.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from zo2.engine.atonce import Calls
from zo2.engine.capturing import Capture, CaptureError, Replay
from zo2.engine.eager import never_compiled
from zo2.engine.lockstep import Lockstep
from zo2.engine.modulestate import modules_of
from zo2.engine.partition import Unit
from zo2.engine.threadstate import capture as thread_state

logger = logging.getLogger("zo2")

Forward = Callable[..., Any]

MOST = 1024  # graphs, of some hundred kilobytes of device memory each
MOST_KINDS = 4 * MOST  # of calls that are told apart
# Calls that are alike until one is captured, which takes as long as so many: a graph for a batch of
# a shape that hardly comes again is not worth it.
PATIENCE = 64
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = (tuple, list, dict, set, frozenset)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}


class _UnlikeError(Exception):
    """A graph cannot stand for such a call."""


@dataclass
class _Kind:
    """Calls of one block that are alike but for the addresses of its weights.

    Attributes:
        result: what a call returns, with tensors of no memory in it.
        returned: these tensors.
        calls: how many there have been.
        inputs: where graphs read the arguments' tensors, once there are graphs.
        outputs: where they leave the results'.
        replays: by the addresses of weights.
    """

    result: Any
    returned: list[torch.Tensor]
    calls: int = 1
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    replays: dict[tuple[int, ...], Replay] = field(default_factory=dict)


@dataclass
class _Block:
    """A block as a sweep finds it.

    Attributes:
        module: the block.
        units: what has to be bound, so that passes do not wait within.
        forward: what runs where no graph does.
        tensors: parameters and buffers.
        places: identities of the dictionaries that hold attributes and hooks of its modules.
        settings: attributes of its modules, by value or identity; none if there are hooks within,
            which a graph would not call.
    """

    module: nn.Module
    units: frozenset[Unit]
    forward: Forward
    tensors: list[torch.Tensor]
    places: set[int]
    settings: Hashable

    @classmethod
    def look_at(cls, module: nn.Module, units: frozenset[Unit], forward: Forward) -> _Block:
        tensors: list[torch.Tensor | None] = []
        places: set[int] = set()
        settings: list[Hashable] = [id(getattr(forward, "__func__", forward))]
        hooked = False
        for one in modules_of(module):
            tensors += [*one._parameters.values(), *one._buffers.values()]
            places |= {id(one.__dict__), id(one._forward_hooks), id(one._forward_pre_hooks)}
            settings += [
                _setting(value)
                for name, value in one.__dict__.items()
                if name not in _OF_EVERY_MODULE and not (one is module and name == "forward")
            ]
            hooked |= one is not module and bool(one._forward_hooks or one._forward_pre_hooks)
        found = [tensor for tensor in tensors if tensor is not None]
        return cls(module, units, forward, found, places, None if hooked else tuple(settings))


class BlockGraphs:
    """The captured calls of a model's blocks, as long as weights lie where they do.

    Args:
        device: where passes run.
        capture: what captures a call.
        patience: calls that are alike until one is captured.

    Attributes:
        count: of graphs.
    """

    def __init__(self, device: torch.device, capture: Capture, patience: int = 1) -> None:
        self._device, self._capture, self._patience = device, capture, patience
        self._known: dict[Hashable, _Kind | None] = {}
        # equal blocks share memory for what they read and leave: one is through before the next
        self._places: dict[Hashable, list[torch.Tensor]] = {}
        self.count = 0
        self._stand_ins: dict[nn.Module, _StandIn] = {}
        self._refused: set[nn.Module] = set()  # blocks of which a capture has failed

    @contextlib.contextmanager
    def standing_in(self, calls: Calls, lockstep: Lockstep) -> Iterator[None]:
        """Within, graphs stand in for calls of blocks.

        Args:
            calls: of these blocks.
            lockstep: the passes that call.
        """
        standing, call = [], partial(self._call, lockstep)
        for module, units in calls.items():
            # compiled code has graphs of its own
            if module._compiled_call_impl is None and module not in self._refused:
                if module not in self._stand_ins:
                    self._stand_ins[module] = _StandIn()
                standing.append(self._stand_ins[module])
                standing[-1].begin(partial(_Block.look_at, module, units), module, call)
        try:
            yield
        finally:
            for one in standing:
                one.end()

    def _call(self, lockstep: Lockstep, block: _Block, args: Any, kwargs: Any) -> Any:
        """What ``block.forward(*args, **kwargs)`` returns."""
        tensors: list[torch.Tensor] = []
        try:
            kind = self._kind_of(block, lockstep, (args, kwargs), tensors)
        except _UnlikeError:
            return block.forward(*args, **kwargs)
        if kind not in self._known and len(self._known) < MOST_KINDS:
            result, self._known[kind] = self._first(block, lockstep, args, kwargs, tensors)
            return result
        known = self._known.get(kind)
        if known is None:
            return block.forward(*args, **kwargs)
        known.calls += 1
        if known.calls <= self._patience:
            return block.forward(*args, **kwargs)
        sources = [_core(tensor) for tensor in tensors]
        if not known.inputs:
            known.inputs = self._places_like("arguments", sources)
            known.outputs = self._places_like("results", known.returned)
        torch._foreach_copy_(known.inputs, sources)
        replay = self._replay(known, block, (args, kwargs))
        if replay is None:
            self._known[kind] = None
            return block.forward(*args, **kwargs)
        replay()
        return _put_together(known.result, iter([place.clone() for place in known.outputs]))

    def _kind_of(
        self, block: _Block, lockstep: Lockstep, arguments: Any, tensors: list[torch.Tensor]
    ) -> Hashable:
        """What decides what a call queues, apart from addresses and values."""
        bound = lockstep.current is not None and block.units <= lockstep.current.bound
        if block.settings is None or not bound or lockstep.has_set_any(block.places):
            raise _UnlikeError
        state = thread_state()
        state = state._replace(modes=tuple(map(type, state.modes)))
        return block.module, block.settings, state, self._take_apart(arguments, tensors)

    def _take_apart(self, value: Any, tensors: list[torch.Tensor]) -> Hashable:
        """What tells ``value`` from others, but for what its tensors hold, which are appended.

        Raises:
            _UnlikeError: there is something in it of which this cannot be told.
        """
        kind = type(value)
        if kind is torch.Tensor:
            if value.device != self._device or value.is_inference():
                raise _UnlikeError
            tensors.append(value)
            return value.shape, value.stride(), value.dtype
        if kind in _PLAIN:
            return kind, value
        if kind in (tuple, list):
            return kind, *[self._take_apart(one, tensors) for one in value]
        if kind is dict:
            return kind, *[(name, self._take_apart(one, tensors)) for name, one in value.items()]
        raise _UnlikeError

    def _first(
        self,
        block: _Block,
        lockstep: Lockstep,
        args: Any,
        kwargs: Any,
        tensors: list[torch.Tensor],
    ) -> tuple[Any, _Kind | None]:
        """The result of a call that runs as it is; and what graphs need, if one can stand for it.

        It cannot for one that writes to its arguments, draws random numbers, sets attributes, or
        pauses to enter another unit.
        """

        def traces() -> tuple[Any, ...]:
            drawn = _random_states(self._device)
            return [tensor._version for tensor in tensors], drawn, lockstep.pauses

        before = traces()
        result = block.forward(*args, **kwargs)
        if traces() != before or lockstep.has_set_any(block.places):
            return result, None
        returned: list[torch.Tensor] = []
        try:
            self._take_apart(result, returned)
        except _UnlikeError:
            return result, None
        if not (tensors and returned and all(map(_is_plain, [*map(_core, tensors), *returned]))):
            return result, None
        bare = [torch.empty_like(one, device="meta") for one in returned]
        return result, _Kind(_put_together(result, iter(bare)), bare)

    def _places_like(self, what: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Memory for tensors, which calls share whose tensors are alike."""
        key = what, *[(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        if key not in self._places:
            self._places[key] = [torch.empty_like(one, device=self._device) for one in tensors]
        return self._places[key]

    def _replay(self, known: _Kind, block: _Block, arguments: Any) -> Replay | None:
        """What queues such a call; none if that cannot be captured after all."""
        addresses = tuple([tensor.data_ptr() for tensor in block.tensors])
        if addresses in known.replays:
            return known.replays[addresses]
        if self.count == MOST:
            return None

        def work() -> None:
            args, kwargs = _put_together(arguments, iter(known.inputs))
            returned: list[torch.Tensor] = []
            self._take_apart(block.forward(*args, **kwargs), returned)
            torch._foreach_copy_(known.outputs, returned)

        try:
            known.replays[addresses] = self._capture(work)
        except CaptureError as error:
            kind = type(block.module)
            if all(type(module) is not kind for module in self._refused):
                logger.warning(
                    "Passes through a %s cannot be a CUDA graph (%s).", kind.__name__, str(error)
                )
            self._refused.add(block.module)
            return None
        self.count += 1
        return known.replays[addresses]


class _StandIn:
    """What a block calls instead of its forward, in one sweep after another.

    To tell torch.compile to leave a function alone takes time, so there is one for all sweeps. It
    holds nothing between them, as what it calls holds it.
    """

    def __init__(self) -> None:
        self._instead = never_compiled(self._run)

    def begin(
        self,
        look_at: Callable[[Forward], _Block],
        module: nn.Module,
        call: Callable[[_Block, Any, Any], Any],
    ) -> None:
        """Take the place of the forward that ``module`` has now; ``call`` runs that, or replays."""
        self._look_at = look_at
        self._module, self._forward, self._call = module, module.forward, call
        self._own = module.__dict__.get("forward")
        self._block: _Block | None = None
        module.__dict__["forward"] = self._instead

    def end(self) -> None:
        """Give the module its forward back."""
        del self._module.__dict__["forward"]
        if self._own is not None:
            self._module.__dict__["forward"] = self._own
        del self._look_at, self._module, self._forward, self._call, self._own, self._block

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._block is None:
            self._block = self._look_at(self._forward)
        return self._call(self._block, args, kwargs)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether memory of its own has its elements in the same order."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _setting(value: Any) -> Hashable:
    """What tells a module's attribute from others: its value, or which object it is."""
    if type(value) in _PLAIN:
        return type(value), value
    return str(value) if type(value) in _CONTAINERS else id(value)


def _core(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without the copies that expanding it has made."""
    if 0 not in tensor.stride():
        return tensor
    return tensor[tuple([slice(None) if step else slice(1) for step in tensor.stride()])]


def _put_together(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """``value`` with other tensors in it, each expanded to the shape of the one in its place."""
    if isinstance(value, torch.Tensor):
        return next(tensors).expand(value.shape)
    if type(value) in (tuple, list):
        return type(value)([_put_together(one, tensors) for one in value])
    if type(value) is dict:
        return {name: _put_together(one, tensors) for name, one in value.items()}
    return value


def _random_states(device: torch.device) -> list[Hashable]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [random.getstate(), *[state.numpy().tobytes() for state in states]]
