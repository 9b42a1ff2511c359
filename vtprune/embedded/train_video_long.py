"""Third stage of the video model's training: clips of up to 256 frames, and single frames.

The decoder goes on learning from the frozen tower's features. Positions of long clips are met cheaply most of the time:
the slices of a shorter clip stand where those of a longer one would, with gaps in between; clips that really have so
many visual tokens are rare, because each costs as much as many short ones. Stills ask whether something is seen.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.embedded.clip_batches import ClipPool, Prefix, make_pool, pack
from vtprune.embedded.clip_questions import KINDS
from vtprune.embedded.clips import FRAMES, LONG, SLICE
from vtprune.embedded.stills import make_still
from vtprune.embedded.train_video_answers import CHAT_SHARE, Reader, answer_loss, lagging
from vtprune.embedded.training_loop import train
from vtprune.embedded.video_architecture import TOKENS

LOG = logging.getLogger(__name__)
FIRST_SEED = 30_000_000
CHECK_SEED = 95_000_000
LONGEST = 4 * LONG  # frames
GUIDED_UNTIL = 0.5  # of the time
CHECK_EVERY = 150  # steps


@dataclass(frozen=True)
class Diet:
    """What steps are made of.

    share: of the steps. clips, questions: of a step. pool: clips that are kept. renewed: fresh ones, on average.
    """

    share: float
    clips: int
    questions: int
    pool: int
    renewed: float


DIETS = {
    SLICE: Diet(0.14, 40, 8, 800, 8),
    FRAMES: Diet(0.18, 16, 10, 600, 2),
    LONG: Diet(0.42, 4, 12, 120, 0.7),
    2 * LONG: Diet(0.14, 2, 20, 40, 0.5),
    LONGEST: Diet(0.12, 1, 32, 30, 0.4),
}
STRETCHED = 0.7  # of the steps with clips of ``LONG`` frames


def stretch(prefix: Prefix, wide: Prefix, rng: np.random.Generator) -> Prefix:
    """The slices of ``prefix`` at places of the longer ``wide``, nearly evenly spread over a random part of it."""
    block, slices = TOKENS + 2, int(prefix.visual.sum()) // TOKENS
    reach = int(rng.integers(slices, int(wide.visual.sum()) // TOKENS + 1))
    edges = np.arange(slices + 1) * reach // slices
    chosen = [int(rng.integers(low, high)) for low, high in zip(edges, edges[1:], strict=False)]
    columns = torch.cat([torch.zeros(1, dtype=torch.int64)] + [1 + block * s + torch.arange(block) for s in chosen])
    after = int(wide.position[:, block * reach].max()) + 1
    return Prefix(prefix.ids, wide.position[:, columns], prefix.visual, prefix.frame, after)


def train_video_long(model: nn.Module, path: Path, *, minutes: float, learning_rate: float = 1e-3) -> tuple[int, float]:
    """Trains the decoder of ``model`` further. Returns steps and seconds."""
    tower = model.model.visual.requires_grad_(False).eval()
    reader = Reader(model)
    start = np.random.SeedSequence().generate_state(1)[0] if path.exists() else 0  # other clips after an interruption
    pools = {frames: _pool(tower, diet.pool, frames, FIRST_SEED + int(start)) for frames, diet in DIETS.items()}
    checks = {frames: _pool(tower, n, frames, CHECK_SEED) for frames, n in ((SLICE, 60), (FRAMES, 60), (LONGEST, 6))}
    LOG.info("pools: %s", {frames: diet.pool for frames, diet in DIETS.items()})
    weights = dict.fromkeys(KINDS, 1.0)
    shares = np.array([diet.share for diet in DIETS.values()])

    def loss_of(step: int, spent: float) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.Generator(np.random.PCG64([step, FIRST_SEED]))
        frames = list(DIETS)[rng.choice(len(shares), p=shares / shares.sum())]
        diet, here = DIETS[frames], pools[frames]
        here.renew(tower, int(diet.renewed + rng.random()))
        guided = spent < GUIDED_UNTIL and frames > SLICE
        chosen = rng.integers(0, len(here.questions), diet.clips)
        chat = frames > SLICE and rng.random() < CHAT_SHARE
        batch = pack(here, rng, chosen, most=diet.questions, chat=chat, weights=weights)
        prefix = None
        if frames == LONG and rng.random() < STRETCHED:
            prefix = stretch(reader.prefix(LONG), reader.prefix(LONGEST), rng)
        hidden, astray = reader(here, batch, None, guided, prefix)
        loss, figures = answer_loss(model, hidden, batch, astray)
        figures["frames"] = frames
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            weights.update(lagging(reader, checks, LONG))
        return loss, figures

    return train(nn.ModuleDict({"model": model}), loss_of, path, minutes=minutes, learning_rate=learning_rate)


def _pool(tower: nn.Module, n: int, frames: int, seed: int) -> ClipPool:
    return make_pool(tower, n, frames, seed, **({"make": make_still} if frames == SLICE else {}))
