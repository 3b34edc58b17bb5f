"""Files of named weights: safetensors, and torch state dicts read as weights only, never unpickled.

Such a file has no architecture. It goes into a module made by the user (:func:`load_into`, strict), or, if it holds
nothing but ``*.weight`` matrices and ``*.bias`` vectors in a known order, it is read as a ReLU network (:func:`chain`).
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from certbound.arrays import F64, as_float64, as_matrix
from certbound.errors import InputError, MissingDependencyError
from certbound.io.files import existing_file, listed, natural_key, numbered
from certbound.io.quantised import dequantise, from_torch
from certbound.network import Network

logger = logging.getLogger(__name__)

SAFETENSORS: Final = (".safetensors",)
TORCH: Final = (".pt", ".pth", ".bin", ".ckpt")

_NUMPY_TYPES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_SAFE_TORCH: Final = (2, 6)
_NESTED: Final = ("state_dict", "model_state_dict", "model")
_FACTORY: Final = "pass --model file.py:factory (in Python: load_into(module, …)), whose module the weights go into"


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """Named float64 arrays, every number as stored (quantised ones dequantised).

    ``ordered``: the order of the names is that in which the module defined its layers (torch state dicts). A
    safetensors file has no order; its names are sorted as people count.
    """

    path: Path
    arrays: Mapping[str, F64] = field(repr=False)
    ordered: bool


def load_weights(path: str | os.PathLike[str], argument: str = "weights") -> WeightsFile:
    """Read a ``.safetensors`` file or a torch state dict (``.pt``, ``.pth``, ``.bin``, ``.ckpt``).

    Quantised weights become ``scale · (q − zero_point)``: torch's quantised tensors, and integer tensors ``NAME`` with
    ``NAME_scale`` and, where there is one, ``NAME_zero_point`` beside them (one number, or one per row).

    Raises
    ------
    InputError : no such file, another format, a damaged file, one that needs unpickling, integer weights without
        their scale, values that are NaN or infinite. MissingDependencyError : safetensors or torch is missing.
    """
    file = existing_file(path, argument)
    suffix = file.suffix.lower()
    if suffix in SAFETENSORS:
        raw, ordered = _read_safetensors(file, argument), False
    elif suffix in TORCH:
        raw, ordered = _read_torch(file, argument), True
    else:
        raise InputError(
            argument,
            got=f"{file.name}",
            needed="a file named *.safetensors, *.pt, *.pth, *.bin or *.ckpt, or *.npy and *.npz with matrices",
            fix="save the weights with safetensors, or with torch.save(model.state_dict(), 'w.pt')",
        )
    if not raw:
        raise InputError(argument, got=f"{file.name} without tensors", needed="weights", fix="check how it was saved")
    return WeightsFile(file, MappingProxyType(_dequantised(raw, argument)), ordered)


# -- reading: name -> (array, is it an array of integers?) ------------------------------------------------------------


def _read_safetensors(file: Path, argument: str) -> dict[str, tuple[F64, bool]]:
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise MissingDependencyError(
            "safetensors", purpose="reading safetensors files", command="pip install 'certbound[io]'"
        ) from error
    try:
        tensors = deserialize(file.read_bytes())
    except SafetensorError as error:
        raise InputError(
            argument, got=f"{file.name}, which is no safetensors file ({error})", needed="a whole safetensors file",
            fix="write or download it again",
        ) from error  # fmt: skip
    raw: dict[str, tuple[F64, bool]] = {}
    for name, tensor in sorted(tensors, key=lambda t: natural_key(t[0])):  # they come in a random order
        dtype, data, shape = tensor["dtype"], tensor["data"], tuple(tensor["shape"])
        if dtype == "BF16":  # the upper half of a float32
            bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
            array: Any = bits.view(np.float32)
        elif dtype in _NUMPY_TYPES:
            array = np.frombuffer(data, _NUMPY_TYPES[dtype])
        else:
            raise InputError(
                argument, got=f"{name} of dtype {dtype} in {file.name}",
                needed=f"BF16 or {listed([*_NUMPY_TYPES], 20)}", fix="convert it to float32",
            )  # fmt: skip
        raw[name] = (as_float64(array.reshape(shape), name), dtype[0] in "IU")
    return raw


def _read_torch(file: Path, argument: str) -> dict[str, tuple[F64, bool]]:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "torch", purpose="reading a torch state dict", command="pip install 'certbound[torch]'"
        ) from error
    if _version(torch.__version__) < _SAFE_TORCH:
        raise InputError(
            argument,
            got=f"a torch file, and torch {torch.__version__}",
            needed="torch >= 2.6: before it weights_only=True could be made to run code (CVE-2025-32434)",
            fix="upgrade torch, or save the weights as safetensors",
        )
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            argument,
            got=f"{file.name}, which is more than weights: reading it would run code that is in the file, or it is "
            "damaged",
            needed="a state dict; nothing is ever unpickled",
            fix="write it with torch.save(model.state_dict(), path) or with safetensors, where you trust the file",
        ) from error
    except Exception as error:  # torch's unpickler raises what it likes on damaged bytes
        script = "TorchScript" in str(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            argument,
            got=f"{file.name}, a TorchScript archive" if script else f"{file.name}, which torch cannot read ({reason})",
            needed="a state dict",
            fix="write it with torch.save(model.state_dict(), path)",
        ) from error
    return _tensors(loaded, file, argument)


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version; ``(0, 0)`` for what is none.

    >>> _version("2.10.1+cu128")
    (2, 10)
    """
    parts = text.split("+")[0].split(".")[:2]
    return tuple(int(p) for p in parts) if len(parts) == 2 and all(p.isdigit() for p in parts) else (0, 0)


