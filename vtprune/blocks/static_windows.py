"""Static windows: runs of frames cut so that as many tokens as possible stay alike at their place all the way."""

from collections.abc import Sequence

import torch
from torch import Tensor


def static_windows(similar: Tensor, longest: int) -> tuple[list[int], int]:
    """The lengths of the windows of a clip, and how many tokens are saved if each static place of one becomes one.

    A place is static in a window if it is alike on every step of it; a window of W frames with m static places saves
    (W - 1) * m. The windows are those of the largest sum; of equal ones the shorter last window wins, and so backwards.

    similar: (T - 1, N) bool, whether each place of a frame is alike in the next. longest: frames of a window at most.
    Raises ValueError for other shapes, and for longest below 1.
    """
    if similar.dim() != 2:
        raise ValueError(f"similar is (T - 1, N), one row for every two frames; got {tuple(similar.shape)}")
    if longest < 1:
        raise ValueError(f"longest is how many frames a window has at most, 1 or more; got {longest!r}")
    similar = similar.cpu()
    frames, places = len(similar) + 1, similar.shape[1]
    best = torch.zeros(frames + 1, dtype=torch.int64)  # of the first so many frames
    last = [1] * frames
    run = torch.zeros(places, dtype=torch.int64)
    for end in range(1, frames):
        # at every place, on how many steps up to here it has been alike without a break
        run = (run + 1) * similar[end - 1]
        most = min(end + 1, longest)
        alike = torch.bincount(run.clamp(max=most - 1), minlength=most).flip(0).cumsum(0).flip(0)
        saved = best[end + 1 - most : end + 1].flip(0) + alike * torch.arange(most)
        best[end + 1] = saved.max()
        last[end] = int((saved == saved.max()).nonzero()[0]) + 1
    lengths, end = [], frames
    while end:
        lengths.append(last[end - 1])
        end -= lengths[-1]
    return lengths[::-1], int(best[-1])


def static_places(similar: Tensor, start: int, length: int) -> Tensor:
    """(N,) bool: the static places of the window of ``length`` frames from ``start`` on; none if it has one frame."""
    if length == 1:
        return torch.zeros(similar.shape[1], dtype=torch.bool, device=similar.device)
    return similar[start : start + length - 1].all(0)


def always_similar(frames: Tensor, threshold: float) -> Tensor:
    """(N,) bool: places whose ``mean_cosine`` is above the threshold; none is with a single frame."""
    return mean_cosine(frames) > threshold


def mean_cosine(frames: Tensor) -> Tensor:
    """(N,) float32: the mean cosine of the tokens of each place, over all pairs of different frames.

    frames: (W, N, C). -inf with a single frame. A row of zeros has cosine 0 to everything.
    """
    count = len(frames)
    if count == 1:
        return torch.full((frames.shape[1],), -torch.inf, device=frames.device)
    unit = torch.nn.functional.normalize(frames.detach().float(), dim=-1)
    # the square of a sum has every pair twice, and every row with itself once
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
    return pairs / (count * (count - 1))


def credited(ratio: float, n: int, saved: int) -> float:
    """The share of ``n`` less ``saved`` tokens, what static places leave, that makes ``ratio`` of n; up to 1."""
    return min(1.0, ratio / ((n - saved) / n))


def fit_counts(
    static: Tensor, dynamic: Tensor, score: Tensor, n_static: Sequence[int], n_dynamic: Sequence[int], wanted: int
) -> tuple[list[int], list[int]]:
    """Counts that sum to ``wanted``, or to all there is: a surplus is the dynamic tokens of lowest score, what is
    missing those of highest score. Every frame's best goes last; static places change where no dynamic one is left.

    static: (windows, N) bool, the static places. dynamic: (T, N) bool. score: (T, N), higher is kept.
    n_static: (windows,) and n_dynamic: (T,), the counts so far.
    """
    sizes, n_static = static.sum(1).tolist(), list(n_static)
    while sum(n_static) > wanted:
        n_static[max(range(len(n_static)), key=n_static.__getitem__)] -= 1
    while sum(n_static) + int(dynamic.sum()) < wanted and n_static != sizes:
        n_static[max(range(len(sizes)), key=lambda i: sizes[i] - n_static[i])] += 1
    score = score.masked_fill(~dynamic, -torch.inf)
    order = score.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(score.shape[1], device=order.device).expand_as(order)
    )
    chosen = dynamic & (rank < torch.tensor(n_dynamic, device=rank.device)[:, None])
    tier = torch.where(chosen, torch.where(rank == 0, 0, 1), 2).flatten()
    # by tier, in it by score, in it by place
    best = score.flatten().sort(descending=True, stable=True).indices
    best = best[tier[best].argsort(stable=True)]
    best = best[dynamic.flatten()[best]][: wanted - sum(n_static)]
    taken = torch.zeros_like(dynamic).flatten().index_fill(0, best, True).view_as(dynamic)
    return n_static, taken.sum(1).tolist()
