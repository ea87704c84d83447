"""Labelled texts: reading their files, the words that stand for labels, and samples of them."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zo2.errors import DataError

T = TypeVar("T")

TEXT_FIELDS = ("text", "sentence")
LABEL_FIELD = "label"


@dataclass(frozen=True)
class Example:
    """A text and its label, as the file spells it (``"0"``, ``"positive"``, ...)."""

    text: str
    label: str


# -- files ------------------------------------------------------------------------------------


def read_examples(
    path: str | Path,
    text_field: str | None = None,
    label_field: str = LABEL_FIELD,
    labels: Collection[str] | None = None,
) -> list[Example]:
    """Read labelled texts from a file: JSON lines if it is named .jsonl or .json, else TSV.

    A TSV line is ``text<TAB>label``; a first line that only names the columns is skipped. Blank
    lines are skipped.

    Args:
        path: a UTF-8 text file.
        text_field: JSON field that holds the text; by default ``text`` or ``sentence``.
        label_field: JSON field that holds the label.
        labels: the labels there may be; ``None`` for any.

    Raises:
        DataError: the file is missing, empty or not UTF-8, a line is malformed, or a label is
            unknown; the message names file and line.
    """
    path = Path(path)
    parse = _json_line if path.suffix.lower() in (".jsonl", ".json") else _tsv_line
    fields = (text_field,) if text_field else TEXT_FIELDS
    examples = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip() or (number == 1 and _is_header(line, (*fields, *TEXT_FIELDS))):
            continue
        where = f"{path}, line {number}"
        example = parse(line, where, fields, label_field)
        if labels is not None and example.label not in labels:
            raise DataError(
                f"{where}: unknown label {example.label!r}; known labels are "
                f"{', '.join(sort_labels(labels))}."
            )
        examples.append(example)
    if not examples:
        raise DataError(f"{path} holds no examples: give one per line, text<TAB>label.")
    return examples


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte order mark.

    Raises:
        DataError: the file is missing or not UTF-8; the message names the nearest file, or the
            line.
    """
    if not path.exists():
        raise DataError(f"There is no file {path}.{nearest_file(path)}")
    if path.is_dir():
        raise DataError(f"{path} is a directory; give a TSV or JSONL file in it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}). Convert the "
            "file, for example with: iconv -f LATIN1 -t UTF-8"
        ) from None


def nearest_file(path: Path) -> str:
    """A hint at the existing file whose name is most like the missing ``path``'s, or nothing."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f" There is no directory {path.parent} either."
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _is_header(line: str, text_fields: Sequence[str]) -> bool:
    return line.lower().split("\t") in [[name, LABEL_FIELD] for name in text_fields]


def _tsv_line(line: str, where: str, fields: Sequence[str], label_field: str) -> Example:
    columns = line.split("\t")
    if len(columns) != 2:
        raise DataError(f"{where}: expected text<TAB>label, two columns, but found {len(columns)}.")
    return _checked(columns[0], columns[1], where)


def _json_line(line: str, where: str, fields: Sequence[str], label_field: str) -> Example:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). JSONL has one object per line.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, not {type(record).__name__}.")
    text_field = next((name for name in fields if name in record), None)
    for name in (text_field, label_field):
        if name is None or name not in record:
            raise DataError(
                f"{where}: no field {name or ' or '.join(fields)!r}; the fields are "
                f"{', '.join(record) or 'none'}. Choose with --text-field and --label-field."
            )
    text, label = record[str(text_field)], record[label_field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {text_field!r} must be a string.")
    if not isinstance(label, (str, int)):
        raise DataError(f"{where}: field {label_field!r} must be a string or an integer.")
    return _checked(text, str(label), where)


def _checked(text: str, label: str, where: str) -> Example:
    example = Example(text.strip(), label.strip())
    for name in ("text", "label"):
        if not getattr(example, name):
            raise DataError(f"{where}: the {name} is empty.")
    return example


# -- labels and label words -------------------------------------------------------------------


def sort_labels(labels: Collection[str]) -> list[str]:
    """Each label once, in order: by value if all are integers, else by spelling."""
    unique = set(labels)
    if all(label.removeprefix("-").isdecimal() for label in unique):
        return sorted(unique, key=int)
    return sorted(unique)


def parse_label_words(spec: str) -> list[str] | dict[str, str]:
    """Read ``"terrible,great"`` (in the order of the labels) or ``"0=terrible,1=great"``.

    Raises:
        DataError: a word is empty or given twice, or the two forms are mixed.
    """
    parts = [part.strip() for part in spec.split(",")]
    pairs = [tuple(side.strip() for side in part.split("=", 1)) for part in parts]
    named = [len(pair) == 2 for pair in pairs]
    if any(named) and not all(named):
        raise DataError(f"Label words {spec!r}: give a label for every word, or for none.")
    words = [pair[-1] for pair in pairs]
    keys = [pair[0] for pair in pairs]
    if not all(words) or not all(keys):
        raise DataError(f"Label words {spec!r}: a label or word is empty.")
    for group in (words, keys):
        twice = [one for one in group if group.count(one) > 1]
        if twice:
            raise DataError(f"Label words {spec!r}: {twice[0]!r} is given twice.")
    if len(words) < 2:
        raise DataError(f"Label words {spec!r}: give at least two, such as terrible,great.")
    return dict(zip(keys, words, strict=True)) if all(named) else words


def choose_words(
    labels: Collection[str], given: list[str] | dict[str, str] | None
) -> dict[str, str]:
    """Which word stands for which label, in the order of the labels.

    Without ``given``, labels 0 and 1 are ``terrible`` and ``great``, and labels that are words
    stand for themselves.

    Raises:
        DataError: the words do not fit the labels.
    """
    ordered = sort_labels(labels)
    if len(ordered) < 2 and not isinstance(given, dict):
        raise DataError(
            f"The data has a single label, {ordered[0]!r}: there is nothing to tell apart."
        )
    if given is None:
        if ordered == ["0", "1"]:
            return {"0": "terrible", "1": "great"}
        if any(label.lstrip("-").isdecimal() for label in ordered):
            raise DataError(
                f"The labels are {', '.join(ordered)}: give a word for each, such as "
                f"--label-words {','.join(f'{label}=WORD' for label in ordered)}"
            )
        return {label: label for label in ordered}
    if isinstance(given, dict):
        missing = [label for label in ordered if label not in given]
        if missing:
            raise DataError(f"No label word is given for label {missing[0]!r}.")
        return {label: given[label] for label in sort_labels(given)}
    if len(given) != len(ordered):
        raise DataError(
            f"{len(given)} label words ({', '.join(given)}) were given for {len(ordered)} labels "
            f"({', '.join(ordered)})."
        )
    return dict(zip(ordered, given, strict=True))


# -- parts of a data set ----------------------------------------------------------------------


def hold_out(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split examples at random: (those that stay, ``share`` of each label's, at least one)."""
    held: set[int] = set()
    rng = random.Random(seed)
    for label in sort_labels([one.label for one in examples]):
        mine = [i for i, one in enumerate(examples) if one.label == label]
        held |= set(rng.sample(mine, max(1, round(share * len(mine)))))
    stay = [one for i, one in enumerate(examples) if i not in held]
    if {one.label for one in stay} != {one.label for one in examples}:
        raise DataError("A label has a single example, too few to hold any out: give --eval-data.")
    return stay, [examples[i] for i in sorted(held)]


def sample(examples: Sequence[T], count: int | None, seed: int) -> list[T]:
    """At most ``count`` of the examples, drawn at random, in their old order."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), count))]
