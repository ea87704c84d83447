"""The GPT ready to train with MeZO-SGD, under the name that published ZO2 code imports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zo2.attach import prepare
from zo2.config import ZOSettings
from zo2.model.nanogpt.model import GPT, GPTConfig


def get_nanogpt_mezo_sgd(config: ZOSettings) -> Callable[[GPTConfig, ZOSettings], Any]:
    """What makes a prepared GPT: ``get_nanogpt_mezo_sgd(zo)(GPTConfig(), zo)``.

    Args:
        config: settings of the method; used by the result if it is given none of its own.

    Returns:
        A callable (model config, zo config) -> model. Calling the model as
        ``model(input_ids, pos, labels)`` is one step and returns the loss.
    """

    def make(model_config: GPTConfig, zo_config: ZOSettings | None = None) -> Any:
        return prepare(GPT(model_config), zo_config or config)

    return make
