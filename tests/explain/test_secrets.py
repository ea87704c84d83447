"""User names and passwords in addresses are asked with, and do not get out."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.explain import index
from tests.explain.conftest import Run, runner
from verify.report.redact import LOGIN


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """Serve the files of the test's folder; gives the server's place, without a scheme."""
    handler = functools.partial(_Silent, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://joe:S3cret@e.invalid/simple --frobnicate",
        "--index-url https://joe:${MYTOK}@e.invalid/simple --no-cache-dir",
        "--index-url https://joe:S3cret pw@e.invalid/simple",
        "--proxy http://joe:S3cret@e.invalid:1",
        "--extra-index-url https://joe:S3cret@e.invalid:notaport/simple",
        "--extra-index-url https://joe:p@S3cret@e.invalid:notaport/simple",
        "--index-url https://e.invalid/${MYTOK}/simple",
        "a @ https://joe:S3cret@e.invalid/a 1.whl",
        "-r https://joe:S3cret@e.invalid/r.txt",
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_complaint_holds_a_password(
    explain: Run, monkeypatch: pytest.MonkeyPatch, line: str, form: list[str]
) -> None:
    monkeypatch.setenv("MYTOK", "S3cretFromOutside")
    monkeypatch.setenv("API_TOKEN", "S3cretFromOutside")  # so it is known to be one in paths too
    Path("r.txt").write_text(f"{line}\nnumpy==1.26.4\n")
    code, said, complaint = explain("-r", "r.txt", *form)
    assert code == 2
    assert "S3cret" not in said + complaint
    assert "joe" not in said + complaint
    assert complaint.startswith("explain: ")


def test_no_complaint_about_settings_holds_a_password(
    explain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://joe:S3cret@e.invalid:notaport/simple")
    code, _, complaint = explain("numpy")
    assert code == 2
    assert "https://[login]@e.invalid:notaport/simple" in complaint
    _, _, complaint = explain("numpy", "--index", "https://joe:S3cret@e.invalid/simple")
    assert "https://[login]@e.invalid/simple" in complaint


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("git+https://tok@e.org/x.git@v1", "git+https://[login]@e.org/x.git@v1"),
        ("https://:pw@e.org and https://joe:@e.org", "https://[login]@e.org and https://[login]@e.org"),
        ("https://joe:p@s@e.org/x@y", "https://[login]@e.org/x@y"),
        ("https://joe:pass word@e.org/x@y", "https://[login]@e.org/x@y"),
        ("https://joe:p/w@e.org, b @ http://j:12@e.org", "https://[login]@e.org, b @ http://[login]@e.org"),
        ("https://e.org:8080/x.git@v1, me@e.org", "https://e.org:8080/x.git@v1, me@e.org"),
        ("at http://e.org:80, by me@e.org", "at http://e.org:80, by me@e.org"),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("a @ https://e.org/a.whl", "a @ https://e.org/a.whl"),
    ],
)  # fmt: skip
def test_what_is_a_login_and_what_is_not(text: str, shown: str) -> None:
    pattern, replacement = LOGIN
    assert pattern.sub(replacement, text) == shown


@pytest.mark.parametrize("before", ["mine @ ", ""])
def test_the_answer_masks_passwords_and_the_file_keeps_them(
    needs_uv: None,
    use_index: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    files: str,
    tmp_path: Path,
    before: str,
) -> None:
    index.wheel(tmp_path, "mine", "1.0", "hf-transferable<2")
    line = f"{before}http://joe:S3cret@{files}/mine-1.0-py3-none-any.whl"
    Path(tmp_path, "r.txt").write_text(f"{line}\nhf-transferable==2\n")
    name = "hf-transferable"  # a package, though it looks like a token
    with index.serve({name: {v: index.release(name, v) for v in ("1", "2")}}) as address:
        use_index(address)
        run = runner(capsys)
        for form in ([], ["--json"]):
            code, said, complaint = run("-r", "r.txt", *form)
            assert (code, complaint) == (1, "")
            assert "S3cret" not in said
            assert "joe" not in said
            assert f"{before}http://[login]@{files}/mine-1.0-py3-none-any.whl" in said
            assert "+hf-transferable==1" in said
        code, _, _ = run("-r", "r.txt", "--apply", "--json")
    assert code == 0
    assert Path("r.txt").read_text() == f"{line}\nhf-transferable==1\n"
