"""Attention mass of probe rows: how many tokens hold a share of it, and which are best per row that can see them.

He et al., "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification", arXiv:2410.08584,
equations 6 to 8: the count comes from the plain mass, the members from the mass per row.
"""

from torch import Tensor


def count_to_mass(mass: Tensor, tau: float) -> int:
    """How many of the largest of ``mass`` (n,), 0 or more, hold a share ``tau`` in (0, 1] of all of it; 1 to n.

    With tau = 1 those that are not 0. Sums are float64.
    """
    if tau == 1:
        return max(1, int((mass > 0).sum()))
    held = mass.double().sort(descending=True).values.cumsum(0)
    return min(len(mass), 1 + int((held < tau * held[-1]).sum()))


def mass_per_row(mass: Tensor, seen: Tensor) -> Tensor:
    """(n,) the mass of each token by how many probe rows may see it; 0 where none does.

    mass: (n,) float, summed over the probe rows. seen: (n,), the number of them that may see each token.
    """
    return mass / seen.clamp(min=1)


def members(mass: Tensor, seen: Tensor, k: int) -> Tensor:
    """(k,) int64, ascending: the tokens of most mass per row that may see them; on a tie the lowest wins."""
    return mass_per_row(mass, seen).sort(descending=True, stable=True).indices[:k].sort().values
