"""What resized frames become in a prompt: weighted sums on the rows of their tokens, or new vectors on rows nearby."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.blocks.cells import share
from vtprune.blocks.frame_budget import ascending_rows
from vtprune.blocks.resize import Resized, append_newlines, plan_matrix, resize


@dataclass(frozen=True)
class Part:
    """A grid to be resized: a frame, or one view of an image.

    x: (height * width, D) its cells in raster order. rows: (m,) int64 rows of the sample that are its own, likewise.
    """

    x: Tensor
    height: int
    width: int
    rows: Tensor

    def __len__(self) -> int:
        return self.height * self.width


Drawn = tuple[Part, Resized]


def resize_frames(frames: Sequence[Sequence[Part]], budgets: Sequence[int], mode: str) -> list[Drawn]:
    """Every grid that has a budget, with its plan, in order. The views of an image share its budget by size."""
    drawn = []
    for frame, budget in zip(frames, budgets, strict=True):
        for part, n in zip(frame, share([len(part) for part in frame], budget), strict=True):
            if n:
                drawn.append((part, resize(part.x, part.height, part.width, n, mode)))
    return drawn


def merged_rows(drawn: Sequence[Drawn], n: int, in_place: bool) -> tuple[Tensor, Tensor | None]:
    """Grids whose cells are the sample's own rows: which of the n rows to keep (K,), and what they are made of.

    in_place: every token stands at its own place; otherwise the tokens stand in their order on all those places.
    Returns keep, ascending, and the sparse (K, n) matrix; None instead of it where every kept row stays as it is.
    """
    place = torch.cat([part.rows[plan.place] for part, plan in drawn])
    cell = torch.cat([part.rows[plan.cell] for part, plan in drawn])
    weight = torch.cat([plan.weight for _, plan in drawn])
    firsts = torch.tensor([0, *(len(plan) for _, plan in drawn)]).cumsum(0).tolist()
    token = torch.cat([plan.token + first for first, (_, plan) in zip(firsts, drawn)])
    keep, order = place.sort()
    if in_place:
        token = order.argsort()[token]
    if len(token) == len(keep) and bool(((weight == 1) & (keep[token] == cell)).all()):
        return keep, None
    return keep, plan_matrix(token, cell, weight, (len(keep), n))


def new_rows(drawn: Sequence[Drawn], span: slice, newline: Tensor | None) -> tuple[Tensor, Tensor]:
    """Grids of other vectors than the sample's rows: (K,) rows inside ``span``, ascending, and (K, D) what they become.

    Every grid is spread evenly over the rows that are its own, as far as the others leave room.
    newline: (D,) put at the end of every row of every grid, or None.
    """
    rows, values = [], []
    for part, plan in drawn:
        x = plan.apply(part.x)
        values.append(x if newline is None else append_newlines(x, plan.shape, newline))
        n = len(values[-1])
        rows.append(part.rows[(2 * torch.arange(n, device=x.device) + 1) * len(part.rows) // (2 * n)])
    wanted = torch.cat(rows) - span.start
    return ascending_rows(wanted, span.stop - span.start) + span.start, torch.cat(values)
