"""The machine without torch: the driver through its own libraries, GPUs, container, memory."""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BUFFER = 96


def machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that `verify.machine.Machine` holds."""
    return {
        **_cuda(),
        **_nvml(),
        "kernel_module": _kernel_module(),
        "devices": sorted(glob.glob("/dev/nvidia[0-9]*")),
        "container": _container(),
        "wsl": Path("/dev/dxg").exists() or "microsoft" in platform.release().lower(),
        "memory": memory_limit(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
    }


def _cuda() -> dict[str, Any]:
    """What libcuda says: whether it loads, which CUDA the driver speaks, devices for programs."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as missing:
        nothing: dict[str, Any] = {"driver_cuda": None, "cuda_error": None, "cuda_devices": []}
        return {"libcuda": str(missing), **nothing}
    version = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    error = library.cuInit(0)
    count = ctypes.c_int(0)
    if not error:
        library.cuDeviceGetCount(ctypes.byref(count))
    return {
        "libcuda": None,
        "driver_cuda": [version.value // 1000, version.value % 1000 // 10],
        "cuda_error": _cuda_error(library, error) if error else None,
        "cuda_devices": [_cuda_device(library, index) for index in range(count.value)],
    }


def _cuda_error(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} ({code})"


def _cuda_device(library: ctypes.CDLL, index: int) -> dict[str, Any]:
    device = ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(_BUFFER)
    library.cuDeviceGetName(name, _BUFFER, device)
    total = ctypes.c_size_t()
    library.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    numbers = []
    for attribute in (75, 76):  # compute capability, major and minor
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return {"name": name.value.decode(), "capability": numbers, "memory": total.value}


def _nvml() -> dict[str, Any]:
    """What the management library says: the driver's release, health and link of each GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as missing:
        return {"nvml": str(missing), "driver": _module_version(), "gpus": []}
    error = library.nvmlInit_v2()
    if error:
        library.nvmlErrorString.restype = ctypes.c_char_p
        text = (library.nvmlErrorString(error) or b"unknown error").decode()
        return {"nvml": f"{text} ({error})", "driver": _module_version(), "gpus": []}
    text = ctypes.create_string_buffer(_BUFFER)
    library.nvmlSystemGetDriverVersion(text, _BUFFER)
    count = ctypes.c_uint(0)
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    gpus = [_Device(library, index).facts() for index in range(count.value)]
    library.nvmlShutdown()
    return {"nvml": None, "driver": text.value.decode(), "gpus": gpus}


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Device:
    """One GPU through NVML; what a GPU does not support is ``None``."""

    def __init__(self, library: ctypes.CDLL, index: int) -> None:
        self._library, self._handle = library, ctypes.c_void_p()
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._handle))

    def facts(self) -> dict[str, Any]:
        name = ctypes.create_string_buffer(_BUFFER)
        self._library.nvmlDeviceGetName(self._handle, name, _BUFFER)
        memory = _Memory()
        self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory))
        mig, ecc = self._two("nvmlDeviceGetMigMode"), self._two("nvmlDeviceGetEccMode")
        return {
            "name": name.value.decode(),
            "capability": self._two("nvmlDeviceGetCudaComputeCapability", ctypes.c_int),
            "memory": memory.total,
            "free": memory.free,
            "mig": None if mig is None else bool(mig[0]),
            "ecc": None if ecc is None else bool(ecc[0]),
            "ecc_uncorrected": self._ecc_errors(),
            "remapped": self._remapped(),
            "link_width": self._one("nvmlDeviceGetCurrPcieLinkWidth"),
            "link_width_max": self._one("nvmlDeviceGetMaxPcieLinkWidth"),
            "link_generation": self._one("nvmlDeviceGetCurrPcieLinkGeneration"),
            "link_generation_max": self._one("nvmlDeviceGetMaxPcieLinkGeneration"),
        }

    def _call(self, function: str, *arguments: Any) -> bool:
        called = getattr(self._library, function, None)
        return called is not None and called(self._handle, *arguments) == 0

    def _one(self, function: str) -> int | None:
        value = ctypes.c_uint()
        return value.value if self._call(function, ctypes.byref(value)) else None

    def _two(self, function: str, kind: Any = ctypes.c_uint) -> list[int] | None:
        first, second = kind(), kind()
        found = self._call(function, ctypes.byref(first), ctypes.byref(second))
        return [first.value, second.value] if found else None

    def _ecc_errors(self) -> int | None:
        """Uncorrected errors since the driver was loaded."""
        count = ctypes.c_ulonglong()
        found = self._call("nvmlDeviceGetTotalEccErrors", 1, 0, ctypes.byref(count))
        return count.value if found else None

    def _remapped(self) -> dict[str, int] | None:
        numbers = [ctypes.c_uint() for _ in range(4)]
        if not self._call("nvmlDeviceGetRemappedRows", *map(ctypes.byref, numbers)):
            return None
        names = ("correctable", "uncorrectable", "pending", "failed")
        return {name: number.value for name, number in zip(names, numbers, strict=True)}


def _kernel_module() -> bool:
    """Whether the host's kernel runs NVIDIA's driver; containers without GPUs see this too."""
    return Path("/proc/driver/nvidia/version").exists() or "\nnvidia " in "\n" + _read(
        "/proc/modules"
    )


def _module_version() -> str | None:
    match = re.search(
        r"Module\D*(?:x86_64|aarch64)?\s+([\d.]+)", _read("/proc/driver/nvidia/version")
    )
    return match[1] if match else None


def _container() -> str | None:
    if Path("/run/.containerenv").exists():
        return "podman"
    if Path("/.dockerenv").exists():
        return "docker"
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    first = _read("/proc/1/cgroup")
    found = next((k for k in ("docker", "kubepods", "containerd", "lxc") if k in first), None)
    return found or os.environ.get("container")  # noqa: SIM112 - set by systemd


def memory_limit() -> dict[str, int]:
    """Bytes of host memory: all, available, and what a container may use."""
    found = dict(re.findall(r"(\w+):\s+(\d+) kB", _read("/proc/meminfo")))
    total = int(found.get("MemTotal", 0)) * 1024
    limits = [total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
    limit = min(limits)
    available = int(found.get("MemAvailable", 0)) * 1024
    return {"total": total, "limit": limit, "available": min(available, limit)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such file on this system: it says nothing
        return ""


PROBES = {"machine": machine}
