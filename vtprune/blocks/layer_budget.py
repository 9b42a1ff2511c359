"""How many tokens the layers that are left may have, so that the mean over all layers comes out as asked."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul


def used(sparsity: Sequence[float]) -> float:
    """What the layers so far have had, in layers that see all tokens. sparsity: as of ``required``."""
    return sum(accumulate((1 - dropped for dropped in sparsity), mul))


def required(sparsity: Sequence[float], keep_ratio: float, n_layers: int) -> float | None:
    """The fraction to drop now, once and for all, so that layers see ``keep_ratio`` of the tokens on average.

    sparsity:   what each cut dropped so far, as a fraction of the tokens it found; the first cut lies before the first
                layer and every later one behind the next layer, so each entry stands for one layer that has its tokens.
    keep_ratio: wanted mean over the layers of the fraction of tokens that their attention sees.
    n_layers:   how many layers the mean is taken over.
    Returns a number in [0, 1], 0 where nothing needs to go or no layer is left; None if the layers so far have had more
    than all of them together may have.
    """
    left = n_layers * keep_ratio - used(sparsity)
    if left < 0:
        return None
    tokens = (n_layers - len(sparsity)) * math.prod(1 - dropped for dropped in sparsity)
    if tokens <= 0:
        return 0.0
    return max(0.0, 1 - left / tokens)
