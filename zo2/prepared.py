"""What a prepared model carries: its engine and method, its mode, and how it takes a step."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn

from zo2.assembly import arithmetic_for, engine_for, host_bound, replays_of, working_device
from zo2.config import ZOSettings
from zo2.engine import zerocopy
from zo2.engine.eager import never_compiled
from zo2.engine.placement import Placement
from zo2.errors import DataError, ModelError, NonFiniteLossError
from zo2.logits import Head
from zo2.losses import LossHooks, forward_with_loss, model_arguments
from zo2.methods import Perturbation, get_method
from zo2.optimizer import ZOOptimizer

Batch = Mapping[str, Any]
Closure = Callable[[bool], Any]


class ZOState:
    """What a prepared model carries: its engine, method, hooks and mode."""

    def __init__(
        self,
        model: nn.Module,
        config: ZOSettings,
        placement: Placement,
        progress: Callable[[int], None],
    ) -> None:
        self.model, self.config = model, config
        self.device = working_device(config)
        self.method = get_method(config)
        seed = int(config.seed) if config.seed is not None else _draw_seed()
        self.train_hooks, self.eval_hooks = LossHooks(), LossHooks()
        self._forward = model.forward
        self._positional = _positional(model)
        self._caches = _takes(model, "use_cache")
        self._shifts_labels = _shifts_labels(model)
        self._in_pass = False  # whether a closure's call of the model belongs to a pass
        model.eval()
        arithmetic = arithmetic_for(config, self.device)
        self._head = Head.of(model, lambda module: self.engine.rows_of(module))
        self.engine = engine_for(
            model, self.device, config, placement, arithmetic, progress, self._head.module
        )
        self.engine.before_pause = self._head.compute_all
        self._replays = replays_of(config, self.engine, arithmetic)
        self._host = host_bound(config, self.engine, arithmetic)
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = ZOOptimizer(trainable, config, self.engine, seed)
        self._attach()

    def _attach(self) -> None:
        model: Any = self.model
        attributes: dict[str, Any] = {
            "_zo": self,
            "opt": self.optimizer,
            "zo_config": self.config,
            "zo_training": True,
            "zo_train": functools.partial(self._set_mode, True),
            "zo_eval": functools.partial(self._set_mode, False),
            "zo_step": self.step,
            "zo_step_on": self.step_on,
            "zo_forward": self.evaluate,
            "zo_settle": self.engine.settle,
            "zo_custom_train_loss_fn": None,
            "zo_custom_eval_loss_fn": None,
            "register_zo_train_loss_fn_pre_hook": self.train_hooks.pre.append,
            "register_zo_train_loss_fn_post_hook": self.train_hooks.post.append,
            "register_zo_eval_loss_fn_pre_hook": self.eval_hooks.pre.append,
            "register_zo_eval_loss_fn_post_hook": self.eval_hooks.post.append,
        }

        @never_compiled
        @functools.wraps(self._forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            kwargs = self._by_name(args, kwargs)
            if self._in_pass:
                return self._forward_in_pass(kwargs)
            if model.zo_training:
                return self.step([kwargs])
            return self.evaluate([kwargs])[0]

        self._attributes = {
            **attributes,
            "forward": forward,
            "train": self._set_torch_mode,
            "__deepcopy__": self._copy,
            "__reduce_ex__": self._refuse_pickle,
        }
        self._before = {name: model.__dict__.get(name) for name in self._attributes}
        model.__dict__.update(self._attributes)

    def release(self) -> None:
        """Undo the preparation: the model is as it was before, with its trained weights."""
        self.engine.release()
        for name, before in self._before.items():
            self.model.__dict__.pop(name, None)
            if before is not None:
                self.model.__dict__[name] = before

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Within, the model has its own forward; if it is replaced there, passes run the new one.

        For libraries that wrap a model's forward (trl does), which must end up within the passes
        rather than around the steps.
        """
        model = self.model
        stepping = model.__dict__.pop("forward")
        if self._before["forward"] is not None:
            model.__dict__["forward"] = self._before["forward"]
        try:
            yield
        finally:
            self._forward = model.forward
            self._before["forward"] = model.__dict__.get("forward")
            model.__dict__["forward"] = stepping

    def _copy(self, memo: dict[int, Any]) -> Any:
        """A deep copy of a prepared model is an ordinary model with the same weights."""
        kept = {name: self.model.__dict__[name] for name in self._attributes}
        self.release()
        try:
            return copy.deepcopy(self.model, memo)
        finally:
            self.engine.hooks.add()
            self.model.__dict__.update(kept)

    def _refuse_pickle(self, protocol: Any) -> Any:
        raise ModelError(
            "A prepared model cannot be pickled. Save its weights (model.save_pretrained, or "
            "safetensors of model.state_dict()), or call zo2.release(model) first."
        )

    def _by_name(self, args: Sequence[Any], kwargs: Batch) -> dict[str, Any]:
        """The arguments of a call of the model's forward."""
        most, given = len(self._positional), len(args)
        if given > most:
            raise TypeError(f"forward takes {most} positional arguments, but {given} were given")
        placed = dict(zip(self._positional, args, strict=False))
        if twice := placed.keys() & kwargs.keys():
            raise TypeError(f"forward was given {min(twice)} twice, by its place and by its name")
        return {**placed, **kwargs}

    def _set_mode(self, training: bool) -> None:
        self.model.zo_training = training  # type: ignore[assignment]
        self.model.eval()  # dropout is off in both modes, as in MeZO

    def _set_torch_mode(self, mode: bool = True) -> nn.Module:
        """Torch's ``train()``: it sets the model's own flag, but no dropout below it, whose masks
        would differ from pass to pass.
        """
        self.model.training = mode
        for child in self.model.children():
            child.eval()
        return self.model

    def step(self, batches: Sequence[Batch], weights: Sequence[float] | None = None) -> Any:
        """One step on several micro-batches, which share one sweep of the weights.

        Args:
            batches: keyword arguments of the model's forward, one mapping per micro-batch.
            weights: share of each micro-batch in the loss; by default the number of labels
                (or examples) it has, so that splitting a batch does not change its loss.

        Returns:
            The loss of the method's first perturbation (for MeZO that at W + eps z, for FZOO
            that at W): a float32 tensor without dimensions in host memory, read already.

        Raises:
            NonFiniteLossError: a loss was NaN or infinite. The step is dropped and the weights
                are those before it.
            DeviceMemoryError: the device's memory ran out; as above.
            ModelError: a weight is used in a way that cannot be streamed.
            DataError: a batch is empty, or the model returned no loss for it.
        """
        _check_are_batches(batches, "zo_step")
        _check_not_empty(batches)
        # before the move: counting must not wait for a GPU
        shares = _shares(batches, weights, self._shifts_labels)
        there = self._to_device([dict(batch) for batch in batches])
        calls = [self._without_cache(batch) for batch in there]

        custom: Any = self.model.zo_custom_train_loss_fn

        hooks = self.train_hooks

        def body(batch: Batch, first: bool) -> torch.Tensor:
            _, loss = forward_with_loss(self.model, self._forward, hooks, custom, _own(batch))
            if loss is None:
                raise DataError(
                    "The model returned no loss: pass labels, or set zo_custom_train_loss_fn. For "
                    "a plain forward (generate, evaluation) call model.zo_eval() first."
                )
            return loss

        def losses(perturbations: Sequence[Perturbation]) -> torch.Tensor:
            probes = self._probes(calls, hooks, custom)

            def sweep(calls: Sequence[Batch]) -> torch.Tensor:
                closures = [functools.partial(body, batch) for batch in calls]
                return self._sweep(closures, perturbations, probes)

            with self.sparing_logits():
                if self._replays is None or self._logits_are_read():
                    return sweep(calls)
                return self._replays.run(calls, perturbations, sweep)

        return self._take_step(losses, shares, batches)

    def sparing_logits(self) -> contextlib.AbstractContextManager[None]:
        """Within, training passes hold no logits that only the model's own loss reads.

        Hooks and a custom loss may read them: with these, logits are not spared.
        """
        if self._logits_are_read():
            return self._head.returning_tensors()
        return self._head.returning_stand_ins()

    def _logits_are_read(self) -> bool:
        """Whether anything but the model's own loss may read a training pass's logits."""
        hooks = self.train_hooks
        return bool(self.model.zo_custom_train_loss_fn or hooks.pre or hooks.post)

    def step_on(
        self,
        closures: Sequence[Closure],
        batches: Sequence[Batch],
        weights: Sequence[float] | None = None,
    ) -> Any:
        """One step on losses that closures compute by calling the model themselves.

        For losses that the model does not compute: a closure may call the model (which then is a
        plain forward with the perturbed weights, training hooks and custom loss included) and do
        with its output what it likes. All passes share one sweep of the weights.

        Args:
            closures: one per micro-batch. Each is called once per perturbation with the argument
                ``first`` and returns the micro-batch's mean loss, a tensor without dimensions or
                a number. ``first`` says whether this call's loss is the one that the step
                returns, so that what a closure notes down beside can be noted once. Before the
                first step with a batch of a new form, that batch's closure is called once more,
                with ``first`` false.
            batches: the micro-batches.
            weights: as for `step`.

        Returns:
            As `step`.

        Raises:
            NonFiniteLossError: as `step`.
        """
        _check_are_batches(batches, "zo_step_on")
        _check_not_empty(batches)
        if len(closures) != len(batches):
            raise DataError(f"{len(batches)} batches were given, but {len(closures)} closures.")
        probes: dict[Hashable, Callable[[], Any]] = {}
        for closure, batch in zip(closures, batches, strict=True):
            probes.setdefault(("closure", _form(batch)), functools.partial(closure, False))
        model: Any = self.model
        mode = model.zo_training
        self._in_pass = model.zo_training = True
        try:
            with self._head.returning_tensors():
                return self._take_step(
                    lambda perturbations: self._sweep(closures, perturbations, probes),
                    _shares(batches, weights, self._shifts_labels),
                    batches,
                )
        finally:
            self._in_pass, model.zo_training = False, mode

    def _sweep(
        self,
        closures: Sequence[Closure],
        perturbations: Sequence[Perturbation],
        probes: Mapping[Hashable, Callable[[], Any]],
    ) -> torch.Tensor:
        """Losses (float32, perturbations x closures) on the working device, of one sweep."""
        jobs = [
            (perturbation, functools.partial(closure, index == 0))
            for index, perturbation in enumerate(perturbations)
            for closure in closures
        ]
        results = self.engine.sweep(jobs, probes)
        if any(one is None for one in results):
            raise DataError("A closure returned None, not its micro-batch's mean loss.")
        losses = [torch.as_tensor(one, dtype=torch.float32, device=self.device) for one in results]
        return torch.stack(losses).view(len(perturbations), len(closures))

    def _take_step(
        self,
        losses_at: Callable[[Sequence[Perturbation]], torch.Tensor],
        shares: Sequence[float],
        batches: Sequence[Batch],
    ) -> torch.Tensor:
        """Sweep, estimate and update; a loss is its micro-batches' mean weighted by ``shares``."""
        self.optimizer.check()
        seed, eps = self.optimizer.step_seed, self.optimizer.eps
        perturbations = self.method.perturbations(seed, eps)
        start = perf_counter()
        found = losses_at(perturbations)
        queued = perf_counter()
        values = zerocopy.read(found)
        done = perf_counter()
        # the loss of a micro-batch that has no share may be the mean of nothing, NaN
        losses = [math.fsum(s * v for s, v in zip(shares, row, strict=True) if s) for row in values]
        self._check_finite(losses, batches)
        estimates = self.method.estimate(perturbations, losses, eps)
        self.optimizer.decide(estimates, rounding_seed=seed)
        if self._host is not None:
            self._host.step(queued - start, done - queued)
        return torch.tensor(losses[0], dtype=torch.float32, device="cpu")

    def _forward_in_pass(self, kwargs: Batch) -> Any:
        """What calling the model is within a closure of `step_on`."""
        batch = self._without_cache(self._to_device(dict(kwargs)))
        custom: Any = self.model.zo_custom_train_loss_fn
        return forward_with_loss(self.model, self._forward, self.train_hooks, custom, batch)[0]

    def evaluate(
        self, batches: Sequence[Batch], reduce: Callable[[int, Any], Any] | None = None
    ) -> list[Any]:
        """Plain forwards of several batches over one sweep of the weights.

        Args:
            batches: keyword arguments of the model's forward, one mapping per batch.
            reduce: called with a batch's number and its output as soon as that batch is through
                the model; what it returns stands in the output's place, so that the logits of
                only one batch are alive at a time.

        Returns:
            The model's outputs, on the working device, one per batch.
        """
        _check_are_batches(batches, "zo_forward")
        batches = self._to_device([dict(batch) for batch in batches])

        custom: Any = self.model.zo_custom_eval_loss_fn
        inference = torch.is_inference_mode_enabled()  # a cache of that mode can be written in it

        def body(number: int, batch: Batch) -> Any:
            # without inference mode torch switches gradients on
            with torch.inference_mode(inference), torch.no_grad():
                output, _ = forward_with_loss(
                    self.model, self._forward, self.eval_hooks, custom, batch
                )
                return output if reduce is None else reduce(number, output)

        if not batches:
            return []
        jobs = [
            (Perturbation(), functools.partial(body, number, batch))
            for number, batch in enumerate(batches)
        ]
        return self.engine.sweep(jobs, self._probes(batches, self.eval_hooks, custom))

    def _probes(
        self, batches: Sequence[Batch], hooks: LossHooks, custom: Any
    ) -> dict[Hashable, Callable[[], Any]]:
        """For each form that batches have, a pass to be recorded."""
        probes: dict[Hashable, Callable[[], Any]] = {}
        for batch in batches:
            probes.setdefault(_form(batch), functools.partial(self._plain, batch, hooks, custom))
        return probes

    def _plain(self, batch: Batch, hooks: LossHooks, custom: Any) -> Any:
        """A pass to be recorded, perhaps more than once: arguments stay as they are, and hooks
        and custom losses are not called.
        """
        return self._forward(**model_arguments(_own(batch), hooks, custom))

    def _without_cache(self, batch: Batch) -> Batch:
        """A training pass has no use for a key-value cache, and n passes would hold n."""
        if self._caches and "use_cache" not in batch:
            return {**batch, "use_cache": False}
        return batch

    def _to_device(self, value: Any) -> Any:
        """``value`` with all tensors in it on the working device."""
        found: dict[int, torch.Tensor] = {}
        _each_tensor(value, lambda tensor: found.setdefault(id(tensor), tensor))
        tensors = list(found.values())
        if self.engine.streams:
            moved = zerocopy.bring(tensors, self.device)
        else:
            moved = [tensor.to(self.device) for tensor in tensors]
        there = dict(zip(found, moved, strict=True))
        return _each_tensor(value, lambda tensor: there[id(tensor)])

    def _check_finite(self, losses: Sequence[float], batches: Sequence[Batch]) -> None:
        if all(math.isfinite(loss) for loss in losses):
            return
        labels = [b["labels"] for b in batches if isinstance(b.get("labels"), torch.Tensor)]
        if labels and any(bool((one == -100).all()) for one in labels):
            cause = "every label of a batch is -100, so there is nothing to learn from"
        elif (stray := self._head.stray(labels)) is not None:
            cause = f"a label is {stray}, which is neither a word of the model's nor -100"
        else:
            cause = (
                "lower lr or eps, or look for overflow in half precision (bfloat16 has the "
                "range of float32)"
            )
        shown = ", ".join(f"{loss:g}" for loss in losses[:4])
        raise NonFiniteLossError(
            f"Step {self.optimizer.steps} was dropped because its losses are not finite "
            f"({shown}): {cause}. The weights are those before the step."
        )


