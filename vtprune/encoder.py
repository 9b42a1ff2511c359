"""What the vision encoder delivered, remembered from the call until the forward that puts it into the prompt.

``generate`` encodes images before its loop, so the forward itself never sees grids or sizes. They are written down on
the encoder's output, which travels to the forward untouched, also when it is expanded for beams.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from vtprune import compat
from vtprune.families.base import Family, Source
from vtprune.forward import CURRENT, Forward
from vtprune.prompt import remember_arguments
from vtprune.stopwatch import Stopwatch
from vtprune.vision_signals import COLLECTED, spread_signals

_NOTE = "_vtprune_sources"
_PENDING: ContextVar[Mapping[str, int] | None] = ContextVar("vtprune_encoded", default=None)


class Merging:
    """Hooks of the part of a decoder that encodes pictures and puts them into its own prompt (``Family.merger``)."""

    def __init__(self, pruner, model: nn.Module, module: nn.Module):
        self.pruner, self.model = pruner, model
        self.names = list(inspect.signature(module.forward).parameters)

    def _forward(self) -> Forward | None:
        if torch.compiler.is_compiling():
            return None
        forward = CURRENT.get()
        return forward if forward is not None and forward.owner is self.pruner and forward.waits else None

    def enter(self, module: nn.Module, args: tuple, kwargs: Mapping) -> None:
        """Begins to collect what is seen in the tower."""
        forward = self._forward()
        if forward is not None:
            collected: dict = {}
            forward.merging = (collected, COLLECTED.set(collected), Stopwatch.start(self.model.device))

    def leave(self, module: nn.Module, args: tuple, kwargs: Mapping, output) -> None:
        """Writes down what was encoded; now it is known what the prompt holds. Also called after an error."""
        forward = self._forward()
        if forward is None:
            return
        collected, token, lap = forward.merging
        forward.merging, forward.waits = None, False
        COLLECTED.reset(token)
        if output is None:
            return
        lap.stop(self.model.device)
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        sources = self.pruner.family.sources(self.model, "image", arguments, ())
        if sources:
            noted = with_signals(self.pruner.family, self.model, "image", arguments, collected, sources)
            self.pruner.encoded("image", noted, arguments)
            self.pruner.report.vision_laps.append(lap)
        self.pruner.begin(forward)


class Recorder:
    """Stands in for ``get_image_features`` or ``get_video_features`` of one model, with the same signature."""

    def __init__(self, pruner, model: nn.Module, kind: str):
        self.pruner, self.model, self.kind = pruner, model, kind

    @property
    def __wrapped__(self):
        # generate reads the signature to know what to pass
        return getattr(type(self.pruner.base), f"get_{self.kind}_features").__get__(self.pruner.base)

    def __call__(self, *args, **kwargs):
        call = self.__wrapped__
        if COLLECTED.get() is not None:
            # Qwen3-VL encodes videos through its images' method; only the outer call counts
            return call(*args, **kwargs)
        collected: dict = {}
        token = COLLECTED.set(collected)
        lap = Stopwatch.start(self.model.device)
        try:
            output = call(*args, **kwargs)
        finally:
            COLLECTED.reset(token)
        lap.stop(self.model.device)
        features = self.pruner.family.features(output)
        if features is not None:
            arguments = inspect.signature(call).bind(*args, **kwargs).arguments
            arguments = compat.with_video_pixels(self.kind, {**arguments, **arguments.pop("kwargs", {})})
            kind = self.pruner.kind_of(self.kind, arguments)
            setattr(output, _NOTE, self._sources(kind, arguments, features, collected))
            if self.pruner.sight.reads_prompt:
                remember_arguments(output, arguments)
            forward = CURRENT.get()
            if forward is None or forward.owner is not self.pruner:
                # what a forward encodes itself goes into its own prompt, and waits for no other
                _PENDING.set({**(_PENDING.get() or {}), kind: sum(len(feature) for feature in features)})
            self.pruner.encoded(kind, getattr(output, _NOTE), arguments)
            self.pruner.report.vision_laps.append(lap)
        return output

    def _sources(self, kind: str, arguments: Mapping, features, collected: Mapping) -> list[Source]:
        family = self.pruner.family
        sources = family.sources(self.model, kind, arguments, features)
        return with_signals(family, self.model, kind, arguments, collected, sources)


def with_signals(
    family: Family, model: nn.Module, kind: str, arguments: Mapping, collected: Mapping, sources: list[Source]
) -> list[Source]:
    """The sources of an encoder call with what was collected in the tower meanwhile."""
    if not collected:
        return sources
    signals = spread_signals(family, model, kind, arguments, collected, sources)
    return [dataclasses.replace(s, signals=found) for s, found in zip(sources, signals, strict=True)]


def encoded_sources(outputs: Mapping | None) -> dict[str, list[Source]]:
    """The notes on encoder outputs that are handed to a forward, by kind."""
    found = {kind: getattr(output, _NOTE, None) for kind, output in (outputs or {}).items()}
    return {kind: sources for kind, sources in found.items() if sources is not None}


def arrived(
    family: Family, encoded: dict[str, list[Source]], kinds: Tensor, names: Sequence[str], reaching: Tensor | None
) -> tuple[dict[str, list[Source]], Tensor]:
    """What of the encoded sources fills the placeholders, and what these are, which their ids may not tell.

    kinds:    (B, L) index into ``names`` of each placeholder's kind by its id, -1 for other tokens.
    reaching: (n,) bool, which tokens of all videos reach the prompt; None: all.
    """
    videos = encoded.get("video", ())
    if reaching is not None and reaching.numel() == sum(map(len, videos)):
        parts = reaching.flatten().bool().cpu().split([len(video) for video in videos])
        encoded = {**encoded, "video": [video.only(part) for video, part in zip(videos, parts, strict=True)]}
    if family.videos_at_images:
        told = "video" if videos and not encoded.get("image") else "image"
        kinds = kinds.masked_fill(kinds >= 0, names.index(told))
    return encoded, kinds


def check_chunks(outputs: Mapping | None) -> None:
    """Raises NotImplementedError when a forward gets only a slice of what was encoded, as chunked prefill does."""
    pending = _PENDING.get() or {}
    for kind, output in (outputs or {}).items():
        features = getattr(output, "pooler_output", None)
        if features is None or hasattr(output, _NOTE):
            continue
        held = sum(len(feature) for feature in features)
        if held < pending.get(kind, 0):
            raise NotImplementedError(
                f"this forward gets {held} of {pending[kind]} encoded {kind} tokens: chunked prefill would ask the "
                "policy for every chunk apart. Call generate with prefill_chunk_size=None"
            )
    if outputs:
        _PENDING.set(None)
