"""Other ways to the same numbers, none through vtprune: full-length masking, shortened embeddings, a layer loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tests import tiny

Decide = Callable[[Tensor, Tensor], Tensor]


def positions(inputs: tiny.Batch) -> dict[str, Tensor]:
    """The position ids that ``generate`` makes of the mask; a plain forward would count the padding too.

    Empty for mRoPE families, whose models look at the mask themselves.
    """
    if tiny.has_mrope(inputs.family):
        return {}
    first = 1 if inputs.family == "paligemma" else 0
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + first}


def text_logits(model: nn.Module, inputs: tiny.Batch) -> list[Tensor]:
    """One forward: for each sample the (T, V) logits at its text positions (neither padding nor placeholder)."""
    with torch.no_grad():
        logits = model(**inputs, **positions(inputs)).logits
    seen = inputs["attention_mask"].bool() & ~tiny.visual(inputs)
    return [row[mask] for row, mask in zip(logits, seen)]


def assert_batch_equals_rows(
    run: Callable[[tiny.Batch], Sequence[Tensor]], family: str, samples: Sequence[tiny.Sample], atol: float = 1e-9
) -> None:
    """A batch of two is two of one. run: model inputs -> one tensor per sample, without padding."""
    together = run(tiny.collate(family, list(samples)))
    assert len(together) == len(samples)
    for i, sample in enumerate(samples):
        (alone,) = run(tiny.collate(family, [sample]))
        torch.testing.assert_close(together[i], alone, atol=atol, rtol=0, msg=lambda m, i=i: f"sample {i}: {m}")


# ------------------------------------------------------------------------------------- (a) masking at full length


class MaskedColumns:
    """Inside the block nothing is dropped: dropped columns are hidden as keys from their site on.

    kept:   site -> (B, L) bool, the logical positions that stay visible in layers >= site; text must be True. Columns
            beyond L (decoded tokens) are visible. Set ``.kept`` anew before a second turn that drops more.
    decide: instead of ``kept``: site -> function of (hidden (B, q, D), visual (B, q) bool of the visual tokens still
            visible) that returns (B, q) bool, what to keep of them. Called once per site in each forward that has
            visual tokens; with a cache its answers live on the cache and follow beams. ``answers`` records them.
    A site below 0 means before layer 0. A dropped row sees itself, so that no row is empty.
    """

    def __init__(
        self, model: nn.Module, kept: Mapping[int, Tensor] | None = None, decide: Mapping[int, Decide] | None = None
    ):
        if (kept is None) == (decide is None):
            raise ValueError("give either kept or decide")
        self.model, self.kept, self.decide = model, kept, decide
        self.answers: list[tuple[int, Tensor]] = []
        self._hooks: list = []

    def __enter__(self) -> MaskedColumns:
        text = tiny.text_model(self.model)
        self._eager = text.config._attn_implementation == "eager"
        self._hooks.append(tiny.base_model(self.model).register_forward_pre_hook(self._begin, with_kwargs=True))
        for i, layer in enumerate(text.layers):
            self._hooks.append(layer.register_forward_pre_hook(partial(self._layer, i), with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        ids = args[0] if ids is None else ids
        self._cache = kwargs.get("past_key_values")
        self._past = 0 if self._cache is None else int(self._cache.get_seq_length())
        self._length = ids.shape[1]
        self._visual = (ids == tiny.IMAGE) | (ids == tiny.VIDEO)
        self._seen: dict[int, Tensor] = getattr(self._cache, "oracle_seen", {}) if self._past else {}
        if self._cache is not None:
            _follow_beams(self._cache)
            self._cache.oracle_seen = self._seen
        self._alive = self._visual

    def _visible(self, i: int, hidden: Tensor) -> Tensor | None:
        """(B, past + q) bool for layer i; None where nothing was dropped yet."""
        # Gemma 4's last layers see the last rows only, whose keys are those of all columns
        total, batch = self._past + self._length, hidden.shape[-3]
        if self.kept is not None:
            out = None
            for site, kept in self.kept.items():
                if max(site, 0) <= i:
                    kept = kept[:, :total].repeat_interleave(batch // len(kept), 0)
                    kept = pad(kept, (0, total - kept.shape[1]), value=True)
                    out = kept if out is None else out & kept
            return out
        for site in self.decide:
            if max(site, 0) == i:
                self._seen[site] = self._ask(site, hidden)
        sites = [site for site in self._seen if max(site, 0) <= i]
        return torch.stack([self._seen[site] for site in sites]).all(0) if sites else None

    def _ask(self, site: int, hidden: Tensor) -> Tensor:
        now = torch.ones_like(self._visual)
        if bool(self._alive.any()):
            answer = self.decide[site](hidden, self._alive)
            self.answers.append((site, answer & self._alive))
            now, self._alive = answer | ~self._alive, self._alive & answer
        before = self._seen.get(site, now[:, :0])
        before = before.repeat_interleave(len(now) // len(before), 0)
        return torch.cat([pad(before[:, : self._past], (0, max(0, self._past - before.shape[1])), value=True), now], 1)

    def _layer(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        hidden = args[0] if args else kwargs["hidden_states"]
        visible = self._visible(i, hidden)
        if visible is None:
            return None
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = self._causal(i, hidden)
        rows = hidden.shape[-2]
        own = _columns(torch.eye(visible.shape[1], dtype=torch.bool)[-rows:], mask.shape[-1], False)
        dropped = ~visible[:, -rows:]
        own = own[None, None] & dropped[:, None, :, None]
        visible = _columns(visible, mask.shape[-1], True)[:, None, None, :]
        if mask.dtype == torch.bool:
            mask = (mask & visible) | own
        else:
            mask = mask.masked_fill(~visible, torch.finfo(mask.dtype).min).masked_fill(own, 0)
        return args, {**kwargs, "attention_mask": mask}

    def _causal(self, i: int, hidden: Tensor) -> Tensor:
        """The mask that a model leaves out: (1, 1, q, K) causal, its last column the newest token."""
        if self._eager:
            raise AssertionError("eager attention without a mask is not causal")
        q, width = hidden.shape[-2], self._past + self._length
        # layers that share the keys of another one have no lengths of their own, or in 5.9 no place in the cache
        held = [] if self._cache is None else self._cache.layers[i : i + 1]
        if held and hasattr(held[0], "get_mask_sizes"):
            width = held[0].get_mask_sizes(q)[0]
        return torch.ones(q, width, dtype=torch.bool).tril(width - q)[None, None]


def _columns(flags: Tensor, width: int, fill: bool) -> Tensor:
    """(..., T) -> (..., width). A sliding cache holds the newest columns, a static one has empty columns at the end."""
    total = flags.shape[-1]
    return flags[..., total - width :] if width <= total else pad(flags, (0, width - total), value=fill)


def _follow_beams(cache: Any) -> None:
    """Lets the visible columns stored on a cache move with its rows."""
    if hasattr(cache, "oracle_seen"):
        return
    reorder = cache.reorder_cache

    def reorder_cache(beam_idx: Tensor) -> None:
        reorder(beam_idx)
        for site, seen in cache.oracle_seen.items():
            cache.oracle_seen[site] = seen[beam_idx]

    cache.reorder_cache = reorder_cache


# --------------------------------------------------------------------------- (b) embeddings, physically shortened


def embeddings(model: nn.Module, inputs: tiny.Batch) -> Tensor:
    """(B, L, D): what the unwrapped model hands to its decoder, visual features in place."""
    caught: list[Tensor] = []
    hook = tiny.text_model(model).register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return caught[0]


def shortened(model: nn.Module, inputs: tiny.Batch, kept: Tensor, n: int = 8, **more: Any) -> Any:
    """``generate`` on the kept rows alone, left-padded anew, positions counted from 0: compact positions.

    kept: (B, L) bool, text True. Returns generate's output; ``.sequences`` holds the new tokens only. Only before the
    LLM, only where positions are one number per token, and only where ``generate`` takes embeddings.
    """
    if tiny.has_mrope(inputs.family):
        raise ValueError(f"{inputs.family} has three positions per token; they cannot be renumbered")
    if inputs.family in ("gemma3", "paligemma"):
        raise ValueError(f"generate takes no embeddings for {inputs.family}")
    hidden, kept = embeddings(model, inputs), kept & inputs["attention_mask"].bool()
    length = int(kept.sum(1).max())

    def gather(values: Tensor) -> Tensor:
        rows = [torch.cat([v.new_zeros(length - int(k.sum()), *v.shape[1:]), v[k]]) for v, k in zip(values, kept)]
        return torch.stack(rows)

    short = {"inputs_embeds": gather(hidden), "attention_mask": gather(inputs["attention_mask"])}
    return tiny.greedy(model, short, n, **more)


# ------------------------------------------------------------------------------------ (c) a layer loop, by hand


@dataclass(frozen=True)
class Cut:
    """Where and how the sequence gets shorter.

    rows:    (K,) int64, ascending rows of the sequence as it is at that site, or a function of its hidden states
             (N, D) that returns them. Their rotary positions are kept. A row may come several times; copies see each
             other.
    weights: (K, N) or None. Row k becomes ``weights[k] @ hidden`` instead of row ``rows[k]``.
    inside:  between the attention residual and the MLP of the layer, not before the layer.
    """

    rows: Tensor | Callable[[Tensor], Tensor]
    weights: Tensor | None = None
    inside: bool = False


@dataclass(frozen=True)
class Loop:
    """logits: (K, V) at the rows that are left. rows: (K,) their logical positions. keys: key count of each layer."""

    logits: Tensor
    rows: Tensor
    keys: list[int]


def _first_layer_inputs(model: nn.Module, inputs: tiny.Batch) -> tuple[Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """Hidden states, rotary tables, and what is added after the first layers (DeepStack), each (L, D)."""
    caught: list[tuple] = []
    added: list[Tensor] = []

    def catch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        caught.append((args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"]))

    def spread(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        for rows in kwargs.get("deepstack_visual_embeds") or ():
            full = torch.zeros_like(kwargs["inputs_embeds"][0])
            full[kwargs["visual_pos_masks"][0]] = rows.to(full)
            added.append(full)

    text = tiny.text_model(model)
    hooks = [
        text.layers[0].register_forward_pre_hook(catch, with_kwargs=True),
        text.register_forward_pre_hook(spread, with_kwargs=True),
    ]
    try:
        model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return *caught[0], added


def _answered(inputs: tiny.Batch, answer: Sequence[int]) -> tiny.Batch:
    (sample,) = inputs.samples
    dtype = next(v.dtype for v in inputs.values() if v.is_floating_point())
    return tiny.collate(inputs.family, [sample + tiny.Sample(tuple(answer))], dtype)


@torch.no_grad()
def layer_loop(
    model: nn.Module, inputs: tiny.Batch, cuts: Mapping[int, Cut | Sequence[Cut]], answer: Sequence[int] = ()
) -> Loop:
    """The decoder of a Llama-like model on ONE unpadded sample, without cache, hidden states shortened at each cut.

    cuts: layer index -> its cut, or several in order. answer: tokens that follow the prompt; cuts are about the rows
    before them. What the model adds to visual tokens after a layer (DeepStack) is cut and merged as they are.
    """
    text = tiny.text_model(model)
    if inputs.family in ("gemma3", "paligemma"):
        raise ValueError(f"{inputs.family} has another loop: sandwich norms or a prefix mask")
    if len(inputs["input_ids"]) != 1 or not bool(inputs["attention_mask"].all()):
        raise ValueError("layer_loop takes one sample without padding")
    x, rotary, added = _first_layer_inputs(model, _answered(inputs, answer))
    rows, keys, tail = torch.arange(x.shape[1]), [], len(answer)

    def shorten(cut: Cut) -> None:
        nonlocal x, rotary, added, rows
        n = x.shape[1] - tail
        keep = cut.rows(x[0, :n]) if callable(cut.rows) else cut.rows

        def shorter(full: Tensor) -> Tensor:
            return torch.cat([full[keep] if cut.weights is None else cut.weights.to(full) @ full[:n], full[n:]])

        x, added = shorter(x[0])[None], [shorter(full) for full in added]
        keep = torch.cat([keep, torch.arange(n, n + tail)])
        # tables of time, height and width come apart in the Qwen models before 5.23
        rotary, rows = tuple(t[..., keep, :] for t in rotary), rows[keep]

    for i, layer in enumerate(text.layers):
        here = cuts.get(i, ())
        here = [here] if isinstance(here, Cut) else here
        for cut in here:
            if not cut.inside:
                shorten(cut)
        keys.append(x.shape[1])
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
        mask = mask.masked_fill(rows[None, :] > rows[:, None], torch.finfo(x.dtype).min)[None, None]
        x = x + layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)[0]
        for cut in here:
            if cut.inside:
                shorten(cut)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if i < len(added):
            x = x + added[i]
    return Loop(model.lm_head(text.norm(x))[0], rows, keys)


def loop_greedy(model: nn.Module, inputs: tiny.Batch, cuts: Mapping[int, Cut], n: int) -> tuple[list[int], Tensor]:
    """n tokens chosen by ``layer_loop`` on the whole sequence at every step, and their (n, V) logits."""
    answer: list[int] = []
    logits = []
    for _ in range(n):
        logits.append(layer_loop(model, inputs, cuts, answer).logits[-1])
        allowed = logits[-1].clone()
        allowed[[*model.generation_config.suppress_tokens, tiny.EOS]] = -torch.inf
        answer.append(int(allowed.argmax()))
    return answer, torch.stack(logits)
