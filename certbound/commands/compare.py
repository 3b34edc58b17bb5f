"""``certbound compare``: every bound beside the gap that an attack finds; results are kept in a cache."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbound.commands.options import Subparsers, add_command, add_data, add_model, names, number

if TYPE_CHECKING:
    from certbound.graph import Graph
    from certbound.network import Network

logger = logging.getLogger(__name__)

_EXAMPLES = """\
exit codes: 0 ok; 1 a lower bound exceeds an upper bound: somebody's bound is wrong; 2 bad input; 3 a package is
missing.

results are cached: the same network, samples, options and versions print the same table again (with the seconds of
the first run). A result in which a method failed, ran out of time or was not installed is not kept. The cache is in
$CERTBOUND_CACHE_DIR, or in the user's cache folder; it may be deleted at any time.

examples:
  certbound compare --model net.py:make --weights w.safetensors --data mnist5k --delta 8/255 --norm inf
  certbound compare --weights net.npz --data test.npz --delta 0.1 --norm 2 --methods product,recursion,CROWN --json
  certbound compare --model net.onnx --data test.npz --delta 2/255 --norm inf
  certbound compare --model net.py:make --data digits --delta 0.05 --norm inf --n-samples 100 --no-cache"""


@dataclass(frozen=True)
class Shown:
    """What is printed: a table, or its JSON; as it was computed or as it came from the cache."""

    table: str
    data: dict[str, Any]

    def __str__(self) -> str:
        return self.table

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``schema_version``."""
        return self.data


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "compare",
        help="every bound of a network beside the gap that an attack finds",
        description="Lipschitz bounds, certified margins and attacks on one network and one data set, side by side; "
        "wherever theory orders two of them, their numbers are checked.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    add_data(parser)
    add_methods(parser)
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: $CERTBOUND_CACHE_DIR, else the user's")
    parser.add_argument("--no-cache", action="store_true", help="compute anew, and keep nothing")
    parser.set_defaults(run=run)


def add_methods(parser: Any) -> None:
    """``--methods`` and ``--time-limit``."""
    parser.add_argument("--methods", type=names, metavar="NAMES", help="for instance product,CROWN; default: all")
    parser.add_argument(
        "--time-limit", type=number, metavar="S", help="seconds; what is not started by then is left out"
    )


def run(args: argparse.Namespace) -> object:
    """Compare, or take the result of an earlier run."""
    from certbound.commands import cache
    from certbound.commands.inputs import read_problem
    from certbound.comparison import compare

    problem = read_problem(args)
    network = problem.network
    options = {
        "delta": args.delta,
        "norm": args.norm,
        "methods": args.methods,
        "n_samples": args.n_samples,
        "time_limit": args.time_limit,
        "seed": args.seed,
    }
    folder = None if args.no_cache else (args.cache_dir or cache.default_folder())
    key = ""
    if folder is not None:
        key = cache.key("compare", [*network_arrays(network), problem.x, problem.y], options)
        kept = cache.read(folder, key)
        if kept is not None:
            logger.info("from the cache: %s", cache.path_of(folder, key))
            return Shown(kept["table"], kept["data"])
    comparison = compare(network, problem.x, problem.y, progress=not args.quiet, **options)
    shown = Shown(str(comparison), comparison.to_dict())
    if folder is not None and all(r.status.name in ("OK", "TOO_LARGE", "UNSUPPORTED") for r in comparison.rows):
        cache.write(folder, key, {"table": shown.table, "data": shown.data})
    return shown


def network_arrays(network: Network | Graph) -> list[Any]:
    """Everything that a comparison depends on of a network."""
    import numpy as np

    from certbound.graph import Graph, as_graph

    # the digest tells apart networks that fold to the same chain: it is the subject of the claims in the result
    name = np.frombuffer(network.digest.encode(), dtype=np.uint8)
    if not isinstance(network, Graph) and network.is_relu_chain:
        chain = network.chain
        return [*chain.weights, *chain.biases, np.array([chain.final_relu]), name]
    nodes = as_graph(network).nodes
    return [name, *(part for n in nodes for part in (np.array(n.inputs, dtype=np.int64), *n.op.parts()))]
