"""Frame clusters: what is left of the frames of a segment is merged inside each frame, around density peaks."""

import math

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, merge_matrix
from vtprune.blocks.peak_clusters import peak_clusters


def rounded_up(x: float) -> int:
    """The least whole number that is not below ``x``, but for what binary fractions add to decimal ones."""
    return math.ceil(x - 1e-9)


@torch.no_grad()
def cluster_frames(sums: Sums, x: Tensor, total: int, neighbours: int) -> Sums:
    """The same vectors, or means of them if they are more than ``total``: the same share of each frame, rounded up.

    sums: vectors made of the tokens of a segment, by flat ids. x: (L, N, C) those tokens, float32. A mean stands at the
    centre of its cluster; clusters are those of ``peak_clusters``, by at most ``neighbours`` distances.
    """
    n = x.shape[1]
    if not len(sums.place):
        return sums
    places, matrix = merge_matrix([sums], x.shape[0] * n)
    if len(places) <= total:
        return sums
    vectors, share = torch.sparse.mm(matrix, x.flatten(0, 1)), total / len(places)
    target = torch.full((x.shape[0] * n,), -1, device=x.device)
    for frame in range(len(x)):
        mine = (places // n == frame).nonzero().flatten()
        if k := rounded_up(len(mine) * share):
            centres, owner = (ids.to(x.device) for ids in peak_clusters(vectors[mine], k, min(k, neighbours)))
            target[places[mine]] = places[mine[centres[owner]]]
    size = torch.bincount(target[places].clamp(min=0), minlength=len(target))
    stays = target[sums.place] >= 0
    place, source, weight = (entry[stays] for entry in sums)
    return Sums(target[place], source, weight / size[target[place]])
