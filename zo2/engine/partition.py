"""Which parameters form a unit, and at which modules a unit is entered.

A unit is the part of the model that is moved and perturbed at once. Every parameter belongs to
exactly one unit. Unless all its weights are "held" (see below), a unit's parameters are read
only while one of the unit's modules runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from zo2.directions import ParameterShape

ALIGNMENT = 64  # bytes, of which each weight begins at a multiple in its unit's buffer


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter of the model, as the engine sees it."""

    parameter: nn.Parameter
    name: str
    shape: ParameterShape
    decayed: bool

    @property
    def trainable(self) -> bool:
        """Frozen weights are neither perturbed nor updated."""
        return self.parameter.requires_grad

    @property
    def nbytes(self) -> int:
        return self.parameter.numel() * self.parameter.element_size()

    @property
    def stored(self) -> int:
        """Bytes of its place in a buffer."""
        return math.ceil(self.nbytes / ALIGNMENT) * ALIGNMENT


@dataclass(eq=False)
class Unit:
    """Weights that move together, and the modules whose calls need them.

    Attributes:
        name: dotted name of the first module.
        modules: entering any of these is entering the unit; several where weights are tied.
        weights: the parameters, in the model's order.
        root: name of the block, or of the subtree outside the blocks, that this is or lies in.
        block: index of that block; ``None`` outside the blocks.
        held: the weights are read outside the modules, so each pass keeps its own copy.
        index: position among the partition's units.
    """

    name: str
    modules: tuple[nn.Module, ...]
    weights: tuple[Weight, ...]
    root: str = ""
    block: int | None = None
    held: bool = False
    index: int = field(default=-1)

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    @cached_property
    def stored(self) -> int:
        """Bytes of its buffer."""
        return sum(weight.stored for weight in self.weights)

    @cached_property
    def trained(self) -> int:
        """Bytes of a perturbed copy of it: frozen weights have none."""
        return sum(weight.stored for weight in self.weights if weight.trainable)

    @property
    def trainable(self) -> bool:
        return any(weight.trainable for weight in self.weights)

    @property
    def is_block(self) -> bool:
        """Whether this is a whole block."""
        return self.block is not None and self.name == self.root


@dataclass(frozen=True)
class _Home:
    root: str
    block: int | None


@dataclass(frozen=True)
class Corrections:
    """What recording a pass found.

    Attributes:
        whole: modules that must not be divided: they read weights of what lies below them.
        divided: modules that must be divided: what lies below them is called without them.
        held: weights to hold.
    """

    whole: frozenset[str] = frozenset()
    divided: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()

    def __or__(self, other: Corrections) -> Corrections:
        return Corrections(
            self.whole | other.whole, self.divided | other.divided, self.held | other.held
        )


