"""The owner of a model's weights, over which it sweeps.

Its model stays an ordinary module, with hooks on it where passes pause. Between sweeps the
parameters rest in the store and may lack the last updates; `Engine.settle` applies them, and
reading a parameter does so by itself.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zo2.engine import atonce
from zo2.engine.abreast import Formation, InFile
from zo2.engine.atonce import AtOnce
from zo2.engine.blockgraphs import BlockGraphs
from zo2.engine.deferral import Deferral
from zo2.engine.devicememory import Usage, out_of_memory_explained, without_garbage
from zo2.engine.eager import compiling_nothing
from zo2.engine.hooks import Hooks, Sweeping
from zo2.engine.interrupts import Interrupts
from zo2.engine.lockstep import Lockstep, Pass
from zo2.engine.modulestate import WatchedModules
from zo2.engine.partition import Corrections, Unit, partition
from zo2.engine.pending import Pending
from zo2.engine.placement import NOTHING, Placement, Plan, spared
from zo2.engine.record import Recorder, tells_form, tells_place
from zo2.engine.route import Route
from zo2.engine.store import Store
from zo2.engine.structure import Structure
from zo2.engine.sweep import Sweep
from zo2.engine.updates import Update
from zo2.engine.vocabulary import RowArithmetic, Rows, Vocabulary
from zo2.engine.weights import Arithmetic, Changes
from zo2.engine.workspace import Workspace
from zo2.errors import DeviceMemoryError, ZO2Error
from zo2.methods import Perturbation

logger = logging.getLogger("zo2")

Body = Callable[[], Any]

NOT_PREPARED = (
    "The model was not prepared and keeps its weights. Set device_memory_budget, so that fewer of "
    "them stay on the GPU, or use unit='leaf'."
)
STEP_DROPPED = (
    "The step was dropped and the weights are those before it. Split the batch into micro-batches "
    "(model.zo_step([...])), set device_memory_budget so that fewer weights stay on the GPU, or "
    "use unit='leaf'."
)
AHEAD = 2  # parcels for each buffer that a sweep may update before passes reach them
FIRST_MORE = 1 << 24  # bytes by which activations are reckoned larger where memory ran out


class Engine:
    """Runs passes over a model whose weights it owns.

    Args:
        model: the module; its parameters' data move into the engine's buffers.
        device: where passes run.
        placement: which units are streamed, and through what.
        arithmetic: how weights are updated and perturbed.
        unit_sizes: ``"block"``, ``"leaf"`` or both: the first one for which there is room.
        update_window: a sweep makes a round of the pending updates once so many wait.
        progress: told the bytes of weights that have been taken in.
        graphs: makes what replays passes through blocks while weights are streamed.
        head: whose owner asks for its weights by `rows_of` where it replaces its forward.

    Attributes:
        pending: updates that not every stored weight has yet.
        need: device memory, by what it is for.
        formation: whether passes go through a unit one after another.
        placements: how often weights were placed; as long as it is the same, they are where they
            were.
        hooks: on the model's modules.
        before_pause: called when a pass is about to enter a unit: the weights of the last one go.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        placement: Placement,
        arithmetic: Arithmetic,
        unit_sizes: Sequence[str] = ("block",),
        update_window: int = 1,
        progress: Callable[[int], None] = lambda nbytes: None,
        graphs: Callable[[], BlockGraphs] | None = None,
        head: nn.Module | None = None,
    ) -> None:
        self.model, self.device = model, device
        self._placement, self._arithmetic, self._head = placement, arithmetic, head
        self._unit_sizes, self._update_window = list(unit_sizes), update_window
        self.pending = Pending()
        self.formation: Formation = InFile()
        self.placements = 0
        self.before_pause: Callable[[], None] = lambda: None
        self.hooks = Hooks()
        self._recorded: set[Hashable] = set()  # the forms of call that were recorded
        # of a divided block that passes of a step go through at once; infinite if they never do
        self._copies: float = 2
        self._corrections = Corrections()
        self._watched, self._interrupts = WatchedModules(), Interrupts()
        weakref.finalize(self, self._watched.close)
        self._usage = Usage(device, self.is_bounded)
        self._measured = self._usage.measured if self.is_bounded else contextlib.nullcontext
        weakref.finalize(self, self._usage.lift).atexit = False
        self._progress, self._new_graphs = progress, graphs
        self._buffers: list[torch.Tensor] = []  # on the device, beside resident weights
        homes = [(tensor, tensor.device) for tensor in (*model.parameters(), *model.buffers())]
        try:
            with out_of_memory_explained(device, NOT_PREPARED):
                self._build_first()
        except DeviceMemoryError:
            for tensor, home in homes:
                tensor.data = tensor.data.to(home)
            raise

    # -- construction ---------------------------------------------------------------------

    def _build_first(self) -> None:
        """Take weights in, in units of the first size for which there is room."""
        while True:
            try:
                return without_garbage(self.device, lambda: self._own(*self._planned()))
            except DeviceMemoryError:
                if len(self._unit_sizes) == 1:
                    raise
                del self._unit_sizes[0]

    def rebuild(self) -> None:
        """Take the weights in again: somebody has moved or converted them, or units change.

        Raises:
            DeviceMemoryError: the budget is too small; nothing has changed.
            HostMemoryError: there is not enough; the model keeps its weights, and they are taken
                in when they are next asked for.
        """
        units, plan = self._planned()
        self._catch_up()
        self._recorded.clear()
        with self._usage.unlimited():
            self._own([], NOTHING)  # each buffer goes once its weights are in a new one
            self._own(units, plan)

    def _planned(self) -> tuple[list[Unit], Plan]:
        """Move the model's buffers to the device, and decide where which weights shall rest.

        Raises:
            DeviceMemoryError: the budget is too small.
        """
        self._usage.claim()
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(self.device)
        units = partition(self.model, self._unit_sizes[0], self._corrections)
        weights = sum(unit.nbytes for unit in units)
        plan = functools.partial(
            self._plan, units, to_lock=max(weights - self._usage.page_locked, 0)
        )
        try:
            return units, plan()
        except DeviceMemoryError:
            if not self._new_graphs:
                raise
        with self._without_graphs():
            return units, plan()

    def _own(self, units: list[Unit], plan: Plan) -> None:
        """Move the weights of these units, and of no others, into fresh buffers."""
        self.store = Store(
            [(parcel.units, parcel.streamed) for parcel in plan.parcels],
            self.device,
            self._progress,
            self._asked,
        )
        self.units, self._structure = units, Structure(self.model)
        self._whole = atonce.whole_blocks(units)
        self._divided = atonce.divided_blocks(self.model, units)
        self._route = Route(self.units)
        by_rows = self._by_rows
        self._vocabulary = Vocabulary(self._spared(units), by_rows) if by_rows else None
        trained = [unit for unit in self.units if self.store.layouts[unit].trained]
        self.pending = Pending.of(trained, self.pending.open)
        self._connect(plan)
        self.hooks.put_on(units, self._divided, self.store)

    def _plan(self, units: Sequence[Unit], to_lock: int = 0, more: int = 0) -> Plan:
        """Where weights rest; so many bytes, at most, have yet to be page-locked for it, and
        ``more`` of the device's memory are for something else.
        """
        usage = self._usage
        others = usage.others(self._bytes_on_device(units), to_lock) + more
        replays = self.is_bounded and self._new_graphs and self._replayable(units)
        if replays and not usage.is_guessed:
            others += usage.of_graphs()
        place = functools.partial(
            self._placement.plan, units, self.device.type, others, spared=self._spared(units)
        )
        try:
            plan = place(usage.activations)
        except DeviceMemoryError:
            if not usage.is_guessed:
                raise
        else:
            if not replays or usage.is_guessed or self._replayable(units, plan):
                return plan
            raise DeviceMemoryError("There is no room beside CUDA graphs for copies of a block.")
        # a guess is no reason to give up, but as much as possible should be left for them
        plan, fits, too_many = place(0), 0, usage.activations
        while too_many - fits > 1 << 20:
            middle = (fits + too_many) // 2
            try:
                plan, fits = place(middle), middle
            except DeviceMemoryError:
                too_many = middle
        return plan

    def _replayable(self, units: Sequence[Unit], plan: Plan | None = None) -> bool:
        """Whether passes go through any block at once, with weights where a plan puts them."""
        return atonce.any_at_once(self.model, units, self._copies, plan)

    @property
    def _by_rows(self) -> RowArithmetic | None:
        """What perturbs rows of weights, if it can, and these have all updates in every sweep."""
        if self._update_window == 1 and isinstance(self._arithmetic, RowArithmetic):
            return self._arithmetic
        return None

    def _spared(self, units: Sequence[Unit]) -> set[Unit]:
        """The units of which no perturbed copies are needed."""
        return spared(units, self._head) if self._by_rows else set()

    def rows_of(self, module: nn.Module) -> Rows | None:
        """The rows of the head, for the pass that runs it now; none if its parameter has them."""
        return self._vocabulary.rows_of(module) if self._vocabulary else None

    def _bytes_on_device(self, units: Sequence[Unit]) -> int:
        """Device memory of the weights, and of what they pass through."""
        held = [weight.parameter.data for unit in units for weight in unit.weights]
        held += self._buffers
        storages = {one.data_ptr(): one for one in (t.untyped_storage() for t in held)}
        return sum(one.nbytes() for one in storages.values() if one.device == self.device)

    def _connect(self, plan: Plan) -> None:
        """Make the buffers, and what brings each unit to the device from where it rests now."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.placements += 1
        self._placed, self.need, self._usage.page_locked = plan, plan.need, self.store.page_locked
        self._workspace = workspace = Workspace(self.store, plan, self.device)
        workspace.stream.never_run = self._route.never_run
        self._buffers = workspace.buffers
        self._graphs = self._new_graphs() if self._new_graphs and workspace.streamed else None
        away = workspace.away
        parcels = dict.fromkeys(self.store.resting[unit] for unit in self.units if unit in away)
        self._number = {unit: n for n, parcel in enumerate(parcels) for unit in parcel.bounds}
        self._deferral = Deferral(self._placement.write_back_every)
        self._chosen: dict[int, AtOnce] = {}  # by the number of copies

    def rebudget(self, budget: int) -> None:
        """Change the bytes of device memory that everything may take, and move weights by it.

        Units that had to become smaller stay so.

        Raises:
            DeviceMemoryError: it is too small; nothing has changed.
        """
        before, self._placement = self._placement, replace(self._placement, budget=budget)
        try:
            with self._at_work():
                self._place_anew()
        except DeviceMemoryError:
            self._placement = before
            raise

    def _place_anew(self) -> None:
        """Under a budget: move weights to where they should rest by what passes now need.

        Pending updates stay pending: of which a round is made decides how weights are rounded, and
        must not depend on where weights rest.

        Raises:
            DeviceMemoryError: the budget is too small; weights are where they were.
        """
        if not self.is_bounded:
            return
        with self._nothing_fetched():
            self._place_somehow()

    @contextlib.contextmanager
    def _nothing_fetched(self) -> Iterator[None]:
        """Within, all weights are at rest and up to date but for what is pending, and may move."""
        self._rest()
        self._take_back()
        try:
            self._workspace.finish()
            yield
        finally:
            self._rest()

    def _place_somehow(self) -> None:
        """Move weights; where there is no room, without graphs, and then in smaller units."""
        try:
            plan = self._plan(self.units)
        except DeviceMemoryError:
            if self._new_graphs:
                with self._without_graphs():
                    self._place_somehow()
            elif len(self._unit_sizes) > 1:
                self._divide_further()
            else:
                raise
        else:
            self._move(plan)

    @contextlib.contextmanager
    def _without_graphs(self) -> Iterator[None]:
        """Within, passes are not replayed; nor from then on, unless there is no room even so."""
        graphs, self._new_graphs = self._new_graphs, None
        try:
            yield
        except DeviceMemoryError:
            self._new_graphs = graphs
            raise
        logger.warning("device_memory_budget has no room for CUDA graphs: passes run as they are.")

    def _divide_further(self) -> None:
        """Take the weights in again in smaller units, if there is room for these."""
        larger, self._unit_sizes = self._unit_sizes, self._unit_sizes[1:]
        try:
            self.rebuild()
        except DeviceMemoryError:
            self._unit_sizes = larger
            raise
        self._usage.limit(self._placement.budget)

    def _move(self, plan: Plan) -> None:
        """Move weights between host and device as ``plan`` says."""
        streamed = self._workspace.streamed
        changed = [p for p in plan.parcels if p.streamed != (p.units[0] in streamed)]
        self._usage.claim()
        with self._usage.unlimited():
            self.drop_buffers()  # they make room
            try:
                for parcel in sorted(changed, key=lambda parcel: not parcel.streamed):
                    self.store.move(parcel.units[0], parcel.streamed)
            finally:  # host memory may have been refused half way
                self._connect(plan.following(self.store))
        self._usage.limit(self._placement.budget)

    def release(self) -> None:
        """Leave model and device as they were; the weights stay where they rest."""
        self.settle()
        self.hooks.remove()
        self._watched.close()
        self._usage.lift()

    def make_room(self, more: int) -> bool:
        """Move weights out of the way of so many bytes more, if the memory budget has room for
        these; returns whether it has.
        """
        try:
            with self._at_work(), self._nothing_fetched():
                self._move(self._plan(self.units, more=more))
        except DeviceMemoryError:
            return False
        return True

    def replay_blocks(self, graphs: Callable[[], BlockGraphs]) -> bool:
        """Replay passes through blocks while weights are streamed, and as long as the memory
        budget has room for it; returns whether it has.
        """
        self._replay(graphs)
        return self.replays_blocks

    def replay_nothing(self) -> None:
        """Run passes through blocks as they are from now on."""
        self._replay(None)

    def _replay(self, graphs: Callable[[], BlockGraphs] | None) -> None:
        self._new_graphs, self._graphs = graphs, None
        if self.is_bounded:
            try:
                with self._at_work():
                    self._place_anew()
            except DeviceMemoryError:  # others have taken memory: weights stay where they are
                self._new_graphs = None
        elif graphs and self.streams:
            self._graphs = graphs()

    def drop_buffers(self) -> None:
        """Let the device's memory beside the weights go now, not when garbage is collected."""
        del self._workspace, self._graphs
        self._buffers = []

    # -- sweeps ---------------------------------------------------------------------------

    def sweep(
        self, jobs: Sequence[tuple[Perturbation, Body]], probes: Mapping[Hashable, Body]
    ) -> list[Any]:
        """Run every job's body with its perturbation, all over one sweep of the weights.

        Args:
            jobs: (perturbation, body) pairs; a body calls the model and returns its result.
                Bodies of one perturbation should stand together: they share perturbed weights.
            probes: by form, bodies whose passes are recorded before the first sweep with a pass of
                that form. A form is what decides which way the model's forward takes; passes of
                one form are taken to read the same weights at the same places.

        Returns:
            The bodies' results, in the order of ``jobs``.

        Raises:
            ZO2Error: a pass of this model is running.
            ModelError: the recorded pass uses a weight in a way that cannot be streamed.
            DeviceMemoryError: the device's memory ran out; the weights are those before.
        """
        if self._is_sweeping:
            if threading.get_ident() != self._thread:
                raise ZO2Error(
                    "The model is at work in another thread. One thread at a time can call it, or "
                    "read its weights: let them take turns (threading.Lock)."
                )
            raise ZO2Error(
                "The model was called from within one of its own passes (a hook or a loss "
                "function). Use the logits that the hook is given instead."
            )
        if not jobs:
            return []
        with self._at_work():
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return self._through(jobs)  # nothing is carried out that could be learnt from
            with out_of_memory_explained(self.device, STEP_DROPPED):
                sweep = functools.partial(self._sweep, jobs, probes)
                try:
                    return without_garbage(self.device, sweep)
                except torch.cuda.OutOfMemoryError:
                    if not self.is_bounded:
                        raise
                return self._with_more_room(sweep)

    def _with_more_room(self, sweep: Callable[[], list[Any]]) -> list[Any]:
        """The memory ran out although the need seemed to fit: a larger batch, or gaps between
        activations. Move ever more weights out of the way until ``sweep`` has room.

        Raises:
            DeviceMemoryError: the budget has no more.
        """
        more = FIRST_MORE
        while True:
            self._usage.reckon_with(more)
            self._place_anew()
            try:
                return sweep()
            except torch.cuda.OutOfMemoryError:
                more *= 2

    def _sweep(
        self, jobs: Sequence[tuple[Perturbation, Body]], probes: Mapping[Hashable, Body]
    ) -> list[Any]:
        """Sweep, and learn from it what passes need and whether they wait for copies."""
        self._usage.claim()
        if self._unknown(probes) or not self._is_undisturbed():
            self._take_back()
            if self.pending and self._vocabulary and self._unknown(probes):
                self.settle()  # what is recorded finds all weights as they are stored
        while unknown := self._unknown(probes):  # all again, should weights be divided further
            try:
                with self._measured():
                    self._record(probes[unknown[0]])
            finally:
                self._rest()
            self._recorded.add(unknown[0])
            if self._usage.expect(self._usage.peak):
                self._place_anew()
                self._take_back()
        with self._measured():
            results = self._through(jobs)
        if (waits := self._workspace.stream.waits()) is not None and _perturbs(jobs):
            self._deferral.learn(waits)
        if self._usage.learn():
            self._place_anew()
        return results

    def _unknown(self, forms: Iterable[Hashable]) -> list[Hashable]:
        """Those of which no pass has been recorded."""
        return [form for form in forms if form not in self._recorded]

    def _through(self, jobs: Sequence[tuple[Perturbation, Body]]) -> list[Any]:
        """Sweep; a sweep that perturbs nothing leaves no update pending."""
        plain = not _perturbs(jobs)
        due: set[Unit] = set()
        try:
            if plain or self._makes_round():
                self.pending.make_round()
                due = set(self.units) if plain else self._whose_turn_it_is()
            return self._run([Pass(p, body) for p, body in jobs], due, keep=plain)
        finally:
            self._rest()

    def _whose_turn_it_is(self) -> set[Unit]:
        """The units that store their updated weights in the next sweep."""
        self._deferral.begin()
        return {
            unit
            for unit in self.units
            if unit not in self._number
            or self._deferral.is_due(self._number[unit], self.pending.lacks(unit))
        }

    def _record(self, body: Body) -> None:
        """Run one pass for itself, and correct the partition by what it reads where."""

        def supply(unit: Unit) -> None:
            self.store.bind(unit, [view.to(self.device) for view in self.store.views[unit]])

        recorder = Recorder(self.model, self.units, self._corrections, supply)

        def recorded() -> Any:
            handles = recorder.watch_modules()
            try:
                with compiling_nothing(), recorder:
                    return body()
            finally:
                for handle in handles:
                    handle.remove()

        self._run([Pass(Perturbation(), recorded)], due=set(), recorder=recorder)
        if recorder.corrections != Corrections():
            self._rest()
            self.settle()
            self._corrections |= recorder.corrections
            self.rebuild()
            self._record(body)
            return
        self._chosen.clear()
        if not self._recorded:
            never_run = [unit for unit in self.units if unit not in recorder.order]
            self._route = Route(recorder.order, never_run)
            self._workspace.stream.never_run = self._route.never_run

    def _run(
        self,
        passes: list[Pass],
        due: set[Unit],
        keep: bool = False,
        recorder: Recorder | None = None,
    ) -> list[Any]:
        """Sweep: units that are ``due`` store their updates, and passes ``keep`` what they set."""
        perturbations = [one.perturbation for one in passes]
        at_once = atonce.NONE if recorder else self._choose(perturbations)
        sweep = self._new_sweep(perturbations, due, at_once, one_by_one=recorder is not None)
        lockstep = Lockstep(passes, self.model, self._watched, keep)
        replaying: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        serving: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        trains = recorder is None and any(one.scale for one in perturbations)
        if self._vocabulary and trains:
            serving = self._vocabulary.standing_in()
        # the first sweep finds out where weights will rest from then on
        if self._graphs and recorder is None and not (keep or self._usage.is_guessed):
            once = {module: self._divided[module] for module in at_once.first}
            replaying = self._graphs.standing_in(self._whole | once, lockstep)
        self._thread = threading.get_ident()
        self.hooks.leave_out(at_once.units)
        self.hooks.sweeping = Sweeping(lockstep, at_once, self.before_pause, recorder)
        try:
            with replaying, serving:
                sweep.run(lockstep, self.formation, self._usage.turn if trains else _ignore)
        finally:
            self.hooks.sweeping = None
        return [one.result for one in passes]

    def _new_sweep(
        self,
        perturbations: Sequence[Perturbation],
        due: set[Unit],
        at_once: AtOnce = atonce.NONE,
        one_by_one: bool = False,
    ) -> Sweep:
        waits = due and self._deferral.waits
        ahead = AHEAD * len(self._workspace.stream.buffers) if waits else 0
        return Sweep(
            self._route, self._workspace, self._arithmetic, self.pending, perturbations, due, ahead,
            one_by_one, at_once.starts, self._interrupts, self._vocabulary,
        )  # fmt: skip

    def _choose(self, perturbations: Sequence[Perturbation]) -> AtOnce:
        """The divided blocks that passes go through at once."""
        perturbed = [bool(one.scale) for one in perturbations]
        copies = len(set(perturbations))
        if any(perturbed):
            self._copies = copies if all(perturbed) else math.inf
        if not all(perturbed):
            return atonce.NONE
        if copies not in self._chosen:
            self._chosen[copies] = AtOnce.of(
                self._divided, self._route, self.store.layouts, self.hooks.returning,
                self.hooks.outside, copies, self._placed,
            )  # fmt: skip
        return self._chosen[copies]

    @property
    def _is_sweeping(self) -> bool:
        return self.hooks.sweeping is not None

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """The working device is the current one; no gradients, and no inference mode, whose tensors
        could not be written to outside it. Interrupts wait for updates.
        """
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else None
        with (
            here or contextlib.nullcontext(), torch.inference_mode(False), torch.no_grad(),
            self._interrupts,
        ):  # fmt: skip
            yield

    # -- between sweeps -------------------------------------------------------------------

    def settle(self) -> None:
        """Apply every pending update, so that the parameters hold the true weights."""
        if self._is_sweeping:
            return
        with self._at_work():
            self._take_back()
            self.pending.make_round()
            self._catch_up()

    def _take_back(self) -> None:
        """Make the parameters ordinary ones, and take weights in that somebody has moved."""
        if not self._are_intact():
            self.rebuild()

    def _is_undisturbed(self) -> bool:
        """Whether nobody can have changed any parameter since the last sweep."""
        return self.store.marks.are_complete and self._structure.is_same()

    def _are_intact(self) -> bool:
        """Whether the parameters, now ordinary ones, are as sweeps leave them."""
        for unit in self.units:
            self.store.marks.clear(unit)
        return bool(self.units) and self._structure.is_same() and self.store.is_intact()

    def _asked(self, function: Any) -> None:
        """A torch function is about to be given a marked parameter."""
        if self._is_sweeping:
            if not tells_form(function):  # in a sweep, weights that no unit was entered for are NaN
                for unit in self.units:
                    if unit in self.store.marks:
                        self.store.hide(unit)
        elif not (tells_form(function) or tells_place(function)):
            self.settle()

    def _catch_up(self) -> None:
        """Store the updated weights of all units, outside a sweep."""
        try:
            self._new_sweep((), due=set(self.units)).write_rest()
            self._workspace.finish()
        except BaseException:  # an interrupt: whoever reads the rest has it updated
            self._rest()
            raise

    def _rest(self) -> None:
        """End a sweep: parameters rest in the store, marked if they lack updates."""
        for unit in self.units:
            self.store.rest(unit)
        if self.pending or not self._workspace.is_idle:
            self.store.marks.set()

    def push(self, update: Update) -> None:
        """Add a step's update to those pending."""
        self.pending.open.append(update)
        self.store.marks.set()

    # -- what `zo2.engine.replay` needs -----------------------------------------------------

    def changes_of_sweep(self, perturbations: Sequence[Perturbation]) -> Changes:
        """What a sweep with these perturbations applies to the weights."""
        pending = self.pending.copy()
        if self._makes_round():
            pending.make_round()
        return pending.changes(perturbations)

    def kind_of_sweep(self) -> Hashable:
        """Sweeps of one kind queue the same work, apart from seeds and coefficients.

        Not while there are rounds, which a sweep that failed has left to some units.
        """
        terms = tuple(len(update.terms) for update in self.pending.open)
        return terms, self._makes_round()

    def _makes_round(self) -> bool:
        """Whether the next sweep that perturbs weights makes a round of the open updates."""
        return len(self.pending.open) >= self._update_window

    @property
    def streams(self) -> bool:
        """Whether any weight rests elsewhere than on the working device."""
        return bool(self._workspace.streamed)

    @property
    def has_replayable_blocks(self) -> bool:
        """Whether passes go through any block at once, so that this can be replayed."""
        return self._replayable(self.units)

    @property
    def replays_blocks(self) -> bool:
        """Whether passes through blocks are to be replayed."""
        return self._new_graphs is not None

    @property
    def is_bounded(self) -> bool:
        """Whether there is a budget for the device's memory."""
        return self._placement.budget is not None

    @property
    def graph_count(self) -> int:
        """How many CUDA graphs of passes through blocks there are."""
        return self._graphs.count if self._graphs else 0

    def is_in_place(self) -> bool:
        """Whether the weights are where sweeps so far have found them."""
        return self._is_undisturbed() or self._are_intact()

    def has_swept(self) -> None:
        """A sweep with perturbations was done by other means: all weights have its round."""
        if self._makes_round():
            self.pending.open.clear()

    def is_last(self, update: Update) -> bool:
        """Whether ``update`` is the last one pending and no weights have it yet."""
        return bool(self.pending.open) and self.pending.open[-1] is update

    def pop(self) -> None:
        """Drop the last pending update."""
        self.pending.open.pop()


def _ignore(within: bool) -> None:
    """Nothing is to be learnt of passes that do not train."""


def _perturbs(jobs: Sequence[tuple[Perturbation, Body]]) -> bool:
    return any(perturbation.scale for perturbation, _ in jobs)
