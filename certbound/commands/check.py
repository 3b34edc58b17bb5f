"""``certbound check``: Theorem 3.1 on matrices, of files or of a model; one table."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbound import text
from certbound.commands.options import Subparsers, add_command, add_model, number, per_part, positive
from certbound.errors import InputError
from certbound.types import SCHEMA_VERSION

if TYPE_CHECKING:
    from certbound.arrays import F64
    from certbound.theorems.theorem31 import Theorem31Report

logger = logging.getLogger(__name__)

_EXAMPLES = """\
exit codes: 0 the theorem holds, or its hypothesis is not met by your k, epsilon, beta (an answer: see the column
status); 1 it fails, which would be a defect; 2 bad input.

examples:
  certbound check W.npy
  certbound check W.npy --k 3 --dispersion mean
  certbound check W.npy --k spectral=3,neuron=5 --epsilon 0.1 --beta 0.9
  certbound check weights.safetensors --target-epsilon 0.1
  certbound check --model net.py:make --weights w.safetensors --layer encoder.0"""


@dataclass(frozen=True)
class CheckReport:
    """Theorem 3.1 on several matrices, by name."""

    reports: tuple[tuple[str, Theorem31Report], ...]

    @property
    def holds(self) -> bool | None:
        """False if it fails anywhere; None if a hypothesis is not met, or nothing is decided, somewhere; else True."""
        answers = [r.holds for _, r in self.reports]
        if False in answers:
            return False
        return None if None in answers else True

    @property
    def exit_code(self) -> int:
        """1 if the theorem fails on a matrix, else 0."""
        return 1 if self.holds is False else 0

    def __str__(self) -> str:
        columns = ("matrix", "shape", "part", "norm", "k", "epsilon", "beta", "bound", "sharp", "/ norm", "lower",
                   "holds", "status")  # fmt: skip
        lines: list[tuple[str, ...]] = []
        notes: list[str] = []
        for name, report in self.reports:
            for part in (report.spectral, report.neuron):
                first = part is report.spectral
                lines.append(
                    (
                        name if first else "",
                        "x".join(str(s) for s in report.shape) if first else "",
                        part.part,
                        text.number(part.norm),
                        str(part.k),
                        text.number(part.epsilon),
                        text.number(part.beta),
                        text.number(part.bound.value),
                        text.number(part.sharp.value),
                        text.number(part.slack),
                        text.number(part.lower.value),
                        "-" if part.holds is None else "yes" if part.holds else "NO",
                        str(part.status),
                    )
                )
                if not part.hypothesis_met:
                    notes.append(f"{name}, {part.part}: {part.hypothesis}")
        one = self.reports[0][1]
        head = f"Theorem 3.1 ({one.form}, dispersion {one.dispersion}, {one.rigor})"
        return "\n".join([head, text.table(lines, columns), *notes])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "holds": self.holds,
            "layers": [{"name": name, **report.to_dict()} for name, report in self.reports],
        }


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "check",
        help="Theorem 3.1 on a matrix, or on every layer of a model",
        description="Check Theorem 3.1 (compressibility bounds operator norms): both parts, for every matrix.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="matrices: .npy, .npz, or the *.weight matrices of a file of weights"
    )
    add_model(parser)
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help="only this layer (several times for more); default: all"
    )
    group = parser.add_argument_group("the theorem (one value for both parts, or spectral=A,neuron=B)")
    group.add_argument("--k", type=per_part, help="kept rows / singular values; default: every k, the best is shown")
    group.add_argument("--k-row", type=positive, metavar="K", help="kept entries per row; default: the best")
    group.add_argument("--epsilon", type=per_part, help="your tail ratio for this k")
    group.add_argument("--beta", type=per_part, help="your dispersion for this k")
    group.add_argument("--target-epsilon", type=number, metavar="E", help="the smallest k with a tail of at most E")
    group.add_argument("--dispersion", default="kth", help="kth (the paper's) or mean; default: %(default)s")
    group.add_argument("--form", default="derived", help="derived or printed; default: %(default)s")
    group.add_argument("--rigor", default="numerical", help="numerical, or rigorous: every rounding enclosed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> CheckReport:
    """Check every matrix."""
    from certbound.theorems.theorem31 import check_theorem31

    reports: list[tuple[str, Theorem31Report]] = []
    for name, matrix in _chosen(_matrices(args), args.layer).items():
        logger.info("checking %s %s", name, matrix.shape)
        report = check_theorem31(
            matrix,
            k=args.k,
            k_row=args.k_row,
            epsilon=args.epsilon,
            beta=args.beta,
            target_epsilon=args.target_epsilon,
            dispersion=args.dispersion,
            form=args.form,
            rigor=args.rigor,
        )
        reports.append((name, report))
    return CheckReport(tuple(reports))


def _matrices(args: argparse.Namespace) -> dict[str, F64]:
    if bool(args.files) == bool(args.model or args.weights):
        raise InputError(
            "files",
            got="files and a model" if args.files else "nothing to check",
            needed="matrices in files, or --model and --weights",
            fix="see certbound check --help",
        )
    if not args.files:
        from certbound.io.factory import load_model
        from certbound.io.layers import named_matrices

        return named_matrices(load_model(args.model, args.weights, layers=args.layers))
    found: dict[str, F64] = {}
    for file in args.files:
        matrices = _of_file(Path(file), args.layers)
        several = len(args.files) > 1
        for name, matrix in matrices.items():
            # two files of one name: the path tells them apart
            label = name if not several or Path(file).stem == name else f"{file}:{name}"
            found[label if label not in found else f"{file}:{name}"] = matrix
    return found


def _of_file(path: Path, keys: list[str] | None) -> dict[str, F64]:
    from certbound.arrays import as_matrix
    from certbound.io.npy import load_arrays
    from certbound.io.weights_file import load_weights

    if path.suffix.lower() in (".npy", ".npz"):
        # no order is needed here: vectors (biases) are left out, whatever the keys are
        arrays = load_arrays(path, "files")
        if keys is not None and not set(keys) <= set(arrays):
            raise InputError("layers", got=str(keys), needed=f"keys among {list(arrays)}", fix="see the file")
        chosen = {n: a for n, a in arrays.items() if n in (keys or arrays)}
        if len(chosen) > 1 or path.suffix.lower() == ".npz":
            chosen = {n: a for n, a in chosen.items() if a.ndim != 1}
        matrices = {n: as_matrix(a, n) for n, a in chosen.items()}
    else:
        weights = load_weights(path, "files").arrays
        matrices = {n: as_matrix(a, n) for n, a in weights.items() if n.split(".")[-1] == "weight" and a.ndim == 2}
        others = [n for n, a in weights.items() if n not in matrices and a.ndim != 1]
        if others:
            logger.warning("left out, being no *.weight matrices: %s", ", ".join(others))
    if not matrices:
        raise InputError("files", got=f"{path.name} without a matrix", needed="a weight matrix", fix="check the file")
    return matrices


def _chosen(matrices: dict[str, F64], names: list[str] | None) -> dict[str, F64]:
    if not names:
        return matrices
    # fc1 and fc1.weight both name the matrix of the layer fc1
    known = {**{n.removesuffix(".weight"): n for n in matrices}, **{n: n for n in matrices}}
    unknown = [n for n in names if n not in known]
    if unknown:
        raise InputError(
            "layer", got=", ".join(unknown), needed=f"names among {', '.join(matrices)}", fix="leave it out for all"
        )
    return {known[n]: matrices[known[n]] for n in names}
