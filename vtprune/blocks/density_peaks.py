"""Density peaks: rows with many close neighbours that stand far from any row in a denser place."""

import math

import torch
from torch import Tensor

CANCELLED = 1e-2
"""Share of two squared lengths below which their squared distance is not left to a difference of products."""
BLOCK = 1024  # pairs whose differences are held at a time


@torch.no_grad()
def distances(x: Tensor) -> Tensor:
    """(M, M) float32, symmetric: the Euclidean distance of every two rows, divided by the square root of their width.

    x: (M, C) floating point. Products of rows give the distances of rows that are far apart; those of close rows are
    summed over their differences, so that rows that are equal are at distance 0 and tie.
    """
    wide = x.detach().float()
    centred = wide - wide.mean(0)
    lengths = centred.square().sum(1)
    both = lengths[:, None] + lengths[None, :]
    square = (both - 2 * centred @ centred.T).triu()
    square = square + square.T
    for pairs in (~(square > CANCELLED * both)).nonzero().split(BLOCK):
        a, b = pairs.unbind(1)
        square[a, b] = (wide[a] - wide[b]).square().sum(1)
    return square.sqrt() / math.sqrt(max(1, x.shape[-1]))


@torch.no_grad()
def peak_scores(distance: Tensor, neighbours: int) -> Tensor:
    """(M,) float32, higher is a better centre of a cluster: density times the distance to the nearest denser row.

    The density of a row is ``exp(-mean of its smallest squared distances)``, its own 0 among them. Where no row is
    denser, the largest distance of all takes the place of the distance to one. No noise is added: who sorts these
    scores lets the lowest row win. Two rows that are each other's nearest are equally dense by two neighbours.

    distance:   (M, M) as of ``distances``. neighbours: how many distances count, 1 or more; all if there are fewer.
    Raises ValueError for anything but a square matrix, and for neighbours below 1.
    Source: Rodriguez and Laio, Science 2014, with the density of Du et al., Knowledge-Based Systems 2016.
    """
    if distance.dim() != 2 or distance.shape[0] != distance.shape[1]:
        raise ValueError(f"distance is the (M, M) matrix of all pairs; got {tuple(distance.shape)}")
    if neighbours < 1:
        raise ValueError(f"neighbours is how many distances make the density, 1 or more; got {neighbours!r}")
    if not len(distance):
        return distance.new_zeros(0)
    nearest = distance.topk(min(neighbours, len(distance)), dim=1, largest=False).values
    density = (-nearest.square().mean(1)).exp()
    denser = density[None, :] > density[:, None]
    apart = distance.masked_fill(~denser, torch.inf).min(1).values
    return density * torch.where(denser.any(1), apart, distance.max())
