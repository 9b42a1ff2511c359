"""One question, asked in one place: does this call run in Triton? And for people: which way, and why."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None


def use_triton(*tensors: Tensor) -> bool:
    """All tensors are on one device where kernels run (see ``backend``), and no gradient is wanted.

    The kernels have no backward pass: where autograd would record the call, the reference runs.
    """
    devices = {t.device for t in tensors}
    if len(devices) != 1 or _choice(devices.pop().type)[0] == "reference":
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def backend(device: torch.device | str | None = None) -> str:
    """Which way calls on tensors of ``device`` go; None asks for CUDA where there is a GPU, and for the CPU elsewhere.

    "triton":             compiled kernels: CUDA tensors, triton is installed.
    "triton-interpreter": kernels in Triton's interpreter, slowly, to look for faults: TRITON_INTERPRET=1 is set, which
                          has to be so before triton is imported; CPU tensors need VTPRUNE_INTERPRET=1 beside it.
    "reference":          plain torch: no triton, a CPU, or VTPRUNE_REFERENCE=1, which decides over all others.
    """
    return _choice(_device_type(device))[0]


def backend_reason(device: torch.device | str | None = None) -> str:
    """Why ``backend`` answers as it does, in words."""
    return _choice(_device_type(device))[1]


def _device_type(device: torch.device | str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def _choice(device_type: str) -> tuple[str, str]:
    if _is_set("VTPRUNE_REFERENCE"):
        return "reference", "VTPRUNE_REFERENCE is set"
    if not HAS_TRITON:
        return "reference", "triton is not installed; the extra vtprune[kernels] brings it"
    interpreted = _is_set("TRITON_INTERPRET")
    if device_type == "cuda":
        if interpreted:
            return "triton-interpreter", "TRITON_INTERPRET is set: kernels are interpreted, not compiled"
        return "triton", "triton is installed, and tensors are on a CUDA device"
    if interpreted and device_type == "cpu" and _is_set("VTPRUNE_INTERPRET"):
        return "triton-interpreter", "TRITON_INTERPRET and VTPRUNE_INTERPRET are set"
    return "reference", f"tensors are on {device_type}, and kernels run on CUDA devices"


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")
