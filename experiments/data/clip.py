"""CLIP from a local checkpoint, for zero-shot classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from certbound.errors import InputError, MissingDependencyError
from certbound.io.to_torch import import_torch
from certbound.io.weights_file import load_into, load_weights
from experiments.data.local import Root, folder, missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_OBTAIN: Final = (
    "save there the weights in open_clip's own format, for ViT-B-32 for example open_clip_model.safetensors of "
    "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
)


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model and what feeds it.

    Parameters
    ----------
    model : of open_clip, in eval mode on the CPU: ``encode_image``, ``encode_text``, ``logit_scale``.
    transform : a PIL image to pixels in [0, 1], shape (3, H, W): resized and cropped but not normalised.
    normalise : pixels to what ``model.encode_image`` takes. A module, so that it can be a layer of the attacked
        model: ``model.encode_image(normalise(pixels))``.
    tokenizer : texts to what ``model.encode_text`` takes.
    """

    model: nn.Module
    transform: Callable[[Any], Any]
    normalise: nn.Module
    tokenizer: Callable[[list[str]], Any]


def clip_model(root: Root, name: str = "ViT-B-32") -> Clip:
    """The open_clip model ``name`` with the weights of ``root/clip/NAME.safetensors``, else of ``root/clip/NAME.pt``.

    Nothing is downloaded: open_clip only builds the module and the tokenizer, which it has inside, and the weights are
    read by :func:`certbound.io.weights_file.load_weights`: no unpickling, every name and shape must fit.

    Two things no shape tells. Weights trained with QuickGELU (ViT-B/32 by OpenAI, of laion400m, MetaCLIP) need the name
    that ends in ``-quickgelu``. And ``normalise`` has OpenAI's mean and deviation, which all weights that open_clip
    lists for ViT-B/32 want; ViT-L-14 of laion2b was trained with 0.5 and 0.5. OpenAI's own ``ViT-B-32.pt`` is a
    TorchScript archive and is refused; the same weights are published as safetensors, in
    https://huggingface.co/timm/vit_base_patch32_clip_224.openai.

    Raises
    ------
    InputError : a name that open_clip does not have or that is no plain CLIP model with CLIP's own tokenizer (others
        would be fetched); no ``root``; no such file, one that is damaged, more than weights, or of another model.
    MissingDependencyError : open_clip is not installed.
    """
    torch = import_torch("CLIP models")
    open_clip = _import_open_clip()
    config = _plain_config(open_clip, name)
    base = folder("CLIP", root, (f"clip/{name}.safetensors", f"clip/{name}.pt"), _OBTAIN) / "clip"
    candidates = [base / f"{name}.safetensors", base / f"{name}.pt"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise missing(f"CLIP {name}", candidates, "one of the two", _OBTAIN)
    weights = load_weights(path, "root")
    with torch.random.fork_rng(devices=[]):  # open_clip draws initial weights from the global generator
        # not create_model: without a file of its own to load, it warns on the root logger that the weights are random
        model = open_clip.CLIP(**config)
    load_into(model, weights, "root")
    pipeline = open_clip.image_transform(model.visual.image_size, is_train=False)
    *pixels, normalise = pipeline.transforms
    return Clip(model.eval(), type(pipeline)(pixels), normalise, open_clip.get_tokenizer(name))


def _import_open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingDependencyError(
            "open_clip_torch", purpose="CLIP models", command="pip install open_clip_torch"
        ) from error
    return open_clip


def _plain_config(open_clip: Any, name: str) -> dict[str, Any]:
    """The sizes of a CLIP model that open_clip builds without a download; it has no names with a schema (hf-hub:)."""
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise InputError(
            "name", got=repr(name), needed="a model of open_clip.list_models()", fix="for example 'ViT-B-32'"
        )
    remote = any(key.startswith("hf_") for key in config["text_cfg"])  # text towers and tokenizers of Hugging Face
    if remote or "custom_text" in config:
        raise InputError(
            "name", got=f"{name!r}, with a text tower or tokenizer of its own", needed="a plain CLIP model",
            fix="for example 'ViT-B-32'",
        )  # fmt: skip
    return config