def _each_tensor(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``value`` with what ``function`` makes of its tensors: itself if that is each one itself."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if type(value) is dict:
        made = {name: _each_tensor(one, function) for name, one in value.items()}
        return value if all(made[name] is value[name] for name in value) else made
    if type(value) in (list, tuple):
        items = [_each_tensor(one, function) for one in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def _draw_seed() -> int:
    """A seed from torch's global generator."""
    return int(torch.randint(2**63 - 1, ()).item())


def _positional(model: nn.Module) -> list[str]:
    """Names of the arguments that a model's forward takes by their places, those among them that
    it hands on.
    """
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [one.name for one in parameters if one.kind in places]
    inner = _handed_on_to(model, inspect.Parameter.VAR_POSITIONAL)
    return names if inner is None else names + _positional(inner)


def _takes(model: nn.Module, name: str) -> bool:
    """Whether a model's forward has a parameter, or hands it on to one that has."""
    inner = _handed_on_to(model, inspect.Parameter.VAR_KEYWORD)
    own = name in inspect.signature(model.forward).parameters
    return own or (inner is not None and _takes(inner, name))


def _handed_on_to(model: nn.Module, kind: Any) -> nn.Module | None:
    """The model that peft has put an adapter on, if what a forward takes by a parameter of this
    kind (``*args``, ``**kwargs``) is handed on to it.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    base = getattr(model, "get_base_model", lambda: model)()
    return base if base is not model and any(one.kind is kind for one in parameters) else None


def _own(batch: Batch) -> Batch:
    """The batch with its own copy of what a forward may change: positions, a cache, ..."""
    tensors = [one for one in _within(batch, {}) if type(one) is torch.Tensor]
    copies = {id(one): one.detach().clone() for one in tensors}
    return copy.deepcopy(dict(batch), copies)


def _within(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """What a value holds, itself first, through containers and attributes."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    yield value
    inner: list[Any] = []
    if isinstance(value, Mapping):
        inner += value.values()
    elif isinstance(value, (list, tuple, set)):
        inner += value
    if not isinstance(value, (torch.Tensor, type)):
        inner += getattr(value, "__dict__", {}).values()
    for one in inner:
        yield from _within(one, seen)


def _form(batch: Batch) -> Hashable:
    """What decides which way a forward takes: the arguments given, and whether one token is."""
    return frozenset(
        (name, tuple(size == 1 for size in value.shape) if isinstance(value, torch.Tensor) else ())
        for name, value in batch.items()
        if value is not None
    )


def _check_are_batches(batches: Sequence[Batch], function: str) -> None:
    """Raise `DataError` unless a function of the model can be called with these."""
    if isinstance(batches, Mapping) or not all(isinstance(one, Mapping) for one in batches):
        raise DataError(
            f"{function} takes a list of batches, each of which maps names of the forward's "
            f"arguments to values: model.{function}([batch])."
        )


def _check_not_empty(batches: Sequence[Batch]) -> None:
    """Raise `DataError` unless there are batches, and something in each."""
    if not batches:
        raise DataError("A step needs at least one batch.")
    for name, value in (item for batch in batches for item in batch.items()):
        if isinstance(value, torch.Tensor) and value.dim() and value.numel() == 0:
            raise DataError(
                f"The batch is empty: {name} has shape {tuple(value.shape)}. Skip empty batches."
            )


def _shares(batches: Sequence[Batch], weights: Sequence[float] | None, shifts: bool) -> list[float]:
    if weights is None:
        several = len(batches) > 1
        weights = [_label_count(batch, shifts) for batch in batches] if several else [1.0]
    if len(weights) != len(batches):
        raise DataError(f"{len(batches)} batches were given, but {len(weights)} weights.")
    total = math.fsum(weights)
    if not total > 0:
        return [1 / len(batches)] * len(batches)
    return [weight / total for weight in weights]


def _shifts_labels(model: Any) -> bool:
    """Whether a model's loss leaves out the first label of each example: its outputs are of the
    token after. Models of other libraries than transformers are taken to.
    """
    generates = getattr(model, "can_generate", None)
    if not callable(generates):
        return True
    return bool(generates()) and not getattr(model.config, "is_encoder_decoder", False)


def _label_count(batch: Batch, shifts: bool) -> float:
    """How many labels a micro-batch's mean loss is over, or how many examples it has.

    ``shifts`` says whether the first of each example's ``labels`` is none of them, as
    `_shifts_labels`; ``targets`` are shifted by whoever gives them.
    """
    labels = batch.get("labels", batch.get("targets"))
    whole = isinstance(labels, torch.Tensor) and not labels.is_floating_point()
    if whole and labels.dim() in (1, 2):
        first = int(shifts and "labels" in batch and labels.dim() == 2)
        return float((labels[..., first:] != -100).sum().item())
    for value in batch.values():
        if isinstance(value, torch.Tensor) and value.dim():
            return float(value.shape[0])
    return 1.0
