"""Imports: whether what is installed loads, and is what it should be."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping

from verify.pip import again
from verify.process import Facts
from verify.recommend import runs_on
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Verdict,
    failed,
    passed,
    skipped,
    warned,
)
from verify.versions import at_least

_OPTIONAL = {"numba", "triton", "gguf", "accelerate", "trl"}  # what single modules of zo2 need
_QWEN3 = "4.51"  # the first transformers with Qwen3


def _torch_import(facts: Facts, context: Context) -> Verdict:
    if facts["error"] is None:
        return passed(f"torch {facts['version']}, CUDA {facts['cuda'] or 'none'}")
    error = facts["error"]
    if facts["works_without"]:
        return failed("torch.ld-library-path", f"{error}; without LD_LIBRARY_PATH it imports")
    for problem in (_LIBRARY, _LIBSTDCXX, _LD_PATH, _MIXED_WHEELS):
        values = problem.recognise(error)
        if values is not None:
            library = values.get("library", "")
            wheel = wheel_of(library, facts["wheels"]) or again(["torch"], context.packages())
            package = re.split(r"[ =]", wheel)[0]
            more = {"wheel": wheel, "package": package}
            return failed(problem.identifier, error, "", **{**values, **more})
    return failed("torch.import", error)


def wheel_of(library: str, installed: Mapping[str, str]) -> str:
    """The requirement that brings a CUDA library such as ``libcublas.so.12`` back.

    Empty where it is torch's own.
    """
    stem = library.removeprefix("lib").partition(".so")[0].lower()
    name = next((n for prefix, n in _WHEELS.items() if stem.startswith(prefix)), "")
    known = [one for one in installed if name and re.fullmatch(rf"nvidia-{name}(-cu\d+)?", one)]
    if known:
        return f"{known[0]}=={installed[known[0]]}"
    return f"nvidia-{name} (as torch's metadata names it)" if name else ""


_WHEELS = {
    "cublas": "cublas",
    "cudart": "cuda-runtime",
    "cudnn": "cudnn",
    "cufft": "cufft",
    "cufile": "cufile",
    "cupti": "cuda-cupti",
    "curand": "curand",
    "cusolver": "cusolver",
    "cusparselt": "cusparselt",
    "cusparse": "cusparse",
    "nccl": "nccl",
    "nvjitlink": "nvjitlink",
    "nvrtc": "cuda-nvrtc",
    "nvshmem": "nvshmem",
    "nvtx": "nvtx",
    "nvtoolsext": "nvtx",
}


def _torch_libraries(facts: Facts, context: Context) -> Verdict:
    names = [os.path.basename(path) for path in facts["mapped"]]
    standard = [p for p, n in zip(facts["mapped"], names, strict=True) if n.startswith("libstdc++")]
    if len(standard) > 1:
        return warned("torch.libstdcxx", " and ".join(standard), "one libstdc++")
    foreign = [
        path
        for path, name in zip(facts["mapped"], names, strict=True)
        if not name.startswith(("libstdc++", "libcuda.so", "libnvidia"))
        and not any(path.startswith(place + os.sep) for place in facts["inside"])
    ]
    if foreign and facts["library_path"]:
        return warned("torch.foreign-library", ", ".join(foreign), "those of the environment")
    return passed(f"{len(names)} libraries, all of the environment")


def _architectures(facts: Facts, context: Context) -> Verdict:
    built = facts["architectures"]
    have = f"built for {', '.join(built) or 'no GPU'}"
    if not context.machine.gpus:
        return passed(have)
    for gpu in context.machine.gpus:
        if not built:
            return failed("torch.cpu-only", have, gpu.architecture)
        if not runs_on(built, gpu):
            return failed(
                "torch.arch", have, f"{gpu.architecture} for {gpu.name}", arch=gpu.architecture
            )
    needed = sorted({gpu.architecture for gpu in context.machine.gpus})
    return passed(have, ", ".join(needed))


def _numpy_bridge(facts: Facts, context: Context) -> Verdict:
    have = f"numpy {facts['numpy']} with torch {facts['torch']}"
    if facts["values"] != [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]:
        return failed(
            "numpy.bridge", f"{have}: {facts['values']}", "the numbers that went in, twice"
        )
    return passed(have)


def _transformers_import(facts: Facts, context: Context) -> Verdict:
    have = f"transformers {facts['version']}"
    if facts["torch_available"]:
        return passed(f"{have}, with torch")
    return failed("transformers.torch-floor", f"{have} has switched torch off", "a newer torch")


def _transformers_classes(facts: Facts, context: Context) -> Verdict:
    missing = {name: error for name, error in facts["classes"].items() if error}
    old = not at_least(facts["version"], _QWEN3)
    if old:
        missing.pop("Qwen3ForCausalLM", None)
    if missing:
        name, error = next(iter(missing.items()))
        return failed("transformers.import", f"{name}: {error}", "every class")
    remark = f"; Qwen3 came with {_QWEN3}" if old else ""
    return passed(f"{len(facts['classes']) - old} classes{remark}")


def _upstream_symbols(facts: Facts, context: Context) -> Verdict:
    if facts["found"]:
        return passed("ZO2's published code can import what it needs")
    if context.row is not None and context.row.pins["transformers"] == "4.51.3":
        return failed("transformers.removed-symbol", f"transformers {facts['version']}", "4.51.3")
    return skipped(
        f"transformers {facts['version']} no longer defines what ZO2's published code imports "
        "from model files; zo2 does not need it"
    )


def _triton_import(facts: Facts, context: Context) -> Verdict:
    if facts["version"]:
        return passed(f"triton {facts['version']}")
    if context.machine.gpus:
        need = "triton, for the noise kernels on a GPU"
        return failed("triton.missing", "no triton", need, triton=shlex.quote(facts["wanted"]))
    return skipped("Triton is not installed; only a GPU needs it, and there is none")


def _zo2_import(facts: Facts, context: Context) -> Verdict:
    wrong = {name: error for name, error in facts["modules"].items() if error}
    optional = {
        name: error.removeprefix("needs ")
        for name, error in wrong.items()
        if error.startswith("needs ") and error.removeprefix("needs ") in _OPTIONAL
    }
    broken = {name: error for name, error in wrong.items() if name not in optional}
    if broken:
        name, error = next(iter(broken.items()))
        return failed("zo2.import", f"{name}: {error}", "every module")
    have = f"zo2 {facts['version']}: {len(facts['modules'])} modules, {facts['names']} names"
    if optional:
        have += f"; not installed: {', '.join(sorted(set(optional.values())))}"
    return passed(have)


_LIBRARY = Problem(
    "torch.library-missing",
    (
        "{library}: cannot open shared object file: No such file or directory",
        "{library}.so.*[0-9] not found in the system path",
    ),
    "A CUDA library that torch loads is not there; pip installs it as a package of its own.",
    "pip install --force-reinstall --no-deps {wheel}",
    replaces="{package}",
    follows="torch",
)
_LD_PATH = Problem(
    "torch.ld-library-path",
    ("undefined symbol: __nvJitLink{symbol}",),
    "LD_LIBRARY_PATH makes torch load another installation's CUDA libraries instead of its own.",
    "unset LD_LIBRARY_PATH",
)
_MIXED_WHEELS = Problem(
    "torch.mixed-wheels",
    ("undefined symbol: {symbol}",),
    "torch and the libraries it was built with come from different releases.",
    "pip install {torch}, or a fresh environment: python -m verify recommend",
    replaces="torch",
)
_LIBSTDCXX = Problem(
    "torch.libstdcxx",
    ("version `GLIBCXX_{version}' not found",),
    "An older libstdc++ (the system's, or conda's) is loaded before the one that a library needs.",
    "conda install -c conda-forge 'libstdcxx-ng>=12', or use an environment made by pip alone",
)

GROUP = Group(
    "imports",
    "Imports",
    (
        Check(
            "torch.import",
            "torch loads",
            "Everything stands on it.",
            "engine",
            _torch_import,
            "torch.import",
        ),
        Check(
            "torch.libraries",
            "libraries that torch loaded",
            "Libraries of other releases work by luck, until one does not.",
            "engine",
            _torch_libraries,
            "torch.import",
            needs=("torch.import",),
        ),
        Check(
            "torch.arch",
            "what torch was compiled for",
            "A GPU runs only code that was compiled for it.",
            "engine",
            _architectures,
            "torch.import",
            needs=("torch.import",),
        ),
        Check(
            "numpy.bridge",
            "numpy to torch and back",
            "Tokenizers and data sets hand over numpy arrays.",
            "engine",
            _numpy_bridge,
            "numpy.bridge",
            needs=("torch.import",),
        ),
        Check(
            "transformers.import",
            "transformers loads, with torch",
            "All models come from it.",
            "engine",
            _transformers_import,
            "transformers.import",
            needs=("torch.import",),
        ),
        Check(
            "transformers.classes",
            "transformers' classes that the engine meets",
            "They are imported on first use, so a broken one shows late.",
            "engine",
            _transformers_classes,
            "transformers.import",
            needs=("transformers.import",),
        ),
        Check(
            "transformers.upstream",
            "symbols that ZO2's published code imports",
            "That code runs with transformers up to 4.51.3 only.",
            "engine",
            _upstream_symbols,
            "transformers.import",
            needs=("transformers.classes",),
        ),
        Check(
            "triton.import",
            "Triton loads",
            "On a GPU it compiles the noise kernels.",
            "engine",
            _triton_import,
            "triton.import",
        ),
        Check(
            "zo2.import",
            "every module and public name of zo2",
            "A name that cannot be imported should show here, not in the middle of a run.",
            "engine",
            _zo2_import,
            "zo2.import",
            needs=("torch.import", "transformers.import"),
        ),
    ),
    (
        _LIBRARY,
        _LD_PATH,
        _LIBSTDCXX,
        Problem(
            "torch.import",
            ("Failed to load PyTorch C extensions",),
            "torch is missing or cannot be loaded.",
            "pip install {torch}, or a tested row: python -m verify recommend",
            replaces="torch",
        ),
        Problem(
            "torch.foreign-library",
            (),
            "torch has loaded CUDA libraries from outside its environment, by LD_LIBRARY_PATH.",
            "unset LD_LIBRARY_PATH",
        ),
        Problem(
            "torch.arch",
            (
                "CUDA error: no kernel image is available for execution on the device",
                "with CUDA capability {arch} is not compatible with the current PyTorch",
            ),
            "This torch was not compiled for this GPU.",
            "Install a row whose torch was: python -m verify recommend",
        ),
        Problem(
            "torch.cpu-only",
            ("Torch not compiled with CUDA enabled",),
            "This torch was built without CUDA, on a machine with a GPU.",
            "pip uninstall -y torch, then pip install {public} (of the default index), or: "
            "python -m verify recommend",
            replaces="torch",
        ),
        Problem(
            "numpy.bridge",
            (
                "A module that was compiled using NumPy 1.x cannot be run in",
                "RuntimeError: Numpy is not available",
            ),
            "torch and numpy were built for different interfaces (torch before 2.3 needs numpy 1).",
            "pip install 'numpy<2'",
            replaces="numpy",
            follows="torch",
        ),
        Problem(
            "transformers.import",
            (),
            "transformers or one of its classes cannot be imported.",
            "pip install {transformers}, or a tested row: python -m verify recommend",
            replaces="transformers",
            follows="torch huggingface-hub tokenizers safetensors numpy",
        ),
        Problem(
            "transformers.removed-symbol",
            (
                "cannot import name 'add_start_docstrings_to_model_forward' from "
                "'transformers.models.{model}.{file}'",
            ),
            "Code written for transformers up to 4.51 imports what 4.52 removed from model files.",
            "pip install 'transformers==4.51.3' (the row tf451); zo2 itself runs with any",
        ),
        Problem(
            "triton.setuptools",
            ("ModuleNotFoundError: No module named 'setuptools'",),
            "This Triton imports setuptools, and no metadata says so.",
            "pip install setuptools",
            replaces="setuptools",
            follows="triton",
        ),
        Problem(
            "triton.missing",
            ("ModuleNotFoundError: No module named 'triton'",),
            "Triton is not installed; GPU builds of torch bring it along.",
            "pip install {triton}",
            replaces="triton",
            follows="torch",
        ),
        Problem(
            "triton.import",
            (),
            "Triton cannot be imported.",
            "pip install {triton}",
            replaces="triton",
            follows="torch",
        ),
        Problem(
            "zo2.import",
            (),
            "A part of zo2 cannot be imported.",
            "pip install --force-reinstall --no-deps . (in a clone of zo2)",
            replaces="zo2",
            follows="torch transformers",
        ),
        Problem(
            "zo2.missing",
            (
                "ModuleNotFoundError: No module named 'zo2'",
                "ModuleNotFoundError: No module named 'zo2.{part}'",
            ),
            "zo2 itself, or a part of it, is not installed.",
            "pip install . (in a clone of zo2)",
            replaces="zo2",
        ),
        _MIXED_WHEELS,
    ),
)