def _tensors(loaded: object, file: Path, argument: str) -> dict[str, tuple[F64, bool]]:
    import torch

    state: Any = loaded
    if isinstance(loaded, Mapping):
        inside = [k for k in _NESTED if isinstance(loaded.get(k), Mapping)]
        if len(inside) == 1:  # a checkpoint: weights beside epochs and optimiser states
            beside = sorted(str(k) for k, v in loaded.items() if isinstance(v, torch.Tensor))
            if beside:
                raise InputError(
                    argument,
                    got=f"{file.name}, with weights under {inside[0]!r} and the tensors {beside[:5]} beside them",
                    needed="one set of weights",
                    fix="save the state dict alone, or move the other tensors out of the top level",
                )
            logger.info("%s: taking the weights under %r", file.name, inside[0])
            state = loaded[inside[0]]
    if not isinstance(state, Mapping):
        raise InputError(
            argument, got=f"{file.name} with a {type(state).__name__}", needed="a dictionary of named tensors",
            fix="write it with torch.save(model.state_dict(), path)",
        )  # fmt: skip
    packed = [str(k) for k in state if "_packed_params" in str(k)]
    if packed:
        raise InputError(
            argument,
            got=f"the weights of a quantised torch module ({listed(packed)})",
            needed="a network that is a chain of affine maps and ReLU: a quantised module also rounds activations",
            fix="for a claim about weight-only quantisation dequantise the weights and save those",
        )
    raw: dict[str, tuple[F64, bool]] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                argument, got=f"{key!r}, a {type(value).__name__}, in {file.name}",
                needed="named tensors only (or a checkpoint with a 'state_dict')",
                fix="write it with torch.save(model.state_dict(), path)",
            )  # fmt: skip
        if value.is_quantized:
            raw[key] = (from_torch(value, key), False)
        else:
            raw[key] = (as_float64(value, key), not (value.is_floating_point() or value.dtype is torch.bool))
    return raw


