"""Results of earlier runs, one JSON file each, named by a digest of everything they depend on.

An entry that is damaged, or of another layout, is as good as none: it is computed anew and replaced. A folder that
cannot be written is worth a warning, not a failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache as remember
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from certbound.types import SCHEMA_VERSION

logger = logging.getLogger(__name__)

VARIABLE: Final = "CERTBOUND_CACHE_DIR"
_LAYOUT: Final = 1
_PACKAGES: Final = ("numpy", "scipy", "torch", "auto-lirpa", "pyautoattack", "autoattack", "cvxpy", "clarabel", "scs")


def default_folder() -> Path:
    """$CERTBOUND_CACHE_DIR, or ``certbound`` in the platform's folder for caches."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(named) if os.path.isabs(named) else home / ".cache"  # the specification ignores relative paths
    return base / "certbound"


def key(what: str, arrays: Sequence[Any], options: Mapping[str, Any]) -> str:
    """SHA-256 over the arrays, the options, the versions of all packages involved and certbound's own source."""
    import numpy as np

    digest = hashlib.sha256()
    for array in arrays:
        block = np.ascontiguousarray(array)
        digest.update(f"{block.dtype.str}{block.shape}".encode())
        digest.update(block.tobytes())
    about = {"what": what, "options": dict(options), "versions": _versions(), "source": _source_digest()}
    digest.update(json.dumps(about, sort_keys=True, default=repr).encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"layout": str(_LAYOUT), "schema": str(SCHEMA_VERSION), "python": platform.python_version()}
    for name in ("certbound", *_PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@remember
def _source_digest() -> str:
    """Of certbound's own files: between two releases the version stays while the code changes."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of(folder: Path, entry: str) -> Path:
    """Where an entry is, or would be."""
    return folder / f"{entry}.json"


def read(folder: Path, entry: str) -> dict[str, Any] | None:
    """What was kept under a key; None if nothing, or nothing whole."""
    path = path_of(folder, entry)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        payload = content["payload"]
        # the key too: a file that was copied over another is someone else's result
        if content["key"] == entry and content["sha256"] == _checksum(payload) and payload["data"]["schema_version"]:
            return {"table": str(payload["table"]), "data": payload["data"]}
        logger.warning("%s is damaged; computing anew", path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); computing anew", path, type(error).__name__)
    return None


def write(folder: Path, entry: str, payload: Mapping[str, Any]) -> None:
    """Keep a result: all of it or, if the folder cannot be written, nothing."""
    from certbound.ci_gate import write_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = {"key": entry, "sha256": _checksum(payload), "payload": payload}
        write_atomically(path_of(folder, entry), json.dumps(content, allow_nan=False))
    except OSError as error:
        logger.warning("the result is not cached: %s", error)


def _checksum(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
