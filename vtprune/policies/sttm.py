"""STTM: cells of a frame that are like all their parts become one token, and so do like cells of neighbouring frames.

Hyun et al., "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration of Video LLMs", ICCV 2025,
arXiv:2507.07990.
Differs from the authors' code: cells joined over time are followed to the end (there some joined cells stay apart); a
cell at the border, which may have one or two parts, is compared with those alone (there with a corner of the frame
too); several videos work, each by itself; tokens stand at the place of the first patch of their earliest cell, in any
position scheme. ``keep_ratio``, which looks for the spatial threshold, and images, which are videos of one frame, are
extensions.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from vtprune.blocks.clip_grids import clip_grids
from vtprune.blocks.forecast import Forecast, one_cut
from vtprune.blocks.frame_grid import Grid, check_whole
from vtprune.blocks.frame_runs import IMAGES, usual_images
from vtprune.blocks.grouping import Groups, group_selection, joined
from vtprune.blocks.quadtree import pyramid, split_cells, unite_boxes
from vtprune.blocks.threshold import NEVER, fit_threshold
from vtprune.policies.base import check_choices, check_how_many, quirks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("early-stop-union", "border-slot")
ROOTS_ONLY = (
    "the coarsest cells are more than keep_ratio allows, so no fewer tokens were kept; a smaller root makes them larger"
)


@register("sttm")
@dataclass
class STTM:
    """Means of quadtree cells, joined over time, at one place inside the decoder.

    keep_ratio:    fraction of visual tokens KEPT, in (0, 1]: the ``spatial`` threshold is looked for that leaves as
                   many of each video or a few less, and where none does, ``temporal`` is lowered or raised as well.
                   None takes both as they are, as published.
    n_keep:        absolute number of visual tokens kept of each video, instead of ``keep_ratio``.
    spatial:       a cell is one token if its cosine similarity to each of its four parts is at least this; published
                   with 0.75 to 0.95, by benchmark.
    temporal:      cells of neighbouring frames, one inside the other, become one from this similarity on; published
                   with 0.5 to 0.9; 0 or less joins nothing.
    root:          the level of the largest cells: 0 has a side of 2 cells, every further level doubles the sides.
    layer:         the first decoder layer that sees fewer tokens; published with 2, and 0 for the model of 72B.
    area_weighted: whether a cell counts for its tokens in the mean of joined cells; otherwise all cells count alike.
    images:        "apart": every image is a clip of its own. "frames": consecutive images of equal grids are the frames
                   of one clip. "spaced": so they are where text stands between them, not where they touch, as tiles do.
                   None: "spaced" on InternVL, which gets videos so, else "apart".
    compat:        what the released code does, one or several joined by commas: "early-stop-union" leaves some joined
                   cells apart; "border-slot" compares cells at the border with a corner of the frame.
    """

    keep_ratio: float | None = None
    spatial: float = 0.85
    temporal: float = 0.7
    root: int = 1
    layer: int = 2
    area_weighted: bool = False
    images: Literal["apart", "spaced", "frames"] | None = None
    compat: str = ""
    n_keep: int | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    positions: ClassVar[str] = "compact"
    exact_count: ClassVar[bool] = False

    def __post_init__(self):
        check_how_many(self.keep_ratio, self.n_keep)
        for option in ("spatial", "temporal"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:  # nan too
                raise ValueError(f"{option} is a cosine, a number in [-1, 1]; got {value!r}")
        for option in ("root", "layer"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{option} is an integer of 0 or more; got {value!r}")
        check_choices(self, {"images": IMAGES, "area_weighted": (False, True)})
        self._quirks = quirks(self.compat, COMPAT)

    @property
    def sites(self) -> tuple[int, ...]:
        return (self.layer,)

    def fitted(self, facts: ModelFacts) -> "STTM":
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
        """Every clip by itself. Raises NotImplementedError where frames are not whole."""
        if self.keep_ratio == 1:
            return Selection.all(tokens)
        clips, parts, note = clip_grids(tokens, self.images or "apart"), [], ""
        check_whole(clips)
        for clip in clips:
            rows = torch.cat([grid.rows for views in clip for grid in views])
            cut = Cutting(self, tokens, rows, clip)
            if self.keep_ratio is None and self.n_keep is None:
                groups = cut(self.spatial, self.temporal)
            else:
                wanted = self.count(len(rows))
                groups = fit_threshold(cut.on_the_way, wanted, -1.0, 2.0)
                note = ROOTS_ONLY if len(groups) > wanted else note
            parts.append((rows, groups))
        return group_selection(joined(parts, len(tokens), tokens.hidden.device), note=note)


class Cutting:
    """Cuts the frames of one clip by any spatial threshold; each view of an image is a clip of its own."""

    def __init__(self, policy: STTM, tokens: VisualTokens, rows: torch.Tensor, clip: list[tuple[Grid, ...]]):
        self.policy, self.n = policy, len(rows)
        views: dict[int, list[Grid]] = {}
        for frame in clip:
            for view, grid in enumerate(frame):
                views.setdefault(view, []).append(grid)
        place = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
        place[rows] = torch.arange(self.n)
        self.views = []
        for grids in views.values():
            mine = torch.stack([grid.rows for grid in grids])
            x = tokens.hidden[mine.to(tokens.hidden.device)].float()
            slot = "border-slot" in policy._quirks
            levels = pyramid(x, grids[0].height, grids[0].width, border_slot=slot)
            self.views.append((place[mine.flatten()], x.flatten(0, 1), len(grids), levels))

    def __call__(self, spatial: float, temporal: float) -> Groups:
        """Groups of the clip's rows."""
        policy, parts = self.policy, []
        how = {"area_weighted": policy.area_weighted, "early_stop": "early-stop-union" in policy._quirks}
        for rows, x, frames, levels in self.views:
            boxes = split_cells(levels, spatial, policy.root)
            parts.append((rows, unite_boxes(x, boxes, frames, temporal, **how)))
        return joined(parts, self.n, self.views[0][1].device)

    def on_the_way(self, step: float) -> Groups:
        """Few tokens at -1, many at 2: from 0 to 1 the spatial threshold rises, the temporal one before and after."""
        temporal = self.policy.temporal
        if temporal > 0 and step < 0:
            temporal = max(temporal * (1 + step), 1e-6)
        elif temporal > 0 and step > 1:
            temporal += (NEVER - temporal) * (step - 1)
        return self(-1 + (NEVER + 1) * min(max(step, 0.0), 1.0), temporal)
