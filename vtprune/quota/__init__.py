"""QuoTA's pipeline around the policy: what a question asks for, which frames to take, how relevant each is, the answer.

``answer(model, processor, frames, question, scorer=YesNoScorer(small, small_processor), keep_ratio=0.25).text``; every
step is a function of its own. Models are given, nothing is downloaded.
"""

from vtprune.quota.cache import ScoreCache, frames_key, video_key
from vtprune.quota.decouple import decouple, parse_objects
from vtprune.quota.pipeline import Answer, answer
from vtprune.quota.sample import frame_count, frame_indices
from vtprune.quota.score import FrameScorer, GivenScores, SimilarityScorer, YesNoScorer

__all__ = [
    "Answer",
    "FrameScorer",
    "GivenScores",
    "ScoreCache",
    "SimilarityScorer",
    "YesNoScorer",
    "answer",
    "decouple",
    "frame_count",
    "frame_indices",
    "frames_key",
    "parse_objects",
    "video_key",
]
