"""First stage of the training: the vision tower learns to say, patch by patch, what covers the patch."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.embedded.architecture import GRID, MEAN, PATCH, STD, TOWER_HIDDEN
from vtprune.embedded.drawing import COLORS, SHAPES, SIZE
from vtprune.embedded.scenes import Scene, draw, make_scene
from vtprune.embedded.training_loop import train

BATCH = 32
NAMES = (*SHAPES, *(str(digit) for digit in range(10)))
DENSE = {"name": 1 + len(NAMES), "color": 1 + len(COLORS), "place": 5, "center": 2}  # classes, 0 is "nothing"
IGNORED = -100
_COVERED = 0.3  # of a patch's area: less than that, but not nothing, is not supervised


def tower_scenes(step: int) -> list[Scene]:
    """The scenes of a step: half of them crowds of digits, because digits take the tower longest to learn."""
    scenes = [make_scene(step * BATCH + i) for i in range(BATCH // 2)]
    rng = np.random.Generator(np.random.PCG64([step, BATCH]))
    return scenes + [draw(rng, "train", n_shapes=1, n_digits=6) for _ in range(BATCH // 2)]


def pixels_of(scenes: list[Scene]) -> Tensor:
    """(n, 3, SIZE, SIZE) float32, scaled as the processor does it."""
    pixels = np.stack([np.asarray(scene.image) for scene in scenes]).astype(np.float32) / 255
    pixels = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def dense_targets(scene: Scene) -> np.ndarray:
    """(4, GRID, GRID) int64: of the object on each patch its name, colour, quarter, and whether its centre is there."""
    targets = np.zeros((len(DENSE), GRID, GRID), np.int64)
    edges = np.arange(GRID) * PATCH
    for thing in scene.objects:
        left, top, right, bottom = thing.box
        wide = np.clip(np.minimum(edges + PATCH, right) - np.maximum(edges, left), 0, PATCH)
        high = np.clip(np.minimum(edges + PATCH, bottom) - np.maximum(edges, top), 0, PATCH)
        area = high[:, None] * wide[None, :] / PATCH**2
        x, y = thing.center
        place = 1 + 2 * (y >= SIZE / 2) + (x >= SIZE / 2)
        for row, value in enumerate((1 + NAMES.index(thing.name), 1 + list(COLORS).index(thing.color), place)):
            targets[row][(area > 0) & (targets[row] == 0)] = IGNORED
            targets[row][area >= _COVERED] = value
        targets[3, int(y // PATCH), int(x // PATCH)] = 1
    return targets


def presence(scene: Scene) -> np.ndarray:
    """(names + colours,) float32 of 0 and 1: what [CLS] must name."""
    here = {thing.name for thing in scene.objects} | {thing.color for thing in scene.objects}
    return np.array([word in here for word in (*NAMES, *COLORS)], np.float32)


def dense_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy where objects are and, at a third of the weight, elsewhere; accuracy on the objects.

    logits (B, N, classes), target (B, N) with ``IGNORED`` entries.
    """
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none")
    on, off = target.flatten() > 0, target.flatten() == 0
    right = (logits.argmax(-1).flatten() == target.flatten())[on].float().mean().item()
    return each[on].mean() + each[off].mean() / 3, right


def train_tower(model: nn.Module, path: Path, *, minutes: float) -> tuple[int, float]:
    """Trains ``model``'s vision tower with throw-away heads on the features that the decoder will see, and on [CLS].

    Returns steps and seconds.
    """
    tower = model.model.vision_tower
    heads = {name: nn.Linear(TOWER_HIDDEN, n) for name, n in DENSE.items()}
    heads |= {name: nn.Linear(TOWER_HIDDEN, len(NAMES) + len(COLORS)) for name in ("cls", "cls_last")}
    modules = nn.ModuleDict({"tower": tower, **heads})

    def loss_of(step: int, _: float) -> tuple[Tensor, dict[str, float]]:
        scenes = tower_scenes(step)
        targets = torch.from_numpy(np.stack([dense_targets(scene) for scene in scenes])).flatten(2)
        here = torch.from_numpy(np.stack([presence(scene) for scene in scenes]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = tower(pixels_of(scenes), output_hidden_states=True)
        features = output.hidden_states[-2].float()
        total, figures = torch.zeros(()), {}
        for i, name in enumerate(DENSE):
            loss, figures[name] = dense_loss(modules[name](features[:, 1:]), targets[:, i])
            total = total + loss
        for name, seen in (("cls", features[:, 0]), ("cls_last", output.pooler_output.float())):
            logits = modules[name](seen)
            total = total + F.binary_cross_entropy_with_logits(logits, here)
            figures[name] = ((logits > 0) == (here > 0)).float().mean().item()
        return total, figures

    return train(modules, loss_of, path, minutes=minutes, learning_rate=2e-3)
