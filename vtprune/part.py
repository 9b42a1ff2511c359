"""A part of a sample's visual tokens, such as one frame, as a sample of its own."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from vtprune.tokens import Segment, VisualTokens

_WHOLE = ("text_keys", "text_final_norm", "projected_features", "prompt")
"""Signals that are not of the visual tokens."""
_LAST_BUT_ONE = ("keys", "unrotated_queries", "unrotated_keys", "final_norm")


def part_of(tokens: VisualTokens, rows: Tensor, memory: MutableMapping) -> VisualTokens:
    """The visual tokens of some rows, with the text and the signals that the sample has.

    rows: (n,) int64, ascending, on the CPU; all of one image or video.
    A whole image or video stays what it is. Of one that is not, tokens that fill a rectangle of one view and frame are
    an image with that grid, and others have no grid. Each part has a random state of its own.
    """
    there = rows.to(tokens.hidden.device)
    segment, coords = _segment(tokens, rows)
    return dataclasses.replace(
        tokens,
        hidden=tokens.hidden[there],
        segments=(segment,),
        signals=_Signals(tokens.signals, there, len(tokens)),
        rows=there if tokens.rows is None else tokens.rows[there],
        coords=None if coords is None else coords.to(tokens.hidden.device),
        position=None if tokens.position is None else tokens.position[there],
        seed=zlib.crc32(f"{tokens.seed} {int(rows[0])}".encode()),
        memory=memory,
        seconds=None if tokens.seconds is None else tokens.seconds[rows],
        stands_for=None if tokens.stands_for is None else tokens.stands_for[there],
    )


def _segment(tokens: VisualTokens, rows: Tensor) -> tuple[Segment, Tensor | None]:
    """The only segment of a part, and its coordinates on the CPU."""
    origin = next(s for s in tokens.segments if s.span.start <= int(rows[0]) < s.span.stop)
    if int(rows[-1]) >= origin.span.stop:
        raise ValueError(
            f"a part lies in one image or video; rows {int(rows[0])} to {int(rows[-1])} are more than {origin.span}"
        )
    span = slice(0, len(rows))
    coords = None if tokens.coords is None else tokens.coords.cpu()[rows]
    if len(rows) == len(origin) or coords is None:
        return dataclasses.replace(origin, span=span, grids=origin.grids if len(rows) == len(origin) else ()), coords
    low, high = coords.amin(0), coords.amax(0)
    _, _, height, width = (high - low + 1).tolist()
    alone = bool((low >= 0).all()) and low[:2].tolist() == high[:2].tolist() and height * width == len(rows)
    if not alone:
        return dataclasses.replace(origin, span=span, grids=(), kind="image", crops=None), coords
    return dataclasses.replace(origin, span=span, grids=((1, height, width),), kind="image", crops=None), coords - low


class _Signals(Mapping):
    """Signals of the rows of a part, each read from the sample's when it is read."""

    def __init__(self, whole: Mapping[str, Any], rows: Tensor, n: int):
        self._whole, self._rows, self._n = whole, rows, n

    def __getitem__(self, name: str) -> Any:
        value, base = self._whole[name], name.partition(":")[0]
        if base in _WHOLE:
            return value
        if hasattr(value, "of"):
            return value.of(self._rows, self._rows.device)
        axis = -2 if base in _LAST_BUT_ONE else -1
        if not isinstance(value, Tensor) or value.shape[axis] != self._n:
            raise ValueError(f"the signal {name!r} has no entry for each of {self._n} visual tokens to take parts of")
        return value.index_select(axis, self._rows.to(value.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)
