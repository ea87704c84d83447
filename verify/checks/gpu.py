"""Driver and GPU: whether the GPU is usable from here, by this torch, and well."""

from __future__ import annotations

from typing import Any

from verify.process import Facts
from verify.result import (
    Check,
    Context,
    Group,
    Problem,
    Tier,
    Verdict,
    failed,
    passed,
    skipped,
    warned,
)

# the oldest driver of each CUDA major release (CUDA release notes, minor-version compatibility)
DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
GIB = 2**30
FREE = 2 * GIB
# rounding of the inputs apart, a product of 256 terms may err by this much of its largest entry
PRECISION = {"float32": 2e-3, "float16": 2e-3, "bfloat16": 1e-2}  # float32: TF32 may be on


def _build(facts: Facts, context: Context) -> Verdict:
    if facts["version"] is None:
        return failed("torch.import", "no torch", "torch")
    have = f"torch {facts['version']}, built for CUDA {facts['cuda'] or 'none'}"
    if facts["hip"]:
        return warned("torch.rocm", f"torch {facts['version']}, built for ROCm {facts['hip']}")
    if context.machine.gpus and not facts["cuda"]:
        return failed("torch.cpu-only", have, "a build for CUDA")
    return passed(have)


def _present(facts: Facts, context: Context) -> Verdict:
    machine, hidden = context.machine, facts["visible"] in ("", "-1", "NoDevFiles")
    if facts["cuda_devices"]:
        shown = [f"{g.name}, {g.memory / GIB:.0f} GiB, {g.architecture}" for g in machine.gpus]
        where = " (WSL: page-locked memory is limited there)" if machine.wsl else ""
        return passed("; ".join(shown) + where)
    if not machine.nvidia:
        hint = ""
        if machine.container:
            hint = "; a container gets them by: docker run --gpus all"
        return skipped(f"no NVIDIA GPU or driver is visible here{hint}. Everything runs on the CPU")
    if hidden:
        return skipped(f"CUDA_VISIBLE_DEVICES={facts['visible']!r} hides the GPUs on purpose")
    nvml = str(facts["nvml"] or "")
    if "mismatch" in nvml.lower():
        return failed("gpu.driver-skew", nvml, "driver and libraries of one release")
    if not facts["devices"] and not machine.wsl:
        if machine.container:
            return failed("gpu.container", "the host has a driver, this container no GPU", "GPUs")
        if facts["libcuda"] is None and not facts["kernel_module"]:
            return skipped("the driver's library is here, but no GPU")
        return failed("gpu.no-driver", "no /dev/nvidia* devices", "a GPU that the driver knows")
    if facts["libcuda"]:
        return failed("gpu.no-driver", facts["libcuda"], "libcuda.so.1")
    if any(gpu["mig"] for gpu in facts["gpus"]):
        return failed("gpu.mig", "MIG mode is on, and no slice is visible", "a MIG slice")
    if facts["visible"] is not None:
        have = f"CUDA_VISIBLE_DEVICES={facts['visible']}: {facts['cuda_error'] or 'no GPU'}"
        return failed("gpu.visible", have, "numbers or names of GPUs that exist")
    return failed("gpu.driver-failed", facts["cuda_error"] or "no GPU", "cuInit: success")


def _managed(facts: Facts, context: Context) -> Verdict:
    nvml = facts["nvml"]
    if nvml is None:
        return passed(f"driver {facts['driver']}")
    if "mismatch" in nvml.lower():
        return failed("gpu.driver-skew", nvml, "driver and libraries of one release")
    if context.machine.wsl or "cannot open shared object" in nvml:
        return skipped(
            "the management library is not here (in containers: NVIDIA_DRIVER_CAPABILITIES="
            f"compute,utility), so health and links of the GPUs are unknown: {nvml}"
        )
    return failed("gpu.driver-failed", nvml, "NVML: success")


def _driver(facts: Facts, context: Context) -> Verdict:
    build = context.other["torch.build"]
    cuda = build["cuda"]
    if not cuda:
        return skipped("torch was not built for CUDA")
    wanted = tuple(int(part) for part in cuda.split(".")[:2])
    have = context.machine.driver_cuda
    if have is None:
        return failed("gpu.no-driver", "the driver does not say which CUDA it speaks")
    release = f"driver {context.machine.driver or 'unknown'}, CUDA {have[0]}.{have[1]}"
    need = f"CUDA {cuda} (torch {build.get('version')})"
    if have >= wanted:
        return passed(release, need)
    if have[0] == wanted[0]:
        return passed(f"{release}: enough by minor-version compatibility", need)
    minimum = DRIVERS.get(wanted[0], f"of CUDA {wanted[0]}")
    return failed("gpu.driver-too-old", release, f"{need}, driver {minimum}", minimum=minimum)


