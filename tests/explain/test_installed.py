from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import packaging
import pytest

from tests.explain import index
from tests.explain.conftest import runner
from verify.explain.errors import ExplainError
from verify.explain.installed import installed


def distribution(folder: Path, name: str, version: str, *requires: str, url: str = "") -> Path:
    """An installed distribution, as far as its metadata go."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    about += [f"Requires-Dist: {need}" for need in requires]
    (place / "METADATA").write_text("\n".join([*about, "", ""]))
    if url:
        (place / "direct_url.json").write_text(f'{{"url": "{url}", "dir_info": {{}}}}')
    return place


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose distributions are all that is installed."""
    folders: list[str] = []
    monkeypatch.setattr(metadata, "distributions", partial(metadata.distributions, path=folders))
    return folders


@pytest.fixture
def site(tmp_path: Path, path: list[str]) -> Path:
    """The one folder for what is installed."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    path.append(str(folder))
    return folder


def test_what_is_installed_is_pinned(tmp_path: Path) -> None:
    found = {r.name: r for r in installed(tmp_path).requirements}
    assert found["packaging"].text == f"packaging=={packaging.__version__}"
    assert str(found["packaging"].origin) == "installed"
    assert list(found) == sorted(found)
    left = installed(tmp_path, without=["packaging"]).requirements
    assert "packaging" not in {r.name for r in left}


def test_no_stranger_of_an_index_stands_in_for_what_is_not_from_there(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    site: Path,
) -> None:
    strangers = {
        "mine": {"0.0.3": index.release("mine", "0.0.3"), "9": index.release("mine", "9")},
        "lib": {"1": index.release("lib", "1"), "2": index.release("lib", "2")},
    }
    distribution(site, "mine", "1.0", "lib (<2)", "lib (>=1.*)", url="file:///gone")
    distribution(site, "app", "1", "mine @ https://gone.example/mine.whl", url="file:///gone")
    distribution(site, "lib", "1")
    with index.serve(strangers) as address:
        use_index(address)
        run = runner(capsys)
        code, said, complaint = run("--installed")
        assert (code, complaint) == (0, "")
        distribution(site, "tool", "1", "mine>=2", url="file:///gone")
        code, said, _ = run("--installed")
        assert code == 1
        assert "tool==1 depends on mine>=2" in said
        assert "0.0.3" not in said
        assert "pip install mine" not in said
        # what is named is wanted in the place of what is installed
        code, said, _ = run("--installed", "mine==9")
        assert code == 0


def test_a_copy_of_the_sources_is_from_no_index(path: list[str], tmp_path: Path) -> None:
    """Beside its sources a project has an ``.egg-info``, which comes first on the path there."""
    about = tmp_path / "project" / "mine.egg-info"
    about.mkdir(parents=True)
    (about / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n\n")
    path.append(str(about.parent))
    (found,) = installed(tmp_path).requirements
    assert (str(found), found.movable, found.text[:12]) == ("mine 1", False, "mine @ file:")


def test_metadata_that_cannot_be_read_is_told(site: Path, tmp_path: Path) -> None:
    place = distribution(site, "broken", "1")
    (place / "METADATA").write_bytes(b"\xff\xfe\x00\x81binary")
    with pytest.raises(ExplainError, match=r"broken-1\.dist-info is not text"):
        installed(tmp_path)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: one\n\n")
    with pytest.raises(ExplainError, match="installed broken says its version is 'one'"):
        installed(tmp_path)
