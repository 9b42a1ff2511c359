"""Resizing one frame: which of the H x W cells of its grid, and with which weights, make each of n tokens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Resized:
    """How the n tokens of a resized frame are made of the cells of its grid, in the order in which they are read.

    shape:  (h, w) of the new grid with n = h * w, or (n,) where the tokens form none.
    token, cell, weight: (M,) int64, int64, float32: token ``token[m]`` holds ``weight[m]`` of cell ``cell[m]``.
    place:  (n,) int64: the cell where each token stands: nearest to its centre, or the one it was merged into.
            All different unless the frame grew.
    """

    shape: tuple[int, ...]
    token: Tensor
    cell: Tensor
    weight: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.place)

    def apply(self, x: Tensor) -> Tensor:
        """(H * W, C) -> (n, C) in x's dtype, computed in at least float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        plan = plan_matrix(self.token, self.cell, self.weight.to(wide), (len(self), len(x)))
        return torch.sparse.mm(plan, x.to(wide)).to(x.dtype)


def plan_matrix(token: Tensor, cell: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """The sparse COO matrix of this shape with ``weight[m]`` in row ``token[m]`` and column ``cell[m]``, summed."""
    index = torch.stack([token, cell])
    # made here of indices inside the shape; said so that torch does not warn of an unchecked matrix
    return torch.sparse_coo_tensor(index, weight, shape, check_invariants=False).coalesce()


def grid_of(n: int, height: int = 1, width: int = 1) -> tuple[int, int]:
    """The (h, w) grid that n tokens of a height x width grid make, h * w <= n; what is left over is not used.

    Square grids as published: h = w = int(sqrt(n)), one row more if it fits. For other grids (an extension) h and w
    are the sides of the same aspect and area, rounded down or up so that most of the n are used; on a tie the grid
    nearest in aspect, then the one with more rows. Never larger than height x width if n is not.
    """
    tall, wide = Fraction(n * height, width), Fraction(n * width, height)
    best = None
    for h in {min(n, max(1, math.isqrt(int(tall)))), min(n, _root_up(tall))}:
        w = min(n // h, _root_up(wide))
        stretch = Fraction(h * width, w * height)
        rank = (h * w, -max(stretch, 1 / stretch), h)
        best = max(best, (rank, (h, w))) if best else (rank, (h, w))
    return best[1]


def _root_up(x: Fraction) -> int:
    """The least whole number whose square is x or more."""
    root = math.isqrt(int(x))
    return root if root * root == x else root + 1


# ------------------------------------------------------------------------------------------------- fixed weights


def bilinear(x: Tensor, height: int, width: int, n: int) -> Resized:
    """Bilinear interpolation to ``grid_of(n)``: corners not aligned, no antialiasing; may enlarge (v1)."""
    h, w = grid_of(n, height, width)
    return _separable(h, w, width, _linear_taps(height, h), _linear_taps(width, w), height, x.device)


def pool(x: Tensor, height: int, width: int, n: int) -> Resized:
    """Adaptive average pooling to ``grid_of(n)`` (v2)."""
    h, w = grid_of(n, height, width)
    return _separable(h, w, width, _pool_taps(height, h), _pool_taps(width, w), height, x.device)


Taps = tuple[Tensor, Tensor, Tensor]
"""Of one side: (M,) int64 new coordinate, (M,) int64 old coordinate, (M,) float weight."""


def _linear_taps(old: int, new: int) -> Taps:
    # in float32 as torch does it: next to the values of a frame the rounding is seen
    step = torch.tensor(old, dtype=torch.float32) / new
    centre = ((torch.arange(new) + 0.5) * step - 0.5).clamp(min=0)
    low = centre.long().clamp(max=old - 1)
    part = (centre - low).clamp(max=1)
    high = (low + 1).clamp(max=old - 1)
    return torch.arange(new).repeat(2), torch.cat([low, high]), torch.cat([1 - part, part])


def _pool_taps(old: int, new: int) -> Taps:
    spans = [range(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
    sizes = torch.tensor([len(span) for span in spans])
    source = torch.tensor([i for span in spans for i in span])
    return torch.arange(new).repeat_interleave(sizes), source, (1 / sizes.double()).repeat_interleave(sizes)


def _separable(h: int, w: int, width: int, rows: Taps, columns: Taps, height: int, device: torch.device) -> Resized:
    """The product of a resizing of rows and one of columns."""
    token = (rows[0][:, None] * w + columns[0]).flatten()
    cell = (rows[1][:, None] * width + columns[1]).flatten()
    weight = (rows[2][:, None] * columns[2]).flatten().float()
    used = weight > 0
    place = (_centres(height, h)[:, None] * width + _centres(width, w)).flatten()
    return Resized((h, w), token[used].to(device), cell[used].to(device), weight[used].to(device), place.to(device))


def _centres(old: int, new: int) -> Tensor:
    """(new,) int64: the old coordinate in which the centre of each new one lies."""
    return (2 * torch.arange(new) + 1) * old // (2 * new)


def sample(x: Tensor, height: int, width: int, n: int) -> Resized:
    """n cells at equal steps in raster order, the first and the last among them (v3)."""
    # float32 on the CPU, as published: in other precisions a few whole numbers are cut to the one below
    cell = torch.linspace(0, height * width - 1, n).long().to(x.device)
    return Resized((n,), torch.arange(n, device=x.device), cell, torch.ones(n, device=x.device), cell)


# ----------------------------------------------------------------------------------------- weights from the data


def merge(x: Tensor, height: int, width: int, n: int) -> Resized:
    """The closest cells are merged in rounds until n are left (v4). x: (H * W, C)."""
    merged = bipartite_merge(x[None], n)
    return Resized((n,), merged.token[0], torch.arange(len(x), device=x.device), merged.weight[0], merged.head[0])


def merge_rows(x: Tensor, height: int, width: int, n: int) -> Resized:
    """``merge`` along each row, then along each column of what came out, to ``grid_of(n)`` (v5). x: (H * W, C)."""
    h, w = grid_of(n, height, width)
    rows = bipartite_merge(x.view(height, width, -1), w)
    columns = bipartite_merge(rows.x.transpose(0, 1), h)
    # cell (r, c) went into token j of its row, and that into token i of column j
    row = torch.arange(height, device=x.device)[:, None]
    token = columns.token[rows.token, row] * w + rows.token
    weight = columns.weight[rows.token, row] * rows.weight
    head = columns.head.T  # (h, w): the row of the token that heads each
    place = head * width + rows.head[head, torch.arange(w, device=x.device)]
    cell = torch.arange(height * width, device=x.device)
    return Resized((h, w), token.flatten(), cell, weight.flatten(), place.flatten())


@dataclass(frozen=True)
class Merged:
    """x: (B, n, C). token, weight: (B, t) where each input went and how much it counts there. head: (B, n) inputs."""

    x: Tensor
    token: Tensor
    weight: Tensor
    head: Tensor


def bipartite_merge(x: Tensor, n: int) -> Merged:
    """Merges each line of a batch (B, t, C) down to n tokens, every line by itself.

    In a round the even tokens look for the most similar odd one (cosine); those that found the best, ``min(t - n,
    t // 2)`` of them, are averaged into it, each token counting the same whatever it was merged from. The even ones
    left, in order of falling similarity, then the odd ones make the next round. Ties: the lowest index first.
    Computed in at least float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    batch, length, _ = x.shape
    token = torch.arange(length, device=x.device).expand(batch, length)
    head, weight = token, torch.ones(batch, length, device=x.device)
    while x.shape[1] > n:
        even, odd = x[:, ::2], x[:, 1::2]
        unit = x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
        order = best.sort(dim=-1, descending=True, stable=True).indices
        count = min(x.shape[1] - n, odd.shape[1])
        goes, stays = order[:, :count], order[:, count:]
        left, odds = stays.shape[1], torch.arange(odd.shape[1], device=x.device)
        partner = partner.gather(1, goes)
        # a product with zeros and ones: sums made by scattering differ from run to run on a GPU
        member = partner[:, None] == odds[:, None]
        size = 1 + member.sum(-1)
        odd = (odd + member.to(x.dtype) @ _rows(even, goes)) / size[..., None]
        x = torch.cat([_rows(even, stays), odd], 1)
        # where each token of this round stands in the next one
        to = torch.empty(batch, best.shape[1] + len(odds), dtype=torch.int64, device=x.device)
        to[:, 1::2] = odds + left
        to.scatter_(1, 2 * goes, partner + left)
        to.scatter_(1, 2 * stays, torch.arange(left, device=x.device).expand(batch, -1))
        head = torch.cat([head.gather(1, 2 * stays), head[:, 1::2]], 1)
        token = to.gather(1, token)
        weight = weight / torch.cat([torch.ones_like(stays), size], 1).gather(1, token)
    return Merged(x, token, weight, head)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, t, C), (B, k) -> (B, k, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


MODES: dict[str, Callable[[Tensor, int, int, int], Resized]] = {
    "bilinear": bilinear,
    "pool": pool,
    "sample": sample,
    "merge": merge,
    "merge_rows": merge_rows,
}
"""Ways to resize a frame, by name: (x (H * W, C), H, W, n) -> ``Resized``. Only the merging ones look at x."""

MERGING, LINES = ("merge", "merge_rows"), ("sample", "merge")
"""Of these, those that merge tokens by what they hold; and those whose n tokens form no grid."""


def resize(x: Tensor, height: int, width: int, n: int, mode: str = "bilinear") -> Resized:
    """The plan that resizes one frame to n tokens or, where those make a grid, to ``grid_of(n)``.

    x: (H * W, C) the frame in raster order. Raises ValueError for an unknown mode, no token, or more than H * W
    tokens of a mode that only shrinks.
    """
    if mode not in MODES:
        raise ValueError(f"a frame is resized by one of {', '.join(MODES)}; got {mode!r}")
    if n < 1 or (mode != "bilinear" and n > height * width):
        limit = "or more" if mode == "bilinear" else f"to {height * width}"
        raise ValueError(f"{mode!r} resizes a {height} x {width} frame to 1 {limit} tokens; got n={n}")
    return MODES[mode](x, height, width, n)


def resized_length(n: int, height: int, width: int, mode: str, newlines: bool = False) -> int:
    """How many tokens ``resize`` makes of a budget of n, with a newline at the end of every row if ``newlines``."""
    if mode in LINES:
        return n
    h, w = grid_of(n, height, width)
    return h * (w + newlines)


def append_newlines(x: Tensor, shape: tuple[int, int], newline: Tensor) -> Tensor:
    """(h * w, D) -> (h * (w + 1), D): the (D,) newline at the end of every row of the grid."""
    h, w = shape
    return torch.cat([x.view(h, w, -1), newline.to(x).expand(h, 1, -1)], 1).flatten(0, 1)
