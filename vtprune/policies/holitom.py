"""HoliTom: places that stay alike over a window of frames become one, and of the others the tokens best looked at stay.

Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025, arXiv:2505.21334.
Differs from the authors' code: the count is exact, for which ``similarity`` is raised where static places alone would
save more than was asked for (``compat="ceil-overshoot"`` rounds up in every frame and lets them, as there); what is
dropped inside the LLM is averaged into the token most like it (there each one halves what was there before, so that
their order decides: ``compat="halving"``); tokens stay in the order of frames and places (``compat="static-first"``,
the published order on LLaVA-OneVision, puts static places before the frames of their window); several videos have a
budget each (there the first one's); ``contextual`` above 0, an extension, works; no noise breaks ties, which go to the
lowest index; similarities are computed in float32; positions are renumbered at both stages (there only before the LLM).
Models other than LLaVA-OneVision and LLaVA-Video are an extension. Images are kept whole.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, kept
from vtprune.blocks.fold import folded
from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.stages import fit_layers
from vtprune.blocks.static_windows import credited, fit_counts, static_places, static_windows
from vtprune.blocks.threshold import NEVER, raised
from vtprune.blocks.video_frames import counts_of, other_rows, video_counts, video_frames
from vtprune.blocks.window_sums import clustered, in_order
from vtprune.policies.base import check_choices, register, top_rows
from vtprune.policies.checks import check_index, check_number
from vtprune.policies.video_base import NO_VIDEO, VideoPolicy
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens
from vtprune_kernels.frame_similarity import frame_similarity

SALIENCE, ROW = "vision_attention", "last_query_attention"
_MEMORY = "holitom"


@register("holitom")
@dataclass
class HoliTom(VideoPolicy):
    """Windows by dynamic programming, static places clustered, dynamic tokens by attention; one merge inside the LLM.

    keep_ratio:  fraction of visual tokens KEPT after the last stage; 0.05 if neither it nor ``n_keep`` is given. With
                 ``layer`` the stage before the LLM leaves ``keep_ratio / inner_keep`` of them, which is the
                 publication's retention: its 10 % are 0.05 here, or 0.1 with layer=None.
    similarity:  cosine above which a place is static from one frame to the next, in [-1, 1]. None: as published, 0.65
                 where less than 15 % stay before the LLM, else 0.8.
    contextual:  share of a frame's dynamic tokens that are clusters, instead of the best by attention, in [0, 1].
    centre:      "blend": a cluster is ``beta`` times its centre and 1 - ``beta`` times the mean of its other members.
                 "mean": the plain mean of all.
    beta:        in [0.5, 1].
    neighbours:  how many of the nearest make the density of a cluster's centre.
    longest:     frames of a window at most.
    layer:       the first decoder layer after the merge inside the LLM, in a decoder of ``of`` layers; None: no such
                 merge.
    inner_keep:  fraction of the tokens that reach ``layer`` which stay, in (0, 1].
    of:          depth that ``layer`` is meant for; it is scaled to the model. None: taken as it is.
    compat:      what the released code does, one or several joined by commas: "ceil-overshoot", "halving",
                 "static-first".
    """

    similarity: float | None = None
    contextual: float = 0.0
    centre: Literal["blend", "mean"] = "blend"
    beta: float = 0.6
    neighbours: int = 7
    longest: int = 1024
    layer: int | None = 18
    inner_keep: float = 0.5
    of: int | None = 28

    positions: ClassVar[str] = "compact"
    refits: ClassVar[bool] = True
    known_compat: ClassVar[tuple[str, ...]] = ("ceil-overshoot", "halving", "static-first")

    def __post_init__(self):
        if self.keep_ratio is None and self.n_keep is None:
            self.keep_ratio = 0.05
        super().__post_init__()
        check_choices(self, {"centre": ("blend", "mean")})
        for option, low in (("similarity", -1), ("contextual", 0), ("beta", 0.5), ("inner_keep", 0)):
            check_number(option, getattr(self, option), low, optional=option == "similarity")
        if not self.inner_keep:
            raise ValueError(f"inner_keep is the fraction KEPT inside the LLM, in (0, 1]; got {self.inner_keep!r}")
        for option in ("neighbours", "longest", "layer", "of"):
            check_index(option, getattr(self, option), optional=option in ("layer", "of"))

    @property
    def sites(self) -> tuple[float, ...]:
        return (BEFORE_LLM,) if self.layer is None else (BEFORE_LLM, self.layer)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({SALIENCE} if self.layer is None else {SALIENCE, ROW})

    def fitted(self, facts: ModelFacts) -> "HoliTom":
        """With ``layer`` at the same fraction of this model's depth, and what its kind of model gets as videos."""
        layer = self.layer if self.layer is None else fit_layers((self.layer,), self.of, facts.depth)[0]
        return dataclasses.replace(super().fitted(facts), layer=layer, of=None)

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """Before the LLM as if nothing stood still; inside it, what is left of every video is known."""
        if tokens.site != BEFORE_LLM:
            videos, living = tokens.memory.get(_MEMORY, ()), _rows(tokens)
            alive = [int(torch.isin(living, rows.to(living.device)).sum()) for rows in videos]
            sizes = [len(rows) for rows in videos]
        else:
            sizes = alive = [video.numel() for video in video_frames(tokens, self.images or "apart")[0]]
        rest = len(tokens) - sum(alive)

        def left(ratio: float) -> dict[float, int]:
            changed = at_ratio(self, ratio)
            counts, found = counts_of(sizes, changed.count, self.budget), {}
            if tokens.site == BEFORE_LLM:
                came = [min(n, changed._wanted(n, k)[1]) for n, k in zip(sizes, counts, strict=True)]
                found[BEFORE_LLM] = rest + sum(came)
            if self.layer is not None:
                found[self.layer] = rest + sum(map(min, came if found else alive, counts))
            return found

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        return self._before(tokens) if tokens.site == BEFORE_LLM else self._inside(tokens)

    # ---- before the LLM

    def _before(self, tokens: VisualTokens) -> Selection:
        videos, notes = video_frames(tokens, self.images or "apart")
        if not videos:
            none = NO_VIDEO.format(type(self).__name__)
            return dataclasses.replace(Selection.all(tokens), note="; ".join(notes) or none, last=True)
        counts = video_counts(videos, self.count, self.budget)
        rows = _rows(tokens)
        tokens.memory[_MEMORY] = [rows[video.flatten()] for video in videos]
        parts = [kept(other_rows(videos, len(tokens), tokens.hidden.device))]
        for video, k in zip(videos, counts, strict=True):
            ratio, wanted = self._wanted(video.numel(), k)
            whole = wanted >= video.numel()
            parts += [kept(video.flatten())] if whole else self.merged(tokens, video, ratio, wanted, k)
        return self.answer(tokens, parts, "; ".join(notes))

    @property
    def _inner_keep(self) -> float:
        return 1.0 if self.layer is None else self.inner_keep

    def _wanted(self, n: int, k: int) -> tuple[float, int]:
        """The fraction and the number of the ``n`` tokens of a video that come in, of which ``k`` are left at last."""
        exactly = self.n_keep is None and self.budget == "segment"
        ratio = min(1.0, (self.keep_ratio if exactly else k / n) / self._inner_keep)
        return ratio, max(1, round(n * ratio))

    def merged(self, tokens: VisualTokens, video: Tensor, ratio: float, wanted: int, least: int = 0) -> list[Sums]:
        """What is left of one video, (T, N) rows, before the LLM.

        ratio: the fraction, wanted: the count, of which static places may save all but ``least``.
        """
        x, salience = tokens.hidden[video], tokens.signals[SALIENCE][video].float()
        threshold = self.similarity if self.similarity is not None else 0.65 if ratio < 0.15 else 0.8
        similarity = frame_similarity(x)[1:]
        if "ceil-overshoot" not in self._quirks:
            left = partial(_left, similarity, video.numel(), self.longest)
            threshold = raised(left, least, threshold, NEVER)
        similar = similarity > threshold
        lengths, saved = static_windows(similar, self.longest)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        static = torch.stack([static_places(similar, s, n) for s, n in zip(starts, lengths, strict=True)])
        dynamic = ~static.repeat_interleave(torch.tensor(lengths, device=static.device), 0)
        share = credited(ratio, video.numel(), saved)
        n_static = [round(n * share) for n in static.sum(1).tolist()]
        spare = 0 if "ceil-overshoot" in self._quirks else 1e-9
        n_dynamic = [math.ceil(n * share - spare) for n in dynamic.sum(1).tolist()]
        if "ceil-overshoot" not in self._quirks:
            n_static, n_dynamic = fit_counts(static, dynamic, salience, n_static, n_dynamic, wanted)
        beta, parts = self.beta if self.centre == "blend" else None, []
        for places, start, length, n in zip(static, starts, lengths, n_static, strict=True):
            window = slice(start, start + length)
            parts.append(clustered(video[window, places], x[window, places], n, min(n, self.neighbours), beta))
            for t in range(start, start + length):
                places = dynamic[t].nonzero().flatten()
                parts.append(self._dynamic(video[t, places], x[t, places], salience[t, places], n_dynamic[t], beta))
        return in_order(parts, "static-first" if "static-first" in self._quirks else "original")

    def _dynamic(self, rows: Tensor, x: Tensor, salience: Tensor, n: int, beta: float | None) -> Sums:
        """The dynamic tokens of a frame that stay, and clusters of those that do not."""
        salient = top_rows(salience, round(n * (1 - self.contextual)))
        best = kept(rows[salient])
        if n == len(salient):
            return best
        others = torch.ones(len(rows), dtype=torch.bool, device=rows.device).index_fill(0, salient, False)
        k = n - len(salient)
        context = clustered(rows[others][None], x[others][None], k, min(k, self.neighbours), beta)
        return Sums(*(torch.cat(both) for both in zip(best, context, strict=True)))

    # ---- inside the LLM

    def _inside(self, tokens: VisualTokens) -> Selection:
        device, n = tokens.hidden.device, len(tokens)
        living = _rows(tokens)
        alone, parts = torch.ones(n, dtype=torch.bool, device=device), []
        videos = tokens.memory.get(_MEMORY, ())
        for rows, count in zip(videos, counts_of([len(rows) for rows in videos], self.count, self.budget), strict=True):
            mine = torch.isin(living, rows.to(device)).nonzero().flatten()
            k = min(len(mine), count)
            if "ceil-overshoot" in self._quirks:
                k = max(1, round(len(mine) * max(self.inner_keep, self.keep_ratio or 0)))
            if k < len(mine):
                alone[mine] = False
                keep = top_rows(tokens.signals[ROW][mine], k)
                parts.append(folded(mine, tokens.hidden[mine], keep, "halving" in self._quirks))
        return self.answer(tokens, [kept(alone.nonzero().flatten()), *parts], "")


def _rows(tokens: VisualTokens) -> Tensor:
    """(N,) which of the sample's visual tokens these are."""
    return torch.arange(len(tokens), device=tokens.hidden.device) if tokens.rows is None else tokens.rows


def _left(similarity: Tensor, n: int, longest: int, threshold: float) -> int:
    """How many of the ``n`` tokens of a video are left if static places become one. similarity: (T - 1, N)."""
    return n - static_windows(similarity > threshold, longest)[1]
