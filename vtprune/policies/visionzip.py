"""VisionZip: keep what the vision tower's [CLS] token attends to, and merge the others into a few contextual tokens.

Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv:2412.04467,
section 3. As released, an anchor becomes the sum of itself and the mean of those that join it, before the projector;
``merge="mean"`` averages them. The number kept includes the class token and the contextual tokens; at 192, 128 and 64
of 576 it is split as published.
Differs from the authors' code: one model is wrapped, not every CLIP of the process; every image has its own count; the
tiles of an image cut into several share it and its first tile's class token is kept (there each tile keeps as many and
its own), and ``budget="prompt"`` takes all images of a prompt for one; ties go to the lowest index. Extensions: videos,
and models without a class token, where the attention that a patch gets from all patches in the last layer stands in, no
class token is added and visual tokens are averaged in their places, as they are where ``space="decoder"`` asks for it.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.class_attention import ClassAttention
from vtprune.blocks.key_merge import Zip, zip_rows
from vtprune.policies.base import check_choices, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

NO_CLASS_TOKEN = "no class token was added: videos have one for each frame, and some projectors take another width"
AFTER_PROJECTOR = "tokens are averaged after the projector, without a class token; the method merges before it"


@register("visionzip")
@dataclass
class VisionZip(ClassAttention):
    """Dominant tokens by the [CLS] token's attention, then contextual ones: the others, merged by their keys.

    contextual_share: of the kept tokens, how many are contextual, 0 to below 1; half rounds to even.
    merge:            "add" as released, "mean" the plain average; after the projector it is always the average.
    order:            "method": class token, dominant, contextual tokens; "raster": class token, then all by place.
    space:            where tokens are merged: "tower" (before the projector, as published) or "decoder"; "auto" is the
                      first where the vision tower has a class token. Policies used by themselves take "decoder".
    """

    contextual_share: float = 10 / 64
    merge: Literal["add", "mean"] = "add"
    order: Literal["method", "raster"] = "method"
    space: Literal["auto", "tower", "decoder"] = "auto"

    def __post_init__(self):
        super().__post_init__()
        share = self.contextual_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ValueError(f"contextual_share is a share of the kept tokens, 0 to below 1; got {share!r}")
        choices = {"merge": ("add", "mean"), "order": ("method", "raster"), "space": ("auto", "tower", "decoder")}
        check_choices(self, choices)

    def fitted(self, facts: ModelFacts) -> "VisionZip":
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
        """The dominant tokens and the anchors of every pool."""
        score, key = self.class_score(tokens), tokens.signals[self._keys].mean(0).T
        if self.space == "tower":
            return self._before_projector(tokens, score, key)
        merge, kept = torch.full((len(tokens),), -1, device=tokens.hidden.device), []
        for pool in self.pools(tokens):
            zipped = self._zip(score[pool], key[pool], False)
            kept.append(pool.start + zipped.rows)
            if len(zipped.anchors):
                merge[pool.start + zipped.rest] = pool.start + zipped.anchors[zipped.to]
        keep = torch.cat(kept).sort().values
        if len(keep) == len(tokens):
            return Selection.all(tokens)
        merge[keep] = keep
        return Selection(keep, torch.where(merge < 0, -1, torch.searchsorted(keep, merge)))

    def _before_projector(self, tokens: VisualTokens, score: Tensor, key: Tensor) -> Selection:
        seen, keep, values, note = tokens.signals["unprojected"], [], [], ""
        for pool in self.pools(tokens):
            if self.count(pool.stop - pool.start) == pool.stop - pool.start:
                keep.append(torch.arange(pool.start, pool.stop, device=tokens.hidden.device))
                values.append(tokens.hidden[pool])
                continue
            first = next(s for s in tokens.segments if s.span.start >= pool.start and len(s))
            row = seen.classes[first.source]
            note = note or ("" if row is not None else NO_CLASS_TOKEN)
            zipped, x = self._zip(score[pool], key[pool], row is not None), seen.features[pool]
            rows, made = zipped.rows, torch.cat([x[zipped.dominant], zipped.anchored(x, self.merge)])
            if self.order == "raster":
                made = made[rows.argsort()]
            if len(rows) < self.count(len(x)):
                # the class token has no row of its own; with compact positions any will do
                rows, made = torch.cat([rows, zipped.rest[:1]]), torch.cat([row[None], made])
            keep.append(pool.start + rows.sort().values)
            values.append(seen.project(made).to(tokens.hidden.dtype))
        if sum(map(len, keep)) == len(tokens):
            return Selection.all(tokens)
        return Selection(torch.cat(keep), values=torch.cat(values), note=note)

    def _zip(self, score: Tensor, key: Tensor, class_token: bool) -> Zip:
        """The rows of one pool; a class token is one of those that are counted, where two others are left."""
        k = self.count(len(score))
        contextual = min(k - 1, round(k * self.contextual_share))
        dominant = k - contextual
        return zip_rows(score, key, dominant - (class_token and dominant > 1), contextual)
