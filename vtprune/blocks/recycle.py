"""Recycling: of tokens that would be dropped, those in one cell of the grid become one, the most important of them."""

import torch
from torch import Tensor


def cells_of(coords: Tensor, segment: Tensor, m: float) -> Tensor:
    """(n,) int64: the cell of each token, numbered from 0; -1 for tokens without a place.

    coords: (n, 4) view, frame, row and column. segment: (n,) int64 its image. m: side of a cell, in tokens.
    """
    placed = (coords >= 0).all(1)
    # in float64, as a product with a whole number of sides is a border
    side = (coords[:, 2:].double() / m).floor().long()
    keys, cell = torch.cat([segment[:, None], coords[:, :2], side], 1), torch.full_like(segment, -1)
    if placed.any():
        cell[placed] = keys[placed].unique(dim=0, return_inverse=True)[1]
    return cell


def best_of_cells(score: Tensor, cell: Tensor) -> Tensor:
    """(n,) int64: the member of the highest score in the cell of each token, of equal ones the first; -1 without cell.

    score: (n,). cell: (n,) int64, -1 for none.
    """
    order = score.sort(descending=True, stable=True).indices
    order = order[cell[order] >= 0]
    rank = torch.full((len(score) + 1,), len(score), device=score.device)
    rank.scatter_reduce_(0, cell[order], torch.arange(len(order), device=score.device), "amin")
    seated, found = cell >= 0, torch.full_like(cell, -1)
    found[seated] = order[rank[cell[seated]]]
    return found
