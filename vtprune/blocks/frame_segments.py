"""Frame segments: runs of consecutive frames that look alike, cut where the picture changes."""

import torch
from torch import Tensor

from vtprune_kernels.frame_similarity import frame_similarity


@torch.no_grad()
def consecutive_similarity(frames: Tensor) -> Tensor:
    """(T - 1,) float32: cosine similarity of each frame to the next. frames: (T, C), one vector for each."""
    return frame_similarity(frames[:, None])[1:, 0]


def cut_below(similarity: Tensor, threshold: float, fewest: int) -> list[int]:
    """The lengths of the segments of a clip of T frames; they are 1 or more and sum to T.

    Cut is wherever the similarity is below the threshold; where that makes fewer than ``fewest`` segments, also at the
    lowest similarities left, until there are as many, or T. Two published rules come to this: the ``fewest - 1`` lowest
    similarities together with those below the threshold, and those below it filled up with the lowest of the rest.

    similarity: (T - 1,), of each frame to the next; a nan is not below anything. On a tie the earlier one is cut.
    Raises ValueError for fewest below 1.
    """
    if similarity.dim() != 1:
        raise ValueError(f"similarity is (T - 1,), one number for every two frames; got {tuple(similarity.shape)}")
    if fewest < 1:
        raise ValueError(f"fewest is how many segments there are at least, 1 or more; got {fewest!r}")
    similarity = similarity.cpu()
    cut = similarity < threshold
    cut[similarity.sort(stable=True).indices[: fewest - 1]] = True
    bounds = [0, *(cut.nonzero().flatten() + 1).tolist(), len(similarity) + 1]
    return [stop - start for start, stop in zip(bounds, bounds[1:])]
