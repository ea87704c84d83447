"""``zo2 run``: one of the paper's tasks, from data to results."""

from __future__ import annotations

import contextlib
import itertools
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zo2 import saving
from zo2.cli.console import (
    INTERRUPTED,
    MISTAKE,
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
    DebugOption,
    DeviceOption,
    DirectionOption,
    DirectionsOption,
    Dtype,
    DtypeOption,
    GraphsOption,
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
    UnitOption,
    WeightDecayOption,
)
from zo2.tasks import task_names
from zo2.tasks.modes import DEMONSTRATIONS, STEPS
from zo2.tasks.settings import complete, grid

if TYPE_CHECKING:
    from zo2.loading import Loaded
    from zo2.tasks.experiment import Results


class Mode(str, Enum):
    """Names of the modes."""

    zero_shot = "zero-shot"
    in_context = "in-context"
    ft = "ft"
    lora = "lora"
    prefix = "prefix"


RUN_HELP = f"""Run a task of the MeZO paper: data, training, choice by dev, test.

Example, with the sentences of SST-2 as train.tsv and dev.tsv in a folder:

[bold]zo2 run --task SST2 --model smollm2 --data-dir sst2 --method fzoo --steps 250[/]

Tasks: {", ".join(task_names())}. Settings that are not given are the paper's. Ctrl-C saves a
checkpoint, from which --resume goes on. zo2 table prints what came out, zo2 plot draws it.
"""


@one_line_errors(mistake=MISTAKE)
def run(
    task: Annotated[str, typer.Option(metavar="NAME", help="Which task; see above.")],
    model: ModelOption,
    mode: Annotated[
        Mode,
        typer.Option(
            rich_help_panel=METHOD,
            help="Without training: zero-shot, or in-context with examples in the prompt. "
            "Training all weights: ft; adapters of peft: lora, prefix.",
        ),
    ] = Mode.ft,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=DATA,
            help="Folder with the published files of the task (default: the hub, by datasets).",
        ),
    ] = None,
    num_train: Annotated[
        int, typer.Option(min=0, rich_help_panel=DATA, help="Most examples to train on.")
    ] = 1000,
    num_dev: Annotated[
        int | None,
        typer.Option(
            min=0,
            rich_help_panel=DATA,
            help="Most training examples set aside to choose by (default: 500; 100 for the small "
            "CB, COPA and WSC).",
        ),
    ] = None,
    num_test: Annotated[
        int,
        typer.Option(
            min=0,
            rich_help_panel=DATA,
            help="Most examples to test on, of the validation split.",
        ),
    ] = 1000,
    demonstrations: Annotated[
        int,
        typer.Option(
            min=1, rich_help_panel=DATA, help="Examples shown in the prompt with --mode in-context."
        ),
    ] = DEMONSTRATIONS,
    label_words: Annotated[
        str | None,
        typer.Option(
            metavar="WORD,WORD,...",
            rich_help_panel=DATA,
            help="Other label words than the paper's, in the order of the labels.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            rich_help_panel=DATA,
            help="Most tokens of a sequence; longer texts lose their beginning, never question "
            "and answer (default: what the model takes, 2048 at most).",
        ),
    ] = None,
    method: MethodOption = Method.mezo,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=METHOD)] = STEPS,
    batch_size: BatchSizeOption = 16,
    micro_batches: MicroBatchesOption = 1,
    lr: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=METHOD,
            help="Learning rate (default: 1e-6 for ft, 1e-4 for lora, 1e-2 for prefix; 3e-3 for "
            "fzoo).",
        ),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=METHOD,
            help="Size of the perturbation (default: 1e-3 for ft, 1e-2 for lora, 1e-1 for prefix).",
        ),
    ] = None,
    grid_values: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="paper|lr=A,B|eps=A,B",
            rich_help_panel=METHOD,
            help="Try several learning rates and perturbation sizes, and take what does best on "
            "dev; may be given twice. paper: those of the paper.",
        ),
    ] = None,
    lr_schedule: ScheduleOption = Schedule.constant,
    weight_decay: WeightDecayOption = 0.0,
    direction: DirectionOption = None,
    directions: DirectionsOption = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            rich_help_panel=METHOD,
            help="Steps between evaluations on dev, of which the best is tested (default: a fifth "
            "of the steps; 0: only the end).",
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            rich_help_panel=OUTPUT,
            help="Steps between checkpoints (default: as --eval-every; 0: none but at Ctrl-C).",
        ),
    ] = None,
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
            help="Folder of the run (default: a new one below runs, named by task and mode).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=OUTPUT,
            help="Go on with the run in --output, from its last checkpoint.",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """See `RUN_HELP`, which newcomers read."""
    settings = complete(
        {
            "task": task, "model": model, "mode": mode.value, "method": method.value, "lr": lr,
            "eps": eps, "steps": steps, "batch_size": batch_size, "micro_batches": micro_batches,
            "schedule": lr_schedule.value, "weight_decay": weight_decay, "direction": direction,
            "directions": directions, "eval_every": eval_every, "save_every": save_every,
            "num_train": num_train, "num_dev": num_dev, "num_test": num_test,
            "demonstrations": demonstrations, "max_length": max_length,
            "label_words": label_words, "data_dir": None if data_dir is None else str(data_dir),
            "seed": seed, "dtype": None if dtype is Dtype.auto else dtype.value,
            "device": device, "unit": None if unit is None else unit.value,
            "device_memory": device_memory, "resident": resident, "cuda_graphs": cuda_graphs,
        }
    )  # fmt: skip
    trials = grid(settings, grid_values) if grid_values else []
    chosen = settings.find_task()
    default = f"runs/{chosen.name}-{settings.mode}"
    place = output or (_latest(default) if resume else saving.free_name(default))

    from zo2.tasks import experiment
    from zo2.tasks.folder import RunFolder

    folder = RunFolder(place)
    if not (resume and folder.begun()):
        folder.check_free(overwrite)
        if resume:
            out.print(f"There is no run in {place} to go on with; this begins one.", markup=False)

    def load_model(name: str) -> Loaded:
        return load(name, dtype, device)

    def say(text: str) -> None:
        out.print(text, markup=False)

    # without training there is no step to wait for
    stopping = stop_on_interrupt() if settings.trained else contextlib.nullcontext(lambda: False)
    try:
        with stopping as stop, show_progress(steps) as show:
            around = experiment.Surroundings(load_model, say, show, stop)
            if trials:
                results = experiment.run_grid(trials, place, around, resume)
            else:
                results = experiment.run(settings, place, around, resume)
    except KeyboardInterrupt:
        results = None
    if results is None:
        out.print(
            "Interrupted. The same command with --resume goes on from the last checkpoint, if "
            f"there is one; run: {place}",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)
    _summary(results, place)


def _latest(base: str) -> Path:
    """The last of ``base``, ``base-2``, ...: what a command without ``--output`` began last."""
    taken = itertools.takewhile(Path.exists, (Path(f"{base}-{n}") for n in itertools.count(2)))
    return [Path(base), *taken][-1]


def _summary(results: Results, place: Path) -> None:
    from zo2.tasks.experiment import shown

    out.print(f"Dev: {shown(results['dev'])}. Test: {shown(results['test'])}.")
    if "steps" in results:
        took = duration(results["seconds"])
        out.print(
            f"{results['steps']} steps with lr {results['lr']:g} and eps {results['eps']:g} in "
            f"{took}; best on dev after step {results['best_step']}."
        )
    out.print(f"Results: {place}", markup=False)
