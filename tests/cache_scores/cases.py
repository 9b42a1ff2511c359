"""Golden cases of the KV cache, as .json or .npz, and attention maps as queries and keys that have them."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def case(path: Path) -> dict:
    """Arrays by name, of dicts in it by "outer/inner"; lists of unequal lengths are filled up with -1."""
    if path.with_suffix(".json").exists():
        arrays = flat(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    else:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    return {name: torch.from_numpy(array) if array.ndim else array.item() for name, array in arrays.items()}


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        else:
            if isinstance(value, list) and isinstance(value[0], list) and len({len(row) for row in value}) > 1:
                value = [row + [-1] * (max(map(len, value)) - len(row)) for row in value]
            array = np.asarray(value)
            found[prefix + name] = array.astype(np.float32) if array.ndim and array.dtype.kind == "f" else array
    return found


def cases(folder: Path) -> list[dict]:
    return [case(path) for path in sorted({path.with_suffix("") for path in folder.iterdir() if path.suffix != ".md"})]


def asked(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, H, R, N) and keys (B, H, N, N) whose attention with scale 1 is this, (B, H, R, N)."""
    n = attention.shape[-1]
    return attention.log().clamp(min=-1e9), torch.eye(n).expand(*attention.shape[:2], n, n)


def random_attention(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).softmax(-1).to(dtype)
