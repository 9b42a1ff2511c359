"""PruneVid: places that stay alike in a segment become one, the rest is clustered, and the text chooses inside the LLM.

Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", Findings of ACL 2025,
arXiv:2412.16117.
Written from the published formulas and never compared to the authors' code, so parity is not claimed. Known to differ
from it: no noise breaks ties, which go to the lowest index; a group of which nothing would stay keeps one token
(``fewest``); a segment of one frame is dynamic by rule; tokens stay in the order of frames and places
(``order="static-first"``: static places before the frames of their segment); caches of the layers before the cut keep
their tokens (there they are cut too); positions are renumbered at both stages (there only before the LLM); several
videos have segments and budgets of their own. ``keep_ratio`` and models other than PLLaVA are an extension. Images are
kept whole.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, kept
from vtprune.blocks.cells import share
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.peak_segments import peak_segments
from vtprune.blocks.stages import fit_layers
from vtprune.blocks.static_windows import mean_cosine
from vtprune.blocks.threshold import NEVER, raised
from vtprune.blocks.video_frames import counts_of, other_rows, video_counts, video_frames
from vtprune.blocks.window_sums import clustered, in_order
from vtprune.policies.base import check_choices, register, top_rows
from vtprune.policies.checks import check_index, check_number
from vtprune.policies.video_base import NO_VIDEO, VideoPolicy
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens

SIGNAL = "text_attention_max"
_MEMORY = "prunevid"


@register("prunevid")
@dataclass
class PruneVid(VideoPolicy):
    """Segments and clusters by density peaks before the LLM; the best of every group by the text's attention inside.

    keep_ratio: fraction of visual tokens KEPT after the last stage, in (0, 1]: groups share that count by size,
                ``clusters`` becomes ``keep_ratio / inner_keep``, up to 1, and ``similarity`` is raised where static
                places alone would save more. None, if ``n_keep`` is not given either, takes the shares as published:
                how many tokens stay depends on the video.
    segments:   share of a video's frames that are the number of its clusters, in [0, 1].
    similarity: mean cosine over all pairs of frames of a segment above which a place is static, in [-1, 1].
    clusters:   share of the places of a group that clusters are made of, if they are more than ``few``.
    few:        a group of no more places than that stays as it is.
    neighbours: how many of the nearest make the density of a cluster's centre.
    layer:      the first decoder layer after the cut, in a decoder of ``of`` layers; None: no cut.
    inner_keep: share of every group that the cut keeps; alpha in the paper.
    fewest:     how many tokens of a group the cut keeps at least; 0 lets groups vanish.
    of:         depth that ``layer`` is meant for; it is scaled to the model. None: taken as it is.
    order:      "original": by frame and place. "static-first": of a segment the static places, then the frames.
    compat:     nothing is known.
    """

    segments: float = 0.25
    similarity: float = 0.8
    clusters: float = 0.5
    few: int = 14
    neighbours: int = 7
    layer: int | None = 11
    inner_keep: float = 0.4
    fewest: int = 1
    of: int | None = 32
    order: Literal["original", "static-first"] = "original"

    positions: ClassVar[str] = "compact"
    refits: ClassVar[bool] = True

    def __post_init__(self):
        published = self.keep_ratio is None and self.n_keep is None
        super().__post_init__()
        if published:
            self.keep_ratio = None
        check_choices(self, {"order": ("original", "static-first"), "fewest": (0, 1)})
        for option, low in (("segments", 0), ("similarity", -1), ("clusters", 0), ("inner_keep", 0)):
            check_number(option, getattr(self, option), low)
        for option in ("few", "neighbours", "layer", "of"):
            check_index(option, getattr(self, option), optional=option in ("layer", "of"))

    @property
    def sites(self) -> tuple[float, ...]:
        return (BEFORE_LLM,) if self.layer is None else (BEFORE_LLM, self.layer)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.layer is None else frozenset({SIGNAL})

    def fitted(self, facts: ModelFacts) -> "PruneVid":
        """With ``layer`` at the same fraction of this model's depth, and what its kind of model gets as videos."""
        layer = self.layer if self.layer is None else fit_layers((self.layer,), self.of, facts.depth)[0]
        return dataclasses.replace(super().fitted(facts), layer=layer, of=None)

    @property
    def _published(self) -> bool:
        return self.keep_ratio is None and self.n_keep is None

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """Before the LLM as if nothing stood still; inside it, what is left of every video is known."""
        if tokens.site != BEFORE_LLM:
            return self._inner_forecast(tokens)
        videos, _ = video_frames(tokens, self.images or "apart")
        sizes = [video.numel() for video in videos]
        rest = len(tokens) - sum(sizes)

        def left(ratio: float) -> dict[float, int]:
            changed, came = at_ratio(self, ratio), []
            counts = counts_of(sizes, changed.count, self.budget)
            for video, k in zip(videos, counts, strict=True):
                frames, n = video.shape
                whole = k >= video.numel()
                came.append(frames * (n if whole else changed._centres(n, changed._clusters(video.numel(), k))))
            found = {BEFORE_LLM: rest + sum(came)}
            return found if self.layer is None else {**found, self.layer: rest + sum(map(min, came, counts))}

        return Forecast(left)

    def _inner_forecast(self, tokens: VisualTokens) -> Forecast:
        memory = tokens.memory.get(_MEMORY, ())
        sizes = [n for n, _, _ in memory]
        # a video without groups stays whole
        living = torch.arange(len(tokens), device=tokens.hidden.device) if tokens.rows is None else tokens.rows
        alive = [int(torch.isin(living, torch.cat(groups)).sum()) if groups else n for n, _, groups in memory]
        rest = len(tokens) - sum(alive)

        def left(ratio: float) -> dict[float, int]:
            counts = counts_of(sizes, at_ratio(self, ratio).count, self.budget)
            kept = [min(n, k) if groups else n for n, k, (_, _, groups) in zip(alive, counts, memory, strict=True)]
            return {tokens.site: rest + sum(kept)}

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        return self._before(tokens) if tokens.site == BEFORE_LLM else self._inside(tokens)

    # ---- before the LLM

    def _before(self, tokens: VisualTokens) -> Selection:
        device, n = tokens.hidden.device, len(tokens)
        videos, notes = video_frames(tokens, self.images or "apart")
        if not videos:
            none = NO_VIDEO.format(type(self).__name__)
            return dataclasses.replace(Selection.all(tokens), note="; ".join(notes) or none, last=True)
        counts = [None] * len(videos) if self._published else video_counts(videos, self.count, self.budget)
        rows = torch.arange(n, device=device) if tokens.rows is None else tokens.rows
        parts, memory = [kept(other_rows(videos, n, device))], tokens.memory.setdefault(_MEMORY, [])
        for video, k in zip(videos, counts, strict=True):
            if k is not None and k >= video.numel():
                parts.append(kept(video.flatten()))
                memory.append((video.numel(), -1, []))
                continue
            groups = self.merged(tokens.hidden[video], video, self._clusters(video.numel(), k), k or 0)
            last = -1 if tokens.position is None else int(tokens.position[video.flatten()].max())
            placed = in_order(groups, self.order)
            memory.append((video.numel(), last, [rows[part.place.unique()] for part in placed]))
            parts += placed
        return self.answer(tokens, parts, "; ".join(notes))

    def _clusters(self, n: int, k: int | None) -> float:
        """The share of the places of a group that clusters are made of. k: how many of ``n`` tokens stay at the end."""
        if k is None:
            return self.clusters
        return min(1.0, k / n / (self.inner_keep if self.layer is not None and self.inner_keep else 1))

    def merged(self, x: Tensor, video: Tensor, clusters: float, wanted: int = 0) -> list[Sums]:
        """The groups of a video: of each segment the static places, then of every frame the others.

        x: (T, N, C). video: (T, N) rows. wanted: how many tokens must come in at least, if nothing but static places
        stands in their way.
        """
        lengths = peak_segments(x.detach().float().mean(1), max(1, int(len(x) * self.segments + 1e-9)), self.neighbours)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        windows = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        alike = [mean_cosine(x[window]) for window in windows]

        def left(similarity: float) -> int:
            static = [int((one > similarity).sum()) for one in alike]
            pairs = zip(static, lengths, strict=True)
            n = video.shape[1]
            return sum(self._centres(m, clusters) + w * self._centres(n - m, clusters) for m, w in pairs)

        similarity, parts = raised(left, wanted, self.similarity, NEVER), []
        for window, one in zip(windows, alike, strict=True):
            static = one > similarity
            parts.append(self._group(video[window, static], x[window, static], clusters))
            for t in range(window.start, window.stop):
                parts.append(self._group(video[t, ~static][None], x[t, ~static][None], clusters))
        return parts

    def _group(self, rows: Tensor, x: Tensor, clusters: float) -> Sums:
        """(W, m) rows of the same places in W frames."""
        return clustered(rows, x, self._centres(rows.shape[1], clusters), self.neighbours)

    def _centres(self, m: int, clusters: float) -> int:
        """How many clusters are made of ``m`` places."""
        return m if m <= self.few else max(1, int(m * clusters + 1e-9))

    # ---- inside the LLM

    def _inside(self, tokens: VisualTokens) -> Selection:
        device, n = tokens.hidden.device, len(tokens)
        living = torch.arange(n, device=device) if tokens.rows is None else tokens.rows
        alive = torch.ones(n, dtype=torch.bool, device=device)
        memory = tokens.memory.get(_MEMORY, ())
        sizes = [n for n, _, _ in memory]
        counts = [None] * len(sizes) if self._published else counts_of(sizes, self.count, self.budget)
        for (_, last, groups), wanted in zip(memory, counts, strict=True):
            groups = [torch.isin(living, group.to(device)).nonzero().flatten() for group in groups]
            groups = [group for group in groups if len(group)]
            sizes = [len(group) for group in groups]
            if wanted is None:
                shares = [max(self.fewest, int(size * self.inner_keep + 1e-9)) for size in sizes]
            else:
                shares = share(sizes, min(wanted, sum(sizes)))
            score = self._looked_at(tokens, last)
            for group, k in zip(groups, shares, strict=True):
                alive[group] = False
                alive[group[top_rows(score[group], k)]] = True
        if not bool(alive.any()):
            alive[top_rows(self._looked_at(tokens, -1), 1)] = True
        return Selection(alive.nonzero().flatten())

    def _looked_at(self, tokens: VisualTokens, last: int) -> Tensor:
        """(N,): the largest attention that a head of the text behind column ``last`` pays; 0 where there is none."""
        rows = tokens.signals[SIGNAL]
        if tokens.text_position is not None:
            rows = rows[tokens.text_position.to(rows.device) > last]
        return rows.amax(0) if len(rows) else torch.zeros(len(tokens), device=rows.device)
