"""Where a policy acts in a given model, checked before anything is hooked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextvars import ContextVar

from torch import nn

from vtprune import compat
from vtprune.cached import evicts
from vtprune.families.base import Family
from vtprune.policies.base import Policy
from vtprune.served import Served
from vtprune.signals import served_elsewhere
from vtprune.sink_rule import SinkRule
from vtprune.tokens import BEFORE_LLM, ModelFacts, inside, site_name

POSITIONS = ("original", "compact", "compact-vision", "compact-decode")
"""Whose places survivors keep: their own; renumbered ones; those renumbered before the LLM, at later sites too; or
their own in the prefill and renumbered ones afterwards, which is a fault of released code that policies can ask for to
compare with it."""

OVERRIDES: ContextVar[dict[int, Policy] | None] = ContextVar("vtprune_overrides", default=None)
"""Policies that ``vtprune.options`` put in place of a plan's own, by the id of the plan."""


class Plan:
    """The sites of a policy in a model.

    before: layer index -> sites served right before that layer. inside: layers with a site after their attention.
    first:  the first layer that needs a hook. moved: sites served elsewhere than asked, with the reason.
    linear: layers that keep a state instead of keys and values.
    served: the same as plain numbers. notes: what else the user should know.
    sinks:  what is done to visual attention sinks; None: nothing.
    """

    def __init__(
        self, model: nn.Module, family: Family, policy: Policy, positions: str | None, sinks: SinkRule | None = None
    ):
        self.policy, self.wanted, self.sinks = policy, positions, sinks
        decoder = family.decoder(model)
        self.depth = len(decoder.layers)
        self.linear = family.linear_layers(model)
        self.served = Served.of(policy.sites, self.depth, _halves(decoder, policy.sites))
        self.before, self.inside = self.served.before, self.served.inside
        self.moved = {site: _moved(decoder, layer) for site, layer in self.served.moved.items()}
        # what is evicted, is in every layer
        self.first = 0 if evicts(policy) else min([*self.before, *self.inside], default=0)
        self._check_shared(decoder, family)
        self.line = compat.has_line_positions(decoder)
        self.notes = [*getattr(policy, "notes", ()), *served_elsewhere(policy, self.linear)]
        self.notes += [] if sinks is None else [sinks.note]
        self._check_positions(decoder, policy)

    def _check_shared(self, decoder: nn.Module, family: Family) -> None:
        """Layers without keys of their own must find as many as they have rows, of whichever layer they share."""
        sources = family.kv_source(decoder)
        if not sources:
            return
        first = min(sources.values())
        for layer in [*self.before, *(index + 0.5 for index in self.inside)]:
            if layer > first:
                reader = min(index for index, source in sources.items() if source == first)
                raise ValueError(
                    f"{self.policy} acts at {site_name(layer)}, but layer {reader} of {type(decoder).__name__} attends "
                    f"to the keys and values of layer {first}: those would be of tokens that are gone. Here a policy "
                    f"may act at layer {first} or before it"
                )

    def active(self) -> Policy:
        """The policy in force in this context."""
        return (OVERRIDES.get() or {}).get(id(self), self.policy)

    def positions(self, policy: Policy) -> str:
        """One of ``POSITIONS`` for this policy: the user's word, else the method's where the model allows it."""
        return self.wanted or (getattr(policy, "positions", "original") if self.line else "original")

    def _check_positions(self, decoder: nn.Module, policy: Policy) -> None:
        wanted = self.wanted or getattr(policy, "positions", "original")
        if wanted not in POSITIONS:
            raise ValueError(f"positions is 'original' or 'compact' (renumbered without gaps); got {wanted!r}")
        if wanted == "original" or self.line:
            return
        if not self.wanted:
            self.notes.append(
                f"positions stay original: {type(decoder).__name__} places visual tokens in time, height and width "
                "(mRoPE), where the method's renumbering is undefined"
            )
        else:
            raise ValueError(
                f"positions='compact' renumbers a line of positions; {type(decoder).__name__} places visual tokens in "
                "time, height and width (mRoPE), where renumbering is undefined. Use positions='original'"
            )

    def check_override(self, policy: Policy) -> None:
        """Raises ValueError when ``policy`` needs places or signals that were not hooked for this plan."""
        if set(policy.sites) != set(self.policy.sites) or frozenset(policy.needs) != frozenset(self.policy.needs):
            sites = ", ".join(site_name(site) for site in policy.sites)
            raise ValueError(
                f"options() can change how much a policy keeps, not where it acts or what it reads; {policy} acts at "
                f"{sites}. Call vtprune.unwrap(model) and wrap it with these options"
            )


