"""``zo2 plan``: what a model will need at a memory budget, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from zo2.cli.console import MISTAKE, one_line_errors, out
from zo2.cli.options import DebugOption, Unit
from zo2.shapes import SHAPES

if TYPE_CHECKING:
    from zo2.planning import Prediction


TOKENS = 2048


@one_line_errors(mistake=MISTAKE)
def plan(
    model: Annotated[
        str,
        typer.Option(
            metavar="DIR|HUB_NAME|SHAPE",
            help="Directory or hub name of a model, of which only the config is read, or one of "
            f"the shapes {', '.join(SHAPES)}.",
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Device memory in all, such as 6GB; without, several are shown."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples of a micro-batch.")] = 1,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Tokens of an example (default: {TOKENS}, or the most the model takes)."
        ),
    ] = None,
    micro_batches: Annotated[int, typer.Option(min=1, help="Micro-batches of a step.")] = 1,
    passes: Annotated[
        int, typer.Option(min=1, help="Passes of a step: 2 for MeZO, n + 1 for FZOO.")
    ] = 2,
    dtype: Annotated[
        str, typer.Option(help="Precision: float16, bfloat16 or float32.")
    ] = "float16",
    unit: Annotated[
        Unit | None,
        typer.Option(help="What is perturbed at once (default: leaf where blocks are large)."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Device buffers (default: 3 to 8).")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Bytes per second of the link each way, such as 25GB, if it is "
            "not the H200's 50.8GB.",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Predict memory, bytes moved and seconds per step; nothing is loaded and no GPU needed."""
    from rich.table import Table

    from zo2 import loading, planning
    from zo2.config.base import parse_bytes
    from zo2.engine.placement import Placement, unit_sizes_to_try
    from zo2.errors import ConfigError

    if dtype not in loading.DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(loading.DTYPES)}, not {dtype!r}.")
    machine = planning.H200
    if link:
        rate = parse_bytes(link, "link")
        machine = replace(machine, name=f"H200 on a link of {link}/s", up=rate, both=rate)
    with out.status("Reading the model's shape ..."):
        built = planning.build(model, dtype)
        tokens = tokens or min(TOKENS, loading.longest(built) or TOKENS)
        sizes = [unit.value] if unit else unit_sizes_to_try(built, Placement(budget=1))
        steps = planning.works(built, sizes, batch, tokens, passes, micro_batches)

    def within(most: int | None) -> Prediction:
        placement = Placement(slots=slots, budget=1 << 60 if most is None else most)
        return planning.predict_first(steps, placement, machine)

    if budget:
        found = [(parse_bytes(budget), within(parse_bytes(budget)))]
    else:
        found = list(planning.over_budgets(within))
    table = Table(title=f"{model}, {dtype}, {batch} x {tokens} tokens, {machine.name}")
    for name in ("budget", "device memory", "page-locked", "moved per step", "s / step", "limit"):
        table.add_column(name, justify="left" if name == "limit" else "right")
    for row in dict.fromkeys(_row(size, one) for size, one in found):  # small models have few
        table.add_row(*row)
    out.print(table)
    need = found[-1][1].plan.need if budget else found[0][1].plan.need
    out.print(f"{'Device memory' if budget else 'The least'}, in GB: {need.itemised()}")


def _row(budget: int, one: Prediction) -> tuple[str, ...]:
    times = {"link": one.link, "GPU": one.compute, "host": one.host}
    return (
        f"{budget / 1e9:.2f} GB",
        f"{one.plan.need.total / 1e9:.2f} GB",
        f"{one.page_locked / 1e9:.1f} GB",
        f"{(one.up + one.down) / 1e9:.1f} GB",
        f"{one.seconds:.3f}",
        max(times, key=times.__getitem__),
    )
