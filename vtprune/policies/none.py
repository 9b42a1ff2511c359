"""No pruning: every token lives on; the control for what the machinery itself costs and changes."""

from dataclasses import dataclass
from typing import ClassVar

from vtprune.policies.base import register
from vtprune.tokens import BEFORE_LLM, Selection, VisualTokens


@register("none")
@dataclass
class KeepAll:
    """Keeps every visual token. It has no options."""

    needs: ClassVar[frozenset[str]] = frozenset()
    sites: ClassVar[tuple[float, ...]] = (BEFORE_LLM,)

    def select(self, tokens: VisualTokens) -> Selection:
        return Selection.all(tokens)
