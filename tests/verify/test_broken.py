"""Failures of the catalogue, produced for real: each is named, and mended by the right command."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from importlib import metadata

import pytest

from tests.verify.environments import (
    REPOSITORY,
    SITE,
    Environment,
    ends,
    run,
    write_metadata,
)
from verify.versions import at_least


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


def shadow(tmp_path, module, code):
    """A directory for PYTHONPATH with a module of that code."""
    place = tmp_path / "shadow" / module
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(code)
    return {"PYTHONPATH": str(place.parent)}


# -- packages -------------------------------------------------------------------------------


def test_hub_that_transformers_refuses(environment):
    environment.distribution("huggingface-hub", "0.1.2")
    said = environment.run("--only", "packages.metadata")
    assert said.code == 1
    assert said.problem("packages.metadata") == ("FAIL", "transformers.hub-mismatch")
    fix = said.result("packages.metadata")["fix"]
    wanted = next(
        r for r in metadata.requires("transformers") if r.startswith(("huggingface-hub", "hugg"))
    )
    assert fix.startswith("pip install 'huggingface-hub")
    for bound in wanted.removeprefix("huggingface-hub").strip(" ()").split(","):
        assert bound.strip() in fix


def test_tokenizers_that_transformers_refuses(environment):
    environment.distribution("tokenizers", "0.1.2")
    said = environment.run("--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("FAIL", "transformers.tokenizers-mismatch")
    assert "pip install 'tokenizers" in said.result("packages.metadata")["fix"]


def test_a_requirement_that_is_not_installed(environment):
    environment.distribution("needs-more", "1.0", ("no-such-thing>=2", "tqdm; extra == 'x'"))
    said = environment.run("--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("FAIL", "packages.missing")
    assert said.result("packages.metadata")["fix"] == "pip install 'no-such-thing>=2'"


def test_torch_below_transformers_floor(environment):
    if not at_least(metadata.version("transformers"), "4.52"):
        pytest.skip("this transformers has no floor for torch")
    environment.distribution("torch", "2.0.1")
    said = environment.run("--only", "packages.floors", "transformers.import")
    assert said.problem("packages.floors") == ("FAIL", "transformers.torch-floor")
    assert said.problem("transformers.import") == ("FAIL", "transformers.torch-floor")
    assert "pip install 'torch>=2" in said.result("packages.floors")["fix"]


def test_files_that_are_gone(environment):
    (environment.own("tqdm") / "asyncio.py").unlink()
    said = environment.run("--only", "packages.files")
    assert said.problem("packages.files") == ("FAIL", "packages.files-missing")
    wanted = f"pip install --force-reinstall --no-deps tqdm=={metadata.version('tqdm')}"
    assert said.result("packages.files")["fix"] == wanted


def test_half_an_upgrade(environment):
    write_metadata(environment.site, "tqdm", "0.0.1")
    said = environment.run("--only", "packages.duplicates")
    assert said.problem("packages.duplicates") == ("FAIL", "packages.duplicate-metadata")
    fix = said.result("packages.duplicates")["fix"]
    assert "tqdm-0.0.1.dist-info, then pip install" in fix  # the old one goes, the new one stays
    assert fix.endswith(f"--no-deps tqdm=={metadata.version('tqdm')}")


def test_a_package_in_two_places(environment, tmp_path):
    write_metadata(tmp_path / "other", "tqdm", "0.0.1")
    environment.distribution("tqdm", "0.0.2")
    said = environment.run(
        "--only", "packages.duplicates", variables={"PYTHONPATH": str(tmp_path / "other")}
    )
    status, problem = said.problem("packages.duplicates")
    assert (status, problem) == ("WARN", "packages.duplicate")
    assert "tqdm 0.0.1" in said.result("packages.duplicates")["have"]


def test_another_copy_on_pythonpath(tmp_path):
    variables = shadow(tmp_path, "safetensors", "")
    said = run("--only", "packages.shadowed", variables=variables)
    assert said.problem("packages.shadowed") == ("FAIL", "packages.shadowed")
    assert str(tmp_path) in said.result("packages.shadowed")["fix"]


def test_the_same_copy_on_pythonpath_is_no_matter(tmp_path):
    shutil.copytree(SITE / "tqdm", tmp_path / "tqdm")
    said = run("--only", "packages.shadowed", variables={"PYTHONPATH": str(tmp_path)})
    assert said.problem("packages.shadowed") == ("PASS", "")


def test_a_file_named_like_a_standard_module(tmp_path):
    (tmp_path / "wave.py").write_text("")
    said = run("--only", "packages.shadowed", variables={"PYTHONPATH": str(tmp_path)})
    assert said.problem("packages.shadowed") == ("FAIL", "packages.shadowed-standard")


@pytest.mark.parametrize(
    "name", ["argparse", "queue", "json", "email", "struct", "token", "logging", "select"]
)
def test_a_standard_module_that_verify_needs_is_hidden(tmp_path, name):
    file = tmp_path / f"{name}.py"
    file.write_text("raise RuntimeError('not the real one')")
    for settings, mend in (
        ({"variables": {"PYTHONPATH": str(tmp_path)}}, "unset PYTHONPATH"),
        ({"variables": {"PYTHONPATH": str(REPOSITORY)}, "cwd": tmp_path}, "another directory"),
    ):
        said = run("--quick", "--only", "hub.token", **settings)
        assert said.code == 2
        assert said.output.startswith(f"verify: {file} hides Python's own module {name}: rename")
        assert said.output.endswith(f"{mend}.\n")
        assert said.output.count("\n") == 1


def test_files_named_like_modules_that_nobody_needs_are_no_matter(tmp_path):
    for name in ("wave.py", "time.py"):
        (tmp_path / name).write_text("raise RuntimeError('not the real one')")
    (tmp_path / "test").mkdir()
    variables = {"PYTHONPATH": str(REPOSITORY)}
    assert run("--quick", "--only", "hub.token", variables=variables, cwd=tmp_path).code == 0


def test_metadata_that_cannot_be_read(environment):
    environment.distribution("odd", "1.0", ("this is (no requirement",))
    said = environment.run("--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("FAIL", "packages.unreadable")


def metadata_of(environment, name):
    """The METADATA of a package, in a folder of the environment's own."""
    (folder,) = environment.site.glob(f"{name}-*.dist-info")
    return environment.own(folder.name) / "METADATA"


