"""A second cut inside the LLM, and how many tokens may come in so that the layers have as many as asked on average."""

from dataclasses import dataclass

PUBLISHED = (20, 28, 0.3)
"""Before which of how many layers FlashVID cuts, and what share of the tokens it keeps."""
PUBLISHED_QWEN3 = (28, 36, 0.1)


@dataclass(frozen=True)
class InnerCut:
    """layer: before which the cut is made. share: of the tokens that it keeps, 1 for no cut. depth: decoder layers."""

    layer: int
    share: float
    depth: int

    @staticmethod
    def of(layer: int | None, share: float | None, depth: int | None, qwen3: bool = False) -> "InnerCut":
        """As published, at the same fraction of the depth, where an argument is None; no cut in a single layer."""
        at, of, kept = PUBLISHED_QWEN3 if qwen3 else PUBLISHED
        depth = depth or of
        layer = layer or max(1, min(depth - 1, round(depth * at / of)))
        return InnerCut(layer, 1.0 if layer >= depth else kept if share is None else share, depth)

    def before(self, keep_ratio: float) -> float:
        """The share of the tokens that come in, at most 1. keep_ratio: mean share over the layers, in (0, 1]."""
        return min(1.0, keep_ratio * self.depth / (self.layer + (self.depth - self.layer) * self.share))

    def at(self, keep_ratio: float) -> float:
        """The share of what came in that the cut keeps: ``share``, or more where all tokens came in and are too few."""
        left = keep_ratio * self.depth / self.before(keep_ratio) - self.layer
        return min(1.0, max(self.share, left / max(1, self.depth - self.layer)))
