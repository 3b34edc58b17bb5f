"""Measure and write docs/real_models.md and docs/resnet18.md.

    python docs/real_models.py measure [NAME ...]   # the six models, one process each, one thread: docs/layers
    python docs/real_models.py resnet18             # the worked example: docs/layers/cifar.json
    python docs/real_models.py tight --norms FILE   # its norms in the tight tier, from benchmarks/conv_norms.py --json
    python docs/real_models.py render               # both pages from the stored numbers

The six models are randomly initialised (seed 0): nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from certbound import text

DOCS = Path(__file__).parent
LAYERS = DOCS / "layers"
THREADS = "1"


# ---------------------------------------------------------------- the models


@dataclass(frozen=True)
class Model:
    """A real model: its title, where it comes from, the shape of its input."""

    title: str
    source: str
    make: Callable[[], Any]
    input_shape: tuple[int, ...] = (3, 224, 224)


def _torchvision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


def _clip() -> Any:
    import open_clip

    return open_clip.create_model("ViT-B-32", pretrained=None).visual


MODELS = {
    "resnet18": Model("ResNet18", "torchvision", _torchvision("resnet18")),
    "vgg16": Model("VGG16", "torchvision", _torchvision("vgg16")),
    "wrn101": Model("WideResNet-101-2", "torchvision", _torchvision("wide_resnet101_2")),
    "vit": Model("ViT-B/16", "torchvision", _torchvision("vit_b_16")),
    "swin": Model("Swin-T", "torchvision", _torchvision("swin_t")),
    "clip": Model("CLIP ViT-B/32, image tower", "open_clip", _clip),
}


def cifar_resnet() -> Any:
    """The CIFAR-10 ResNet-18 that ships with pyautoattack: trained, not robust, pixels in [0, 1]."""
    import torch

    folder = Path(str(importlib.util.find_spec("pyautoattack").submodule_search_locations[0])) / "examples"
    spec = importlib.util.spec_from_file_location("pyautoattack_resnet", folder / "resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.ResNet18()
    model.load_state_dict(torch.load(folder / "model_test.pt", weights_only=True, map_location="cpu"))
    return model.eval()


def cifar_images() -> tuple[np.ndarray, np.ndarray]:
    """The 20 CIFAR-10 test images that foolbox ships: (20, 3, 32, 32) in [0, 1], and their labels."""
    from PIL import Image

    folder = Path(str(importlib.util.find_spec("foolbox").submodule_search_locations[0])) / "data"
    files = sorted(folder.glob("cifar10_*.png"))
    x = np.stack([np.asarray(Image.open(f), dtype=np.float64).transpose(2, 0, 1) / 255 for f in files])
    return x, np.array([int(f.stem.split("_")[-1]) for f in files])


# ---------------------------------------------------------------- measuring


def _peak() -> float:
    """Peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, *, rows: bool = True) -> dict[str, Any]:
    """One model: its layer report in figures, time and memory; the rows go to docs/layers/NAME.csv."""
    import torch

    from certbound.theorems.layer_report import layer_report

    entry = MODELS[name]
    torch.manual_seed(0)
    model = entry.make().eval()
    before = _peak()
    wall, cpu = time.perf_counter(), time.process_time()
    report = layer_report(model, input_shape=entry.input_shape, weights="random")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _peak()
    if rows:
        write_csv(report, LAYERS / f"{name}.csv")
    return {
        "name": name, "title": entry.title, "source": entry.source, "input_shape": list(entry.input_shape),
        "initialised_randomly": report.initialised_randomly, "wall": wall, "cpu": cpu, "threads": int(THREADS),
        "load": os.getloadavg()[0], "peak": peak, "before": before, **figures(report),
    }  # fmt: skip


def figures(report: Any) -> dict[str, Any]:
    """What the table of models shows of a report."""
    rows = report.operator_rows
    convs = [row for row in rows if row.filters is not None]
    factors = [row.factor_2 for row in convs]
    exact = [r for r in rows if r.operator.spectral.exact]
    return {
        "parameters": report.n_parameters,
        "coverage": report.coverage.to_dict(),
        "linear": len(rows) - len(convs),
        "conv": len(convs),
        "additive": sum(row.operator is None for row in report.rows),
        "factor_median": float(np.median(factors)) if factors else None,
        "factor_max": max(factors) if factors else None,
        "gap_max": max(r.operator.norm_2[1] / r.operator.norm_2[0] - 1 for r in rows if r.operator.norm_2[0] > 0),
        "slack_2": float(np.median([r.operator.spectral.slack for r in rows])),
        "slack_inf": float(np.median([r.operator.neuron.slack for r in rows])),
        "epsilon_2": float(np.median([r.operator.spectral.epsilon for r in exact])) if exact else None,
        "vacuous_2": sum(r.operator.spectral.vacuous for r in rows),
        "aligned": sum(r.alignment is not None and r.alignment.two is not None for r in rows),
        "network": {_key(p.norm): {"bound": p.bound and p.bound.value, "reason": p.reason} for p in report.network},
    }  # fmt: skip


