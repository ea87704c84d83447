"""The command ``zo2``: fine-tune a language model on labelled texts, and evaluate one.

torch and transformers are imported within the functions that use them, so that help and
mistakes in the arguments take no time.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

import zo2
from zo2 import data
from zo2.errors import ConfigError, NonFiniteLossError, ZO2Error

if TYPE_CHECKING:
    from zo2.config import ZOSettings
    from zo2.evaluation import Score
    from zo2.loading import Loaded
    from zo2.training import History, Plan, Step

LR = {"mezo-sgd": 3e-5, "fzoo": 3e-3}
HELD_OUT = 0.2
INTERRUPTED = 130  # the exit code that shells give a program ended by Ctrl-C

app = typer.Typer(
    help="Fine-tune language models with forward passes only, weights streamed from host memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Method(str, Enum):
    """Names of the methods."""

    mezo = "mezo-sgd"
    fzoo = "fzoo"


class Dtype(str, Enum):
    """Precisions a model may be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Loss(str, Enum):
    """What is made small."""

    choice = "choice"
    word = "word"


class Schedule(str, Enum):
    """Courses of the learning rate."""

    constant = "constant"
    linear = "linear"


class Unit(str, Enum):
    """What is moved at once."""

    block = "block"
    leaf = "leaf"


F = TypeVar("F", bound=Callable[..., Any])


def one_line_errors(command: F) -> F:
    """Print a mistake as one line on stderr, exit code 1; ``--debug`` adds the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except (ZO2Error, OSError, MemoryError) as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _print_error(str(error) or type(error).__name__)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _print_error("Interrupted; nothing was saved.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            message = next(iter(str(error).splitlines()), "")
            _print_error(f"{type(error).__name__}: {message} (--debug shows where)")
            raise typer.Exit(1) from None

    return wrapped  # type: ignore[return-value]


def _print_error(message: str) -> None:
    err.print("[bold red]Error:[/]", end=" ")
    err.print(" ".join(message.split()), markup=False)


# -- options ----------------------------------------------------------------------------------

_MODEL, _DATA, _METHOD, _MACHINE, _OUTPUT = "Model", "Data", "Method", "Machine", "Output"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="DIR|HUB_NAME|FILE.gguf", rich_help_panel=_MODEL,
        help="Directory with a transformers model, a model's name on the hub, a GGUF file, or "
        "'smollm2' for SmolLM2-135M-Instruct.",
    ),
]  # fmt: skip
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        rich_help_panel=_MODEL,
        help="Precision of the weights; auto: as stored, but float32 on a CPU and from GGUF.",
    ),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data", metavar="FILE", rich_help_panel=_DATA,
        help="Labelled texts: text<TAB>label lines, or JSON lines (.jsonl).",
    ),
]  # fmt: skip
TemplateOption = Annotated[
    str,
    typer.Option(rich_help_panel=_DATA, help="Prompt; the label word takes {label}'s place, last."),
]
WordsOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORD,WORD,...", rich_help_panel=_DATA,
        help="Word for each label, in the labels' sorted order, or 0=terrible,1=great. By "
        "default terrible,great for labels 0 and 1, else the labels themselves.",
    ),
]  # fmt: skip
TextFieldOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=_DATA, help="JSON field of the text (default: text or sentence)."),
]
LabelFieldOption = Annotated[
    str, typer.Option(rich_help_panel=_DATA, help="JSON field of the label.")
]
MaxLengthOption = Annotated[
    int,
    typer.Option(
        min=8, rich_help_panel=_DATA,
        help="Most tokens per example; longer texts lose their beginning, never the label word.",
    ),
]  # fmt: skip
MaxExamplesOption = Annotated[
    int | None,
    typer.Option(min=2, rich_help_panel=_DATA, help="Use at most so many examples of the data."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=_MACHINE, help="cpu, cuda or cuda:N (default: cuda if present)."),
]
SeedOption = Annotated[
    int, typer.Option(min=0, help="Seed of the directions and of the examples' order.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

TRAIN_HELP = """Fine-tune a model to tell labelled texts apart.

Example, on any machine with a few GB of memory:

[bold]zo2 train --model smollm2 --data examples/reviews.tsv
--eval-data examples/reviews-test.tsv --steps 30 --batch-size 32 --lr 1e-4[/]

The model is evaluated, trained, evaluated again and saved; Ctrl-C ends the training early and
saves. The saved directory loads with plain transformers.
"""


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Print the version, if asked to."""
    if version:
        typer.echo(zo2.__version__)
        raise typer.Exit()


