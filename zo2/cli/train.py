"""``zo2 train``: fine-tune a model on labelled texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import zo2
from zo2 import data, prompts
from zo2.batches import pad_token
from zo2.cli.console import (
    INTERRUPTED,
    duration,
    one_line_errors,
    out,
    show_progress,
    stop_on_interrupt,
)
from zo2.cli.models import load
from zo2.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    BatchSizeOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DirectionOption,
    DirectionsOption,
    Dtype,
    DtypeOption,
    GraphsOption,
    LabelFieldOption,
    Loss,
    MaxExamplesOption,
    MaxLengthOption,
    MemoryOption,
    Method,
    MethodOption,
    MicroBatchesOption,
    ModelOption,
    OverwriteOption,
    ResidentOption,
    Schedule,
    ScheduleOption,
    SeedOption,
    TemplateOption,
    TextFieldOption,
    UnitOption,
    WeightDecayOption,
    WordsOption,
    plain,
)
from zo2.cli.texts import LabelledTexts, evaluator, make_prompter
from zo2.errors import ConfigError, NonFiniteLossError
from zo2.training import History, Plan, method_config

if TYPE_CHECKING:
    from zo2.loading import Loaded

LR = {"mezo-sgd": 3e-5, "fzoo": 3e-3}

TRAIN_HELP = """Fine-tune a model to tell labelled texts apart.

Example, on any machine with a few GB of memory:

[bold]zo2 train --model smollm2 --data examples/reviews.tsv
--eval-data examples/reviews-test.tsv --steps 30 --batch-size 32 --lr 1e-4[/]

The model is evaluated, trained, evaluated again and saved; Ctrl-C ends the training early and
saves. The saved directory loads with plain transformers.
"""


@one_line_errors()
def train(
    model: ModelOption,
    data_file: DataOption,
    eval_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=DATA,
            help="Texts to evaluate with; otherwise a fifth of the data is held out.",
        ),
    ] = None,
    template: TemplateOption = prompts.DEFAULT_TEMPLATE,
    label_words: WordsOption = None,
    text_field: TextFieldOption = None,
    label_field: LabelFieldOption = data.LABEL_FIELD,
    max_examples: MaxExamplesOption = None,
    max_length: MaxLengthOption = 256,
    method: MethodOption = Method.mezo,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=METHOD)] = 1000,
    batch_size: BatchSizeOption = 16,
    micro_batches: MicroBatchesOption = 1,
    loss: Annotated[
        Loss,
        typer.Option(
            rich_help_panel=METHOD,
            help="choice: of the right label word among the label words; word: among all words.",
        ),
    ] = Loss.choice,
    lr: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=METHOD,
            help="Learning rate (default: 3e-5 for mezo-sgd, 3e-3 for fzoo).",
        ),
    ] = None,
    lr_schedule: ScheduleOption = Schedule.constant,
    eps: Annotated[
        float, typer.Option(rich_help_panel=METHOD, help="Size of the perturbation.")
    ] = 1e-3,
    weight_decay: WeightDecayOption = 0.0,
    direction: DirectionOption = None,
    directions: DirectionsOption = None,
    eval_every: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=METHOD,
            help="Steps between evaluations; 0: only before and after.",
        ),
    ] = 0,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = None,
    unit: UnitOption = None,
    device_memory: MemoryOption = None,
    resident: ResidentOption = False,
    cuda_graphs: GraphsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=OUTPUT,
            help="Where to save model, tokenizer and metrics.json (default: a new zo2-output).",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """See `TRAIN_HELP`, which newcomers read."""
    settings = {k: plain(v) for k, v in locals().items() if k not in ("debug", "overwrite")}
    from zo2 import saving

    place = output or saving.free_name("zo2-output")
    saving.check_output(place, overwrite)
    rate = LR[method.value] if lr is None else lr
    config = method_config(
        method.value, lr=rate, eps=eps, weight_decay=weight_decay, seed=seed,
        working_device=device, direction=direction, directions=directions,
        unit=None if unit is None else unit.value, device_memory_budget=device_memory,
        zo2=not resident, cuda_graphs=cuda_graphs,
    )  # fmt: skip
    if micro_batches > batch_size:
        raise ConfigError(
            f"{micro_batches} micro-batches need at least as many examples per step, but "
            f"--batch-size is {batch_size}."
        )
    read = functools.partial(data.read_examples, text_field=text_field, label_field=label_field)
    task = LabelledTexts.read(read, data_file, eval_data, label_words, max_examples, seed)
    form = prompts.Template.parse(template)
    out.print(task.describe(), markup=False)

    plan = Plan(
        steps, batch_size, micro_batches, rate, loss.value, lr_schedule.value, eval_every, seed
    )
    from zo2.directions import get_family

    get_family(config.direction)  # a misspelt one should not wait for the model
    loaded = load(model, dtype, device)
    prompter = make_prompter(loaded, form, task.words, max_length)
    zo2.prepare(loaded.model, config)
    history, failure = _run(loaded, prompter, task, plan)
    settings.update(lr=rate, output=str(place), label_words=dict(task.words))
    metrics = {"zo2": zo2.__version__, "settings": settings, **history.to_dict()}
    if history.steps:
        saving.save(loaded.model, loaded.tokenizer, metrics, place)
        _summary(history, place)
    if failure:
        raise failure
    if history.interrupted:
        raise typer.Exit(INTERRUPTED)


def _run(
    loaded: Loaded, prompter: prompts.Prompter, task: LabelledTexts, plan: Plan
) -> tuple[History, NonFiniteLossError | None]:
    """Evaluate, train, evaluate; what stopped the training early, if an error did."""
    from zo2.training import train

    history = History()
    questions = prompter.questions(task.examples)
    score = evaluator(loaded, prompter, task)

    def evaluate(when: str) -> None:
        with out.status("Evaluating ..."):
            history.add_score(score())
        last = history.evals[-1]
        out.print(f"{when}: accuracy {last['accuracy']:.1%}, loss {last['loss']:.3f}")

    evaluate("Before training")
    failure: NonFiniteLossError | None = None
    with stop_on_interrupt() as stop:
        try:
            with show_progress(plan.steps) as show:
                for step in train(loaded.model, questions, pad_token(loaded.tokenizer), plan, stop):
                    history.steps.append(step)
                    show(step)
                    due = plan.eval_every and step.step % plan.eval_every == 0
                    if due and step.step < plan.steps and not stop():
                        evaluate(f"After step {step.step}")
        except NonFiniteLossError as error:
            failure = error
        history.interrupted = stop() and len(history.steps) < plan.steps
        if history.interrupted:
            out.print(f"Interrupted after step {len(history.steps)}.")
        elif failure is None:
            evaluate("After training")
    return history, failure


def _summary(history: History, place: Path) -> None:
    from rich.table import Table

    table = Table("", "before", "after")
    first, last = history.evals[0], history.evals[-1]
    trained = last["step"] == len(history.steps)
    for name, form in (("accuracy", "{:.1%}"), ("loss", "{:.3f}")):
        after = form.format(last[name]) if trained else "not measured"
        table.add_row(name, form.format(first[name]), after)
    out.print(table)
    seconds = sum(step.seconds for step in history.steps)
    out.print(f"{len(history.steps)} steps in {duration(seconds)}. Saved: {place}", markup=False)
