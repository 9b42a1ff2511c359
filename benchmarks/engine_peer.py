"""The peer: pruning as it is published for research, where dropped tokens are masked and the sequence keeps its length.

No other package prunes visual tokens inside stock transformers 5 models and can be installed beside it, so this stands
for a fork that masks: from a layer on, attention does not see the dropped columns. Choosing them costs it nothing here.
"""

import torch
from torch import Tensor, nn


class Masked:
    """Hides columns of the prompt from all decoder layers from ``layer`` on.

    columns: (K,) the columns of one unpadded prompt that stay visible.
    """

    def __init__(self, model: nn.Module, layer: int, columns: Tensor, length: int):
        shown = torch.zeros(length, dtype=torch.bool)
        shown[columns] = True
        self.shown = shown.to(model.device)
        self.mask: Tensor | None = None
        for module in model.model.language_model.layers[layer:]:
            module.register_forward_pre_hook(self._enter, with_kwargs=True)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        queries, total = args[0].shape[1], int(kwargs["position_ids"][0, -1]) + 1
        # one mask serves all layers of a forward
        if self.mask is None or self.mask.shape[2:] != (queries, total):
            columns = torch.arange(total, device=self.shown.device)
            seen = columns[None] <= columns[-queries:, None]
            seen[:, : len(self.shown)] &= self.shown | (columns[-queries:, None] == columns[: len(self.shown)])
            self.mask = seen[None, None]
        return args, {**kwargs, "attention_mask": self.mask}
