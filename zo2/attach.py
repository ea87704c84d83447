"""Turning a loaded model into one that trains itself: `prepare`, and ZO2's `zo_hf_init`.

`prepare` leaves the model's class alone. It gives the instance the attributes that ZO2 users
know (``zo_train``, ``zo_eval``, ``opt``, ...) and a ``forward`` that runs the original one in
sweeps.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from zo2.assembly import check_model, placement_of
from zo2.config import MeZOSGDConfig, ZOSettings
from zo2.engine.placement import Placement
from zo2.errors import ConfigError, ModelError
from zo2.prepared import ZOState
from zo2.progress import weights_bar


def prepare(
    model: nn.Module,
    config: ZOSettings | None = None,
    *,
    placement: Placement | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Make ``model`` train by zeroth-order steps, its weights streamed from host memory.

    Afterwards, calling the model in training mode (``model.zo_train()``, the initial mode) is
    one step and returns the loss; in evaluation mode it is a plain forward.

    Args:
        model: a loaded model on the CPU or on the working device, with floating-point weights.
        config: settings; `MeZOSGDConfig()` if left out.
        placement: which units are streamed; by default what ``config`` says.
        progress: told the bytes of each part of the weights that has been taken in, which reads
            them from the disk where transformers only mapped their file, and page-locks them. By
            default a bar on a terminal, unless transformers' bars are turned off.

    Returns:
        The same object.

    Raises:
        ModelError: the model is quantised, spread over devices, or has unloaded weights.
        HostMemoryError: host memory ran out; the model keeps its weights.
        DeviceMemoryError: the GPU's memory ran out, or a budget is too small; as above.
        ConfigError: a setting cannot work.
    """
    config = config or MeZOSGDConfig()
    if not isinstance(config, ZOSettings):
        raise ConfigError(f"config must be a ZOConfig(...), not {type(config).__name__}.")
    config.validate()
    if "_zo" in model.__dict__:
        raise ModelError(
            "This model is prepared already; for other settings call zo2.release(model) first."
        )
    check_model(model)
    nbytes = sum(one.numel() * one.element_size() for one in model.parameters())
    with contextlib.nullcontext(progress) if progress else weights_bar(nbytes) as told:
        ZOState(model, config, placement or placement_of(config), told)
    return model


def release(model: nn.Module) -> Any:
    """Undo `prepare`: give back an ordinary model with the trained weights.

    Returns:
        The same object. Weights rest where they did: on the working device or in host memory.
    """
    state = model.__dict__.get("_zo")
    if state is None:
        raise ModelError("This model is not prepared, so there is nothing to release.")
    state.release()
    state.engine.drop_buffers()
    return model


@contextlib.contextmanager
def zo_hf_init(config: ZOSettings | None = None) -> Iterator[None]:
    """Give every transformers model that is made within the context a ``zo_init(config)``.

    Any class of transformers will do, the Auto classes too. ``zo_init`` without an argument
    uses ``config``; it is `prepare` under ZO2's name.
    """
    import transformers

    base = transformers.PreTrainedModel
    original = base.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.__dict__["zo_init"] = types.MethodType(_zo_init, self)

    def _zo_init(self: Any, zo_config: ZOSettings | None = None) -> Any:
        del self.__dict__["zo_init"]
        return prepare(self, zo_config or config)

    base.__init__ = init
    try:
        yield
    finally:
        base.__init__ = original
