"""The values that cross borders: what a policy sees, what it answers, and the names of the places where it may act."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BEFORE_LLM = -1
"""The site before the first decoder layer: no layer has run, so no decoder attention exists yet."""


def inside(layer: int) -> float:
    """The site inside decoder layer ``layer``, after its attention was added and before its MLP.

    Sites are numbers in the order in which they are reached: ``BEFORE_LLM`` < 0 < ``inside(0)`` < 1 < ...
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"inside(layer) takes the index of a decoder layer, 0 or more; got {layer!r}")
    return layer + 0.5


def site_name(site: float) -> str:
    """A site in words, for reports and errors."""
    if site == BEFORE_LLM:
        return "before the LLM"
    if site == int(site):
        return f"layer {int(site)}"
    return f"inside layer {int(site)}"


@dataclass(frozen=True)
class Segment:
    """One image or one video among the visual tokens of a sample.

    span:  its rows of ``VisualTokens.hidden`` that are still alive; segments follow each other without gaps.
    grids: (T, H, W) in visual tokens of each of its views, before any pruning: one for a plain image or video,
           thumbnail and high-resolution view for anyres images, () if the family does not know.
    kind:  "image" or "video".
    source: its ordinal among the images and videos of the sample.
    crops:  (rows, columns) of the crops that the tower saw the last view as, padding included; None if not known.
    clip:   of images that are the frames of a video, as ``vtprune.frame_times`` was told: which video; else None.
    """

    span: slice
    grids: tuple[tuple[int, int, int], ...] = ()
    kind: str = "image"
    source: int = 0
    clip: int | None = None
    crops: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.span.stop - self.span.start


@dataclass(frozen=True)
class ModelFacts:
    """What a policy may know of the model before its first prompt, to fit its options to it.

    model_type:     of the model's config.
    depth:          decoder layers.
    width:          of the decoder's hidden states, D.
    class_token:    whether every vision tower has a class token that signals can tell of.
    line_positions: whether positions are a line of integers; otherwise they have time, height and width (mRoPE).
    tower_layers:   layers of the vision tower, of the shallowest if there are several; 0 if it is not known.
    decoder:        the decoder's config, from which ``vtprune.flops`` counts what its layers cost.
    halves:         indices of the layers that can be pruned in their middle; at others ``inside(layer)`` is served
                    before the next layer, if there is one.
    used_layers:    of the vision tower, how many of the first make what the projector is given.
    whole_layers:   indices of its layers in which all patches of an image look at each other; others have windows.
    linear:         indices of the layers without attention, which keep a state.
    """

    model_type: str
    depth: int
    width: int
    class_token: bool
    line_positions: bool
    tower_layers: int = 0
    decoder: Any = None
    halves: frozenset[int] = frozenset()
    used_layers: int = 0
    whole_layers: tuple[int, ...] = ()
    linear: frozenset[int] = frozenset()


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of ONE sample at one site. Policies never see a batch, padding or a cache.

    hidden:   (N, D) visual tokens that are still alive, prompt order.
    text:     (M, D) the other tokens of the sample, prompt order, without padding, newlines and separators.
    segments: cover ``hidden`` without overlap.
    signals:  what ``Policy.needs`` asked for, under the name that was asked (``signals.py`` gives the shapes); each is
              computed when it is read, and at sites where it is not read it costs nothing.
    site:     the site being served, for policies with several.
    rows:     (N,) int64, ascending: which of the sample's visual tokens (counted before any pruning) these are.
    coords:   (N, 4) int64: view, frame, row and column of each; -1 where the family does not know.
    position: (N,) int64 column of each in the unpruned prompt, counted without the sample's padding.
    text_position: (M,) int64, the same for ``text``.
    length:   how many tokens the sample's prompt has in this forward before any pruning, newlines and separators
              included, padding not; None: N + M.
    seed:     a number that depends on the sample's prompt alone, the same in every batch and for every beam.
    memory:   what the policy wants to find again at its next site, of this sample in this forward.
    stands_for: (N,) float, for how many tokens each stands in attention, as the ``stands_for`` of a selection at an
              earlier site of this forward said; None where none did, and all stand for one.
    seconds:  (N,) float64 on the CPU: when the frame of each is shown (``vtprune.frame_times``), nan where unknown;
              None where nothing is known of the whole sample.
    """

    hidden: Tensor
    text: Tensor
    segments: tuple[Segment, ...]
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    site: float = BEFORE_LLM
    rows: Tensor | None = None
    coords: Tensor | None = None
    position: Tensor | None = None
    text_position: Tensor | None = None
    length: int | None = None
    seed: int = 0
    memory: MutableMapping = field(default_factory=dict)
    seconds: Tensor | None = None
    stands_for: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]


@dataclass(frozen=True)
class Selection:
    """A policy's answer: the rows to keep, ascending, and optionally where the others go.

    keep:   (K,) int64, strictly ascending rows of ``VisualTokens.hidden``; K >= 1.
    merge:  how the kept rows are made; None keeps them as they are.
            (N,) int64: row i is averaged into kept row ``keep[merge[i]]``, -1 drops it, a kept row names itself; or
            a sparse COO (K, N) float matrix whose rows sum to 1 (pooling, resizing): kept row j becomes the
            weighted sum of all rows by ``merge[j]``.
    weight: (N,) float > 0, the weight of each row in the averages of an (N,) ``merge``; None weighs them equally.
    values: (K, D) float, instead of ``merge``: the kept rows become these, made from what ``hidden`` does not hold.
    stands_for: (K,) float > 0, for how many tokens each kept row stands in attention (proportional attention). Every
            later layer adds the logarithm to what queries score its key, in the prefill and in all that follows, as if
            the key were there so many times. None leaves what earlier sites said. FlashAttention cannot do it.
    note:   a sentence for the report: what the user should know of this answer.
    last:   True says that the policy has nothing more to do for this sample in this forward; it is not asked again.
    """

    keep: Tensor
    merge: Tensor | None = None
    weight: Tensor | None = None
    values: Tensor | None = None
    note: str = ""
    last: bool = False
    stands_for: Tensor | None = None

    @property
    def changes(self) -> bool:
        """Whether kept rows become other vectors: not where each is averaged with nothing but itself."""
        merges = self.merge is not None and (self.merge.is_sparse or len(self.keep) < len(self.merge))
        return merges or self.values is not None

    @staticmethod
    def all(tokens: "VisualTokens") -> "Selection":
        """Keeps every token."""
        return Selection(torch.arange(len(tokens), device=tokens.hidden.device))
