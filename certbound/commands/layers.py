"""``certbound layers``: Theorem 3.1, true operator norms and alignment of every layer of a model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from certbound.commands.options import Subparsers, add_command, add_model, number, shape

logger = logging.getLogger(__name__)

_EXAMPLES = """\
exit codes: 0 ok; 2 bad input, or a layer that certbound does not model (named with its path); 3 a package is missing.

a convolution has two readings: 'filters', the kernel matrix that the paper's statistics use, which bounds nothing of
the layer; and 'operator', the linear map of the whole image at --input-shape, which is guaranteed.

examples:
  certbound layers --model net.py:make --weights w.safetensors --input-shape 3,32,32
  certbound layers --model net.py:make --input-shape 3,224,224 --said random --plot layers.png --csv layers.csv
  certbound layers --model net.py:make --weights w.pt --input-shape 3,32,32 --tier tight --json"""


def add(subparsers: Subparsers) -> None:
    """Declare the options."""
    parser = add_command(
        subparsers,
        "layers",
        help="Theorem 3.1, operator norms and alignment of every layer of a real model",
        description="One row a weight with two or more dimensions: what Theorem 3.1 says of it, the true norms of the "
        "layer at this input size, alignment where it is defined; then the bound of the network, or why there is none.",
        examples=_EXAMPLES,
    )
    add_model(parser)
    parser.add_argument(
        "--input-shape", type=shape, metavar="C,H,W", help="shape of one input; a convolution's norm depends on it"
    )
    parser.add_argument("--tier", default="fast", help="of convolutions' 2-norms: fast or tight; default: %(default)s")
    parser.add_argument("--rigor", default="numerical", help="of matrices: numerical or rigorous; default: %(default)s")
    parser.add_argument("--dispersion", default="kth", help="kth (the paper's) or mean; default: %(default)s")
    parser.add_argument(
        "--share", type=number, metavar="S", help="k is this part of singular values and rows; default: k = 1"
    )
    parser.add_argument("--said", metavar="WORD", help="what you say of the weights, to be printed: random, pretrained")
    parser.add_argument("--no-network", action="store_true", help="leave the bound of the whole network out")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the layers")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write every number")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> object:
    """Report, draw, write."""
    from certbound.io.factory import load_model
    from certbound.theorems.layer_report import layer_report

    report = layer_report(
        load_model(args.model, args.weights, layers=args.layers),
        input_shape=args.input_shape,
        tier=args.tier,
        rigor=args.rigor,
        dispersion=args.dispersion,
        share=args.share,
        weights=args.said,
        network=not args.no_network,
        progress=not args.quiet,
    )
    if args.csv is not None:
        logger.info("written: %s", report.to_csv(args.csv))
    if args.plot is not None:
        from certbound.report.layer_plots import plot_layers

        logger.info("written: %s", plot_layers(report, args.plot))
    return report
