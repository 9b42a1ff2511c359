"""IDPruner: pick visual tokens that are important and unlike those picked before, by greedy maximal marginal relevance.

Tan et al., "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs", 2026, arXiv:2602.13315.
Differs from the authors' code: every sample and every image has its own budget (there batches are refused and a
prompt's images share one budget, as with ``budget="prompt"``); tokens decoded after the prompt are numbered on from its
full length in every model (``compat="released-llava-decode"`` numbers them as there, from the pruned length); without
``scorer``, the published trained one, attention of the vision tower stands in for it, and the report says so; the same
picks come without a matrix of all pairs of tokens; ties go to the lowest index.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.class_attention import HEAD_WEIGHTED
from vtprune.blocks.mmr import mmr
from vtprune.blocks.scorer import load_scorer
from vtprune.policies.base import ScorePolicy, quirks, register
from vtprune.tokens import ModelFacts, Selection, VisualTokens

NAMED = {
    "auto": "vision-tower attention",
    "cls": "class-token attention",
    HEAD_WEIGHTED: "class-token attention of weighted heads",
    "vision": "vision-tower attention",
    "norm": "feature-norm",
}
"""What importance goes by, and what that is."""
COMPAT = ("released-llava-decode",)
STANDS_IN = "IDPruner selection with {} importance; the published method uses a trained scorer"


@register("idpruner")
@dataclass
class IDPruner(ScorePolicy):
    """Picks by ``trade_off * importance - (1 - trade_off) * cosine``, the cosine to the most similar token picked.

    trade_off:  lambda in the paper, from 0 (unlike each other) to 1 (importance alone).
    parallel_k: how many tokens are picked at a time, before similarities to them count.
    importance: without a scorer: "cls" (attention of the vision tower's class token, mean over heads),
                "head_weighted_cls" (the same, heads weighted by what they make of each patch), "vision" (what its last
                layer pays to each token), "norm" (length of the features), "auto" ("cls" where the tower has a class
                token, else "vision"); or one number for each visual token, for samples of exactly as many; or a
                function of the tokens that returns one for each.
    scorer:     path of a safetensors file with the published scorer's weights, which then gives the importance.
    compat:     "released-llava-decode" places decoded tokens as if the pruned ones had never been there, a fault.
    """

    trade_off: float = 0.5
    parallel_k: int = 1
    importance: (
        Literal["auto", "cls", "head_weighted_cls", "vision", "norm"] | Tensor | Callable[[VisualTokens], Tensor]
    ) = "auto"
    scorer: str | None = None
    compat: str = ""

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.trade_off, (int, float)) and not isinstance(self.trade_off, bool)
        if not number or not 0 <= self.trade_off <= 1:
            raise ValueError(f"trade_off (lambda) is a number from 0 to 1; got {self.trade_off!r}")
        if isinstance(self.parallel_k, bool) or not isinstance(self.parallel_k, int) or self.parallel_k < 1:
            raise ValueError(f"parallel_k is how many are picked at a time, 1 or more; got {self.parallel_k!r}")
        self._quirks = quirks(self.compat, COMPAT)
        if not isinstance(self.importance, Tensor) and not callable(self.importance) and not self._named:
            raise ValueError(
                f"importance is one of {', '.join(map(repr, NAMED))}, a tensor (N,) or a function of the visual "
                f"tokens; got {self.importance!r}"
            )
        self._scorer = None
        if self.scorer is not None:
            if self._named != "auto":
                raise ValueError(
                    f"the scorer gives the importance; got scorer={self.scorer!r} and importance="
                    f"{_short(self.importance)}: leave one of them out"
                )
            self._scorer = load_scorer(self.scorer)

    def __repr__(self) -> str:
        return f"IDPruner({', '.join(f'{f.name}={_short(getattr(self, f.name))}' for f in fields(self))})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    @property
    def _named(self) -> str:
        """The importance where it goes by a name, else ""."""
        return self.importance if isinstance(self.importance, str) and self.importance in NAMED else ""

    @property
    def positions(self) -> str:
        return "compact-decode" if "released-llava-decode" in self._quirks else "original"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self._signal} if self._signal else ())

    @property
    def _signal(self) -> str:
        if self.scorer is not None or self._named in ("", "norm"):
            return ""
        return {"cls": "cls_attention", HEAD_WEIGHTED: HEAD_WEIGHTED}.get(self._named, "vision_attention")

    @property
    def notes(self) -> tuple[str, ...]:
        if self.scorer is not None:
            return ()
        source = NAMED.get(self._named, "given" if isinstance(self.importance, Tensor) else "computed")
        return (STANDS_IN.format(source),)

    def fitted(self, facts: ModelFacts) -> "IDPruner":
        """With the importance that the model's vision tower offers. Raises ValueError for a scorer of another width."""
        if self._scorer is not None and self._scorer.width != facts.width:
            raise ValueError(
                f"the scorer {self.scorer!r} was trained on features of width {self._scorer.width}; this "
                f"{facts.model_type} has {facts.width}. Give the scorer of this model"
            )
        if self._scorer is not None or self._named != "auto":
            return self
        return replace(self, importance="cls" if facts.class_token else "vision")

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) importance; the scorer looks at one pool at a time."""
        if self._scorer is not None:
            return torch.cat([self._scorer(tokens.hidden[pool]) for pool in self.pools(tokens)])
        if self._signal:
            value = tokens.signals[self._signal]
            return value.float().mean((0, 1)) if value.dim() > 1 else value
        if self._named == "norm":
            return tokens.hidden.float().norm(dim=-1)
        value = self.importance if isinstance(self.importance, Tensor) else self.importance(tokens)
        if not isinstance(value, Tensor) or value.shape != (len(tokens),) or value.is_complex():
            raise ValueError(
                f"importance is one number for each visual token of a sample; this one has {len(tokens)}, so a tensor "
                f"({len(tokens)},) is expected; got {_short(value)}"
            )
        return value

    def select(self, tokens: VisualTokens) -> Selection:
        score, keep = self.score(tokens), []
        for pool in self.pools(tokens):
            n = pool.stop - pool.start
            if (k := self.count(n)) < n:
                order = mmr(tokens.hidden[pool], score[pool], k, self.trade_off, self.parallel_k)
            else:
                order = torch.arange(n, device=tokens.hidden.device)
            keep.append(pool.start + order.sort().values)
        return Selection(torch.cat(keep))


def _short(value: object) -> str:
    return f"<tensor {tuple(value.shape)}>" if isinstance(value, Tensor) else repr(value)


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool((a == b.to(a.device)).all()))
    return isinstance(a, Tensor) == isinstance(b, Tensor) and a == b
