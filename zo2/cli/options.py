"""Options that several commands take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


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


MODEL, DATA, METHOD, MACHINE, OUTPUT = "Model", "Data", "Method", "Machine", "Output"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="DIR|HUB_NAME|FILE.gguf", rich_help_panel=MODEL,
        help="Directory with a transformers model, a model's name on the hub, a GGUF file, or "
        "'smollm2' for SmolLM2-135M-Instruct.",
    ),
]  # fmt: skip
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        rich_help_panel=MODEL,
        help="Precision of the weights; auto: as stored, but float32 on a CPU and from GGUF.",
    ),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data", metavar="FILE", rich_help_panel=DATA,
        help="Labelled texts: text<TAB>label lines, or JSON lines (.jsonl).",
    ),
]  # fmt: skip
TemplateOption = Annotated[
    str,
    typer.Option(rich_help_panel=DATA, help="Prompt; the label word takes {label}'s place, last."),
]
WordsOption = Annotated[
    str | None,
    typer.Option(
        metavar="WORD,WORD,...", rich_help_panel=DATA,
        help="Word for each label, in the labels' sorted order, or 0=terrible,1=great. By "
        "default terrible,great for labels 0 and 1, else the labels themselves.",
    ),
]  # fmt: skip
TextFieldOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="JSON field of the text (default: text or sentence)."),
]
LabelFieldOption = Annotated[
    str, typer.Option(rich_help_panel=DATA, help="JSON field of the label.")
]
MaxLengthOption = Annotated[
    int,
    typer.Option(
        min=8, rich_help_panel=DATA,
        help="Most tokens per example; longer texts lose their beginning, never the label word.",
    ),
]  # fmt: skip
MaxExamplesOption = Annotated[
    int | None,
    typer.Option(min=2, rich_help_panel=DATA, help="Use at most so many examples of the data."),
]
MethodOption = Annotated[
    Method,
    typer.Option(
        rich_help_panel=METHOD,
        help="mezo-sgd: 2 passes per step; fzoo: one pass more than directions, far fewer steps.",
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, rich_help_panel=METHOD, help="Examples per step.")
]
MicroBatchesOption = Annotated[
    int,
    typer.Option(
        min=1,
        rich_help_panel=METHOD,
        help="Parts that a step's examples are split into, to hold fewer activations; they "
        "share one sweep of the weights.",
    ),
]
ScheduleOption = Annotated[
    Schedule, typer.Option(rich_help_panel=METHOD, help="linear falls to 0.")
]
WeightDecayOption = Annotated[float, typer.Option(rich_help_panel=METHOD)]
DirectionOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=METHOD,
        help="gaussian, rademacher or rank1 (default: gaussian for mezo-sgd, rademacher for fzoo).",
    ),
]
DirectionsOption = Annotated[
    int | None,
    typer.Option(min=2, rich_help_panel=METHOD, help="Directions per step of fzoo (default: 8)."),
]
UnitOption = Annotated[
    Unit | None,
    typer.Option(
        rich_help_panel=MACHINE,
        help="What is moved to the device at once: leaf takes the least memory (default: block, "
        "but with --device-memory leaf where blocks are large or do not fit).",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--device-memory", metavar="SIZE", rich_help_panel=MACHINE,
        help="GPU memory that everything may take, such as 6GB; what fits stays on the GPU. See "
        "zo2 plan.",
    ),
]  # fmt: skip
ResidentOption = Annotated[
    bool,
    typer.Option("--resident", rich_help_panel=MACHINE, help="Keep all weights on the device."),
]
GraphsOption = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs", rich_help_panel=MACHINE,
        help="Replay steps, or passes through streamed blocks, as CUDA graphs: for small resident "
        "models, and for hosts that are slower than the link (default: passes through streamed "
        "blocks, once steps have waited for the host).",
    ),
]  # fmt: skip
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", rich_help_panel=OUTPUT, help="Replace what an earlier run saved there."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=MACHINE, help="cpu, cuda or cuda:N (default: cuda if present)."),
]
SeedOption = Annotated[
    int, typer.Option(min=0, help="Seed of the directions and of the examples' order.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
