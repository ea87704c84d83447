"""Labelled texts as the command line names them, and a model's score on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zo2 import data, prompts
from zo2.batches import pad_token
from zo2.loading import longest

if TYPE_CHECKING:
    from zo2.evaluation import Score
    from zo2.loading import Loaded

HELD_OUT = 0.2


@dataclass(frozen=True)
class LabelledTexts:
    """Examples to train on and to evaluate with, and the labels' words."""

    examples: Sequence[data.Example]
    dev: Sequence[data.Example]
    words: Mapping[str, str]
    held_out: bool

    @classmethod
    def read(
        cls,
        read: Callable[..., list[data.Example]],
        path: Path,
        dev_path: Path | None,
        words: str | None,
        max_examples: int | None,
        seed: int,
    ) -> LabelledTexts:
        given = None if words is None else data.parse_label_words(words)
        known = set(given) if isinstance(given, dict) else None
        examples = read(path, labels=known)
        chosen = data.choose_words([one.label for one in examples], given)
        if dev_path is None:
            examples, dev = data.hold_out(examples, HELD_OUT, seed)
        elif dev_path == path:
            dev = examples = data.sample(examples, max_examples, seed)
        else:
            dev = read(dev_path, labels=set(chosen))
        return cls(data.sample(examples, max_examples, seed), dev, chosen, dev_path is None)

    def describe(self) -> str:
        words = ", ".join(f"{label} = {word!r}" for label, word in self.words.items())
        held = " (held out of the data at random)" if self.held_out else ""
        return (
            f"Data: {len(self.examples)} examples to train on, {len(self.dev)} to evaluate with"
            f"{held}; {words}"
        )


def make_prompter(
    loaded: Loaded, template: prompts.Template, words: Mapping[str, str], max_length: int
) -> prompts.Prompter:
    """What turns texts into tokens, no longer than the model takes."""
    limit = longest(loaded.model) or max_length
    encode = prompts.encoder(loaded.tokenizer, loaded.known)
    return prompts.Prompter(template, words, encode, min(max_length, limit))


def evaluator(
    loaded: Loaded, prompter: prompts.Prompter, task: LabelledTexts
) -> Callable[[], Score]:
    """What asks the model all of ``task.dev``, now and later."""
    from zo2 import evaluation

    questions = prompter.questions(task.dev)
    return lambda: evaluation.evaluate(loaded.model, questions, pad_token(loaded.tokenizer))


def shown(score: Score) -> str:
    """A score for people."""
    return f"accuracy {score.accuracy:.1%}, loss {score.loss:.3f}"
