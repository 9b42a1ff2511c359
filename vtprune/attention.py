"""Attention without eager attention: the queries and keys that a module would compare, and who may see whom.

Nothing here runs an attention function, changes a module or touches a global, so it works beside every back end
and in every thread.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vtprune.compat import with_attention


@dataclass(frozen=True)
class Call:
    """What an attention module hands to its attention function at once: everything, or one chunk of a packed sequence.

    query:   (B, H, Q, d) after norms and rotation.
    key:     (B, H_kv, K, d) after norms and rotation, one for each group of query heads.
    scaling: the factor on query @ key.
    causal:  whether no query sees a later key, though no mask says so.
    value:   (B, H_kv, K, d'); of no meaning where values were left out.
    """

    query: Tensor
    key: Tensor
    scaling: float
    causal: bool = False
    value: Tensor | None = None


class _Reached(Exception):
    """Every query has been recorded: the rest of the attention need not run."""


class _Recorder(TorchFunctionMode):
    """Records the arguments of scaled_dot_product_attention in this thread instead of computing it."""

    def __init__(self, queries: int):
        super().__init__()
        self.missing = queries
        self.calls: list[Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = {**dict(zip(("query", "key", "value"), args)), **kwargs}
        query, scale = named["query"], named.get("scale")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        self.calls.append(Call(query, named["key"], scale, bool(named.get("is_causal")), named["value"]))
        self.missing -= query.shape[-2]
        if self.missing <= 0:
            raise _Reached
        # a tower that goes through its images one by one: nobody reads this result
        return query.new_empty(*query.shape[:-1], named["value"].shape[-1])


class _Constant:
    """Stands in for a projection whose result nobody will read, or is to be one number; it holds one row."""

    def __init__(self, width: int, value: float = 0.0):
        self.width, self.value = width, value

    def __call__(self, x: Tensor) -> Tensor:
        # as long as a row, because views as complex numbers (Llama 4) want adjacent numbers
        return x.new_full((self.width,), self.value).expand(*x.shape[:-1], self.width)


class _Stand:
    """Stands in for an attention module in its own forward: all its parts, but torch's attention function.

    Claims one query head for each key head, so that keys are not repeated on their way. Projections named in
    ``without`` are left out and give zeros; with ``ones`` queries and keys are ones, and norms leave them as they are.
    """

    def __init__(self, attn: nn.Module, without: Sequence[str] = (), ones: bool = False):
        self._attn = attn
        for name in without:
            setattr(self, name, _Constant(getattr(attn, name).out_features))
        if ones:
            for name, part in attn.named_children():
                if name in ("q_proj", "k_proj"):
                    setattr(self, name, _Constant(part.out_features, 1.0))
                elif "norm" in name:
                    setattr(self, name, nn.Identity())
        self.config = with_attention(attn.config, "sdpa")
        self.num_key_value_groups = 1

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._attn, name)
        if isinstance(value, MethodType) and value.__self__ is self._attn:
            return MethodType(value.__func__, self)
        return value


_STATE = ("past_key_values", "attention_mask", "cache_position", "use_cache", "output_attentions")


def without_state(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of an attention module, without its cache and with no mask: those for ``attention_inputs``."""
    return {**{name: value for name, value in inputs.items() if name not in _STATE}, "attention_mask": None}


@torch.no_grad()
def attention_inputs(attn: nn.Module, *, without: Sequence[str] = (), **inputs: Any) -> list[Call]:
    """The queries and keys that ``attn(**inputs)`` would compare; costs its input projections and nothing else.

    inputs:  keyword arguments of ``attn.forward``, among them ``hidden_states`` (..., Q, D); leave out any cache.
    without: names among "q_proj", "k_proj" and "v_proj" whose results are not wanted, and not computed if they can be
             told apart, see ``projects_apart``.
    Returns one call, or one for each chunk where the module goes through a packed sequence chunk by chunk.
    Raises NotImplementedError for a module that does not go through torch's attention function.
    """
    if not hasattr(attn, "config"):
        raise _unreachable(attn)
    if "shared_kv_states" in inspect.signature(type(attn).forward).parameters:
        # what the stand leaves there is not for other layers to read
        inputs = {**inputs, "shared_kv_states": {}}
    recorder = _Recorder(inputs["hidden_states"].shape[-2])
    try:
        with recorder:
            type(attn).forward(_Stand(attn, without if projects_apart(attn) else ()), **inputs)
    except _Reached:
        return recorder.calls
    raise _unreachable(attn)


@torch.no_grad()
def rotated_ones(attn: nn.Module, **inputs: Any) -> Tensor:
    """(B, P, d): a head's query, or key, at every place as the module rotates it, had it been all ones.

    inputs: keyword arguments of ``attn.forward``, among them ``hidden_states`` (B, P, D); leave out any cache.
    Raises NotImplementedError for a module whose queries and keys come out of one projection, or as below.
    """
    if not projects_apart(attn):
        raise NotImplementedError(
            f"{type(attn).__name__} makes queries and keys in one projection, so nothing else can be put in their "
            "place to be rotated. Choose a policy that does not ask for 'text_rotary'"
        )
    recorder = _Recorder(inputs["hidden_states"].shape[-2])
    try:
        with recorder:
            type(attn).forward(_Stand(attn, ("v_proj",), ones=True), **inputs)
    except _Reached:
        return recorder.calls[0].key[:, 0]
    raise _unreachable(attn)


def projects_apart(attn: nn.Module) -> bool:
    """Whether queries, keys and values come from projections of their own, which can be left out one by one."""
    return all(hasattr(getattr(attn, name, None), "out_features") for name in ("q_proj", "k_proj", "v_proj"))


def _unreachable(attn: nn.Module) -> NotImplementedError:
    return NotImplementedError(
        f"the queries and keys of {type(attn).__name__} cannot be read: with attn_implementation='sdpa' it does not "
        "call torch.nn.functional.scaled_dot_product_attention. Choose a policy that needs no signal of this module"
    )


def with_key_bias(query: Tensor, key: Tensor, scaling: float, mask: Any, rows: Tensor, allowed: Tensor):
    """Queries and keys, one wider, whose scaled products have what the mask adds to each key's scores.

    query:   (B, H, R, d) of ``rows`` (B, R). key: (B, H_kv, K, d). allowed: (B, R, K) bool, what each row sees.
    mask:    (B, 1, Q, K) float that adds the same to all scores of a key; another one adds nothing.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 4 or not mask.is_floating_point():
        return query, key
    # a row that sees the key
    seen = rows.gather(1, allowed.int().argmax(1))[:, None]
    added = mask[:, 0, :, : key.shape[2]].expand(len(rows), -1, -1).gather(1, seen)
    added = torch.where(allowed.any(1, keepdim=True), added, 0).to(query.dtype) / scaling
    added = added[..., None].expand(-1, key.shape[1], -1, -1)
    return torch.cat([query, query.new_ones(*query.shape[:-1], 1)], -1), torch.cat([key.to(query.dtype), added], -1)


def allowed_keys(
    mask: Any, rows: Tensor, queries: int, keys: int, *, causal: bool = True, window: int | None = None
) -> Tensor:
    """(B, R, K) bool: the keys that each query row may see, from any kind of mask that a layer is given.

    mask:    None, (B, 1, Q, K) bool (True is seen) or float (added to the scores), (B, K) of flash attention (1 is a
             token), or a flex attention block mask.
    rows:    (B, R) int64 in [0, queries).
    queries, keys: lengths Q and K; the queries are the last of the keys.
    causal, window: how None and (B, K) masks are meant: no later key, and none ``window`` or more before the query.
    """
    if hasattr(mask, "mask_mod"):
        sample = torch.arange(len(rows), device=rows.device)[:, None, None]
        head = torch.zeros_like(sample)
        return mask.mask_mod(sample, head, rows[:, :, None], torch.arange(keys, device=rows.device)[None, None, :])
    if mask is not None and mask.dim() == 4:
        if mask.shape[1] != 1:
            raise NotImplementedError(
                f"attention masks with one entry for all heads are known; got {tuple(mask.shape)}"
            )
        mask = mask[:, 0, :, :keys].expand(len(rows), queries, -1)
        mask = mask.gather(1, rows[:, :, None].expand(-1, -1, keys))
        # additive masks hold 0 or the most negative number of some dtype
        return mask if mask.dtype == torch.bool else mask > -1e4
    if mask is None:
        token = torch.ones(len(rows), keys, dtype=torch.bool, device=rows.device)
    else:
        token = mask[:, :keys] != 0
    # a static cache has more room than the mask has columns
    width = token.shape[1]
    token = nn.functional.pad(token, (0, keys - width))
    if not causal:
        return token[:, None].expand(-1, rows.shape[1], -1)
    # flash attention takes padding out first: distances are counted in tokens
    place = token.cumsum(1)
    here = place.gather(1, rows + width - queries)[:, :, None]
    seen = token[:, None] & (place[:, None] <= here)
    return seen if window is None else seen & (place[:, None] > here - window)
