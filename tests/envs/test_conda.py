"""The conda files: parsed by conda's own parsers, and the same versions as the locks."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from envs import lockfile, matrix

ROWS = matrix.load()
rattler = pytest.importorskip("rattler", reason="py-rattler, a conda parser, is not installed")
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


@pytest.mark.parametrize("name", ROWS)
def test_every_spec(name):
    row = ROWS[name]
    text = (matrix.ROOT / "envs" / name / "environment.yml").read_text()
    assert text.startswith("# Generated from envs/matrix.toml and the row's lock by `nox -s lock`")
    contents = yaml.safe_load(text)
    assert contents["name"] == f"zo2-{name}"
    *specs, pip = contents["dependencies"]
    found = {rattler.MatchSpec(spec).name.normalized: rattler.MatchSpec(spec) for spec in specs}
    assert set(found) == {"python", "pip", "c-compiler"}
    python = row.pythons[0]
    assert str(found["python"].version) == f"{python}.*"
    pinned = [Requirement(spec) for spec in pip["pip"]]
    assert all(re.fullmatch(r"==[^*]+", str(spec.specifier)) for spec in pinned)
    path = matrix.ROOT / "lockfiles" / row.lock_name(python)
    versions = lockfile.read(path, path.name).versions
    assert {r.name: str(r.specifier)[2:] for r in pinned} == versions


def test_the_parser_refuses_nonsense():
    with pytest.raises(Exception, match="malformed version string"):
        rattler.MatchSpec("python==3.1..x")


@pytest.mark.parametrize("name", ROWS)
def test_conda_lock_reads_it(name, tmp_path):
    reason = "conda-lock is not installed"
    parser = pytest.importorskip("conda_lock.src_parser.environment_yaml", reason=reason)
    path = matrix.ROOT / "envs" / name / "environment.yml"
    mapping = tmp_path / "mapping.yml"  # of package names, which it would download
    mapping.write_text("{}")
    found = parser.parse_environment_file(path, ["linux-64"], mapping_url=mapping.as_uri())
    assert found.channels[0].url == "conda-forge"
    names = {dependency.name for dependency in found.dependencies["linux-64"]}
    assert {"python", "c-compiler", "torch", "transformers"} <= names
