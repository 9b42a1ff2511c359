"""The signals: what a policy may ask to see, how it asks, and the attention rows of decoder layers.

A need is a name of ``SIGNALS``, with a colon and a place where the default is not meant:
``last_query_attention``, ``last_query_attention:peek``, ``text_attention:3``, ``cls_attention:-4,-3,-2``,
``vision_attention:-1``; and for ``probe_attention`` with the rows to look from, where the default is not meant:
``probe_attention@32,32,1`` or ``probe_attention:peek@all``. Nothing is computed that no policy asked for.
"""

import difflib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from vtprune.blocks.probe_rows import Probes
from vtprune.families.base import Family
from vtprune.parts import last_norm
from vtprune.pixels import pixel_hooks
from vtprune.probes import PROBED
from vtprune.prompt import PROMPT
from vtprune.tokens import BEFORE_LLM, site_name
from vtprune.unrotated import UNROTATED

SIGNALS: dict[str, str] = {
    "last_query_attention": "(N,) float32: what the last prompt token pays to each visual token, mean over heads",
    "text_attention": "(M, N) float32: what each text token pays to each visual token, mean over heads",
    "text_attention_max": "(M, N) float32: the same, of all heads the one that pays most to it",
    "text_attention_heads": "(H, M, N) float32: the same, head by head",
    PROBED: "(2, N) float32: what probe rows pay to each visual token, summed, mean over heads; how many may see it",
    "attention_rank": "(N,) float32: PageRank of each visual token along the sharpened attention of all tokens",
    "cls_attention": "(layers, heads, N) in the tower's dtype: what the tower's class token pays to each visual token",
    "cls_logits": "(layers, heads, N) in the tower's dtype: the same before the softmax, scaled as there",
    "head_weighted_cls": "(layers, heads, N) float32: cls_attention times heads times each head's share of the token",
    "cls_attention_joint": "(N,) in the tower's dtype: the class token's attention where all heads are taken as one",
    "vision_attention": "(N,) float32: what a visual token gets in a tower layer, mean over heads and patches",
    "vision_keys": "(heads, d, N) in the tower's dtype: the key of each visual token in a tower layer",
    "vision_graph": "vtprune.patches.Patches: who looks at whom in a tower layer, patch by patch",
    "pixels": "vtprune.patches.Patches: the pixels of each patch, as the tower gets them",
    "unprojected": "vtprune.unprojected.Unprojected: what the projector was given, class tokens, the projector",
    "projected_features": "one (frames, patches, D) for each segment: what the projector gave, before any pooling",
    "keys": "(H_kv, N, d) in the model's dtype: the key of each visual token in a decoder layer, rotated to its place",
    "text_keys": "(H_kv, M, d) in the model's dtype: the same of each text token",
    "unrotated_queries": "(H, N, d) in the model's dtype: the query of each visual token there, before rotation",
    "unrotated_keys": "(H_kv, N, d) in the model's dtype: the key of each, before rotation",
    "text_rotary": "(M, N) float32: ones rotated to each text token times ones rotated to each visual one, by sqrt(d)",
    "final_norm": "(N, D) in the model's dtype: each visual token at the site through the decoder's last norm",
    "text_final_norm": "(M, D) in the model's dtype: the same of each text token",
    PROMPT: "vtprune.prompt.PromptRow: what the model was given, and which of its samples this is",
    "transition": "(layers run, N) in the model's dtype: how much attention and MLP change each token, by 1 - cosine",
    "transition_unsigned": "the same by 1 - |cosine|",
}
"""Signals by name. The first six are of a decoder layer's attention: the layer before the site, just run, or ``:peek``,
the layer at the site before it runs, or ``:<index>``, a layer that has run; so are keys. Probe rows are the 64 last
tokens and 64 others, or ``@<last>,<others>,<seed of the draw>``, or ``@all`` tokens. The next seven come from the
vision tower: ``:<layer>``, or for the first three ``:<layer>,<layer>``, negative ones from the end; by default -1 for
``cls_attention_joint``, ``vision_attention`` and ``vision_graph``, else -2. Where several patches make one visual token
their mean is given; tokens that are no patches have 0. A head's share of a token is that of its part of the layer's
output, by length; the mean over heads of ``head_weighted_cls`` is the sum of attention times share. Projected features
come from the projector of families that pool after it. The last two are seen in the decoder layers named, as in
``transition:6,7,8``, as far as those have run. Where ``wrap`` was told what becomes of attention sinks, attention and
transitions say it of them: sink_rule.py."""

