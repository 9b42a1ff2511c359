"""What is compared in decoding: policies of the cache, and pruned prompts that leave as large a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtprune.bench.choose_conditions import read_policy
from vtprune.cached import evicts
from vtprune.policies.base import Policy
from vtprune.tokens import BEFORE_LLM

NONE = "none"
CACHE = ("prefixkv", "elastic_cache", "expected_attention", "snapkv", "vatp", "caote", "laq", "cache_random")
PREFILL = ("uniform", "random", "divprune", "fastv", "fastv:layer=1")


@dataclass(frozen=True)
class Condition:
    """One way to decode. policy: a name with options. keep_ratio: share of the visual keys and values that is KEPT."""

    policy: str = NONE
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        return self.policy if self.policy == NONE else f"{self.policy} {self.keep_ratio:g}"

    @property
    def kind(self) -> str:
        """ "none"; "cache" for what is evicted after the prompt was read; "prefill" for what never got that far."""
        if self.policy == NONE:
            return NONE
        return "cache" if evicts(read_policy(self.policy).make(0.5)) else "prefill"

    def build(self, depth: int) -> Policy | None:
        """The policy, with a ratio of its own at which the cache holds as much; None for nothing pruned.

        depth: layers of the decoder. Raises ValueError where no ratio does, or for a policy with several sites.
        """
        if self.policy == NONE:
            return None
        named = read_policy(self.policy)
        if self.kind == "cache":
            return named.make(self.keep_ratio)
        return named.make(equal_ratio(self.policy, named.make(0.5).sites, depth, self.keep_ratio))


def equal_ratio(name: str, sites: Sequence[float], depth: int, keep_ratio: float) -> float:
    """What a policy has to keep at its one site so that all layers together hold ``keep_ratio`` of the visual tokens.

    Layers before the site hold all of them. Raises ValueError where these alone are too many.
    """
    if len(sites) != 1:
        raise ValueError(
            f"{name} prunes at {len(sites)} sites, and what each keeps is not known; choose another policy"
        )
    before = 0 if sites[0] == BEFORE_LLM else int(sites[0])
    ratio = (keep_ratio * depth - before) / max(1, depth - before)
    if ratio <= 0:
        raise ValueError(f"{name} cannot keep {keep_ratio:g}: {before} of {depth} layers hold all visual tokens")
    return round(ratio, 12)


def grid(policies: Sequence[str], keep_ratios: Sequence[float]) -> list[Condition]:
    """Every policy at every ratio."""
    return [Condition(policy, ratio) for policy in policies for ratio in keep_ratios]
