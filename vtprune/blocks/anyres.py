"""Anyres images: which of the tokens of a thumbnail and a high-resolution view belong to which crop of the image."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from vtprune.tokens import Segment


@dataclass(frozen=True)
class Anyres:
    """One image as its thumbnail and the canvas that its crops make, both whole and in raster order. All on the CPU.

    The tower sees every crop by itself, in as many patches as the thumbnail has. The image lies in the middle of the
    crops and touches two of their sides; the padding is not among the tokens, so crops at the border may be smaller, or
    empty. Where the model shrinks the canvas, so do the crops.

    thumbnail: (S,) int64 rows of ``VisualTokens.hidden``. canvas: (n,) int64, the same.
    side:      (rows, columns) of the thumbnail and, unless they were shrunk, of a crop, in tokens.
    size:      (rows, columns) of the canvas in tokens.
    crops:     (rows, columns) of crops.
    """

    thumbnail: Tensor
    canvas: Tensor
    side: tuple[int, int]
    size: tuple[int, int]
    crops: tuple[int, int]

    @cached_property
    def crop(self) -> Tensor:
        """(n,) int64: the crop in which the centre of every canvas token lies, crops in raster order."""
        rows, columns = (self._line(axis, self.size[axis]) for axis in (0, 1))
        return (rows[:, None] * self.crops[1] + columns).flatten()

    @cached_property
    def shown(self) -> Tensor:
        """(S,) int64: the crop in which the centre of every thumbnail token lies."""
        rows, columns = (self._line(axis, self.side[axis]) for axis in (0, 1))
        return (rows[:, None] * self.crops[1] + columns).flatten()

    def _line(self, axis: int, n: int) -> Tensor:
        """(n,) int64: in which row or column of crops the centres of n equal parts of the image lie."""
        size, crops = self.size[axis], self.crops[axis]
        # tokens between two cuts, a fraction so that nothing is rounded
        scale = max(Fraction(z, c * s) for z, c, s in zip(self.size, self.crops, self.side, strict=True))
        step = scale * self.side[axis]
        # centre (2 i + 1) size / 2 n, counted from the corner of the first crop, which is (crops step - size) / 2 away
        first, each = (crops * step - size) / (2 * step) + Fraction(size, 2 * n) / step, Fraction(size, n) / step
        whole = math.lcm(first.denominator, each.denominator)
        return (torch.arange(n) * int(each * whole) + int(first * whole)) // whole

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each crop."""
        return self.crop.bincount(minlength=self.crops[0] * self.crops[1]).tolist()

    def members(self) -> list[Tensor]:
        """Of each crop, its tokens as places in ``canvas``, in raster order."""
        return list(self.crop.argsort(stable=True).split(self.sizes))


def anyres(segment: Segment, coords: Tensor | None) -> Anyres | None:
    """The thumbnail and the crops of a segment; None if it has none, or not all of its tokens are where they belong.

    Where the family does not say how many crops there are, they are as few as can hold the canvas.
    coords: (N, 4) int64 on the CPU, of all tokens of the sample, see ``VisualTokens``.
    """
    if coords is None or len(segment.grids) != 2 or any(t != 1 for t, _, _ in segment.grids):
        return None
    (_, *side), (_, *size) = segment.grids
    expected = torch.cat([_raster(0, *side), _raster(1, *size)])
    if min(*side, *size) < 1 or not torch.equal(coords[segment.span], expected):
        return None
    rows = torch.arange(segment.span.start, segment.span.stop)
    thumbnail, canvas = rows.split([side[0] * side[1], size[0] * size[1]])
    crops = segment.crops or tuple(-(-z // s) for z, s in zip(size, side, strict=True))
    return Anyres(thumbnail, canvas, tuple(side), tuple(size), crops)


def tile_rows(segment: Segment, coords: Tensor | None) -> list[Tensor]:
    """The rows of a segment as the tower saw them: thumbnail, then crop by crop; one piece if it is not anyres."""
    views = anyres(segment, coords)
    if views is None:
        return [torch.arange(segment.span.start, segment.span.stop)]
    return [views.thumbnail, *(views.canvas[member] for member in views.members() if len(member))]


def _raster(view: int, height: int, width: int) -> Tensor:
    """(height * width, 4) int64: view, frame 0, row, column."""
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2)
    return torch.cat([torch.tensor([[view, 0]]).expand(len(place), 2), place], 1)
