"""ToMe: average, round by round, the tokens that are most alike; half of them look for partners in the other half.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461, section 3.
Differs from the publication: it merges inside every block of a vision transformer, by attention keys, and adds the log
of the sizes to the attention of merged tokens; here all rounds run at once before the LLM, on the visual tokens by
their own vectors, as others use the method to reduce tokens (``proportional=True`` adds those logs in the LLM). Sizes
are carried from round to round as published, so that every token has the same weight in the end. Merged tokens stand at
the place of the partner and rows keep the order of the prompt (``order="method"`` is the released one). Similarities
are computed in float32, ties go to the lowest index. A video is matched as a whole, images each by itself.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from vtprune.blocks.bipartite import merge_pairs
from vtprune.blocks.grouping import group_selection, joined
from vtprune.policies.base import ScorePolicy, check_choices, register
from vtprune.tokens import Selection, VisualTokens


@register("tome")
@dataclass
class ToMe(ScorePolicy):
    """Halves the tokens as often as needed, the last time in part, by the cosine similarity of tokens.

    order: "raster": tokens stay in prompt order from round to round. "method": after each round those that were not
           merged come first, most similar first, and then their possible partners.
    proportional: the log of the sizes is added to what the LLM's attention pays to merged tokens, as published for a
           vision transformer; not possible with FlashAttention.
    """

    order: Literal["raster", "method"] = "raster"
    proportional: bool = False

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        check_choices(self, {"order": ("raster", "method"), "proportional": (True, False)})

    def select(self, tokens: VisualTokens) -> Selection:
        """Every pool by itself, down to its count."""
        method, parts = self.order == "method", []
        for pool in self.pools(tokens):
            rows = torch.arange(pool.start, pool.stop)
            parts.append((rows, merge_pairs(tokens.hidden[pool], self.count(len(rows)), by_similarity=method)))
        groups = joined(parts, len(tokens), tokens.hidden.device)
        selection = group_selection(groups, in_place=not method)
        if not self.proportional or selection.merge is None:
            return selection
        sizes = torch.bincount(groups.group if method else selection.merge)
        return replace(selection, stands_for=sizes.float())