_OVER_HEADS = {"text_attention_max": "largest", "text_attention_heads": "none"}
DECODER_ROWS = ("last_query_attention", "text_attention", *_OVER_HEADS, PROBED, "attention_rank")
CLASS_ROWS = ("cls_attention", "cls_logits", "head_weighted_cls")
ROTARY = "text_rotary"
KEYS = ("keys", "text_keys", *UNROTATED, ROTARY)
NORMED = ("final_norm", "text_final_norm")
PROJECTED = "projected_features"
UNPROJECTED = "unprojected"
GRAPH = "vision_graph"
PIXELS = "pixels"
TRANSITIONS = ("transition", "transition_unsigned")
_TOWER_DEFAULT = {
    "cls_attention": (-2,),
    "cls_logits": (-2,),
    "head_weighted_cls": (-2,),
    "cls_attention_joint": (-1,),
    "vision_attention": (-1,),
    "vision_keys": (-2,),
    GRAPH: (-1,),
}
_ONE_TOWER_LAYER = ("cls_attention_joint", "vision_attention", "vision_keys", GRAPH)


@dataclass(frozen=True)
class Need:
    """One signal that a policy asked for.

    text:  as it was asked; also the key in ``VisualTokens.signals``.
    name:  a name of ``SIGNALS``.
    where: decoder rows and keys: None (the layer before the site), "peek" or the index of a layer.
           vision tower and transitions: the layers, in the order asked. projected features, last norm, prompt: ().
    probes: the rows to look from.
    """

    text: str
    name: str
    where: int | str | tuple[int, ...] | None
    probes: Probes = Probes()

    @property
    def kind(self) -> Literal["rows", "keys", "norm", "transition", "prompt", "tower"]:
        """What is looked at: attention rows, keys or transitions of decoder layers, their last norm, the model's inputs
        or the tower."""
        kinds = {"rows": DECODER_ROWS, "keys": KEYS, "norm": NORMED, "transition": TRANSITIONS, "prompt": (PROMPT,)}
        return next((kind for kind, names in kinds.items() if self.name in names), "tower")

    @property
    def over_heads(self) -> Literal["heads", "largest", "none"]:
        """What attention rows are over heads: their mean, the largest, or all of them."""
        return _OVER_HEADS.get(self.name, "heads")

    @property
    def in_decoder(self) -> bool:
        """Whether decoder layers are looked at; otherwise the vision tower is."""
        return self.kind != "tower"