def without_version(text):
    return "".join(line for line in text.splitlines(True) if not line.startswith("Version:"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("torch", without_version),
        ("numpy", without_version),
        ("torch", lambda text: without_version(text) + "Version: banana\n"),
        ("numpy", lambda text: re.sub(r"\nVersion: .*", "\nVersion: banana", text)),
        ("torch", lambda text: re.sub(r"\nVersion: .*", "\nVersion: banana", text)),
        ("numpy", lambda text: ""),
        ("numpy", lambda text: b"\x80\x81\xff" * 100),
        ("torch", lambda text: b"\x80\x81\xff" * 100),
        ("numpy", None),
    ],
)
def test_a_package_whose_metadata_do_not_say_what_it_is(environment, name, change):
    file = metadata_of(environment, name)
    text = file.read_text()
    file.unlink()
    if change is not None:
        new = change(text)
        file.write_bytes(new if isinstance(new, bytes) else new.encode())
    said = environment.run("--quick", "--only", "packages")
    assert said.code == 1
    assert "Traceback" not in said.output
    assert said.problem("packages.metadata") == ("FAIL", "packages.unreadable")
    found = said.result("packages.metadata")
    assert found["have"].startswith(f"{name}: ")
    assert f"{name} missing" not in said.output
    assert f"no {name}" not in said.output
    assert file.parent.name in found["fix"]
    assert f"{name}=={metadata.version(name)}" in found["fix"]
    assert said.report["mend"]["steps"][0] in ("packages.row", "packages.metadata")
    assert {r["problem"] for r in said.report["results"]} <= {
        "", "packages.untested", "packages.unreadable"
    }  # fmt: skip


