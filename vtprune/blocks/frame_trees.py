"""Frame trees: tokens linked to what they look most like in the frame before, and what becomes of a tree."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.assign import Sums
from vtprune.blocks.frame_runs import anchors

LOWEST = -1 + 1e-6
"""No threshold is raised to less; a token opposite to all others is never linked."""


@torch.no_grad()
def link_frames(x: Tensor, free: Tensor, threshold: float, fewest: int) -> Tensor:
    """(L, N) int64: for each token the one of the frame before that it is linked to, as a flat id, else -1.

    A free token is linked to the free token of the frame before that is most like it (on a tie the lowest), if their
    cosine is above the threshold. Where that would leave fewer than ``fewest`` tokens without a link, the threshold is
    the similarity of the last that may not be linked, and who is as similar is not linked either.

    x: (L, N, C). free: (L, N) bool. fewest: tokens without a link, 1 or more.
    """
    length, n = free.shape
    unit = F.normalize(x.float(), dim=-1)
    best = torch.full((length, n), -torch.inf, device=x.device)
    parent = torch.full((length, n), -1, device=x.device)
    for t in range(1, length):
        cosine = (unit[t] @ unit[t - 1].T).masked_fill(~free[t - 1], -torch.inf)
        best[t], parent[t] = cosine.max(1)
        parent[t] += (t - 1) * n
    best = best.masked_fill(~free, -torch.inf)
    most = length * n - fewest
    if int((best > threshold).sum()) > most:
        # the strict comparison keeps the most-th itself apart
        threshold = max(LOWEST, float(best.flatten().sort(descending=True).values[max(0, most - 1)]))
    return parent.masked_fill(~(best > threshold), -1)


def tree_sums(parent: Tensor, free: Tensor, by_children: bool = False) -> Sums:
    """The mean of every tree, at its root: a free token without a link. Entries are flat ids of the (L, N) tokens.

    by_children: a release's fault: the sum of a tree is divided by 1 and the number of tokens linked to its root
                 directly, not by the number of its tokens; the weights of a deep tree then sum to more than 1.
    """
    linked, rows = (parent >= 0).flatten(), free.flatten().nonzero().flatten()
    root = anchors(parent.flatten(), linked)
    size = torch.bincount(root[rows], minlength=len(root))
    if by_children:
        size = 1 + torch.bincount(parent.flatten()[linked], minlength=len(root))
    return Sums(root[rows], rows, 1 / size[root[rows]].float())
