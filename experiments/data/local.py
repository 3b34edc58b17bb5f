"""The folder of local data sets and the errors for what is not in it: nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certbound.errors import InputError, MissingDependencyError

Root = str | Path | None


def folder(name: str, root: Root, expected: Sequence[str], obtain: str) -> Path:
    """The root as a path. InputError without one: it says which files of the data set ``name`` belong there."""
    if root is None:
        raise InputError(
            "root", got="None", needed=f"the folder that holds {name}: {', '.join(expected)}",
            fix=f"pass --root FOLDER (root=… in Python); {obtain}",
        )  # fmt: skip
    return Path(root).expanduser()


def missing(name: str, paths: Sequence[Path], needed: str, obtain: str) -> InputError:
    """The error for files of the data set ``name`` that are not there, with their paths."""
    return InputError(
        "root", got=f"no {', '.join(str(p) for p in paths)}", needed=f"{needed}, for {name}",
        fix=f"{obtain}; nothing is downloaded here",
    )  # fmt: skip


def damaged(path: Path, what: str, needed: str) -> InputError:
    """The error for a file that is there and cannot be used."""
    return InputError(str(path), got=what, needed=needed, fix="obtain the file again")


def import_datasets(purpose: str) -> Any:
    """``torchvision.datasets``, or MissingDependencyError."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingDependencyError("torchvision", purpose=purpose, command="pip install torchvision") from error
    return datasets
