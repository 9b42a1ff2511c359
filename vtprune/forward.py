"""One forward of a wrapped model: which rows of every sample are alive, and what happens to them at a site.

The state of a forward lives in a context variable and ends with it; nothing of it stays on the model. Indices are
kept on the CPU, where they are checked; a site costs one transfer from the device and one back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtprune import compat
from vtprune.apply import Merge, Step, build_step, scatter_rows
from vtprune.cache import Arrival
from vtprune.check import check_selections
from vtprune.equal import equalized
from vtprune.layout import Layout, Row
from vtprune.padding import real_columns
from vtprune.records import Prefill, SiteRecord
from vtprune.stopwatch import Stopwatch
from vtprune.tokens import BEFORE_LLM, Segment, Selection, VisualTokens

if TYPE_CHECKING:
    from vtprune.evict import Watched
    from vtprune.prompt import Prompt
    from vtprune.sink_rule import SinkRule
    from vtprune.transition import Transitions

CURRENT: ContextVar[Forward | None] = ContextVar("vtprune_forward", default=None)


@dataclass
class Sample:
    """One row of the batch in the middle of a forward. Index tensors are on the CPU.

    offered: (n,) which of ``row.columns`` policies may prune; rows of ``VisualTokens`` count these.
    alive:   (k,) rows of ``offered`` that are still there.
    visual:  (k,) their physical rows. others: (m,) physical rows of everything else, padding included.
    text:    (M,) physical rows of the text tokens.
    """

    row: Row
    offered: Tensor
    alive: Tensor
    visual: Tensor
    others: Tensor
    text: Tensor
    memory: dict = field(default_factory=dict)
    done: bool = False

    @staticmethod
    def start(row: Row, length: int, newlines: bool) -> Sample:
        """A row in which nothing was pruned yet."""
        offered = torch.arange(len(row.columns)) if newlines else row.patch.nonzero().flatten()
        visual = row.columns[offered]
        other = torch.ones(length, dtype=torch.bool)
        other[visual] = False
        return Sample(row, offered, torch.arange(len(offered)), visual, other.nonzero().flatten(), row.text)

    def segments(self) -> tuple[Segment, ...]:
        """The images and videos of which a token is offered, with their living rows."""
        source = self.row.source[self.offered[self.alive]]
        counts = torch.bincount(source, minlength=len(self.row.sources)).tolist()
        segments, at = [], 0
        for ordinal, (origin, count) in enumerate(zip(self.row.sources, counts, strict=True)):
            if bool(origin.patch.any()):
                alive = slice(at, at + count)
                segments.append(Segment(alive, origin.grids, origin.kind, ordinal, origin.clip, origin.crops))
            at += count
        return tuple(segments)

    def tokens(
        self, hidden: Tensor, site: float, signals: Mapping[str, Tensor], stands_for: Tensor | None = None
    ) -> VisualTokens:
        """What the policy sees. hidden: (P, D) all physical rows of this sample; stands_for: (P,) or None."""
        device, index = hidden.device, self.offered[self.alive]
        return VisualTokens(
            hidden=hidden[self.visual.to(device)],
            text=hidden[self.text.to(device)],
            segments=self.segments(),
            signals=signals,
            site=site,
            rows=self.alive.to(device),
            coords=self.row.coords[index].to(device),
            position=(self.row.columns[index] - self.row.start).to(device),
            text_position=(self.row.text - self.row.start).to(device),
            length=int(self.row.real.sum()),
            seed=self.row.seed,
            memory=self.memory,
            seconds=None if self.row.seconds is None else self.row.seconds[index],
            stands_for=None if stands_for is None else stands_for.to(device)[self.visual.to(device)],
        )

    def keep(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Physical rows that live on, ascending, and where the kept visual tokens will stand among them."""
        kept = self.visual[keep]
        rows = torch.cat([self.others, kept]).sort().values
        return rows, torch.searchsorted(rows, kept)

    def move(self, rows: Tensor, keep: Tensor, pad: int) -> None:
        """Takes over the new physical rows after a step that put ``pad`` pads on the left."""
        self.visual = torch.searchsorted(rows, self.visual[keep]) + pad
        self.others = torch.searchsorted(rows, self.others) + pad
        self.text = torch.searchsorted(rows, self.text) + pad
        self.alive = self.alive[keep]


