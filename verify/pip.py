"""What to tell pip so that it installs what is meant, and moves no other package."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from verify.process import Facts

_INDEX = "https://download.pytorch.org/whl/"
_OF_TORCH = {"torch", "torchaudio", "torchvision"}  # their local versions are indexes of their own
_BUILD = re.compile(r"cpu|xpu|cu\d+|rocm\d+(\.\d+)*")
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "dateutil": "python-dateutil",
    "huggingface_hub": "huggingface-hub",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
_SAME_NAME = {
    "accelerate", "bitsandbytes", "datasets", "dill", "filelock", "fsspec", "gguf", "greenlet",
    "jinja2", "llvmlite", "mpmath", "multiprocess", "networkx", "numba", "numpy", "packaging",
    "pandas", "peft", "psutil", "pyarrow", "regex", "requests", "safetensors", "scipy",
    "sentencepiece", "setuptools", "sympy", "tokenizers", "torch", "torchvision", "tqdm",
    "transformers", "triton", "trl", "xxhash",
}  # fmt: skip


def requirement(name: str, specifier: str, url: str = "") -> str:
    """A requirement as a shell takes it: one with a URL is never looked up by its name."""
    text = f"{name} @ {url}" if url else name + specifier
    return shlex.quote(text)


def again(names: Sequence[str], packages: Facts) -> str:
    """Packages exactly as they are, for ``pip install --force-reinstall --no-deps``.

    A build of torch that only an index of PyTorch's has is looked for there, and what was
    installed from an address (a repository, a directory) is fetched from it.

    Args:
        names: which; those that are not installed are named without a version.
        packages: what the probe of ``packages.row`` found: ``installed`` and ``origins``.
    """
    installed, origins = packages.get("installed", {}), packages.get("origins", {})
    wanted = [_as_it_is(name, installed, origins) for name in names]
    builds = [_index(installed.get(name, "")) for name in names if name in _OF_TORCH]
    indexes = sorted({index for index in builds if index})
    alone = len(indexes) == 1 and len(builds) == len(names)
    option = "--index-url" if alone else "--extra-index-url"
    return " ".join([*wanted, *(f"{option} {index}" for index in indexes)])


def anew(name: str, packages: Facts) -> str:
    """Arguments of ``pip install`` that put one package back as it is, or install it at all."""
    if not packages.get("installed", {}).get(name):
        return name
    return f"--force-reinstall --no-deps {again([name], packages)}"


def _as_it_is(name: str, installed: Mapping[str, str], origins: Mapping[str, str]) -> str:
    if origin := origins.get(name):
        editable = "://" not in origin
        return f"-e {shlex.quote(origin)}" if editable else shlex.quote(f"{name} @ {origin}")
    return shlex.quote(f"{name}=={installed[name]}") if installed.get(name) else name


def _index(version: str) -> str:
    local = version.partition("+")[2]
    return _INDEX + local if _BUILD.fullmatch(local) else ""


def distribution_of(module: str) -> str:
    """The distribution that brings a module, or nothing where that is not known for certain."""
    top = module.partition(".")[0]
    return _DISTRIBUTIONS.get(top, top if top in _SAME_NAME else "")
