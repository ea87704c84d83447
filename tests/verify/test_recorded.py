"""What only a GPU can show: facts recorded on a host with two H200, and changes to them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from verify import machine, rows
from verify.catalogue import CHECKS, PROBLEMS, judge, recognise
from verify.process import Outcome
from verify.result import Context, Status

RECORDED = json.loads(Path(__file__).with_name("h200x2.json").read_text())
ROWS = rows.load()


def changed(base, changes):
    """A copy with values set at paths such as ``"gpus.0.link_width"``."""
    found = copy.deepcopy(base)
    for path, value in changes.items():
        *way, last = path.split(".")
        place = found
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[int(last) if isinstance(place, list) else last] = value
    return found


def decide(identifier, on=None, facts=None, other=None, **context):
    """The result of a check, on the recorded machine with changes."""
    host = changed(RECORDED["machine"], on or {})
    known = {**RECORDED["facts"], **(other or {})}
    check = CHECKS[identifier]
    own = (
        host
        if check.probe == "machine"
        else changed(RECORDED["facts"].get(identifier, {}), facts or {})
    )
    found = Context(machine.from_facts(host), ROWS, other=known, **context)
    return judge(check, Outcome(own), found)


@pytest.mark.parametrize(
    "identifier",
    [*RECORDED["facts"], "gpu.present", "gpu.nvml", "gpu.driver", "gpu.memory", "gpu.health",
     "gpu.link"],
)  # fmt: skip
def test_the_recorded_host_is_well(identifier):
    result = decide(identifier)
    assert result.status is Status.PASS, result


NOTHING = {"cuda_devices": [], "gpus": [], "devices": []}
MISSING = "libcuda.so.1: cannot open shared object file: No such file or directory"
NO_NVML = "libnvidia-ml.so.1: cannot open shared object file: No such file or directory"
SKEW = "Driver/library version mismatch (18)"
NO_DEVICE = "no CUDA-capable device is detected (100)"
BARE = {**NOTHING, "libcuda": MISSING, "nvml": NO_NVML, "driver": None, "driver_cuda": None}


@pytest.mark.parametrize(
    ("identifier", "on", "status", "problem"),
    [
        ("gpu.present", {**BARE, "kernel_module": False}, "SKIP", ""),
        ("gpu.present", BARE, "FAIL", "gpu.container"),
        ("gpu.present", {**BARE, "container": None}, "FAIL", "gpu.no-driver"),
        ("gpu.present", {**BARE, "visible": ""}, "SKIP", ""),
        ("gpu.present", {"cuda_devices": [], "libcuda": MISSING, "nvml": NO_NVML, "gpus": []},
         "FAIL", "gpu.no-driver"),
        ("gpu.present", {"cuda_devices": [], "nvml": SKEW, "gpus": [], "cuda_error": "x (803)"},
         "FAIL", "gpu.driver-skew"),
        ("gpu.present", {"cuda_devices": [], "cuda_error": NO_DEVICE, "visible": "7"},
         "FAIL", "gpu.visible"),
        ("gpu.present", {"cuda_devices": [], "cuda_error": NO_DEVICE, "visible": "-1"}, "SKIP", ""),
        ("gpu.present", {"cuda_devices": [], "cuda_error": "unknown error (999)"},
         "FAIL", "gpu.driver-failed"),
        ("gpu.present", {"cuda_devices": [], "cuda_error": NO_DEVICE, "gpus.0.mig": True},
         "FAIL", "gpu.mig"),
        ("gpu.nvml", {"nvml": SKEW, "gpus": []}, "FAIL", "gpu.driver-skew"),
        ("gpu.nvml", {"nvml": "Unknown Error (999)", "gpus": []}, "FAIL", "gpu.driver-failed"),
        ("gpu.nvml", {"nvml": NO_NVML, "gpus": []}, "SKIP", ""),
        ("gpu.driver", {"driver_cuda": [12, 8], "driver": "570.26"}, "FAIL", "gpu.driver-too-old"),
        ("gpu.driver", {"driver_cuda": [13, 2], "driver": "595.45"}, "PASS", ""),
        ("gpu.memory", {"gpus.1.free": 2**29}, "WARN", "gpu.busy"),
        ("gpu.memory", {"gpus": []}, "SKIP", ""),
        ("gpu.health", {"gpus.0.ecc_uncorrected": 3}, "FAIL", "gpu.ecc"),
        ("gpu.health", {"gpus.1.remapped.failed": 1}, "FAIL", "gpu.ecc"),
        ("gpu.health", {"gpus.1.remapped.pending": 1}, "WARN", "gpu.ecc"),
        ("gpu.health", {"gpus.0.remapped": None, "gpus.0.ecc_uncorrected": None}, "PASS", ""),
        ("gpu.link", {"gpus.1.link_width": 4}, "WARN", "gpu.link"),
        ("gpu.link", {"gpus.0.link_width": None, "gpus.1.link_width": None}, "SKIP", ""),
    ],
)  # fmt: skip
def test_drivers_and_gpus_that_are_not_well(identifier, on, status, problem):
    result = decide(identifier, on)
    assert (result.status.value, result.problem) == (status, problem), result
    assert bool(result.fix) == (status in ("WARN", "FAIL"))


@pytest.mark.parametrize(
    ("identifier", "facts", "status", "problem"),
    [
        ("torch.build", {"cuda": None}, "FAIL", "torch.cpu-only"),
        ("torch.build", {"cuda": None, "hip": "6.2"}, "WARN", "torch.rocm"),
        ("torch.build", {"version": None}, "FAIL", "torch.import"),
        ("torch.arch", {"architectures": []}, "FAIL", "torch.cpu-only"),
        ("torch.arch", {"architectures": ["sm_80", "sm_86"]}, "FAIL", "torch.arch"),
        ("torch.arch", {"architectures": ["sm_100", "sm_120"]}, "FAIL", "torch.arch"),
        ("torch.arch", {"architectures": ["sm_80", "compute_80"]}, "PASS", ""),
        ("gpu.kernel", {"devices.1.same_noise": False}, "FAIL", "gpu.wrong"),
        ("gpu.kernel", {"devices.0.sum": 0}, "FAIL", "gpu.wrong"),
        ("gpu.kernel", {"devices": []}, "FAIL", "gpu.driver-failed"),
        ("gpu.product", {"errors": {"cuda:1 float16": 0.3}}, "FAIL", "gpu.wrong"),
        ("gpu.product", {"errors": {"cuda:1 float16": float("nan")}}, "FAIL", "gpu.wrong"),
        ("offload.pin", {"engine": False}, "FAIL", "offload.pin"),
        ("offload.rate", {"up": 9e9}, "WARN", "offload.slow"),
        ("offload.rate", {"down": 9e9}, "WARN", "offload.slow"),
        ("offload.order", {"different": {"1": [], "2": ["losses"]}}, "FAIL", "offload.order"),
        ("offload.memory", {"left": 512}, "FAIL", "offload.leak"),
        ("offload.memory", {"peak": 500_000_000}, "FAIL", "offload.memory"),
        ("training.growth", {"device_memory": [0, 512]}, "FAIL", "training.growth"),
        ("training.growth", {"host_memory": [0, 10**9]}, "FAIL", "training.growth"),
        ("multigpu.devices", {"count": 1}, "FAIL", "multigpu.devices"),
        ("multigpu.all-reduce", {"right": [True, False]}, "FAIL", "multigpu.all-reduce"),
        ("multigpu.all-reduce", {"right": [True]}, "FAIL", "multigpu.all-reduce"),
        ("multigpu.all-reduce", {"error": "timeout"}, "FAIL", "multigpu.all-reduce"),
        ("multigpu.all-reduce", {"error": "timeout", "without_peers": None},
         "FAIL", "multigpu.peers"),
        ("multigpu.all-reduce", {"error": "timeout", "without_peers": "timeout"},
         "FAIL", "multigpu.all-reduce"),
        ("multigpu.all-reduce", {"seconds": 1.0}, "WARN", "multigpu.slow"),
        ("host.memory", {"parameters": 175e9}, "FAIL", "host.memory"),
        ("host.memory", {"parameters": 66e9}, "PASS", ""),
    ],
)  # fmt: skip
def test_what_a_gpu_may_show(identifier, facts, status, problem):
    result = decide(identifier, facts=facts)
    assert (result.status.value, result.problem) == (status, problem), result
    assert bool(result.fix) == (status in ("WARN", "FAIL"))
    assert "{" not in result.fix


def test_newer_gpu_than_torch():
    """sm_120 with the wheels of torch 2.4, which stop at sm_90."""
    on = {"cuda_devices.1.capability": [12, 0], "cuda_devices.1.name": "RTX 5090"}
    result = decide("torch.arch", on, {"architectures": list(ROWS["tf451"].architectures)})
    assert result.problem == "torch.arch"
    assert "sm_120 for RTX 5090" in result.need


def test_a_small_gpu_cannot_even_stream():
    on = {"cuda_devices": [{"name": "T4", "capability": [7, 5], "memory": 4 * 10**9}]}
    result = decide("host.memory", on, {"parameters": 66e9, "limit": 10**12})
    assert (result.problem, result.status.value) == ("host.device-memory", "FAIL")


@pytest.mark.parametrize(
    ("parameters", "published"),
    [(1.3e9, 3.75e9), (13e9, 6.18e9), (30e9, 8.86e9), (175e9, 18.04e9)],
)
def test_estimated_device_memory_is_near_what_was_published(parameters, published):
    """The reference's device memory; this engine takes less, so half to all of it."""
    from verify.checks.host import needs_of

    assert 0.5 * published < needs_of(parameters).streamed < 1.1 * published


