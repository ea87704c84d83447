"""One sweep over the weights: every unit comes to the device once, and all passes go through it.

Where several passes wait, the one that waits for the earliest unit of the route goes on first. So
passes that take different ways (another expert, a skipped block) meet again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby

import torch

from zo2.engine.abreast import Formation
from zo2.engine.interrupts import Interrupts
from zo2.engine.lockstep import Lockstep, Pass
from zo2.engine.partition import Unit
from zo2.engine.pending import Pending
from zo2.engine.route import Route
from zo2.engine.serving import Serving
from zo2.engine.vocabulary import Vocabulary
from zo2.engine.weights import Arithmetic
from zo2.engine.workspace import Small, Workspace
from zo2.methods import Perturbation


class Sweep:
    """One walk over the weights: by passes (`run`), or by nobody, to store updates (`write_rest`).

    Args:
        route: in which order passes are expected to enter the units.
        workspace: where weights rest, and what they pass through.
        arithmetic: how weights are updated and perturbed.
        pending: updates that not every stored weight has; what is stored is noted there.
        perturbations: of the passes.
        due: units whose updated weights are stored.
        ahead: how many parcels may be updated before passes reach them.
        one_by_one: whether passes stop at every unit, as one that is recorded has to.
        whole: the first units of divided blocks that passes go through at once, each with the
            bytes of one copy of its block.
        interrupts: what holds these up while stored weights are updated.
        vocabulary: serves embeddings and head, if the arithmetic can perturb rows.
    """

    def __init__(
        self,
        route: Route,
        workspace: Workspace,
        arithmetic: Arithmetic,
        pending: Pending,
        perturbations: Iterable[Perturbation],
        due: set[Unit],
        ahead: int,
        one_by_one: bool,
        whole: Mapping[Unit, int],
        interrupts: Interrupts,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._route, self._workspace, self._arithmetic = route, workspace, arithmetic
        self._store, self._stream = workspace.store, workspace.stream
        self._pending, self._changes = pending, pending.changes(perturbations)
        self._due, self._ahead, self._one_by_one = due, ahead, one_by_one
        self._whole, self._interrupts = whole, interrupts
        self._serving: Serving | None = None
        if vocabulary is not None:
            self._serving = Serving(vocabulary, workspace, pending, self._changes)
        # copies of small units
        self._made: dict[Perturbation, dict[Unit, torch.Tensor]] | None = None
        self._held: dict[Perturbation, list[tuple[Unit, list[torch.Tensor]]]] = {}

    def run(self, lockstep: Lockstep, formation: Formation, turn: Callable[[bool], None]) -> None:
        """Take all passes through the model.

        Args:
            lockstep: the passes; entered here.
            formation: how they go through a unit.
            turn: told before each unit whether it is of a block.
        """
        self._lockstep, self._formation = lockstep, formation
        for unit in self._route.order:
            if unit not in self._store.marks:  # if it is, whoever asks for it is noticed
                self._store.hide(unit)
        if self._serving:
            self._serving.begin(self)
        self._hold()
        with lockstep:
            with formation.fork():
                for one in lockstep.passes:
                    self.resume(one)
            while waiting := [(one.at, one) for one in lockstep.passes if one.at is not None]:
                unit = min((at for at, _ in waiting), key=self._route.position)
                here = [one for at, one in waiting if at is unit]
                turn(unit.block is not None)
                if self._serving and self._serving.can_serve(unit, here):
                    self._serving.serve(unit, here, formation, self)
                else:
                    self._visit(unit, here)
        self.write_rest()
        self._fetch_ahead(self._route.order[-1])

    def write_rest(self) -> None:
        """Store the updated weights of every unit that is due and that no pass has reached."""
        for unit in self._route.order:
            if self._stores(unit):
                transfer = self._workspace.transfer(unit)
                self._transform(unit, transfer.acquire(unit), (), ())
                transfer.release(unit)
        self._pending.forget()

    # -- going through units --------------------------------------------------------------

    def _visit(self, unit: Unit, passes: list[Pass]) -> None:
        """Bring a unit to the device and take the waiting passes through it."""
        workspace = self._workspace
        transfer = workspace.transfer(unit)
        base, acquired = transfer.acquire(unit), True
        groups = [
            (perturbation, list(group))
            for perturbation, group in groupby(passes, key=lambda one: one.perturbation)
        ]
        nbytes = self._store.layouts[unit].trained
        each = self._whole.get(unit, nbytes)
        fit = workspace.scratch.numel() // each if each else len(groups)
        at_once = max(1, min(fit, len(groups)))
        copies = workspace.copies(0, at_once, nbytes)
        kept: dict[Unit, torch.Tensor] = {}
        try:
            if not fit and self._needs_copy(unit, passes):
                copies = [self._unforeseen(base)]
            for first in range(0, len(groups), at_once):
                batch = groups[first : first + at_once]
                perturbations = [perturbation for perturbation, _ in batch]
                last = batch[-1] is groups[-1]
                weights = self._transform(unit, base, perturbations, copies)
                if last and self._is_copied(unit, base, weights):
                    transfer.release(unit)  # what comes next need not wait for these passes
                    acquired = False
                together = not acquired and len(batch) == len(groups)
                start = at_once * nbytes
                along = self._take_along(unit, perturbations, start, together, last, kept)
                bound = [(unit, base, weights), *along]
                self._fetch_ahead(bound[-1][0])
                if first == 0 and transfer is self._stream:
                    self._write_ahead()
                self._go_through(bound, batch)
        finally:
            if acquired:
                transfer.release(unit)
            for one in kept:  # an error is on its way
                workspace.transfer(one).put_back(one)

    def _go_through(
        self, bound: Sequence[_Bound], groups: Sequence[tuple[Perturbation, list[Pass]]]
    ) -> None:
        """Take passes, by their perturbations, through units that were brought and perturbed."""
        workspace = self._workspace
        try:
            with self._formation.fork():
                for index, (_, group) in enumerate(groups):
                    tensors = [
                        (one, workspace.tensors(one, stored, flats[index]))
                        for one, stored, flats in bound
                    ]
                    for one in group:
                        for each, views in tensors:
                            self._store.bind(each, views)
                        one.bound = {each for each, _ in tensors}
                        self.resume(one)
        finally:
            for each, _, _ in bound:
                self._store.hide(each)

    def _take_along(
        self,
        unit: Unit,
        perturbations: Sequence[Perturbation],
        start: int,
        together: bool,
        last: bool,
        kept: dict[Unit, torch.Tensor],
    ) -> list[_Bound]:
        """What passes enter after ``unit`` without another stop, each of which takes Python time.

        These are tiny units, which rest on the device, all of a small block, and what of a large
        one has arrived: its buffers are free again, once there are perturbed copies.

        Args:
            unit: where passes wait.
            perturbations: of the passes that go on now.
            start: byte of the scratch buffer from which on there is room for copies.
            together: whether these are all passes that wait.
            last: whether there are none that will go on after them.
            kept: weights that those before have taken along; these are left here for the next.
        """
        found: list[_Bound] = []
        if self._one_by_one:
            return found
        count = len(perturbations)
        together = together and all(one.scale for one in perturbations)  # who use copies, then
        for one in self._route.after(unit):
            layout, transfer = self._store.layouts[one], self._workspace.transfer(one)
            tiny = one in self._route.tiny and one not in self._whole
            at_once = unit in self._whole or (together and self._has_arrived(one))
            along = tiny or (at_once and one.block == unit.block)
            end = start + count * layout.trained
            if not along or end > self._workspace.scratch.numel():
                break
            base = kept[one] if one in kept else transfer.acquire(one)
            kept[one] = base
            copies = self._workspace.copies(start, count, layout.trained)
            found.append((one, base, self._transform(one, base, perturbations, copies)))
            if last:
                transfer.release(one)
                del kept[one]
                if transfer is self._stream:
                    self._fetch_ahead(one)
            start = end
        return found

    def _has_arrived(self, unit: Unit) -> bool:
        """Whether a unit that is streamed is there to be copied."""
        frozen = self._store.layouts[unit].has_frozen
        return unit in self._workspace.copied and not frozen and self._stream.has_arrived(unit)

    # -- embeddings and head --------------------------------------------------------------

    def store(self, unit: Unit, base: torch.Tensor) -> None:
        """Let a unit's updated weights replace those that are stored, if they have yet to."""
        if self._stores(unit):
            self._transform(unit, base, (), ())

    def copy_all(
        self, unit: Unit, base: torch.Tensor, perturbation: Perturbation
    ) -> Sequence[torch.Tensor]:
        """A perturbed copy of all weights of a unit that is used otherwise than by rows."""
        [copy] = self._transform(unit, base, [perturbation], [self._unforeseen(base)])
        return self._workspace.tensors(unit, base, copy)

    def resume(self, one: Pass) -> None:
        """Take a pass to where it waits next."""
        for unit, tensors in self._held.get(one.perturbation, ()):
            self._store.bind(unit, tensors)
        with self._formation.lane(one):
            self._lockstep.resume(one)

    def _hold(self) -> None:
        """Make a private copy of the held weights for every perturbation of the sweep."""
        perturbations = self._changes.perturbations
        for unit in self._route.order:
            if not unit.held:
                continue
            transfer, layout = self._workspace.transfer(unit), self._store.layouts[unit]
            base = transfer.acquire(unit)
            copies = [torch.empty_like(base) for _ in perturbations]
            flats = self._transform(unit, base, perturbations, copies)
            for perturbation, flat in zip(perturbations, flats, strict=True):
                self._held.setdefault(perturbation, []).append((unit, layout.views(flat)))
            transfer.release(unit)

    def _fetch_ahead(self, unit: Unit) -> None:
        """Fetch what follows ``unit``: other units, parts of the head, the next sweep's units."""
        parts = self._serving.expected if self._serving else ()
        self._stream.prefetch(chain(self._after(unit), parts, self._until(unit)))

    def following(self, unit: Unit) -> Iterator[Unit]:
        """What passes through buffers after ``unit``, in this sweep and then in the next one."""
        return chain(self._after(unit), self._until(unit))

    def _after(self, unit: Unit) -> Iterator[Unit]:
        return (one for one in self._route.after(unit) if one in self._workspace.copied)

    def _until(self, unit: Unit) -> Iterator[Unit]:
        return (one for one in self._route.until(unit) if one in self._workspace.copied)

    # -- a unit's weights -----------------------------------------------------------------

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
        small = self._workspace.small
        if perturbations and small and unit in small.units and (made := self._perturb(small)):
            return [made[one][unit] for one in perturbations]
        layout, pending = self._store.layouts[unit], self._pending
        write = self._stores(unit)
        lacks = self._lacks(unit, write)
        flats, targets = [], []
        for perturbation, copy in zip(perturbations, copies, strict=False):
            differs = layout.trained > 0 and (perturbation.scale != 0.0 or lacks)
            flats.append(copy if differs else base)
            if differs:
                targets.append((self._changes.perturbations.index(perturbation), copy))
        held = pending.held(unit)
        if write:
            with self._interrupts.held_up:
                self._arithmetic.transform(layout, base, self._changes, held, write, targets)
                self._workspace.transfer(unit).written(unit)
                pending.wrote(unit)
        elif targets:
            self._arithmetic.transform(layout, base, self._changes, held, write, targets)
        return flats

    def _lacks(self, unit: Unit, write: bool) -> bool:
        """Whether a unit's base, once stored if it is to be, lacks updates that passes see."""
        return bool(self._pending.open) or (self._pending.lacks(unit) > 0 and not write)

    def _needs_copy(self, unit: Unit, passes: Iterable[Pass]) -> bool:
        """Whether any pass uses other weights than those that are stored, or will be."""
        perturbed = any(one.perturbation.scale for one in passes)
        lacks = self._lacks(unit, self._stores(unit))
        return self._store.layouts[unit].trained > 0 and (perturbed or lacks)

    def _unforeseen(self, base: torch.Tensor) -> torch.Tensor:
        """Memory for a copy of an embedding or a head that is used otherwise than by rows."""
        return torch.empty_like(base)

    def _perturb(self, small: Small) -> dict[Perturbation, dict[Unit, torch.Tensor]]:
        """The copies of small units, made when the first of them is asked for; none if there is no
        room for as many as passes need, or units differ in what they lack.
        """
        if self._made is not None:
            return self._made
        pending, perturbations, self._made = self._pending, self._changes.perturbations, {}
        states = {(pending.held(unit), self._stores(unit)) for unit in small.units}
        fit = len(perturbations) <= len(small.copies) and all(one.scale for one in perturbations)
        if fit and len(states) == 1:
            ((held, write),) = states
            self._made.update(zip(perturbations, small.parts, strict=False))
            targets = list(enumerate(small.copies[: len(perturbations)]))
            base, changes = small.base, self._changes
            with self._interrupts.held_up:
                self._arithmetic.transform(small.layout, base, changes, held, write, targets)
                for unit in small.units if write else ():
                    pending.wrote(unit)
        return self._made

    def _is_copied(self, unit: Unit, base: torch.Tensor, flats: Sequence[torch.Tensor]) -> bool:
        """Whether passes through ``unit`` with its weights in ``flats`` use nothing of ``base``."""
        frozen = self._store.layouts[unit].has_frozen
        return not frozen and all(flat is not base for flat in flats)

    def _stores(self, unit: Unit) -> bool:
        """Whether a unit's updated weights have yet to replace those that are stored."""
        return unit in self._due and self._pending.lacks(unit) > 0

    def _write_ahead(self) -> None:
        """Store the next parcel that has arrived, that is due, and that no pass has reached.

        Its way home, for which the link may wait, starts before the passes are there. One parcel
        for each that they go through: they should not be held up for long, least of all on their
        way to the first one, when a GPU waits for Python. And only some for each sweep, and none
        where passes do not wait for the link: to update and perturb a unit at once takes less.
        """
        fetched = self._stream.fetched() if self._ahead else ()
        for units in fetched:
            behind = [unit for unit in units if self._stores(unit)]
            if not behind:
                continue
            if self._stream.has_arrived(behind[0]):
                self._ahead -= 1
                for unit in behind:
                    self._transform(unit, self._stream.acquire(unit), (), ())
                    self._stream.put_back(unit)
            return


_Bound = tuple[Unit, torch.Tensor, list[torch.Tensor]]  # its weights as stored, and as perturbed
