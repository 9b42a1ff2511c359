"""The signals of a forward: which layer inputs are kept for them, and what each sample's policy gets to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from vtprune import patches
from vtprune.attention import attention_inputs, rotated_ones
from vtprune.blocks.probe_rows import probe_rows
from vtprune.cache import PrunedLayer, PrunedStaticLayer, live_layer
from vtprune.compat import compared_keys
from vtprune.forward import CURRENT, Forward
from vtprune.parts import last_norm, mixer_of, mlp_of
from vtprune.pixels import pixel_hooks
from vtprune.probes import PROBED, probe_attention
from vtprune.prompt import PromptRow, make_prompt
from vtprune.rank import RANK, layer_rank, real_rows
from vtprune.records import SiteRecord
from vtprune.rows import padded_rows, row_attention
from vtprune.signals import GRAPH, PIXELS, PROJECTED, ROTARY, UNPROJECTED, Need, needed, row_layer
from vtprune.sink_rule import SinkSignals
from vtprune.tokens import site_name
from vtprune.transition import Transitions, physical
from vtprune.unprojected import joined, unprojected_hooks
from vtprune.unrotated import UNROTATED, unrotated
from vtprune.vision_signals import COLLECTED, FeatureTap, vision_taps


class Sight:
    """Serves the needs of one wrapped model's policy; computes nothing that is not read."""

    def __init__(self, pruner):
        self.pruner = pruner
        self.needs = needed(pruner.plan.policy)
        self.rows = [need for need in self.needs if need.kind in ("rows", "keys")]
        self.transitions: dict[int, list[str]] = {}
        for need in self.needs:
            for layer in need.where if need.kind == "transition" else ():
                self.transitions.setdefault(layer, []).append(need.name)
        self.last_use = self._last_use()
        self.reads_prompt = any(need.kind == "prompt" for need in self.needs)

    def _last_use(self) -> dict[int, float]:
        """Decoder layer whose attention is watched -> the last site at which its rows can be asked for."""
        last: dict[int, float] = {}
        for site in self.pruner.plan.policy.sites:
            for need in self.rows:
                row = row_layer(need, site, self.pruner.plan.linear)
                if row is not None and not row.peek:
                    last[row.index] = site
        return last

    # ---- hooks, for the pruner to register

    def tower_hooks(self, model: nn.Module) -> list:
        """(module, pre-hook) pairs on the vision tower."""
        texts, family = [need.text for need in self.needs if need.kind == "tower"], self.pruner.family
        pixels = pixel_hooks(family, model, _pixels) if PIXELS in texts else []
        return pixels + (vision_taps(family, model, texts) if texts else [])

    def projector_hooks(self, model: nn.Module) -> list:
        """(module, hook) pairs on the projector, and on layers of the tower before it."""
        names, family = {need.name for need in self.needs}, self.pruner.family
        pairs = [(family.projector(model), FeatureTap())] if PROJECTED in names else []
        return pairs + (unprojected_hooks(family, model, _unprojected) if UNPROJECTED in names else [])

    def layer_hooks(self) -> list:
        """(module, pre-hook) pairs on decoder layers."""
        return [(self.pruner.layers[i].self_attn, partial(self._watch, i)) for i in sorted(self.last_use)]

    def after_hooks(self) -> list:
        """(module, hook) pairs on decoder layers, called with what the module was given and what came out."""
        pairs = []
        for index in sorted(self.transitions):
            layer = self.pruner.layers[index]
            pairs.append((mixer_of(layer), partial(self._see, index, "attention")))
            pairs.append((mlp_of(layer), partial(self._see, index, "mlp")))
        return pairs

    def _forward(self) -> Forward | None:
        if torch.compiler.is_compiling():
            return None
        forward = CURRENT.get()
        if forward is None or forward.owner is not self.pruner or forward.layout is None or forward.done:
            return None
        return forward

    def _watch(self, index: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        forward = self._forward()
        if forward is not None:
            forward.captured[index] = ({**kwargs, "hidden_states": args[0]} if args else kwargs, forward.columns)

    def _see(self, index: int, part: str, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        forward = self._forward()
        if forward is None:
            return
        x, out = args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output
        out = out.reshape(x.shape)  # experts may hand out the rows of all samples in one (Llama 4)
        if forward.transitions is None:
            forward.transitions = Transitions()
        names = self.transitions[index]
        forward.transitions.see(names, index, part, x, out, forward.real(x.device), forward.columns)

    # ---- what a policy sees

    def signals(self, forward: Forward, site: float, index: int, hidden: Tensor, bound: Mapping, b: int) -> Mapping:
        """What sample ``b`` may read at ``site``, served in layer ``index`` with these hidden states and arguments."""
        serve: dict[str, Callable[[], Tensor]] = {}
        for need in self.needs:
            if need.kind == "tower":
                serve[need.text] = partial(self._from_tower, forward, need, b, hidden.device)
            elif need.kind == "transition":
                if forward.transitions is not None and forward.transitions.done(need):
                    logical = self._logical(forward, b)
                    serve[need.text] = partial(forward.transitions.rows, need, b, logical, hidden.device)
            elif need.kind == "prompt":
                serve[need.text] = partial(self._prompt, forward, b)
            elif need.kind == "norm":
                serve[need.text] = partial(self._normed, forward, need, hidden, b)
            elif (layer := row_layer(need, site, self.pruner.plan.linear)) is not None:
                serve[need.text] = partial(self._read, forward, need, layer, (index, hidden, bound), b)
            elif row_layer(need, site) is not None:
                serve[need.text] = partial(_refuse, need, site)
        signals, rule = Signals(forward, forward.serving, serve), self.pruner.plan.sinks
        if rule is None:
            return signals
        return SinkSignals(signals, rule, forward.serving, b, partial(self._visual, forward, hidden, b))

    def _visual(self, forward: Forward, hidden: Tensor, b: int) -> Tensor:
        """(N, D) hidden states of the visual tokens that are still there."""
        return forward.seen(hidden)[b][forward.samples[b].visual.to(hidden.device)]

    def served(self, forward: Forward, site: float) -> None:
        """Lets go of what no later site can ask for."""
        for key in [k for k in forward.captured if not isinstance(k, int) or self.last_use.get(k, site) <= site]:
            del forward.captured[key]

    def _logical(self, forward: Forward, b: int) -> Tensor:
        """(N,) columns of the visual tokens that are still there."""
        sample = forward.samples[b]
        return sample.row.columns[sample.offered[sample.alive]]

    def _from_tower(self, forward: Forward, need: Need, b: int, device: torch.device):
        sample = forward.samples[b]
        seen = [source.signals.get(need.text) for source in sample.row.sources]
        if any(signal is None for signal in seen):
            raise ValueError(
                f"{need.text!r} comes from the vision tower, which did not run for this prompt while the model was "
                "wrapped. Pass pixel values, or encode with get_image_features after vtprune.wrap"
            )
        if need.name == PROJECTED:
            return tuple(feature.to(device) for feature in seen)
        if need.name in (GRAPH, PIXELS):
            return patches.joined(seen).of(sample.offered[sample.alive], device)
        if need.name == UNPROJECTED:
            return joined(seen).of(sample.offered[sample.alive], device)
        return torch.cat(seen, -1)[..., sample.offered[sample.alive].to(seen[0].device)].to(device)

    def _prompt(self, forward: Forward, b: int) -> PromptRow:
        if forward.prompt is None:
            forward.prompt = make_prompt(forward.given, forward.encoded, forward.layout.n_visual)
        copies = len(forward.samples) // len(forward.prompt.inputs["input_ids"])
        return PromptRow(forward.prompt, b // copies, forward.samples[b].row.start)

    # ---- what the decoder's own parts make of the tokens

    def _normed(self, forward: Forward, need: Need, hidden: Tensor, b: int) -> Tensor:
        sample = forward.samples[b]
        rows = sample.text if need.name.startswith("text") else sample.visual
        with torch.no_grad():
            return last_norm(self.pruner.decoder)(forward.seen(hidden)[b][rows.to(hidden.device)])

    def _layer_keys(self, forward: Forward, need: Need, layer, b: int) -> Tensor:
        inputs, columns = forward.captured[("peek", layer.index) if layer.peek else layer.index]
        memo = (need.name if need.name in UNROTATED else "keys", layer.index, layer.peek)
        attn = self.pruner.layers[layer.index].self_attn
        if memo not in forward.memo and need.name in UNROTATED:
            forward.memo[memo] = unrotated(attn, inputs, need.name)
        elif memo not in forward.memo:
            stored = self._keys(attn, inputs, layer.index, layer.peek)
            forward.memo[memo] = _own_keys(attn, inputs) if stored is None else stored
        keys = forward.memo[memo]
        wanted = forward.samples[b].row.text if need.name == "text_keys" else self._logical(forward, b)
        past = keys.shape[2] - inputs["hidden_states"].shape[1]
        return keys[b][:, physical(columns, b, wanted.to(keys.device)) + past]

    def _rotary(self, forward: Forward, layer, b: int) -> Tensor:
        inputs, columns = forward.captured[("peek", layer.index) if layer.peek else layer.index]
        memo = (ROTARY, layer.index, layer.peek)
        if memo not in forward.memo:
            attn = self.pruner.layers[layer.index].self_attn
            forward.memo[memo] = rotated_ones(attn, **_plain(inputs), attention_mask=None).float()
        ones, sample = forward.memo[memo][b], forward.samples[b]
        text, visual = (
            ones[physical(columns, b, where.to(ones.device))] for where in (sample.row.text, self._logical(forward, b))
        )
        return text @ visual.T * ones.shape[-1] ** -0.5

    # ---- rows of decoder attention

    def _read(self, forward: Forward, need: Need, layer, here: tuple, b: int) -> Tensor:
        if layer.peek:
            self._peek(forward, *here)
        if need.name == ROTARY:
            return self._rotary(forward, layer, b).to(here[1].device)
        if need.kind == "keys":
            return self._layer_keys(forward, need, layer, b).to(here[1].device)
        if need.name == RANK:
            return self._rank(forward, layer, b).to(here[1].device)
        return self._rows(forward, need, layer.index, layer.peek, b).to(here[1].device)

    def _peek(self, forward: Forward, index: int, hidden: Tensor, bound: Mapping) -> None:
        key = ("peek", index)
        if forward.captured.get(key) is None:
            narrowed = self.pruner.arguments.prefill(forward, index, hidden, dict(bound)) or bound
            seen = self.pruner.family.attention_input(self.pruner.layers[index], hidden)
            inputs = {**narrowed, "hidden_states": seen}
            forward.captured[key] = (inputs, forward.columns)

    def _rows(self, forward: Forward, need: Need, index: int, peek: bool, b: int) -> Tensor:
        inputs, columns = forward.captured[("peek", index) if peek else index]
        memo = ("rows", need.text, index, peek)
        if memo not in forward.memo:
            forward.memo[memo] = self._attention(forward, need, index, peek, inputs, columns)
        attention = forward.memo[memo]
        offset = attention.shape[-1] - inputs["hidden_states"].shape[1]
        places = physical(columns, b, self._logical(forward, b).to(attention.device)) + offset
        if need.name == "last_query_attention":
            return attention[b, 0, places]
        if need.name == PROBED:
            return attention[b][:, places]
        return attention[b][..., : len(forward.samples[b].row.text), :][..., places]

    def _rank(self, forward: Forward, layer, b: int) -> Tensor:
        inputs, columns = forward.captured[("peek", layer.index) if layer.peek else layer.index]
        memo = (RANK, layer.index, layer.peek)
        if memo not in forward.memo:
            attn, hidden = self.pruner.layers[layer.index].self_attn, inputs["hidden_states"]
            columns = None if columns is None else columns.to(hidden.device)
            real = real_rows(torch.stack([row.real for row in forward.layout.rows]).to(hidden.device), columns)
            keys = self._keys(attn, inputs, layer.index, layer.peek)
            past = 0 if keys is None else keys.shape[2] - hidden.shape[1]
            forward.memo[memo] = layer_rank(attn, inputs, real, past, _biased(forward, inputs, layer.index))
        rank = forward.memo[memo]
        return rank[b, physical(columns, b, self._logical(forward, b).to(rank.device))]

    def _attention(self, forward: Forward, need: Need, index: int, peek: bool, inputs: Mapping, columns) -> Tensor:
        """(B, R, K) rows of the wanted text tokens over all keys, past ones included; of probe rows their sums."""
        attn, hidden = self.pruner.layers[index].self_attn, inputs["hidden_states"]
        keys, mask = self._keys(attn, inputs, index, peek), inputs.get("attention_mask")
        biased = _biased(forward, inputs, index)
        if need.name == PROBED:
            rows = self._probed(forward, need, index, columns, hidden.device)
            return probe_attention(attn, inputs, rows, mask, keys, biased=biased)
        last = need.name == "last_query_attention"
        wanted = [sample.row.text[-1:] if last else sample.row.text for sample in forward.samples]
        rows, _ = padded_rows([physical(columns, b, row.to(hidden.device)) for b, row in enumerate(wanted)])
        return row_attention(attn, inputs, rows, mask, keys, biased=biased, reduce=need.over_heads)

    def _probed(self, forward: Forward, need: Need, index: int, columns, device: torch.device) -> list[Tensor]:
        """The physical rows of each sample's probe rows, in a layer that sees ``columns``."""
        columns = None if columns is None else columns.to(device)
        real = real_rows(torch.stack([row.real for row in forward.layout.rows]).to(device), columns).cpu()
        there = [rows.nonzero().flatten() for rows in real]
        seeds = [row.seed for row in forward.layout.rows]
        return [rows[probe_rows(len(rows), need.probes, seed, index)] for rows, seed in zip(there, seeds, strict=True)]

    def _keys(self, attn: nn.Module, inputs: Mapping, index: int, peek: bool) -> Tensor | None:
        """The keys of the layer, past ones first; None: compute those of this forward, there are no others."""
        cache = inputs.get("past_key_values")
        layer = live_layer(cache, index) if cache is not None else None
        if layer is None or not layer.is_initialized or not layer.keys.numel():
            return None
        stored, values = layer.keys, layer.values
        if isinstance(layer, PrunedStaticLayer) or hasattr(layer, "max_cache_len"):
            stored, values = (part[:, :, : int(layer.cumulative_length)] for part in (stored, values))
        if stored.device != inputs["hidden_states"].device or (getattr(layer, "sliding_window", None) and not peek):
            return None
        stored = compared_keys(attn, stored, values)
        if not peek:
            return stored
        return torch.cat([stored, _own_keys(attn, inputs)], 2)


def _refuse(need: Need, site: float) -> Tensor:
    raise ValueError(
        f"{need.text!r} was read at {site_name(site)}, before any layer with attention has run: the layers before it "
        "are linear. Choose later sites for this policy"
    )


def _biased(forward: Forward, inputs: Mapping, index: int) -> bool:
    """Whether something may be added to the scores of keys in this layer."""
    cache = inputs.get("past_key_values")
    layer = live_layer(cache, index) if cache is not None else None
    return layer.biased if isinstance(layer, PrunedLayer) else forward.stands_for is not None


def _own_keys(attn: nn.Module, inputs: Mapping) -> Tensor:
    """(B, H_kv, P, d) the keys of this forward's own rows."""
    (call,) = attention_inputs(attn, without=("q_proj", "v_proj"), attention_mask=None, **_plain(inputs))
    return call.key


def _plain(inputs: Mapping) -> dict:
    return {k: v for k, v in inputs.items() if k in ("hidden_states", "position_embeddings", "position_ids")}


def _unprojected() -> dict[int, list[Tensor]] | None:
    """Where the projector's taps put what they see; None while nobody collects."""
    collected = COLLECTED.get()
    return None if collected is None else collected.setdefault(UNPROJECTED, {})


def _pixels() -> list[Tensor] | None:
    """The same for the taps where pixels come in."""
    collected = COLLECTED.get()
    return None if collected is None else collected.setdefault(PIXELS, {}).setdefault(0, [])


class Signals(Mapping):
    """The signals of one sample at one site, each computed when it is first read, during ``select`` only."""

    def __init__(self, forward: Forward, record: SiteRecord, serve: Mapping[str, Callable[[], Tensor]]):
        self._forward, self._record, self._serve, self._seen = forward, record, serve, {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._seen:
            serve = self._serve[name]
            if self._forward.serving is not self._record:
                raise RuntimeError(
                    f"the signal {name!r} of the site {site_name(self._record.site)} can be read only while select "
                    "runs; keep a copy in tokens.memory if a later site needs it"
                )
            self._record.reads.add(name)
            self._seen[name] = serve()
        return self._seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._serve)

    def __len__(self) -> int:
        return len(self._serve)