def _memory(facts: Facts, context: Context) -> Verdict:
    if not facts["gpus"]:
        return skipped("the driver's management library is not here, so it is unknown")
    shown = [
        f"{gpu['free'] / GIB:.1f} of {gpu['memory'] / GIB:.1f} GiB free" for gpu in facts["gpus"]
    ]
    if any(gpu["free"] < min(FREE, 0.5 * gpu["memory"]) for gpu in facts["gpus"]):
        return warned("gpu.busy", "; ".join(shown), f"{FREE / GIB:.0f} GiB free")
    return passed("; ".join(shown))


def _health(facts: Facts, context: Context) -> Verdict:
    if not facts["gpus"]:
        return skipped("the driver's management library is not here, so it is unknown")
    for index, gpu in enumerate(facts["gpus"]):
        remapped: Any = gpu["remapped"] or {}
        errors = gpu["ecc_uncorrected"]
        have = f"GPU {index}: {errors} uncorrected errors, remapped rows {remapped or 'unknown'}"
        if errors or remapped.get("failed"):
            return failed("gpu.ecc", have, "none", index=str(index))
        if remapped.get("pending"):
            return warned("gpu.ecc", have, "none pending", index=str(index))
    on = [gpu for gpu in facts["gpus"] if gpu["ecc"]]
    slices = [gpu for gpu in facts["gpus"] if gpu["mig"]]
    remark = f"; {len(slices)} in MIG mode: only slices of them are used" if slices else ""
    return passed(f"no memory errors; ECC on {len(on)} of {len(facts['gpus'])}{remark}")


def _link(facts: Facts, context: Context) -> Verdict:
    known = [g for g in facts["gpus"] if g["link_width"] and g["link_width_max"]]
    if not known:
        return skipped("the driver does not say (a virtual machine, or no PCIe link)")
    shown = [
        f"x{g['link_width']} of x{g['link_width_max']}, PCIe {g['link_generation_max'] or '?'}"
        for g in known
    ]
    if any(g["link_width"] < g["link_width_max"] for g in known):
        return warned("gpu.link", "; ".join(shown), "the full width")
    return passed("; ".join(shown))


def _kernel(facts: Facts, context: Context) -> Verdict:
    for index, one in enumerate(facts["devices"]):
        if one["sum"] != 499500 or not one["same_noise"]:
            return failed("gpu.wrong", f"GPU {index}: {one}", "the CPU's numbers", index=str(index))
    count = len(facts["devices"])
    if not count:
        return failed("gpu.driver-failed", "torch sees no GPU", "a GPU")
    return passed(
        f"{count} GPU{'s' * (count > 1)}: torch's and Triton's kernels give the CPU's numbers"
    )


def _product(facts: Facts, context: Context) -> Verdict:
    errors = facts["errors"]
    have = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    wrong = [n for n, error in errors.items() if not error <= PRECISION[n.rpartition(" ")[2]]]
    if wrong:
        return failed("gpu.wrong", have, "rounding errors", index=wrong[0])
    return passed(f"relative error {have}")


def _no_gpu(context: Context) -> str:
    return "" if context.machine.gpus else "there is no GPU that programs can use"


def _check(identifier: str, title: str, why: str, decide: Any, problem: str) -> Check:
    """A check on what the machine says of itself."""
    skip = (lambda context: "") if identifier == "gpu.present" else _no_gpu
    return Check(identifier, title, why, "machine", decide, problem, Tier.QUICK, skip=skip)


