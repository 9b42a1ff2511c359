"""Average pooling: a grid is cut into even cells and each becomes one token; the control for methods that merge.

The cells are those of ``uniform``: any count is met exactly, not only divisors of the grid. A merged token stands where
the token nearest to the centre of its cell stood.
"""

from dataclasses import dataclass

from vtprune.blocks.cells import sample_cells
from vtprune.policies.base import ScorePolicy, register
from vtprune.tokens import Selection, VisualTokens


@register("pool")
@dataclass
class Pool(ScorePolicy):
    """Averages every cell into its central token; tokens without a known grid are averaged in runs of prompt order."""

    def select(self, tokens: VisualTokens) -> Selection:
        return Selection(*sample_cells(tokens, self.pools(tokens), self.count))
