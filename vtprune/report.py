"""What a wrapped model kept and what that saved: tokens, cache bytes, FLOPs, time spent selecting."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import Tensor, nn

from vtprune import flops
from vtprune.achieved import Achieved, asked_of, in_words
from vtprune.flops_vision import vision_flops
from vtprune.kept import Kept, kept_of
from vtprune.layer_sizes import has_experts
from vtprune.records import Prefill, SiteRecord
from vtprune.states import state_bytes
from vtprune.stopwatch import Stopwatch
from vtprune.tokens import site_name


class Report:
    """What the last prefill kept. Readable with ``str()``; numbers by property.

    Counts are those of the sample's own tokens: padding and the pads of ragged batches are left out, except in
    ``kv_bytes``, which is measured.
    """

    def __init__(self, model: nn.Module, family, plan):
        self._model, self._family, self._plan = model, family, plan
        self.prefills = 0
        self.without_visual = 0
        self.last: Prefill | None = None
        self.vision_calls: list[tuple[str, Mapping]] = []
        self.vision_laps: list[Stopwatch] = []
        self._stale = False

    # ---- written by the pruner

    def nothing_to_prune(self) -> None:
        """A prompt without visual tokens went through untouched."""
        self.without_visual += 1

    def encoded(self, kind: str, arguments: Mapping) -> None:
        """The encoder ran on ``arguments``; only shapes, sizes and grids are kept."""
        if self._stale:
            self.vision_calls, self.vision_laps, self._stale = [], [], False
        self.vision_calls.append((kind, {name: small(value) for name, value in arguments.items()}))

    def finish(self, forward, cache) -> None:
        """Takes the record of a finished forward."""
        record: Prefill = forward.record
        depth = self._plan.depth
        text = [int(sample.row.real.sum()) for sample in forward.samples]
        total = [n - len(offered) for n, offered in zip(text, record.offered, strict=True)]
        record.lengths = [self._lengths(record, b, total[b]) for b in range(len(total))]
        record.kv_bytes, record.state_bytes = measured_bytes(cache), state_bytes(cache)
        record.windows = windows_of(cache)
        record.dtype_size = self._model.get_input_embeddings().weight.element_size()
        record.past = [[0] * depth for _ in total]
        self.last = record
        self.prefills += 1
        self._stale = True

    def _lengths(self, record: Prefill, b: int, others: int) -> list[flops.Length]:
        """Tokens that each layer processes for sample ``b``; a pair (attention, MLP) where a site lies inside."""
        left = {site.site: len(site.kept[b]) for site in record.sites}
        return self._plan.served.lengths(len(record.offered[b]), others, left)

    # ---- read by everybody

    @property
    def policy(self):
        """The policy that is in force here, fitted to the model."""
        return self._plan.active()

    @property
    def positions(self) -> str:
        """ "original", "compact" or "compact-vision", as it is served."""
        return self._plan.positions(self.policy)

    @property
    def sites(self) -> list[SiteRecord]:
        """The sites of the last prefill in order; empty before the first."""
        return self.last.sites if self.last else []

    @property
    def notes(self) -> list[str]:
        """What the user should know: stand-ins for a signal, sites served elsewhere, what the policy said last."""
        moved = [f"{site_name(site)}: {why}" for site, why in sorted(self._plan.moved.items())]
        said = [f"{site_name(record.site)}: {note}" for record in self.sites for note in record.notes]
        cached = self.last.cached if self.last else None
        of_cache = [f"cache: {note}" for note in cached.notes] if cached else []
        return [*self._plan.notes, *moved, *said, *of_cache, *(self.last.notes if self.last else ())]

    @property
    def tokens(self) -> list[tuple[int, int]]:
        """(before, after the last site) visual tokens of every sample."""
        if not self.last:
            return []
        after = self.sites[-1].after if self.sites else [len(offered) for offered in self.last.offered]
        return [(len(offered), n) for offered, n in zip(self.last.offered, after, strict=True)]

    def layer_mean(self, sample: int = 0) -> float:
        """Visual tokens of a sample that a decoder layer processes, mean over the layers; 0.0 before the first prefill.

        Of a layer in whose middle tokens are dropped, the mean of its attention's and its MLP's.
        """
        if not self.last:
            return 0.0
        lengths = [sum(n) / 2 if isinstance(n, tuple) else n for n in self.last.lengths[sample]]
        return sum(lengths) / len(lengths) - self._others(sample)

    def achieved(self, sample: int = 0) -> Achieved:
        """What was kept of a sample in the last prefill, beside what was asked; raises ValueError before the first."""
        if not self.last:
            raise ValueError("nothing was pruned yet; call model.generate(...) with an image or a video first")
        asked, counts = asked_of(self.policy)
        (before, after), lengths = self.tokens[sample], self.last.lengths[sample]
        entering = [(n[0] if isinstance(n, tuple) else n) - self._others(sample) for n in lengths]
        spent = self.layer_flops(sample)
        return Achieved(
            asked,
            counts,
            final=after / before if before else 1.0,
            layers=sum(entering) / len(entering) / before if before else 1.0,
            flops=spent and spent[0] / spent[1],
            cache=self.last.cached and self.last.cached.share(sample, before),
        )

    def layer_flops(self, sample: int = 0) -> tuple[int, int] | None:
        """FLOPs of the decoder's layers in a sample's last prefill, causal: (pruned, unpruned); None if not known."""
        both = self.last.lengths[sample], self._full()[sample]
        try:
            return tuple(flops.decoder_flops(self._text_config, lengths).total_causal for lengths in both)
        except (NotImplementedError, ValueError):
            return None

    def _others(self, sample: int) -> int:
        """Tokens of a sample's prompt that are not offered to policies."""
        return int(self.last.layout.rows[sample].real.sum()) - len(self.last.offered[sample])

    def kept(self, sample: int = 0, site: int = -1) -> list[Kept]:
        """What the ``site``-th record kept of every image and video of a sample, with grid coordinates."""
        if not self.sites:
            raise ValueError("nothing was pruned yet; call model.generate(...) with an image or a video first")
        until = self.sites[: range(len(self.sites))[site] + 1]
        kept, merges = [r.kept[sample] for r in until], [r.merges[sample] for r in until]
        return kept_of(self.last.layout.rows[sample], self.last.offered[sample], kept, merges)

    def kept_in_cache(self, sample: int = 0, layer: int = -1) -> list[Kept]:
        """As ``kept``, what stayed in any key head of the ``layer``-th layer whose cache was evicted from."""
        if not (self.last and self.last.cached):
            raise ValueError("nothing was evicted yet; wrap with a policy of the cache and call model.generate(...)")
        rows = self.last.cached.kept[layer][sample].unique()
        kept, merges = [r.kept[sample] for r in self.sites], [r.merges[sample] for r in self.sites]
        return kept_of(self.last.layout.rows[sample], self.last.offered[sample], [*kept, rows], [*merges, None])

    @property
    def kv_bytes(self) -> int | None:
        """Bytes of keys and values in the cache after the last prefill, measured; None without a cache."""
        return self.last.kv_bytes if self.last else None

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of linear layers in the cache after the last prefill; pruning leaves them as they are."""
        return self.last.state_bytes if self.last else 0

    @property
    def kv_bytes_predicted(self) -> int:
        """Bytes of keys and values by config and token counts, padding aside."""
        config, last = self._text_config, self.last
        return sum(flops.kv_bytes(config, lengths, last.dtype_size) for lengths in last.held()) if last else 0

    @property
    def decode_bytes(self) -> tuple[int, int]:
        """Bytes of keys and values that a token decoded right after the last prefill reads: (now, unpruned)."""
        return self.kv_bytes_predicted, self.kv_bytes_unpruned

    @property
    def kv_bytes_unpruned(self) -> int:
        """The same without pruning."""
        config, last = self._text_config, self.last
        return sum(flops.kv_bytes(config, full, last.dtype_size) for full in self._full()) if last else 0

    @property
    def kv_bytes_padded(self) -> tuple[int, int]:
        """What the cache of the whole batch must hold after the last prefill, pads included: (pruned, unpruned) bytes.

        From the config and the counts alone; where nothing else lies in the cache, ``kv_bytes`` is the first of them.
        """
        if not self.last:
            return 0, 0
        last, config, batch = self.last, self._text_config, len(self.last.lengths)
        pads = [last.layout.length - int(row.real.sum()) for row in last.layout.rows]
        longest = [max(layer) for layer in zip(*last.held(pads), strict=True)]
        whole = [last.layout.length] * self._plan.depth
        one, other = (flops.kv_bytes(config, lengths, last.dtype_size) for lengths in (longest, whole))
        return batch * one, batch * other

    @property
    def _text_config(self):
        return self._family.decoder(self._model).config

    def _full(self) -> list[list[int]]:
        return [[int(row.real.sum())] * self._plan.depth for row in self.last.layout.rows]

    @property
    def flops(self) -> flops.Flops:
        """Prefill FLOPs of decoder, head and selector after pruning, 2 for each multiply-accumulate, all samples."""
        return self._decoder_flops(self.last.lengths) + self.flops_selector if self.last else flops.Flops()

    @property
    def flops_unpruned(self) -> flops.Flops:
        """Prefill FLOPs of decoder and head without pruning."""
        return self._decoder_flops(self._full()) if self.last else flops.Flops()

    def _decoder_flops(self, lengths) -> flops.Flops:
        config, total = self._text_config, flops.Flops()
        for one, rows in zip(lengths, self._head_rows(), strict=True):
            total = total + flops.decoder_flops(config, one) + flops.lm_head_flops(config, rows)
        return total

    def _head_rows(self) -> list[int]:
        """Of how many tokens of each sample a prefill of ``generate`` computes logits: few models have no choice."""
        if "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            return [1] * len(self.last.lengths)
        return [int(row.real.sum()) for row in self.last.layout.rows]

    @property
    def flops_selector(self) -> flops.Flops:
        """FLOPs of the attention rows that the policy read, all samples."""
        from vtprune.rank import PASSES, RANK
        from vtprune.signals import needed, row_layer

        total = flops.Flops()
        for b, row in enumerate(self.last.layout.rows if self.last else ()):
            for record in self.sites:
                for need in needed(self.policy):
                    layer = row_layer(need, record.site, self._plan.linear) if _read(need, record) else None
                    if layer is not None and record.before[b]:
                        rows = 1 if need.name == "last_query_attention" else len(row.text)
                        length = self.last.lengths[b][layer.index]
                        keys = length[0] if isinstance(length, tuple) else length
                        if need.name == RANK:
                            config = flops.config_of(self._text_config, layer.index)
                            passes = PASSES * keys
                            total = total + flops.attention_rows_flops(config, passes, keys, True, query_rows=keys)
                            continue
                        total = total + self._row_flops(layer, rows, keys)
        return total

    def _row_flops(self, layer, rows: int, keys: int) -> flops.Flops:
        from vtprune.attention import projects_apart

        whole, more = layer.peek or self.last.kv_bytes is None, {}
        config = flops.config_of(self._text_config, layer.index)
        if not projects_apart(self._family.decoder(self._model).layers[layer.index].self_attn):
            # queries, keys and values come out of one matrix: of all tokens before the layer ran, of some rows after
            more = {"query_rows": keys, "value_rows": keys} if whole else {"value_rows": 2 * rows}
            if getattr(config, "keys_are_values", False):
                more["value_rows"] = 0 if whole else rows
        return flops.attention_rows_flops(config, rows, keys, whole, **more)

    @property
    def flops_vision(self) -> flops.Flops:
        """FLOPs of vision tower and projector for the last prefill's images and videos; pruning leaves them alone."""
        base = self._family.base(self._model)
        return vision_flops(self._model, base, [{**call, "kind": kind} for kind, call in self.vision_calls])

    @property
    def flops_prefill(self) -> flops.Flops:
        """FLOPs of the whole prefill: vision tower, projector, decoder after pruning, head and selector."""
        return self.flops_vision + self.flops

    @property
    def flops_fastv(self) -> int:
        """FastV's figure for the last prefill: per layer 4 n d^2 + 2 n^2 d + 2 n d m. Not for mixtures of experts."""
        config = self._text_config
        if self._plan.linear:
            raise NotImplementedError(
                f"FastV's figure takes attention in every layer; {config.model_type!r} has layers without: see flops"
            )
        if not isinstance(config.intermediate_size, int):
            raise NotImplementedError(
                f"FastV's figure takes MLPs of one size; those of {config.model_type!r} differ: see flops instead"
            )
        if has_experts(config):
            raise NotImplementedError(
                f"FastV's figure takes one MLP for each layer; {config.model_type!r} has experts: see flops instead"
            )
        sizes = (config.hidden_size, config.intermediate_size)
        return sum(flops.fastv_flops(*sizes, lengths) for lengths in self.last.lengths) if self.last else 0

    @property
    def milliseconds(self) -> float:
        """Time spent on signals and selecting in the last prefill, all sites, and on evicting from the cache."""
        cached = self.last.cached.milliseconds if self.last and self.last.cached else 0.0
        return sum(record.milliseconds for record in self.sites) + cached

    @property
    def vision_milliseconds(self) -> float:
        """Time spent in vision tower and projector for the last prefill, signals that arise there included."""
        return sum(lap.milliseconds for lap in self.vision_laps)

    def __str__(self) -> str:
        if self.last is None:
            seen = f"; {self.without_visual} prompts had no visual tokens" if self.without_visual else ""
            return f"{self.policy}: no image or video was pruned yet{seen}"
        lines = [f"{self.policy}, last of {self.prefills} prefills:"]
        for record in self.sites:
            counts = ", ".join(f"{n} -> {k}" for n, k in zip(record.before, record.after, strict=True))
            lines.append(f"  {site_name(record.site)}: {counts} visual tokens, {record.milliseconds:.1f} ms")
        if self.last.cached:
            lines.append(f"  {self.last.cached}")
        lines.append(f"  {in_words([self.achieved(b) for b in range(len(self.tokens))])}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join([*lines, *self._costs()])

    def _costs(self) -> list[str]:
        """What the last prefill cost, in lines; of decoders of unknown arithmetic what was measured, and the reason."""
        measured = [] if self.kv_bytes is None else [f"  KV cache: {self.kv_bytes:,} bytes measured"]
        states = f"  states of linear layers: {self.state_bytes:,} bytes, however many tokens are kept"
        stated = [states] if self.state_bytes else []
        try:
            bytes_whole, whole, now = self.kv_bytes_unpruned, self.flops_unpruned.total_causal, self.flops.total_causal
        except NotImplementedError as unknown:
            return [*measured, *stated, f"  {unknown}"]
        measured = [f"{line}, {bytes_whole:,} unpruned" for line in measured]
        read, all_read = self.decode_bytes
        return [
            *measured,
            *stated,
            f"  prefill FLOPs of decoder, head and selector (causal): {now:.3g} of {whole:.3g}",
            f"  keys and values that a decoded token reads: {read:,} of {all_read:,} bytes",
        ]


def _read(need, record: SiteRecord) -> bool:
    return need.kind == "rows" and need.text in record.reads


def small(value):
    """A tensor's shape instead of pixels; sizes and grids as they are."""
    return tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else value


def windows_of(cache) -> dict[int, int]:
    """How many tokens at most those layers of a cache hold that let go of others by themselves."""
    layers = enumerate(getattr(cache, "layers", ()))
    return {i: layer.sliding_window - 1 for i, layer in layers if type(layer).__name__ == "DynamicSlidingWindowLayer"}


def measured_bytes(cache) -> int | None:
    """Bytes of the keys and values that a cache holds; of static layers only the slots in use."""
    if cache is None or not hasattr(cache, "layers"):
        return None
    total = 0
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        if keys is None or not keys.numel():
            continue
        share = 1.0
        if hasattr(layer, "max_cache_len"):
            share = int(layer.cumulative_length) / layer.max_cache_len
        total += round(share * (layer.keys.nbytes + layer.values.nbytes))
    return total
