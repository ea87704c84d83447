"""What a run will need before anything is loaded: memory, bytes moved, seconds per step.

The model is built without weights (on torch's meta device) and cut into units by the engine's own
code; one forward without data shows how large activations get, and how many operations it takes
(`zo2.dryrun`). Times come from rates that were measured on a named machine and can be replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zo2 import loading
from zo2.dryrun import dry_run
from zo2.engine import threadstacks
from zo2.engine.deferral import MOST
from zo2.engine.devicememory import page_tables
from zo2.engine.partition import Unit
from zo2.engine.placement import Placement, Plan, blocks_of, spared, tiny_ones
from zo2.errors import ConfigError, DeviceMemoryError, ModelError
from zo2.logits import Head
from zo2.shapes import SHAPES


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU and its host.

    Attributes:
        name: what was measured.
        up: bytes per second from page-locked memory to the GPU.
        both: bytes per second each way while copies run in both directions.
        two_buffers: how much longer that takes through two buffers only: one's way home and the
            other's way there cannot always overlap.
        compute: floating-point operations per second of products and attention in half precision.
        memory: bytes per second that other operations read and write.
        noise: weights per second that are updated and perturbed on both sides.
        again: weights per second to which one more update is applied, before that.
        visit: seconds of host time for each unit that passes stop at.
        along: and for each further one that they go through without another stop.
        turn: and to perturb any of these again, where there is room for one copy.
        call: seconds of host time for each torch operation of a pass: 38 for a block of OPT, 74 of
            Llama.
        boundary: seconds of host time between a sweep's last block and the next one's first.
        context: bytes that the CUDA context and the libraries take, among them cuBLAS's 32 MiB of
            torch's memory, without page tables.
        stacks: bytes of it that go within a budget (`zo2.engine.threadstacks`).
    """

    name: str
    up: float
    both: float
    two_buffers: float
    compute: float
    memory: float
    noise: float
    again: float
    visit: float
    along: float
    turn: float
    call: float
    boundary: float
    context: int
    stacks: int


H200 = Machine(  # benchmarks/README.md says how these were measured
    name="H200, PCIe 5 x16",
    up=55.5e9,
    both=50.8e9,
    two_buffers=1.045,
    compute=5.9e14,
    memory=3.9e12,
    noise=3.1e11,
    again=5e11,
    visit=0.65e-3,
    along=0.3e-3,
    turn=0.1e-3,
    call=6e-6,
    boundary=6e-3,
    context=764_000_000,
    stacks=132 * 2048 * (threadstacks.DEFAULT - threadstacks.SMALL),
)


@dataclass(frozen=True)
class Prediction:
    """What a run will need.

    Attributes:
        plan: where every unit rests.
        weights: bytes of all weights.
        page_locked: bytes of host memory that streamed weights take.
        up, down: bytes moved per step.
        every: sweeps from one way home of streamed weights to the next.
        link, compute, host: seconds that copies, the GPU and Python take per step; the longest
            decides.
        seconds: of a step.
    """

    plan: Plan
    weights: int
    page_locked: int
    up: int
    down: int
    every: int
    link: float
    compute: float
    host: float
    seconds: float


def build(name: str, dtype: str) -> Any:
    """A model without weights.

    Args:
        name: whatever `zo2.loading.resolve` takes, or else one of `zo2.shapes.SHAPES`.
        dtype: precision, one of `zo2.loading.DTYPES`.

    Raises:
        ModelError: there is no such model, or it is no causal language model.
    """
    if name in SHAPES and not Path(name).exists():
        return without_weights(SHAPES[name](), dtype)
    source = loading.resolve(name)
    try:
        return without_weights(loading.load_config(source), dtype)
    except ValueError as error:
        raise ModelError(loading.explain(error, source)) from error


