"""From a question about a video to its answer: decouple, score, share the tokens, generate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtprune import api
from vtprune.quota.cache import ScoreCache
from vtprune.quota.decouple import decouple
from vtprune.quota.score import FrameScorer
from vtprune.video.inputs import takes_videos, video_inputs


@dataclass(frozen=True)
class Answer:
    """text: the answer. objects: what was looked for. scores: (T,) of the frames. tokens: visual, before and after."""

    text: str
    objects: list[str]
    scores: Tensor
    tokens: tuple[int, int]


@torch.no_grad()
def answer(
    model: nn.Module,
    processor: Any,
    frames: Sequence[Any],
    question: str,
    *,
    scorer: FrameScorer,
    objects: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
    cache: ScoreCache | None = None,
    video: str | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    max_new_tokens: int = 16,
    **options: Any,
) -> Answer:
    """Answers a question about the frames of a video with their tokens shared by relevance.

    model:     an image-text-to-text model, wrapped with "quota" or not at all; then it is wrapped for this call only.
    processor: of the model. Frames go in as a video if it takes videos, else as images that share one budget.
    scorer:    rates the frames. If it asks the same model, that must not be wrapped, or it will see pruned frames.
    objects:   what to look for; None asks the model first (``decouple``), [] goes by the question alone.
    times:     seconds of each frame, told to the model; None says nothing of time.
    cache:     remembers scores; ``video`` names the frames in it (``video_key``).
    inputs:    of the model, instead of those that the processor makes.
    options:   of the policy "quota", such as keep_ratio=0.25.
    """
    found = decouple(model, processor, question) if objects is None else [str(name) for name in objects]
    scores = (cache or ScoreCache()).scores(scorer, frames, question, found, video=video)
    if inputs is None:
        inputs = video_inputs(model, processor, frames, _asked(question, len(frames), times))
        if not takes_videos(processor):
            options.setdefault("budget", "prompt")
    if api.is_wrapped(model):
        scope = api.options(model, frame_scores=scores, **options)
    else:
        scope = api.pruned(model, "quota", frame_scores=scores, **options)
    with scope as report:
        out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        tokens = report.tokens[0]
    tokenizer = getattr(processor, "tokenizer", processor)
    text = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return Answer(text.strip(), found, scores, tokens)


def _asked(question: str, n: int, times: Sequence[float] | None) -> str:
    if times is None:
        return question
    if len(times) != n:
        raise ValueError(f"there are {len(times)} times for {n} frames; give the second of each frame")
    return f"The {n} frames of this video are from second {', '.join(f'{t:.2f}' for t in times)}.\n{question}"
