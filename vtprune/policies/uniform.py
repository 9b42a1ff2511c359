"""Evenly spread tokens: the control that knows where tokens are and nothing of what they show.

A grid is cut into as many even cells as there are tokens to keep (``vtprune.blocks.cells``), and the token nearest to
the centre of each cell lives on. A video with fewer cells than frames is cut into runs of frames instead: that is a
stride over frames, with the central token of the central frame of each run.
"""

from dataclasses import dataclass

from vtprune.blocks.cells import sample_cells
from vtprune.policies.base import ScorePolicy, register
from vtprune.tokens import Selection, VisualTokens


@register("uniform")
@dataclass
class Uniform(ScorePolicy):
    """Keeps the central token of every cell; tokens without a known grid are strided in prompt order."""

    def select(self, tokens: VisualTokens) -> Selection:
        keep, _ = sample_cells(tokens, self.pools(tokens), self.count)
        return Selection(keep)
