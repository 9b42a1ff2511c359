"""transition: how much a module changes each token, by length and by direction."""

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton
from vtprune_kernels.frame_similarity import BLOCK_BYTES, DEVICE_BLOCK_BYTES, KERNEL_DTYPES

COSINE_EPS = 1e-8
"""From below, of each norm in the cosine."""


def transition_reference(x: Tensor, out: Tensor, real: Tensor | None = None, *, unsigned: bool = False) -> Tensor:
    """What ``transition`` means, in torch."""
    length, out_length, dot = _lengths(x.flatten(0, 1), out.flatten(0, 1))
    cosine = dot / (length.clamp(min=COSINE_EPS) * out_length.clamp(min=COSINE_EPS))
    turn = (1 - (cosine.abs() if unsigned else cosine)).exp().view(x.shape[:2])
    magnitude = (out_length / length.clamp(min=torch.finfo(length.dtype).tiny)).view(x.shape[:2])
    if real is None:
        return magnitude * (turn / turn.sum(1, keepdim=True))
    share = turn / turn.masked_fill(~real, 0).sum(1, keepdim=True)
    return torch.where(real, magnitude * share, 0)


def _lengths(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) each: the norms of the rows of ``x`` and of ``out`` (N, D), and their products; block by block."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length, out_length, dot = (torch.zeros(len(x), dtype=dtype, device=x.device) for _ in range(3))
    room = BLOCK_BYTES if x.device.type == "cpu" else DEVICE_BLOCK_BYTES
    step = max(1, room // max(1, x.shape[1] * dot.element_size()))
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        a, b = x[block].to(dtype), out[block].to(dtype)
        length[block], out_length[block], dot[block] = a.norm(dim=-1), b.norm(dim=-1), (a * b).sum(-1)
    return length, out_length, dot


def transition(x: Tensor, out: Tensor, real: Tensor | None = None, *, unsigned: bool = False) -> Tensor:
    """y[b, i] = |out[b, i]| / |x[b, i]| * g[b, i] / (sum of g[b, j] over the real tokens j); 0 where i is not real.

    g[b, i] = exp(1 - cos(x[b, i], out[b, i])), with |cos| where ``unsigned``; norms in the cosine are at least 1e-8.

    x, out: (B, P, D) of one floating-point dtype, any strides: what goes into a module and what comes out of it.
    real:   (B, P) bool, False for padding, which takes no part, whatever it holds, NaN included; None: all are real.
    Returns (B, P) float32 (float64 for float64), computed in that precision; for rows of zeros in ``x`` it is 0 where
    ``out`` is zero too, and huge or infinite elsewhere, never NaN.
    Raises:  ValueError (shapes, devices), TypeError (dtypes).
    Source:  TransPrune, CVPR 2026, arXiv:2507.20630: magnitude times normalised direction. The paper writes |cos|, the
    authors' code cos.
    """
    _check(x, out, real)
    if x.dtype in KERNEL_DTYPES and use_triton(*(t for t in (x, out, real) if t is not None)):
        from vtprune_kernels.transition_triton import transition_triton

        return transition_triton(x, out, real, unsigned=unsigned)
    return transition_reference(x, out, real, unsigned=unsigned)


def _check(x: Tensor, out: Tensor, real: Tensor | None) -> None:
    if x.ndim != 3 or out.shape != x.shape or (real is not None and real.shape != x.shape[:2]):
        shapes = ", ".join("None" if t is None else str(tuple(t.shape)) for t in (x, out, real))
        raise ValueError(f"transition takes x and out (B, P, D) and real (B, P) or None; got {shapes}")
    if x.dtype != out.dtype or not x.is_floating_point():
        raise TypeError(f"x and out have one floating-point dtype; got {x.dtype} and {out.dtype}: call out.to(x.dtype)")
    if real is not None and real.dtype != torch.bool:
        raise TypeError(f"real is bool, False for padding; got {real.dtype}: call real.bool()")
    if len({t.device for t in (x, out, real) if t is not None}) > 1:
        raise ValueError(f"x, out and real live on one device; x is on {x.device}: move the others there")
