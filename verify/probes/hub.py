"""The model hub: what the environment says about it, its cache, a token, and reaching it."""

from __future__ import annotations

import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def offline(options: Mapping[str, Any]) -> dict[str, Any]:
    """Variables that switch the hub off."""
    return {"set": {name: os.environ[name] for name in _OFFLINE if os.environ.get(name)}}


def cache(options: Mapping[str, Any]) -> dict[str, Any]:
    """Whether models can be written to the cache; it is not made if it is not there."""
    wanted = hub_cache()
    place = wanted
    while not place.exists() and place != place.parent:
        place = place.parent
    error = None
    try:
        with tempfile.TemporaryFile(dir=place, prefix=".zo2-verify-") as file:
            file.write(b"written")
    except OSError as problem:
        error = str(problem.strerror)
    return {"path": str(wanted), "exists": wanted.is_dir(), "tried": str(place), "error": error}


def token(options: Mapping[str, Any]) -> dict[str, Any]:
    """Where a token is; never the token."""
    path = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").expanduser()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return {"where": name}
    stored = path.is_file() and os.access(path, os.R_OK) and path.stat().st_size > 0
    return {"where": "a file" if stored else None}


def reach(options: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the hub for one small answer."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    started = time.monotonic()
    request = urllib.request.Request(f"{address}/api/models?limit=1", method="GET")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:  # it answered
        return {"error": None, "code": error.code, "seconds": time.monotonic() - started}
    except OSError as error:
        return {"error": str(getattr(error, "reason", error)), "code": None, "seconds": None}
    return {"error": None, "code": 200, "seconds": time.monotonic() - started}


def hub_cache() -> Path:
    """Where huggingface_hub keeps models."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(own).expanduser() if own else _home() / "hub"


def _home() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or default).expanduser()


PROBES = {"hub.offline": offline, "hub.cache": cache, "hub.token": token, "hub.reach": reach}