def facts_of(model: nn.Module, family: Family) -> ModelFacts:
    """What policies may fit themselves to."""
    decoder, layers = family.decoder(model), _tower_layers(model, family)
    return ModelFacts(
        model_type=model.config.model_type,
        depth=len(decoder.layers),
        width=decoder.config.hidden_size,
        class_token=layers > 0 and all(family.has_class_token(model, kind) for kind in family.towers(model)),
        tower_layers=layers,
        line_positions=compat.has_line_positions(decoder),
        decoder=decoder.config,
        halves=_halves(decoder, (inside(layer) for layer in range(len(decoder.layers)))),
        used_layers=_used_layers(model, layers),
        whole_layers=tuple(layer for layer in range(layers) if _is_whole(model, family, layer)),
        linear=family.linear_layers(model),
    )


def _halves(decoder: nn.Module, sites: Iterable[float]) -> frozenset[int]:
    """Of the layers in whose middle a site lies, those that can be pruned there."""
    layers = {int(site) for site in sites if site != int(site)}
    return frozenset(layer for layer in layers if has_plain_residuals(decoder, layer))


def _moved(decoder: nn.Module, layer: int | None) -> str:
    why = f"{type(decoder).__name__} has layers of another layout"
    return f"{why} and none follows; not served" if layer is None else f"{why}; served before layer {layer}"


def _tower_layers(model: nn.Module, family: Family) -> int:
    try:
        return min((len(family.vision_layers(model, kind)) for kind in family.towers(model)), default=0)
    except NotImplementedError:
        return 0


def _used_layers(model: nn.Module, layers: int) -> int:
    """Hidden state 0 is before any layer, -1 behind the last; of several the last counts."""
    states = getattr(model.config, "vision_feature_layer", None)
    states = [states] if isinstance(states, int) else states or [-1]
    return max(state % (layers + 1) for state in states)


def _is_whole(model: nn.Module, family: Family, layer: int) -> bool:
    whole = (family.whole_layers(model, kind) for kind in family.towers(model))
    return all(layers is None or layer in layers for layers in whole)


def check_sites(policy: Policy, depth: int) -> None:
    """Raises ValueError for sites that a decoder of ``depth`` layers does not have."""
    sites = tuple(policy.sites)
    for site in sites:
        number = isinstance(site, (int, float)) and not isinstance(site, bool)
        if not number or (site != BEFORE_LLM and not (0 <= site < depth and site * 2 == int(site * 2))):
            raise ValueError(
                f"{policy} acts at site {site!r}; this decoder has layers 0 to {depth - 1}, so a site is BEFORE_LLM, "
                f"0..{depth - 1} or inside(0)..inside({depth - 1})"
            )
    if list(sites) != sorted(set(sites)) or not (sites or evicts(policy)):
        raise ValueError(f"sites must be distinct and ascending, at least one; {policy} gives {sites}")


def has_plain_residuals(decoder: nn.Module, index: int) -> bool:
    """Whether a layer is exactly x + attention(norm(x)), then x + mlp(norm(x)), so that hooks can meet in between.

    Linear attention stands for attention.
    """
    layer = decoder.layers[index]
    children = {name for name, _ in layer.named_children()} - {"self_attn", "linear_attn"}
    scaled = getattr(decoder.config, "residual_multiplier", 1.0) != 1.0
    if children != {"mlp", "input_layernorm", "post_attention_layernorm"} or scaled:
        return False
    # an MLP that is told about tokens (Ernie 4.5: which are visual) would be told of those that are gone
    return len(inspect.signature(layer.mlp.forward).parameters) == 1
