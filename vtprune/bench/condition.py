"""One way to answer all questions: a policy at a ratio, or a control that it must be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal[
    "full", "policy", "random", "twin", "uniform", "pool", "downsampled", "same time", "fewer frames", "blind", "other"
]
"""What a condition is there for.

full:         every visual token, through the wrapped model: what pruning is compared with.
policy:       what is to be judged. random, uniform, pool: policies that know nothing of the content.
twin:         random tokens, as many at the same sites as a policy that acts inside the LLM, or renumbers positions.
downsampled:  every token of a smaller picture or of smaller frames, about as many as a policy keeps.
same time:    the same, so small that answering takes as long as with a policy.
fewer frames: every token of fewer frames, about as many as a policy keeps.
blind:        no picture or clip at all. other: those of another question.
"""


@dataclass(frozen=True)
class Condition:
    """One row of a table.

    kind:       see ``Kind``.
    policy:     a registered name. options: ``name=value`` texts. positions: as ``vtprune.wrap`` takes it.
    keep_ratio: fraction of the visual tokens KEPT; of "downsampled", "same time" and "fewer frames" that of the
                policies that it stands beside.
    seed:       of random choices.
    beside:     of "same time" and "twin": the name of the condition whose time or counts it is given.
    """

    kind: Kind
    policy: str = "none"
    options: tuple[str, ...] = ()
    keep_ratio: float = 1.0
    seed: int | None = None
    positions: str | None = None
    beside: str | None = None

    @property
    def name(self) -> str:
        """What tables and rows call it; no two conditions of a run share it."""
        if self.kind in ("full", "blind", "other"):
            return {"full": "full", "blind": "blind", "other": "other visual"}[self.kind]
        what = self.spec if self.kind in ("policy", "random", "uniform", "pool") else self.kind
        what = self.policy if self.kind == "twin" else what
        beside = f" as {self.beside}" if self.beside else ""
        return f"{what}@{self.keep_ratio:g}{beside}{'' if self.seed is None else f'#{self.seed}'}"

    @property
    def spec(self) -> str:
        """The policy as the command line takes it: "fastv:layer=3:positions=compact"."""
        places = [] if self.positions is None else [f"positions={self.positions}"]
        return ":".join([self.policy, *self.options, *places])

    @property
    def row(self) -> str:
        """The name without the seed: conditions that differ in nothing else are one row of a table."""
        return self.name.partition("#")[0]

    @property
    def prunes(self) -> bool:
        """Whether it must be shown that visual tokens were dropped or merged."""
        return self.kind in ("policy", "random", "twin", "uniform", "pool") and self.keep_ratio < 1

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "options": list(self.options)}

    @staticmethod
    def of(values: Mapping[str, Any]) -> Condition:
        """The condition of ``values()``."""
        return Condition(**{**values, "options": tuple(values["options"])})