GROUP = Group(
    "gpu",
    "Driver and GPU",
    (
        _check(
            "gpu.present",
            "a GPU that programs can use",
            "Weights are streamed to it; without one everything runs on the CPU, slowly.",
            _present,
            "gpu.driver-failed",
        ),
        Check(
            "torch.build",
            "what torch was built for",
            "A build without CUDA leaves the GPU idle.",
            "packages",
            _build,
            "torch.import",
            Tier.QUICK,
        ),
        Check(
            "gpu.driver",
            "driver, against torch's CUDA",
            "A driver runs programs of its own CUDA release and older ones.",
            "machine",
            _driver,
            "gpu.driver-failed",
            Tier.QUICK,
            needs=("torch.build",),
            skip=_no_gpu,
        ),
        _check(
            "gpu.nvml",
            "the driver's management library",
            "It fails when driver and libraries are of different releases.",
            _managed,
            "gpu.driver-failed",
        ),
        _check(
            "gpu.memory",
            "free memory of the GPU",
            "Another program may have taken it.",
            _memory,
            "gpu.busy",
        ),
        _check(
            "gpu.health",
            "memory errors, MIG",
            "A GPU with memory errors gives wrong numbers or stops.",
            _health,
            "gpu.ecc",
        ),
        _check(
            "gpu.link",
            "width of the PCIe link",
            "Streaming is as fast as the link.",
            _link,
            "gpu.link",
        ),
        Check(
            "gpu.kernel",
            "kernels of torch and Triton run",
            "Only a launch shows that driver, architecture and compiler go together.",
            "engine",
            _kernel,
            "gpu.kernel",
            needs=("torch.import", "zo2.import"),
            limit=120,
            skip=_no_gpu,
        ),
        Check(
            "gpu.product",
            "matrix products against float64",
            "Every pass is made of them; without a GPU the CPU's are checked.",
            "engine",
            _product,
            "gpu.kernel",
            needs=("torch.import",),
        ),
    ),
    (
        Problem(
            "gpu.no-driver",
            (
                "Found no NVIDIA driver on your system.",
                "CUDA driver version is insufficient for CUDA runtime version",
                "libcuda.so.1: cannot open shared object file",
            ),
            "There is a GPU, but no driver that programs can load. (torch 2.4.0's pin_memory() "
            "speaks of an insufficient driver version when there is none.)",
            "Install NVIDIA's driver (ubuntu-drivers install), then restart",
        ),
        Problem(
            "gpu.container",
            ("could not select device driver",),
            "The host has an NVIDIA driver, but this container was started without GPUs.",
            "docker run --gpus all … (podman: --device nvidia.com/gpu=all); to use the CPU on "
            "purpose: CUDA_VISIBLE_DEVICES=''",
        ),
        Problem(
            "gpu.driver-too-old",
            ("The NVIDIA driver on your system is too old (found version {version}",),
            "The driver is older than the CUDA that torch was built for.",
            "Install driver {minimum} or newer, or a row for this one: python -m verify recommend",
        ),
        Problem(
            "gpu.driver-skew",
            ("Failed to initialize NVML: Driver/library version mismatch",),
            "The driver was upgraded while it was running: kernel module and libraries differ.",
            "Restart the machine (or unload and load the nvidia kernel modules)",
        ),
        Problem(
            "gpu.driver-failed",
            ("CUDA unknown error", "CUDA initialization: Unexpected error"),
            "The driver is there and does not work.",
            "nvidia-smi shows more; restart the machine, and on NVSwitch systems the service "
            "nvidia-fabricmanager",
        ),
        Problem(
            "gpu.visible",
            (
                "CUDA_VISIBLE_DEVICES…no CUDA-capable device is detected",
                "No CUDA GPUs are available",
            ),
            "CUDA_VISIBLE_DEVICES names no GPU that exists.",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        Problem(
            "gpu.mig",
            ("MIG mode…No devices",),
            "The GPU is in MIG mode, and no slice of it was made or handed over.",
            "nvidia-smi mig -cgi … -C (as administrator), or hand a slice to the container",
        ),
        Problem(
            "gpu.busy",
            ("CUDA out of memory. Tried to allocate",),
            "Other programs use most of the GPU's memory.",
            "nvidia-smi shows them",
        ),
        Problem(
            "gpu.ecc",
            ("uncorrectable ECC error encountered",),
            "The GPU's memory has errors.",
            "nvidia-smi -q -d ECC,ROW_REMAPPER -i {index}; reset or replace the GPU",
        ),
        Problem(
            "gpu.link",
            (),
            "The GPU's PCIe link uses fewer lanes than it has: a slot, riser or BIOS setting.",
            "Reseat the card or use another slot; nvidia-smi -q -d PCIE shows the link",
        ),
        Problem(
            "gpu.kernel",
            ("CUDA error: {error}",),
            "A kernel could not be compiled or launched.",
            "Look at the output below; then a row for this GPU: python -m verify recommend",
        ),
        Problem(
            "gpu.wrong",
            (),
            "A device computes wrong numbers.",
            "Run it again; if it stays, test the hardware: nvidia-smi -q -d ECC -i {index}",
        ),
        Problem(
            "torch.rocm",
            (),
            "This torch is for AMD GPUs, on which zo2 was not tested.",
            "pip uninstall -y torch, then pip install {public} (of the default index), or: "
            "python -m verify recommend",
            replaces="torch",
        ),
    ),
)