@app.command(help=TRAIN_HELP)
@one_line_errors
def train(
    model: ModelOption,
    data_file: DataOption,
    eval_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_DATA,
            help="Texts to evaluate with; otherwise a fifth of the data is held out.",
        ),
    ] = None,
    template: TemplateOption = data.DEFAULT_TEMPLATE,
    label_words: WordsOption = None,
    text_field: TextFieldOption = None,
    label_field: LabelFieldOption = data.LABEL_FIELD,
    max_examples: MaxExamplesOption = None,
    max_length: MaxLengthOption = 256,
    method: Annotated[
        Method,
        typer.Option(
            rich_help_panel=_METHOD,
            help="mezo-sgd: 2 passes per step; fzoo: one pass more than directions, far fewer "
            "steps.",
        ),
    ] = Method.mezo,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=_METHOD)] = 1000,
    batch_size: Annotated[
        int, typer.Option(min=1, rich_help_panel=_METHOD, help="Examples per step.")
    ] = 16,
    micro_batches: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=_METHOD,
            help="Parts that a step's examples are split into, to hold fewer activations; they "
            "share one sweep of the weights.",
        ),
    ] = 1,
    loss: Annotated[
        Loss,
        typer.Option(
            rich_help_panel=_METHOD,
            help="choice: of the right label word among the label words; word: among all words.",
        ),
    ] = Loss.choice,
    lr: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_METHOD,
            help="Learning rate (default: 3e-5 for mezo-sgd, 3e-3 for fzoo).",
        ),
    ] = None,
    lr_schedule: Annotated[
        Schedule, typer.Option(rich_help_panel=_METHOD, help="linear falls to 0.")
    ] = Schedule.constant,
    eps: Annotated[
        float, typer.Option(rich_help_panel=_METHOD, help="Size of the perturbation.")
    ] = 1e-3,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=_METHOD)] = 0.0,
    direction: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_METHOD,
            help="gaussian, rademacher or rank1 (default: gaussian for mezo-sgd, rademacher for "
            "fzoo).",
        ),
    ] = None,
    directions: Annotated[
        int | None,
        typer.Option(
            min=2, rich_help_panel=_METHOD, help="Directions per step of fzoo (default: 8)."
        ),
    ] = None,
    eval_every: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=_METHOD,
            help="Steps between evaluations; 0: only before and after.",
        ),
    ] = 0,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = None,
    unit: Annotated[
        Unit,
        typer.Option(
            rich_help_panel=_MACHINE,
            help="What is moved to the device at once: leaf takes the least memory.",
        ),
    ] = Unit.block,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_OUTPUT,
            help="Where to save model, tokenizer and metrics.json (default: a new zo2-output).",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", rich_help_panel=_OUTPUT, help="Replace what an earlier run saved there."
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """See `TRAIN_HELP`, which newcomers read."""
    settings = {k: _plain(v) for k, v in locals().items() if k not in ("debug", "overwrite")}
    from zo2 import saving

    place = output or saving.free_name("zo2-output")
    saving.check_output(place, overwrite)
    rate = LR[method.value] if lr is None else lr
    config = _config(
        method.value, lr=rate, eps=eps, weight_decay=weight_decay, unit=unit.value, seed=seed,
        working_device=device, direction=direction, directions=directions,
    )  # fmt: skip
    if micro_batches > batch_size:
        raise ConfigError(
            f"{micro_batches} micro-batches need at least as many examples per step, but "
            f"--batch-size is {batch_size}."
        )
    read = functools.partial(data.read_examples, text_field=text_field, label_field=label_field)
    task = _Task.read(read, data_file, eval_data, label_words, max_examples, seed)
    form = data.Template.parse(template)
    out.print(task.describe(), markup=False)

    from zo2.training import Plan

    plan = Plan(
        steps, batch_size, micro_batches, rate, loss.value, lr_schedule.value, eval_every, seed
    )
    from zo2.directions import get_family

    get_family(config.direction)  # a misspelt one should not wait for the model
    loaded = _load(model, dtype, device)
    prompter = _prompter(loaded, form, task.words, max_length)
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


