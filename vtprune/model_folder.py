"""A model folder, checked before anything heavy starts: what is missing, damaged or of another format is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

EMBEDDED, EMBEDDED_IMAGE, EMBEDDED_VIDEO = "embedded", "embedded-image", "embedded-video"
"""The names of the models that ship with vtprune; "embedded" alone is that of pictures."""

EMBEDDED_MODELS = (EMBEDDED, EMBEDDED_IMAGE, EMBEDDED_VIDEO)

# what weights that are not safetensors are called
_OTHER_WEIGHTS = frozenset(".bin .pt .pth .ckpt .pkl .pickle .npz .npy .h5 .msgpack .gguf .onnx".split())
# what tokenizers and picture processors are saved as
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class ModelError(ValueError):
    """A folder, device or dtype from which no model can be loaded; the message names it and the next step."""


def model_folder(name: str | Path) -> Path:
    """The folder of a model. Raises ModelError where there is none, with what to do."""
    if str(name) in EMBEDDED_MODELS:
        return _embedded_folder(str(name))
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        pickled = _pickled([folder])
        raise ModelError(f"{name} is a file{pickled or '; give the folder that holds it, with config.json beside it'}")
    if _HUB_NAME.fullmatch(str(name)):
        raise ModelError(
            f"there is no folder {name}; vtprune loads folders and downloads nothing. If it is a name on the Hugging "
            f"Face Hub: hf download {name} --local-dir {folder.name}, then --model {folder.name}"
        )
    raise ModelError(
        f"there is no folder {name}; give a model folder (config.json, *.safetensors, processor) or one of "
        f"{', '.join(map(repr, EMBEDDED_MODELS))}"
    )


def _embedded_folder(name: str) -> Path:
    from vtprune.embedded import image_path, video_path

    folder = video_path() if name == EMBEDDED_VIDEO else image_path()
    if not folder.is_dir():
        raise ModelError(
            f"this installation holds no embedded model (vtprune/embedded/{folder.name} is missing); install vtprune "
            "again, or give a model folder: --model FOLDER"
        )
    return folder


def check_folder(folder: Path, *, processor: bool = True) -> None:
    """Raises for a folder that cannot be loaded, before anything heavy happens.

    processor: whether the folder holds that of its pictures and clips, and not the tokenizer alone.
    ModelError: files that are missing, damaged or of another format. NotImplementedError: an unknown family.
    """
    config = _json(folder, "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{folder}/config.json names no model_type; this is no folder of a transformers model")
    check_family(model_type, str(folder))
    for path in _weight_files(folder):
        _check_weights(path)
    needed = [("tokenizer", _TOKENIZERS), *([("picture processor", _PROCESSORS)] if processor else [])]
    for what, names in needed:
        if not any((folder / name).is_file() for name in names):
            raise ModelError(f"{folder} has no {what} ({' or '.join(names[:2])}); copy it from where the model is from")
    if (folder / "tokenizer.json").is_file():
        _json(folder, "tokenizer.json")


def check_family(model_type: str, where: str) -> None:
    """Raises NotImplementedError, with the families that are known, for one that is not."""
    from vtprune import families  # noqa: F401 (importing registers them)
    from vtprune.families.base import FAMILIES

    if model_type not in FAMILIES:
        raise NotImplementedError(
            f"{where} holds a model of type {model_type!r}, and vtprune has no family for it; it knows "
            f"{', '.join(sorted(FAMILIES))}. A new one is a file of about 30 lines: see vtprune/families/base.py"
        )


def _json(folder: Path, name: str) -> dict:
    path = folder / name
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} holds an adapter; merge it into its base model and give the folder of that")
        raise ModelError(f"{folder} has no {name}; give the folder of a model, as save_pretrained writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {brief(error)}; save or download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object; save or download it again")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, or all."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        others = sorted(path for path in folder.iterdir() if path.suffix.lower() in _OTHER_WEIGHTS)
        raise ModelError(f"{folder} has no *.safetensors{_pickled(others) or '; give a folder that holds the weights'}")
    if (folder / "model.safetensors").is_file() or not (folder / "model.safetensors.index.json").is_file():
        return found
    shards = _json(folder, "model.safetensors.index.json").get("weight_map")
    shards = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing or not shards:
        what = f"{len(missing)} of {len(shards)} files of weights are missing: {', '.join(missing[:3])}"
        raise ModelError(f"{folder}: {what if shards else 'the index of weights is empty'}; download them again")
    return [folder / name for name in shards]


def _pickled(paths: list[Path]) -> str:
    named = [path.name for path in paths if path.suffix.lower() in _OTHER_WEIGHTS]
    if not named:
        return ""
    return (
        f"; {', '.join(named[:3])}: vtprune reads safetensors only, never pickles, which can run code. Where you trust "
        "the file, load it with transformers and convert it to safetensors with model.save_pretrained(folder)"
    )


def _check_weights(path: Path) -> None:
    """Raises ModelError unless a file is whole safetensors, by its header and length."""
    try:
        with path.open("rb") as file:
            start = file.read(24)
        if start.startswith(b"version https://git-lfs"):
            raise ModelError(f"{path} is a Git LFS pointer, not the weights; run git lfs pull in its folder")
        with safe_open(path, "pt") as tensors:
            if not len(tensors.keys()):
                raise ModelError(f"{path} holds no tensors; save or download it again")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or no safetensors: {brief(error)}; save or download it again") from error


def brief(error: BaseException, limit: int = 240) -> str:
    """The text of another library's error, on one line and not too long, to be put into one of ours."""
    text = " ".join(str(error).split()).rstrip(".;: ") or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
