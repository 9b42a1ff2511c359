"""First stage of the video model's training: the tower writes words into each visual token for what is there."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.embedded.clips import FRAMES, SIDE, SLICE, STEPS, Clip, make_clip
from vtprune.embedded.drawing import COLORS, SHAPES
from vtprune.embedded.slices import patches_of, see
from vtprune.embedded.training_loop import train
from vtprune.embedded.video_architecture import GRID, TOKENS, VOCABULARY

CLIPS = 10  # of a step
SLICES = 6  # of a clip, those with a digit first, because digits take the tower longest to learn
NAMES = (".", *SHAPES, *(str(digit) for digit in range(10)))  # "." is nothing
DENSE = {"name": NAMES, "color": tuple(COLORS), "move": tuple(STEPS)}
IGNORED = -100
SHARPNESS = 10.0  # of the choice between words, by their dot product with the feature
_COVERED = 0.3  # of a token's area: less than that, but not nothing, is not supervised
_CELL = SIDE // GRID  # pixels per side of a visual token


def slice_targets(clip: Clip, frames: tuple[int, ...]) -> np.ndarray:
    """(4, TOKENS) int64: per visual token of a slice the classes of ``DENSE``, and the row of the event plus one.

    What is there by halves is ``IGNORED`` in the first three; where there is nothing, the name is 0 and the others are
    ``IGNORED``. frames: those of the slice.
    """
    targets = np.full((4, GRID, GRID), IGNORED, np.int64)
    targets[0], targets[3] = 0, 0
    edges = np.arange(GRID) * _CELL
    for row, event in enumerate(clip.events):
        boxes = [event.box(frame) for frame in frames if event.first <= frame < event.last]
        if not boxes:
            continue
        area = np.zeros((GRID, GRID))
        for left, top, right, bottom in boxes:
            wide = np.clip(np.minimum(edges + _CELL, right) - np.maximum(edges, left), 0, _CELL)
            high = np.clip(np.minimum(edges + _CELL, bottom) - np.maximum(edges, top), 0, _CELL)
            area += high[:, None] * wide[None, :] / _CELL**2 / len(boxes)
        targets[0][(area > 0) & (targets[0] == 0)] = IGNORED
        moved = np.array(boxes[-1][:2]) - np.array(boxes[0][:2])
        step = [name for name, way in STEPS.items() if tuple(np.sign(moved)) == way][0]
        for i, value in enumerate((NAMES.index(event.name), list(COLORS).index(event.color), list(STEPS).index(step))):
            targets[i][area >= _COVERED] = value
        targets[3][area >= _COVERED] = row + 1
    return targets.reshape(4, TOKENS)


def clip_targets(clip: Clip) -> np.ndarray:
    """(4, T / SLICE * TOKENS) int64, see ``slice_targets``."""
    slices = range(0, len(clip.frames), SLICE)
    return np.concatenate([slice_targets(clip, tuple(range(f, f + SLICE))) for f in slices], 1)


def some_slices(rng: np.random.Generator, clip: Clip) -> list[tuple[int, int]]:
    """The frames of ``SLICES`` slices; every third has frames that do not follow each other, as in a thinned clip."""
    flashes = {f // SLICE for e in clip.events if e.kind == "digit" for f in range(e.first, e.last)}
    order = sorted(rng.permutation(len(clip.frames) // SLICE).tolist(), key=lambda s: s not in flashes)
    chosen = []
    for start in order[:SLICES]:
        gap = int(rng.integers(2, 5)) if rng.random() < 0.33 else 1
        first = min(SLICE * start, len(clip.frames) - 1 - gap)
        chosen.append((first, first + gap))
    return chosen


def dense_loss(features: Tensor, words: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
    """How far features are from saying the right words, and for each of ``DENSE`` the share of objects said right.

    features: (M, D). words: (vocabulary, D). targets: (3, M).
    """
    total, right = features.new_zeros(()), {}
    for (name, choices), target in zip(DENSE.items(), targets, strict=True):
        logits = SHARPNESS * features @ words[[VOCABULARY[word] for word in choices]].T
        each = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
        there = target > 0 if name == "name" else target >= 0
        total = total + each[there].mean()
        if name == "name":
            total = total + each[target == 0].mean() / 3
        right[name] = (logits.argmax(-1) == target)[there].float().mean().item()
    digits = targets[0] > len(SHAPES)
    right["digit"] = (_named(features, words) == targets[0])[digits].float().mean().item()
    return total, right


def _named(features: Tensor, words: Tensor) -> Tensor:
    return (features @ words[[VOCABULARY[word] for word in NAMES]].T).argmax(-1)


def train_video_tower(model: nn.Module, path: Path, *, minutes: float) -> tuple[int, float]:
    """Trains ``model``'s vision tower to say, by dot product with the decoder's words, what each visual token covers.

    Returns steps and seconds.
    """
    tower = model.model.visual
    words = model.get_input_embeddings().weight.detach().clone()

    def loss_of(step: int, _: float) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.Generator(np.random.PCG64([step, CLIPS]))
        patches, targets = [], []
        for i in range(CLIPS):
            clip = make_clip(step * CLIPS + i, frames=FRAMES)
            for frames in some_slices(rng, clip):
                patches.append(patches_of(clip.frames[list(frames)])[0])
                targets.append(slice_targets(clip, frames)[:3])
        wanted = torch.from_numpy(np.concatenate(targets, 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, deep = see(tower, torch.stack(patches))
        loss, right = dense_loss(features.float().flatten(0, 1), words, wanted)
        for early in deep:
            loss = loss + 0.3 * dense_loss(early.float().flatten(0, 1), words, wanted)[0]
        return loss, right

    return train(nn.ModuleDict({"tower": tower}), loss_of, path, minutes=minutes, learning_rate=2e-3)