@app.command(name="eval")
@one_line_errors
def evaluate(
    model: ModelOption,
    data_file: DataOption,
    template: TemplateOption = data.DEFAULT_TEMPLATE,
    label_words: WordsOption = None,
    text_field: TextFieldOption = None,
    label_field: LabelFieldOption = data.LABEL_FIELD,
    max_examples: MaxExamplesOption = None,
    max_length: MaxLengthOption = 256,
    seed: Annotated[int, typer.Option(min=0, help="Which examples --max-examples draws.")] = 0,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how well a model tells labelled texts apart."""
    config = _config("mezo-sgd", working_device=device, seed=seed)
    read = functools.partial(data.read_examples, text_field=text_field, label_field=label_field)
    task = _Task.read(read, data_file, data_file, label_words, max_examples, seed)
    form = data.Template.parse(template)
    loaded = _load(model, dtype, device)
    prompter = _prompter(loaded, form, task.words, max_length)
    zo2.prepare(loaded.model, config)
    score = _evaluator(loaded, prompter, task)()
    out.print(f"{score.count} examples: {_shown(score)}")


# -- what the commands share ------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """Examples to train on and to evaluate with, and the labels' words."""

    examples: Sequence[data.Example]
    dev: Sequence[data.Example]
    words: Mapping[str, str]
    held_out: bool

    @classmethod
    def read(
        cls,
        read: Callable[..., list[data.Example]],
        path: Path,
        dev_path: Path | None,
        words: str | None,
        max_examples: int | None,
        seed: int,
    ) -> _Task:
        given = None if words is None else data.parse_label_words(words)
        known = set(given) if isinstance(given, dict) else None
        examples = read(path, labels=known)
        chosen = data.choose_words([one.label for one in examples], given)
        if dev_path is None:
            examples, dev = data.hold_out(examples, HELD_OUT, seed)
        elif dev_path == path:
            dev = examples = data.sample(examples, max_examples, seed)
        else:
            dev = read(dev_path, labels=set(chosen))
        return cls(data.sample(examples, max_examples, seed), dev, chosen, dev_path is None)

    def describe(self) -> str:
        words = ", ".join(f"{label} = {word!r}" for label, word in self.words.items())
        held = " (held out of the data at random)" if self.held_out else ""
        return (
            f"Data: {len(self.examples)} examples to train on, {len(self.dev)} to evaluate with"
            f"{held}; {words}"
        )


def _config(method: str, **settings: Any) -> ZOSettings:
    """Settings of a method, leaving out those that are None."""
    if method != "fzoo" and settings.get("directions") is not None:
        raise ConfigError("--directions belongs to --method fzoo; mezo-sgd has one direction.")
    return zo2.ZOConfig(method, **{k: v for k, v in settings.items() if v is not None})


def _load(name: str, dtype: Dtype, device: str | None) -> Loaded:
    from zo2 import loading

    source = loading.resolve(name)
    with out.status("Loading torch and the model ..."):
        place = _device(device)
        loaded = loading.load(source, None if dtype is Dtype.auto else dtype.value, place)
    count = sum(p.numel() for p in loaded.model.parameters())
    kind = type(loaded.model).__name__
    precision = str(loaded.model.dtype).removeprefix("torch.")
    out.print(f"Model: {kind}, {count / 1e6:,.1f} M parameters, {precision}, on {place}")
    return loaded


def _device(wanted: str | None) -> str:
    """Kind of the working device, ``"cpu"`` or ``"cuda"``."""
    import torch

    present = torch.cuda.is_available()
    if wanted and wanted.startswith("cuda") and not present:
        raise ConfigError(
            f"--device {wanted}: torch {torch.__version__} sees no GPU; use --device cpu, or "
            "install a torch built for CUDA and its driver."
        )
    return "cuda" if present and not (wanted or "").startswith("cpu") else "cpu"


def _prompter(
    loaded: Loaded, template: data.Template, words: Mapping[str, str], max_length: int
) -> data.Prompter:
    limit = getattr(loaded.model.config, "max_position_embeddings", None) or max_length
    encode = data.encoder(loaded.tokenizer)
    return data.Prompter(template, words, encode, min(max_length, limit))


def _pad(loaded: Loaded) -> int:
    """A token id to pad with; which one does not matter, since padding is masked."""
    return int(loaded.tokenizer.pad_token_id or loaded.tokenizer.eos_token_id or 0)


def _evaluator(loaded: Loaded, prompter: data.Prompter, task: _Task) -> Callable[[], Score]:
    from zo2 import evaluation

    questions = prompter.questions(task.dev)
    return lambda: evaluation.evaluate(loaded.model, questions, _pad(loaded))


def _run(
    loaded: Loaded, prompter: data.Prompter, task: _Task, plan: Plan
) -> tuple[History, NonFiniteLossError | None]:
    """Evaluate, train, evaluate; what stopped the training early, if an error did."""
    from zo2.training import History, train

    history = History()
    questions = prompter.questions(task.examples)
    score = _evaluator(loaded, prompter, task)

    def evaluate(when: str) -> None:
        with out.status("Evaluating ..."):
            history.add_score(score())
        last = history.evals[-1]
        out.print(f"{when}: accuracy {last['accuracy']:.1%}, loss {last['loss']:.3f}")

    evaluate("Before training")
    failure: NonFiniteLossError | None = None
    with _stop_on_interrupt() as stop:
        try:
            with _progress(plan.steps) as show:
                for step in train(loaded.model, questions, _pad(loaded), plan, stop):
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


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C ask for an end after the current step; a second Ctrl-C ends at once."""
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        err.print("Stopping after this step (Ctrl-C again: at once, without saving) ...")

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[Step], None]]:
    """Show steps as they come: a bar on a terminal, elsewhere about ten lines."""
    from zo2.training import memory

    def text(step: Step) -> str:
        return f"loss {step.loss:.3f}  {step.tokens / step.seconds:,.0f} tokens/s  {memory()}"

    if not out.is_terminal:
        every = max(1, steps // 10)

        def line(step: Step) -> None:
            if step.step % every == 0 or step.step in (1, steps):
                out.print(f"Step {step.step}/{steps}: {text(step)}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = ("Training", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, Remaining(), console=out) as progress:
        bar = progress.add_task("train", total=steps, text="")
        yield lambda step: progress.update(bar, completed=step.step, text=text(step))


def _shown(score: Score) -> str:
    return f"accuracy {score.accuracy:.1%}, loss {score.loss:.3f}"


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
    out.print(f"{len(history.steps)} steps in {_duration(seconds)}. Saved: {place}", markup=False)


def _duration(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds >= 60 else f"{seconds:.1f} s"


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
