"""What is timed: a model with random weights whose prompt was read, pruned or not, and which decodes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import vtprune
from benchmarks.decode_conditions import Condition
from benchmarks.engine_model import SHAPES as ENGINE_SHAPES
from benchmarks.engine_model import Shape, Steps, prefill, short_prompt, twin

SHAPES = {
    **ENGINE_SHAPES,
    # a key head for each query head, as in LLaVA-1.5-7B: many more bytes of keys and values than "7b"
    "llava-7b": Shape(layers=32, hidden=4096, heads=32, kv_heads=32, mlp=11008),
    "small": Shape(layers=4, hidden=512, heads=8, kv_heads=8, mlp=1408, vocab=8192),
}


def shape_of(name: str, sizes: Mapping[str, int | None]) -> Shape:
    """A shape by name, some of its sizes being others; None leaves one as it is."""
    return replace(SHAPES[name], **{size: value for size, value in sizes.items() if value is not None})


class Decoding(Steps):
    """Decode steps after a prefill, and jumps ahead."""

    @torch.no_grad()
    def jump(self, until: int) -> None:
        """Reads so many tokens at once that ``until`` tokens of an answer are in the cache then."""
        n = until - self.done
        if n < 1:
            return
        token = self.token.expand(-1, n)
        places = self.positions + self.done + 1 + torch.arange(n, device=token.device)
        self.done = until
        self.model(
            input_ids=token,
            attention_mask=self.mask[:, : self.length + self.done],
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )


@dataclass
class Runner:
    """A condition at work. model: wrapped, where something is pruned. cache: of the last prompt that was read."""

    condition: Condition
    model: nn.Module
    inputs: Mapping[str, Tensor]
    cache: object = None

    def first_token(self) -> None:
        """Reads the prompt, with all that the policy does then: what comes before the first token but the encoder."""
        self.cache = None
        self.cache = prefill(self.model, self.inputs)

    def decoding(self) -> Decoding:
        """Steps on the cache of the last prompt."""
        return Decoding(self.model, self.inputs, self.cache)

    @property
    def report(self) -> vtprune.api.Report | None:
        return vtprune.report(self.model) if vtprune.is_wrapped(self.model) else None


def runner(model: nn.Module, inputs: Mapping[str, Tensor], condition: Condition) -> Runner:
    """A condition beside others, over the same weights, warmed up. Raises ValueError where it is not possible."""
    policy = condition.build(model.config.text_config.num_hidden_layers)
    if policy is not None:
        model = vtprune.wrap(twin(model), policy)
    # lazily loaded code and first-use buffers are no part of what is measured
    small = short_prompt(model, [8] * len(inputs["input_ids"]), 16)
    Steps(model, small, prefill(model, small))()
    return Runner(condition, model, inputs)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights that a decode step reads: the decoder's layers and the head."""
    decoder = model.model.language_model
    weights = [*decoder.layers.parameters(), *decoder.norm.parameters(), *model.lm_head.parameters()]
    return sum(weight.nbytes for weight in weights)


def select_seconds(one: Runner) -> float:
    """What the policy itself took when the prompt was read last, signals included."""
    report = one.report
    laps = [site.milliseconds for site in report.sites]
    return (sum(laps) + (report.last.cached.milliseconds if report.last.cached else 0)) / 1000
