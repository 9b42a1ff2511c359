"""One wrapped model: the only file that registers hooks.

Everything above the decoder layers keeps seeing the unpruned sequence; the layers see the pruned one. Pre-hooks on the
layers gather hidden states, rotary tables and masks; pruned cache layers answer with unpruned lengths; a hook on the
last layer scatters back, so that logits have the shape of the input.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.between import Added, Cut, added, deferred
from vtprune.cache import PrunedLayer, PrunedStaticLayer, dense
from vtprune.encoder import Merging, Recorder, arrived, check_chunks, encoded_sources
from vtprune.evict import Evictor, eviction_notes
from vtprune.families.base import Family, Source
from vtprune.forward import CURRENT, Forward
from vtprune.inside import InsideSite
from vtprune.layout import build_layout
from vtprune.masks import narrow_mask
from vtprune.narrow import LayerArguments
from vtprune.plan import Plan
from vtprune.refuse import check_back_end, check_call, check_planes, refuse_compiled_prefill
from vtprune.report import Report
from vtprune.seconds import with_seconds
from vtprune.sight import Sight
from vtprune.states import check_places, guard, has_state

_LOCK = threading.Lock()
"""Guards the hooks on layers of all pruners; held for microseconds, and kept out of what is copied or pickled."""


class Pruner:
    """The hooks of one wrapped model and nothing that outlives a forward, except the report."""

    def __init__(self, model: nn.Module, family: Family, plan: Plan, ragged: str = "padded", equalize: bool = False):
        self.family, self.plan, self.equalize = family, plan, equalize
        self.base, self.decoder = family.base(model), family.decoder(model)
        self.layers = self.decoder.layers
        self.placeholders = family.placeholders(model)
        self.frames_per_step = family.frames_per_step(model)
        modules = {"base": self.base, "decoder": self.decoder, **dict(enumerate(self.layers))}
        self.names = {name: list(inspect.signature(module.forward).parameters) for name, module in modules.items()}
        self.plane = getattr(self.decoder.config, family.active_plane) if family.active_plane else 0
        plan.notes += eviction_notes(plan.policy, self.decoder, family, plan.linear)
        self.report = Report(model, family, plan)
        self.arguments = LayerArguments(self.decoder, family, ragged, plan.linear)
        self.sight = Sight(self)
        self.evictor = Evictor(self, model)
        self.handles: list = []
        self.layer_handles: list = []
        # forwards under way that need the layers' hooks; and whether they must stay: layers of several kinds get
        # several masks, of which the first layer sees one only, and a compiled decode step cannot ask for hooks
        self.busy = 0
        self.sticky = len(set(getattr(self.decoder.config, "layer_types", None) or ())) > 1
        self.overrides: list[tuple[nn.Module, str]] = []
        self._attach(model)

    # ---- attaching and leaving

    def _attach(self, model: nn.Module) -> None:
        hook = self.handles.append
        hook(self.base.register_forward_pre_hook(self._enter_base, with_kwargs=True))
        hook(self.base.register_forward_hook(self._leave_base, with_kwargs=True, always_call=True))
        hook(self.decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
        # this one stays, so that a mask in a decode step is seen
        enter = functools.partial(self._enter_layer, self.plan.first)
        hook(self.layers[self.plan.first].register_forward_pre_hook(enter, with_kwargs=True))
        if self.family.text_is_base:
            module = self.family.merger(model)
            merging = Merging(self, model, module)
            hook(module.register_forward_pre_hook(merging.enter, with_kwargs=True))
            hook(module.register_forward_hook(merging.leave, with_kwargs=True, always_call=True))
        for module, watch in self.sight.tower_hooks(model):
            hook(module.register_forward_pre_hook(watch, with_kwargs=True))
        for module, watch in self.sight.projector_hooks(model):
            hook(module.register_forward_hook(watch, with_kwargs=True))
        for kind in self.placeholders:
            self._override(self.base, f"get_{kind}_features", Recorder(self, model, kind))
        for names, override in ((self.family.between_layers, Added), (self.family.cuts_rows, Cut)):
            for name in names:
                self._override(self.decoder, name, override(self, name))

    def engage(self) -> None:
        """Hooks the layers. In a plain decode step they are free: torch's way through a hook costs more than ours."""
        with _LOCK:
            if self.layer_handles:
                return
            hooks = []
            for index in range(self.plan.first + 1, len(self.layers)):
                enter = functools.partial(self._enter_layer, index)
                hooks.append(self.layers[index].register_forward_pre_hook(enter, with_kwargs=True))
            # before those of inside sites, which change what is alive
            for module, watch in self.evictor.hooks():
                hooks.append(module.register_forward_hook(watch, with_kwargs=True))
            # before those of inside sites, which change what the MLP gives
            for module, watch in self.sight.after_hooks():
                hooks.append(module.register_forward_hook(watch, with_kwargs=True))
            for index in self.plan.inside:
                hooks += InsideSite(self, index).attach()
            for module, watch in self.sight.layer_hooks():
                hooks.append(module.register_forward_pre_hook(watch, with_kwargs=True))
            hooks.append(self.layers[-1].register_forward_hook(self._leave_layers))
            self.layer_handles = hooks

    def _release(self) -> None:
        """Frees the layers, unless another thread is in the middle of a forward that needs their hooks."""
        with _LOCK:
            if self.busy or self.sticky:
                return
            for handle in self.layer_handles:
                handle.remove()
            self.layer_handles = []

    def _override(self, module: nn.Module, name: str, value) -> None:
        if hasattr(type(module), name):
            vars(module)[name] = value
            self.overrides.append((module, name))

    def close(self) -> None:
        """Removes every hook and override."""
        for handle in (*self.handles, *self.layer_handles):
            handle.remove()
        for module, name in self.overrides:
            vars(module).pop(name, None)
        self.handles, self.layer_handles, self.overrides = [], [], []

    # ---- one forward, from the outside in

    def encoded(self, kind: str, sources: Sequence[Source], arguments: Mapping) -> None:
        """The encoder ran: inside a forward its notes go there, otherwise they travel with its output."""
        forward = CURRENT.get()
        if forward is not None and forward.owner is self:
            forward.encoded[kind] = sources
        self.report.encoded(kind, arguments)

    def kind_of(self, kind: str, arguments: Mapping) -> str:
        """What an encoder call is about: some models send a video's pixels through their images' encoder."""
        forward = CURRENT.get()
        if forward is None or forward.owner is not self or forward.video_pixels is None:
            return kind
        moving = "video" in self.placeholders and any(value is forward.video_pixels for value in arguments.values())
        return "video" if moving else kind

    def _bind(self, kind: str | int, args: tuple, kwargs: Mapping) -> dict:
        return {**dict(zip(self.names[kind], args, strict=False)), **kwargs} if args else kwargs

    def _enter_base(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        bound = self._bind("base", args, kwargs)
        if compat.is_compiled_call():
            refuse_compiled_prefill(bound)
        if torch.compiler.is_compiling():
            return
        forward = Forward(self, self.plan.active(), CURRENT.get())
        forward.sinks = self.plan.sinks
        ids, embeds = bound.get("input_ids"), bound.get("inputs_embeds")
        forward.length, forward.plane = (ids if ids is not None else embeds).shape[1], self.plane
        mask = bound.get("attention_mask")
        forward.mask2d = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        CURRENT.set(forward)
        if forward.length > 1 and self.placeholders:
            forward.kinds, forward.ids = self._kinds(ids, embeds)
            check_chunks(bound.get("mm_encoder_outputs"))
            forward.encoded = encoded_sources(bound.get("mm_encoder_outputs"))
            forward.per_step = bound.get(self.family.step_argument)
            forward.video_pixels = bound.get("pixel_values_videos")
            forward.reaching = bound.get(self.family.mask_argument)
            forward.given = bound if self.sight.reads_prompt else {}

    def _kinds(self, ids: Tensor | None, embeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, L) which placeholder every column is, -1 for none; and the ids, both on the CPU."""
        tokens = list(self.placeholders.values())
        if ids is not None:
            ids = ids.cpu()
            is_kind = [ids == token for token in tokens]
        else:
            table = self.base.get_input_embeddings()
            rows = table(torch.tensor(tokens, device=embeds.device))
            is_kind = [(embeds == row.to(embeds.dtype)).all(-1).cpu() for row in rows]
        kinds = torch.full(is_kind[0].shape, -1)
        for index, mask in enumerate(is_kind):
            kinds[mask] = index
        return kinds, ids

    def _enter_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if torch.compiler.is_compiling():
            return None
        bound = self._bind("decoder", args, kwargs)
        forward = CURRENT.get()
        if forward is None or forward.owner is not self:
            return None
        cache, forward.mask = bound.get("past_key_values"), bound.get("attention_mask")
        forward.plain = cache is None or all(dense(layer) for layer in cache.layers)
        visual = forward.kinds is not None and bool((forward.kinds >= 0).any())
        if visual or not forward.plain:
            self._hold(forward)
        elif self.layer_handles:
            self._release()
        if not visual:
            if forward.length > 1:
                self.report.nothing_to_prune()
            return None
        for name, why in self.family.refused.items():
            if bound.get(name):
                raise NotImplementedError(why)
        if module.training and torch.is_grad_enabled():
            raise RuntimeError(
                "vtprune prunes at inference; this model is in training mode with gradients. Call model.eval(), or "
                "vtprune.unwrap(model) before training"
            )
        check_call(self.decoder, bound)
        check_back_end(self.decoder, self.family)
        forward.start = 0 if cache is None else int(cache.get_seq_length())
        self.family.check_prompt(self.decoder, forward.start + forward.length)
        if cache is not None:
            check_places(cache, self.decoder, self.plan.linear)
            guard(cache)
            forward.equalize = self.equalize and any(map(has_state, cache.layers))
        forward.position_ids = bound.get("position_ids")
        # a base that is the decoder encodes its pictures within this call
        forward.waits = self.family.text_is_base and forward.ids is not None
        if not forward.waits:
            self.begin(forward)
        if self.family.adds_in_loop is None:
            return None
        return (), deferred(forward, self.family.adds_in_loop, dict(bound), self.plan.first)

    def begin(self, forward: Forward) -> None:
        """What the prompt holds is known: the layers may prune."""
        real = forward.tokens()[:, forward.start :]
        names = list(self.placeholders)
        forward.encoded, forward.kinds = arrived(self.family, forward.encoded, forward.kinds, names, forward.reaching)
        is_video = forward.kinds == (names.index("video") if "video" in names else -2)
        encoded = with_seconds(forward.encoded, self.frames_per_step, forward.per_step, is_video)
        layout = build_layout(forward.kinds, forward.ids, real, encoded, names)
        forward.positions = self.plan.positions(forward.policy)
        forward.begin(layout, getattr(forward.policy, "newlines", False))

    def _hold(self, forward: Forward) -> None:
        """Makes sure that the layers are hooked until this forward ends."""
        if not forward.engaged:
            forward.engaged = True
            with _LOCK:
                self.busy += 1
        self.engage()

    def _leave_base(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        if torch.compiler.is_compiling():
            return
        forward = CURRENT.get()
        if forward is None or forward.owner is not self:
            return
        CURRENT.set(forward.outer)
        try:
            if forward.record is not None and output is not None:
                forward.record.cached = self.evictor.finish(forward, output)
        finally:
            if forward.engaged:
                with _LOCK:
                    self.busy -= 1
        if forward.record is not None and output is not None:
            self.report.finish(forward, getattr(output, "past_key_values", None))

    # ---- the layers

    def _enter_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict):
        if torch.compiler.is_compiling():
            return self._enter_compiled_layer(index, args, kwargs)
        forward = CURRENT.get()
        if forward is None or forward.owner is not self:
            return None
        if len(args) > 1:
            args, kwargs = (), self._bind(index, args, kwargs)
        if forward.layout is None:
            # the usual decode step: nothing was left ragged and the model needs no mask
            if forward.plain and kwargs.get("attention_mask") is None:
                return None
            if not forward.engaged:
                # the step is not plain after all; the layers behind this one have not run yet
                self._hold(forward)
                layer = self.arguments.stored(kwargs.get("past_key_values"), index)
                if isinstance(layer, PrunedLayer):
                    layer.masked = True
            return self._enter_decode(forward, index, args, kwargs)
        bound = dict(self._bind(index, args, kwargs))
        hidden = bound.pop("hidden_states")
        check_planes(hidden, self.family, self.decoder)
        adds = forward.to_add is not None and index in forward.to_add[1]
        if adds:
            visual, embeddings = forward.to_add[0], forward.to_add[1][index]
            hidden = added(forward, hidden, visual, embeddings)
        if forward.layout is not None:
            for site in self.plan.before.get(index, ()):
                signals = functools.partial(self.sight.signals, forward, site, index, hidden, bound)
                hidden = forward.prune(site, hidden, signals, self.arguments.shift(bound, index))
                self.sight.served(forward, site)
            if index in self.plan.inside:
                forward.inside["residual"] = hidden
            if forward.sinks is not None:
                forward.entering = hidden
        narrowed = self.arguments.prefill(forward, index, hidden, bound)
        if narrowed is None:
            return self._hand_back(index, hidden, bound) if adds else None
        layer = self.arguments.stored(bound.get("past_key_values"), index)
        self.sticky = self.sticky or isinstance(layer, PrunedStaticLayer)
        return self._hand_back(index, hidden, narrowed)

    def _hand_back(self, index: int, hidden: Tensor, others: dict) -> tuple[tuple, dict]:
        """Arguments of a layer: all by name but hidden states, which go by place where they come first."""
        if self.names[index][0] == "hidden_states":
            return (hidden,), others
        return (), {**others, "hidden_states": hidden}

    def _enter_decode(self, forward: Forward, index: int, args: tuple, kwargs: dict):
        """A forward without visual tokens on a pruned cache: the mask is narrowed, positions renumbered if need be."""
        # hidden states come alone by place, or by name like the rest
        layer = self.arguments.stored(kwargs.get("past_key_values"), index)
        if not isinstance(layer, PrunedLayer):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        shift = layer.shift if isinstance(layer, PrunedStaticLayer) else layer.slots.shift
        mask = self.arguments.mask(forward, index, layer, hidden, kwargs.get("attention_mask"), shift is not None)
        out = {**kwargs, "attention_mask": mask}
        if shift is not None:
            out.update(self.arguments.renumbered(forward, index, hidden, kwargs, shift))
        if args:
            return args, out
        out.pop("hidden_states")
        return self._hand_back(index, hidden, out)

    def _enter_compiled_layer(self, index: int, args: tuple, kwargs: dict):
        """A decode step inside torch.compile; the prefill is never compiled by ``generate``."""
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        source = self.arguments.sources.get(index)
        layer = cache.layers[index if source is None else source] if cache is not None else None
        if not isinstance(layer, PrunedStaticLayer) or not layer.trimmed:
            return None
        positions, valid, bias = layer.coming_tensors(1) if source is None else layer.stored_tensors()
        total = layer.logical_length + (1 if source is None else 0)
        given, start = kwargs["attention_mask"], total - 1
        mask = narrow_mask(given, None, positions, valid, 1, start, total, "sdpa", hidden.dtype, bias)
        kwargs = {**kwargs, "attention_mask": mask}
        if layer.shift is not None:
            ids = kwargs["position_ids"] - layer.shift[:, None]
            kwargs["position_embeddings"] = compat.rotary(self.decoder, index, hidden, ids)
            if self.arguments.reads_position_ids:
                kwargs["position_ids"] = ids
        return args, kwargs

    def _leave_layers(self, module: nn.Module, args: tuple, output):
        if torch.compiler.is_compiling():
            return None
        forward = CURRENT.get()
        if forward is None or forward.owner is not self or forward.columns is None or forward.cut:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        full = forward.scatter(hidden)
        forward.scattered = True
        return (full, *output[1:]) if isinstance(output, tuple) else full
