"""Training arguments that mean nothing, or something else, without gradients.

What would change a run's result if it were honoured is refused; what could only save memory of a
backward pass is turned off. Only what differs from the arguments' own defaults counts as asked
for: clipping (``max_grad_norm=1.0``) is on by default, and there is nothing that it could clip.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from zo2.config import ZOSettings
from zo2.errors import ConfigError

_OPTIMIZER = "the update is the method's own; choose it by ZOConfig(method=...)"
_WHOLE = "the engine runs the model's own forward on one device"
_COMPILE = "passes pause between blocks: compile these instead, by block.compile() for each"
_LIGER = "it replaces the model's forward; load a model that has its kernels"
_REFUSED = {
    "optim": _OPTIMIZER,
    "optim_args": _OPTIMIZER,
    "optim_target_modules": _OPTIMIZER,
    "adafactor": _OPTIMIZER,
    "adam_beta1": _OPTIMIZER,
    "adam_beta2": _OPTIMIZER,
    "adam_epsilon": _OPTIMIZER,
    "max_grad_norm": "there are no gradients to clip; lower lr, or use ZOConfig(method='fzoo'), "
    "whose steps are scaled by the spread of the losses",
    "fp16": "its loss scaling is for gradients; load the model in float16 instead",
    "fp16_full_eval": "it would convert the weights for good; load the model in float16 instead",
    "bf16_full_eval": "it would convert the weights for good; load the model in bfloat16 instead",
    "neftune_noise_alpha": "it draws other noise in every pass, and the passes of a step are "
    "compared with each other",
    "torch_compile": _COMPILE,
    "jit_mode_eval": _WHOLE,
    "use_ipex": _WHOLE,
    "use_liger_kernel": _LIGER,
    "use_liger": _LIGER,
    "deepspeed": _WHOLE,
    "fsdp": _WHOLE,
    "parallelism_config": _WHOLE,
    "tp_size": _WHOLE,
    "past_index": "a pass would go on from the state of a differently perturbed one",
}
_UNNEEDED = ("gradient_checkpointing", "activation_checkpointing", "activation_offloading")


def forward_only(args: Any) -> Any:
    """A copy of training arguments for a run without gradients.

    Args:
        args: a `transformers.TrainingArguments`, or a class derived from it.

    Raises:
        ConfigError: an argument was set that needs gradients, or another way to run the model.
    """
    for name, reason in _REFUSED.items():
        if _is_set(args, name):
            raise ConfigError(
                f"{name}={getattr(args, name)!s} cannot be used with zeroth-order steps: {reason}."
            )
    args = copy.copy(args)
    # transformers 5 copies the older name's value to the newer one, whose default is another
    asked = _is_set(args, "gradient_checkpointing") or (
        _is_set(args, "activation_checkpointing") and not getattr(args, "gradient_checkpointing", 0)
    )
    if asked or _is_set(args, "activation_offloading"):
        warnings.warn(
            "Checkpointing and offloading of activations are turned off: forward passes alone "
            "keep no activations.",
            stacklevel=4,
        )
    for name in _UNNEEDED:
        if hasattr(args, name):
            setattr(args, name, False)
    return args


def check_accelerator(accelerator: Any, args: Any) -> None:
    """Use one GPU of one process.

    Raises:
        ConfigError: several processes were started, or accelerate's own configuration asks for
            what is refused among the training arguments.
    """
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(
            f"accelerate is configured for mixed precision {accelerator.mixed_precision}, which "
            "is for gradients: load the model in float16 instead (and unset "
            "ACCELERATE_MIXED_PRECISION)."
        )
    if str(accelerator.state.dynamo_plugin.backend.value) != "NO":
        raise ConfigError(
            f"accelerate is configured to compile the model, but {_COMPILE}; unset "
            "ACCELERATE_DYNAMO_BACKEND."
        )
    if args.world_size > 1:
        raise ConfigError(
            f"{args.world_size} processes were started, and each would train a model of its own. "
            "Start one: python instead of torchrun or accelerate launch."
        )
    if args.n_gpu > 1:
        warnings.warn(
            f"One of {args.n_gpu} GPUs is used; a batch has per_device_train_batch_size examples.",
            stacklevel=5,
        )
        args._n_gpu = 1


def optimizer_settings(
    args: Any, settings: ZOSettings, own: Mapping[str, float]
) -> dict[str, float]:
    """Learning rate and weight decay of a run, by the names that training arguments have for them.

    Args:
        args: training arguments as the user gave them, or ``None``.
        settings: the model's.
        own: ``lr`` and ``weight_decay`` where the arguments say nothing; ``initial_lr`` if an
            earlier schedule has changed the former.

    Raises:
        ConfigError: arguments and settings both say something, and not the same.
    """
    usual = {field.name: field.default for field in dataclasses.fields(settings)}
    found = {}
    for argument, setting in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
        if args is None or not _is_set(args, argument):
            found[argument] = own.get(f"initial_{setting}", own[setting])
            continue
        given, configured = getattr(args, argument), getattr(settings, setting)
        if configured not in (given, usual[setting]):
            raise ConfigError(
                f"The training arguments have {argument}={given:g} and ZOConfig has "
                f"{setting}={configured:g}: set one of them."
            )
        found[argument] = given
    if found["learning_rate"] == usual["lr"] and not (args and _is_set(args, "learning_rate")):
        warnings.warn(
            f"The learning rate is ZOConfig's default, lr={usual['lr']:g}. (A learning_rate that "
            "equals the training arguments' own default counts as not set.)",
            stacklevel=3,
        )
    return found


def _is_set(args: Any, name: str) -> bool:
    """Whether an argument has a value that is neither empty nor its class's default."""
    value = getattr(args, name, None)
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    return bool(value) and value != defaults.get(name)
