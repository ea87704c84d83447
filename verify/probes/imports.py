"""Importing what zo2 stands on, and zo2 itself."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from verify.probes import packages
from verify.versions import InvalidError, Requirement

_CLASSES = (
    "PreTrainedModel",
    "AutoTokenizer",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForQuestionAnswering",
    "OPTForCausalLM",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
)


def torch_import(options: Mapping[str, Any]) -> dict[str, Any]:
    """Import torch; if that fails under LD_LIBRARY_PATH, find out whether it works without."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {
            "error": f"{error}",
            "works_without": _imports_without_library_path("torch"),
            "wheels": {
                name: version
                for name, version in packages.row({})["installed"].items()
                if name.startswith("nvidia")
            },
        }
    return {
        "error": None,
        "version": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _imports_without_library_path(module: str) -> bool:
    """Whether a process without LD_LIBRARY_PATH imports ``module``."""
    if not os.environ.get("LD_LIBRARY_PATH"):
        return False
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def torch_libraries(options: Mapping[str, Any]) -> dict[str, Any]:
    """Libraries that importing torch has mapped into the process."""
    import torch

    mapped = set()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.split(None, 5)[-1]
        if re.search(r"/lib(cu|nv|nccl|stdc\+\+|torch|c10)[^/]*\.so[^/]*$", path):
            mapped.add(os.path.realpath(path))
    site = Path(torch.__file__).resolve().parent.parent
    return {
        "mapped": sorted(mapped),
        "inside": [os.path.realpath(sys.prefix), str(site)],
        "library_path": bool(os.environ.get("LD_LIBRARY_PATH")),
    }


def architectures(options: Mapping[str, Any]) -> dict[str, Any]:
    """What torch's CUDA code was compiled for; this needs no GPU, get_arch_list() does."""
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", None)
    return {"architectures": (flags() or "").split() if flags else []}


def numpy_bridge(options: Mapping[str, Any]) -> dict[str, Any]:
    """A round trip numpy -> torch -> numpy."""
    import numpy
    import torch

    there = torch.from_numpy(numpy.arange(6.0).reshape(2, 3))
    back = (there * 2).numpy()
    return {"numpy": numpy.__version__, "torch": torch.__version__, "values": back.ravel().tolist()}


def transformers_import(options: Mapping[str, Any]) -> dict[str, Any]:
    """Import transformers and ask whether it accepts the installed torch."""
    import transformers
    from transformers.utils import is_torch_available

    return {"version": transformers.__version__, "torch_available": bool(is_torch_available())}


def transformers_classes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The classes that the engine meets; ``None`` for one that is there."""
    import transformers

    def missing(name: str) -> str | None:
        try:
            getattr(transformers, name)
        except (ImportError, AttributeError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    return {
        "version": transformers.__version__,
        "classes": {name: missing(name) for name in _CLASSES},
    }


def upstream_symbols(options: Mapping[str, Any]) -> dict[str, Any]:
    """Whether transformers' model files still define what ZO2's published code imports."""
    import transformers
    from transformers.models.opt import modeling_opt

    found = hasattr(modeling_opt, "add_start_docstrings_to_model_forward")
    return {"version": transformers.__version__, "found": found}


def triton_import(options: Mapping[str, Any]) -> dict[str, Any]:
    """Import Triton, and its compiler driver, which older releases build with setuptools."""
    try:
        import triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return {"version": None, "wanted": _needed("torch", "triton")}
    importlib.import_module("triton.runtime.build")
    return {"version": triton.__version__}


def _needed(who: str, name: str) -> str:
    """What the metadata of ``who`` say of the package ``name``; its name if nothing."""
    try:
        needs = map(Requirement.parse, metadata.requires(who) or [])
        return next((name + need.specifier for need in needs if need.name == name), name)
    except (metadata.PackageNotFoundError, InvalidError):
        return name


def zo2_import(options: Mapping[str, Any]) -> dict[str, Any]:
    """Import every module of zo2 and look up every public name."""
    import zo2

    modules: dict[str, str | None] = {}
    names = 0
    for found in [*pkgutil.walk_packages(zo2.__path__, "zo2.")]:
        if found.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(found.name)
            for name in getattr(module, "__all__", ()):
                getattr(module, name)
                names += 1
            modules[found.name] = None
        except Exception as error:
            missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
            modules[found.name] = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and missing:
                modules[found.name] = f"needs {missing}"
    for name in zo2.__all__:
        getattr(zo2, name)
    return {
        "version": zo2.__version__,
        "modules": modules,
        "names": names + len(zo2.__all__),
        "origin": str(Path(zo2.__file__).resolve().parent.parent),
        "trainers": [name for name in modules if name.startswith("zo2.trainer")],
    }


PROBES = {
    "torch.import": torch_import,
    "torch.libraries": torch_libraries,
    "torch.arch": architectures,
    "numpy.bridge": numpy_bridge,
    "transformers.import": transformers_import,
    "transformers.classes": transformers_classes,
    "transformers.upstream": upstream_symbols,
    "triton.import": triton_import,
    "zo2.import": zo2_import,
}
