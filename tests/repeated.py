"""Another way to proportional attention, not through vtprune: what stands for three is in the sequence three times."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny


class RepeatedRows:
    """Inside the block the sequence is changed physically before layer ``site``, of ONE prompt and without a cache.

    Row j of the prompt's new rows is ``plan[j] @ hidden``, stands at the position of old row ``rows[j]`` and is there
    ``times[j]`` times. Copies see each other, and everything that their position sees by the model's own mask; so they
    stay equal, and who looks at one looks at all. Rows behind the prompt (the answer so far) follow once each.

    rows:  (K,) int64, ascending, of the prompt. times: (K,) int64. plan: (K, P) for a prompt of P rows.
    After the last layer, the first copy of each goes back to its place, and other places hold zeros.
    """

    def __init__(self, model: nn.Module, site: int, rows: Tensor, times: Tensor, plan: Tensor):
        self.layers = tiny.text_model(model).layers
        self.site, self.rows, self.times, self.plan = site, rows, times, plan
        self.hooks: list = []

    def __enter__(self) -> RepeatedRows:
        for i in range(self.site, len(self.layers)):
            enter = partial(self._enter, i)
            self.hooks.append(self.layers[i].register_forward_pre_hook(enter, with_kwargs=True))
        self.hooks.append(self.layers[-1].register_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def _enter(self, i: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        assert kwargs.get("past_key_values") is None, "pass use_cache=False"
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        prompt = self.plan.shape[1]
        if i == self.site:
            self.length = hidden.shape[1]
            behind = torch.arange(prompt, self.length)
            self.first = torch.cat([torch.cat([self.times.new_zeros(1), self.times]).cumsum(0)[:-1], behind * 0])
            self.first[len(self.rows) :] = int(self.times.sum()) + torch.arange(len(behind))
            self.places = torch.cat([self.rows, behind])
            self.position = torch.cat([self.rows.repeat_interleave(self.times), behind])
            made = self.plan.to(hidden) @ hidden[:, :prompt]
            hidden = torch.cat([made.repeat_interleave(self.times, 1), hidden[:, prompt:]], 1)
        at, tables = self.position, kwargs["position_embeddings"]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(self.length, self.length, dtype=torch.bool).tril()[None, None]
        mask = mask[:, :, at][..., at]
        tables = tuple(table[..., at, :] for table in tables)
        return (hidden, *rest), {**kwargs, "attention_mask": mask, "position_embeddings": tables}

    def _leave(self, module: nn.Module, args: tuple, output):
        hidden = output[0] if isinstance(output, tuple) else output
        full = hidden.new_zeros(len(hidden), self.length, hidden.shape[-1])
        full[:, self.places] = hidden[:, self.first]
        return (full, *output[1:]) if isinstance(output, tuple) else full
