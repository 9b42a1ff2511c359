"""Clips as the video model's decoder sees them while it is trained: tower features, packed questions, where to look."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.embedded.clip_questions import ClipQuestion
from vtprune.embedded.clips import SLICE, Clip, make_clip
from vtprune.embedded.drawing import COLORS, SHAPES
from vtprune.embedded.slices import patches_of, see
from vtprune.embedded.train_answers import IGNORED
from vtprune.embedded.train_video_tower import NAMES, clip_targets
from vtprune.embedded.video_architecture import TOKENS, VOCABULARY

CONTENT = {*SHAPES, *COLORS, *"0123456789", "color", "shape", "digit", "shapes", "digits", "first", "last", "after"}
CONTENT |= {"before", "part", "move", "many", "when"}


@dataclass
class ClipPool:
    """Clips of one length. Their features fill a ring: ``renew`` writes fresh ones over the oldest.

    features:  (n, N, D) bfloat16 of the frozen tower, N visual tokens.
    deep:      (n, blocks, N, D) bfloat16, its DeepStack features.
    owner:     (n, N) int64: one plus the row of the event that a visual token covers, else 0.
    said:      (n, 2, N) int64: the words for its name and its colour, else -1.
    questions: of each clip.
    make:      (seed, split) -> a clip; ``make_clip`` if None.
    """

    frames: int
    seed: int
    features: Tensor
    deep: Tensor
    owner: Tensor
    said: Tensor
    questions: list[tuple[ClipQuestion, ...]]
    made: int = 0
    make: Callable[[int, str], Clip] | None = None

    def renew(self, tower: nn.Module, count: int, split: str = "train") -> None:
        """Replaces the ``count`` oldest clips by clips that were not seen before."""
        size = len(self.questions)
        for _ in range(count):
            row, seed = self.made % size, self.seed + self.made
            clip = self.make(seed, split) if self.make else make_clip(seed, split, self.frames)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                patches, (t, h, w) = patches_of(clip.frames)
                features, deep = see(tower, patches.view(t, h * w, -1))
            self.features[row], self.deep[row] = features.flatten(0, 1), deep.flatten(1, 2)
            targets = torch.from_numpy(clip_targets(clip))
            self.owner[row] = targets[3]
            for i, words in enumerate((NAMES, COLORS)):
                spoken = torch.tensor([VOCABULARY[word] for word in words])[targets[i].clamp(min=0)]
                self.said[row, i] = torch.where(targets[3] > 0, spoken, -1)
            self.questions[row] = clip.questions
            self.made += 1


def make_pool(
    tower: nn.Module,
    n: int,
    frames: int,
    seed: int,
    split: str = "train",
    make: Callable[[int, str], Clip] | None = None,
) -> ClipPool:
    """``n`` clips of so many frames from the number ``seed`` on, see ``ClipPool``."""
    tokens, width, blocks = frames // SLICE * TOKENS, tower.config.out_hidden_size, len(tower.deepstack_visual_indexes)
    features = torch.zeros(n, tokens, width, dtype=torch.bfloat16)
    deep = torch.zeros(n, blocks, tokens, width, dtype=torch.bfloat16)
    owner, said = torch.zeros(n, tokens, dtype=torch.int64), torch.zeros(n, 2, tokens, dtype=torch.int64)
    pool = ClipPool(frames, seed, features, deep, owner, said, [()] * n, make=make)
    pool.renew(tower, n, split)
    return pool


@dataclass
class ClipBatch:
    """Packed questions about some clips, each (B, T) int64.

    turn:  the question a token belongs to; -1 is padding.
    place: its position, counted from the first one after the clip.
    asked: (sample, token, question) of each answer that is due.
    """

    clips: np.ndarray
    tokens: Tensor
    labels: Tensor
    turn: Tensor
    place: Tensor
    asked: list[tuple[int, int, ClipQuestion]] = field(default_factory=list)


def encode(question: ClipQuestion, *, short: bool) -> tuple[list[int], list[int]]:
    """Tokens and, shifted by one, what must be predicted at each: the answer and ``<eos>``; else ``IGNORED``."""
    words = question.text.lower().replace("?", " ?").split()
    if short:
        words = [word for word in words if word in CONTENT]
    asked = [VOCABULARY[word] for word in (*words, "<answer>")]
    answer = [VOCABULARY[question.answer], VOCABULARY["<eos>"]]
    return asked + answer, [IGNORED] * (len(asked) - 1) + answer + [IGNORED]


def pack(
    pool: ClipPool,
    rng: np.random.Generator,
    chosen: np.ndarray,
    *,
    most: int,
    short_share: float = 0.0,
    chat: bool = False,
    weights: Mapping[str, float] | None = None,
) -> ClipBatch:
    """Questions about the ``chosen`` clips, at most so many each, those with more weight (by kind) rather."""
    rows, asked = [], []
    for sample, clip in enumerate(chosen):
        questions = pool.questions[clip]
        keys = rng.random(len(questions)) ** [1 / (weights[q.kind] if weights else 1.0) for q in questions]
        order = rng.permutation(np.argsort(-keys)[:most])
        tokens, labels, turn, place = [], [], [], []
        for i, row in enumerate(order):
            words, wanted = encode(questions[row], short=rng.random() < short_share)
            start = len(tokens) if chat else 0
            place += range(start, start + len(words))
            asked.append((sample, len(tokens) + len(words) - 3, questions[row]))
            tokens, labels, turn = tokens + words, labels + wanted, turn + [0 if chat else i] * len(words)
        rows.append((tokens, labels, turn, place))
    length = max(len(row[0]) for row in rows)
    fields = [
        torch.tensor([row[i] + [filler] * (length - len(row[i])) for row in rows])
        for i, filler in enumerate((VOCABULARY["<pad>"], IGNORED, -1, 0))
    ]
    return ClipBatch(chosen, *fields, asked)


@dataclass(frozen=True)
class Prefix:
    """What comes before the questions about a clip of some length.

    ids:      (P,) int64: <bos>, and each slice's placeholders between its start and end.
    position: (3, P) int64, the model's own.
    visual:   (P,) bool.
    frame:    (P,) int64: the first frame of a visual token's slice; -1 elsewhere.
    after:    the position of the first token behind it.
    """

    ids: Tensor
    position: Tensor
    visual: Tensor
    frame: Tensor
    after: int


def make_prefix(model: nn.Module, frames: int) -> Prefix:
    """The prefix of a clip of so many frames; the positions are what ``model`` computes for it."""
    t, side = frames // SLICE, int(TOKENS**0.5) * model.config.vision_config.spatial_merge_size
    start, end, video = (VOCABULARY[f"<{word}>"] for word in ("vision_start", "vision_end", "video"))
    ids = torch.tensor([VOCABULARY["<bos>"], *[start, *[video] * TOKENS, end] * t])
    visual = ids == video
    kinds, grid = 2 * visual[None].int(), torch.tensor([[t, side, side]])
    position, _ = model.model.get_rope_index(ids[None], mm_token_type_ids=kinds, video_grid_thw=grid)
    frame = torch.full_like(ids, -1)
    frame[visual] = SLICE * torch.arange(t).repeat_interleave(TOKENS)
    return Prefix(ids, position[:, 0], visual, frame, int(position.max()) + 1)


def where_to_look(batch: ClipBatch, owner: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Two (answers, P) bool: for each of ``batch.asked`` the columns of its cue and of its evidence.

    owner, frame: (B, P), see ``ClipPool`` and ``Prefix``; 0 and -1 where there is no visual token.
    """
    cues, proofs = [], []
    for sample, _, question in batch.asked:
        mine, when = owner[sample], frame[sample]
        during = (when >= question.during[0]) & (when < question.during[1])
        cues.append(torch.isin(mine, torch.tensor([1 + i for i in question.cue])))
        proofs.append(torch.isin(mine, torch.tensor([1 + i for i in question.evidence])) & during)
    return torch.stack(cues), torch.stack(proofs)