def without_weights(config: Any, dtype: str) -> Any:
    """The causal language model of a configuration, on torch's meta device."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model.to(getattr(torch, dtype)).eval()


@dataclass(frozen=True)
class Work:
    """A model's units and what a step does with them; made once, predicted from often.

    Attributes:
        units: the partition.
        spared: those that need no perturbed copy.
        heads: those of them that passes are multiplied by.
        activations: bytes that passes need beside weights, if they wait at blocks only.
        within: the same, if they wait at every unit.
        flops: of all passes of one perturbation.
        moved: bytes that their other operations read and write.
        calls: of torch operations by these.
        tokens: of a step, over all micro-batches of one perturbation.
        passes: perturbations of a step: 2 for MeZO, n + 1 for FZOO.
        micro_batches: of a step.
    """

    units: list[Unit]
    spared: set[Unit]
    heads: set[Unit]
    activations: int
    within: int
    flops: float
    moved: int
    calls: int
    tokens: int
    passes: int
    micro_batches: int


def work(
    model: nn.Module, unit: str, batch: int, tokens: int, passes: int = 2, micro_batches: int = 1
) -> Work:
    """What a step is; see `works`."""
    return works(model, [unit], batch, tokens, passes, micro_batches)[0]


def works(
    model: nn.Module,
    sizes: Sequence[str],
    batch: int,
    tokens: int,
    passes: int = 2,
    micro_batches: int = 1,
) -> list[Work]:
    """What a step is, for each size of units.

    Args:
        model: on the meta device; see `build`.
        sizes: ``"block"``, ``"leaf"`` or both.
        batch: examples of a micro-batch.
        tokens: of each example.
        passes: perturbations of a step.
        micro_batches: of a step.

    Raises:
        ConfigError: the model does not take so many tokens.
    """
    most = loading.longest(model)
    if most and tokens > most:
        raise ConfigError(
            f"Examples of {tokens} tokens are longer than this model takes: --tokens {most}."
        )
    seen, waiting = dry_run(model, batch, tokens), passes * micro_batches
    head = Head.of(model).module
    by_rows = {size: spared(seen.units[size], head) for size in sizes}
    return [
        Work(
            units=seen.units[size],
            spared=by_rows[size],
            heads={unit for unit in by_rows[size] if head in unit.modules},
            activations=seen.activations("block", waiting),
            within=seen.activations(size, waiting),
            flops=seen.flops * micro_batches,
            moved=seen.moved * micro_batches,
            calls=seen.calls * micro_batches,
            tokens=batch * tokens * micro_batches,
            passes=passes,
            micro_batches=micro_batches,
        )
        for size in sizes
    ]


def predict(step: Work, placement: Placement, machine: Machine = H200) -> Prediction:
    """What steps will need with a placement, on a machine.

    Weights go home as often as makes steps shortest, which is what `zo2.engine.deferral` is after.

    Args:
        step: what a step is.
        placement: where weights rest.
        machine: what steps run on.

    Raises:
        DeviceMemoryError: the budget is too small; the message says what is needed.
    """
    least = machine.context - (0 if placement.budget is None else machine.stacks)
    plan = _plan(step, placement, least)
    # page tables take room, for which more may have to be streamed
    while (context := least + page_tables(plan.streamed_nbytes)) > plan.need.context:
        plan = _plan(step, placement, context)
    chosen = placement.write_back_every
    every = range(1, MOST + 1) if chosen is None else (chosen,)
    predictions = [_predict(plan, step, machine, one) for one in every]
    return min(predictions, key=lambda one: (one.seconds, one.every * _spares(one)))


def _plan(step: Work, placement: Placement, context: int) -> Plan:
    """Where weights rest, by where passes wait: within blocks, if nothing else has room."""
    place = partial(placement.plan, step.units, "cuda", context, spared=step.spared)
    with suppress(DeviceMemoryError):
        plan = place(step.activations)
        if not _waits_within(step, plan):
            return plan
    return place(step.within)


def _waits_within(step: Work, plan: Plan) -> set[int]:
    """The blocks within which passes wait: they are divided, and do not go through at once."""
    return {
        number
        for number, block in blocks_of(step.units).items()
        if len(block) > 1 and not plan.goes_whole(block, step.passes)
    }


def _spares(one: Prediction) -> int:
    """What decides between times that are equal: Python's copies (-1), or the GPU's updates (1)."""
    return -1 if one.host > one.compute else 1


def link_time(up: float, down: float, alone: float, both: float) -> float:
    """Seconds of the link for what moves: copies home run beside as many bytes on their way up.

    Args:
        up: bytes to the GPU.
        down: bytes home, not more than ``up``.
        alone: bytes per second up while nothing comes home.
        both: bytes per second each way while copies run in both directions.
    """
    return down / both + (up - down) / alone


def _predict(plan: Plan, step: Work, machine: Machine, every: int) -> Prediction:
    """What steps will need if weights go home in every so many sweeps."""
    units = step.units
    streamed = [parcel for parcel in plan.parcels if parcel.streamed]
    trained = [parcel for parcel in streamed if any(unit.trainable for unit in parcel.units)]
    down = sum(parcel.nbytes for parcel in trained) // every
    up = sum(parcel.nbytes for parcel in streamed if parcel.copied)
    # matrices are read to be updated, and once more where passes are multiplied by them
    up += sum(unit.trained for unit in plan.by_rows) // every
    up += sum(unit.stored for unit in plan.by_rows & step.heads)
    link = link_time(up, down, machine.up, machine.both)
    if plan.slots == 2:
        link *= machine.two_buffers
    again = sum(_parameters(unit) for parcel in trained for unit in parcel.units)
    compute = _compute(step.flops, sum(map(_parameters, units)), step, machine)
    compute += step.moved / machine.memory * step.passes
    compute += again * (every - 1) / 2 / machine.again  # on average, between two ways home
    idle = _idle(plan, step, machine, every) if up else 0.0
    host = step.calls * machine.call * step.passes + _visits(plan, step, machine)
    return Prediction(
        plan=plan,
        weights=sum(parcel.nbytes for parcel in plan.parcels),
        page_locked=plan.streamed_nbytes,
        up=up,
        down=down,
        every=every,
        link=link,
        compute=compute,
        host=host,
        seconds=max(link + idle, max(compute, host) + machine.boundary),
    )


def _visits(plan: Plan, step: Work, machine: Machine) -> float:
    """Seconds of host time for all units but tiny ones."""
    tiny, within = tiny_ones(step.units), _waits_within(step, plan)
    whole = [block for number, block in blocks_of(step.units).items() if number not in within]
    along = sum(len(set(block) - tiny) - 1 for block in whole)
    stops = len(step.units) - len(tiny) - along
    again = sum(
        len(set(block) - tiny) * max(step.passes - plan.room // sum(u.stored for u in block), 0)
        for block in whole
    )
    return stops * machine.visit + along * machine.along + again * machine.turn


def _compute(flops: float, parameters: int, step: Work, machine: Machine) -> float:
    """Seconds of the GPU for passes of so many operations, and for making their weights."""
    return (flops / machine.compute + parameters / machine.noise / 2) * step.passes


def _idle(plan: Plan, step: Work, machine: Machine, every: int) -> float:
    """Seconds that the link idles each way between a sweep's last update and the next one's first.

    Meanwhile passes go through the last streamed weights and the head, unless this is streamed too,
    and the host begins anew; both ways together can move what the buffers hold.
    """
    outside = max((_parameters(u) for u in step.units if u.block is None), default=0)
    last = [one for one in plan.parcels if one.streamed][-1]
    head_too = bool(plan.by_rows & step.heads)
    late = 0 if head_too else sum(map(_parameters, last.units)) + outside
    between = machine.boundary + _compute(2 * late * step.tokens, late, step, machine)
    return max(between - plan.need.slots / machine.both / (1 + 1 / every), 0.0)


def _parameters(unit: Unit) -> int:
    return sum(weight.shape.numel for weight in unit.weights)


def predict_first(
    steps: Sequence[Work], placement: Placement, machine: Machine = H200
) -> Prediction:
    """The prediction for the first of several ways to cut a model that fits the budget.

    Raises:
        DeviceMemoryError: none does.
    """
    for step in steps[:-1]:
        with suppress(DeviceMemoryError):
            return predict(step, placement, machine)
    return predict(steps[-1], placement, machine)


def over_budgets(
    predict_within: Callable[[int | None], Prediction], count: int = 6
) -> Iterator[tuple[int, Prediction]]:
    """Predictions for budgets from the smallest that works to that of a resident model.

    Args:
        predict_within: predicts for a budget in bytes; ``None`` stands for all resident.
        count: number of budgets.
    """
    most = predict_within(None).plan.need.total
    least = _least(predict_within, most)
    for index in range(count):
        budget = math.ceil(least + (most - least) * index / (count - 1))
        yield budget, predict_within(budget)


def _least(predict_within: Callable[[int | None], Prediction], most: int) -> int:
    """The smallest budget that works, to 1%."""
    low, high = 0, most
    while high - low > max(most // 1000, 1):
        middle = (low + high) // 2
        try:
            predict_within(middle)
        except DeviceMemoryError:
            low = middle
        else:
            high = middle
    return high
