"""DART: keep a few pivot tokens of large keys and, for each pivot, the visual tokens that are least like it.

Wen et al., "Stop Looking for 'Important Tokens' in Multimodal Language Models: Duplication Matters More", EMNLP 2025,
arXiv:2502.11494.
Differs from the released code: as many tokens are kept as were asked for (``exact_budget=False`` keeps the published
number, which is another one: 132 of 576 where 128 are asked for); pivots take turns by the length of their keys, those
of the image first (there in the order in which Python iterates a set, which changes what is kept); every image has its
own pivots and budget, and the text after the last image serves all; fewer pivots and tokens than asked for are no
error; cosines are float32; batches of several samples.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, at_ratio, one_cut
from vtprune.blocks.greedy_pools import picked
from vtprune.blocks.pivots import even_shares, grow, visiting_order
from vtprune.policies.base import ScorePolicy, check_choices, quirks, register
from vtprune.tokens import Selection, VisualTokens

COMPAT = ("released-set-order",)


@register("dart")
@dataclass
class DART(ScorePolicy):
    """Pivots have the largest L1 norm of their key in layer ``layer - 1``; likeness is the cosine of hidden states.

    layer:        K in the paper, 1 or more; the first decoder layer that sees the shorter sequence.
    image_pivots: how many visual tokens are pivots, of each image or video; they are kept.
    text_pivots:  how many of the text tokens after the last image are pivots too.
    exact_budget: True splits what ``keep_ratio`` leaves over the pivots, the first ones taking one more. False keeps
                  the published number: the pivots of the image, and for every pivot of image or text
                  int(keep_ratio * N / pivots) more, or int(n_keep / pivots).
    compat:       "released-set-order": pivots take turns in the order of a Python set of their places in the prompt.
    """

    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    exact_budget: bool = True
    compat: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"keys", "text_keys", "final_norm", "text_final_norm"})

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("layer", 1), ("image_pivots", 1), ("text_pivots", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is an integer of {least} or more; got {value!r}")
        check_choices(self, {"exact_budget": (True, False)})
        self._quirks = quirks(self.compat, COMPAT)

    @property
    def sites(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    def exact_count(self) -> bool:
        """Whether ``count`` tokens are kept."""
        return self.exact_budget

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """The count of every pool, or with the published number, which is another, what its pivots take."""
        sizes = [pool.stop - pool.start for pool in self.pools(tokens)]
        if self.exact_budget:
            return one_cut(self, tokens.site, sizes)
        own, pivots = self.image_pivots, self.image_pivots + self.text_pivots

        def left(ratio: float) -> dict[float, int]:
            changed, total = at_ratio(self, ratio), 0
            for n in sizes:
                taken = own + sum(changed._shares(n, changed.count(n), own, pivots))
                total += n if changed.count(n) == n else min(n, taken)
            return {tokens.site: total}

        return Forecast(left)

    def select(self, tokens: VisualTokens) -> Selection:
        """Pivots and what they take, image by image."""
        n, pools = len(tokens), self.pools(tokens)
        if all(self.count(pool.stop - pool.start) == pool.stop - pool.start for pool in pools):
            return Selection.all(tokens)
        device = tokens.hidden.device
        columns = torch.arange(n, device=device) if tokens.position is None else tokens.position
        words = torch.arange(n, n + len(tokens.text), device=device)
        words = words if tokens.text_position is None else tokens.text_position
        length = tokens.signals["keys"].float().abs().sum((0, 2))
        text = _largest(tokens.signals["text_keys"], words > columns.max(), self.text_pivots)
        states = torch.cat([tokens.signals["final_norm"], tokens.signals["text_final_norm"][text]])

        def pick(pool: slice, k: int) -> Tensor:
            size = pool.stop - pool.start
            most = min(self.image_pivots, k) if self.exact_budget else self.image_pivots
            own = length[pool].sort(descending=True, stable=True).indices[:most]
            # rows of ``states``, the image's before the text's
            pivots = torch.cat([pool.start + own, n + torch.arange(len(text), device=device)])
            if self._quirks:
                places = torch.cat([columns[pool.start + own], words[text]]).tolist()
                pivots = pivots[[places.index(place) for place in visiting_order(places)]]
            taken = torch.zeros(size, dtype=torch.bool, device=device)
            taken[own] = True
            rows = grow(states[pool], states[pivots], taken, self._shares(size, k, len(own), len(pivots)))
            return torch.cat([own, rows])

        return picked(tokens, pools, self.count, pick)

    def _shares(self, n: int, k: int, own: int, pivots: int) -> list[int]:
        """How many of ``n`` tokens each pivot takes, when ``k`` were asked for and ``own`` pivots are among them."""
        if self.exact_budget:
            return even_shares(k - own, pivots)
        wanted = self.n_keep if self.n_keep is not None else n * self.keep_ratio
        return [int(wanted / (self.image_pivots + self.text_pivots))] * pivots


def _largest(keys: Tensor, allowed: Tensor, k: int) -> Tensor:
    """(at most k,) int64 rows of (H_kv, M, d) keys of largest L1 norm among the allowed ones, largest first."""
    rows = allowed.nonzero()[:, 0]
    length = keys[:, rows].float().abs().sum((0, 2))
    return rows[length.sort(descending=True, stable=True).indices[:k]]
