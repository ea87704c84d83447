"""`ZOMixin`: what changes in a `transformers.Trainer` when its steps need no gradients.

The Trainer's own loop and its `compute_loss` stay in charge. A pass of a zeroth-order step is a
call of `compute_loss`, and the micro-batches of a step share one sweep of the weights. Each gives
the mean over its labels and counts as much as it has labels, so the loss of a step is that of its
whole batch; how the Trainer would scale micro-batches differs from release to release.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from zo2.attach import prepare
from zo2.config import ZOSettings
from zo2.errors import ConfigError
from zo2.prepared import Closure
from zo2.trainer.checkpoints import (
    allow_random_state,
    load_renamed,
    skipping_in_order,
    to_resume_from,
    warn_of_uneven_epochs,
    whole_or_nothing,
)
from zo2.trainer.options import check_accelerator, forward_only, optimizer_settings

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # whichever Trainer it is mixed into

Batch = dict[str, Any]


class ZOMixin(Trainer):  # type: ignore[misc]
    """Zeroth-order steps for the Trainer class that follows it among a class's bases.

    >>> class ZOSeq2SeqTrainer(ZOMixin, transformers.Seq2SeqTrainer): pass

    The model may be prepared (`zo2.prepare`, ``zo_init``); otherwise ``zo_config`` says how. The
    trainer leaves it in evaluation mode except within its steps, so callbacks and metrics may
    call it and generate with it.

    The learning rate is the `TrainingArguments`' if it was set there, else the ``ZOConfig``'s;
    likewise the weight decay. A loss may be anything that `compute_loss`, ``compute_loss_func``
    or ``model.zo_custom_train_loss_fn`` return: nothing is differentiated. They are called for
    every pass, several times per step; what is logged is the loss of the first perturbation. A
    subclass whose `compute_loss` divides by ``num_items_in_batch`` says so as in transformers 5, by
    ``loss_is_scaled_for_ga = True``; otherwise a loss is taken for its micro-batch's mean.

    Args:
        model: as the Trainer takes it.
        args: training arguments; those that need gradients are refused with a message.
        others: further positional arguments of the Trainer.
        zo_config: settings for a model that is not prepared.
        kwargs: the Trainer's own.

    Raises:
        ConfigError: an argument cannot work with zeroth-order steps, or ``zo_config`` is missing
            or one too many.
    """

    zo = True  # callbacks written for ZO2 ask for it
    optimizer: Any

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *others: Any,
        zo_config: ZOSettings | None = None,
        **kwargs: Any,
    ) -> None:
        state: Any = getattr(model, "__dict__", {}).get("_zo")
        if (state is None) == (zo_config is None):
            raise ConfigError(
                "The model is prepared already: leave out zo_config."
                if zo_config
                else "Say how to train: pass zo_config=zo2.ZOConfig(lr=..., eps=...)."
            )
        self._zo_config = zo_config
        self._pre_hooks: list[Callable[..., Any]] = []
        self._post_hooks: list[Callable[..., Any]] = []
        self._micro_batches: list[tuple[Batch, Any]] = []
        own = state.optimizer.param_groups[0] if state else vars(zo_config)
        rates = optimizer_settings(args, zo_config or state.config, own)
        if args is not None:
            args = forward_only(args)
        if others:
            others = args, *others
        else:  # by name: it is not every Trainer's second argument
            kwargs["args"] = args
        with state.bare() if state else contextlib.nullcontext():
            super().__init__(model, *others, **kwargs)
        if state and self.model is not model:
            raise ConfigError(
                "The prepared model was wrapped in another one (by peft_config?). Pass the "
                "unprepared model and zo_config instead."
            )
        if getattr(self, "optimizer_cls_and_kwargs", None):
            raise ConfigError(
                "optimizer_cls_and_kwargs cannot be used with zeroth-order steps: the update is "
                "the method's own; choose it by ZOConfig(method=...)."
            )
        for name, value in rates.items():
            setattr(self.args, name, value)
        if not getattr(self, "loss_is_scaled_for_ga", None):
            self.model_accepts_loss_kwargs = False  # so that a loss is a mean over its micro-batch
        self._prepare_zo(self.model)

    def _prepare_zo(self, model: Any) -> None:
        if "_zo" not in model.__dict__:
            prepare(model, self._zo_config)
        model.zo_training = False
        if model._zo.device != self.args.device:
            raise ConfigError(
                f"working_device is {model._zo.device} but the training arguments put batches on "
                f"{self.args.device}: pass use_cpu=True to them, or set working_device."
            )

    def register_zo2_training_step_pre_hook(self, hook: Callable[..., Any]) -> None:
        """Call ``hook(model, inputs)`` before each micro-batch; it may return them changed."""
        self._pre_hooks.append(hook)

    def register_zo2_training_step_post_hook(self, hook: Callable[..., Any]) -> None:
        """Call ``hook(model, inputs, loss)`` after each step, with its last micro-batch; it may
        return them changed.
        """
        self._post_hooks.append(hook)

    # -- steps ----------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Any:
        """Collect a micro-batch; with the last one of a step, take the step on all of them.

        Returns:
            The step's loss; 0 for the earlier micro-batches.
        """
        if not isinstance(inputs, Mapping):
            raise ConfigError(
                f"{type(self).__name__} hands its steps a {type(inputs).__name__}, not a batch "
                "(as GRPO does, which generates within a step): each pass would make a batch of "
                "its own. Use a Trainer that collates its batches."
            )
        for hook in self._pre_hooks:
            model, inputs = hook(model, inputs) or (model, inputs)
        self._micro_batches.append((inputs, num_items_in_batch))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        collected, self._micro_batches = self._micro_batches, []
        model.train()
        closures: list[Closure] = [functools.partial(self._loss, model, *one) for one in collected]
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = num_items_in_batch is not None  # compute_loss_func divides by all labels
        weights = None
        if scaled:
            weights = [1.0] * len(collected)
            closures = [_multiplied(closure, len(collected)) for closure in closures]
        with self._sparing_logits(model):
            loss = model.zo_step_on(closures, [batch for batch, _ in collected], weights)
        for hook in self._post_hooks:
            model, inputs, loss = hook(model, inputs, loss) or (model, inputs, loss)
        every = self.args.torch_empty_cache_steps
        if every and self.state.global_step % every == 0:
            torch.cuda.empty_cache()
        return loss.to(self.args.device)

    def _loss(self, model: Any, inputs: Batch, num_items_in_batch: Any, first: bool) -> Any:
        """One pass over a micro-batch: its mean loss."""
        trainer = self if first else self._stand_in()
        inputs = self._prepare_inputs(copy.deepcopy(inputs))
        with self.compute_loss_context_manager():
            return trainer.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

    def _sparing_logits(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Spare the logits if nothing but the model's own loss reads them in a training pass."""
        from transformers import Trainer

        own = getattr(self.compute_loss, "__func__", None) is Trainer.compute_loss
        if own and self.compute_loss_func is None and self.label_smoother is None:
            sparing: contextlib.AbstractContextManager[None] = model._zo.sparing_logits()
            return sparing
        return contextlib.nullcontext()

    def _stand_in(self) -> Any:
        """A trainer for a pass whose loss is not logged: what it notes down is forgotten."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if "metrics" in name and isinstance(value, dict):
                setattr(other, name, copy.deepcopy(value))
        return other

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        check_accelerator(self.accelerator, self.args)
        self.accelerator.device_placement = False  # the engine places the weights
        self.accelerator.clip_grad_norm_ = _no_gradients

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        pass  # the engine places the weights

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer is the model's; the scheduler sets its learning rate."""
        given, own = self.optimizer, self.model.opt
        if given is None:
            rates = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            own.defaults.update(rates)  # where some schedules look
            own.param_groups[0].update(rates, initial_lr=self.args.learning_rate)
            self.optimizer = own
        elif getattr(given, "optimizer", given) is not own:
            raise ConfigError(
                f"optimizers has a {type(given).__name__}, but zeroth-order updates are made by "
                "model.opt: pass (None, scheduler) or (model.opt, scheduler)."
            )
        return self.optimizer

    def call_model_init(self, trial: Any = None) -> Any:
        model = super().call_model_init(trial)
        self._prepare_zo(model)
        return model

    # -- runs and checkpoints -------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` takes the last checkpoint that is whole."""
        if resume_from_checkpoint:
            resume_from_checkpoint = to_resume_from(resume_from_checkpoint, self.args.output_dir)
            with contextlib.suppress(TypeError):  # a stream of data has no length
                batches = len(self.get_train_dataloader())
                warn_of_uneven_epochs(batches, self.args.gradient_accumulation_steps)
        self._micro_batches.clear()
        with skipping_in_order():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any, **kwargs: Any) -> None:
        with whole_or_nothing(self._get_output_dir(trial), self.state.global_step):
            super()._save_checkpoint(model, trial, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not load_renamed(resume_from_checkpoint, self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        allow_random_state()
        super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        if not load_renamed(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()


def _multiplied(closure: Closure, factor: int) -> Closure:
    return lambda first: closure(first) * factor


def _no_gradients(*args: Any, **kwargs: Any) -> None:
    """There is nothing to clip, and no norm to log."""
