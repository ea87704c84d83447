"""A package index on this machine, of recorded releases, for a real uv to ask.

``recorded.json`` holds real releases with the parts of their metadata that concern each other.
Only metadata is served: to resolve, uv asks for nothing else.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Releases = Mapping[str, Mapping[str, Mapping[str, Any]]]

RECORDED: Releases = json.loads(
    Path(__file__).with_name("recorded.json").read_text(encoding="utf-8")
)


def release(
    name: str, version: str, *requires: str, uploaded: str = "2025-01-01", **more: Any
) -> dict[str, Any]:
    """An invented release with one wheel for everything."""
    wheel = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return {
        "uploaded": f"{uploaded}T00:00:00Z",
        "python": "",
        "requires": list(requires),
        "files": [wheel],
        **more,
    }


@contextmanager
def serve(releases: Releases, refusal: Callable[[], int] = lambda: 0) -> Iterator[str]:
    """Serve an index while the context lasts; gives its address.

    Args:
        releases: what it has.
        refusal: the status with which it refuses everything just now, if it does.
    """
    pages = _pages(releases)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = pages.get(self.path, ("", b""))
            self.send_response(refusal() or (200 if kind else 404))
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "max-age=600")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A real wheel that holds nothing but metadata."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    about += [f"Requires-Dist: {need}" for need in requires]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join([*about, "", ""]))
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    return path


def _pages(releases: Releases) -> dict[str, tuple[str, bytes]]:
    pages = {}
    for name, versions in releases.items():
        files = []
        for version, facts in versions.items():
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            lines += [f"Requires-Python: {facts['python']}"] if facts["python"] else []
            lines += [f"Requires-Dist: {need}" for need in facts["requires"]]
            metadata = "\n".join([*lines, "", ""]).encode()
            for file in facts["files"]:
                pages[f"/files/{file}.metadata"] = ("text/plain", metadata)
                entry = {
                    "filename": file,
                    "url": f"/files/{file}",
                    "hashes": {"sha256": hashlib.sha256(file.encode()).hexdigest()},
                    "core-metadata": file.endswith(".whl"),
                    "upload-time": facts["uploaded"],
                    "yanked": facts.get("yanked", False),
                }
                files.append({**entry, "requires-python": facts["python"] or None})
        page = {"meta": {"api-version": "1.1"}, "name": name, "files": files}
        kind = "application/vnd.pypi.simple.v1+json"
        pages[f"/simple/{name}/"] = (kind, json.dumps(page).encode())
    return pages
