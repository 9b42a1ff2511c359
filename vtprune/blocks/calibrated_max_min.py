"""Calibrated max-min: of every frame, tokens far from each other by distances that count more where a token matters."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 24  # distances that are held at a time
ROUNDING = 1e-6  # rows this near to each other are the same but for rounding


@torch.no_grad()
def calibrated_max_min(x: Tensor, weight: Tensor, k: int, again: bool = False) -> Tensor:
    """(T, k) int64: the tokens picked of each frame, in the order of the picks; ties go to the lowest index.

    The distance to a token is ``weight`` of it times ``1 - cosine``. The first pick is the token whose nearest other is
    farthest, then always the one whose nearest pick is.

    x: (T, N, C). weight: (T, N), of any sign. k: 1 to N. again: whether picked tokens may be picked again.
    Raises ValueError for k out of range.
    Source: FlashVID, ICLR 2026; without weights DivPrune, CVPR 2025.
    """
    t, n, _ = x.shape
    if not 1 <= k <= n:
        raise ValueError(f"k is how many of {n} tokens of a frame are picked, 1 to {n}; got {k!r}")
    frames = max(1, BLOCK // (n * n))
    picks = [_picks(*some, k, again) for some in zip(x.split(frames), weight.split(frames), strict=True)]
    return torch.cat(picks)


def _picks(x: Tensor, weight: Tensor, k: int, again: bool) -> Tensor:
    unit = F.normalize(x.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    distance = distance.masked_fill(distance.abs() < ROUNDING, 0) * weight.float()[:, None, :]
    frame = torch.arange(len(x), device=x.device)
    # of the distances to a token the smallest is to itself, as long as its weight is positive
    farthest = distance.topk(min(2, x.shape[1]), dim=1, largest=False).values[:, -1]
    picks, nearest = [farthest.argmax(1)], torch.full_like(farthest, torch.inf)
    taken = torch.zeros_like(farthest, dtype=torch.bool)
    for _ in range(k - 1):
        nearest = nearest.minimum(distance[frame, picks[-1]])
        taken[frame, picks[-1]] = not again
        picks.append(nearest.masked_fill(taken, -torch.inf).argmax(1))
    return torch.stack(picks, 1)
