"""vtprune: prunes and merges the visual tokens of stock transformers models.

``model = vtprune.wrap(model, "fastv", keep_ratio=0.25)``, then ``model.generate(...)`` as before.
"""

from vtprune import policies as _policies  # noqa: F401 (importing registers them)
from vtprune.allotted import Allotted
from vtprune.api import is_wrapped, options, pruned, report, unwrap, wrap
from vtprune.at_flops import AtFlops
from vtprune.blocks.forecast import Forecast
from vtprune.blocks.share import Share
from vtprune.cache_profile import CacheProfile
from vtprune.cached import CachedLayer, CachedPrompt, Eviction, Evictions
from vtprune.clip_question import ClipQuestion
from vtprune.mass_threshold import MassThreshold
from vtprune.policies.base import POLICIES, Policy, Ranked, ScorePolicy, register
from vtprune.policies.cache_base import CachePolicy
from vtprune.policies.sap import SpatialGridKeep
from vtprune.seconds import frame_times
from vtprune.sinks import SinkDetector
from vtprune.spec_prefill import SpecPrefill
from vtprune.then import Then
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, Selection, VisualTokens, inside

__version__ = "0.1.0"

__all__ = [
    "Allotted",
    "AtFlops",
    "Forecast",
    "Share",
    "BEFORE_LLM",
    "CachedLayer",
    "CachedPrompt",
    "CachePolicy",
    "CacheProfile",
    "ClipQuestion",
    "Eviction",
    "Evictions",
    "MassThreshold",
    "ModelFacts",
    "POLICIES",
    "Policy",
    "Ranked",
    "ScorePolicy",
    "Segment",
    "Selection",
    "SpatialGridKeep",
    "SpecPrefill",
    "SinkDetector",
    "Then",
    "VisualTokens",
    "frame_times",
    "inside",
    "is_wrapped",
    "options",
    "pruned",
    "register",
    "report",
    "unwrap",
    "wrap",
]