def _dequantised(raw: Mapping[str, tuple[F64, bool]], argument: str) -> dict[str, F64]:
    """Integer weights times their scales; integers without one stay integers, unless they are called a weight."""
    used: set[str] = set()
    arrays: dict[str, F64] = {}
    for name, (values, integer) in raw.items():
        scale, zero = raw.get(f"{name}_scale"), raw.get(f"{name}_zero_point")
        if not integer or name.endswith("_zero_point"):
            arrays[name] = values
        elif scale is not None:
            used |= {f"{name}_scale", f"{name}_zero_point"}
            rows = len(values) if values.ndim else 1
            vectors = [scale[0], np.zeros(()) if zero is None else zero[0]]
            for array, what in zip(vectors, ("scale", "zero_point"), strict=True):
                if array.size != 1 and array.shape not in ((rows,), (rows, 1)):
                    raise InputError(
                        f"{name}_{what}", got=f"shape {array.shape}", needed=f"one number, or one per row: ({rows},)",
                        fix="dequantise other schemes yourself, with certbound.io.quantised.dequantise",
                    )  # fmt: skip
            arrays[name] = dequantise(
                values, vectors[0].reshape(-1), vectors[1].reshape(-1), axis=0 if values.ndim else None
            )
        elif name.split(".")[-1] == "weight":
            raise InputError(
                argument,
                got=f"{name}, integers without a scale",
                needed=f"{name}_scale (and {name}_zero_point unless it is 0) beside it",
                fix="store the scale, or dequantise the weights first",
            )
        else:
            arrays[name] = values
    return {name: values for name, values in arrays.items() if name not in used}


# -- no architecture: a plain chain -----------------------------------------------------------------------------------


def _foreign(name: str, values: F64) -> str | None:
    """Why a tensor belongs to no plain chain; None if it may."""
    leaf = name.split(".")[-1]
    if leaf in ("running_mean", "running_var", "num_batches_tracked"):
        return "statistics of a batch normalisation"
    if leaf in ("weight_orig", "weight_mask", "weight_g", "weight_v", "original0", "original1", "weight_u"):
        return "parts of a weight that is computed (pruning, weight or spectral norm)"
    if leaf == "weight":
        if values.ndim in (3, 4, 5):
            return f"a convolution's kernel of shape {values.shape}, whose stride and padding are not in the file"
        return None if values.ndim == 2 else f"a weight of shape {values.shape}, of a normalisation layer perhaps"
    if leaf == "bias":
        return None if values.ndim == 1 else f"a bias of shape {values.shape}"
    return "neither a .weight nor a .bias"


def chain(weights: WeightsFile, argument: str = "weights") -> dict[str, tuple[F64, F64 | None]]:
    """Matrices with their biases (or None), first layer first, of a file that holds nothing else.

    The order is that of the numbers in the names (``0.weight``, ``2.weight``; ``fc1.weight``, ``fc2.weight``); a torch
    state dict may have other names, and its own order counts. What leaves a doubt is refused.

    Raises
    ------
    InputError : other tensors in the file, named with what they are; names that give no order.
    """
    reasons = {name: _foreign(name, values) for name, values in weights.arrays.items()}
    strange = [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]
    prefixes = list(dict.fromkeys(name.rpartition(".")[0] for name in weights.arrays))
    names = {p: tuple(f"{p}.{leaf}" if p else leaf for leaf in ("weight", "bias")) for p in prefixes}
    strange += [f"{bias} (a bias without a weight)" for w, bias in names.values() if w not in weights.arrays]
    if strange:
        raise InputError(
            argument,
            got=f"{weights.path.name} with {listed(strange, 3)}",
            needed="matrices *.weight and vectors *.bias only: a file of weights has no architecture",
            fix=_FACTORY,
        )
    counted = sorted(prefixes, key=natural_key)
    if counted != prefixes if numbered(prefixes) else not weights.ordered:
        raise InputError(
            argument,
            got=f"layers named {listed(prefixes)}: their order of application is not known",
            needed="names that differ in their numbers only, in the order of the file: it has no architecture",
            fix=_FACTORY,
        )
    return {
        names[p][0]: (as_matrix(weights.arrays[names[p][0]], names[p][0]), weights.arrays.get(names[p][1]))
        for p in prefixes
    }


