"""The sweep: every unit is brought to the device once, and all passes go through it.

An `Engine` owns a model's weights. Its model stays an ordinary module: hooks on the units'
modules pause a pass where it enters a unit and hide the unit's weights where it leaves. Between
sweeps the parameters rest in the store and may lack the last updates; `settle` applies them, and
reading a parameter does so by itself.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from zo2.engine.abreast import Formation, InFile
from zo2.engine.blockgraphs import BlockGraphs
from zo2.engine.deferral import Deferral
from zo2.engine.devicememory import Usage, out_of_memory_explained
from zo2.engine.eager import compiling_nothing, never_compiled
from zo2.engine.lockstep import Lockstep, Pass
from zo2.engine.modulestate import WatchedClasses
from zo2.engine.partition import Corrections, Unit, partition
from zo2.engine.pending import Pending
from zo2.engine.placement import Placement, Plan, tiny_ones
from zo2.engine.record import Recorder
from zo2.engine.resting import Marks
from zo2.engine.store import Store
from zo2.engine.transfer import InPlace, Transfer
from zo2.engine.updates import Update
from zo2.engine.weights import Arithmetic, Changes
from zo2.errors import DeviceMemoryError, ZO2Error
from zo2.methods import Perturbation

Body = Callable[[], Any]

AHEAD = 2  # parcels for each buffer that a sweep may update before passes reach them


class Engine:
    """Runs passes over a model whose weights it owns.

    Args:
        model: the module; its parameters' data move into the engine's buffers.
        device: where passes run.
        placement: which units are streamed, and through what.
        arithmetic: how weights are updated and perturbed.
        unit_size: ``"block"`` or ``"leaf"``.
        update_window: a sweep makes a round of the pending updates once so many wait.
        progress: told the bytes of weights that have been taken in.
        graphs: makes what replays passes through blocks while weights are streamed.

    Attributes:
        pending: updates that not every stored weight has yet.
        need: device memory, by what it is for.
        formation: whether passes go through a unit one after another.
        before_pause: called when a pass is about to enter a unit: the weights of the last one go.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        placement: Placement,
        arithmetic: Arithmetic,
        unit_size: str = "block",
        update_window: int = 1,
        progress: Callable[[int], None] = lambda nbytes: None,
        graphs: Callable[[], BlockGraphs] | None = None,
    ) -> None:
        self.model, self.device = model, device
        self._placement, self._arithmetic = placement, arithmetic
        self._unit_size, self._update_window = unit_size, update_window
        self.pending = Pending()
        self.formation: Formation = InFile()
        self.before_pause: Callable[[], None] = lambda: None
        self._lockstep: Lockstep | None = None
        self._recorder: Recorder | None = None
        self._recorded: set[Hashable] = set()  # the forms of call that were recorded
        self._corrections = Corrections()
        self._handles: list[Any] = []
        self._classes = WatchedClasses()
        weakref.finalize(self, self._classes.close)
        self._usage = Usage(device)
        bounded = placement.budget is not None
        self._measured = self._usage.measured if bounded else contextlib.nullcontext
        if bounded:
            weakref.finalize(self, self._usage.limit, None)
        self._progress, self._new_graphs = progress, graphs
        self._changes = Changes()  # that the sweep that runs makes
        self._due: set[Unit] = set()  # units whose updated weights it stores
        self._ahead = 0  # parcels that it may update before passes reach them
        self._buffers: list[torch.Tensor] = []  # on the device, beside resident weights
        self._build()

    # -- construction ---------------------------------------------------------------------

    def _build(self) -> None:
        """Partition the model and move its weights into fresh buffers."""
        self.remove_hooks()
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(self.device)
        self.units = partition(self.model, self._unit_size, self._corrections)
        self._blocks = [module for unit in self.units if unit.is_block for module in unit.modules]
        weights = sum(unit.nbytes for unit in self.units)
        plan = self._plan(to_lock=max(weights - self._usage.page_locked, 0))
        self.store = Store(
            [(parcel.units, parcel.streamed) for parcel in plan.parcels],
            self.device,
            self._progress,
        )
        self._marks = Marks(self.store.parameters, self.settle)
        self._never_run: list[Unit] = []
        self._set_order(self.units)
        trained = [unit for unit in self.units if self.store.layouts[unit].trained]
        self.pending = Pending.of(trained, self.pending.open)
        self._returns_weights: set[Unit] = set()
        self._connect(plan)
        self.add_hooks()

    def _plan(self, to_lock: int = 0) -> Plan:
        """Where weights rest; so many bytes, at most, have yet to be page-locked for it."""
        usage = self._usage
        others = usage.others(self._bytes_on_device(), to_lock)
        place = functools.partial(self._placement.plan, self.units, self.device.type, others)
        # graphs have memory of their own, as much again as passes that run as they are
        times = 1 if self._new_graphs is None else 2
        try:
            return place(usage.activations * times)
        except DeviceMemoryError:
            if not usage.is_guessed:
                raise
            return place(0)  # a guess is no reason to give up

    def _bytes_on_device(self) -> int:
        """Device memory of the weights, and of what they pass through."""
        held = [weight.parameter.data for unit in self.units for weight in unit.weights]
        held += self._buffers
        storages = {one.data_ptr(): one for one in (t.untyped_storage() for t in held)}
        return sum(one.nbytes() for one in storages.values() if one.device == self.device)

    def _connect(self, plan: Plan) -> None:
        """Make the buffers, and what brings each unit to the device from where it rests now."""
        self.need, self._usage.page_locked = plan.need, self.store.page_locked
        self._streamed = {unit for one in plan.parcels if one.streamed for unit in one.units}
        self._scratch = torch.empty(plan.need.perturbed, dtype=torch.uint8, device=self.device)
        self._stream = plan.transfer(self.store, self.device)
        self._stream.never_run = set(self._never_run)
        self._buffers = [self._scratch, *self._stream.buffers]
        in_place = InPlace(self.store)
        self._transfer: dict[Unit, Transfer] = {
            unit: self._stream if unit in self._streamed else in_place for unit in self.units
        }
        self._graphs = self._new_graphs() if self._new_graphs and self._streamed else None
        self._views: dict[tuple[Unit, int], list[torch.Tensor]] = {}
        # of the parcels that pass through buffers; others need not be brought home
        away = self._streamed if self._stream.buffers else ()
        parcels = dict.fromkeys(self.store.resting[unit] for unit in self.units if unit in away)
        self._number = {unit: n for n, parcel in enumerate(parcels) for unit in parcel.bounds}
        self._deferral = Deferral(self._placement.write_back_every)

    def rebudget(self, budget: int) -> None:
        """Change the bytes of device memory that everything may take, and move weights by it.

        Raises:
            DeviceMemoryError: it is too small; nothing has changed.
        """
        before, self._placement = self._placement, replace(self._placement, budget=budget)
        try:
            with _ordinary_tensors():
                self._place_anew()
        except DeviceMemoryError:
            self._placement = before
            raise

    def _place_anew(self) -> None:
        """Under a budget: move weights to where they should rest by what passes now need.

        Pending updates stay pending: of which a round is made decides how weights are rounded, and
        must not depend on where weights rest.
        """
        if self._placement.budget is None:
            return
        self._rest()
        self._take_back()
        try:
            self._stream.finish()
            self._move(self._plan())
        finally:
            self._rest()

    def _move(self, plan: Plan) -> None:
        """Move weights between host and device as ``plan`` says."""
        self._usage.limit(None)
        changed = [p for p in plan.parcels if p.streamed != (p.units[0] in self._streamed)]
        self.drop_buffers()  # they make room
        try:
            for parcel in sorted(changed, key=lambda parcel: not parcel.streamed):
                self.store.move(parcel.units[0], parcel.streamed)
        finally:  # host memory may have been refused half way
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._connect(plan.following(self.store))
        self._usage.limit(self._placement.budget)

    def add_hooks(self) -> None:
        """Make calls of the units' modules pause the passes."""
        self._handles = [
            handle
            for unit in self.units
            for module in unit.modules
            for handle in (
                module.register_forward_pre_hook(self._entering(unit)),
                module.register_forward_hook(self._leaving(unit)),
            )
        ]

    def remove_hooks(self) -> None:
        """Leave the modules as they were."""
        for handle in self._handles:
            handle.remove()

    def release(self) -> None:
        """Leave model and device as they were; the weights stay where they rest."""
        self.settle()
        self.remove_hooks()
        self._classes.close()
        if self._placement.budget is not None:
            self._usage.limit(None)

    def drop_buffers(self) -> None:
        """Let the device's memory beside the weights go now, not when garbage is collected."""
        del self._stream, self._transfer, self._scratch, self._views, self._graphs
        self._buffers = []

    def _set_order(self, order: Sequence[Unit]) -> None:
        """The order in which a sweep is expected to need the units: it decides what is fetched
        ahead and which of several waiting passes goes first, never what is computed.
        """
        self._order = list(order)
        self._position = {unit: index for index, unit in enumerate(self._order)}
        self._tiny = tiny_ones(self.units) - set(self._never_run)

    def rebuild(self) -> None:
        """Take the weights in again after somebody moved or converted the parameters."""
        self._recorded.clear()
        self._build()

    # -- hooks ----------------------------------------------------------------------------

    def _entering(self, unit: Unit) -> Callable[..., None]:
        @never_compiled
        def hook(module: nn.Module, args: Any) -> None:
            one = self._lockstep.current if self._lockstep else None
            if one is None:
                return
            if unit not in one.inside:
                if self._recorder is not None:
                    self._recorder.entered(unit)
                if unit not in one.bound:
                    self.before_pause()
                    one.pause(unit)
            one.inside.append(unit)

        return hook

    def _leaving(self, unit: Unit) -> Callable[..., Any]:
        @never_compiled
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            one = self._lockstep.current if self._lockstep else None
            if one is None or unit not in one.inside:
                return None
            one.inside.remove(unit)
            if unit in one.inside:
                return None
            one.bound.discard(unit)
            if self._recorder is not None and self._shares_storage(unit, output):
                self._returns_weights.add(unit)
            self.store.hide(unit)
            if unit in self._returns_weights:
                return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, output)
            return None

        return hook

    @staticmethod
    def _shares_storage(unit: Unit, output: Any) -> bool:
        """Whether a unit returns a view of a weight (a slice of learned positions, say), which
        must be copied: the buffer under it will hold something else before it is used.
        """
        with torch._C.DisableTorchFunction():  # the recorder need not see this
            returned = {
                leaf.untyped_storage().data_ptr()
                for leaf in tree_leaves(output)
                if isinstance(leaf, torch.Tensor)
            }
            weights = {w.parameter.untyped_storage().data_ptr() for w in unit.weights}
            return not weights.isdisjoint(returned)

    # -- sweeps ---------------------------------------------------------------------------

    def sweep(
        self, jobs: Sequence[tuple[Perturbation, Body]], probe: Body, form: Hashable = None
    ) -> list[Any]:
        """Run every job's body with its perturbation, all over one sweep of the weights.

        Args:
            jobs: (perturbation, body) pairs; a body calls the model and returns its result.
                Bodies of one perturbation should stand together: they share perturbed weights.
            probe: a body whose pass is recorded before the first sweep of its form.
            form: what decides which way the model's forward takes; passes of one form are taken
                to read the same weights at the same places.

        Returns:
            The bodies' results, in the order of ``jobs``.
        """
        if self._lockstep is not None:
            raise ZO2Error(
                "The model was called from within one of its own passes (a hook or a loss "
                "function). Use the logits that the hook is given instead."
            )
        if not jobs:
            return []
        with _ordinary_tensors():
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return self._through(jobs)  # nothing is carried out that could be learnt from
            with out_of_memory_explained(self.device):
                try:
                    return self._sweep(jobs, probe, form)
                except torch.cuda.OutOfMemoryError:
                    if self._placement.budget is None:
                        raise
                    self._usage.reckon_with_more()
                self._place_anew()
                return self._sweep(jobs, probe, form)

    def _sweep(
        self, jobs: Sequence[tuple[Perturbation, Body]], probe: Body, form: Hashable
    ) -> list[Any]:
        """Sweep, and learn from it what passes need and whether they wait for copies."""
        self._take_back()
        if form not in self._recorded:
            try:
                with self._measured():
                    self._record(probe)
            finally:
                self._rest()
            self._recorded.add(form)
            if self._usage.expect(self._usage.peak):
                self._place_anew()
                self._take_back()
        with self._measured():
            results = self._through(jobs)
        if (waited := self._stream.waited()) is not None and _perturbs(jobs):
            self._deferral.learn(waited)
        if self._usage.learn():
            self._place_anew()
        return results

    def _through(self, jobs: Sequence[tuple[Perturbation, Body]]) -> list[Any]:
        """Sweep; a sweep that perturbs nothing leaves no update pending."""
        plain = not _perturbs(jobs)
        try:
            if plain or self._makes_round():
                self.pending.make_round()
                self._due = set(self.units) if plain else self._whose_turn_it_is()
            return self._run([Pass(p, body) for p, body in jobs], keep=plain)
        finally:
            self._due = set()
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

        self._recorder = recorder
        try:
            self._run([Pass(Perturbation(), recorded)])
        finally:
            self._recorder = None
        if recorder.corrections != Corrections():
            self._rest()
            self.settle()
            self._corrections |= recorder.corrections
            self.rebuild()
            self._record(body)
            return
        if not self._recorded:
            self._never_run = [unit for unit in self.units if unit not in recorder.order]
            self._set_order(recorder.order + self._never_run)
            self._stream.never_run = set(self._never_run)

    def _run(self, passes: list[Pass], keep: bool = False) -> list[Any]:
        self._changes = self.pending.changes(one.perturbation for one in passes)
        ahead = self._due and self._deferral.waits
        self._ahead = AHEAD * len(self._stream.buffers) if ahead else 0
        self._write_ahead(self._stream.borrow)
        for unit in self.units:
            self.store.hide(unit)
        held = self._hold(passes)
        lockstep = Lockstep(passes, self.model, self._classes, keep)
        with lockstep, contextlib.ExitStack() as stack:
            self._lockstep = lockstep
            if self._graphs and not keep and self._recorder is None:
                stack.enter_context(self._graphs.standing_in(self._blocks, lockstep))
            try:
                with self.formation.fork():
                    for one in passes:
                        self._resume(one, held)
                while waiting := [(one.at, one) for one in passes if one.at is not None]:
                    unit = min((at for at, _ in waiting), key=self._position.__getitem__)
                    here = [one for at, one in waiting if at is unit]
                    self._visit(unit, here, held)
            finally:
                self._lockstep = None
        self._write_rest()
        self._fetch_ahead(self._order[-1])
        return [one.result for one in passes]

    def _visit(self, unit: Unit, passes: list[Pass], held: _Held) -> None:
        """Bring a unit to the device and take the waiting passes through it."""
        transfer = self._transfer[unit]
        base, acquired = transfer.acquire(unit), True
        groups = [
            (perturbation, list(group))
            for perturbation, group in groupby(passes, key=lambda one: one.perturbation)
        ]
        nbytes = self.store.layouts[unit].nbytes
        fit = self._scratch.numel() // nbytes if nbytes else 1
        at_once = max(1, min(fit, len(groups)))
        copies = _parts(self._scratch, at_once, nbytes)
        bound: list[_Bound] = []
        try:
            for first in range(0, len(groups), at_once):
                batch = groups[first : first + at_once]
                perturbations = [perturbation for perturbation, _ in batch]
                weights = self._transform(unit, base, perturbations, copies)
                if batch[-1] is groups[-1] and self._is_copied(unit, base, weights):
                    transfer.release(unit)  # what comes next need not wait for these passes
                    acquired = False
                room = self._scratch[at_once * nbytes :]
                together = not acquired and len(batch) == len(groups)
                along = self._take_along(unit, perturbations, room, together)
                bound = [(unit, base, weights), *along]
                self._fetch_ahead(bound[-1][0])
                if first == 0:
                    outside = unit.block is None
                    self._write_ahead(self._stream.borrow if outside else self._stream.acquire)
                with self.formation.fork():
                    for index, (_, group) in enumerate(batch):
                        tensors = [
                            (one, self._tensors(one, stored, flats[index]))
                            for one, stored, flats in bound
                        ]
                        for one in group:
                            for each, views in tensors:
                                self.store.bind(each, views)
                            one.bound = {each for each, _ in tensors}
                            self._resume(one, held)
        finally:
            for each, _, _ in bound:
                self.store.hide(each)
            if acquired:
                transfer.release(unit)

    def _take_along(
        self, unit: Unit, perturbations: Sequence[Perturbation], room: torch.Tensor, together: bool
    ) -> list[_Bound]:
        """What passes enter after ``unit`` without another stop, each of which takes Python time.

        These are tiny units, which rest on the device, and what of the same block has arrived: its
        buffers are free again, once there are perturbed copies.

        Args:
            unit: where passes wait.
            perturbations: of the passes that go on now.
            room: for copies.
            together: whether these are all passes that wait.
        """
        found: list[_Bound] = []
        if self._recorder is not None:  # the order is not known yet
            return found
        count = len(perturbations)
        together = together and all(one.scale for one in perturbations)  # who use copies, then
        for one in islice(self._order, self._position[unit] + 1, None):
            layout, transfer = self.store.layouts[one], self._transfer[one]
            arrived = (
                together
                and one.block == unit.block
                and layout.trained == layout.nbytes
                and transfer is self._stream
                and transfer.has_arrived(one)
            )
            if not (one in self._tiny or arrived) or count * layout.nbytes > room.numel():
                break
            base = transfer.acquire(one)
            try:
                copies = _parts(room, count, layout.nbytes)
                found.append((one, base, self._transform(one, base, perturbations, copies)))
            finally:
                transfer.release(one)
            room = room[count * layout.nbytes :]
        return found

    def _is_copied(self, unit: Unit, base: torch.Tensor, flats: Sequence[torch.Tensor]) -> bool:
        """Whether passes through ``unit`` with its weights in ``flats`` use nothing of ``base``."""
        layout = self.store.layouts[unit]
        return layout.trained == layout.nbytes and all(flat is not base for flat in flats)

    def _write_ahead(self, take: Callable[[Unit], torch.Tensor]) -> None:
        """Store the next parcel that has arrived, that is due, and that no pass has reached.

        Its way home, for which the link waits when a sweep begins, starts before the passes are
        there. One parcel for each unit that they go through: they should not be held up for long.
        And only some for each sweep, and none where passes do not wait for the link: to update and
        perturb a unit at once takes less.
        """
        fetched = self._stream.fetched() if self._ahead else ()
        for units in fetched:
            behind = [unit for unit in units if self._stores(unit)]
            if not behind:
                continue
            if self._stream.has_arrived(behind[0]):
                self._ahead -= 1
                for unit in behind:
                    self._transform(unit, take(unit), (), ())
                    self._stream.put_back(unit)
            return

    def _stores(self, unit: Unit) -> bool:
        """Whether a unit's updated weights have yet to replace those that are stored."""
        return unit in self._due and self.pending.lacks(unit) > 0

    def _fetch_ahead(self, unit: Unit) -> None:
        """Fetch what follows ``unit``; after the last one the next sweep's first."""
        position = self._position[unit]
        following = chain(islice(self._order, position + 1, None), islice(self._order, position))
        self._stream.prefetch(u for u in following if u in self._streamed)

    def _transform(
        self,
        unit: Unit,
        base: torch.Tensor,
        perturbations: Sequence[Perturbation],
        copies: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """The weights of each perturbation: in ``copies``, or ``base`` where nothing differs.

        Where the unit is due, ``base`` is updated first and brought home.
        """
        layout, pending = self.store.layouts[unit], self.pending
        write = self._stores(unit)
        lacks = bool(pending.open) or (pending.lacks(unit) > 0 and not write)
        flats, targets = [], []
        for perturbation, copy in zip(perturbations, copies, strict=False):
            differs = layout.trained > 0 and (perturbation.scale != 0.0 or lacks)
            flats.append(copy if differs else base)
            if differs:
                targets.append((self._changes.perturbations.index(perturbation), copy))
        if write or targets:
            held = pending.held(unit)
            self._arithmetic.transform(layout, base, self._changes, held, write, targets)
        if write:
            self._transfer[unit].written(unit)
            pending.wrote(unit)
        return flats

    def _tensors(self, unit: Unit, base: torch.Tensor, flat: torch.Tensor) -> list[torch.Tensor]:
        """A unit's weights in ``flat``; the frozen ones, which have no copies, in ``base``."""
        views = self._view(unit, flat)
        layout = self.store.layouts[unit]
        if flat is base or layout.trained == layout.nbytes:
            return views
        stored = self._view(unit, base)
        return [
            perturbed if trained else frozen
            for trained, perturbed, frozen in zip(layout.trains, views, stored, strict=True)
        ]

    def _view(self, unit: Unit, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a long-lived buffer, kept: the same few buffers serve every sweep."""
        key = unit, flat.data_ptr()
        if key not in self._views:
            self._views[key] = self.store.layouts[unit].views(flat)
        return self._views[key]

    def _write_rest(self) -> None:
        """Store the updated weights of every unit that is due and that no pass has reached."""
        for unit in self._order:
            if self._stores(unit):
                self._transform(unit, self._transfer[unit].acquire(unit), (), ())
                self._transfer[unit].release(unit)
        self.pending.forget()

    # -- held weights ---------------------------------------------------------------------

    def _hold(self, passes: list[Pass]) -> _Held:
        """A private copy of the held weights for every perturbation of the sweep."""
        held: _Held = {}
        perturbations = list(dict.fromkeys(one.perturbation for one in passes))
        for unit in self.units:
            if not unit.held:
                continue
            transfer, layout = self._transfer[unit], self.store.layouts[unit]
            base = transfer.acquire(unit)
            copies = [torch.empty_like(base) for _ in perturbations]
            flats = self._transform(unit, base, perturbations, copies)
            for perturbation, flat in zip(perturbations, flats, strict=True):
                held.setdefault(perturbation, []).append((unit, layout.views(flat)))
            transfer.release(unit)
        return held

    def _resume(self, one: Pass, held: _Held) -> None:
        for unit, tensors in held.get(one.perturbation, ()):
            self.store.bind(unit, tensors)
        assert self._lockstep is not None
        with self.formation.lane(one):
            self._lockstep.resume(one)

    # -- between sweeps -------------------------------------------------------------------

    def settle(self) -> None:
        """Apply every pending update, so that the parameters hold the true weights."""
        if self._lockstep is not None:
            return
        with _ordinary_tensors():
            self._take_back()
            self.pending.make_round()
            self._catch_up()

    def _take_back(self) -> None:
        """Make the parameters ordinary ones, and take weights in that somebody has moved."""
        self._marks.clear()
        if not self.store.is_intact():
            self._catch_up()
            self.rebuild()

    def _catch_up(self) -> None:
        """Store the updated weights of all units, outside a sweep."""
        self._due = set(self.units)
        self._changes = self.pending.changes(())
        self._write_rest()
        self._due = set()
        self._stream.finish()

    def _rest(self) -> None:
        """End a sweep: parameters rest in the store, marked if they lack updates."""
        for unit in self.units:
            self.store.rest(unit)
        if self.pending or not self._stream.is_idle:
            self._marks.set()

    def push(self, update: Update) -> None:
        """Add a step's update to those pending."""
        self.pending.open.append(update)
        self._marks.set()

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
        return bool(self._streamed)

    @property
    def has_whole_blocks(self) -> bool:
        """Whether blocks are units, so that passes through them can be replayed."""
        return bool(self._blocks)

    def is_in_place(self) -> bool:
        """Whether the weights are where sweeps so far have found them."""
        self._marks.clear()
        return self.store.is_intact()

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


@contextlib.contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """No gradients; and no inference mode, whose tensors could not be written to outside it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _perturbs(jobs: Sequence[tuple[Perturbation, Body]]) -> bool:
    return any(perturbation.scale for perturbation, _ in jobs)


def _parts(buffer: torch.Tensor, count: int, nbytes: int) -> list[torch.Tensor]:
    """The first ``count`` times ``nbytes`` of a buffer."""
    return [buffer[i * nbytes : (i + 1) * nbytes] for i in range(count)]


_Bound = tuple[Unit, torch.Tensor, list[torch.Tensor]]  # its weights as stored, and as perturbed
_Held = dict[Perturbation, list[tuple[Unit, list[torch.Tensor]]]]
