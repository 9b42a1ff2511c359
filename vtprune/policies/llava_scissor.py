"""LLaVA-Scissor: tokens that a chain of similar tokens joins become one, within frames and then over the video.

Sun et al., "LLaVA-Scissor: Token Compression with Semantic Connected Components for Video LLMs", 2025,
arXiv:2506.21862.
Differs from the authors' code: components are exact (there a sample of the nodes is followed, which loses some in long
videos), newlines stay where the model has them (there a layout without any is forced), several videos work, each by
itself, ties go to the lowest index. A component stands at the place of the token with most neighbours, which is the
released order. ``keep_ratio``, which looks for the threshold, and images, as videos of one frame, are extensions.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.clip_grids import clip_grids
from vtprune.blocks.component_counts import HELD, ComponentCounts
from vtprune.blocks.components import representatives, similar_components
from vtprune.blocks.forecast import Forecast, one_cut
from vtprune.blocks.frame_runs import IMAGES, usual_images
from vtprune.blocks.resize import plan_matrix
from vtprune.blocks.threshold import fit_threshold
from vtprune.policies.base import check_choices, check_how_many, register
from vtprune.tokens import BEFORE_LLM, ModelFacts, Selection, VisualTokens
from vtprune_kernels.merge import merge_tokens

BLOCK = 4096  # rows


@register("llava_scissor")
@dataclass
class LLaVAScissor:
    """Means of connected components of the cosine graph; then every token joins the nearest of them.

    keep_ratio: fraction of visual tokens KEPT, in (0, 1]: the threshold is looked for that leaves as many of each video
                or a few less. None takes ``similarity``, as published.
    n_keep:     absolute number of visual tokens kept of each video, instead of ``keep_ratio``.
    similarity: cosine similarity above which two tokens are neighbours, in [-1, 1]; the released code has 0.95.
    images:     "apart": every image is a clip of its own. "frames": consecutive images of equal grids are the frames of
                one clip. "spaced": so they are where text stands between them, not where they touch, as tiles do.
                None: "spaced" on InternVL, which gets videos so, else "apart".
    """

    keep_ratio: float | None = None
    similarity: float = 0.95
    images: Literal["apart", "spaced", "frames"] | None = None
    n_keep: int | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    sites: ClassVar[tuple[float, ...]] = (BEFORE_LLM,)
    positions: ClassVar[str] = "compact"
    exact_count: ClassVar[bool] = False

    def __post_init__(self):
        check_how_many(self.keep_ratio, self.n_keep)
        number = isinstance(self.similarity, (int, float)) and not isinstance(self.similarity, bool)
        if not number or not -1 <= self.similarity <= 1:  # nan compares false
            raise ValueError(f"similarity is a cosine, a number in [-1, 1]; got {self.similarity!r}")
        check_choices(self, {"images": IMAGES})

    def fitted(self, facts: ModelFacts) -> "LLaVAScissor":
        """Takes over how this kind of model gets videos, where no option says it."""
        return dataclasses.replace(self, images=self.images or usual_images(facts))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        clips = clip_grids(tokens, self.images or "apart")
        sizes = [sum(len(grid.rows) for views in clip for grid in views) for clip in clips]
        return one_cut(self, tokens.site, sizes, len(tokens) - sum(sizes))

    def count(self, n: int) -> int:
        """How many of the ``n`` tokens of a clip may be left: half rounds to even, 1 to n."""
        return min(n, max(1, round(n * self.keep_ratio) if self.n_keep is None else self.n_keep))

    def select(self, tokens: VisualTokens) -> Selection:
        """Every clip by itself."""
        if self.keep_ratio == 1:
            return Selection.all(tokens)
        covered = torch.zeros(len(tokens), dtype=torch.bool)
        parts = []
        for clip in clip_grids(tokens, self.images or "apart"):
            frames = [torch.cat([grid.rows for grid in views]) for views in clip]
            rows = torch.cat(frames)
            covered[rows] = True
            x = tokens.hidden[rows.to(tokens.hidden.device)].float()
            parts.append((rows, x, self._components(x, [len(frame) for frame in frames])))
        return _selection(tokens, parts, (~covered).nonzero().flatten())

    def _components(self, x: Tensor, sizes: Sequence[int]) -> "Components":
        attempt = partial(components_of_video, x, sizes)
        if self.keep_ratio is None and self.n_keep is None:
            return attempt(self.similarity)
        wanted = self.count(len(x))
        if max(sizes) ** 2 <= HELD:
            found = attempt(fit_threshold(ComponentCounts(x, sizes), wanted, -1.0, 1.0).similarity)
            # where sums were rounded otherwise than in the count, a component more may be left
            if len(found) <= wanted:
                return found
        return fit_threshold(attempt, wanted, -1.0, 1.0)


@dataclass(frozen=True)
class Components:
    """anchor: (K,) rows, ascending. part: (N,) the component of each row. weight: (N,) of each row in the mean of its
    component. in_frames: how many components the frames had by themselves."""

    anchor: Tensor
    part: Tensor
    weight: Tensor
    in_frames: int

    def __len__(self) -> int:
        return len(self.anchor)


def components_of_video(x: Tensor, sizes: Sequence[int], similarity: float) -> Components:
    """Components of each frame, then of the means of all of them. x: (N, D) float32; sizes: tokens of each frame."""
    anchors, parts, count, start = [], [], 0, 0
    for frame in x.split(list(sizes)):
        anchor, part = representatives(*similar_components(frame, similarity))
        anchors.append(anchor + start)
        parts.append(part + count)
        count, start = count + len(anchor), start + len(frame)
    anchor, part = torch.cat(anchors), torch.cat(parts)
    size = torch.bincount(part, minlength=count)
    chosen, whole = representatives(*similar_components(merge_tokens(x, part, None, count), similarity))
    weight = 1 / (size * torch.bincount(whole)[whole]).float()
    return Components(anchor[chosen], whole[part], weight[part], count)


def _nearest(x: Tensor, centre: Tensor) -> Tensor:
    """(N,) int64: the row of ``centre`` of largest cosine similarity."""
    centre = F.normalize(centre, dim=-1).T
    return torch.cat([(F.normalize(some, dim=-1) @ centre).argmax(1) for some in x.split(BLOCK)])


def _selection(tokens: VisualTokens, parts: Sequence[tuple[Tensor, Tensor, Components]], alone: Tensor) -> Selection:
    """Every component is the mean of its own mean and of all tokens nearest to that. alone: rows that stay as is."""
    device, n = tokens.hidden.device, len(tokens)
    keep, row, column, weight, count = [alone.to(device)], [], [], [], len(alone)
    row.append(torch.arange(count, device=device))
    column.append(keep[0])
    weight.append(torch.ones(count, device=device))
    for rows, x, found in parts:
        rows, k = rows.to(device), len(found)
        owner = _nearest(x, merge_tokens(x, found.part, found.weight, k))
        share = 1 / (1 + torch.bincount(owner, minlength=k)).float()
        keep.append(rows[found.anchor])
        row += [count + found.part, count + owner]
        column += [rows, rows]
        weight += [found.weight * share[found.part], share[owner]]
        count += k
    keep, order = torch.cat(keep).sort()
    if len(keep) == n:
        return Selection(keep)
    return Selection(
        keep, plan_matrix(order.argsort()[torch.cat(row)], torch.cat(column), torch.cat(weight), (len(keep), n))
    )