@pytest.mark.parametrize(
    ("parameters", "measured"), [(1.3e9, 1.19e9), (13e9, 2.53e9), (30e9, 3.49e9), (175e9, 6.11e9)]
)
def test_the_least_device_memory_is_near_what_was_measured(parameters, measured):
    """On an H200; benchmarks/README.md. OPT-1.3B is deeper than it is taken to be."""
    from verify.checks.host import needs_of

    assert 0.95 * measured < needs_of(parameters).least < 1.2 * measured


@pytest.mark.parametrize(("model", "named"), [("a/b", "a/b"), ("13", "MODEL")])
def test_a_gpu_that_needs_a_budget_is_warned_of(model, named):
    on = {"cuda_devices": [{"name": "T4", "capability": [7, 5], "memory": 4 * 10**9}]}
    result = decide("host.memory", on, {"parameters": 13e9, "limit": 10**12, "model": model})
    assert (result.problem, result.status.value) == ("host.device-memory", "WARN")
    assert "about 2.6 GB at least, 5.1 GB without a budget" in result.need
    assert f"zo2 plan --model {named} --budget 3.8GB" in result.fix


@pytest.mark.parametrize(
    ("identifier", "facts", "fix"),
    [
        ("triton.import", {"version": None, "wanted": "triton==3.4.0"},
         "pip install triton==3.4.0"),
        ("torch.build", {"cuda": None}, "pip uninstall -y torch, then pip install torch==2.13.0 "),
        ("torch.build", {"cuda": None, "hip": "6.2"},
         "pip uninstall -y torch, then pip install torch==2.13.0 "),
        ("torch.import", {"error": "undefined symbol: x", "works_without": False, "wheels": {}},
         "pip install --force-reinstall --no-deps torch==2.13.0+cpu --index-url "
         "https://download.pytorch.org/whl/cpu, or"),
        ("torch.import", {"error": "libc10.so: cannot open shared object file: No such file or "
                          "directory", "works_without": False, "wheels": {}},
         "pip install --force-reinstall --no-deps torch==2.13.0+cpu --index-url "
         "https://download.pytorch.org/whl/cpu"),
    ],
)  # fmt: skip
def test_a_mend_keeps_the_version_that_is_installed(identifier, facts, fix):
    packages = {"installed": {"torch": "2.13.0+cpu"}}
    result = decide(identifier, facts=facts, packages=lambda: packages)
    assert result.fix.startswith(fix)


