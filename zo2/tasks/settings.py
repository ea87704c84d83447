"""What a run of a task does: its settings, with the paper's defaults."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zo2.config import ZOSettings
from zo2.data import parse_label_words
from zo2.errors import ConfigError
from zo2.tasks import modes
from zo2.tasks.base import Classification, Generation, Task, get_task
from zo2.training import Plan, method_config

PAPER = "paper"  # the grid of the mode's recipe
# may change when a run goes on
_ANY_TIME = (
    "device", "unit", "device_memory", "resident", "cuda_graphs", "micro_batches", "save_every",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a run does.

    Attributes:
        task: name of the task.
        model: directory, hub name or GGUF file.
        mode: one of `modes.MODES`.
        method: name of the zeroth-order method.
        lr: learning rate.
        eps: size of the perturbation.
        steps: number of steps.
        batch_size: examples per step.
        micro_batches: parts that a step's examples are split into.
        schedule: ``"constant"`` or ``"linear"``.
        weight_decay: as in MeZO.
        direction: family of directions; ``None`` for the method's own.
        directions: directions per step, where the method has several; ``None`` for its default.
        eval_every: steps between evaluations on dev; the best evaluated weights are kept.
        save_every: steps between checkpoints; 0 for none.
        num_train: most examples to train on.
        num_dev: most examples to choose by; ``None`` for the task's own number.
        num_test: most examples to test on.
        demonstrations: answered examples in the prompt, for ``in-context``.
        max_length: most tokens of a sequence; ``None`` for what the model takes, 2,048 at most.
        label_words: other words than the task's; ``None`` for those.
        data_dir: folder with the published files; ``None`` for the hub.
        seed: of the examples drawn, their order, and the directions.
        dtype: precision of the weights; see `zo2.loading.load`.
        device: where passes run; ``None`` for the GPU if there is one.
        unit: what is perturbed at once; see `zo2.config.ZOSettings`.
        device_memory: budget for everything on the device.
        resident: keep all weights on the device.
        cuda_graphs: as in `zo2.config.ZOSettings`.
    """

    task: str
    model: str
    mode: str
    method: str
    lr: float
    eps: float
    steps: int
    batch_size: int
    micro_batches: int
    schedule: str
    weight_decay: float
    direction: str | None
    directions: int | None
    eval_every: int
    save_every: int
    num_train: int
    num_dev: int | None
    num_test: int
    demonstrations: int
    max_length: int | None
    label_words: str | None
    data_dir: str | None
    seed: int
    dtype: str | None
    device: str | None
    unit: str | None
    device_memory: str | None
    resident: bool
    cuda_graphs: bool | None

    @property
    def trained(self) -> bool:
        """Whether the mode trains."""
        return self.mode in modes.TRAINED

    def config(self) -> ZOSettings:
        """The settings of the method.

        Raises:
            ConfigError: one of them cannot work.
        """
        return method_config(
            self.method,
            lr=self.lr,
            eps=self.eps,
            weight_decay=self.weight_decay,
            direction=self.direction,
            directions=self.directions,
            unit=self.unit,
            device_memory_budget=self.device_memory,
            zo2=not self.resident,
            cuda_graphs=self.cuda_graphs,
            seed=self.seed,
            working_device=self.device,
        )

    def plan(self, loss: str) -> Plan:
        """What training does, with the task's loss."""
        return Plan(
            self.steps,
            self.batch_size,
            self.micro_batches,
            self.lr,
            loss,
            self.schedule,
            self.eval_every,
            self.seed,
        )

    def find_task(self) -> Task:
        """The task, with the label words asked for.

        Raises:
            ConfigError: there is no such task, or it has no label words.
        """
        task = get_task(self.task)
        if self.label_words is None:
            return task
        if not isinstance(task, Classification):
            raise ConfigError(f"--label-words: {task.name} has answers of its own, no label words.")
        return task.with_words(parse_label_words(self.label_words))

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """How these settings differ from an earlier run's where that changes its course."""
        mine = asdict(self)
        return [
            f"{name} was {earlier.get(name)!r}, now {value!r}"
            for name, value in mine.items()
            if name not in _ANY_TIME and earlier.get(name) != value
        ]


def complete(given: Mapping[str, Any]) -> Settings:
    """Settings from those given; a ``None`` among them takes the paper's value, if it has one.

    Raises:
        ConfigError: a mode that trains has no known learning rate and none is given, or settings
            do not go together.
    """
    values = dict(given)
    mode, method, steps = values["mode"], values["method"], values["steps"]
    recipe = modes.recipe(mode, method)
    if mode in modes.TRAINED and recipe is None and None in (values["lr"], values["eps"]):
        raise ConfigError(
            f"No learning rate is known for --method {method} with --mode {mode}: give --lr and "
            "--eps."
        )
    values["lr"] = _first(values["lr"], recipe and recipe.lrs[0], 0.0)
    values["eps"] = _first(values["eps"], recipe and recipe.eps, 1e-3)
    values["eval_every"] = _first(values["eval_every"], max(1, steps // 5))
    values["save_every"] = _first(values["save_every"], values["eval_every"])
    if values["micro_batches"] > values["batch_size"]:
        raise ConfigError(
            f"{values['micro_batches']} micro-batches need at least as many examples per step, but "
            f"--batch-size is {values['batch_size']}."
        )
    if values["seed"] >= 2**32:
        raise ConfigError(f"--seed {values['seed']}: examples are drawn by a seed below 2^32.")
    return Settings(**values)


def grid(settings: Settings, spec: Sequence[str]) -> list[Settings]:
    """The runs of a grid: ``["paper"]``, or ``["lr=1e-6,1e-7", "eps=1e-3,1e-2"]``.

    Raises:
        ConfigError: the mode does not train, the grid cannot be read, or one of its values cannot
            work.
    """
    if not settings.trained:
        raise ConfigError(f"--grid: the mode {settings.mode} does not train.")
    values: dict[str, Sequence[float]] = {"lr": [settings.lr], "eps": [settings.eps]}
    if list(spec) == [PAPER]:
        recipe = modes.recipe(settings.mode, settings.method)
        if recipe is None:
            raise ConfigError("--grid paper: the paper has no such mode; give lr=A,B eps=C,D.")
        generates = isinstance(settings.find_task(), Generation)
        lrs = recipe.generation_lrs if generates else recipe.lrs
        values = {"lr": lrs, "eps": [recipe.eps]}
    else:
        for part in spec:
            name, mark, numbers = part.partition("=")
            if name not in values or not mark:
                raise ConfigError(f"--grid {part}: give {PAPER}, lr=A,B,... or eps=A,B,...")
            try:
                values[name] = [float(one) for one in numbers.split(",")]
            except ValueError:
                raise ConfigError(f"--grid {part}: {numbers!r} are not numbers.") from None
    pairs = dict.fromkeys(itertools.product(values["lr"], values["eps"]))
    trials = [replace(settings, lr=lr, eps=eps) for lr, eps in pairs]
    for trial in trials:
        trial.config()
    return trials


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