class Forward:
    """The state of one forward.

    length:  columns of this forward. start: of the conversation, those before it.
    columns: (B, P) logical columns of this forward that the physical rows hold; None until something was pruned.
    valid:   (B, P) or None; False for pads that unequal counts made necessary. lengths: rows of each sample but pads.
    cut:     the decoder went on with the last columns alone, so that rows are those and nothing is left to gather.
    waits:   the pictures of this forward are still to be encoded, with its attention ``mask``.
    to_add:  what the model would add between layers: a (B, L) mask of visual tokens, and by layer (visual tokens, D).
    plane:   which of several planes of hidden states policies see.
    stands_for: (B, P) for how many tokens the rows stand in attention; None where all stand for one.
    sinks:   what is done to visual attention sinks; None: nothing.
    arrival: what the cache layers from here on will store; None until something was pruned.
    given:   the arguments of the base model, where the policy reads the prompt.
    """

    def __init__(self, owner: object, policy, outer: Forward | None = None):
        self.owner, self.policy, self.outer = owner, policy, outer
        self.length = self.start = 0
        self.kinds: Tensor | None = None
        self.ids: Tensor | None = None
        self.mask2d: Tensor | None = None
        self.encoded: dict[str, Sequence] = {}
        self.video_pixels: Tensor | None = None
        self.per_step: Tensor | Sequence | None = None
        self.reaching: Tensor | None = None
        self.layout: Layout | None = None
        self.samples: list[Sample] = []
        self.columns: Tensor | None = None
        self.valid: Tensor | None = None
        self.lengths: tuple[int, ...] = ()
        self.stands_for: Tensor | None = None
        self.arrival: Arrival | None = None
        self.steps: list[Step] = []
        self.plain = True
        self.cut = False
        self.waits = False
        self.mask = None
        self.merging: tuple | None = None
        self.to_add: tuple[Tensor, Mapping[int, Tensor]] | None = None
        self.plane = 0
        self.scattered = False
        self.engaged = False
        self.positions = "original"
        # for "compact-vision": what was dropped before the LLM, of each sample and before each row
        self.gone: Tensor | None = None
        self.gaps: Tensor | None = None
        self.equalize = False
        self.sinks: SinkRule | None = None
        self.serving: SiteRecord | None = None
        self.memo: dict = {}
        self.captured: dict[object, tuple] = {}
        self.inside: dict[str, Tensor] = {}
        self.transitions: Transitions | None = None
        self.given: Mapping = {}
        self.prompt: Prompt | None = None
        self.fresh: dict = {}
        self.record: Prefill | None = None
        self.position_ids: Tensor | None = None
        self.cache = None
        self.watched: list[Watched] = []
        self.entering: Tensor | None = None
        self.laps: list[Stopwatch] = []

    def tokens(self) -> Tensor:
        """(B, start + length) bool on the CPU: which columns of the conversation are not padding."""
        if "tokens" not in self.memo:
            width = self.start + self.length
            self.memo["tokens"] = real_columns(self.mask2d, self.mask, len(self.kinds), width)
        return self.memo["tokens"]

    def next_place(self, b: int) -> int:
        """The position of the token that will follow sample ``b``; where it has several coordinates they are equal."""
        if self.position_ids is None:
            return int(self.cache.get_seq_length())
        ids = self.position_ids
        # before time, height and width there may be a row that counts tokens
        ids = ids[-compat.position_rows(self.owner.decoder) :] if ids.dim() == 3 else ids
        return int(ids[..., min(b, ids.shape[-2] - 1), :].max()) + 1

    def begin(self, layout: Layout, newlines: bool) -> None:
        """Takes the layout of a forward that holds visual tokens."""
        self.layout = layout
        self.samples = [Sample.start(row, layout.length, newlines) for row in layout.rows]
        self.record = Prefill(layout, [sample.offered for sample in self.samples])

    @property
    def done(self) -> bool:
        """Whether no sample has anything left to ask."""
        return all(sample.done for sample in self.samples)

    def prune(self, site: float, hidden: Tensor, signals: Callable[[int], Mapping[str, Tensor]], shift: Tensor | None):
        """Asks the policy for every sample and applies its answers.

        hidden:  (B, P, D), or planes (N, B, P, D). signals: of sample b. shift: (B,) renumbering of earlier turns.
        Returns the pruned (B, K, D) or planes of it, or ``hidden`` itself if everything stays.
        """
        if self.done:
            return hidden
        record = SiteRecord(site, [len(sample.visual) for sample in self.samples], Stopwatch.start(hidden.device))
        self.serving = record
        seen = self.seen(hidden)
        numbers = [None] * len(self.samples) if self.stands_for is None else self.stands_for
        offered = [
            sample.tokens(seen[b], site, signals(b), numbers[b]) if len(sample.visual) and not sample.done else None
            for b, sample in enumerate(self.samples)
        ]
        selections = [None if tokens is None else self.policy.select(tokens) for tokens in offered]
        record.lap.stop(hidden.device)
        self.serving = None
        kept = check_selections(selections, offered, self.policy)
        if self.sinks is not None:
            selections = self.sinks.answers(selections, record)
        for b, (sample, selection) in enumerate(zip(self.samples, selections, strict=True)):
            if sample.done:
                kept[b] = torch.arange(len(sample.visual))
            sample.done = sample.done or not len(sample.visual) or (selection is not None and selection.last)
        if self.equalize:
            others = [len(sample.others) for sample in self.samples]
            kept = equalized(kept, selections, record.before, others)
        record.kept = [sample.alive[keep] for sample, keep in zip(self.samples, kept, strict=True)]
        record.merges = [None if selection is None else selection.merge for selection in selections]
        record.notes = list(dict.fromkeys(s.note for s in selections if s is not None and s.note))
        if self.sinks is not None:
            record.notes += self.sinks.notes(record, kept, selections)
        self.record.sites.append(record)
        whole = all(len(k) == n for k, n in zip(kept, record.before, strict=True))
        if whole and not any(s is not None and (s.changes or s.stands_for is not None) for s in selections):
            return hidden
        step = self._step(selections, kept, hidden.device)
        self._advance(step, shift, hidden)
        return step.apply(hidden)

    def _step(self, selections: Sequence[Selection | None], kept: Sequence[Tensor], device: torch.device) -> Step:
        rows, merges, longest = [], [], 0
        for sample, selection, keep in zip(self.samples, selections, kept, strict=True):
            alive, slots = sample.keep(keep)
            rows.append(alive)
            longest = max(longest, len(alive))
            changed = selection is not None and (selection.changes or selection.stands_for is not None)
            merges.append(Merge(sample.visual.to(device), selection, slots.to(device)) if changed else None)
        for sample, alive, keep in zip(self.samples, rows, kept, strict=True):
            sample.move(alive, keep, longest - len(alive))
        return build_step(rows, merges, device)

    def _advance(self, step: Step, shift: Tensor | None, hidden: Tensor) -> None:
        batch, device = step.order.shape[0], hidden.device
        if self.columns is None:
            self.columns = torch.arange(self.length, device=device).expand(batch, -1)
        # layers may lie on several devices: everything follows the layer that prunes
        self.columns, self.valid, self.lengths = step.follow(self.columns.to(device)), step.valid, step.lengths
        self._mind_gaps(step, device)
        if self.positions != "original":
            # a row renumbered from `start` on has moved by what was dropped before its end
            dropped = self.dropped(device)
            shift = dropped if shift is None else shift.to(device) + dropped
        else:
            shift = None
        self.stands_for = step.stand_for(self.stands_for, hidden.dtype)
        bias = None if self.stands_for is None else self.stands_for.log()
        self.arrival = Arrival(self.columns, self.valid, self.length, shift, bias)
        self.steps.append(step)
        self.memo.clear()

    def _mind_gaps(self, step: Step, device: torch.device) -> None:
        """Of rows that keep the places they got before the LLM: what was dropped before them by then."""
        if self.positions != "compact-vision":
            return
        if self.record.sites[-1].site == BEFORE_LLM:
            self.gone, self.gaps = self.length - self.counts(device), self._before()
        elif self.gaps is None:
            self.gone, self.gaps = torch.zeros(len(self.columns), dtype=torch.int64, device=device), self.columns * 0
        else:
            self.gone, self.gaps = self.gone.to(device), step.follow(self.gaps.to(device))

    def dropped(self, device: torch.device) -> Tensor:
        """(B,): by how much what follows is renumbered."""
        return self.length - self.counts(device) if self.gone is None else self.gone.to(device)

    def seen(self, hidden: Tensor) -> Tensor:
        """(B, P, D) what policies see of hidden states, which may be planes (N, B, P, D)."""
        return hidden if hidden.dim() == 3 else hidden[self.plane]

    def ends_whole(self, n: int) -> bool:
        """Whether the last ``n`` columns are the last ``n`` rows of every sample: none of them was dropped."""
        first = self.length - n
        for sample in self.samples:
            gone = torch.ones(len(sample.offered), dtype=torch.bool)
            gone[sample.alive] = False
            if bool((sample.row.columns[sample.offered[gone]] >= first).any()):
                return False
        return True

    def real(self, device: torch.device) -> Tensor:
        """(B, P) bool: which physical rows are tokens, not padding and not pads."""
        key = ("real", device)
        if key not in self.memo:
            real = torch.stack([row.real for row in self.layout.rows]).to(device)
            if self.columns is not None:
                real = real.gather(1, self.columns.to(device))
            self.memo[key] = real if self.valid is None else real & self.valid.to(device)
        return self.memo[key]

    def tokens_behind_padding(self) -> tuple[int, ...] | None:
        """How many tokens each sample ends with, the prompt's own padding left out; None where it stands elsewhere."""
        counts = []
        for row, length in zip(self.layout.rows, self.lengths, strict=True):
            padding = int((~row.real).sum())
            if not bool(row.real[padding:].all()):
                return None
            counts.append(length - padding)
        return tuple(counts)

    def counts(self, device: torch.device) -> Tensor:
        if self.valid is None:
            return torch.full((self.columns.shape[0],), self.columns.shape[1], device=device)
        return self.valid.sum(1)

    def scatter(self, hidden: Tensor) -> Tensor:
        """(..., B, K, D) of the physical rows back to (..., B, L, D), zeros where tokens were dropped."""
        valid = None if self.valid is None else self.valid.to(hidden.device)
        return scatter_rows(hidden, self.columns.to(hidden.device), valid, self.length)

    def dropped_before(self) -> Tensor:
        """(B, K): by how much each physical row is renumbered."""
        return self._before() if self.gaps is None else self.gaps

    def _before(self) -> Tensor:
        """(B, K): how many columns of this forward were dropped before each physical row."""
        counts = self.counts(self.columns.device)
        ordinal = torch.arange(self.columns.shape[1], device=self.columns.device)[None] - (
            self.columns.shape[1] - counts[:, None]
        )
        return (self.columns - ordinal).clamp(min=0)