def test_driver_too_old_names_the_driver_that_will_do():
    result = decide("gpu.driver", {"driver_cuda": [12, 8], "driver": "570.26"})
    assert "580.65.06" in result.fix


def test_minor_version_compatibility_is_no_failure():
    build = {"torch.build": {"version": "2.15.0", "cuda": "13.2", "hip": None}}
    assert decide("gpu.driver", other=build).status is Status.PASS


def test_shared_memory_of_docker_with_several_gpus():
    small = {"exists": True, "total": 64 * 2**20, "free": 60 * 2**20, "error": None}
    one = {**RECORDED["machine"], "cuda_devices": RECORDED["machine"]["cuda_devices"][:1]}
    for host, status in ((RECORDED["machine"], "WARN"), (one, "PASS")):
        context = Context(machine.from_facts(host), ROWS)
        assert judge(CHECKS["host.shm"], Outcome(small), context).status.value == status


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"compiler": None, "asked": None, "header": True}, "host.compiler"),
        ({"compiler": "gcc", "asked": None, "header": False}, "host.python-headers"),
    ],
)
def test_compiler_matters_more_with_a_gpu(facts, problem):
    found = {**facts, "error": None, "answer": None}
    for host, status in ((machine.from_facts(RECORDED["machine"]), "FAIL"), (None, "WARN")):
        context = Context(host or machine.Machine(), ROWS)
        result = judge(CHECKS["host.compiler"], Outcome(found), context)
        assert (result.status.value, result.problem) == (status, problem)


