"""The values of ``--model_args``: which model, which policy, how clips are read. Knows nothing of lmms-eval."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vtprune.cli.error import did_you_mean
from vtprune.cli.options import make_policy
from vtprune.policies.base import POLICIES

NO_POLICY = "none"
"""The policy that prunes nothing: the plain model on the same way."""


@dataclass(frozen=True)
class Settings:
    """What is asked for, under the names that models of lmms-eval give to the same things.

    pretrained:    a model folder, "embedded-image" or "embedded-video".
    policy:        a registered name; "none" is the plain model.
    keep_ratio, n_keep, positions, seed: as for ``vtprune run``.
    dtype, device, attn_implementation: as ``vtprune.models.load`` takes them.
    batch_size:    prompts that go in together.
    max_num_frames, fps: so many frames of each clip, evenly spread; or so many of each second, as many at most.
    folder_fps:    the rate of clips that are folders of pictures.
    system_prompt: what the system says before each question.
    """

    pretrained: str | None = None
    policy: str | None = None
    keep_ratio: float | None = None
    n_keep: int | None = None
    positions: str | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    batch_size: int = 1
    max_num_frames: int = 32
    fps: float | None = None
    folder_fps: float | None = None
    system_prompt: str | None = None

    def __post_init__(self):
        if not self.pretrained:
            raise ValueError("--model_args needs the model: pretrained=FOLDER (or pretrained=embedded-image)")
        if not self.policy:
            known = ", ".join(sorted(POLICIES))
            raise ValueError(f"--model_args needs policy=NAME (policy={NO_POLICY} is the plain model); known: {known}")
        for name in ("batch_size", "max_num_frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number, 1 or more; got {value!r}")
        for name in ("fps", "folder_fps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, (bool, str)) or not 0 < value < float("inf")):
                raise ValueError(f"{name} is a number of frames a second, above 0; got {value!r}")

    def place(self) -> str:
        """The device by name; with several processes each has the GPU of its number."""
        if self.device not in (None, "auto", "cuda"):
            return str(self.device)
        if not torch.cuda.is_available():
            return self.device or "auto"
        return f"cuda:{torch.distributed.get_node_local_rank(fallback_rank=0)}"


def read_settings(values: Mapping[str, Any]) -> tuple[Settings, Any]:
    """The settings of ``--model_args``, and the policy; what is no setting is an option of the policy.

    Raises ValueError for what is missing, unknown or impossible.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    given = {name: value for name, value in values.items() if name in known}
    if str(given.get("batch_size")).isdecimal():
        # the command line hands it over as a text
        given["batch_size"] = int(given["batch_size"])
    settings = Settings(**given)
    texts = {name: f"{name}={value}" for name, value in values.items() if name not in known}
    kind = POLICIES.get(settings.policy)
    unknown = sorted(set(texts) - {field.name for field in dataclasses.fields(kind)}) if kind else []
    if unknown:
        hint = did_you_mean(unknown[0], known)
        own = ", ".join(field.name for field in dataclasses.fields(kind) if field.init) or "none"
        raise ValueError(
            f"--model_args has an unknown {unknown[0]!r}; {hint}the model's: {', '.join(known)}; options of "
            f"{settings.policy}: {own}"
        )
    numbers = {name: _text(getattr(settings, name)) for name in ("keep_ratio", "n_keep")}
    return settings, make_policy(settings.policy, list(texts.values()), **numbers, seed=settings.seed)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
