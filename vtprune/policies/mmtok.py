"""MMTok: keep the visual tokens that together cover both the words of the question and the image itself.

Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", ICLR 2026, arXiv:2508.18264.
Differs from the authors' code: the words of the question are all tokens after the last image, those of the chat
template included (there 40 frequent words and two sentences of the prompt are left out), and the report says so; every
image of every sample is searched by itself, with the same words; when only blocked tokens are left, fewer are kept
(there the first token of the image is kept, blocked or not); ties go to the lowest index. Videos are an extension; an
(N, N) matrix is made of each, in float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtprune.blocks.greedy_coverage import AFTER_PROJECTOR, cover_matrix, cover_rows, is_number
from vtprune.blocks.greedy_pools import picked
from vtprune.blocks.question import question_rows
from vtprune.policies.base import ScorePolicy, check_choices, quirks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

COMPAT = ("released-repeat-blocked",)
NO_STOP_LIST = "MMTok without stop list: every token after the last image counts as a word of the question"


@register("mmtok")
@dataclass
class MMTok(ScorePolicy):
    """Picks what adds most to how well the picks stand for every word and, by ``alpha``, for every visual token.

    A word or token spreads one unit over all visual tokens by a softmax of cosines, and counts its largest pick.

    alpha:            weight of the image beside the question, 0 or more.
    temperature:      of the softmax among visual tokens.
    text_temperature: of the softmax of words; None: 0.01 on Qwen models and 0.02 elsewhere, as published.
    words:            "question", the embeddings of all text after the last image; or (m, D), in the decoder's width; or
                      a function of the tokens that returns them.
    features:         what visual tokens are compared by: "unprojected", as published, or "projected", themselves;
                      "auto" is the first where the vision tower has a class token.
    blocked:          a function of the tokens that returns (N,) bool, True for tokens never kept, such as padding; or
                      such a tensor, for samples of exactly as many.
    compat:           "released-repeat-blocked" keeps the first token of an image when only blocked ones are left.
    """

    alpha: float = 0.5
    temperature: float = 0.2
    text_temperature: float | None = None
    words: Literal["question"] | Tensor | Callable[[VisualTokens], Tensor] = field(
        default="question", repr=False, compare=False
    )
    features: Literal["auto", "unprojected", "projected"] = "auto"
    blocked: Tensor | Callable[[VisualTokens], Tensor] | None = field(default=None, repr=False, compare=False)
    compat: str = ""

    positions: ClassVar[str] = "compact"

    def __post_init__(self):
        super().__post_init__()
        if not is_number(self.alpha) or not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha is a number of 0 or more; got {self.alpha!r}")
        for name in ("temperature", "text_temperature"):
            value = getattr(self, name)
            if not (name == "text_temperature" and value is None) and not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} is a number above 0; got {value!r}")
        given = isinstance(self.words, Tensor) or callable(self.words)
        if not given and not (isinstance(self.words, str) and self.words == "question"):
            raise ValueError(
                f"words is 'question', a tensor (m, D) or a function of the visual tokens; got {self.words!r}"
            )
        if self.blocked is not None and not isinstance(self.blocked, Tensor) and not callable(self.blocked):
            raise ValueError(f"blocked is a tensor (N,), a function of the visual tokens or None; got {self.blocked!r}")
        check_choices(self, {"features": ("auto", "unprojected", "projected")})
        self._quirks = quirks(self.compat, COMPAT)

    def fitted(self, facts: ModelFacts) -> "MMTok":
        """With the features that the model has and the temperature published for it."""
        features = "unprojected" if facts.class_token else "projected"
        warmth = 0.01 if facts.model_type.startswith("qwen") else 0.02
        return replace(
            self,
            features=features if self.features == "auto" else self.features,
            text_temperature=warmth if self.text_temperature is None else self.text_temperature,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        stop = (NO_STOP_LIST,) if isinstance(self.words, str) else ()
        return stop + ((AFTER_PROJECTOR,) if self.features == "projected" else ())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"unprojected"} if self.features == "unprojected" else ())

    def select(self, tokens: VisualTokens) -> Selection:
        pools = self.pools(tokens)
        if all(self.count(pool.stop - pool.start) == pool.stop - pool.start for pool in pools):
            return Selection.all(tokens)
        x = tokens.signals["unprojected"].features if self.features == "unprojected" else tokens.hidden
        words, free = self._words(tokens), self._free(tokens)

        def pick(pool: slice, k: int) -> Tensor:
            matrix = cover_matrix(
                words,
                tokens.hidden[pool],
                x[pool],
                alpha=self.alpha,
                text_temperature=self.text_temperature or 0.02,
                temperature=self.temperature,
            )
            if free is None or not bool(free[pool].any()):
                return cover_rows(matrix, k)
            rows = cover_rows(matrix, k, free[pool])
            return rows if len(rows) == k or not self._quirks else torch.cat([rows, rows.new_zeros(1)]).unique()

        return picked(tokens, pools, self.count, pick)

    def _words(self, tokens: VisualTokens) -> Tensor:
        if isinstance(self.words, str):
            return tokens.text[question_rows(tokens)]
        words = self.words if isinstance(self.words, Tensor) else self.words(tokens)
        if not isinstance(words, Tensor) or words.dim() != 2 or words.shape[1] != tokens.hidden.shape[1]:
            shown = f"<tensor {tuple(words.shape)}>" if isinstance(words, Tensor) else repr(words)
            raise ValueError(f"words are (m, {tokens.hidden.shape[1]}) embeddings in the decoder's width; got {shown}")
        return words.detach().to(tokens.hidden.device)

    def _free(self, tokens: VisualTokens) -> Tensor | None:
        blocked = self.blocked(tokens) if callable(self.blocked) else self.blocked
        if blocked is None:
            return None
        if not isinstance(blocked, Tensor) or blocked.shape != (len(tokens),) or blocked.dtype != torch.bool:
            shown = f"{tuple(blocked.shape)} {blocked.dtype}" if isinstance(blocked, Tensor) else repr(blocked)
            raise ValueError(f"blocked is ({len(tokens)},) bool, one for each visual token; got {shown}")
        return ~blocked.to(tokens.hidden.device)
