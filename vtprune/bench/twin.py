"""The random twin of a policy: as many tokens at the same sites, drawn at random.

Random tokens that are dropped before the LLM are no fair control of a policy that acts inside it, whose first layers
see everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.policies.base import top_rows
from vtprune.policies.random import Random
from vtprune.tokens import Selection, VisualTokens


@dataclass
class Twin:
    """A policy for ONE prefill of a batch whose counts are known.

    counts:    by site, how many visual tokens each sample keeps that has any, in the order of the batch.
    positions: what the policy's method does; models where it is undefined keep the original ones for both.
    """

    counts: Mapping[float, Sequence[int]]
    seed: int = 0
    positions: str = "original"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        self._waiting = {site: deque(counts) for site, counts in self.counts.items()}

    @property
    def sites(self) -> tuple[float, ...]:
        return tuple(self.counts)

    def select(self, tokens: VisualTokens) -> Selection:
        """Raises ValueError where it is asked for more samples than it knows of."""
        waiting = self._waiting[tokens.site]
        if not waiting:
            raise ValueError(f"this twin knows of {len(self.counts[tokens.site])} samples; make one for each prefill")
        return Selection(top_rows(Random(seed=self.seed).score(tokens), waiting.popleft()))
