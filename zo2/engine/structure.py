"""Whether a model still consists of the modules and parameters that its engine knows.

Somebody may give it a new head, another layer, or parameters that are other objects than before
(``load_state_dict(..., assign=True)``). Weights that the engine does not know would neither be
perturbed nor trained, and nothing would tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import is_, methodcaller
from typing import Any

from torch import nn

_VALUES = methodcaller("values")


class Structure:
    """The modules and parameters of a model as they are when this is made."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[dict[str, Any]] = [
            place for module in model.modules() for place in (module._parameters, module._modules)
        ]
        self._filled = list(filter(None, self._places))
        self._found = list(self._look())

    def is_same(self) -> bool:
        """Whether none of them was replaced, added or taken away since."""
        return sum(map(len, self._places)) == len(self._found) and all(
            map(is_, self._look(), self._found)
        )

    def _look(self) -> Iterator[Any]:
        return chain.from_iterable(map(_VALUES, self._filled))  # a GPU waits for it, hence by `map`
