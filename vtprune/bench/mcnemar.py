"""McNemar's test: whether two ways to answer the same questions are right equally often.

Only questions that one of them gets right and the other wrong say anything. Questions are taken to be independent:
where several are about one picture, the p-value is too small, and the interval of the difference is what counts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

EXACT = 1000
"""Up to so many questions that differ the test is exact; beyond, chi-squared with continuity correction."""


@dataclass(frozen=True)
class McNemar:
    """The test's result.

    right_to_wrong, wrong_to_right: questions that changed. p: two-sided. mid_p: Lancaster's, less strict; None of the
    approximation. test: "exact" or "chi-squared".
    """

    right_to_wrong: int
    wrong_to_right: int
    p: float
    mid_p: float | None
    test: str

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> McNemar:
    """The test of so many changed questions (McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", 1947; mid-p as in Fagerland et al., 2013, doi 10.1186/1471-2288-13-91)."""
    n, few = right_to_wrong + wrong_to_right, min(right_to_wrong, wrong_to_right)
    if n > EXACT:
        chi = (abs(right_to_wrong - wrong_to_right) - 1) ** 2 / n if right_to_wrong != wrong_to_right else 0.0
        return McNemar(right_to_wrong, wrong_to_right, math.erfc(math.sqrt(chi / 2)), None, "chi-squared")
    # whole numbers until the division: no rounding, however many there are
    ways = 2 * sum(math.comb(n, k) for k in range(few + 1))
    p, mid = min(1.0, ways / 2**n), (ways - math.comb(n, few)) / 2**n
    return McNemar(right_to_wrong, wrong_to_right, p, mid, "exact")
