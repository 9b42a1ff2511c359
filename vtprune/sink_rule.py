"""What becomes of visual attention sinks in every policy that ranks tokens by attention inside the LLM, in one place.

Policies rank tokens by what signals say of them; the signals say something else of sinks. A policy knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.blocks.sinks import excluded, placed_first, placed_last
from vtprune.cached import evicts
from vtprune.families.base import Family
from vtprune.policies.base import POLICIES
from vtprune.records import SiteRecord
from vtprune.signals import ROTARY, needed, parse, row_layer
from vtprune.sinks import FIRST_LAYER, MODES, SinkDetector
from vtprune.tokens import BEFORE_LLM, Selection, site_name


@dataclass(frozen=True)
class SinkRule:
    """What is done to sinks, and how they are found. mode: one of ``MODES`` but "ignore"."""

    mode: str
    detector: SinkDetector

    @property
    def note(self) -> str:
        """For the report."""
        dims = ", ".join(map(str, self.detector.dims))
        return f"sinks={self.mode!r}: massive in dimensions {dims}, tau {self.detector.tau:g} ({self.detector.source})"

    def edit(self, name: str, value: Tensor, sinks: Callable[[], Tensor | None]) -> Tensor:
        """What a policy reads of the signal ``name``. sinks: (N,) bool; None where they are not looked for yet."""
        need = parse(name)
        divides = need.name == ROTARY and self.mode == "keep"
        ranks = need.kind == "rows" or (need.kind == "transition" and self.mode != "exclude")
        found = sinks() if divides or ranks else None
        if found is None:
            return value
        if divides:
            # attention is divided by it: by no more than elsewhere, so that a sink stays first
            return value.where(~found, value.minimum(value.masked_fill(found, float("inf")).amin(-1, keepdim=True)))
        return {"exclude": excluded, "drop": placed_last, "keep": placed_first}[self.mode](value, found)

    def answers(self, selections: Sequence[Selection | None], record: SiteRecord) -> list[Selection | None]:
        """What policies answered: where sinks are dropped, none is merged into a token that is kept."""
        if self.mode != "drop":
            return list(selections)
        found = {b: sinks for b, sinks in record.sinks.items() if sinks is not None}
        return [unmerged(one, found[b]) if b in found else one for b, one in enumerate(selections)]

    def notes(self, record: SiteRecord, kept: Sequence[Tensor], selections: Sequence[Selection | None]) -> list[str]:
        """What the report says of the sinks that a site met. kept: (k,) int64 rows of each sample, on the CPU."""
        if any(sinks is None for sinks in record.sinks.values()):
            return [f"attention was read before layer {FIRST_LAYER}, where sinks are not looked for"]
        if not record.sinks:
            return []
        found = {b: sinks.cpu() for b, sinks in record.sinks.items()}
        note = f"{sum(int(sinks.sum()) for sinks in found.values())} visual tokens are sinks"
        if any(selections[b].values is not None for b in found):
            return [note]  # rows of new values are no longer those of old ones
        return [f"{note}, of which {sum(int(sinks[kept[b]].sum()) for b, sinks in found.items())} were kept"]


def unmerged(selection: Selection, sinks: Tensor) -> Selection:
    """The answer with ``sinks`` (N,) bool dropped where they were merged into another token."""
    merge = selection.merge
    if merge is None:
        return selection
    keep, sinks = selection.keep.to(merge.device), sinks.to(merge.device)
    if not merge.is_sparse:
        itself = keep[merge.clamp(min=0)] == torch.arange(len(merge), device=merge.device)
        return replace(selection, merge=merge.masked_fill(sinks & ~itself, -1))
    plan = merge.coalesce()
    (row, column), weight = plan.indices(), plan.values()
    # a sink that had to be kept stays what it was made of
    others = weight.masked_fill(sinks[column] & ~sinks[keep][row], 0)
    left = others.new_zeros(len(keep)).index_add_(0, row, others)
    others = torch.where(left[row] > 0, others / left[row], weight)
    stays = others != 0
    index, size = plan.indices()[:, stays], plan.shape
    return replace(selection, merge=torch.sparse_coo_tensor(index, others[stays], size, check_invariants=False))


class SinkSignals(Mapping):
    """The signals of one sample at one site, in which sinks count what the rule says.

    record: takes, by sample, which of the tokens are sinks, once a policy reads attention; None: too early for it.
    hidden: gives the (N, D) hidden states of the visual tokens.
    """

    def __init__(
        self, signals: Mapping[str, Any], rule: SinkRule, record: SiteRecord, b: int, hidden: Callable[[], Tensor]
    ):
        self._signals, self._rule, self._record, self._b, self._hidden = signals, rule, record, b, hidden
        self._seen: dict[str, Any] = {}

    def _sinks(self) -> Tensor | None:
        found = self._record.sinks
        if self._b not in found:
            found[self._b] = self._rule.detector.find(self._hidden()) if self._record.site >= FIRST_LAYER else None
        return found[self._b]

    def __getitem__(self, name: str) -> Any:
        if name not in self._seen:
            self._seen[name] = self._rule.edit(name, self._signals[name], self._sinks)
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._signals)

    def __len__(self) -> int:
        return len(self._signals)


def rule_for(model: nn.Module, family: Family, policy: Any, mode: str, detector: Any) -> SinkRule | None:
    """The rule of ``wrap(..., sinks=mode, sink_detector=detector)``; None where sinks are ignored.

    Raises ValueError for a mode that is none, a policy that does not rank by attention inside the LLM, sink dimensions
    that nobody knows or that are another model's.
    """
    if mode not in MODES:
        raise ValueError(f"sinks is one of {', '.join(map(repr, MODES))}; got {mode!r}")
    if detector is not None and not isinstance(detector, SinkDetector):
        raise TypeError(
            f"sink_detector is a vtprune.SinkDetector, for instance SinkDetector.load(file); got {detector!r}"
        )
    if mode == "ignore":
        if detector is not None:
            raise ValueError(
                "sink_detector is given and sinks='ignore' looks for none: say what becomes of them, sinks='exclude', "
                "'drop' or 'keep'"
            )
        return None
    _check_policy(policy, mode, family.linear_layers(model))
    configs = model.config.model_type, family.decoder(model).config
    detector = detector or SinkDetector.published_for(*configs)
    if detector is None:
        raise ValueError(
            f"the sink dimensions of this {model.config.model_type} are not known. Find them once, on a few text "
            "prompts: detector = vtprune.SinkDetector.calibrate(model, prompts, tokenizer=tokenizer), keep them with "
            "detector.save(file), or use vtprune sinks MODEL --out FILE; then wrap(..., sink_detector=detector)"
        )
    detector.check_model(*configs)
    return SinkRule(mode, detector)


def _check_policy(policy: Any, mode: str, linear: frozenset[int]) -> None:
    """Raises ValueError for a policy that reads no decoder attention where sinks can be seen."""
    rows = [need for need in needed(policy) if need.kind == "rows"]
    if evicts(policy) and getattr(policy, "obeys_sinks", False):
        return
    if not rows and evicts(policy):
        raise ValueError(
            f"sinks={mode!r} changes what a CachePolicy's scores say of sinks, and {policy} evicts by something else. "
            f"Policies that rank by attention inside the LLM: {_ranking()}"
        )
    if not rows and tuple(policy.sites) == (BEFORE_LLM,):
        raise ValueError(
            f"sinks={mode!r} looks at hidden states inside the LLM, and {policy} chooses before it, where no decoder "
            f"layer has run yet. Policies that rank by attention inside the LLM: {_ranking()}"
        )
    if not rows:
        raise ValueError(
            f"sinks={mode!r} changes what attention says of tokens, and {policy} does not rank by it. Policies that "
            f"rank by attention inside the LLM: {_ranking()}"
        )
    sites = [site for site in policy.sites if any(row_layer(need, site, linear) for need in rows)]
    if max(sites, default=BEFORE_LLM) < FIRST_LAYER:
        raise ValueError(
            f"sinks form in the first layers and are looked for from layer {FIRST_LAYER} on; {policy} ranks by "
            f"attention at {', '.join(map(site_name, sites)) or 'no site'}. Choose layer {FIRST_LAYER} or a later one"
        )


def _ranking() -> str:
    """The names of registered policies that read decoder attention as they come."""
    names = []
    for name, cls in sorted(POLICIES.items()):
        try:
            needs = needed(cls())
        except TypeError:  # an option without a default
            continue
        names += [name] if any(need.kind == "rows" for need in needs) else []
    return ", ".join(names)
