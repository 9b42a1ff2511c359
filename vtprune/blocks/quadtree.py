"""Quadtrees over the frames of a video: cells that are like their parts stay whole, and boxes join over time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.blocks.components import edge_components
from vtprune.blocks.grouping import Groups
from vtprune_kernels.merge import merge_tokens

BLOCK = 4096  # rows


@dataclass(frozen=True)
class Level:
    """One resolution of a frame.

    height, width: in cells. x: (T, height * width, D) float32, the mean of the children, cell by cell.
    up:     (H * W,) int64: the cell of every token of the frame. share: (H * W,) float32: its weight in that cell.
    lowest: (T, height * width) float32: smallest cosine similarity of a cell to a child; None at the finest level.
    parent: (height * width,) int64 in the next coarser level; None at the coarsest.
    """

    height: int
    width: int
    x: Tensor
    up: Tensor
    share: Tensor
    lowest: Tensor | None = None
    parent: Tensor | None = None


def parents(side: int, device: torch.device | None = None) -> Tensor:
    """(side,) int64: halves of a side, rounded up; the first of an odd number has no partner."""
    return (torch.arange(side, device=device) + side % 2) // 2


def pyramid(x: Tensor, height: int, width: int, *, border_slot: bool = False) -> list[Level]:
    """The levels of a video's frames, coarsest first: halved, rounded up, until one side is 2 or less.

    x:           (T, height * width, D), computed in float32.
    border_slot: cells of fewer than four children are compared with the frame's first child too, as released code does.
    """
    tokens = torch.arange(height * width, device=x.device)
    level = Level(height, width, x.float(), tokens, torch.ones(len(tokens), device=x.device))
    levels = [level]
    while min(level.height, level.width) > 2:
        h, w = ((side + 1) // 2 for side in (level.height, level.width))
        rows, columns = parents(level.height, x.device), parents(level.width, x.device)
        parent = (rows[:, None] * w + columns).flatten()
        children = torch.bincount(parent, minlength=h * w)
        coarse = torch.stack([merge_tokens(frame, parent, None, h * w) for frame in level.x])
        lowest = torch.stack([_lowest(a, b, parent, children, border_slot) for a, b in zip(coarse, level.x)])
        levels[0] = Level(level.height, level.width, level.x, level.up, level.share, level.lowest, parent)
        level = Level(h, w, coarse, parent[level.up], level.share / children[parent][level.up], lowest)
        levels.insert(0, level)
    return levels


def _lowest(coarse: Tensor, fine: Tensor, parent: Tensor, children: Tensor, border_slot: bool) -> Tensor:
    """(cells,): the smallest similarity of the cells of one frame to their children."""
    found = torch.full((len(coarse),), torch.inf, device=coarse.device)
    found.scatter_reduce_(0, parent, cosines(coarse[parent], fine), "amin")
    if border_slot:
        first = cosines(coarse, fine[:1].expand_as(coarse))
        found = torch.where(children < 4, torch.minimum(found, first), found)
    return found


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n,) cosine similarity of rows (n, D) to rows; 0 for rows of zeros."""
    return (a * b).sum(-1) / (a.norm(dim=-1).clamp(min=1e-8) * b.norm(dim=-1).clamp(min=1e-8))


@dataclass(frozen=True)
class Boxes:
    """The cells that a video is cut into. owner: (T * H * W,) int64: the first token of the box of each token.

    share: (T * H * W,) float32: the weight of a token in its box; those of a box sum to 1.
    """

    owner: Tensor
    share: Tensor


def split_cells(levels: list[Level], least: float, root: int = 1) -> Boxes:
    """From level ``root`` on: cells whose similarity to every child is at least ``least`` stay, others are split."""
    (t, n, _), device = levels[-1].x.shape, levels[-1].x.device
    owner, share = torch.zeros(t, n, dtype=torch.int64, device=device), torch.ones(t, n, device=device)
    root, token = min(root, len(levels) - 1), torch.arange(n, device=device)
    reached = torch.ones(t, levels[root].height * levels[root].width, dtype=torch.bool, device=device)
    for i, level in enumerate(levels[root:]):
        if i:
            reached = reached[:, level.parent]
        stays = reached if level.lowest is None else reached & (level.lowest >= least)
        first = torch.full((stays.shape[1],), n, device=device).scatter_reduce(0, level.up, token, "amin")
        mine = stays[:, level.up]
        owner, share = torch.where(mine, first[level.up], owner), torch.where(mine, level.share, share)
        reached = reached & ~stays
    return Boxes((owner + torch.arange(t, device=device)[:, None] * n).flatten(), share.flatten())


def unite_boxes(
    x: Tensor, boxes: Boxes, frames: int, least: float, *, area_weighted: bool = False, early_stop: bool = False
) -> Groups:
    """Boxes of neighbouring frames of which one contains the other become one if their cosine is ``least`` or more.

    x:             (N, D), the tokens of ``frames`` frames. least: 0 or less joins nothing.
    area_weighted: a box counts for its tokens in the mean of a group; otherwise all boxes count alike.
    early_stop:    labels are followed only as far as released code does, which leaves some joined boxes apart.
    A group stands at the first token of its earliest box.
    """
    first, box = boxes.owner.unique(return_inverse=True)
    label = torch.arange(len(first), device=x.device)
    area = torch.bincount(box)
    if least > 0:
        mean = merge_tokens(x.float(), box, boxes.share, len(first))
        # quadtrees of one grid: boxes that share a place contain one another
        places = box.view(frames, -1)
        pairs = torch.stack([places[:-1].flatten(), places[1:].flatten()]).unique(dim=1)
        alike = [cosines(mean[a], mean[b]) >= least for a, b in zip(pairs[0].split(BLOCK), pairs[1].split(BLOCK))]
        pairs = pairs[:, torch.cat(alike)]
        label = (_stopped_components if early_stop else edge_components)(len(first), pairs[0], pairs[1])
    kept, group = label.unique(return_inverse=True)
    weight = boxes.share * area[box] if area_weighted else boxes.share
    return Groups(first[kept], group[box], weight)


def _stopped_components(n: int, a: Tensor, b: Tensor) -> Tensor:
    """Lowest labels along the edges, one jump in each round, until no label points at a node of another label."""
    label = torch.arange(n, device=a.device)
    while True:
        low = label.clone()
        low.scatter_reduce_(0, a, label[b], "amin")
        low.scatter_reduce_(0, b, label[a], "amin")
        label = low[low]
        if torch.equal(label[label], label):
            return label