def to_network(weights: WeightsFile, argument: str = "weights") -> Network:
    """The ReLU network of :func:`chain`: a ReLU between each two matrices, none after the last."""
    found = chain(weights, argument)
    try:
        network = Network.from_weights([w for w, _ in found.values()], [b for _, b in found.values()])
    except InputError as error:
        raise InputError(
            argument, got=f"layers {listed(list(found))} that are no chain ({error})",
            needed="widths that chain: a file of weights has no architecture", fix=_FACTORY,
        ) from error  # fmt: skip
    logger.info(
        "%s: read as a ReLU network of %s, without a ReLU after the last", weights.path.name, listed(list(found))
    )
    return network


# -- into a module of the user ----------------------------------------------------------------------------------------


def load_into(module: Any, weights: WeightsFile, argument: str = "weights") -> Any:
    """Put the weights into an ``nn.Module``, strictly and without rounding; returns the module.

    Every name must be there on both sides, with the same shape. Numbers that the module's dtype cannot hold (float64
    weights, dequantised ones) turn the module into a float64 one.

    Raises
    ------
    InputError : missing or unexpected names, other shapes, named; fractions for an integer buffer.
    """
    import torch

    targets: dict[str, Any] = module.state_dict(keep_vars=True)
    missing = [n for n in targets if n not in weights.arrays]
    unexpected = [n for n in weights.arrays if n not in targets]
    shapes = [
        f"{n} {weights.arrays[n].shape} for {tuple(getattr(t, 'shape', ()))}"
        for n, t in targets.items()
        if n in weights.arrays and tuple(getattr(t, "shape", ())) != weights.arrays[n].shape
    ]
    extra = [n for n, t in targets.items() if not isinstance(t, torch.Tensor)]
    if extra:
        raise InputError(
            "model", got=f"a module with extra state ({listed(extra)})", needed="tensors only",
            fix="leave the file out and let the factory load it",
        )  # fmt: skip
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if missing or unexpected or shapes:
        raise InputError(
            argument,
            got=f"{weights.path.name} that does not fit: "
            + "; ".join(f"{what}: {listed(names)}" for what, names in problems if names),
            needed="exactly the weights of the model that the factory makes",
            fix="check the factory's sizes, and which model the file was saved from",
        )
    exact = {n: torch.from_numpy(np.array(a)) for n, a in weights.arrays.items()}
    if any(t.is_floating_point() and not _holds(t.dtype, exact[n]) for n, t in targets.items()):
        logger.info("%s: the model is run in float64, since its dtype cannot hold these weights", weights.path.name)
        module.to(torch.float64)
        targets = module.state_dict(keep_vars=True)
    for name, target in targets.items():
        if not _holds(target.dtype, exact[name]):
            raise InputError(
                name, got="numbers with a fraction", needed=f"integers, for a buffer of dtype {target.dtype}",
                fix="check the file",
            )  # fmt: skip
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(exact[name])
    tied = [name for name, target in targets.items() if not torch.equal(target.to(torch.float64), exact[name])]
    if tied:
        raise InputError(
            argument, got=f"{weights.path.name} with two values for one tensor of the model ({listed(tied)})",
            needed="equal values where the model shares a weight", fix="check which model the file was saved from",
        )  # fmt: skip
    return module


def _holds(dtype: Any, values: Any) -> bool:
    """True if every number of a float64 tensor has a place in ``dtype``."""
    import torch

    return bool(torch.equal(values.to(dtype).to(torch.float64), values))


__all__ = ["SAFETENSORS", "TORCH", "WeightsFile", "chain", "load_into", "load_weights", "to_network"]
