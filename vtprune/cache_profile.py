"""Cache profiles: what fraction of its visual tokens each layer's cache drops, measured once, used for any prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from vtprune.cache_scores.prefix import mean_fractions
from vtprune.tokens import ModelFacts

if TYPE_CHECKING:
    from vtprune.records import CacheRecord

VERSION = 1


@dataclass(frozen=True)
class CacheProfile:
    """What layers drop, mean over prompts.

    model_type, depth, width: of the model it was measured on. policy: by which. keep_ratio: that was asked for.
    dropped: layer index -> fraction of its visual tokens, in [0, 1). prompts: how many were measured.
    """

    model_type: str
    depth: int
    width: int
    policy: str
    keep_ratio: float
    dropped: Mapping[int, float] = field(repr=False)
    prompts: int

    @staticmethod
    def measured(records: Iterable[CacheRecord], facts: ModelFacts, policy: str, keep_ratio: float) -> CacheProfile:
        """The mean over every sample of some prefills' records. Raises ValueError without one that held images."""
        layers, found = (), []
        for record in records:
            layers = record.layers or layers
            for before, after in zip(zip(*record.before), zip(*record.after), strict=True):
                if before[0]:
                    found.append([1 - kept / n for kept, n in zip(after, before, strict=True)])
        if not found:
            raise ValueError("a profile is measured on prompts with images or videos; none of these had any")
        dropped = dict(zip(layers, mean_fractions(found), strict=True))
        return CacheProfile(facts.model_type, facts.depth, facts.width, policy, keep_ratio, dropped, len(found))

    def check(self, facts: ModelFacts) -> None:
        """Raises ValueError for a model of another kind or size than that it was measured on."""
        mine, its = ((one.model_type, one.depth, one.width) for one in (self, facts))
        if mine != its:
            raise ValueError(
                f"this profile was measured on a {mine[0]} of {mine[1]} layers of width {mine[2]}, and this model is a "
                f"{its[0]} of {its[1]} layers of width {its[2]}: measure one with `vtprune cache-profile`"
            )

    def save(self, path: str | PathLike) -> None:
        """Writes a JSON file."""
        told = {
            "vtprune_cache_profile": VERSION,
            **asdict(self),
            "dropped": {str(k): v for k, v in self.dropped.items()},
        }
        Path(path).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | PathLike) -> CacheProfile:
        """Reads a file that ``save`` wrote. Raises ValueError that says what is wrong with another one."""
        what = f"{path} is no cache profile of vtprune"
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"there is no file {path}; make it with `vtprune cache-profile`") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{what}: {error}") from None
        if not isinstance(told, dict) or told.pop("vtprune_cache_profile", None) != VERSION:
            raise ValueError(f"{what} of version {VERSION}; make it with `vtprune cache-profile`")
        try:
            dropped = {int(layer): float(fraction) for layer, fraction in told.pop("dropped").items()}
            profile = CacheProfile(**told, dropped=dropped)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{what}: {error}") from None
        profile._check_values(what)
        return profile

    def of(self, layers: Iterable[int]) -> list[float]:
        """What these layers drop. Raises ValueError where the profile says nothing of one."""
        layers = list(layers)
        missing = [layer for layer in layers if layer not in self.dropped]
        if missing:
            raise ValueError(
                f"this profile says nothing of layer {missing[0]}, whose cache can be evicted from: measure one with "
                "`vtprune cache-profile`"
            )
        return [self.dropped[layer] for layer in layers]

    def _check_values(self, what: str) -> None:
        if not self.dropped:
            raise ValueError(f"{what}: it says nothing of any layer")
        for layer, fraction in self.dropped.items():
            if not (isinstance(self.depth, int) and 0 <= layer < self.depth and 0 <= fraction < 1):
                raise ValueError(
                    f"{what}: layers are 0 to depth - 1 and what they drop is in [0, 1); got {fraction!r} for layer "
                    f"{layer}"
                )
        ratio = self.keep_ratio
        if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 < ratio <= 1:
            raise ValueError(f"{what}: keep_ratio is in (0, 1]; got {ratio!r}")
