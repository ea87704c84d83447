"""From texts to token sequences: prompts that end in a choice of words, cut to a length.

A labelled text becomes a prompt that ends in a label word, "a fine film It was great", and a
language model learns to prefer the right word, as in MeZO (arXiv 2305.17333). An ending may be
several tokens. A prompt that is too long loses the beginning of its text; what stands around the
text, and the ending, stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zo2.data import Example
from zo2.errors import DataError

Encode = Callable[[str], list[int]]

DEFAULT_TEMPLATE = "{text} It was {label}"


@dataclass(frozen=True)
class Prompt:
    """``before + text + after``, and the endings that may follow it, gaps in front included."""

    before: str
    text: str
    after: str
    endings: tuple[str, ...]

    @property
    def body(self) -> str:
        """All that comes before the ending."""
        return self.before + self.text + self.after


@dataclass(frozen=True)
class Choice:
    """A token sequence that ends in a label word, whose first token is number ``start``."""

    tokens: tuple[int, ...]
    start: int


Question = tuple[Choice, ...]  # a prompt with each label word, the right one first


def fit(prompt: Prompt, encode: Encode, limit: int) -> Prompt | None:
    """``prompt``, its text cut from the left if it must be, so that every ending fits.

    Args:
        prompt: to be cut.
        encode: from a string to token ids, special tokens in front included.
        limit: the most tokens that prompt and ending may have together.

    Returns:
        The prompt with the longest end of its text that fits, of at least one character;
        ``None`` if there is none.
    """
    if fits(prompt, encode, limit):
        return prompt
    text = prompt.text
    if not fits(replace(prompt, text=text[-1:]), encode, limit):
        return None
    low, high = 1, len(text)  # an end of `low` characters fits, one of `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        shorter = replace(prompt, text=text[-middle:])
        low, high = (middle, high) if fits(shorter, encode, limit) else (low, middle)
    return replace(prompt, text=text[-low:])


def fits(prompt: Prompt, encode: Encode, limit: int) -> bool:
    """Whether the prompt has at most ``limit`` tokens with each of its endings."""
    return all(len(encode(prompt.body + ending)) <= limit for ending in prompt.endings)


def choices(prompt: Prompt, encode: Encode) -> Question:
    """The tokens of the prompt with each ending, in the order of the endings.

    Raises:
        DataError: an ending makes no tokens of its own.
    """
    body = encode(prompt.body)
    question = []
    for ending in prompt.endings:
        full = encode(prompt.body + ending)
        start = _common(full, body)
        if not 0 < start < len(full):
            raise DataError(
                f"Label word {ending.strip()!r} makes no tokens of its own after the prompt: "
                "put a space before {label} in the template, or choose another word."
            )
        question.append(Choice(tuple(full), start))
    return tuple(question)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def encoder(tokenizer: Any, known: int | None = None) -> Encode:
    """A tokenizer's encoding with the special tokens it puts in front, but none at the end.

    Args:
        tokenizer: transformers'.
        known: tokens that the model knows; a text that needs others is a `DataError`.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    front = list(whole[: next(starts, 0)])

    def encode(text: str) -> list[int]:
        tokens = front + list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if known is not None and max(tokens, default=0) >= known:
            raise DataError(
                f"The tokenizer makes token {max(tokens)} of a text, but the model knows {known}: "
                "they do not belong together. Save the model's own tokenizer beside it."
            )
        return tokens

    return encode


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
    """Turns labelled texts into token sequences.

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

    def prompt(self, example: Example) -> Prompt:
        """The example's prompt, cut if need be, with each label word, its own label's first.

        Raises:
            DataError: template and label word alone are too long.
        """
        form = self.template
        labels = [example.label, *(label for label in self.words if label != example.label)]
        endings = tuple(form.gap + self.words[label] for label in labels)
        prompt = fit(
            Prompt(form.before, example.text, form.after, endings), self.encode, self.max_length
        )
        if prompt is None:
            raise DataError(
                f"Template and label words leave no room for text within {self.max_length} "
                "tokens: raise --max-length or shorten them."
            )
        return prompt

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Every example's prompt with each label word, its own label's first."""
        return [choices(self.prompt(one), self.encode) for one in examples]
