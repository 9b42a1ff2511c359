"""The signal prompt: what a model was given, for policies that have another model look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vtprune.families.base import Source

PROMPT = "prompt"
_ARGUMENTS = "_vtprune_arguments"
_NOT_GIVEN = ("past_key_values", "position_ids", "inputs_embeds", "mm_encoder_outputs", "cache_position", "labels")
_INPUT = (Tensor, list, tuple)


@dataclass(frozen=True, eq=False)
class Prompt:
    """The inputs of one forward, all samples; of samples that are copies for beams one each.

    inputs:  by name: ``input_ids`` (B, L), the mask, pixels and what goes with them, as the model was given them.
    sources: the images and videos of these samples by kind, in the order of the encoder's calls.
    memo:    what was made of it, so that it is made once.
    """

    inputs: Mapping[str, Any]
    sources: Mapping[str, Sequence[Source]]
    memo: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One sample: its ``row`` of the prompt's inputs, and the column in which it starts, behind its padding."""

    prompt: Prompt
    row: int
    start: int


def remember_arguments(output: object, arguments: Mapping) -> None:
    """Writes down on an encoder's output what the encoder was given: ``generate`` gives a forward the output alone."""
    setattr(output, _ARGUMENTS, {name: value for name, value in arguments.items() if isinstance(value, _INPUT)})


def given_inputs(bound: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a prompt is made of, from the arguments of a forward and of the encoder calls before it."""
    found = {k: v for k, v in bound.items() if k not in _NOT_GIVEN and isinstance(v, _INPUT)}
    for output in (bound.get("mm_encoder_outputs") or {}).values():
        found.update(getattr(output, _ARGUMENTS, {}))
    return found


def make_prompt(bound: Mapping[str, Any], sources: Mapping[str, Sequence[Source]], placeholders: int) -> Prompt:
    """The prompt of a forward. placeholders: how many visual tokens its rows have.

    Raises NotImplementedError for a prompt that another model cannot be given.
    """
    cache, ids = bound.get("past_key_values"), bound.get("input_ids")
    past = 0 if cache is None else int(cache.get_seq_length())
    if past or ids is None:
        why = f"this one goes on behind {past} cached tokens" if past else "this one came as embeddings"
        raise NotImplementedError(
            f"a policy that has another model read the prompt takes prompts that are whole and made of ids; {why}. "
            "Give the whole conversation without a cache, or choose another policy"
        )
    total = sum(len(source) for some in sources.values() for source in some)
    # generate expands ids for beams, not what was encoded before
    copies = placeholders // total if total and placeholders % total == 0 else 1
    inputs = given_inputs(bound)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            inputs[name] = value[::copies]
    return Prompt(inputs, sources)
