"""Asks a model a batch of questions under a condition, and notes what was kept and what it took."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtprune.api import pruned
from vtprune.bench.condition import Condition
from vtprune.bench.encoded import Encoded
from vtprune.bench.views import Shown
from vtprune.chat import encode, floats_as
from vtprune.cli.options import make_policy
from vtprune.cli.prompt import prompt_text
from vtprune.clock import now
from vtprune.models import Loaded
from vtprune.records import IN_CACHE
from vtprune.report import Report
from vtprune.seconds import frame_times
from vtprune.tokens import site_name
from vtprune.video.inputs import processor_arguments, seconds_of


@dataclass(frozen=True)
class Prompt:
    """A question with what is shown, as the model's own template writes it."""

    text: str
    shown: tuple[Shown, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """Model inputs of a batch of prompts, where the model is.

    seconds: for ``vtprune.frame_times``, or None. encoded: what the vision tower gave, once it ran.
    """

    inputs: Mapping[str, Tensor]
    seconds: list | None
    size: int
    encoded: Encoded = field(default_factory=Encoded)


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said to one prompt of a batch.

    raw:    the answer. new_tokens: how many. logits: (V,) float32 of the first of them, on the CPU.
    before, after, layers, kept: visual tokens offered, left after the last site, seen by a layer on average, by site.
            Where some were evicted from the cache, what is left is the mean of its layers, and by site also their sums.
    flops:  of the decoder's layers in the prefill, attention over the allowed pairs; None where that is not known.
    sites, rows: where the policy acted, and the rows that it kept there.
    kv:     bytes of the BATCH's cache after the prefill, pads included: measured, predicted from the kept counts,
            predicted unpruned; None without visuals.
    seconds: of the vision tower, of answering without that, and of selecting, the batch's divided by its size.
    """

    raw: str
    new_tokens: int
    logits: Tensor
    before: int = 0
    after: int = 0
    layers: float = 0.0
    kept: Mapping[str, list[int]] = field(default_factory=dict)
    flops: int | None = None
    sites: tuple[float, ...] = ()
    rows: tuple[Tensor, ...] = ()
    kv: tuple[int, int, int] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """Sixteen digits of the first token's logits."""
        return hashlib.sha256(self.logits.numpy().tobytes()).hexdigest()[:16]


def write_prompt(loaded: Loaded, text: str, shown: Sequence[Shown]) -> Prompt:
    """The prompt of a question; what is shown comes first, as published prompts have it."""
    return Prompt(prompt_text(loaded, [*shown, text]), tuple(shown))


def read_prompts(loaded: Loaded, prompts: Sequence[Prompt]) -> Asked:
    """Model inputs of a batch. Either all prompts show something or none does."""
    merged: dict[str, Any] = {}
    for prompt in prompts:
        for name, value in processor_arguments(loaded.processor, prompt.shown).items():
            merged[name] = [*merged.get(name, []), *value] if isinstance(value, list) else value
    inputs = encode(loaded.processor, [prompt.text for prompt in prompts], loaded.model.device, **merged)
    seconds = seconds_of([shown for prompt in prompts for shown in prompt.shown], inputs)
    return Asked(floats_as(inputs, loaded.model), seconds, len(prompts))


def ask(loaded: Loaded, asked: Asked, condition: Condition, max_new_tokens: int, policy: Any = None) -> list[Said]:
    """Greedy answers of the model under a condition. policy: instead of the condition's own, made of its options.

    Raises ValueError where the policy refuses.
    """
    model, length = loaded.model, asked.inputs["input_ids"].shape[1]
    with pruned(model, policy or policy_of(condition), positions=condition.positions) as report, torch.inference_mode():
        start = now(model.device)
        with frame_times(asked.seconds) if asked.seconds else nullcontext():
            output = model.generate(
                **asked.encoded.arguments(model, report.policy, asked.inputs),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                return_dict_in_generate=True,
                output_logits=True,
            )
        seconds = _seconds(now(model.device) - start, report, asked)
    new = output.sequences[:, length:].cpu()
    texts = loaded.processor.batch_decode(new, skip_special_tokens=True)
    logits = output.logits[0].float().cpu()
    ends, found = stop_ids(model), []
    for text, tokens, first, counts in zip(texts, new.tolist(), logits, counted(report, asked.size), strict=True):
        stops = [i for i, token in enumerate(tokens) if token in ends]
        n = stops[0] + 1 if stops else len(tokens)
        found.append(Said(text.strip(), n, first, seconds=seconds, **counts))
    return found


def _seconds(took: float, report: Report, asked: Asked) -> dict[str, float]:
    """By phase and prompt. Where the vision tower did not run again, it counts as what it took when it did."""
    vision = report.vision_milliseconds / 1000
    if vision and asked.encoded.seconds is None:
        asked.encoded.seconds = vision
    found = {"vision": vision or asked.encoded.seconds or 0.0, "answer": took - vision}
    found["select"] = report.milliseconds / 1000
    return {name: value / asked.size for name, value in found.items()}


def policy_of(condition: Condition) -> Any:
    """The policy that is in force; "none" under a control that shows less or something else."""
    if condition.kind not in ("policy", "random", "uniform", "pool"):
        return make_policy("none")
    return make_policy(condition.policy, condition.options, keep_ratio=repr(condition.keep_ratio), seed=condition.seed)


def stop_ids(model: torch.nn.Module) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, (list, tuple)) else {ends}


def counted(report: Report, size: int) -> list[dict[str, Any]]:
    """What was kept of each sample of the last prefill, as fields of ``Said``; nothing of a prompt without visuals."""
    notes = {"notes": tuple(report.notes)}
    if report.last is None:
        return [notes] * size
    kv, sites = (report.kv_bytes, *report.kv_bytes_padded), tuple(record.site for record in report.sites)
    found = []
    for b, (before, after) in enumerate(report.tokens):
        if not before:
            found.append(notes)
            continue
        kept = {site_name(record.site): [record.before[b], record.after[b]] for record in report.sites}
        rows = tuple(record.kept[b] for record in report.sites)
        if report.last.cached:
            held = [[layer[b] for layer in counts] for counts in (report.last.cached.before, report.last.cached.after)]
            kept[IN_CACHE], after = [sum(counts) for counts in held], round(sum(held[1]) / len(held[1]))
        counts = {"before": before, "after": after, "layers": report.layer_mean(b), "kept": kept}
        spent = report.layer_flops(b)
        found.append({**notes, **counts, "flops": spent and spent[0], "sites": sites, "rows": rows, "kv": kv})
    return found
