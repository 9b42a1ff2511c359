"""What makes answers comparable: model, tasks, conditions, settings and code of a run, and what of them has changed."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vtprune.bench.condition import Condition

FORMAT = 1

FREE = frozenset({"limit", "batch", "engine", "workers", "gpus_per_worker", "address", "data", "times", "threads"})
"""Settings that may differ between runs into one folder: they say which questions are asked, and how they are shared
out, and change an answer by rounding at most. Each row says how many samples went in together."""

WHOLE, PIECE, PIECES = 1 << 26, 1 << 16, 64
"""Bytes of a file of weights up to which all of it is read; of larger ones so many pieces of so many bytes."""

# what says how prompts are written and pictures are prepared, beside config.json
_SPEECH = ("*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class Identity:
    """What ``run.json`` says of a run.

    model:      name, model_type, parameters, dtype, device, attention, and a digest of the weights.
    tasks:      {spec: {"name", "revision", "questions", "source", "metric", "visual"}}.
    conditions: each with its own name. settings: of all answers. code: version, commit, digest.
    versions:   of packages. command: the command line.
    """

    model: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    conditions: Sequence[Condition]
    settings: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def values(self) -> dict[str, Any]:
        """As ``run.json`` holds it."""
        about = {"model": dict(self.model), "tasks": {spec: dict(task) for spec, task in self.tasks.items()}}
        conditions = [condition.values() for condition in self.conditions]
        more = {"settings": dict(self.settings), "code": dict(self.code), "versions": dict(self.versions)}
        values = {"format": FORMAT, **about, "conditions": conditions, **more, "command": self.command}
        # tuples become the lists that they are when read again
        return json.loads(json.dumps(values))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has changed between two ``values()`` so that their answers cannot stand in one table, in words.

    Tasks and conditions that only one of them has are no difference.
    """
    found = list(_changed("model", old["model"], new["model"], ("weights", "dtype", "attention")))
    found += _changed("model", *({"device": _kind(run["model"].get("device"))} for run in (old, new)), ("device",))
    for spec in old["tasks"].keys() & new["tasks"].keys():
        found += _changed(f"task {spec}", old["tasks"][spec], new["tasks"][spec], ("revision",))
    before, after = ({Condition.of(one).name: one for one in run["conditions"]} for run in (old, new))
    for name in [name for name in before if name in after]:
        found += _changed(f"condition {name}", before[name], after[name])
    settings = [{k: v for k, v in run["settings"].items() if k not in FREE} for run in (old, new)]
    found += _changed("setting", *settings)
    found += _changed("code", old["code"], new["code"], ("digest",))
    # the interpreter computes nothing of an answer
    versions = [{k: v for k, v in run["versions"].items() if k != "python"} for run in (old, new)]
    return found + list(_changed("package", *versions))


def _changed(what: str, old: Mapping, new: Mapping, names: Sequence[str] | None = None) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()) if names is None else names:
        if old.get(name) != new.get(name):
            yield f"{what} {name}: was {_shown(old.get(name))}, is {_shown(new.get(name))}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def _kind(device: Any) -> Any:
    """A device without its number."""
    return device.partition(":")[0] if isinstance(device, str) else device


@cache
def code_digest() -> str:
    """Sixteen digits that change with any Python file of vtprune or vtprune_kernels, as they were first looked at."""
    import vtprune
    import vtprune_kernels

    return files_digest([Path(package.__file__).parent for package in (vtprune, vtprune_kernels)])


def files_digest(folders: Sequence[Path]) -> str:
    """Sixteen digits that change with any Python file in the folders, or its name."""
    sha = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            content = path.read_bytes()
            sha.update(f"{name} {len(content)}\n".encode() + content)
    return sha.hexdigest()[:16]


def weights_digest(folder: Path) -> str:
    """Sixteen digits that change with a model folder's weights, its config, its tokenizer or its processor.

    Of large files of weights the name, the size, the header and pieces all over it are read: another model or another
    training is noticed for certain, a few bytes changed by hand in between are not.
    """
    sha = hashlib.sha256()
    for path in sorted({path for pattern in _SPEECH for path in folder.glob(pattern)}):
        content = path.read_bytes()
        sha.update(f"{path.name} {len(content)}\n".encode() + content)
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        sha.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start, length in _stretches(size, _header_end(file)):
                file.seek(start)
                sha.update(file.read(length))
    return sha.hexdigest()[:16]


def _stretches(size: int, header: int) -> list[tuple[int, int]]:
    """(start, length) of what is read of a file of weights."""
    if size <= WHOLE:
        return [(0, size)]
    last = size - PIECE
    return [(0, min(header, size)), *((last * i // (PIECES - 1), PIECE) for i in range(PIECES))]


def _header_end(file) -> int:
    """Where the header of a safetensors file ends: eight bytes with its length, then so many of JSON."""
    start = file.read(8)
    return 8 + struct.unpack("<Q", start)[0] if len(start) == 8 else len(start)


def stored_parameters(folder: Path) -> int:
    """How many numbers the safetensors files of a model folder hold."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return total


def describe_model(name: str, dtype: str = "auto", device: str = "auto", attention: str | None = None) -> dict:
    """What ``Identity.model`` says of a model, from its folder alone; arguments as ``vtprune.models.load`` takes them.

    Raises ModelError and NotImplementedError for what could not be loaded.
    """
    from vtprune.model_folder import EMBEDDED_VIDEO, check_folder, model_folder
    from vtprune.models import read_device, read_dtype

    place = read_device(device)
    kind = read_dtype(dtype, place)
    folder = model_folder(name)
    check_folder(folder, processor=name != EMBEDDED_VIDEO)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = config.get("dtype") or config.get("torch_dtype") or "auto"
    return {
        "name": name,
        "model_type": config["model_type"],
        "parameters": stored_parameters(folder),
        "dtype": stored if kind == "auto" else str(kind).removeprefix("torch."),
        "device": str(place),
        "attention": attention or "auto",
        "weights": weights_digest(folder),
    }
