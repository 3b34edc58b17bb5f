"""``certbound compress``: prune a model, or lower its ranks, and write the weights."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from certbound.commands.options import Subparsers, add_command, add_model, number, positive
from certbound.errors import InputError, MissingDependencyError
from certbound.types import SCHEMA_VERSION

if TYPE_CHECKING:
    from certbound.compress.pruning import Pruned

logger = logging.getLogger(__name__)

_NEEDS: Final = {
    "epsilon-rows": "epsilon",
    "epsilon-spectral": "epsilon",
    "uniform-rows": "ratio",
    "uniform-spectral": "ratio",
    "unstructured": "ratio",
    "low-rank": "rank",
}
"""The methods, and which option says how much."""

_EXAMPLES = """\
methods:
  epsilon-rows      every layer keeps the fewest rows (neurons, filters) whose tail ratio is at most --epsilon
  epsilon-spectral  the same for singular values
  uniform-rows      every layer loses the share --ratio of its rows; with --scope global one threshold for all layers,
                    which can remove a layer altogether
  uniform-spectral  the same for singular values
  unstructured      the same for single entries
  low-rank          every layer at rank --rank by the truncated SVD

The head (the last linear layer) and the first convolution are left as they are. Every weight keeps its name, shape and
dtype, so that the same --model loads the file; removed rows, values and entries are zero. Matrices read without --model
are written as a ReLU network in float64.

exit codes: 0 ok; 2 bad input, and nothing is written; 3 a package is missing.

examples:
  certbound compress --model net.py:make --weights w.safetensors --method epsilon-rows --epsilon 0.1 --out p.safetensors
  certbound compress --weights net.npz --method low-rank --rank 8 --out p.safetensors
  certbound compare --model net.py:make --weights p.safetensors --data mnist5k --delta 8/255 --norm inf"""


@dataclass(frozen=True)
class CompressReport:
    """What was pruned, and where it is."""

    pruned: Pruned
    file: str

    def __str__(self) -> str:
        return f"{self.pruned}\nwrote {self.file}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return {**self.pruned.to_dict(), "schema_version": SCHEMA_VERSION, "file": self.file}


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "compress",
        help="prune a model or lower its ranks, and write the weights",
        description="Compress a copy of a model and write its weights as safetensors; a table of what was kept.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    parser.add_argument("--method", required=True, choices=list(_NEEDS), metavar="NAME", help="see below")
    parser.add_argument("--epsilon", type=number, metavar="E", help="tail ratio in [0, 1), for epsilon-*")
    parser.add_argument("--ratio", type=number, metavar="R", help="share removed, in [0, 1), for the others")
    parser.add_argument("--rank", type=positive, metavar="R", help="for low-rank")
    parser.add_argument("--q", type=int, metavar="Q", help="norm of the tail ratio, 1 or 2, for epsilon-*; default: 1")
    parser.add_argument("--scope", metavar="S", help="layer or global, with --ratio; default: layer")
    parser.add_argument("--include-head", action="store_true", help="compress the last linear layer too")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors", help="where the weights go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> CompressReport:
    """Compress, then write; nothing is written where anything is refused."""
    from certbound.io.factory import load_model

    _check_options(args)
    _check_out(args.out)
    _check_safetensors()
    pruned = _compress(args, _as_module(load_model(args.model, args.weights, layers=args.layers)))
    _write(args.out, pruned.model)
    logger.info("wrote %s", args.out)
    return CompressReport(pruned, str(args.out))


def _check_options(args: argparse.Namespace) -> None:
    needed = _NEEDS[args.method]
    allowed = {"epsilon": ("epsilon", "q"), "ratio": ("ratio", "scope"), "rank": ("rank",)}[needed]
    extra = [n for n in ("epsilon", "ratio", "rank", "q", "scope") if n not in allowed and getattr(args, n) is not None]
    if extra or getattr(args, needed) is None:
        name = extra[0] if extra else needed
        raise InputError(
            name,
            got=f"--{name} with --method {args.method}" if extra else f"no --{name} with --method {args.method}",
            needed=" and perhaps ".join(f"--{n}" for n in allowed),
            fix="see certbound compress --help",
        )


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".safetensors" or out.is_dir() or not out.absolute().parent.is_dir():
        # said before the work is done
        raise InputError(
            "out", got=str(out), needed="a .safetensors file in a folder that exists", fix="name it x.safetensors"
        )


def _check_safetensors() -> None:
    try:
        import safetensors  # noqa: F401  # is it there?
    except ImportError as error:
        raise MissingDependencyError(
            "safetensors", purpose="writing safetensors files", command="pip install 'certbound[io]'"
        ) from error


def _as_module(model: Any) -> Any:
    """The model, or the ReLU network that matrices stand for: what reading the written file gives again."""
    from certbound.arrays import is_torch
    from certbound.io.to_torch import to_torch
    from certbound.network import as_network

    if is_torch(model, "Module"):
        return model
    network = as_network(model)
    if not network.is_relu_chain or network.chain.final_relu:
        raise InputError(
            "model",
            got="a Network that is more than matrices with a ReLU between each two",
            needed="an nn.Module, or such matrices: a file of weights has no architecture",
            fix="return an nn.Module from the factory",
        )
    return to_torch(network)


def _compress(args: argparse.Namespace, model: Any) -> Pruned:
    from certbound.compress.pruning import epsilon_prune, spectral_prune, uniform_prune
    from certbound.compress.truncation import low_rank

    head = not args.include_head
    if args.method == "low-rank":
        # two thin layers would have names that the user's factory does not know
        return low_rank(model, args.rank, exclude_head=head, factorise=False)
    if args.epsilon is not None:
        prune = epsilon_prune if args.method == "epsilon-rows" else spectral_prune
        return prune(model, args.epsilon, q=1 if args.q is None else args.q, exclude_head=head)
    kind = args.method.removeprefix("uniform-")
    return uniform_prune(model, args.ratio, kind=kind, scope=args.scope or "layer", exclude_head=head)


def _write(out: Path, model: Any) -> None:
    """The state dict as safetensors, whole or not at all."""
    import torch
    from safetensors.torch import save

    from certbound.arrays import as_float64
    from certbound.certificate import _write_atomically

    state: dict[str, Any] = model.state_dict()
    extra = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if extra:
        raise InputError(
            "model", got=f"a module with extra state ({extra[0]})", needed="tensors only",
            fix="save what certbound.compress returns yourself",
        )  # fmt: skip
    for name, value in state.items():
        as_float64(value, name)  # what could not be read again is not written
    # clones: tensors that share memory are refused by safetensors
    _write_atomically(out, save({n: v.detach().cpu().contiguous().clone() for n, v in state.items()}))


__all__ = ["CompressReport", "add", "run"]
