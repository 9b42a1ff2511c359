"""SpecPrefill: a small model writes the beginning of an answer; what it looks at is what the big one prefills.

Liu, Chen and Zhang, "Speculative Prefill: Turbocharging TTFT with Lightweight and Training-Free Token Importance
Estimation", ICML 2025, arXiv:2502.02789.
Differs from the authors' code: the prompt has pictures, only their tokens compete, and text always stays (there all
tokens do, in chunks of 32, which would cut across rows of a picture: ``chunk``); every image or video has a budget of
its own; samples of a batch are looked at by themselves; it runs inside stock transformers, on any attention back end of
either model; ties go to the first chunk. Survivors keep their positions, as published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from vtprune.blocks.forecast import Forecast, at_ratio
from vtprune.blocks.lookahead import chunk_count, chunk_means, tokens_of_chunks
from vtprune.blocks.stages import is_index, pool_sizes, pools
from vtprune.families.base import family_of
from vtprune.lookahead import check_unwrapped, lookahead_importance
from vtprune.policies.base import Ranked, best_of, check_choices, check_how_many
from vtprune.policies.checks import check_index
from vtprune.prompt import PROMPT, PromptRow
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens


@dataclass
class SpecPrefill:
    """Scores by the attention of a small model's look-ahead tokens: the most of any head, mean over the tokens.

    small:      a smaller model of a known family with the same tokenizer and processor, not wrapped. It reads the whole
                prompt of every prefill and writes ``steps`` tokens.
    keep_ratio: fraction of visual tokens KEPT, in (0, 1]; 0.5 if neither it nor ``n_keep`` is given.
    n_keep:     absolute number of visual tokens kept, instead of ``keep_ratio``.
    steps:      how many tokens it looks ahead with, 1 or more; the end of its answer is not among them.
    chunk:      so many neighbouring visual tokens stay or go together; published with 32. Counts are rounded up to
                whole chunks.
    kernel:     attention is averaged over so many neighbours in the prompt, an odd number, before the most is taken;
                None does not.
    budget:     "segment" gives every image or video its own share, "prompt" pools them.

    ``vtprune.wrap(model, SpecPrefill(small, keep_ratio=0.25))``. Prompts that go on from a cache or come as embeddings
    are refused, and so is a small model that makes other visual tokens of the same inputs.
    """

    small: Any = field(repr=False, compare=False)
    keep_ratio: float | None = None
    n_keep: int | None = None
    steps: int = 8
    chunk: int = 1
    kernel: int | None = 13
    budget: Literal["segment", "prompt"] = "segment"

    needs: ClassVar[frozenset[str]] = frozenset({PROMPT})
    sites: ClassVar[tuple[float, ...]] = (BEFORE_LLM,)

    def __post_init__(self):
        check_how_many(self.keep_ratio, self.n_keep)
        if self.keep_ratio is None and self.n_keep is None:
            self.keep_ratio = 0.5
        check_choices(self, {"budget": ("segment", "prompt")})
        for option in ("steps", "chunk"):
            check_index(option, getattr(self, option))
        if self.kernel is not None and not (is_index(self.kernel, 1) and self.kernel % 2):
            raise ValueError(f"kernel is an odd number of neighbours, or None; got {self.kernel!r}")
        if not hasattr(self.small, "generate"):
            raise TypeError(f"small is a transformers model that generates; got {type(self.small).__name__}")
        family_of(self.small)
        check_unwrapped(self.small)

    @property
    def exact_count(self) -> bool:
        """Whether n_keep alone says how many stay."""
        return self.chunk == 1

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{type(self.small).__name__} looked {self.steps} tokens ahead, which is part of the site's time",)

    def chunks(self, n: int) -> int:
        """How many chunks of ``n`` tokens stay."""
        if self.n_keep is None:
            return chunk_count(n, self.chunk, self.keep_ratio)
        return min(math.ceil(self.n_keep / self.chunk), math.ceil(n / self.chunk))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """Whole chunks; where the last one is shorter, the most that may stay."""
        sizes = pool_sizes(tokens, self.budget)

        def left(ratio: float) -> dict[float, int]:
            changed = at_ratio(self, ratio)
            return {tokens.site: sum(min(n, changed.chunks(n) * self.chunk) for n in sizes)}

        return Forecast(left)

    def importance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32: what the small model makes of each visual token; it runs once for all samples of a forward."""
        row: PromptRow = tokens.signals[PROMPT]
        key = ("lookahead", id(self.small), self.steps, self.kernel)
        if key not in row.prompt.memo:
            row.prompt.memo[key] = lookahead_importance(self.small, row.prompt, self.steps, self.kernel)
        found = row.prompt.memo[key].to(tokens.hidden.device)
        return found[row.row, tokens.position + row.start]

    def ranked(self, tokens: VisualTokens) -> list[Ranked]:
        """Every pool with the mean importance of each token's chunk, and how many tokens the best chunks have."""
        importance, found = self.importance(tokens), []
        for pool in pools(tokens, self.budget):
            means, n = chunk_means(importance[pool.rows], self.chunk), pool.size
            k = tokens_of_chunks(means, self.chunk, self.chunks(n), n)
            found.append(Ranked(pool.rows, k, means.repeat_interleave(self.chunk)[:n]))
        return found

    def select(self, tokens: VisualTokens) -> Selection:
        """The best chunks of every pool; the small model is not asked where everything is to stay."""
        return Selection.all(tokens) if self.keep_ratio == 1 else best_of(self.ranked(tokens))
