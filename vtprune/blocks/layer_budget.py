"""How many tokens the layers that are left may have, so that the mean over all layers comes out as asked."""

from collections.abc import Sequence


def required(sparsity: Sequence[float], keep_ratio: float, n_layers: int) -> float | None:
    """The fraction to drop now, once and for all, so that layers see ``keep_ratio`` of the tokens on average.

    sparsity:   what each cut dropped so far, as a fraction of the tokens it found; the first cut lies before the first
                layer and every later one behind the next layer, so each entry stands for one layer that has its tokens.
    keep_ratio: wanted mean over the layers of the fraction of tokens that their attention sees.
    n_layers:   how many layers the mean is taken over.
    Returns a number in [0, 1], 0 where nothing needs to go or no layer is left; None if the layers so far have had more
    than all of them together may have.
    """
    share, used = 1.0, 0.0
    for dropped in sparsity:
        share *= 1 - dropped
        used += share
    left = n_layers * keep_ratio - used
    if left < 0:
        return None
    tokens = (n_layers - len(sparsity)) * share
    if tokens <= 0:
        return 0.0
    return max(0.0, 1 - left / tokens)
