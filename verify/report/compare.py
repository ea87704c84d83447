"""What differs between two reports: of a host that works, and one that does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# facts that differ between any two runs, or say again what others say
_NOISE = {
    "seconds", "available", "free", "temporary", "cache", "count", "requires", "mapped",
    "host_memory", "device_memory",
}  # fmt: skip
_PACKAGES = {"installed", "origins", "unreadable"}
_RATES = {"up", "down", "each_of_both"}


@dataclass(frozen=True)
class Difference:
    """A value that is not the same; ``None`` where there is none."""

    where: str
    first: Any
    second: Any


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Verdicts that differ first, then facts."""
    a, b = (_by_identifier(one) for one in (first, second))
    verdicts, facts = [], [*_walk("machine", first["machine"], second["machine"])]
    for name in [*a, *(name for name in b if name not in a)]:
        one, two = a.get(name), b.get(name)
        if not (one and two) or (one["status"], one["problem"]) != (two["status"], two["problem"]):
            verdicts.append(Difference(name, _said(one), _said(two)))
        if one and two:
            facts += _walk(name, _own_facts(one), _own_facts(two))
    return verdicts + facts


def _said(result: Mapping[str, Any] | None) -> str | None:
    return f"{result['status']}: {result['have']}" if result else None


def _own_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result's facts, less the lists of packages that several checks look at."""
    own = result["identifier"] == "packages.row"
    return {k: v for k, v in result["facts"].items() if own or k not in _PACKAGES}


def _by_identifier(found: Mapping[str, Any]) -> dict[str, Any]:
    return {result["identifier"]: result for result in found["results"]}


def _walk(where: str, first: Any, second: Any) -> Iterator[Difference]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in [*first, *(name for name in second if name not in first)]:
            if name not in _NOISE | _RATES:
                yield from _walk(f"{where}.{name}", first.get(name), second.get(name))
    elif first != second and not _is_measured(first, second):
        yield Difference(where, first, second)


def _is_measured(first: Any, second: Any) -> bool:
    """Whether both are measured numbers of the same size, which are never quite the same."""
    if not (isinstance(first, float) and isinstance(second, float)):
        return False
    return abs(first - second) <= 0.2 * max(abs(first), abs(second))


def lines(found: list[Difference], names: tuple[str, str]) -> Iterator[str]:
    """The differences for people."""
    if not found:
        yield f"{names[0]} and {names[1]} do not differ in any verdict or fact."
        return
    for one in found:
        yield one.where
        yield f"  {names[0]}: {_short(one.first)}"
        yield f"  {names[1]}: {_short(one.second)}"


def _short(value: Any) -> str:
    text = "(nothing)" if value is None else str(value)
    return text if len(text) <= 200 else text[:199] + "…"
