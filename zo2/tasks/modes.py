"""How a model is brought to do a task, with the settings of MeZO (arXiv 2305.17333, table 16).

Without training: ``zero-shot``, and ``in-context`` with answered examples in the prompt. With
training of all weights: ``ft``; of adapters alone: ``lora`` and ``prefix``, by the package peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zo2.errors import ConfigError, DataError, ModelError

ZERO_SHOT, IN_CONTEXT, FT, LORA, PREFIX = MODES = (
    "zero-shot", "in-context", "ft", "lora", "prefix",
)  # fmt: skip
TRAINED = (FT, LORA, PREFIX)
STEPS, BATCH_SIZE, DEMONSTRATIONS = 20_000, 16, 32
LORA_RANK, LORA_ALPHA, PREFIX_TOKENS = 8, 16, 5


@dataclass(frozen=True)
class Recipe:
    """Learning rates and perturbation size of MeZO for a mode; the paper tried each rate.

    Attributes:
        lrs: for classification and multiple choice. To begin with, the first is the best guess for
            all tasks.
        generation_lrs: for SQuAD and DROP.
        eps: size of the perturbation.
    """

    lrs: tuple[float, ...]
    generation_lrs: tuple[float, ...]
    eps: float


RECIPES = {
    FT: Recipe((1e-6, 1e-7), (1e-6, 5e-7, 1e-7), 1e-3),
    LORA: Recipe((1e-4, 5e-5), (1e-4, 5e-5, 1e-5), 1e-2),
    PREFIX: Recipe((1e-2, 1e-3), (5e-2, 1e-2, 5e-3), 1e-1),
}
# The paper knows no FZOO; these are from our trials with SmolLM2-135M on SST-2 (8 directions).
FZOO = Recipe((3e-3,), (3e-3,), 1e-3)


def recipe(mode: str, method: str) -> Recipe | None:
    """Settings to start from, ``None`` where none are known."""
    if method == "mezo-sgd":
        return RECIPES.get(mode)
    return FZOO if mode == FT else None


def adapt(model: Any, mode: str, seed: int) -> Any:
    """The model with what the mode trains: itself for ``ft``, else with new adapters.

    Args:
        model: as it was loaded, in host memory.
        mode: one of `MODES`.
        seed: of the numbers that adapters begin with.

    Raises:
        ConfigError: peft is missing.
        ModelError: peft does not know where this model takes adapters.
    """
    if mode not in (LORA, PREFIX):
        return model
    import torch  # here, since the command line imports this module to show its help

    peft = _peft(mode)
    if mode == LORA:
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0
        )
    else:
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, config).eval()
            if mode == PREFIX:
                _begin_with_words(adapted, model)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"peft {peft.__version__} cannot give {type(model).__name__} adapters for --mode "
                f"{mode}: {error}"
            ) from error
    return adapted


def _begin_with_words(adapted: Any, model: Any) -> None:
    """Let a prefix begin with the keys and values of random tokens instead of random numbers.

    MeZO's authors found this crucial (appendix E.5).
    """
    import torch

    words = torch.randint(model.get_input_embeddings().num_embeddings, (1, PREFIX_TOKENS))
    with torch.no_grad():
        output = model(input_ids=words, use_cache=True)
        cache = output["cache" if "cache" in output else "past_key_values"]  # before 5.24
        parts = [part for layer in cache for part in layer[:2]]  # [1, heads, tokens, head size]
        prefix = adapted.prompt_encoder[adapted.active_adapter].embedding.weight
        prefix.copy_(torch.cat(parts).permute(2, 0, 1, 3).reshape(prefix.shape))


def restore(model: Any, mode: str, place: Path) -> None:
    """Give an adapted model the adapters saved at ``place``.

    Raises:
        DataError: they are missing, or of another model.
    """
    from safetensors.torch import load_file

    path = place / "adapter_model.safetensors"
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        _peft(mode).set_peft_model_state_dict(model, load_file(path))
    except RuntimeError as error:  # torch's word for shapes that do not fit
        raise DataError(f"{path} holds adapters of another model: {error}") from error


def _peft(mode: str) -> Any:
    try:
        import peft
    except ImportError:
        raise ConfigError(f"--mode {mode} needs the package peft: pip install peft") from None
    return peft
