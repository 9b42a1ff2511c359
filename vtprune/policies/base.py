"""What a policy is, and where the known ones are listed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from vtprune.blocks.forecast import Forecast, one_cut
from vtprune.cached import evicts
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens

POLICIES: dict[str, type] = {}
"""Registered policies by name; the dict is the listing."""


KEEP_RATIO_IS = {
    "final": "after the last site",
    "layers": "mean of the layers",
    "published": "the publication's budget",
    "cache": "visual keys and values in the cache, of the whole prompt's",
    "flops": "as many FLOPs as with this fraction in all layers",
}
"""What a policy's keep_ratio is the fraction of tokens of, or counts instead."""


def keep_ratio_is(policy: object) -> str:
    """The key of ``KEEP_RATIO_IS`` that holds for a policy, or for a class of policies."""
    return getattr(policy, "keep_ratio_is", "final")


@runtime_checkable
class Policy(Protocol):
    """Chooses visual tokens. Any object with these three members is a policy; nothing must be inherited.

    needs:  names of the signals that ``select`` reads, see ``vtprune.signals.SIGNALS``; computed only when named.
    sites:  where it acts, ascending: ``BEFORE_LLM``, indices of decoder layers, ``inside(layer)``.
    select: the tokens of one sample at one site -> which rows live on.

    Optional members: ``positions``, "original" (default: survivors keep their place in the prompt) or "compact" (they
    are renumbered, as methods do that shorten the prompt before the LLM; models whose positions are no line keep the
    original ones) or "compact-vision" (they are renumbered before the LLM, and keep those places inside it);
    ``newlines`` (default False), whether newline and separator tokens are offered for pruning too; ``fitted(facts:
    ModelFacts) -> Policy``, the policy for a given model: itself, or a copy with other options, sites and needs;
    ``notes`` (default ()), sentences for the report, such as what stands in for a signal; ``keep_ratio_is`` (default
    "final"), one of ``KEEP_RATIO_IS``; ``forecast(tokens: VisualTokens) -> Forecast``, how many tokens it will leave at
    any keep_ratio, asked at its first site; ``refits`` (default False), whether it is asked anew, and given another
    keep_ratio, at every site; ``allot(tokens) -> ([Share, ...], note)``, how many tokens each frame or view may keep,
    with which it is a budget for other policies; ``ranked(tokens) -> [Ranked, ...]``, of one that keeps the best by
    scores, with which others can choose by the same scores (``ranks``).

    A policy of the cache has ``evict(prompt: CachedPrompt) -> Evictions`` instead of ``select``, or beside it, and
    needs no sites; ``watch(layer: CachedLayer)``, if it has that, is called for every sample right after the attention
    of every layer, and what it answers is in ``prompt.notes``. See ``vtprune.cached``.
    """

    needs: frozenset[str]
    sites: tuple[float, ...]

    def select(self, tokens: VisualTokens) -> Selection: ...


def pruning_policies() -> list[str]:
    """Names of the registered policies that prune the prompt, sorted."""
    return sorted(name for name, cls in POLICIES.items() if not evicts(cls))


def cache_policies() -> list[str]:
    """Names of the registered policies that evict from the cache when the prompt has been read, sorted."""
    return sorted(name for name, cls in POLICIES.items() if evicts(cls))


def register(name: str) -> Callable[[type], type]:
    """Class decorator that lists a policy under ``name``. Raises ValueError when the name is taken."""

    def add(cls: type) -> type:
        if name in POLICIES:
            raise ValueError(
                f"policy {name!r} is already registered by {POLICIES[name].__module__}; choose another name"
            )
        POLICIES[name] = cls
        return cls

    return add


def top_rows(score: Tensor, k: int) -> Tensor:
    """The ``k`` rows of largest ``score`` (N,), ascending (k,) int64; on a tie the lowest row wins."""
    return score.sort(descending=True, stable=True).indices[:k].sort().values


class Ranked(NamedTuple):
    """Tokens that share a budget. rows: of ``VisualTokens.hidden``. k: how many stay. score: (n,), higher is kept."""

    rows: slice
    k: int
    score: Tensor


def best_of(pools: Sequence[Ranked]) -> Selection:
    """The best rows of every pool, in prompt order."""
    return Selection(torch.cat([pool.rows.start + top_rows(pool.score, pool.k) for pool in pools]))


def ranks(policy: object) -> bool:
    """Whether a policy, or a class of them, keeps the best by scores and tells them: ``ranked(tokens)``."""
    cls = policy if isinstance(policy, type) else type(policy)
    told = getattr(cls, "ranked", None)
    # who chooses in another way than the base class does not choose by its scores
    return told is not None and (told is not ScorePolicy.ranked or cls.select is ScorePolicy.select)


