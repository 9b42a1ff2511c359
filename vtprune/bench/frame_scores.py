"""Frame scores for policies that go by them, such as QuoTA: a model is asked how relevant each frame is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.at_flops import AtFlops
from vtprune.bench.condition import Condition
from vtprune.bench.views import Shown
from vtprune.models import Loaded, load
from vtprune.policies.base import POLICIES
from vtprune.then import ARROW, Then

SELF = "self"
"""The scorer that is the model itself."""


def wants_scores(condition: Condition) -> bool:
    """Whether a condition's policy goes by frame scores that its options cannot hold."""
    policies = [POLICIES.get(name.strip()) for name in condition.policy.split(ARROW)]
    return condition.kind == "policy" and any(map(_goes_by_scores, policies))


def _goes_by_scores(policy: Any) -> bool:
    """Of a policy or a class of policies."""
    return dataclasses.is_dataclass(policy) and "frame_scores" in {field.name for field in dataclasses.fields(policy)}


class FrameScores:
    """Scores of the frames that a prompt shows: a list of one tensor for each clip."""

    def __init__(self, name: str, loaded: Loaded):
        """name: ``SELF``, or what ``models.load`` takes. loaded: the model that is to be pruned."""
        self.name = name
        self._loaded = loaded if name == SELF else load(name, dtype=str(loaded.model.dtype).removeprefix("torch."))
        self._scorer: Callable | None = None

    def __call__(self, shown: Sequence[Shown], text: str) -> list[Tensor]:
        """(T,) for each clip; empty where none is shown."""
        clips = [one for one in shown if hasattr(one, "pixels")]
        if clips and self._scorer is None:
            self._scorer = _scorer(self._loaded)
        with torch.inference_mode():
            return [self._scorer(list(clip.pixels), text, ()) for clip in clips]


def _scorer(loaded: Loaded) -> Any:
    if loaded.embedded:
        from vtprune.embedded.scorer import clip_scorer

        return clip_scorer(loaded.model, loaded.processor)
    from vtprune.quota import YesNoScorer

    return YesNoScorer(loaded.model, loaded.processor)


def scored(policy: Any, scores: Sequence[Tensor]) -> Any:
    """The policy with the scores of one prompt's clips; as it is where there are none, or where it has no use for any.

    Of policies in a row, and of one at a FLOPs budget, those inside get them.
    """
    if not scores:
        return policy
    if isinstance(policy, Then):
        return Then(*(scored(stage, scores) for stage in policy.stages))
    if isinstance(policy, AtFlops):
        return dataclasses.replace(policy, policy=scored(policy.policy, scores))
    if not _goes_by_scores(policy):
        return policy
    return dataclasses.replace(policy, frame_scores=scores[0] if len(scores) == 1 else tuple(scores))
