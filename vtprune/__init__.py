"""vtprune: prunes and merges the visual tokens of stock transformers models.

``model = vtprune.wrap(model, "fastv", keep_ratio=0.25)``, then ``model.generate(...)`` as before.
"""

from vtprune import policies as _policies  # noqa: F401 (importing registers them)
from vtprune.api import is_wrapped, options, pruned, report, unwrap, wrap
from vtprune.policies.base import POLICIES, Policy, ScorePolicy, register
from vtprune.seconds import frame_times
from vtprune.then import Then
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, Selection, VisualTokens, inside

__version__ = "0.1.0"

__all__ = [
    "BEFORE_LLM",
    "ModelFacts",
    "POLICIES",
    "Policy",
    "ScorePolicy",
    "Segment",
    "Selection",
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
