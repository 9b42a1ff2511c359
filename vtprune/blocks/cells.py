"""Even cells: a grid of visual tokens cut into exactly k contiguous cells of nearly the same size and shape."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vtprune.tokens import Segment, VisualTokens


def even_cells(t: int, h: int, w: int, k: int) -> Tensor:
    """(t * h * w,) int64: the cell in [0, k) of every token of a t x h x w grid in raster order.

    k >= t: no cell spans two frames, and frames get k // t cells or one more, spread evenly. Inside a frame, bands of
            rows are cut into near-equal columns; the number of bands is the one that makes the cells most compact.
    k < t:  a cell is a run of whole frames; the runs differ by one frame at most.
    Cells are boxes, numbered by the rank of their first token. Raises ValueError unless 1 <= k <= t * h * w.
    """
    if min(t, h, w) < 1 or not 1 <= k <= t * h * w:
        raise ValueError(f"a {t} x {h} x {w} grid can be cut into 1 to {t * h * w} cells of whole tokens; got k={k}")
    if k < t:
        return (torch.arange(t) * k // t).repeat_interleave(h * w)
    counts = [(i + 1) * k // t - i * k // t for i in range(t)]
    frames = {count: _frame_cells(h, w, count) for count in set(counts)}
    firsts = [i * k // t for i in range(t)]
    return torch.cat([first + frames[count] for first, count in zip(firsts, counts, strict=True)])


def _frame_cells(h: int, w: int, k: int) -> Tensor:
    """``even_cells`` of one frame."""
    fewest = -(-k // w)  # a band has w columns to give
    bands = min((_bands(h, w, k, r) for r in range(fewest, min(h, k) + 1)), key=lambda bands: _unevenness(bands, w))
    rows, first = [], 0
    for height, cells in bands:
        rows.append((first + torch.arange(w) * cells // w).expand(height, w))
        first += cells
    return torch.cat(rows).flatten()


def _bands(h: int, w: int, k: int, r: int) -> list[tuple[int, int]]:
    """(height, cells) of r bands: heights differ by one row at most, cells follow the heights, 1 to w in each band."""
    bands, given = [], 0
    for i in range(r):
        top, bottom, left = i * h // r, (i + 1) * h // r, r - 1 - i
        wanted = (2 * k * bottom + h) // (2 * h)
        wanted = min(max(wanted, given + 1, k - w * left), given + w, k - left)
        bands.append((bottom - top, wanted - given))
        given = wanted
    return bands


def _unevenness(bands: list[tuple[int, int]], w: int) -> float:
    """Small for cells that are compact (squared distance of tokens to their centres) and equal (largest : smallest)."""
    spread, sizes = 0, []
    for height, cells in bands:
        width, wider = divmod(w, cells)
        for columns, number in ((width, cells - wider), (width + 1, wider)):
            if number:
                sizes.append(height * columns)
                spread += number * height * columns * (height**2 + columns**2)
    return spread**2 * max(sizes) / min(sizes)


def share(sizes: Sequence[int], k: int) -> list[int]:
    """k things shared in proportion to positive ``sizes``, by largest remainder; the first wins a tie.

    Everyone gets at least one where k allows it, and nobody more than its size where k <= sum(sizes).
    """
    shares = [0] * len(sizes)
    waiting = list(range(len(sizes)))
    if k >= len(sizes):
        # who would get less than one is given one; what is left for the others may bring more of them below one
        while small := [i for i in waiting if sizes[i] * k < sum(sizes[j] for j in waiting)]:
            for i in small:
                shares[i] = 1
            k -= len(small)
            waiting = [i for i in waiting if i not in small]
    total = sum(sizes[i] for i in waiting)
    for i in waiting:
        shares[i] = sizes[i] * k // total
    by_remainder = sorted(waiting, key=lambda i: -(sizes[i] * k % total))
    for i in by_remainder[: k - sum(shares[i] for i in waiting)]:
        shares[i] += 1
    return shares


def nearest_to_centre(cell: Tensor, place: Tensor) -> Tensor:
    """(K,) int64: of every cell the member nearest to the mean place of its members; the lowest wins a tie.

    cell: (N,) int64 in [0, K), no cell empty. place: (N, d) int64.
    """
    size = torch.bincount(cell)
    total = torch.zeros(len(size), place.shape[1], dtype=place.dtype).index_add_(0, cell, place)
    # whole numbers, scaled by the size, so that equal distances are equal
    off = (place * size[cell, None] - total[cell]).double().square().sum(1)
    order = off.argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]
    return order[size.cumsum(0) - size]


def sample_cells(tokens: VisualTokens, pools: Sequence[slice], count: Callable[[int], int]) -> tuple[Tensor, Tensor]:
    """Cuts the tokens of each pool into ``count(pool size)`` even cells.

    A view whose grid is known and whole is cut as a grid; other tokens as a line, in prompt order. Views of a pool
    share its cells by size; where there are fewer cells than views, the smallest views go without.

    Returns keep (K,): the member nearest to the centre of each cell, ascending, and cell (N,): which of ``keep``
    stands for each token, -1 for tokens without a cell. Both int64, on the device of the tokens.
    """
    coords = None if tokens.coords is None else tokens.coords.cpu()
    cell = torch.full((len(tokens),), -1)
    place = torch.zeros(len(tokens), 3, dtype=torch.int64)
    first = 0
    for pool in pools:
        inside = [s for s in tokens.segments if len(s) and pool.start <= s.span.start and s.span.stop <= pool.stop]
        views = [view for segment in inside for view in _views(segment, coords)]
        shares = share([len(rows) for rows, _, _ in views], count(pool.stop - pool.start))
        for (rows, places, grid), k in zip(views, shares, strict=True):
            place[rows] = places
            if k:
                cell[rows] = first + even_cells(*grid, k)[_raster(places, grid)]
            first += k
    seated = (cell >= 0).nonzero().flatten()
    centre = seated[nearest_to_centre(cell[seated], place[seated])]
    rank = torch.empty_like(centre)
    rank[centre.argsort()] = torch.arange(len(centre))
    cell[seated] = rank[cell[seated]]
    return centre.sort().values.to(tokens.hidden.device), cell.to(tokens.hidden.device)


def _views(segment: Segment, coords: Tensor | None) -> list[tuple[Tensor, Tensor, tuple[int, int, int]]]:
    """(rows, (n, 3) frame, row and column of each, grid) of the segment's views; one line if a view is not whole."""
    rows = torch.arange(segment.span.start, segment.span.stop)
    views = []
    if coords is not None and segment.grids:
        for view, grid in enumerate(segment.grids):
            members = rows[coords[rows, 0] == view]
            views.append((members, coords[members, 1:], grid))
    if views and sum(len(v[0]) for v in views) == len(rows) and all(_whole(v[1], v[2]) for v in views):
        return views
    line = torch.stack([torch.zeros_like(rows), torch.zeros_like(rows), torch.arange(len(rows))], 1)
    return [(rows, line, (1, 1, len(rows)))]


def _raster(places: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(n,) int64: the rank of each place in the raster order of its grid."""
    return (places[:, 0] * grid[1] + places[:, 1]) * grid[2] + places[:, 2]


def _whole(places: Tensor, grid: tuple[int, int, int]) -> bool:
    """Whether the places are those of the grid, each once."""
    if len(places) != grid[0] * grid[1] * grid[2] or ((places < 0) | (places >= torch.tensor(grid))).any():
        return False
    return bool((_raster(places, grid).sort().values == torch.arange(len(places))).all())
