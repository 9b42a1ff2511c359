"""Where the visual tokens of a forward are: columns, sources, places in their grids."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtprune.families.base import Source, unknown_source


@dataclass(frozen=True)
class Row:
    """The visual tokens of one row of the batch. All tensors are on the CPU.

    columns: (n,) int64, ascending columns of this forward that hold visual tokens, newlines included.
    sources: the images and videos they came from, in order; their lengths sum to n.
    real:    (L,) bool, False for padding.
    seed:    depends on the row's unpadded prompt alone.
    """

    columns: Tensor
    sources: tuple[Source, ...]
    real: Tensor
    seed: int

    @cached_property
    def patch(self) -> Tensor:
        """(n,) bool: not a newline or separator."""
        return torch.cat([s.patch for s in self.sources]) if self.sources else torch.zeros(0, dtype=torch.bool)

    @cached_property
    def coords(self) -> Tensor:
        """(n, 4) view, frame, row, column."""
        return torch.cat([s.coords for s in self.sources]) if self.sources else torch.zeros(0, 4, dtype=torch.int64)

    @cached_property
    def seconds(self) -> Tensor | None:
        """(n,) float64 when each is shown, nan where unknown; None where nothing is known of the whole row."""
        if all(source.seconds is None for source in self.sources):
            return None
        return torch.cat([source.token_seconds for source in self.sources])

    @cached_property
    def source(self) -> Tensor:
        """(n,) ordinal of the source of each."""
        lengths = torch.tensor([len(s) for s in self.sources])
        return torch.arange(len(self.sources)).repeat_interleave(lengths)

    @cached_property
    def text(self) -> Tensor:
        """(M,) columns that hold neither visual tokens nor padding."""
        text = self.real.clone()
        text[self.columns] = False
        return text.nonzero().flatten()

    @cached_property
    def start(self) -> int:
        """The first column that is not padding."""
        return int(self.real.long().argmax()) if bool(self.real.any()) else 0


@dataclass(frozen=True)
class Layout:
    """The rows of a batch; ``length`` is L, the columns of this forward."""

    rows: tuple[Row, ...]
    length: int

    @property
    def n_visual(self) -> int:
        return sum(len(row.columns) for row in self.rows)


def build_layout(
    kinds: Tensor, ids: Tensor | None, real: Tensor, sources: dict[str, Sequence[Source]], names: Sequence[str]
) -> Layout:
    """Joins the placeholders of a batch with the sources that fill them.

    kinds:   (B, L) int64 on the CPU: index into ``names`` of the placeholder's kind, -1 for other tokens.
    ids:     (B, L) token ids on the CPU, or None when the prompt came as embeddings.
    real:    (B, L) bool on the CPU, False for padding.
    sources: of each kind, in the order of the encoder's call; for a batch expanded for beams those of the original
             batch, each row's group being used for all its copies. Missing kinds: every run of placeholders is a
             source of unknown places.
    """
    batch, length = kinds.shape
    queues = {k: _Queue(sources.get(name, ()), int((kinds == k).sum())) for k, name in enumerate(names)}
    rows = []
    for b in range(batch):
        columns = (kinds[b] >= 0).nonzero().flatten()
        counts = {k: int((kinds[b] == k).sum()) for k in queues}
        taken = {k: iter(queue.take(counts[k])) for k, queue in queues.items()}
        seed = 0 if ids is None else zlib.crc32(ids[b][real[b]].numpy().tobytes())
        rows.append(Row(columns, tuple(_in_order(kinds[b][columns], columns, taken, names)), real[b], seed))
    return Layout(tuple(rows), length)


class _Queue:
    """Hands each row the sources that fill its placeholders; rows that are copies for beams get the same ones."""

    def __init__(self, sources: Sequence[Source], placeholders: int):
        total = sum(len(source) for source in sources)
        self.known = total > 0 and placeholders > 0 and placeholders % total == 0
        self.sources, self.copies = list(sources), placeholders // total if self.known else 1
        self.next, self.left, self.group = 0, 0, []

    def take(self, n: int) -> list[Source]:
        if not n or not self.known:
            return []
        if self.left:
            self.left -= 1
            return self.group
        self.group, held = [], 0
        while held < n and self.next < len(self.sources):
            self.group.append(self.sources[self.next])
            held += len(self.sources[self.next])
            self.next += 1
        if held != n:
            self.known = False
            return []
        self.left = self.copies - 1
        return self.group


def _in_order(kinds: Tensor, columns: Tensor, taken: dict, names: Sequence[str]) -> list[Source]:
    """The sources of one row in prompt order; runs of placeholders where the encoder said nothing."""
    found, at, kinds = [], 0, kinds.tolist()
    while at < len(kinds):
        source = next(taken[kinds[at]], None)
        if source is None:
            stop = at + 1
            while stop < len(kinds) and kinds[stop] == kinds[at] and int(columns[stop]) == int(columns[stop - 1]) + 1:
                stop += 1
            source = unknown_source(names[kinds[at]], stop - at)
        found.append(source)
        at += len(source)
    return found
