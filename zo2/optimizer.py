"""The optimizer that a prepared model carries as ``model.opt``.

The update happens inside the model's own call, so this object has nothing to do in ``step``. It
is where the learning rate is read from, hence where torch's schedulers change it, and where the
last projected gradient can be read or taken back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from zo2.config import ZOSettings
from zo2.directions.seeds import child_seed
from zo2.engine.updates import Update
from zo2.errors import CheckpointError, ConfigError, NonFiniteLossError, ZO2Error
from zo2.methods import Estimate

if TYPE_CHECKING:
    from zo2.engine.engine import Engine


class ZOOptimizer(torch.optim.Optimizer):
    """Holds lr, eps and weight decay as a parameter group, and the last estimate.

    Args:
        parameters: the trainable parameters.
        settings: lr, eps and weight_decay are taken from here.
        engine: where updates go.
        seed: the run's seed; step k uses the k-th seed below it.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        settings: ZOSettings,
        engine: Engine,
        seed: int,
    ) -> None:
        defaults = {
            "lr": settings.lr,
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
        }
        super().__init__(list(parameters), defaults)
        self._engine = engine
        self._estimates: list[Estimate] = []
        self._update: Update | None = None
        self.seed, self.steps = seed, 0

    @property
    def step_seed(self) -> int:
        """Seed of the next step."""
        return child_seed(self.seed, self.steps)

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.param_groups[0]["lr"] = value

    @property
    def eps(self) -> float:
        """Size of the next step's perturbation."""
        return float(self.param_groups[0]["eps"])

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay of the next update."""
        return float(self.param_groups[0]["weight_decay"])

    def check(self) -> None:
        """Raise `ConfigError` unless a step can be taken with the present settings."""
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            if not math.isfinite(value) or (name == "eps" and value <= 0):
                wanted = "a finite number" + " greater than 0" * (name == "eps")
                raise ConfigError(
                    f"The optimizer's {name} is {value:g}, but has to be {wanted}: look at what "
                    "sets it (a scheduler, param_groups). The weights are as they were."
                )

    def decide(self, estimates: Sequence[Estimate], rounding_seed: int) -> None:
        """Queue the update W <- (1 - lr wd) W - lr * estimate with the present settings.

        Raises:
            NonFiniteLossError: the estimate is not finite; nothing is queued.
        """
        if not all(math.isfinite(one.coefficient) for one in estimates):
            raise NonFiniteLossError(
                f"Step {self.steps} was dropped because the method's estimate of the gradient is "
                "not finite, though the losses are. The weights are those before the step."
            )
        self._estimates = list(estimates)
        self._update = Update(
            terms=tuple((e.seed, -self.lr * e.coefficient) for e in estimates if e.coefficient),
            decay=self.lr * self.weight_decay,
            rounding_seed=rounding_seed,
        )
        self._engine.push(self._update)
        self.steps += 1
        self._opt_called = True  # what torch's schedulers look at to see that a step was taken

    @property
    def projected_grad(self) -> Any:
        """The last step's projected gradient: a float, or a tuple where there are several.

        Assigning 0 drops the last update (its weight decay too) while it is pending, that is
        until the model is called or its weights are read; later it changes nothing. Assigning
        another value to the projected gradient of a single direction changes the pending
        update to that value.
        """
        values = tuple(e.coefficient for e in self._estimates)
        if not values:
            return 0.0
        return values[0] if len(values) == 1 else values

    @projected_grad.setter
    def projected_grad(self, value: float) -> None:
        pending = self._update is not None and self._engine.is_last(self._update)
        if value == 0 and not pending:
            return
        if self._update is None or not pending:
            raise ZO2Error(
                "The last update can no longer be changed: it has been applied. Set "
                "projected_grad right after the step, before the model is called or read."
            )
        if value != 0 and len(self._estimates) != 1:
            raise ZO2Error(
                "This method's step has several directions; their projected gradients can only "
                "be set to 0 together."
            )
        self._engine.pop()
        if value == 0:
            self._estimates = [Estimate(e.seed, 0.0) for e in self._estimates[:1]]
            self._update = None
            return
        estimate = Estimate(self._estimates[0].seed, float(value))
        self.steps -= 1
        self.decide([estimate], self._update.rounding_seed)

    def state_dict(self) -> dict[str, Any]:
        """Settings, and the seed and step count from which a run goes on with the same z."""
        return {**super().state_dict(), "zo": {"seed": self.seed, "steps": self.steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`; load the model's weights of the same moment beside it.

        Raises:
            CheckpointError: it is another optimizer's.
        """
        state = dict(state_dict)
        progress = state.pop("zo", None)
        if progress is None:
            raise CheckpointError(
                "This optimizer state is not of a zeroth-order run, so it cannot be gone on from. "
                "Start from the checkpoint's weights instead: load them as the model."
            )
        super().load_state_dict(state)
        self.seed, self.steps = progress["seed"], progress["steps"]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Do nothing: calling the model in training mode is the step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: there are no gradients."""
