"""Random tokens: the control that any method has to beat at the same site and count.

The draw depends on the seed, the sample's prompt and the site alone: it is the same on every device, in every batch
and for every beam, and it leaves the global random state as it is.
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from vtprune.policies.base import ScorePolicy, register
from vtprune.tokens import BEFORE_LLM, VisualTokens


@register("random")
@dataclass
class Random(ScorePolicy):
    """Keeps a uniformly random set of tokens, exactly as many as asked for. A smaller set is part of a larger one.

    seed:  any integer; another seed is another draw.
    layer: the first decoder layer that sees the shorter sequence; -1 prunes before the LLM.
    """

    seed: int = 0
    layer: int = BEFORE_LLM

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed is an integer; got {self.seed!r}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < BEFORE_LLM:
            raise ValueError(f"layer is the index of a decoder layer, or -1 for before the LLM; got {self.layer!r}")

    @property
    def sites(self) -> tuple[int, ...]:
        return (self.layer,)

    def score(self, tokens: VisualTokens) -> Tensor:
        # drawn on the CPU, because generators of other devices give other numbers
        digest = blake2b(f"{self.seed} {tokens.seed} {float(tokens.site)}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randperm(len(tokens), generator=generator).float().to(tokens.hidden.device)
