"""A run of a task: draw the examples, train if the mode does, choose by dev, test.

A grid is several runs, of which the one that did best on dev counts.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import zo2
from zo2.batches import pad_token
from zo2.directions import get_family
from zo2.errors import ConfigError, DataError, NonFiniteLossError
from zo2.loading import Loaded, longest
from zo2.prompts import encoder
from zo2.tasks import modes, sources
from zo2.tasks.base import Classification, Task
from zo2.tasks.encoding import Encoder, check_words
from zo2.tasks.folder import RunFolder
from zo2.tasks.prediction import Exam
from zo2.tasks.sampling import Split, demonstrations, draw_split
from zo2.tasks.settings import Settings
from zo2.training import Step, peak_memory, train

LONGEST = 2048  # tokens of a sequence, as in the paper

Results = dict[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What a run is given from outside: who loads models, is told of progress, may end it."""

    load: Callable[[str], Loaded]
    say: Callable[[str], None]
    show: Callable[[Step], None]
    stop: Callable[[], bool]


@dataclass
class Progress:
    """How far training has come, and the best evaluation on dev so far."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Exams:
    dev: Exam
    test: Exam


def nothing() -> None:
    """Do nothing."""


def run(
    settings: Settings,
    place: Path,
    around: Surroundings,
    resume: bool = False,
    begin: Callable[[], None] = nothing,
) -> Results | None:
    """Run a task from data to results.

    Args:
        settings: what to do.
        place: folder of the run.
        around: who loads models, and so on.
        resume: take what a run in ``place`` with the same settings has left: its results if it
            is complete, else its checkpoint if there is one.
        begin: called when all is found to be in order, before anything is written.

    Returns:
        What ``results.json`` has; ``None`` if the run was ended early, after saving a checkpoint.

    Raises:
        ConfigError: settings cannot work, or are not those of the run to go on with.
        DataError: the data, or the checkpoint, cannot be used.
        ModelError: the model cannot be used.
        NonFiniteLossError: a loss was NaN or infinite.
    """
    folder = RunFolder(place)
    progress = Progress()
    if resume and folder.begun():
        changed = settings.differences(folder.config())
        if changed:
            raise ConfigError(f"--resume: {place} was run otherwise: {'; '.join(changed)}.")
        done = folder.results()
        if done is not None:
            around.say(f"{place} is complete.")
            return done
        progress = Progress(**(folder.state() or {}))
    prepared = _Run(settings, folder, around, progress)
    begin()
    return prepared.complete()


def run_grid(
    trials: Sequence[Settings], place: Path, around: Surroundings, resume: bool = False
) -> Results | None:
    """Run a grid's trials in folders below ``place``; the best on dev gives the results there.

    Of the trained models only the best trial's is kept. Arguments, result and errors are those
    of `run`; a trial with a loss that is not finite counts as failed.
    """
    folder = RunFolder(place)
    config = {"grid": [asdict(trial) for trial in trials], "zo2": zo2.__version__}
    begin = nothing if resume and folder.begun() else functools.partial(folder.start, config)
    tried: list[tuple[RunFolder, Results]] = []
    report: list[Results] = []
    for number, trial in enumerate(trials, start=1):
        below = folder.trial(lr=trial.lr, eps=trial.eps)
        around.say(f"Trial {number} of {len(trials)}: {below.path.name}")
        try:
            results = run(trial, below.path, around, resume, begin)
        except NonFiniteLossError as error:
            around.say(f"This trial failed: {error}")
            report.append({"lr": trial.lr, "eps": trial.eps, "failed": str(error)})
            continue
        finally:
            begin = nothing
        if results is None:
            return None
        tried.append((below, results))
        report.append({"lr": trial.lr, "eps": trial.eps, "dev": results["dev"]})
    if not tried:
        raise NonFiniteLossError("Every trial of the grid failed: give smaller values of lr.")
    kept, best = max(tried, key=lambda one: one[1]["dev"][one[1]["metric"]])
    for other, _ in tried:
        if other is not kept:
            shutil.rmtree(other.model, ignore_errors=True)
    results = {**best, "grid": report}
    folder.finish(results)
    return results


class _Run:
    """The state that the steps of a run share.

    Making one finds out what is wrong with settings, data and model, and writes nothing.
    """

    def __init__(
        self, settings: Settings, folder: RunFolder, around: Surroundings, progress: Progress
    ) -> None:
        self.settings, self.folder, self.around = settings, folder, around
        self.progress = progress
        self.config, self.task = settings.config(), settings.find_task()
        get_family(self.config.direction)  # a misspelt one should not wait for the model
        self.split = _split(settings, self.task)
        train, dev, test = map(len, (self.split.train, self.split.dev, self.split.test))
        around.say(
            f"{self.task.name}: {train} examples to train on, {dev} to choose by, {test} to test on"
        )
        self.loaded = self._load(folder.checkpoint if progress.step else None)
        self.pad = pad_token(self.loaded.tokenizer)
        self.exams = self._prepare_exams()
        learnt = self.split.train if settings.trained else []
        self.questions = [self._encoder().learnt(one, self.task.loss) for one in learnt]
        self.mark = fingerprint(self.loaded.model)
        if progress.step and self.mark != folder.config().get("fingerprint"):
            raise DataError(
                f"{folder.checkpoint} is a checkpoint of another model than the run began with: "
                "put the run's own back, or start anew without --resume."
            )

    def complete(self) -> Results | None:
        """Train if the mode does, test, and write the results."""
        settings, progress = self.settings, self.progress
        if not progress.step:
            about = {"zo2": zo2.__version__, "fingerprint": self.mark}
            self.folder.start({**asdict(settings), **about})
        if settings.trained:
            zo2.prepare(self.loaded.model, self.config)
            if not self._train():
                return None
            if progress.best_step != progress.step:
                self.around.say(f"Testing the weights of step {progress.best_step}, best on dev.")
                del self.loaded  # two models may not fit
                self.loaded = self._load(self.folder.model)
                zo2.prepare(self.loaded.model, self.config)
        else:
            zo2.prepare(self.loaded.model, self.config)
        results = {
            "task": self.task.name,
            "metric": self.task.metric,
            "model": settings.model,
            "mode": settings.mode,
            "seed": settings.seed,
            "dev": progress.best or self.exams.dev.figures(self.loaded, self.pad),
            "test": self.exams.test.figures(self.loaded, self.pad),
            "memory": peak_memory(),
            "zo2": zo2.__version__,
        }
        if settings.trained:
            results |= {
                "method": settings.method,
                "lr": settings.lr,
                "eps": settings.eps,
                "steps": progress.step,
                "best_step": progress.best_step,
                "seconds": progress.seconds,
            }
        self.folder.finish(results)
        return results

    def _train(self) -> bool:
        """Take the steps that are left; whether all of them were taken."""
        settings, progress, folder = self.settings, self.progress, self.folder
        plan = settings.plan(self.task.loss)
        model, stop = self.loaded.model, self.around.stop
        model.opt.steps = progress.step  # directions go on where they were
        folder.forget_after(progress.step)
        if not progress.step:
            folder.log({"step": 0, "dev": self._evaluate()})
        for step in train(model, self.questions, self.pad, plan, stop, progress.step):
            progress.step, progress.seconds = step.step, progress.seconds + step.seconds
            line: dict[str, Any] = asdict(step)
            last = step.step == settings.steps
            if last or (settings.eval_every and step.step % settings.eval_every == 0):
                line["dev"] = self._evaluate()
                self._keep_if_best(line["dev"])
            folder.log(line)
            self.around.show(step)
            if settings.save_every and step.step % settings.save_every == 0:
                folder.save_checkpoint(self.loaded, asdict(progress))
        if progress.step == settings.steps:
            return True
        if progress.step:
            folder.save_checkpoint(self.loaded, asdict(progress))
        return False

    def _evaluate(self) -> dict[str, float]:
        figures = self.exams.dev.figures(self.loaded, self.pad)
        self.around.say(f"Step {self.progress.step}: dev {shown(figures)}")
        return figures

    def _keep_if_best(self, figures: dict[str, float]) -> None:
        progress, metric = self.progress, self.task.metric
        if not progress.best or figures[metric] > progress.best[metric]:
            progress.best, progress.best_step = figures, progress.step
            notes = {"task": self.task.name, "step": progress.step, "dev": figures}
            self.folder.save_model(self.loaded, notes)

    # -- the model ----------------------------------------------------------------------------

    def _load(self, saved: Path | None) -> Loaded:
        """The model that the run begins with, or the one that it saved."""
        gc.collect()  # an earlier model's hooks refer to it in circles
        settings = self.settings
        if saved is not None and settings.mode == modes.FT:
            return self.around.load(str(saved))
        loaded = self.around.load(settings.model)
        model = modes.adapt(loaded.model, settings.mode, settings.seed)
        if saved is not None:
            modes.restore(model, settings.mode, saved)
        return Loaded(model, loaded.tokenizer)

    # -- the examples -------------------------------------------------------------------------

    def _prepare_exams(self) -> _Exams:
        settings, split, task = self.settings, self.split, self.task
        encode = self._encoder()
        if settings.mode == modes.IN_CONTEXT:
            shown = demonstrations(split.train, settings.demonstrations, settings.seed)
            encode = replace(encode, demonstrations=shown)
        exams = _Exams(*(Exam.prepare(task, part, encode) for part in (split.dev, split.test)))
        if isinstance(task, Classification):
            check_words(task, exams.test.inputs[0], self.loaded.tokenizer)
        return exams

    def _encoder(self) -> Encoder:
        limit = sequence_limit(self.loaded.model, self.settings)
        return Encoder(encoder(self.loaded.tokenizer, self.loaded.known), limit)


def _split(settings: Settings, task: Task) -> Split:
    """Draw the examples, and make sure that there are some for all that the mode does."""
    folder = settings.data_dir
    split = draw_split(
        task,
        lambda part: (
            sources.from_folder(task.files, Path(folder).expanduser(), part)
            if folder is not None
            else sources.from_hub(task.hub, part)
        ),
        settings.num_train,
        task.dev_size if settings.num_dev is None else settings.num_dev,
        settings.num_test,
        settings.seed,
    )
    needs_train = settings.trained or settings.mode == modes.IN_CONTEXT
    if needs_train and not split.train:
        raise DataError(
            f"{task.name}: no training examples are left, since {len(split.dev)} were set aside "
            f"to choose by and --num-train is {settings.num_train}. Give a smaller --num-dev, or "
            "more data."
        )
    for name, part in (("choose by (--num-dev)", split.dev), ("test on (--num-test)", split.test)):
        if not part:
            raise DataError(f"{task.name}: there are no examples to {name}.")
    return split


def sequence_limit(model: Any, settings: Settings) -> int:
    """The most tokens that a sequence may have, a prefix's own tokens left aside.

    Raises:
        ConfigError: more are asked for than the model takes.
    """
    takes = longest(model)
    prefix = modes.PREFIX_TOKENS if settings.mode == modes.PREFIX else 0
    most = LONGEST if takes is None else takes - prefix
    if settings.max_length is None:
        return min(LONGEST, most)
    if takes is not None and settings.max_length > most:
        raise ConfigError(
            f"--max-length {settings.max_length}: sequences of this model may have at most {most} "
            "tokens."
        )
    return settings.max_length


def fingerprint(model: Any) -> str:
    """What tells models apart that cannot have each other's weights: names and shapes."""
    found = sorted(f"{name} {list(one.shape)}" for name, one in model.named_parameters())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def shown(figures: dict[str, float]) -> str:
    """Figures for people."""
    return ", ".join(f"{name} {value:.1%}" for name, value in figures.items())
