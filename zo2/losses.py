"""From a model's output to the loss of a pass, with the user's hooks and loss functions.

Without hooks the loss is the model's own. With a hook before the loss, or a custom loss, the
model is called without labels and the loss is computed here from its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zo2.errors import DataError

LABEL_NAMES = ("labels", "start_positions", "end_positions", "targets")


@dataclass
class LossHooks:
    """What a user has put around the loss.

    For heads with logits and labels, hooks have the signatures
    ``pre(model, input_ids, logits, labels) -> (input_ids, logits, labels)``,
    ``post(model, loss, input_ids, logits, labels) -> (loss, input_ids, logits, labels)`` and
    ``custom(model, input_ids, logits, labels, **kwargs) -> loss``. For question answering,
    ``start_logits, start_positions, end_logits, end_positions`` stand in place of
    ``logits, labels``. A loss may be a number that nothing could be differentiated through.
    """

    pre: list[Callable[..., Any]] = field(default_factory=list)
    post: list[Callable[..., Any]] = field(default_factory=list)


def forward_with_loss(
    model: nn.Module,
    forward: Callable[..., Any],
    hooks: LossHooks,
    custom: Callable[..., Any] | None,
    kwargs: Mapping[str, Any],
) -> tuple[Any, torch.Tensor | None]:
    """Call ``forward`` and work out the loss.

    Returns:
        The model's output (its loss replaced where hooks or a custom loss made one) and the
        loss as a detached float tensor without dimensions, ``None`` if there are no labels.
    """
    if not (hooks.pre or hooks.post or custom):
        output = forward(**kwargs)
        return output, _own_loss(output)
    labels = {name: kwargs[name] for name in LABEL_NAMES if kwargs.get(name) is not None}
    output = forward(**model_arguments(kwargs, hooks, custom))
    loss = _own_loss(output) if not (hooks.pre or custom) else None
    input_ids = kwargs.get("input_ids")
    values = _logits_and_labels(output, kwargs)
    for hook in hooks.pre:
        input_ids, *values = hook(model, input_ids, *values)
    if custom and (labels or model.zo_training):
        rest = {k: v for k, v in kwargs.items() if k not in ("input_ids", *LABEL_NAMES)}
        loss = custom(model, input_ids, *values, **rest)
    elif hooks.pre and labels:
        loss = _standard_loss(model, values)
    if loss is not None:
        for hook in hooks.post:
            loss, input_ids, *values = hook(model, loss, input_ids, *values)
        loss = torch.as_tensor(loss).detach()
        if hasattr(output, "loss") or isinstance(output, dict):
            output["loss"] = loss
    return output, loss


def model_arguments(
    kwargs: Mapping[str, Any], hooks: LossHooks, custom: Callable[..., Any] | None
) -> dict[str, Any]:
    """What the model itself is given: no labels if the loss is made from its logits here."""
    without = LABEL_NAMES if hooks.pre or custom else ()
    return {name: value for name, value in kwargs.items() if name not in without}


def _own_loss(output: Any) -> torch.Tensor | None:
    """The loss in a model's output: its ``loss``, or its only tensor without dimensions."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, torch.Tensor) and output.dim() == 0:
        loss = output
    if loss is None and isinstance(output, tuple) and not hasattr(output, "loss"):
        scalars = [v for v in output if isinstance(v, torch.Tensor) and v.dim() == 0]
        loss = scalars[0] if len(scalars) == 1 else None
    return None if loss is None else loss.detach()


def _logits_and_labels(output: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    if getattr(output, "start_logits", None) is not None:
        return [
            output.start_logits,
            kwargs.get("start_positions"),
            output.end_logits,
            kwargs.get("end_positions"),
        ]
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple):
        logits = output[0]
    return [logits, kwargs.get("labels", kwargs.get("targets"))]


def _standard_loss(model: Any, values: list[Any]) -> Any:
    """Transformers' loss for the model's head, from values that hooks may have changed."""
    if len(values) == 4:
        start_logits, start_positions, end_logits, end_positions = values
        return model.loss_function(start_logits, end_logits, start_positions, end_positions)
    logits, labels = values
    if "SequenceClassification" in type(model).__name__:
        return model.loss_function(labels, logits, model.config)
    if not hasattr(model, "loss_function"):
        raise DataError(
            f"{type(model).__name__} has no loss_function: set zo_custom_train_loss_fn beside "
            "the hook."
        )
    vocabulary = getattr(model.config, "vocab_size", None) or logits.shape[-1]
    return model.loss_function(logits, labels, vocab_size=vocabulary)