@dataclass
class ScorePolicy:
    """Base of policies that give every token a score: write ``score`` and you are done.

    keep_ratio: fraction of visual tokens KEPT, in (0, 1]; 0.5 if neither it nor ``n_keep`` is given.
    n_keep:     absolute number of visual tokens kept, instead of ``keep_ratio``.
    budget:     "segment" gives every image or video its own share, so that none is starved; "prompt" pools them.
    """

    keep_ratio: float | None = None
    n_keep: int | None = None
    budget: Literal["segment", "prompt"] = "segment"

    needs: ClassVar[frozenset[str]] = frozenset()
    sites: ClassVar[tuple[float, ...]] = (BEFORE_LLM,)

    def __post_init__(self):
        check_how_many(self.keep_ratio, self.n_keep)
        if self.keep_ratio is None and self.n_keep is None:
            self.keep_ratio = 0.5
        if self.budget not in ("segment", "prompt"):
            raise ValueError(
                f"budget is 'segment' (a share for each image or video) or 'prompt' (one pool); got {self.budget!r}"
            )

    def count(self, n: int) -> int:
        """How many of ``n`` tokens to keep: half rounds to even, at least 1, at most n; the only rounding of it."""
        wanted = self.n_keep if self.n_keep is not None else round(n * self.keep_ratio)
        return min(n, max(1, wanted))

    def pools(self, tokens: VisualTokens) -> tuple[slice, ...]:
        """The runs of rows that share one budget."""
        if self.budget == "prompt":
            return (slice(0, len(tokens)),)
        return tuple(segment.span for segment in tokens.segments if len(segment))

    def forecast(self, tokens: VisualTokens) -> Forecast:
        """The count of every pool at the one site; policies with several sites say more."""
        return one_cut(self, tokens.site, [pool.stop - pool.start for pool in self.pools(tokens)])

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) float, higher is kept."""
        raise NotImplementedError(f"{type(self).__name__} must define score(tokens) -> (N,) or select(tokens)")

    def ranked(self, tokens: VisualTokens) -> list[Ranked]:
        """Every pool with its scores and its count."""
        score = self.score(tokens)
        return [Ranked(pool, self.count(pool.stop - pool.start), score[pool]) for pool in self.pools(tokens)]

    def select(self, tokens: VisualTokens) -> Selection:
        """The best rows of every pool, in prompt order."""
        return best_of(self.ranked(tokens))


def check_how_many(keep_ratio: object, n_keep: object) -> None:
    """Raises ValueError unless a fraction or a number is given, not both; neither is fine."""
    if keep_ratio is not None and n_keep is not None:
        raise ValueError(f"give keep_ratio or n_keep, not both; got keep_ratio={keep_ratio!r} and n_keep={n_keep!r}")
    if keep_ratio is not None:
        check_ratio(keep_ratio)
    if n_keep is not None and (isinstance(n_keep, bool) or not isinstance(n_keep, int) or n_keep < 1):
        raise ValueError(f"n_keep is the number of visual tokens kept, an integer of 1 or more; got {n_keep!r}")


def check_choices(policy: object, choices: Mapping[str, Sequence[object]]) -> None:
    """Raises ValueError for the first option of ``policy`` that is none of its ``choices``, which are by name."""
    for option, allowed in choices.items():
        if getattr(policy, option) not in allowed:
            raise ValueError(f"{option} is one of {', '.join(map(repr, allowed))}; got {getattr(policy, option)!r}")


def quirks(compat: object, known: Sequence[str]) -> tuple[str, ...]:
    """The faults of released code that an option ``compat`` names, joined by commas. Raises ValueError for others."""
    named = tuple(name.strip() for name in compat.split(",")) if compat and isinstance(compat, str) else ()
    if not isinstance(compat, str) or not set(named) <= set(known):
        raise ValueError(
            f"compat takes {', '.join(map(repr, known))}, joined by commas if several, or nothing; got {compat!r}"
        )
    return named


def check_ratio(keep_ratio: object) -> None:
    """Raises ValueError unless ``keep_ratio`` is a number in (0, 1]."""
    number = isinstance(keep_ratio, (int, float)) and not isinstance(keep_ratio, bool)
    if not number or not 0 < keep_ratio <= 1:  # nan compares false
        raise ValueError(f"keep_ratio is the fraction of visual tokens KEPT, in (0, 1]; got {keep_ratio!r}")
