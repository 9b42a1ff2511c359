"""Connected components: of a graph given by its edges, and of the graph that joins rows of high cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 22
"""Entries of an adjacency matrix that are looked at at a time."""
ROWS = 512
"""Rows of it at most, of which only what lies on one side of the diagonal is made."""


def edge_components(n: int, a: Tensor, b: Tensor) -> Tensor:
    """(n,) int64: the lowest node of the component of each of n nodes. a, b: (E,) int64 ends of the edges."""
    label = torch.arange(n, device=a.device)
    while True:
        low = label.clone()
        low.scatter_reduce_(0, a, label[b], "amin")
        low.scatter_reduce_(0, b, label[a], "amin")
        found = _hooked(label, low)
        if torch.equal(found, label):
            return label
        label = found


def similar_components(x: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Components of the graph that joins rows of ``x`` (n, D) whose cosine similarity, in float32, is above ``least``.

    Returns (n,) int64 the lowest row of the component of each row, and (n,) int64 how many rows each is joined to,
    itself included. Similarities are looked at once, block by block. Rows of zeros are like nothing.
    """
    u = F.normalize(x.float(), dim=-1)
    n = len(u)
    label = torch.arange(n, device=u.device)
    degree, step = torch.ones_like(label), max(1, min(ROWS, BLOCK // max(1, n)))
    for start in range(0, n, step):
        a, b = (u[start : start + step] @ u[start:].T > least).nonzero().unbind(1)
        # of two rows of this block both orders are there
        once = b > a
        a, b = a[once] + start, b[once] + start
        degree += torch.bincount(a, minlength=n) + torch.bincount(b, minlength=n)
        label = joined(label, a, b)
    return label, degree


def joined(label: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(n,) int64 labels as of ``edge_components`` after edges from ``a`` (E,) to ``b`` joined some of them."""
    a, b = label[a], label[b]
    new = a != b
    return edge_components(len(label), a[new], b[new])[label]


def _hooked(label: Tensor, low: Tensor) -> Tensor:
    """Labels after every tree, named by its root, was hung onto the lowest label ``low`` that its nodes saw."""
    root = label.scatter_reduce(0, label, low, "amin")
    while True:
        # doubling: half as many steps to go, twice as far each
        further = root[root]
        if torch.equal(further, root):
            return root[label]
        root = further


def representatives(label: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) int64, ascending: the node of largest degree of each component, the lowest on a tie; (n,) int64: its number.

    label, degree: (n,) as of ``similar_components``. Node i belongs to the component of node first[second[i]].
    """
    roots, component = label.unique(return_inverse=True)
    order = degree.sort(descending=True, stable=True).indices
    order = order[component[order].sort(stable=True).indices]
    count = torch.bincount(component, minlength=len(roots))
    chosen, rank = order[count.cumsum(0) - count].sort()
    return chosen, rank.argsort()[component]