def _key(norm: float) -> str:
    return "inf" if math.isinf(norm) else "2"


def write_csv(report: Any, path: Path) -> None:
    """Every number of the report, to six digits."""
    import csv

    path.parent.mkdir(parents=True, exist_ok=True)
    records = report.records()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(max(records, key=len)), lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()})


def measure_all(names: Sequence[str]) -> None:
    """One process a model; what is measured replaces what was stored."""
    path = LAYERS / "models.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        environment = os.environ | {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}
        done = subprocess.run(
            [sys.executable, __file__, "one", name], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        stored[name] = json.loads(done.stdout.splitlines()[-1])
        ordered = {key: stored[key] for key in MODELS if key in stored}
        path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {stored[name]['wall']:.0f} s, {stored[name]['peak']:.2f} GiB", flush=True)


# ---------------------------------------------------------------- the worked example

ATTACKS = ((2.0, 0.5), (math.inf, 8 / 255))
STEPS = 50


def example(tier: str) -> dict[str, Any]:
    """The trained ResNet-18: report, picture, attacks."""
    import torch

    from certbound.attacks.apgd import attack
    from certbound.report.layer_plots import plot_layers
    from certbound.theorems.layer_report import layer_report

    torch.set_num_threads(int(THREADS))
    model = cifar_resnet()
    wall, cpu = time.perf_counter(), time.process_time()
    report = layer_report(
        model, input_shape=(3, 32, 32), weights="pretrained", dispersion="mean", share=0.1, tier=tier
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _peak()
    write_csv(report, LAYERS / "cifar.csv")
    plot_layers(report, DOCS / "pictures" / "resnet18.png", title="CIFAR-10 ResNet-18 (trained), 32 x 32")
    x, y = cifar_images()
    attacks = {}
    for norm, delta in ATTACKS:
        found = attack(model, x, y, delta=delta, norm=norm, steps=STEPS, device="cpu")
        attacks[_key(norm)] = {
            "delta": delta, "gap": found.loss_gap.value, "clean": found.clean_accuracy,
            "robust": found.robust_accuracy, "samples": len(y), "steps": STEPS,
        }  # fmt: skip
    return {
        "tier": tier, "wall": wall, "cpu": cpu, "peak": peak, "threads": int(THREADS), "load": os.getloadavg()[0],
        **figures(report), "rows": [_brief(row) for row in report.operator_rows], "attacks": attacks,
    }  # fmt: skip


def _brief(row: Any) -> dict[str, Any]:
    """What the page shows of a row."""
    operator, filters = row.operator, row.filters

    def part(reading: Any, name: str) -> dict[str, Any]:
        p = getattr(reading, name)
        return {"k": p.k, "epsilon": p.epsilon, "beta": p.beta, "bound": p.bound, "sharp": p.sharp, "exact": p.exact}

    return {
        "name": row.name, "shape": list(row.shape), "kind": row.kind, "input": list(row.input_shape),
        "kernel_2": None if filters is None else filters.norm_2[1],
        "kernel_inf": None if filters is None else filters.norm_inf[1],
        "norm_2": list(operator.norm_2), "norm_inf": operator.norm_inf[1], "frobenius": operator.frobenius,
        "factor_2": row.factor_2, "with_batchnorm": row.with_batchnorm,
        "spectral": part(operator, "spectral"), "neuron": part(operator, "neuron"),
        "filters": None if filters is None else {name: part(filters, name) for name in ("spectral", "neuron")},
    }  # fmt: skip


# ---------------------------------------------------------------- rendering


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def g(value: float | None, digits: int = 3) -> str:
    """A number in few digits; nothing is a dash."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}"


def rounded_up(value: float, digits: int = 3) -> str:
    """An upper bound in few digits, rounded up."""
    return text.at_most(value, digits)[3:]


def rounded_down(value: float, digits: int = 3) -> str:
    """A lower bound in few digits, rounded down."""
    return text.at_least(value, digits)[3:]


def epsilon(part: dict[str, Any]) -> str:
    """ε; what is only a lower bound of it is rounded down."""
    return g(part["epsilon"]) if part["exact"] else text.at_least(part["epsilon"])


def render_models(stored: dict[str, Any]) -> str:
    """docs/real_models.md."""
    models = list(stored.values())
    main = table(
        ("model", "parameters", "rows: Linear, conv, additive", "covered", "operator / kernel norm: median, largest",
         "Theorem 3.1 / norm, ℓ2 (median)", "ℓ∞ (median)", "alignment", "network, ℓ2", "network, ℓ∞"),
        [
            (
                m["title"], f"{m['parameters']:,}", f"{m['linear']}, {m['conv']}, {m['additive']}",
                f"{m['coverage']['share']:.2%}",
                "-" if m["factor_max"] is None else f"{m['factor_median']:.2f}, {m['factor_max']:.2f}",
                f"{m['slack_2']:.1f}", f"{m['slack_inf']:.1f}", f"{m['aligned']} pairs" if m["aligned"] else "none",
                _network(m, "2"), _network(m, "inf"),
            )
            for m in models
        ],
    )  # fmt: skip
    cost = table(
        ("model", "parameters", "CPU seconds", "wall seconds", "CPU seconds per million parameters", "peak memory, GiB",
         "of it before the report"),
        [
            (
                m["title"], f"{m['parameters']:,}", f"{m['cpu']:.0f}", f"{m['wall']:.0f}",
                f"{m['cpu'] / m['parameters'] * 1e6:.2f}", f"{m['peak']:.2f}", f"{m['before']:.2f}",
            )
            for m in sorted(models, key=lambda m: m["parameters"])
        ],
    )  # fmt: skip
    reasons = sorted({m["network"]["2"]["reason"] for m in models if m["network"]["2"]["reason"]})
    attention = [m["title"] for m in models if m["network"]["2"]["reason"]]
    files = "\n".join(f"* {m['title']}: [layers/{m['name']}.csv](layers/{m['name']}.csv)" for m in models)
    return f"""<!-- written by docs/real_models.py; do not edit -->
# Six real models

Layer reports of the models that the paper speaks of, at 224 x 224, tier `fast`. **Weights: random initialisation (seed
0)**: nothing is downloaded here, so these numbers say what certbound does with such a model, not what training makes of
it. [resnet18.md](resnet18.md) is the same with trained weights.

```console
$ certbound layers --model net.py:make --input-shape 3,224,224 --said random --plot layers.png --csv layers.csv
```

{main}

* *covered*: part of all parameters with two or more dimensions that has a row. Linear layers and convolutions have
  numbers (attention's `in_proj_weight` is one Linear); position embeddings, class tokens and tables of relative
  position bias are added, and stand in the report as `additive: no operator`.
* *operator / kernel norm*: of convolutions, the upper bound of the true operator norm over the norm of the kernel
  reshaped to `out x (in · kernel)`, which the paper's statistics use. The kernel matrix bounds nothing of the layer.
* *Theorem 3.1 / norm*: the derived bound at k = 1 on the guaranteed reading (matrix or operator), over the norm.
* *alignment*: pairs Linear, ReLU, Linear directly in a row, where theory defines it, up to 2^30 multiplications (the
  two of VGG16 are larger).
* *network*: product of the layers' norms through the graph (`graph_product`), every rounding enclosed. Residual nets at
  random initialisation have huge products: a bound, and vacuous.

{_reason_text(attention, reasons)}

All rows, both readings of convolutions, both parts of the theorem:

{files}

## Time and memory

One process a model, one thread, on a shared machine with 2 cores: CPU seconds are the figure to go by. Reading the
model (`torch.export`, a check of its outputs) is included. No convolution's operator is formed.

{cost}

The cost grows with the number of weights and, for convolutions, with the size of the images: a norm costs about
`frequencies · channels³`, the filters' numbers about `min(m, n)² max(m, n)` per matrix.
"""


def _network(m: dict[str, Any], norm: str) -> str:
    bound = m["network"][norm]["bound"]
    return "none (see below)" if bound is None else text.at_most(bound, 3)


def _reason_text(attention: Sequence[str], reasons: Sequence[str]) -> str:
    if not attention:
        return ""
    quoted = "\n>\n".join(f"> {reason}" for reason in reasons)
    return f"No bound of the network for {', '.join(attention)}; the report says why:\n\n{quoted}"


def render_example(data: dict[str, Any]) -> str:
    """docs/resnet18.md."""
    rows = data["rows"]
    norms = table(
        ("layer", "weight", "input", "kernel matrix (no guarantee)", "operator, from", "to", "operator / kernel",
         "with BatchNorm", "ℓ∞ of the operator (exact)"),
        [
            (
                f"`{r['name']}`", "x".join(map(str, r["shape"])), "x".join(map(str, r["input"])), g(r["kernel_2"], 4),
                rounded_down(r["norm_2"][0], 4), rounded_up(r["norm_2"][1], 4), g(r["factor_2"], 3),
                "-" if r["with_batchnorm"] is None else rounded_up(r["with_batchnorm"][0], 4),
                rounded_up(r["norm_inf"], 4),
            )
            for r in rows
        ],
    )  # fmt: skip
    theorem = table(
        ("layer", "reading", "k", "ε", "β", "bound of ℓ2", "/ norm", "sharp", "k", "ε", "β", "bound of ℓ∞", "/ norm"),
        [line for r in rows for line in _theorem_lines(r)],
    )
    attacks = table(
        ("norm", "δ", "accuracy", "under attack", "loss gap found (APGD)", "loss gap by the product of norms", "ratio"),
        [_attack_line(data, norm) for norm in ("2", "inf")],
    )
    widest = max(rows, key=lambda r: r["norm_2"][1] / r["norm_2"][0])
    gap = widest["norm_2"][1] / widest["norm_2"][0] - 1
    convs = [r for r in rows if r["factor_2"] is not None]
    two = data["attacks"]["2"]
    lipschitz = {norm: rounded_up(found["bound"]) for norm, found in data["network"].items()}
    below = sum(r["filters"]["spectral"]["bound"] < r["norm_2"][0] for r in convs)
    return f"""<!-- written by docs/real_models.py; do not edit -->
# A trained ResNet-18, layer by layer

The CIFAR-10 ResNet-18 that ships with `pyautoattack` (`examples/model_test.pt`; 3 x 3 stem, pixels in [0, 1]; trained,
not robust), read with `torch.load(weights_only=True)`. Weights: as given by the caller: pretrained.

```python
report = certbound.layer_report(
    model, input_shape=(3, 32, 32), weights="pretrained", dispersion="mean", share=0.1, tier="{data['tier']}"
)
print(report)
report.to_csv("layers.csv")
```

{data['cpu']:.0f} CPU seconds on one thread, {data['peak']:.2f} GiB at the peak. All numbers:
[layers/cifar.csv](layers/cifar.csv).

![norms and structure of every layer](pictures/resnet18.png)

## Norms: the kernel matrix is not the layer

{norms}

*Operator*: the linear map of the whole image at that size, zero padding and stride included; lower and upper bound are
proved, the largest gap between them is {gap:.1%} (`{widest['name']}`). *Kernel matrix*: the norm of the
`out x (in · kernel)` matrix, which the paper's statistics use: it is below the operator norm by a factor of up to
{max(r['factor_2'] for r in convs):.2f} here (never more than √9 = 3 for 3 x 3), so it **bounds nothing from above**.
*With BatchNorm*: convolution and the BatchNorm behind it as one map; these are the numbers that the network's bound
multiplies.

{_tight(data.get("tight", []))}## Theorem 3.1, in both readings

k is a tenth of the singular values and of the rows, β the mean dispersion, with which the bound does not depend on k.

{theorem}

*filters (no guarantee)*: Theorem 3.1 holds for the kernel matrix; it says nothing of the layer. On {below} of the
{len(convs)} convolutions its "bound" lies **below** the layer's true ℓ2 norm. *operator (guaranteed)*: the theorem for
the true linear map. Its rows are counted exactly, borders included. Its singular values are not known: where ε stands
with >=, k = 1 and a lower bound of the tail ratio enters, which the theorem allows (its bound falls in ε; the opposite,
"tail <= ε", proves nothing).

## The whole network

{attacks}

APGD ({two['steps']} steps, cross-entropy) on the {two['samples']} CIFAR-10 images that foolbox ships. The product of
norms through the graph (BatchNorm folded, residual blocks as `‖shortcut‖ + ‖F‖`) bounds the Lipschitz constant by
{lipschitz['2']} (ℓ2) and {lipschitz['inf']} (ℓ∞), rounding included. The loss gap
that it allows is `δ √2 L` in ℓ2, `2 δ L` in ℓ∞ (a difference of two logits). **It is vacuous**: true, proved, and
larger than what an attack finds by the factor in the last column. Norms of single layers cannot do better on a network
of this depth; what they are for is comparing layers, and models before and after compression.
"""


def _tight(layers: Sequence[dict[str, Any]]) -> str:
    """The section on the tight tier, from benchmarks/conv_norms.py --json."""
    if not layers:
        return ""
    rows = [
        (
            f"`{n['layer']}`", n["kernel"], rounded_down(n["lower"], 5), rounded_up(n["fast"], 5),
            f"{n['fast gap %']:.2f} %", rounded_up(n["tight"], 5), f"{n['tight gap %']:.2f} %", n["method"],
            f"{n['fast s']:.1f}", f"{n['tight s']:.1f}",
        )
        for n in layers
    ]  # fmt: skip
    head = ("layer", "kernel", "lower", "fast", "gap", "tight", "gap", "by", "fast, CPU s", "tight, CPU s")
    worst = max(n["tight gap %"] for n in layers)
    return f"""### The tight tier

`benchmarks/conv_norms.py`, one thread: `tier="tight"` leaves a gap of at most {worst:.2f} % on every layer.

{table(head, rows)}

"""


def _theorem_lines(r: dict[str, Any]) -> list[tuple[str, ...]]:
    own = "operator (guaranteed)" if r["filters"] else "matrix (guaranteed)"
    readings = [(own, r, r["norm_2"][1], r["norm_inf"])]
    if r["filters"]:
        readings.insert(0, ("filters (no guarantee)", r["filters"], r["kernel_2"], r["kernel_inf"]))
    lines: list[tuple[str, ...]] = []
    for name, source, two, inf in readings:
        s, n = source["spectral"], source["neuron"]
        lines.append(
            (
                "" if lines else f"`{r['name']}`", name, str(s["k"]), epsilon(s),
                g(s["beta"]), rounded_up(s["bound"]), g(s["bound"] / two), rounded_up(s["sharp"]),
                str(n["k"]), g(n["epsilon"]), g(n["beta"]), rounded_up(n["bound"]), g(n["bound"] / inf),
            )
        )  # fmt: skip
    return lines


def _attack_line(data: dict[str, Any], norm: str) -> tuple[str, ...]:
    found = data["attacks"][norm]
    product = allowed_gap(data["network"][norm]["bound"], found["delta"], norm)
    delta = "8/255" if norm == "inf" else g(found["delta"])
    return (
        "ℓ∞" if norm == "inf" else "ℓ2", delta, f"{found['clean']:.0%}", f"{found['robust']:.0%}",
        rounded_down(found["gap"], 4), text.at_most(product, 3), g(product / found["gap"], 2),
    )  # fmt: skip


def allowed_gap(lipschitz: float, delta: float, norm: str) -> float:
    """The loss gap that a Lipschitz bound of all logits together allows: a margin changes by ``δ L ‖e_j − e_y‖_*``."""
    return lipschitz * delta * (2.0 if norm == "inf" else math.sqrt(2.0))


def store_example(found: dict[str, Any]) -> None:
    """What is new replaces what was stored."""
    path = LAYERS / "cifar.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(stored | found, indent=1) + "\n", encoding="utf-8")


def render() -> None:
    """Both pages from the stored numbers."""
    for page, stored, write in PAGES:
        (DOCS / page).write_text(write(json.loads((LAYERS / stored).read_text(encoding="utf-8"))), encoding="utf-8")


PAGES = (("real_models.md", "models.json", render_models), ("resnet18.md", "cifar.json", render_example))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("measure", "one", "resnet18", "tight", "render"))
    parser.add_argument("names", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--no-rows", action="store_true", help="of `one`: print the figures, write nothing")
    parser.add_argument("--tier", default="fast", help="of the worked example")
    parser.add_argument("--norms", type=Path, help="of `tight`: what benchmarks/conv_norms.py --json has written")
    args = parser.parse_args()
    if args.action == "measure":
        measure_all(args.names or list(MODELS))
    elif args.action == "one":
        print(json.dumps(measure(args.names[0], rows=not args.no_rows)))
    elif args.action == "resnet18":
        store_example(example(args.tier))
    elif args.action == "tight":
        store_example({"tight": json.loads(args.norms.read_text(encoding="utf-8"))})
    else:
        render()


if __name__ == "__main__":
    main()
