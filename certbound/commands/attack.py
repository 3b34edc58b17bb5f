"""``certbound attack``: inputs near the samples on which the loss is high."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbound.commands.options import Subparsers, add_command, add_data, add_model, positive

if TYPE_CHECKING:
    from certbound.commands.inputs import Problem

logger = logging.getLogger(__name__)

_EXAMPLES = """\
exit codes: 0 ok (whatever the attack finds); 2 bad input; 3 a package is missing.

examples:
  certbound attack --model net.py:make --weights w.safetensors --data mnist5k --delta 8/255 --norm inf
  certbound attack --weights net.npz --data test.npz --delta 0.5 --norm 2 --steps 200 --restarts 5 --save adv.npz"""


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "attack",
        help="find perturbed inputs: a lower bound of the loss gap",
        description="Attack every sample within the ball and [0, 1]; the gap found is a lower bound, the accuracy "
        "left an upper bound of the robust accuracy. Any nn.Module can be attacked.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    add_data(parser)
    parser.add_argument("--method", default="apgd-ce", help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--restarts", type=positive, default=1, metavar="N", help="random starts; default: %(default)s")
    parser.add_argument("--device", help="torch device; default: CUDA if there is one")
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="write x_adv and y to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> object:
    """Attack, and save the points if asked to."""
    from certbound.attacks.apgd import attack
    from certbound.commands.inputs import read_problem
    from certbound.errors import InputError

    if args.save is not None and (args.save.suffix.lower() != ".npz" or not args.save.absolute().parent.is_dir()):
        # said before the work is done
        raise InputError("save", got=str(args.save), needed="a .npz file in a folder that exists", fix="name it x.npz")
    problem = read_problem(args)
    x, y = subset(problem.x, problem.y, args.n_samples, args.seed)
    report = attack(
        _attackable(problem),
        x,
        y,
        delta=args.delta,
        norm=args.norm,
        method=args.method,
        steps=args.steps,
        restarts=args.restarts,
        seed=args.seed,
        device=args.device,
    )
    if args.save is not None:
        _save(args.save, x_adv=report.x_adv, y=report.y)
        logger.info("wrote %s", args.save)
    return report


def _attackable(problem: Problem) -> Any:
    """The network as certbound reads it, which pruned modules need (torch cannot copy them); else the module."""
    from certbound.errors import InputError

    try:
        return problem.network
    except InputError as error:
        logger.info("attacking the module itself: %s", error)
        return problem.model


def subset(x: Any, y: Any, n_samples: int | None, seed: int) -> tuple[Any, Any]:
    """The samples that ``compare`` takes with the same seed."""
    import numpy as np

    if n_samples is None or n_samples >= len(x) or len(y) != len(x):
        return x, y
    index = np.sort(np.random.default_rng(seed).choice(len(x), n_samples, replace=False))
    return x[index], y[index]


def _save(path: Path, **arrays: Any) -> None:
    """All or nothing."""
    import numpy as np

    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
