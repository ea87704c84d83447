"""Launching a Triton kernel for little more than the driver's call.

Before each launch Triton looks at every argument, and at every number that the kernel's source
names, to find the compiled kernel that suits them; then the driver is asked about each address.
That takes several times as long as the launch. A `Launcher` remembers which kernel it was for
launches that are alike, and returns what repeats one with no questions asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import triton
from packaging.version import Version

# bytes: kernels are compiled for memory that begins at a multiple, where they read several elements
# at once, or at any place
ALIGNED = 16
LARGEST = 2**31 - 1  # numbers beyond are of another type
MOVING = 3  # arguments that come first and may be somewhere else when a launch is repeated
# From this version on, a compiled kernel is told the constants, too, and passes them over.
TAKES_CONSTANTS = Version(triton.__version__).release >= (3, 3)


Again = Callable[..., None]  # repeats a launch, given addresses of the `MOVING` arguments


class Launcher:
    """Launches one kernel.

    Args:
        kernel: a ``triton.jit`` function that specialises on none of its numbers, and whose
            constants come last.
        options: what it is compiled and launched with.
    """

    def __init__(self, kernel: Any, **options: Any) -> None:
        self._kernel, self._options = kernel, options
        self._compiled: dict[Hashable, Any] = {}

    @property
    def count(self) -> int:
        """How many kinds of launches there have been; most were compiled, which takes seconds."""
        return len(self._compiled)

    def __call__(
        self, programs: int, arguments: Sequence[Any], constants: Mapping[str, Hashable]
    ) -> Again | None:
        """Launch on the current device and stream.

        Args:
            programs: their number.
            arguments: tensors (on that device) and integers, in the kernel's order; the first
                `MOVING` are tensors.
            constants: its ``tl.constexpr`` arguments, in its order.

        Returns:
            What repeats the launch, as long as the other tensors are where they are, for addresses
            that are multiples of `ALIGNED` where these are; none for the first that are alike, or
            if Triton interprets kernels.
        """
        values = tuple(constants.values())
        alike = (
            arguments[0].device,
            values,
            *[
                one > LARGEST if type(one) is int else (one.dtype, one.data_ptr() % ALIGNED == 0)
                for one in arguments  # what of each decides which compiled kernel it suits
            ],
        )
        grid = programs, 1, 1
        compiled = self._compiled.get(alike)
        if compiled is None:  # as ever with Triton's interpreter, which compiles nothing
            self._compiled[alike] = self._kernel[grid](*arguments, **constants, **self._options)
            return None
        fixed = [one if type(one) is int else one.data_ptr() for one in arguments[MOVING:]]
        again = _again(compiled[grid], (*fixed, *values) if TAKES_CONSTANTS else tuple(fixed))
        again(*[one.data_ptr() for one in arguments[:MOVING]])
        return again


def _again(run: Callable[..., None], fixed: tuple[Any, ...]) -> Again:
    return lambda *moving: run(*moving, *fixed)
