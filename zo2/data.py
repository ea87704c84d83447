"""Text classification data: files, prompts, and token batches.

A labelled text becomes a prompt that ends in a label word, "a fine film It was great", and a
language model learns to prefer the right word, as in MeZO (arXiv 2305.17333). A label word may
be several tokens.
"""

from __future__ import annotations

import difflib
import itertools
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zo2.errors import DataError

if TYPE_CHECKING:
    import torch

Encode = Callable[[str], list[int]]

DEFAULT_TEMPLATE = "{text} It was {label}"
TEXT_FIELDS = ("text", "sentence")
LABEL_FIELD = "label"
IGNORED = -100  # a label that no loss is computed for


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
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
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


def _read_text(path: Path) -> str:
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
    if all(label.lstrip("-").isdecimal() for label in unique):
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


# -- prompts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """What stands around a text: ``before + text + after``, then ``gap`` and the label word."""

    before: str
    after: str
    gap: str

    @classmethod
    def parse(cls, template: str) -> Template:
        """Read ``"{text} It was {label}"``; without ``{label}`` the word comes last.

        Raises:
            DataError: ``{text}`` is not there once, or something follows ``{label}``.
        """
        body, mark, rest = template.partition("{label}")
        if rest.strip():
            raise DataError(f"Template {template!r}: {{label}} must come last.")
        if body.count("{text}") != 1:
            raise DataError(f"Template {template!r}: it must hold {{text}} exactly once.")
        before, after = body.split("{text}")
        gap = after[len(after.rstrip()) :] if mark else " "
        return cls(before, after.rstrip(), gap)

    def prompt(self, text: str) -> str:
        """All that comes before the gap and the label word."""
        return f"{self.before}{text}{self.after}"


@dataclass(frozen=True)
class Prompter:
    """Turns texts into token sequences.

    Attributes:
        template: the prompt's form.
        words: the word for each label, in the order of the labels.
        encode: from a string to token ids, special tokens in front included.
        max_length: the most tokens a sequence may have. A longer text loses its beginning,
            since a review's end tells more than its start; template and label word stay whole.
    """

    template: Template
    words: Mapping[str, str]
    encode: Encode
    max_length: int

    def fit(self, text: str) -> str:
        """``text``, or the longest end of it that leaves room for every label word.

        Raises:
            DataError: template and label word alone are too long.
        """
        if self._fits(text):
            return text
        if not self._fits(text[-1:]):
            raise DataError(
                f"Template and label words leave no room for text within {self.max_length} "
                "tokens: raise --max-length or shorten them."
            )
        low, high = 1, len(text)  # an end of `low` characters fits, one of `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(text[-middle:]) else (low, middle)
        return text[-low:]

    def _fits(self, text: str) -> bool:
        return all(len(self._full(text, word)) <= self.max_length for word in self.words.values())

    def _full(self, text: str, word: str) -> list[int]:
        return self.encode(self.template.prompt(text) + self.template.gap + word)

    def choice(self, text: str, label: str) -> Choice:
        """The tokens of a (fitting) text's prompt with ``label``'s word."""
        full = self._full(text, self.words[label])
        start = _common(full, self.encode(self.template.prompt(text)))
        if not 0 < start < len(full):
            raise DataError(
                f"Label word {self.words[label]!r} makes no tokens of its own after the prompt: "
                "put a space before {label} in the template, or choose another word."
            )
        return Choice(tuple(full), start)

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Every example's prompt with each label word, its own label's first."""
        questions = []
        for one in examples:
            text = self.fit(one.text)
            labels = [one.label, *(label for label in self.words if label != one.label)]
            questions.append(tuple(self.choice(text, label) for label in labels))
        return questions


@dataclass(frozen=True)
class Choice:
    """A token sequence that ends in a label word, whose first token is number ``start``."""

    tokens: tuple[int, ...]
    start: int


Question = tuple[Choice, ...]  # a prompt with each label word, the right one first


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def encoder(tokenizer: Any) -> Encode:
    """A tokenizer's encoding with the special tokens it puts in front, but none at the end."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    front = list(whole[: next(starts, 0)])

    def encode(text: str) -> list[int]:
        return front + list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return encode


# -- batches ----------------------------------------------------------------------------------


def draw(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of ``size`` indices below ``count``: shuffled epochs, one after another.

    The last batch of an epoch is filled up from the next, so that every step sees ``size``
    examples. The same seed gives the same batches on every machine.
    """
    rng = random.Random(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(range(count), count)
        yield waiting[:size]
        waiting = waiting[size:]


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


def sample(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """At most ``count`` of the examples, drawn at random, in their old order."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), count))]


def collate(rows: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Token sequences padded on the right: input_ids and attention_mask, [rows, longest] int64."""
    import torch

    longest = max(len(row) for row in rows)
    ids = [[*row, *[pad] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def word_batch(questions: Sequence[Question], pad: int) -> dict[str, torch.Tensor]:
    """Prompts with their right words, for a language model's own loss on the words alone.

    Returns:
        Also ``labels``, [questions, longest] int64: -100 but for the right word's tokens.
    """
    import torch

    right = [question[0] for question in questions]
    batch = collate([one.tokens for one in right], pad)
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, one in enumerate(right):
        labels[row, one.start : len(one.tokens)] = torch.tensor(one.tokens[one.start :])
    return {**batch, "labels": labels}


def choice_batch(questions: Sequence[Question], pad: int) -> dict[str, torch.Tensor]:
    """Prompts with each label word, for a comparison of the words; see `zo2.evaluation.scores`.

    What goes in is a choice's tokens but the last, so that words of one token share a row.

    Returns:
        Also ``labels``, [questions, choices, longest word, 3] int64: for each token of each
        word the row and place of its logits and the token itself, -100 where there is none.
    """
    import torch

    rows = list(dict.fromkeys(one.tokens[:-1] for question in questions for one in question))
    number = {row: index for index, row in enumerate(rows)}
    longest = max(len(one.tokens) - one.start for question in questions for one in question)
    labels = torch.full((len(questions), len(questions[0]), longest, 3), IGNORED)
    for i, question in enumerate(questions):
        for j, one in enumerate(question):
            for k, token in enumerate(one.tokens[one.start :]):
                place = [number[one.tokens[:-1]], one.start - 1 + k, token]
                labels[i, j, k] = torch.tensor(place)
    return {**collate(rows, pad), "labels": labels}


def parts(questions: Sequence[Question], count: int) -> list[list[Question]]:
    """Questions in ``count`` parts, those of like length together to pad little."""
    ordered = sorted(questions, key=lambda one: len(one[0].tokens))
    bounds = [len(ordered) * part // count for part in range(count + 1)]
    return [ordered[a:b] for a, b in itertools.pairwise(bounds) if b > a]
