"""The host: shared memory, memory, disk, limits, and a C compiler."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verify.probes.hub import hub_cache
from verify.probes.machine import memory_limit

_EXTENSION = """\
#define PY_SSIZE_T_CLEAN
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *args) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "zo2_verify_probe", "", -1, methods};
PyMODINIT_FUNC PyInit_zo2_verify_probe(void) { return PyModule_Create(&module); }
"""


def shared_memory(options: Mapping[str, Any]) -> dict[str, Any]:
    """The size of /dev/shm, and whether a segment can be filled."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return {"exists": False}
    found = os.statvfs(path)
    wanted = 8 * 2**20
    written, error = 0, None
    try:
        with tempfile.TemporaryFile(dir=path, prefix="zo2-verify-") as segment:
            while written < wanted:
                written += segment.write(bytes(2**20))
            segment.flush()
    except OSError as problem:
        error = str(problem)
    return {
        "exists": True,
        "total": found.f_blocks * found.f_frsize,
        "free": found.f_bavail * found.f_frsize,
        "error": error,
    }


def memory(options: Mapping[str, Any]) -> dict[str, Any]:
    """Host memory, and the size of the model that was asked about."""
    asked = options.get("for_model")
    return {**memory_limit(), "model": asked, "parameters": _parameters(asked) if asked else None}


def _parameters(asked: str) -> float | None:
    """How many parameters: a number of billions, a model on this disk, or a size in its name."""
    try:
        return float(asked) * 1e9
    except ValueError:
        pass
    cached = hub_cache() / f"models--{asked.replace('/', '--')}" / "snapshots"
    for directory in (Path(asked), *(sorted(cached.iterdir()) if cached.is_dir() else ())):
        count = sum(map(_tensors, directory.glob("*.safetensors")))
        if count:
            return float(count)
    size = re.search(r"(\d+(?:\.\d+)?) ?([bm])(?![a-z])", asked.rpartition("/")[2].lower())
    return float(size[1]) * (1e9 if size[2] == "b" else 1e6) if size else None


def _tensors(path: Path) -> int:
    """The number of weights in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")


def disk(options: Mapping[str, Any]) -> dict[str, Any]:
    """Space for temporary files, and where models are cached."""
    cache = hub_cache()
    while not cache.exists():
        cache = cache.parent
    return {
        "temporary": shutil.disk_usage(tempfile.gettempdir()).free,
        "cache": shutil.disk_usage(cache).free,
    }


def limits(options: Mapping[str, Any]) -> dict[str, Any]:
    """Limits of this process; -1 stands for none."""
    names = {"locked": "RLIMIT_MEMLOCK", "files": "RLIMIT_NOFILE", "processes": "RLIMIT_NPROC"}
    names["address"] = "RLIMIT_AS"
    return {
        name: resource.getrlimit(getattr(resource, constant))[0]
        for name, constant in names.items()
        if hasattr(resource, constant)
    }


def compiler(options: Mapping[str, Any]) -> dict[str, Any]:
    """Build and load an extension module, as Triton does at a kernel's first launch."""
    asked = os.environ.get("CC")
    found = next(
        filter(None, map(shutil.which, [asked] if asked else ["gcc", "clang", "cc"])), None
    )
    include = sysconfig.get_paths()["include"]
    facts: dict[str, Any] = {"compiler": found, "asked": asked, "error": None, "answer": None}
    facts["header"] = Path(include, "Python.h").exists()
    if found is None or not facts["header"]:
        return facts
    with tempfile.TemporaryDirectory(prefix="zo2-verify-") as directory:
        source, library = Path(directory, "probe.c"), Path(directory, "zo2_verify_probe.so")
        source.write_text(_EXTENSION, encoding="utf-8")
        command = [
            found,
            str(source),
            "-O1",
            "-shared",
            "-fPIC",
            f"-I{include}",
            "-o",
            str(library),
        ]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            return {**facts, "error": done.stderr.strip()[-500:]}
        spec = importlib.util.spec_from_file_location("zo2_verify_probe", library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return {**facts, "answer": module.answer()}


PROBES = {
    "host.shm": shared_memory,
    "host.memory": memory,
    "host.disk": disk,
    "host.limits": limits,
    "host.compiler": compiler,
}