def test_broken_metadata_beside_good_ones(environment):
    (environment.site / "tqdm-0.0.1.dist-info").mkdir()
    said = environment.run("--quick", "--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("FAIL", "packages.unreadable")
    assert "tqdm-0.0.1.dist-info" in said.result("packages.metadata")["have"]
    assert said.result("packages.metadata")["fix"].startswith("rm -r ")


def test_an_odd_version_that_nobody_asks_about_is_no_matter(environment):
    write_metadata(environment.site, "some-tool", "1.1build1")
    said = environment.run("--quick", "--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("PASS", "")


def test_a_record_that_cannot_be_read_is_named(environment):
    file = metadata_of(environment, "tqdm").with_name("RECORD")
    file.unlink()
    file.write_bytes(b"\x80\x81\xff" * 100)
    said = environment.run("--only", "packages.files", "packages.shadowed")
    for name in ("packages.files", "packages.shadowed"):
        assert said.problem(name) == ("FAIL", "packages.unreadable")
        assert f"{file.parent.name}/RECORD cannot be read" in said.result(name)["have"]
        assert file.parent.name in said.result(name)["fix"]


def test_what_pip_left_behind_is_no_failure(environment):
    left = environment.site / "~qdm-0.0.1.dist-info"
    (environment.site / "~qdm").mkdir()
    write_metadata(environment.site, "tqdm", "0.0.1")
    (environment.site / "tqdm-0.0.1.dist-info").rename(left)
    said = environment.run("--quick", "--only", "packages")
    assert said.code == 0
    assert said.problem("packages.duplicates") == ("WARN", "packages.leftovers")
    fix = said.result("packages.duplicates")["fix"]
    assert "rm -r" in fix
    assert "/~qdm' " in fix
    assert left.name in fix


# -- the order of mending -------------------------------------------------------------------

OLD = ("huggingface-hub<1.0,>=0.19.3", "tokenizers<0.20,>=0.19")


def test_steps_that_follow_from_an_old_transformers_are_withheld(environment):
    environment.distribution("transformers", "4.40.0", OLD)
    said = environment.run("--quick", "--only", "packages")
    assert said.problem("packages.row") == ("FAIL", "packages.too-old")
    assert said.result("packages.metadata")["status"] == "FAIL"
    assert said.report["mend"]["steps"] == ["packages.row"]
    assert "packages.metadata" in said.report["mend"]["then"]
    steps = said.output.partition("To mend, in this order:")[2]
    assert "pip install 'transformers>=4.46'" in steps
    assert "pip install 'huggingface-hub" not in steps
    assert "run verify again" in steps


def test_what_a_package_demands_that_is_replaced_itself_is_no_part_of_the_mend(environment):
    environment.distribution("needs-more", "1.0", ("tqdm<1", "tqdm-more"))
    environment.distribution("needs-other", "1.0", ("needs-more>=2",))
    said = environment.run("--quick", "--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("FAIL", "packages.conflict")
    fix = said.result("packages.metadata")["fix"]
    assert fix.startswith("pip install 'needs-more>=2'; ")


def test_another_version_on_pythonpath_is_mended_first(environment, tmp_path):
    write_metadata(tmp_path / "pp", "transformers", "4.46.0", OLD)
    variables = {"PYTHONPATH": str(tmp_path / "pp")}
    said = environment.run("--quick", "--only", "packages", variables=variables)
    assert said.problem("packages.duplicates") == ("WARN", "packages.duplicate")
    assert said.result("packages.metadata")["status"] == "FAIL"
    assert said.report["mend"]["steps"] == ["packages.duplicates"]
    steps = said.output.partition("To mend, in this order:")[2]
    assert "unset PYTHONPATH" in steps
    assert "pip install" not in steps


def test_a_torch_that_hides_the_installed_one_is_not_installed_again(tmp_path):
    variables = shadow(tmp_path, "torch", "raise ImportError('not the real one')")
    said = run("--only", "packages.shadowed", "torch.import", variables=variables)
    assert said.problem("torch.import") == ("FAIL", "torch.import")
    assert said.report["mend"]["steps"] == ["packages.shadowed"]


def test_what_mends_torch_moves_nothing(environment):
    installed = metadata.version("torch")
    environment.hide("torch")
    said = environment.run("--only", "torch.import")
    fix = said.result("torch.import")["fix"]
    assert f"pip install --force-reinstall --no-deps torch=={installed}" in fix
    local = installed.partition("+")[2]
    if local:
        assert f"--index-url https://download.pytorch.org/whl/{local}" in fix


def test_a_requirement_with_an_address_is_installed_from_there(environment):
    address = "git+https://me:secret@example.org/foo.git@1"
    environment.distribution("needs-more", "1.0", (f"foo @ {address}",))
    said = environment.run("--only", "packages.metadata")
    assert said.problem("packages.metadata") == ("FAIL", "packages.missing")
    fix = said.result("packages.metadata")["fix"]
    assert fix == "pip install 'foo @ git+https://[login]@example.org/foo.git@1'"
    assert "secret" not in said.output


def test_the_message_of_an_error_is_shown_whole(tmp_path):
    code = "raise ValueError('the cause\\n\\nTry: pip install something')"
    said = run("--only", "torch.import", variables=shadow(tmp_path, "torch", code))
    assert "raised ValueError: the cause Try: pip install" in said.result("torch.import")["have"]


def test_no_torch_at_all(environment):
    environment.hide("torch")
    environment.hide("torch-*.dist-info")
    said = environment.run("--skip", "multigpu", "host", "hub", "packages.files")
    assert said.problem("torch.build") == ("FAIL", "torch.import")
    assert said.problem("torch.import")[0] == "FAIL"
    skipped = [r for r in said.report["results"] if r["group"] == "training"]
    assert skipped
    for result in skipped:
        assert result["status"] == "SKIP"
        assert "torch.import" in result["have"] or "zo2.import" in result["have"] or (
            "transformers.import" in result["have"]
        )  # fmt: skip


def test_without_trl_only_its_trainer_is_left_out(environment):
    for name in ("trl", "accelerate"):
        if not (SITE / name).exists():
            pytest.skip(f"{name} is not in this environment")
    environment.hide("trl")
    environment.hide("trl-*.dist-info")
    said = environment.run("--only", "training.trainers")
    assert said.problem("zo2.import") == ("PASS", "")
    assert said.problem("training.trainers") == ("PASS", "")
    have = said.result("training.trainers")["have"]
    assert "ZOTrainer: 2 steps" in have
    assert "ZOSFTTrainer: not installed: trl" in have


# -- libraries ------------------------------------------------------------------------------


def cuda_library(pattern):
    found = sorted(SITE.glob(f"nvidia/*/lib/{pattern}"))
    if not found:
        pytest.skip("this torch has no CUDA libraries of its own")
    return found[0]


def test_a_missing_cuda_library(environment):
    library = cuda_library("libcublas.so.*")
    environment.own("torch")
    environment.own("nvidia")
    gone = environment.site / library.relative_to(SITE)
    gone.unlink()
    said = environment.run("--only", "torch.import")
    assert said.problem("torch.import") == ("FAIL", "torch.library-missing")
    fix = said.result("torch.import")["fix"]
    owner = next(
        one
        for one in metadata.distributions()
        if any(str(file).endswith(library.name) for file in one.files or ())
    )
    assert fix.endswith(f"{owner.metadata['Name']}=={owner.version}")


def test_library_path_that_poisons(tmp_path):
    library = cuda_library("libnvJitLink.so.*")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a wrong library with")
    (tmp_path / "empty.c").write_text("int nothing;")
    subprocess.run(
        [compiler, "-shared", "-o", tmp_path / library.name, f"-Wl,-soname,{library.name}",
         tmp_path / "empty.c"],
        check=True,
    )  # fmt: skip
    said = run("--only", "torch.import", variables={"LD_LIBRARY_PATH": str(tmp_path)})
    if said.problem("torch.import")[0] == "PASS":
        pytest.skip("this torch finds its own library first")
    assert said.problem("torch.import") == ("FAIL", "torch.ld-library-path")
    assert said.result("torch.import")["fix"] == "unset LD_LIBRARY_PATH"


def test_no_setuptools_for_an_old_triton(environment):
    source = SITE / "triton" / "runtime" / "build.py"
    if not source.exists() or "import setuptools" not in source.read_text():
        pytest.skip("this Triton does not need setuptools")
    environment.hide("setuptools")
    said = environment.run("--only", "triton.import")
    assert said.problem("triton.import") == ("FAIL", "triton.setuptools")
    assert said.result("triton.import")["fix"] == "pip install setuptools"


def test_no_numpy(environment):
    environment.hide("numpy")
    said = environment.run("--only", "numpy.bridge")
    assert said.problem("numpy.bridge") == ("FAIL", "packages.module-missing")
    fix = said.result("numpy.bridge")["fix"]
    again = f"--force-reinstall --no-deps numpy=={metadata.version('numpy')}"
    assert fix == f"pip install {again} (the package that has the module numpy)"


# -- processes that end badly ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit(0)", "raised SystemExit"),
        ("import sys; print('{\"facts\": {}}'); sys.stdout.flush(); 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_torch_that_ends_the_process(tmp_path, code, ending):
    said = run("--only", "torch.import", "parity", variables=shadow(tmp_path, "torch", code))
    assert said.code == 1
    found = said.result("torch.import")
    assert found["status"] == "FAIL"
    assert ending in found["have"]
    assert found["fix"]
    assert {r["status"] for r in said.report["results"] if r["group"] == "parity"} == {"SKIP"}


def test_a_torch_that_hangs_and_has_children(tmp_path):
    mark = tmp_path / "child"
    code = (
        "import subprocess, time, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    variables = shadow(tmp_path, "torch", code)
    said = run("--only", "torch.import", "--limit", "2", variables=variables)
    assert said.code == 1
    assert "did not end within 2 s" in said.result("torch.import")["have"]
    assert ends(int(mark.read_text()))


# -- host and hub ---------------------------------------------------------------------------


def test_no_compiler(tmp_path):
    said = run("--only", "host.compiler", variables={"PATH": str(tmp_path), "CC": ""})
    status, problem = said.problem("host.compiler")
    assert (status in ("WARN", "FAIL"), problem) == (True, "host.compiler")
    assert "apt-get install gcc" in said.result("host.compiler")["fix"]
    strict = run("--only", "host.compiler", "--strict", variables={"PATH": str(tmp_path)})
    assert strict.code == 1


def test_a_compiler_that_fails(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'ld: cannot find -lc' >&2\nexit 1\n")
    compiler.chmod(0o755)
    said = run("--only", "host.compiler", variables={"CC": str(compiler)})
    assert said.problem("host.compiler")[1] == "host.compiler"
    assert "cannot find -lc" in said.result("host.compiler")["have"]


def test_full_shared_memory():
    before = ["unshare", "--mount", "--map-root-user", "sh", "-c",
              'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"', "sh"]  # fmt: skip
    if not shutil.which("unshare") or subprocess.run([*before, "true"]).returncode:
        pytest.skip("mounting in a namespace of its own is not allowed here")
    said = run("--only", "host.shm", before=before)
    assert said.problem("host.shm") == ("FAIL", "host.shm")
    assert "--shm-size" in said.result("host.shm")["fix"]
    assert "No space left" in said.result("host.shm")["have"]


def test_few_open_files():
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    said = run("--only", "host.limits", preexec_fn=limit)
    assert said.problem("host.limits") == ("WARN", "host.limits")
    assert "ulimit -n 1024" in said.result("host.limits")["fix"]


def test_a_model_too_large_for_this_host():
    said = run("--only", "host.memory", "--for-model", "100000")
    assert said.problem("host.memory") == ("FAIL", "host.memory")
    said = run("--only", "host.memory", "--for-model", "facebook/opt-125m")
    assert said.problem("host.memory") == ("PASS", "")
    assert "0.125 billion" in said.result("host.memory")["need"]
    said = run("--only", "host.memory", "--for-model", "someone/something")
    assert said.problem("host.memory")[0] == "SKIP"


def test_offline_on_purpose_and_asked_to_be_online():
    variables = {"HF_HUB_OFFLINE": "1"}
    said = run("--only", "hub.offline", variables=variables)
    assert said.problem("hub.offline") == ("PASS", "")
    assert "HF_HUB_OFFLINE=1" in said.result("hub.offline")["have"]
    said = run("--only", "hub.offline", "--online", variables=variables)
    assert said.problem("hub.offline") == ("FAIL", "hub.offline")
    assert said.result("hub.offline")["fix"] == "unset HF_HUB_OFFLINE"


def test_the_hub_cannot_be_reached():
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    said = run("--only", "hub.reach", "--online", variables=variables)
    assert said.problem("hub.reach") == ("FAIL", "hub.unreachable")


def test_a_cache_that_cannot_be_written():
    said = run("--only", "hub.cache", variables={"HF_HOME": "/proc/nowhere"})
    assert said.problem("hub.cache") == ("WARN", "hub.cache")
    assert "HF_HOME" in said.result("hub.cache")["fix"]


def test_a_token_is_found_and_never_shown(tmp_path):
    secret = "hf_" + "AbCd" * 8
    said = run("--only", "hub", variables={"HF_TOKEN": secret})
    assert "HF_TOKEN" in said.result("hub.token")["have"]
    stored = tmp_path / "token"
    stored.write_text(secret)
    again = run("--only", "hub", variables={"HF_TOKEN_PATH": str(stored)})
    assert "a file" in again.result("hub.token")["have"]
    for one in (said, again):
        assert secret not in one.output + str(one.report)


# -- an engine with a mistake in it ---------------------------------------------------------


def test_parity_finds_a_wrong_estimator(tmp_path):
    for package in ("zo2", "verify"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=_explain)
    source = tmp_path / "zo2" / "methods" / "mezo.py"
    right = source.read_text()
    assert right.count("/ (2 * eps)") == 1
    source.write_text(right.replace("/ (2 * eps)", "/ (1.9 * eps)"))
    said = run("--only", "parity", cwd=tmp_path)
    assert said.code == 1
    assert said.problem("parity.lockstep") == ("PASS", "")
    assert said.problem("parity.estimator") == ("FAIL", "parity.estimator")
    assert said.problem("parity.step") == ("FAIL", "parity.step")
    assert said.problem("parity.parameters") == ("PASS", "")


def _explain(directory, names):
    return [name for name in names if name in ("explain", "__pycache__")]
