"""What packages demand when they run and do not say in their metadata.

Resolvers see metadata only, so a set that breaks one of these resolves, ``pip check`` is content,
and nothing works. Both ``verify`` and ``verify explain`` take them from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Floor:
    """If ``package`` is installed at one of ``versions``, ``needs`` must hold where installed.

    Attributes:
        package: the one that demands.
        versions: a specifier of lower and upper bounds, such as ``">=5.20"``. Where several
            floors hold, all of them do.
        needs: the demanded package.
        specifier: what it must satisfy, such as ``">=2.6"``.
        why: what happens otherwise, as the end of a sentence.
        established: how this is known.
    """

    package: str
    versions: str
    needs: str
    specifier: str
    why: str
    established: str

    @property
    def requirement(self) -> str:
        """The demand, as a line of a requirements file."""
        return self.needs + self.specifier


def _transformers_floor(since: str, torch: str, first: str, last_without: str) -> Floor:
    return Floor(
        package="transformers",
        versions=f">={since}",
        needs="torch",
        specifier=f">={torch}",
        why=f"transformers switches PyTorch off below {torch} and every model class with it",
        established=f"transformers/utils/import_utils.py demands {torch} in {first}, "
        f"and less in the release before, {last_without}",
    )


FLOORS: tuple[Floor, ...] = (
    _transformers_floor("5.20", "2.6", "5.20.0", "5.19.0"),
    _transformers_floor("5.15", "2.5", "5.15.0", "5.14.1"),
    _transformers_floor("5.1", "2.4", "5.1.0", "5.0.0"),
    _transformers_floor("5.0", "2.2", "5.0.0", "4.57.6"),
    _transformers_floor("4.52", "2.1", "4.52.1", "4.51.3"),
    Floor(
        package="peft",
        versions=">=0.16,<0.18",
        needs="transformers",
        specifier="<5",
        why="peft imports `HybridCache` from transformers, which 5.0 removed",
        established="peft/peft_model.py imports it in 0.16.0, 0.17.0 and 0.17.1, but not in 0.15.2 "
        "nor at import in 0.18.0; transformers 4.57.6 has it, 5.0.0 and 5.23.0 do not",
    ),
    Floor(
        package="torch",
        versions="<=2.2.2",
        needs="numpy",
        specifier="<2",
        why="torch was compiled for NumPy 1 and says `Numpy is not available`",
        established="torch 2.2.2 beside numpy 2.2.6 on Linux; torch 2.4.0 beside numpy 2 works",
    ),
    Floor(
        package="pyarrow",
        versions=">=26",
        needs="numpy",
        specifier=">=2",
        why="pyarrow refuses NumPy 1 when it is imported",
        established="pyarrow 26.0.1 beside numpy 1.26.4 says `pyarrow requires NumPy 2.0 or "
        "newer`; 25.0.1, 24.0.0 and 23.0.0 are imported",
    ),
)
