"""Connected components: of a graph given by its edges, and of the graph that joins rows of high cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

HELD = 1 << 26
"""Entries of an adjacency matrix, a byte each, that are kept between rounds; larger ones are made again in blocks."""
BLOCK = 1 << 22
"""Entries that are looked at at a time."""
TRIANGLE = 256
"""Rows at least that are multiplied with all from the first of them on."""
SPARSE = 32
"""Up to so many edges for each node they are followed one by one; of more, the matrix is gone through."""


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
    n = len(u)
    if n * n <= HELD:
        return joined_components(_all_joins(u, least))
    step, label, degree = max(1, BLOCK // n), torch.arange(n, device=u.device), torch.zeros_like(u[:, 0]).long()
    while True:
        low = label.clone()
        for start in range(0, n, step):
            rows = slice(start, min(n, start + step))
            joins = _joins(u, rows, 0, least)
            degree[rows] = joins.sum(1)
            low[rows] = torch.where(joins, label, n).amin(1)
        found = _hooked(label, low)
        if torch.equal(found, label):
            return label, degree
        label = found


def joined_components(joins: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a graph that is given: (n, n) bool, symmetric, every row joined to itself."""
    n = len(joins)
    edges = int(torch.count_nonzero(joins))
    if edges <= SPARSE * n:
        a, b = joins.nonzero().unbind(1)
        return edge_components(n, a, b), torch.bincount(a, minlength=n)
    label = torch.arange(n, device=joins.device)
    while True:
        found = _hooked(label, torch.where(joins, label, n).amin(1))
        if torch.equal(found, label):
            return label, joins.sum(1)
        label = found


def _all_joins(u: Tensor, least: float) -> Tensor:
    """(n, n) bool: who is joined to whom; one triangle of the products says it for both."""
    n, joins = len(u), torch.empty(len(u), len(u), dtype=torch.bool, device=u.device)
    step = max(TRIANGLE, BLOCK // 8 // max(1, n))
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        joins[rows, start:] = _joins(u, rows, start, least)
        joins[rows.stop :, rows] = joins[rows, rows.stop :].T
    return joins


def _joins(u: Tensor, rows: slice, first: int, least: float) -> Tensor:
    """(r, n - first) bool: which rows from ``first`` on are joined to these; each to itself."""
    joins = u[rows] @ u[first:].T > least
    joins.diagonal(rows.start - first).fill_(True)
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
