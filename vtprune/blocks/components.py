"""Connected components: of a graph given by its edges, and of the graph that joins rows of high cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

HELD = 1 << 26
"""Entries of an adjacency matrix, a byte each, that are kept between rounds; larger ones are made again in blocks."""
BLOCK = 1 << 22
"""Entries that are looked at at a time."""


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
    itself included. Similarities are held as a whole only while they are few. Rows of zeros are like nothing.
    """
    u = F.normalize(x.float(), dim=-1)
    n, step = len(u), max(1, BLOCK // max(1, len(u)))
    held = [_joins(u, rows, least) for rows in _blocks(n, step)] if n * n <= HELD else None
    label, degree = torch.arange(n, device=u.device), torch.zeros(n, dtype=torch.int64, device=u.device)
    while True:
        low = label.clone()
        for i, rows in enumerate(_blocks(n, step)):
            joins = _joins(u, rows, least) if held is None else held[i]
            degree[rows] = joins.sum(1)
            low[rows] = torch.where(joins, label, n).amin(1)
        found = _hooked(label, low)
        if torch.equal(found, label):
            return label, degree
        label = found


def _blocks(n: int, step: int) -> list[slice]:
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def _joins(u: Tensor, rows: slice, least: float) -> Tensor:
    """(r, n) bool: who is joined to these rows; each to itself."""
    joins = u[rows] @ u.T > least
    joins.diagonal(rows.start).fill_(True)
    return joins


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
