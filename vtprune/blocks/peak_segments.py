"""Segments of a clip by what its frames show: clusters of frames, made into runs that follow each other."""

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor

from vtprune.blocks.peak_clusters import peak_clusters


def peak_segments(frames: Tensor, clusters: int, neighbours: int) -> list[int]:
    """The lengths of the segments of a clip; they are 1 or more and sum to T.

    frames: (T, C), one vector for each. clusters: 1 to T; there may be fewer segments.
    """
    labels = contiguous(peak_clusters(frames, clusters, neighbours)[1].tolist())
    return [len(list(run)) for _, run in groupby(labels)]


def contiguous(labels: Sequence[int]) -> list[int]:
    """Labels in as few runs: of every label the longest run stays, or all that are as long; none of length 1 does.

    What lies between takes the label of the longer run beside it, the left one's if they are equally long, and 0 if
    there is none.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    stays = [n > 1 and n == longest[label] for label, n in runs]
    found: list[int] = []
    for i, (_, n) in enumerate(runs):
        left = next((runs[j] for j in range(i, -1, -1) if stays[j]), (0, 0))
        right = next((runs[j] for j in range(i, len(runs)) if stays[j]), (0, 0))
        found += [left[0] if left[1] >= right[1] else right[0]] * n
    return found
