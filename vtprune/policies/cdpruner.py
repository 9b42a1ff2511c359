"""CDPruner: keep visual tokens that matter for the question and are unlike each other, by a greedy point process.

Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS
2025, arXiv:2506.10967.
Differs from the authors' code: it needs the question's words and CLIP's text tower, which the models here do not have,
so relevance is an option (``vtprune.ClipQuestion`` makes the published one, from a CLIP that is given to it), and
without it the cosine to the question's word embeddings stands in, and the report says so; of that relevance what
follows the tower is in float32 (there the norm is in the tower's dtype); every image has its own scale and its own
search (there all tiles and images of one call share a scale, and each tile is searched); when the picks span all
tokens, the most relevant others follow (there picks repeat, and fewer tokens are kept); equal relevance everywhere is 1
(there a division by 0); the same picks come without a matrix of all pairs; ties go to the lowest index.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.greedy_dpp import dpp, dpp_unguarded, unit_scale
from vtprune.blocks.greedy_pools import picked
from vtprune.blocks.question import mean_cosine, question_rows
from vtprune.policies.base import ScorePolicy, quirks, register
from vtprune.tokens import Selection, VisualTokens

COMPAT = ("released-shared-scale", "released-no-rank-guard")
STANDS_IN = "CDPruner selection with {} relevance; the published method takes it from CLIP's text and image towers"


@register("cdpruner")
@dataclass
class CDPruner(ScorePolicy):
    """Picks greedily by the determinant of diag(r) S diag(r): relevance r in 0..1, cosines S of the visual tokens.

    relevance: "question" (mean cosine to the embeddings of the text after the last image); or one number for each
               visual token, for samples of exactly as many; or a function of the tokens that returns one for each, as
               ``vtprune.ClipQuestion`` is, with the signals named in its ``needs``. Higher is kept; it is scaled to
               0..1.
    compat:    faults of the released code, joined by commas: "released-shared-scale" scales relevance over all images
               of a sample together, "released-no-rank-guard" goes on when the picks span all tokens, so that picks
               repeat and fewer are kept; it makes a matrix of all pairs.
    """

    relevance: Literal["question"] | Tensor | Callable[[VisualTokens], Tensor] = field(
        default="question", compare=False, repr=False
    )
    compat: str = ""

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        self._quirks = quirks(self.compat, COMPAT)
        given = isinstance(self.relevance, Tensor) or callable(self.relevance)
        if not given and not (isinstance(self.relevance, str) and self.relevance == "question"):
            raise ValueError(
                f"relevance is 'question', a tensor (N,) or a function of the visual tokens; got {self.relevance!r}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(getattr(self.relevance, "needs", ()))

    @property
    def notes(self) -> tuple[str, ...]:
        if isinstance(self.relevance, str):
            return (STANDS_IN.format("word-embedding"),)
        told = getattr(self.relevance, "note", None)
        if isinstance(told, str):
            return (told,) if told else ()
        return (STANDS_IN.format("given" if isinstance(self.relevance, Tensor) else "computed"),)

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32 relevance before it is scaled."""
        if isinstance(self.relevance, str):
            return mean_cosine(tokens.hidden, tokens.text[question_rows(tokens)])
        value = self.relevance if isinstance(self.relevance, Tensor) else self.relevance(tokens)
        if not isinstance(value, Tensor) or value.shape != (len(tokens),) or value.is_complex():
            shown = f"<tensor {tuple(value.shape)} {value.dtype}>" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"relevance is one number for each visual token of a sample; this one has {len(tokens)}, so a tensor "
                f"({len(tokens)},) is expected; got {shown}"
            )
        return value.detach().to(tokens.hidden.device, torch.float32)

    def select(self, tokens: VisualTokens) -> Selection:
        relevance = self.score(tokens)
        if "released-shared-scale" in self._quirks:
            relevance = unit_scale(relevance)
        search = dpp_unguarded if "released-no-rank-guard" in self._quirks else dpp

        def pick(pool: slice, k: int) -> Tensor:
            some = relevance[pool]
            return search(tokens.hidden[pool], some if "released-shared-scale" in self._quirks else unit_scale(some), k)

        return picked(tokens, self.pools(tokens), self.count, pick)