# -- texts ----------------------------------------------------------------------------------

# texts as users have met them, and the problem they show
TEXTS = [
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
     "CUDA kernel errors might be asynchronously reported", "torch.arch"),
    ("UserWarning: NVIDIA RTX 5090 with CUDA capability sm_120 is not compatible with the current "
     "PyTorch installation.", "torch.arch"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please "
     "update your GPU driver", "gpu.driver-too-old"),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA "
     "GPU", "gpu.no-driver"),
    ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", "gpu.no-driver"),
    ("Failed to initialize NVML: Driver/library version mismatch", "gpu.driver-skew"),
    ("AssertionError: Torch not compiled with CUDA enabled", "torch.cpu-only"),
    ("RuntimeError: Need to provide pin_memory allocator to use pin memory.", "offload.pin"),
    ("RuntimeError: pin_memory=True requires a CUDA or other accelerator backend; none found",
     "offload.pin"),
    ("ImportError: libcublas.so.12: cannot open shared object file: No such file or directory",
     "torch.library-missing"),
    ("ValueError: libcudart.so.*[0-9] not found in the system path ['/a', '/b']",
     "torch.library-missing"),
    ("ImportError: /x/libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version "
     "libnvJitLink.so.12", "torch.ld-library-path"),
    ("ImportError: /x/torch/lib/libtorch_cuda.so: undefined symbol: ncclCommRegister",
     "torch.mixed-wheels"),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set "
     "triton.knobs.build.impl.", "host.compiler"),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
     "host.compiler"),
    ("/tmp/x/main.c:5:10: fatal error: Python.h: No such file or directory",
     "host.python-headers"),
    ("ModuleNotFoundError: No module named 'setuptools'", "triton.setuptools"),
    ("ModuleNotFoundError: No module named 'accelerate'", "packages.module-missing"),
    ("ModuleNotFoundError: No module named 'triton'", "triton.missing"),
    ("ModuleNotFoundError: No module named 'zo2'", "zo2.missing"),
    ("ModuleNotFoundError: No module named 'zo2.methods'", "zo2.missing"),
    ("WARNING: Ignoring invalid distribution ~orch (/x/site-packages)", "packages.leftovers"),
    ("InvalidError: /x/tqdm-4.dist-info/RECORD cannot be read: 'utf-8' codec can't decode",
     "packages.unreadable"),
    ("A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.2.6 as it may crash.",
     "numpy.bridge"),
    ("RuntimeError: Numpy is not available", "numpy.bridge"),
    ("ImportError: huggingface-hub>=0.30.0,<1.0 is required for a normal functioning of this "
     "module, but found huggingface-hub==0.24.5.\nTry: `pip install transformers -U`",
     "transformers.hub-mismatch"),
    ("ImportError: tokenizers>=0.20,<0.21 is required for a normal functioning of this module, but "
     "found tokenizers==0.21.0.", "transformers.tokenizers-mismatch"),
    ("[transformers] Disabling PyTorch because PyTorch >= 2.6 is required but found 2.4.0",
     "transformers.torch-floor"),
    ("OPTForCausalLM requires PyTorch >= 2.6, but PyTorch was not found in your environment.",
     "transformers.torch-floor"),
    ("ImportError: cannot import name 'add_start_docstrings_to_model_forward' from "
     "'transformers.models.opt.modeling_opt' (/x/modeling_opt.py)", "transformers.removed-symbol"),
    ("ValueError: `rope_scaling` must be a dictionary with two fields, `type` and `factor`, got "
     "{'factor': 8.0, 'rope_type': 'llama3'}", "features.rope-scaling"),
    ("The checkpoint you are trying to load has model type `qwen3` but Transformers does not "
     "recognize this architecture.", "features.unknown-model"),
    ("RuntimeError: DataLoader worker is killed by signal: Bus error. … This might be caused by "
     "insufficient shared memory (shm).", "host.shm"),
    ("Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888), error: No space "
     "left on device (28)", "host.shm"),
    ("ImportError: /usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found (required by "
     "/x/libtorch_python.so)", "torch.libstdcxx"),
    ("OSError: You are trying to access a gated repo.\nMake sure to have access", "hub.gated"),
    ("OSError: We couldn't connect to 'https://hub' to load the files, and couldn't find them in "
     "the cached files.", "hub.unreachable"),
    ("ImportError: pyarrow requires NumPy 2.0 or newer, found 1.26.4", "pyarrow.numpy"),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", "gpu.kernel"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), TEXTS)
