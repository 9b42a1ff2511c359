"""ZipVL in the cache: each layer keeps as few visual keys and values as hold a share tau of the probe rows' attention.

He et al., "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification", arXiv:2410.08584,
equations 6 to 8: the count of a layer comes from the probe rows' plain attention, its members from the attention per
row that can see a token. There is no released code.
Differs from the paper: the prompt is read as it is, and attention to it whole (the policy "zipvl" prunes the prompt);
visual tokens compete among themselves, and nothing is evicted or quantized while tokens are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vtprune.blocks.probe_mass import count_to_mass, mass_per_row
from vtprune.blocks.probe_rows import Probes
from vtprune.cached import CachedLayer, CachedPrompt, Evictions
from vtprune.policies.base import register
from vtprune.policies.cache_base import CachePolicy
from vtprune.policies.checks import check_tau

TAU = 0.975


@register("zipvl_cache")
@dataclass
class ZipVLCache(CachePolicy):
    """Scores tokens by the attention of the last tokens and some random ones, per row that can see them.

    tau:    share of the probe rows' attention to the visual tokens that the kept ones hold in every layer, in (0, 1];
            0.975 if neither it nor keep_ratio nor n_keep is given. It finds the counts, so give one of the three.
    recent: how many of the last tokens are probed.
    random: how many of the others, drawn by the prompt.
    seed:   another one, another draw.
    """

    tau: float | None = None
    recent: int = 64
    random: int = 64
    seed: int = 0

    def __post_init__(self):
        given = self.keep_ratio is not None or self.n_keep is not None
        if self.tau is not None and given:
            raise ValueError(
                f"tau finds the counts and keep_ratio or n_keep set them, so give one; got tau={self.tau!r}, "
                f"keep_ratio={self.keep_ratio!r} and n_keep={self.n_keep!r}"
            )
        if given:
            super().__post_init__()
        else:
            self.tau = TAU if self.tau is None else self.tau
            check_tau(self.tau)
        self.probes.check()

    @property
    def probes(self) -> Probes:
        return Probes(self.recent, self.random, self.seed)

    def watch(self, layer: CachedLayer) -> tuple[Tensor, int | None]:
        """The scores, and how many hold the share."""
        mass = layer.received("all", self.probes)[0, layer.slots]
        rows = layer.probed(self.probes)
        seen = len(rows) - (rows[None] < layer.slots[:, None]).sum(1)
        return mass_per_row(mass, seen), None if self.tau is None else count_to_mass(mass, self.tau)

    def counts(self, prompt: CachedPrompt) -> Sequence[int]:
        return super().counts(prompt) if self.tau is None else prompt.memory["counts"]

    def evict(self, prompt: CachedPrompt) -> Evictions:
        found = [(None, 0) if note is None else note for note in prompt.notes]
        prompt.memory["counts"] = [count for _, count in found]
        prompt.notes[:] = [score for score, _ in found]
        return super().evict(prompt)
