"""frame_similarity: how alike each token of a video is to the one at its place in the frame before."""

import torch
from torch import Tensor

from vtprune_kernels.dispatch import use_triton

NO_FRAME_BEFORE = -2.0
"""The similarity of a token that has no frame before it: below every cosine."""

BLOCK_BYTES = 1 << 20
"""Of the rows that the torch form converts at a time on a CPU: they and their products stay in its cache."""
DEVICE_BLOCK_BYTES = 64 << 20
"""The same on other devices, where each block costs a few launches."""
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def frame_similarity_reference(
    x: Tensor, previous: Tensor | None = None, *, eps: float = 1e-8, rounded: bool = False
) -> Tensor:
    """What ``frame_similarity`` means, in torch."""
    rows, shape = x.flatten(0, -2), x.shape[:-1]
    if previous is None:
        previous = (torch.arange(len(rows), device=x.device) - shape[1]).clamp(min=-1)
    dtype = x.dtype if rounded else torch.promote_types(x.dtype, torch.float32)
    if previous.device.type == "cpu" and not bool((previous >= 0).any()):
        return torch.full(shape, NO_FRAME_BEFORE, dtype=dtype)
    norm, dot = _norms_and_products(rows, previous, dtype)
    norm = norm.clamp(min=eps)
    similarity = dot / (norm * norm[previous.clamp(min=0)])
    return torch.where(previous >= 0, similarity, NO_FRAME_BEFORE).view(shape)


def _norms_and_products(x: Tensor, previous: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(N,) each, in ``dtype``: the norm of each row, and its product with row ``previous``, any number where -1."""
    norm, dot = (torch.zeros(len(x), dtype=dtype, device=x.device) for _ in range(2))
    room = BLOCK_BYTES if x.device.type == "cpu" else DEVICE_BLOCK_BYTES
    step = max(1, room // max(1, x.shape[1] * norm.element_size()))
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        rows, before = x[block].to(dtype), _sources(x, previous[block])
        norm[block] = rows.norm(dim=-1)
        if before is not None:
            dot[block] = (rows * before.to(dtype)).sum(-1)
    return norm, dot


def _sources(x: Tensor, index: Tensor) -> Tensor | None:
    """Rows of ``x`` by index, any row for -1; neighbours are not copied. None where all are -1, if asking is free."""
    if index.device.type == "cpu":
        first, last = int(index[0]), int(index[-1])
        if first >= 0 and last - first == len(index) - 1 and bool((index.diff() == 1).all()):
            return x[first : last + 1]
        if bool((index < 0).all()):
            return None
    return x[index.clamp(min=0)]


def frame_similarity(x: Tensor, previous: Tensor | None = None, *, eps: float = 1e-8, rounded: bool = False) -> Tensor:
    """y[i] = x[i] . x[p] / (max(|x[i]|, eps) * max(|x[p]|, eps)) with p = previous[i]; -2 where p is -1.

    x:        (T, N, D), the frames of one video: p is the same place of the frame before, and the first frame has none.
              (N, D) with ``previous``, for tokens of which some are gone, or of several videos. Floating point, any
              strides.
    previous: (N,) int64 in [-1, N), -1 where there is no frame before. The range is not checked on a GPU.
    eps:      a row of zeros is similar to nothing, 0. With eps=0 it gives NaN instead, which no threshold lets through.
    rounded:  every product, sum, norm and quotient is rounded to the dtype of ``x``, and so is the answer, as when the
              equation is written down in that dtype; sums are still held in float32. For parity with code that does so.
    Returns (T, N) or (N,) float32 (float64 for float64), summed in that precision. Rows whose squares it cannot hold,
    beyond 1e19 in float32, give NaN.
    Raises:  ValueError (shapes, devices, range, eps), TypeError (dtypes).
    """
    _check(x, previous, eps)
    if x.dtype in KERNEL_DTYPES and use_triton(*(t for t in (x, previous) if t is not None)):
        from vtprune_kernels.frame_similarity_triton import frame_similarity_triton

        return frame_similarity_triton(x, previous, eps=eps, rounded=rounded)
    return frame_similarity_reference(x, previous, eps=eps, rounded=rounded)


def _check(x: Tensor, previous: Tensor | None, eps: float) -> None:
    if x.ndim != (3 if previous is None else 2) or (previous is not None and previous.shape != x.shape[:1]):
        shapes = f"x {tuple(x.shape)}" + ("" if previous is None else f" and previous {tuple(previous.shape)}")
        raise ValueError(f"frame_similarity takes x (T, N, D), or x (N, D) and previous (N,); got {shapes}")
    if not x.is_floating_point():
        raise TypeError(f"cosines are of floating-point rows; got {x.dtype}: call x.float()")
    if not eps >= 0:
        raise ValueError(f"eps bounds norms from below, so it is 0 or more; got {eps}")
    if previous is None:
        return
    if previous.dtype != torch.int64:
        raise TypeError(f"previous is int64; got {previous.dtype}: call previous.long()")
    if previous.device != x.device:
        raise ValueError(f"x and previous live on one device; got {x.device} and {previous.device}: move previous to x")
    # elsewhere the check would wait for the device
    if previous.device.type == "cpu" and len(previous):
        low, high = int(previous.min()), int(previous.max())
        if low < -1 or high >= len(x):
            raise ValueError(f"previous lies in [-1, {len(x)}), the rows of x or -1; got values in {low}..{high}")
