"""Scores remembered by video and question, in memory and, if a folder is given, in small JSON files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtprune.blocks.frame_grid import checked_scores
from vtprune.quota.score import FrameScorer, digest


def frames_key(frames: Sequence[Any]) -> str:
    """A name for these frames (PIL images, arrays or tensors), by their size and every byte."""
    found = hashlib.blake2b(digest_size=16)
    for frame in frames:
        if isinstance(frame, Tensor):
            whole = frame.detach().cpu().contiguous()
            kind, content = (str(frame.dtype), tuple(frame.shape)), whole.view(torch.uint8).numpy().tobytes()
        elif hasattr(frame, "dtype"):
            kind, content = (str(frame.dtype), tuple(frame.shape)), frame.tobytes()
        else:
            kind, content = (frame.mode, frame.size), frame.tobytes()
        found.update(repr(kind).encode() + content)
    return digest(len(frames), found.digest())


def video_key(path: str | os.PathLike, indices: Sequence[int]) -> str:
    """A name for some frames of a file, by its path, size and time of change: nothing is read."""
    path = Path(path).resolve()
    status = path.stat()
    return digest(str(path), status.st_size, status.st_mtime_ns, [int(i) for i in indices])


class ScoreCache:
    """Scores by frames, question, objects and scorer.

    folder: where they are kept beyond this process, created if need be; None keeps them in memory only. A file that
            cannot be read is computed anew and replaced.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, list[float]] = {}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def scores(
        self,
        scorer: FrameScorer,
        frames: Sequence[Any],
        question: str,
        objects: Sequence[str] = (),
        *,
        video: str | None = None,
    ) -> Tensor:
        """(T,) float64 on the CPU: ``scorer(frames, question, objects)``, computed at most once if it has a name.

        video: a name of the frames, such as ``video_key`` gives; None reads their bytes (``frames_key``).
        """
        name = getattr(scorer, "name", "")
        if not name:
            return self._checked(scorer, frames, question, objects)
        key = digest(video or frames_key(frames), name, question, [str(o) for o in objects])
        found = self._known.get(key) or self._read(key)
        if found is None or len(found) != len(frames):
            found = self._checked(scorer, frames, question, objects).tolist()
            self._write(key, found)
        self._known[key] = found
        return torch.tensor(found, dtype=torch.float64)

    def _checked(self, scorer: FrameScorer, frames: Sequence[Any], question: str, objects: Sequence[str]) -> Tensor:
        scores = checked_scores(scorer(frames, question, objects))
        if len(scores) != len(frames):
            raise ValueError(
                f"the scorer gave {len(scores)} scores for {len(frames)} frames; it must give one for each"
            )
        return scores

    def _read(self, key: str) -> list[float] | None:
        """The scores of a file; None if there is none or it holds something else."""
        if self.folder is None:
            return None
        try:
            scores = json.loads(self._path(key).read_text(encoding="utf-8"))["scores"]
            return checked_scores([float(score) for score in scores]).tolist()
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    def _write(self, key: str, scores: list[float]) -> None:
        if self.folder is None:
            return
        # written beside and moved, so that no reader sees half a file
        handle, path = tempfile.mkstemp(dir=self.folder, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"scores": scores}, file)
        os.replace(path, self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