def partition(model: nn.Module, size: str, corrections: Corrections | None = None) -> list[Unit]:
    """Split ``model`` into units.

    Args:
        model: any module; decoder blocks are the elements of its outermost module lists.
        size: ``"block"``: each decoder block, and each subtree outside the blocks, is a unit;
            ``"leaf"``: each of these is divided into modules that are no larger than the largest
            of those within blocks that cannot be divided.
        corrections: what an earlier recording of a pass found.
    """
    corrections = corrections or Corrections()
    weights = _weights(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = _outer_blocks(model)
    roots = list(_roots(model, blocks))
    limit = math.inf
    if size == "leaf":
        leaves = [
            leaf
            for root, block in roots
            if block is not None or not blocks
            for leaf in _split(modules, root, 0, corrections)
        ]
        limit = max((_nbytes(modules[leaf]) for leaf in leaves), default=0)
    homes = {
        name: _Home(root, block)
        for root, block in roots
        for name in _split(modules, root, limit, corrections)
    }
    return _units(modules, weights, homes, corrections.held)


def _weights(model: nn.Module) -> dict[int, Weight]:
    """The model's distinct parameters by identity, in the model's own order."""
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    return {
        id(parameter): Weight(
            parameter=parameter,
            name=name,
            shape=ParameterShape(index, tuple(parameter.shape)),
            decayed=_is_decayed(name, parameter, owners[id(parameter)]),
        )
        for index, (name, parameter) in enumerate(model.named_parameters())
    }


def _is_decayed(name: str, parameter: torch.Tensor, owner: nn.Module) -> bool:
    """Weight decay skips biases and norms, as in MeZO."""
    if parameter.dim() < 2 or "norm" in type(owner).__name__.lower():
        return False
    return "bias" not in name.rsplit(".", 1)[-1]


def _owns_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _outer_blocks(model: nn.Module) -> dict[str, int]:
    """Elements of the outermost module lists that hold parameters: {name: running index}."""
    found: dict[str, int] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if isinstance(child, nn.ModuleList):
                for key, element in child.named_children():
                    if _owns_parameters(element):
                        found[f"{path}.{key}"] = len(found)
            else:
                visit(child, f"{path}.")

    visit(model, "")
    return found


def _roots(model: nn.Module, blocks: dict[str, int]) -> Iterator[tuple[str, int | None]]:
    """The blocks, and the largest subtrees that neither contain nor are a block."""
    trunk = {""}
    for name in blocks:
        parts = name.split(".")
        trunk.update(".".join(parts[:depth]) for depth in range(1, len(parts)))

    def visit(module: nn.Module, prefix: str) -> Iterator[tuple[str, int | None]]:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if path in blocks:
                yield path, blocks[path]
            elif path in trunk:
                yield from visit(child, f"{path}.")
            elif isinstance(child, (nn.ModuleDict, nn.ModuleList)):
                yield from visit(child, f"{path}.")  # it is never called itself
            elif _owns_parameters(child):
                yield path, None

    yield from visit(model, "")


def is_divisible(module: nn.Module) -> bool:
    """Whether all of a module's weights lie in modules below it."""
    return _owns_parameters(module) and next(module.parameters(recurse=False), None) is None


def _split(
    modules: dict[str, nn.Module], root: str, limit: float, corrections: Corrections
) -> Iterator[str]:
    """Names of the units' modules within the subtree ``root``, of up to ``limit`` bytes each where
    they can be divided.
    """
    module = modules[root]
    small = (
        _nbytes(module) <= limit
        and root not in corrections.divided
        and not isinstance(module, (nn.ModuleDict, nn.ModuleList))  # which are never called
    )
    if small or root in corrections.whole or not is_divisible(module):
        yield root
        return
    for name, child in module.named_children():
        if _owns_parameters(child):
            yield from _split(modules, f"{root}.{name}", limit, corrections)


def _nbytes(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in module.parameters())


def _units(
    modules: dict[str, nn.Module],
    weights: dict[int, Weight],
    homes: dict[str, _Home],
    held: frozenset[str],
) -> list[Unit]:
    """Group weights by home; homes that share a weight are one unit."""
    group = {name: name for name in homes}
    order = {name: index for index, name in enumerate(homes)}

    def find(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    home_of: dict[int, str] = {}
    for name in homes:
        for parameter in modules[name].parameters():
            if weights[id(parameter)].name in held:
                continue
            first = home_of.setdefault(id(parameter), name)
            low, high = sorted((find(first), find(name)), key=order.__getitem__)
            group[high] = low

    joined: dict[str, list[str]] = {}
    for name in homes:
        joined.setdefault(find(name), []).append(name)
    members: dict[str, list[Weight]] = {}
    loose: list[Weight] = []
    for key, weight in weights.items():
        if key in home_of:
            members.setdefault(find(home_of[key]), []).append(weight)
        else:
            loose.append(weight)

    units = [
        Unit(
            name=name,
            modules=_distinct(modules[home] for home in joined[name]),
            weights=tuple(members[name]),
            root=homes[name].root,
            block=homes[name].block,
        )
        for name in homes
        if name in members
    ]
    units += [Unit(weight.name, (), (weight,), held=True) for weight in loose]
    for index, unit in enumerate(units):
        unit.index = index
    return units


def _distinct(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    return tuple({id(module): module for module in modules}.values())
