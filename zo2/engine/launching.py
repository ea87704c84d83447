"""Launching a Triton kernel for little more than the driver's call.

Before each launch Triton looks at every argument, and at every number that the kernel's source
names, to find the compiled kernel that suits them. That takes several times as long as the launch.
A `Launcher` remembers which one it was for launches that are alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import triton
from packaging.version import Version

# bytes: kernels are compiled for memory that begins at a multiple, where they read several elements
# at once, or at any place
ALIGNED = 16
LARGEST = 2**31 - 1  # numbers beyond are of another type
# From this version on, a compiled kernel is told the constants, too, and passes them over.
TAKES_CONSTANTS = Version(triton.__version__).release >= (3, 3)


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
    ) -> None:
        """Launch on the current device and stream.

        Args:
            programs: their number.
            arguments: tensors (on that device) and integers, in the kernel's order; the first is a
                tensor.
            constants: its ``tl.constexpr`` arguments, in its order.
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
        elif TAKES_CONSTANTS:
            compiled[grid](*arguments, *values)
        else:
            compiled[grid](*arguments)
