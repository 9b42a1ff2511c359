"""PruMerge: tokens that the vision tower's [CLS] token looks at most are centres, and their neighbours join them.

Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
arXiv:2403.15388, section 3. PruMerge+ adds centres that are evenly spaced; the released code runs it.
A centre becomes itself plus the attention-weighted sum of its neighbours, before the projector, and one token more is
the same sum of all tokens that are no centres.
Without ``keep_ratio`` and ``n_keep`` the number follows from the image: outliers of the attention, by quartiles. With
one of them, an extension, exactly so many tokens stay; in PruMerge+ a quarter of the centres by attention.
Differs from the authors' code: every image by itself (there quartiles are those of a batch); tokens keep the order of
the prompt (``order="method"`` sorts by attention); an image without outliers is treated as the fixed variant (there it
fails), as are few tokens and counts above a third in PruMerge+; ties go to the lowest index. Extensions: videos, and
models without a class token, where the attention that a patch gets from all patches in the last layer stands in and
visual tokens are averaged with these weights, as they are where ``space="decoder"`` asks for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.class_attention import HEAD_WEIGHTED, ClassSignal, ReadsClassToken
from vtprune.blocks.key_merge import Sums, neighbour_sums
from vtprune.blocks.resize import plan_matrix
from vtprune.policies.base import check_choices, check_ratio, quirks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("released-grid-575",)
FIXED = 1 / 8
NO_OUTLIERS = "the class token looks at no patch much more than at others, so an eighth of the tokens are centres"
AFTER_PROJECTOR = "tokens are averaged after the projector; the method sums them before it"
RELEASED_END = 575
"""Where the released grid ends: patch 575 of 576 is never one of its samples."""


@register("prumerge")
@dataclass
class PruMerge(ReadsClassToken):
    """Centres by the [CLS] token's attention with all heads taken as one, and what their keys are like.

    ratio:      share of the tokens that are centres by attention; None: as many as there are outliers.
    plus:       PruMerge+: evenly spaced centres besides.
    neighbours: how many other tokens join each centre; a token may join several.
    layer:      of the vision tower, negative ones counted from the end.
    order:      "raster": centres by place; "method": by attention, then evenly spaced ones; the rest is last.
    space:      where tokens are merged: "tower" (before the projector, as published) or "decoder" (averages, in their
                places); "auto" is the first where there is a class token. Policies used by themselves take "decoder".
    compat:     "released-grid-575" ends the even spacing before patch 575, a fault.
    """

    ratio: float | None = None
    plus: bool = False
    neighbours: int = 32
    layer: int = -1
    order: Literal["raster", "method"] = "raster"
    signal: ClassSignal = "auto"
    space: Literal["auto", "tower", "decoder"] = "auto"
    compat: str = ""

    SIGNALS: ClassVar[Mapping[str, str]] = {"cls": "cls_attention_joint", HEAD_WEIGHTED: HEAD_WEIGHTED}

    def __post_init__(self):
        adaptive = self.keep_ratio is None and self.n_keep is None
        super().__post_init__()
        if adaptive:
            self.keep_ratio = None
        if self.ratio is not None:
            check_ratio(self.ratio)
            if not adaptive:
                raise ValueError(
                    f"ratio counts the centres, keep_ratio and n_keep all tokens: give one; got ratio={self.ratio!r} "
                    f"with keep_ratio={self.keep_ratio!r} and n_keep={self.n_keep!r}"
                )
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise ValueError(f"neighbours is how many tokens join a centre, 1 or more; got {self.neighbours!r}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"layer is the index of a layer of the vision tower, such as -1; got {self.layer!r}")
        choices = {"plus": (False, True), "order": ("raster", "method"), "space": ("auto", "tower", "decoder")}
        check_choices(self, choices)
        self._quirks = quirks(self.compat, COMPAT)

    @property
    def exact_count(self) -> bool:
        """Whether a number was asked for."""
        return self.keep_ratio is not None or self.n_keep is not None

    def fitted(self, facts: ModelFacts) -> "PruMerge":
        """With the signal and the merging that the model allows."""
        space = "tower" if facts.class_token and facts.line_positions else "decoder"
        return replace(super().fitted(facts), space=space if self.space == "auto" else self.space)

    @property
    def notes(self) -> tuple[str, ...]:
        return super().notes + ((AFTER_PROJECTOR,) if self.space == "decoder" else ())

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {self._keys} | ({"unprojected"} if self.space == "tower" else set())

    @property
    def _keys(self) -> str:
        return f"vision_keys:{self.layer}"

    def select(self, tokens: VisualTokens) -> Selection:
        """The merged centres of every pool, each pool followed by the sum of its rest."""
        score, key = self.class_rows(tokens)[0].mean(0), tokens.signals[self._keys].flatten(0, 1).T
        slots, entries, whole, made, notes = [], [], [], 0, []
        for pool in self.pools(tokens):
            sums, same = self._sums(score[pool], key[pool], notes)
            slots.append(pool.start + sums.slots)
            entries.append((made + sums.out, pool.start + sums.source, sums.weight))
            whole += [same] * len(sums.slots)
            made += len(sums.slots)
        slots, whole, note = torch.cat(slots), torch.tensor(whole), "; ".join(dict.fromkeys(notes))
        if whole.all():
            return replace(Selection.all(tokens), note=note)
        out, source, weight = (torch.cat(some) for some in zip(*entries, strict=True))
        if self.space != "tower":
            # averages, each in its place
            weight = weight / torch.zeros_like(slots, dtype=weight.dtype).index_add_(0, out, weight)[out]
            matrix = plan_matrix(slots.argsort().argsort()[out], source, weight, (made, len(tokens)))
            return Selection(slots.sort().values, matrix, note=note)
        seen = tokens.signals["unprojected"]
        x = seen.features.to(torch.promote_types(seen.features.dtype, torch.float32))
        x = torch.sparse.mm(plan_matrix(out, source, weight.to(x), (made, len(x))), x)
        values = seen.project(x.to(seen.features.dtype)).to(tokens.hidden.dtype)
        # positions are compact, so slots tell no more than how many rows are taken
        values = torch.where(whole[:, None].to(slots.device), tokens.hidden[slots], values)
        return Selection(slots.sort().values, values=values, note=note)

    def _sums(self, score: Tensor, key: Tensor, notes: list[str]) -> tuple[Sums, bool]:
        """What one pool becomes, and whether that is itself."""
        n, every = len(score), torch.arange(len(score), device=score.device)
        centres = self._centres(score, notes)
        alone = self.exact_count and self.count(n) == 1
        if (self.exact_count and self.count(n) == n) or len(centres) + (not alone) > n:
            return Sums(every, every, every, torch.ones(n, device=score.device)), True
        if self.order == "raster" or self.space != "tower":
            centres = centres.sort().values
        return neighbour_sums(score, key, centres, self.neighbours, not alone), False

    def _centres(self, score: Tensor, notes: list[str]) -> Tensor:
        """(T,) rows: those of most attention, descending, then in PruMerge+ others that are evenly spaced."""
        n, ranked = len(score), score.sort(descending=True, stable=True).indices
        if self.exact_count:
            wanted = max(1, self.count(n) - 1)
            top = ranked[: max(1, round(wanted / 4)) if self.plus else wanted]
            others = _without(torch.arange(n, device=score.device), top)
            spaced = torch.arange(wanted - len(top), device=score.device)
            return torch.cat([top, others[spaced * len(others) // max(1, len(spaced))]])
        ratio = self.ratio or outlier_share(score)
        if not ratio:
            notes.append(NO_OUTLIERS)
            ratio = FIXED
        top = ranked[: max(1, int(n * ratio))]
        if not self.plus:
            return top
        end = min(n, RELEASED_END) if "released-grid-575" in self._quirks else n
        step = max(1, int(int(1 / ratio) / 3))
        return torch.cat([top, _without(torch.arange(0, end, step, device=score.device), top)])


@register("prumerge_plus")
@dataclass
class PruMergePlus(PruMerge):
    """PruMerge+, which adds evenly spaced centres.

    plus: False is PruMerge without them.
    """

    plus: bool = True


def outlier_share(score: Tensor) -> float:
    """The share of scores (N,) above the third quartile plus 1.5 times the distance between the quartiles."""
    low, high = score.float().quantile(torch.tensor([0.25, 0.75], device=score.device))
    return int((score.float() > high + 1.5 * (high - low)).sum()) / len(score)


def _without(rows: Tensor, gone: Tensor) -> Tensor:
    return rows[~torch.isin(rows, gone)]
