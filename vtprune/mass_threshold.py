"""As few tokens as hold a share tau of all scores: a count that adapts to the picture, for any policy that scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vtprune.around import Around
from vtprune.blocks.probe_mass import count_to_mass
from vtprune.policies.base import Policy, best_of, ranks
from vtprune.policies.checks import check_tau
from vtprune.tokens import ModelFacts, Selection, VisualTokens


@dataclass
class MassThreshold(Around):
    """Keeps, at every site of a policy, the best tokens by its scores until they hold a share tau of the scores' sum.

    policy: one that keeps the best by scores of 0 or more, such as attention (FastV, PyramidDrop, FasterVLM). Its own
            keep_ratio or n_keep is not used.
    tau:    in (0, 1]; 1 drops what has a score of 0.

    The count is 1 + #{k : the k + 1 best hold less than tau}, for each image or prompt as the policy's budget has it.
    He et al., "ZipVL", arXiv:2410.08584, equation 6. How much it keeps is known when it has been asked: see the report.
    Raises ValueError for a policy that does not tell its scores, and for scores below 0.
    """

    policy: Policy
    tau: float = 0.975

    def __post_init__(self):
        check_tau(self.tau)
        if not ranks(self.policy):
            raise ValueError(
                f"MassThreshold counts the scores of a policy that keeps the best by them; {_name(self.policy)} does "
                "not choose so, or does not tell (ranked): take one such as fastv, fastervlm or pyramiddrop"
            )

    def fitted(self, facts: ModelFacts) -> MassThreshold:
        """The policy fitted to the model."""
        policy = self.policy.fitted(facts) if hasattr(self.policy, "fitted") else self.policy
        return replace(self, policy=policy)

    def select(self, tokens: VisualTokens) -> Selection:
        """The best rows of every pool, as many as hold the share."""
        found = []
        for pool in self.policy.ranked(tokens):
            least = float(pool.score.min())
            if least < 0:
                raise ValueError(
                    f"a share of the scores takes scores of 0 or more; {_name(self.policy)} gave {least:.4g}. Take a "
                    "policy that scores by attention"
                )
            found.append(pool._replace(k=count_to_mass(pool.score, self.tau)))
        return best_of(found)


def _name(policy: object) -> str:
    return type(policy).__name__
