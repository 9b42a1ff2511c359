"""Reading golden cases: arrays that the authors' released code computed once on fixed inputs."""

from pathlib import Path

import numpy as np
import torch

BF16 = "__bf16_as_f32"


def load(path: Path) -> dict:
    """The arrays of an .npz as tensors, bfloat16 ones restored; texts stay NumPy arrays."""
    with np.load(path, allow_pickle=False) as case:
        arrays = {name: case[name] for name in case.files}
    values = {}
    for name, array in arrays.items():
        if array.dtype.kind == "U":
            values[name] = array
        elif name.endswith(BF16):
            values[name.removesuffix(BF16)] = torch.from_numpy(array).bfloat16()
        else:
            values[name] = torch.from_numpy(array)
    return values


def weights(case: dict) -> dict:
    """The state dict stored under ``w:``."""
    return {name.removeprefix("w:"): value for name, value in case.items() if name.startswith("w:")}
