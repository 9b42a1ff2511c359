"""Where the time goes between a clip and the first token: reading, vision, selecting, the prompt's prefill."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

import vtprune
from benchmarks.engine_model import cache_bytes, twin
from benchmarks.engine_time import in_turns, ratios, spread
from benchmarks.measure import measure
from benchmarks.video_answers import UNPRUNED, Condition
from vtprune.report import Report
from vtprune.tokens import BEFORE_LLM

Call = Callable[[], object]


@dataclass
class Timed:
    """A model, pruned or not, and a prompt with one clip. report: of a pruned one.

    selected: seconds of signals and selecting, of each prefill so far.
    """

    condition: Condition
    model: nn.Module
    inputs: Mapping
    report: Report | None = None
    encoded: object = None
    cache: object = None
    selected: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.encoded = encode(self.model, self.inputs)

    def first_token(self) -> None:
        """From pixels to the first token, as a user calls it."""
        self.model.generate(**self.inputs, max_new_tokens=1, do_sample=False)

    def prefill(self) -> None:
        """The decoder alone, from what the vision tower gave to the logits of the first token."""
        self.cache = None
        self.cache = prefill(self.model, {**without_pixels(self.inputs), "mm_encoder_outputs": {"video": self.encoded}})
        if self.report:
            self.selected.append(self.report.milliseconds / 1000)


def without_pixels(inputs: Mapping) -> dict:
    return {name: value for name, value in inputs.items() if not name.startswith("pixel")}


@torch.no_grad()
def encode(model: nn.Module, inputs: Mapping):
    """What vision tower and projector make of the clip."""
    return model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)


@torch.no_grad()
def forward(model: nn.Module, inputs: Mapping):
    """The forward over a prompt, with logits of its last token, as ``generate`` runs it."""
    # a model takes the encoder's output out of the dict it is given
    inputs = {**inputs, "mm_encoder_outputs": dict(inputs["mm_encoder_outputs"])}
    return model(**inputs, use_cache=True, logits_to_keep=1)


def prefill(model: nn.Module, inputs: Mapping):
    """The cache after it."""
    return forward(model, inputs).past_key_values


def short_inputs(timed: Timed) -> dict:
    """The prompt of a pruned one as if it had held only the kept visual tokens from the start, at their places.

    What no pruner before the LLM can be faster than.
    """
    last, inputs = timed.report.last, timed.inputs
    row, rows = last.layout.rows[0], last.sites[-1].kept[0]
    kept = last.offered[0][rows]
    columns = torch.cat([row.text, row.columns[kept]]).sort().values.to(inputs["input_ids"].device)
    names = ("video_grid_thw", "attention_mask", "mm_token_type_ids")
    places, _ = timed.model.model.get_rope_index(inputs["input_ids"], **{name: inputs[name] for name in names})
    output, kept = timed.encoded, kept.to(columns.device)
    fewer = {"pooler_output": [torch.cat(list(output.pooler_output))[kept]]}
    deep = getattr(output, "deepstack_features", None)
    if deep is not None:
        fewer["deepstack_features"] = [[torch.cat(list(level))[kept]] for level in deep]
    found = {name: inputs[name][:, columns] for name in ("input_ids", "attention_mask")}
    return {**found, "position_ids": places[:, :, columns], "mm_encoder_outputs": {"video": type(output)(**fewer)}}


def timed_models(model: nn.Module, inputs: Mapping, conditions: Sequence[Condition]) -> list[Timed]:
    """The unpruned model first, then one for each condition that prunes; all over the same weights."""
    found = [Timed(Condition(conditions[0].frames), model, inputs)]
    for condition in conditions:
        if condition.policy == UNPRUNED:
            continue
        one = twin(model)
        vtprune.wrap(one, condition.build())
        found.append(Timed(condition, one, inputs, vtprune.report(one)))
    return found


def time_rows(timed: Sequence[Timed], rounds: int, clock: Mapping, whole: Mapping) -> list[dict]:
    """One row for each model: prefills of all in turns, then first tokens of all, then each beside its short prompt.

    whole: fields that all of them have in common: seconds of reading, of preparing and of vision.
    """
    names = [str(i) for i in range(len(timed))]
    for one in timed:
        one.prefill()
        one.selected.clear()
    prefills = in_turns({name: one.prefill for name, one in zip(names, timed)}, rounds, clock)
    first = in_turns({name: one.first_token for name, one in zip(names, timed)}, rounds, clock)
    return [
        {
            **about(one),
            **whole,
            **spread("prefill_seconds", prefills[name]),
            **spread("prefill_speedup", ratios(prefills["0"], prefills[name])),
            **spread("first_token_seconds", first[name]),
            **spread("first_token_speedup", ratios(first["0"], first[name])),
            **(limits(one, timed[0].model, prefills["0"], prefills[name], rounds, clock) if one.report else {}),
            **kv_bytes(one, timed[0]),
            "runs": rounds,
        }
        for name, one in zip(names, timed)
    ]


def about(one: Timed) -> dict:
    """What a row begins with."""
    row = {"what": "time", "frames": one.condition.frames, "keep_ratio": one.condition.keep_ratio}
    row |= {"policy": one.condition.policy}
    if one.report is None:
        return row
    [(before, after)] = one.report.tokens
    share = one.report.flops.total_causal / one.report.flops_unpruned.total_causal
    row |= {"of": before, "kept": after, "flops_share": share}
    return row | {"select_seconds": statistics.median(one.selected), "notes": one.report.notes}


def kv_bytes(one: Timed, unpruned: Timed) -> dict:
    """Keys and values after the prefill, measured."""
    held = cache_bytes(one.cache)
    return {"kv_bytes": held, "kv_share": held / cache_bytes(unpruned.cache)}


def limits(
    one: Timed, plain: nn.Module, whole: Sequence[float], own: Sequence[float], rounds: int, clock: Mapping
) -> dict:
    """The prefill's speed over what its FLOPs allow at the unpruned rate and, before the LLM, over a short prompt's.

    plain: the unpruned model. whole, own: seconds of the unpruned and the pruned prefill, round by round.
    """
    share = one.report.flops.total_causal / one.report.flops_unpruned.total_causal
    found = spread("speed_over_flops", ratios([share * seconds for seconds in whole], own))
    records = one.report.sites
    if [record.site for record in records] != [BEFORE_LLM]:
        return found
    inputs = short_inputs(one)

    def short() -> None:
        prefill(plain, inputs)

    short()
    seconds = in_turns({"short": short, "pruned": one.prefill}, rounds, clock)
    return {**found, **spread("speed_over_short", ratios(seconds["short"], seconds["pruned"]))}


def seconds_of(name: str, call: Call, rounds: int, clock: Mapping) -> dict:
    """Median and extremes of one call as fields of a row."""
    found = measure(call, warmup=1, runs=rounds, **clock)
    return {f"{name}{part}": found[f"seconds{part}"] for part in ("", "_min", "_max")}