def test_texts_that_users_meet_are_recognised(text, problem):
    found = recognise(f"Traceback (most recent call last):\n  File x\n{text}\n")
    assert found is not None
    assert found[0].identifier == problem


def test_the_mend_uses_the_words_of_the_text():
    text = next(text for text, problem in TEXTS if problem == "transformers.hub-mismatch")
    context = Context(rows=ROWS)
    outcome = Outcome(None, "raised ImportError", text)
    result = judge(CHECKS["transformers.import"], outcome, context)
    assert result.status is Status.FAIL
    assert result.fix == "pip install 'huggingface-hub>=0.30.0,<1.0'"


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_probe_that_breaks_is_a_failure_with_a_name(check):
    result = judge(
        check, Outcome(None, "was ended by SIGKILL", "nothing known"), Context(rows=ROWS)
    )
    assert result.status is Status.FAIL
    assert result.problem in PROBLEMS
    assert result.fix


@pytest.mark.parametrize(
    ("ending", "text", "have"),
    [
        ("raised KeyError", "Traceback\n  File x\nKeyError: 'a'", "the check raised KeyError: 'a'"),
        ("raised OutOfMemoryError", "torch.OutOfMemoryError: CUDA", "OutOfMemoryError: CUDA"),
        ("was ended by SIGSEGV", "Fatal\nlast words\n", "was ended by SIGSEGV: last words"),
        ("did not end within 2 s", "", "the check did not end within 2 s"),
    ],
)
def test_how_a_probe_ended_is_said_once(ending, text, have):
    result = judge(CHECKS["hub.token"], Outcome(None, ending, text), Context())
    assert result.have.endswith(have)
    assert result.have.count("KeyError") <= 1
