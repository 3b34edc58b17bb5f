"""Where a row was computed: versions, git revision, device, threads, machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from certbound.doctor import certbound_version
from certbound.errors import InputError
from certbound.io.to_torch import import_torch

_PACKAGES: Final = ("numpy", "scipy", "torch", "pyautoattack", "auto-lirpa", "scikit-learn", "mlxtend")
_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_CODE: Final = ("experiments", "certbound")
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@functools.cache
def versions() -> dict[str, str | bool | None]:
    """Versions of what computes the numbers, and the revision of the code; once a process, when it is first asked."""
    found: dict[str, str | bool | None] = {"certbound": certbound_version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | git_state()


def git_state(checkout: Path = _CHECKOUT) -> dict[str, str | bool | None]:
    """``revision`` of the checkout; ``dirty``: its code is changed, or not in git. None where there is no git."""
    revision = _git(checkout, "rev-parse", "HEAD")
    changed = None if revision is None else _git(checkout, "status", "--porcelain", "--", *_CODE)
    return {"revision": revision, "dirty": None if changed is None else bool(changed)}


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", "-C", str(checkout), *arguments), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _machine() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:  # not Linux
        pass
    return f"{platform.system()} {platform.release()}, {name}, {os.cpu_count()} cores"


def describe(device: str) -> dict[str, Any]:
    """The environment of a row: :func:`versions`, the device, the threads of this process, the machine."""
    torch = sys.modules.get("torch")  # a cell that computed without it is not made to wait for it
    threads = None if torch is None else torch.get_num_threads()
    name = None if torch is None or not device.startswith("cuda") else torch.cuda.get_device_name(device)
    return {**versions(), "device": device, "device_name": name, "threads": threads, "machine": _machine()}


def check_device(device: str) -> None:
    """Refuse a device that torch cannot compute on here.

    Raises
    ------
    InputError : no such device.
    """
    if device == "cpu":  # always there: no need to wait for torch
        return
    torch = import_torch(f"the device {device!r}")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        # AssertionError: torch built without CUDA
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            "device", got=f"{device!r} ({reason})", needed="a device that torch has here", fix="pass 'cpu' or 'cuda'"
        ) from None


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for numpy and torch: cells run side by side, and sums in another order are other numbers.

    The environment variables act on what is not loaded yet (torch, in a fresh worker), the calls on what is.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with _limited():
            if torch is not None:
                torch.set_num_threads(1)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if torch is not None:
            torch.set_num_threads(threads)


def _limited() -> Any:
    """One thread for the linear algebra that is loaded."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # it comes with scikit-learn
        return nullcontext()
    return threadpool_limits(1)


__all__ = ["check_device", "describe", "git_state", "one_thread", "versions"]
