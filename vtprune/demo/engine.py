"""The models behind the page: loaded when they are first needed, one question at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from vtprune.cli.error import UserError
from vtprune.cli.quiet import out_of_memory, quiet_transformers
from vtprune.models import EMBEDDED_VIDEO, Loaded, load

Kind = Literal["image", "video"]

EMBEDDED_IMAGE = "embedded-image"


class Engine:
    """Models by what they are shown. Pruning changes a model in place, so nobody shares one at the same moment.

    model: a folder that serves pictures and clips, or None for the two that ship. device, dtype: as ``models.load``.
    """

    def __init__(self, model: str | None = None, *, device: str = "auto", dtype: str = "auto"):
        self.names = {"image": model or EMBEDDED_IMAGE, "video": model or EMBEDDED_VIDEO}
        self._how = {"device": device, "dtype": dtype}
        self._loaded: dict[str, Loaded] = {}
        self._lock = threading.RLock()

    @contextmanager
    def use(self, kind: Kind) -> Iterator[Loaded]:
        """The model for pictures or clips, nobody else's meanwhile. Raises ModelError where it cannot be loaded."""
        with self._lock, quiet_transformers(), torch.inference_mode():
            loaded = self._load(self.names[kind])
            with out_of_memory(loaded.model.device):
                yield loaded

    def _load(self, name: str) -> Loaded:
        if name not in self._loaded:
            self._loaded[name] = load(name, **self._how)
        return self._loaded[name]


def check_question(question: object) -> str:
    """The question without blanks around it. Raises UserError for none, and for one that is too long."""
    text = question.strip() if isinstance(question, str) else ""
    if not text:
        raise UserError(f"the question is in words; got {question!r}. Type one, or choose one of the list")
    if len(text) > MAX_QUESTION:
        raise UserError(f"the question has at most {MAX_QUESTION:,} letters; got {len(text):,}. Make it shorter")
    return text


MAX_QUESTION = 2_000
"""Letters."""