def parse(need: str) -> Need:
    """Reads a need. Raises ValueError that lists the signals, or the ways to say where."""
    asked, at, rows = need.partition("@")
    name, colon, place = asked.partition(":")
    if name == PROBED and at:
        return _probed(need, asked, rows)
    if name not in SIGNALS or at:
        close = difflib.get_close_matches(name, SIGNALS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown signal {need!r}; {hint}known: {', '.join(SIGNALS)}")
    try:
        layers = tuple(int(layer) for layer in place.split(",")) if colon and place != "peek" else ()
    except ValueError:
        raise ValueError(f"cannot read {need!r}: {_places(name)}") from None
    if name in (*DECODER_ROWS, *KEYS):
        if len(layers) > 1 or min(layers, default=0) < 0:
            raise ValueError(f"cannot read {need!r}: {_places(name)}")
        return Need(need, name, layers[0] if layers else place or None)
    if name in TRANSITIONS and (min(layers, default=-1) < 0 or len(set(layers)) < len(layers)):
        raise ValueError(f"cannot read {need!r}: {_places(name)}")
    if name in (PROJECTED, UNPROJECTED, PIXELS, PROMPT, *NORMED):
        if colon:
            raise ValueError(f"cannot read {need!r}: {name!r} comes from one place and takes none")
        return Need(need, name, ())
    if place == "peek" or (name in _ONE_TOWER_LAYER and len(layers) > 1):
        raise ValueError(f"cannot read {need!r}: {_places(name)}")
    return Need(need, name, layers or _TOWER_DEFAULT.get(name, ()))


def _probed(need: str, asked: str, rows: str) -> Need:
    try:
        return replace(parse(asked), text=need, probes=Probes.read(rows))
    except ValueError:
        raise ValueError(f"cannot read {need!r}: {_places(PROBED)}, and '@64,64,0' or '@all' behind it") from None


def _places(name: str) -> str:
    if name in (*DECODER_ROWS, *KEYS):
        return f"{name!r} takes nothing, ':peek' or the index of one decoder layer, as in '{name}:3'"
    if name in TRANSITIONS:
        return f"{name!r} takes indices of different decoder layers, 0 or more, as in '{name}:6,7,8'"
    more = f", or several, as in '{name}:-3,-2'" if name in CLASS_ROWS else ""
    return f"{name!r} takes the index of a layer of the vision tower, as in '{name}:-2'{more}"


def needed(policy: Any) -> tuple[Need, ...]:
    """The needs of a policy, sorted by name."""
    return tuple(parse(need) for need in sorted(policy.needs))


@dataclass(frozen=True)
class RowLayer:
    """The decoder layer whose rows serve a need at a site.

    index: of the layer.
    peek:  True if it has not run yet: its input is looked at before it runs.
    """

    index: int
    peek: bool


def row_layer(need: Need, site: float, linear: Collection[int] = ()) -> RowLayer | None:
    """Which layer serves a need of decoder rows or keys at ``site``; None if no layer that could has run by then.

    linear: layers without attention. In place of such a one the last attention layer before it serves.
    """
    asked = _asked_layer(need, site)
    if asked is None or asked.index not in linear:
        return asked
    before = [index for index in range(asked.index) if index not in linear]
    return RowLayer(before[-1], False) if before else None


def _asked_layer(need: Need, site: float) -> RowLayer | None:
    if need.where == "peek":
        # inside a layer there is no layer about to run
        return RowLayer(max(0, int(site)), True) if site == int(site) else None
    done = math.ceil(site) - 1 if site != BEFORE_LLM else -1
    index = done if need.where is None else need.where
    return RowLayer(index, False) if 0 <= index <= done else None


def served_elsewhere(policy: Any, linear: Collection[int]) -> list[str]:
    """A sentence for each need of decoder rows or keys that another layer serves, as the one asked has no attention."""
    notes = []
    for need in needed(policy) if linear else ():
        if need.kind in ("rows", "keys"):
            layers = {site: row_layer(need, site, linear) for site in policy.sites}
            moved = {site: layer for site, layer in layers.items() if layer and layer != _asked_layer(need, site)}
            where = ", ".join(f"layer {layer.index} at {site_name(site)}" for site, layer in moved.items())
            notes += [f"{need.text} comes from the last layer with attention: {where}"] if moved else []
    return notes


def check_needs(policy: Any, family: Family, model: nn.Module) -> tuple[Need, ...]:
    """The needs of a policy, after making sure that this model can serve each of them at one of its sites at least.

    Raises ValueError that says which need, why not, and what to ask for instead.
    """
    needs = needed(policy)
    layers, linear = len(family.decoder(model).layers), family.linear_layers(model)
    for need in needs:
        if need.kind in ("rows", "keys"):
            _check_rows(need, tuple(policy.sites), layers, linear)
        elif need.kind == "transition":
            _check_transition(need, tuple(policy.sites), layers)
        elif need.name == PROJECTED:
            _check_projected(need, family, model)
        elif need.name == UNPROJECTED:
            _check_unprojected(need, family, model)
        elif need.name == PIXELS:
            _check_pixels(need, family, model)
        elif need.kind == "tower":
            _check_tower(need, family, model)
        elif need.kind == "norm" and last_norm(family.decoder(model)) is None:
            raise NotImplementedError(
                f"{need.text!r} takes the norm after the decoder's last layer, and {type(model).__name__} has none by "
                "the name of norm or embedding_norm: choose a policy without this signal"
            )
    return needs


def _check_rows(need: Need, sites: Iterable[float], layers: int, linear: Collection[int]) -> None:
    found = [layer for site in sites if (layer := row_layer(need, site, linear))]
    if not found and any(_asked_layer(need, site) for site in sites):
        first = min(set(range(layers)) - set(linear))
        raise ValueError(
            f"{need.text!r} looks at attention, and the first layer of this decoder that has any is layer {first}; the "
            f"policy's sites ({', '.join(site_name(site) for site in sites)}) lie before. Choose a site of {first + 1} "
            "or more"
        )
    if not found:
        where = ", ".join(site_name(site) for site in sites)
        raise ValueError(
            f"{need.text!r} looks at a decoder layer that has not run at the policy's sites ({where}). Ask for "
            f"'{need.name}:peek', which looks at the layer at the site, or choose a later site, 1 or more"
        )
    for layer in found:
        if layer.index >= layers:
            raise ValueError(
                f"{need.text!r} asks for decoder layer {layer.index}; this model has layers 0 to {layers - 1}"
            )


def _check_transition(need: Need, sites: Iterable[float], layers: int) -> None:
    first, last = min(need.where), max(need.where)
    if last >= layers:
        raise ValueError(f"{need.text!r} asks for decoder layer {last}; this model has layers 0 to {layers - 1}")
    if not any(site > first + 0.5 for site in sites):
        where = ", ".join(site_name(site) for site in sites)
        raise ValueError(
            f"{need.text!r} looks at decoder layers that have not run at the policy's sites ({where}). Ask for earlier "
            f"layers, or choose a site of {first + 1} or more"
        )


def _check_projected(need: Need, family: Family, model: nn.Module) -> None:
    if not family.pools_after_projector:
        raise ValueError(
            f"{need.text!r} are the projector's features before they are pooled, and {type(model).__name__} does not "
            "pool after its projector: use the visual tokens themselves"
        )


def _check_unprojected(need: Need, family: Family, model: nn.Module) -> None:
    if not family.has_token_projector(model):
        raise ValueError(
            f"{need.text!r} is what the projector is given for each visual token, and {type(model).__name__} has no "
            "projector that takes one row for each: use the visual tokens themselves"
        )


def _check_pixels(need: Need, family: Family, model: nn.Module) -> None:
    if not pixel_hooks(family, model):
        raise ValueError(
            f"{need.text!r} are seen where the vision tower cuts them into patches, by a convolution that no two "
            f"patches share pixels of, and {type(model).__name__} has none: choose options that look at no pixels"
        )


def _check_tower(need: Need, family: Family, model: nn.Module) -> None:
    towers = family.towers(model)
    if not towers:
        raise ValueError(
            f"{need.text!r} is seen in a vision tower with attention, and {type(model).__name__} has none: choose a "
            "policy without this signal"
        )
    for kind in towers:
        layers = len(family.vision_layers(model, kind))
        for layer in need.where:
            if not -layers <= layer < layers:
                raise ValueError(
                    f"{need.text!r} asks for layer {layer} of the vision tower, which has layers 0 to {layers - 1} "
                    f"(or -{layers} to -1)"
                )
        if need.name in (*CLASS_ROWS, "cls_attention_joint") and not family.has_class_token(model, kind):
            raise ValueError(
                f"{need.text!r} is the attention of the vision tower's class token, and the tower of "
                f"{type(model).__name__} has none. Ask for 'vision_attention', which every tower has"
            )
