"""Loads a model folder: checked before anything heavy starts, safetensors only, no code of the folder is run.

Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from vtprune.model_folder import (
    EMBEDDED,
    EMBEDDED_MODELS,
    EMBEDDED_VIDEO,
    ModelError,
    brief,
    check_folder,
    model_folder,
)

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to generate, and its processor.

    name: as it was asked for. embedded: whether it is one that ships with vtprune.
    """

    name: str
    model: nn.Module
    processor: Any
    embedded: bool

    @property
    def model_type(self) -> str:
        return self.model.config.model_type


def load(
    name: str | Path = EMBEDDED, *, dtype: str = "auto", device: str = "auto", attention: str | None = None
) -> Loaded:
    """The model and processor of a folder, or an embedded one.

    name:      a folder in the format of ``save_pretrained``, or "embedded", which is "embedded-image", or
               "embedded-video".
    dtype:     "auto" (float32 on a CPU, else what the weights are stored in), "float32", "bfloat16" or "float16".
    device:    "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", "mps".
    attention: "sdpa", "eager", "flash_attention_2" or "flex_attention"; transformers' choice if None.
    Raises ModelError; NotImplementedError for a family that vtprune does not know.
    """
    place = read_device(device)
    kind = read_dtype(dtype, place)
    if attention is not None and attention not in ATTENTION:
        raise ModelError(f"unknown attention {attention!r}; known: {', '.join(ATTENTION)}")
    folder = model_folder(name)
    clips = str(name) == EMBEDDED_VIDEO
    check_folder(folder, processor=not clips)
    processor = clip_processor(folder) if clips else load_processor(folder)
    model = load_weights(folder, kind, attention)
    try:
        model = model.to(place)
    except torch.OutOfMemoryError as error:
        size = sum(parameter.nbytes for parameter in model.parameters())
        raise ModelError(
            f"the weights of {name} take {size:,} bytes and do not fit on {place}; use --dtype bfloat16 or --device cpu"
        ) from error
    return Loaded(str(name), model.eval(), processor, str(name) in EMBEDDED_MODELS)


def read_device(text: str) -> torch.device:
    """A device that is there. Raises ModelError with those that are."""
    here = ["cpu"]
    here += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    here += ["mps"] if torch.backends.mps.is_available() else []
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if text in here or (text == "cuda" and torch.cuda.is_available()):
        return torch.device(text)
    if text.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        why = "no GPU is found" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise ModelError(f"there is no device {text!r}: {why}; use --device cpu, or install a torch built for your GPU")
    raise ModelError(f"there is no device {text!r}; there are auto, {', '.join(here)}")


def read_dtype(text: str, device: torch.device) -> torch.dtype | str:
    """The dtype of a name; "auto" stays "auto" except on a CPU. Raises ModelError with the names that are known."""
    if text not in DTYPES:
        raise ModelError(f"unknown dtype {text!r}; known: {', '.join(DTYPES)}")
    if text == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, text)


def load_processor(folder: Path):
    """The processor of a folder: tokenizer and image processor. Raises ModelError."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        named = [name for name in ("torchvision", "num2words", "sentencepiece") if name in str(error).lower()]
        hint = f"pip install {named[0]}" if named else "install what it names"
        if named[:1] == ["torchvision"]:
            hint += " (the version that fits your torch)"
        raise ModelError(
            f"the processor of {folder} needs a package that is missing: {brief(error)}; {hint}"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{folder} holds no processor that can be loaded: {brief(error)}; it needs tokenizer.json, "
            "tokenizer_config.json and processor_config.json (or preprocessor_config.json) of its model"
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(
            f"{folder} gives a {type(processor).__name__} without pictures; add processor_config.json (or "
            "preprocessor_config.json) of its model"
        )
    return processor


def clip_processor(folder: Path):
    """The processor of the embedded video model, which is no class of transformers. Raises ModelError."""
    from vtprune.embedded.video_processor import ClipProcessor

    try:
        return ClipProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{folder} holds no tokenizer that can be loaded: {brief(error)}; install vtprune again"
        ) from error


def load_weights(folder: Path, dtype: torch.dtype | str, attention: str | None = None) -> nn.Module:
    """The model of a folder, on the CPU. Raises ModelError, also for weights that are missing or of another shape."""
    from transformers import AutoModelForImageTextToText

    more = {} if attention is None else {"attn_implementation": attention}
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
    except SafetensorError as error:
        raise ModelError(f"the weights in {folder} are damaged: {brief(error)}; download them again") from error
    except (ImportError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {brief(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__}, for instance {missing[0]}, which would "
            "be random; check that config.json belongs to these weights"
        )
    return model
