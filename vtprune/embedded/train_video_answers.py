"""Second stage of the video model's training: the decoder learns to answer from the frozen tower's features.

As for the image model (see ``train_answers``): many questions about one clip share a sequence, mostly without seeing
each other; key words come before sentences; at the start only some visual tokens are shown, those on objects first;
and for most of the time some heads are shown where to look: each word at what it names, then the end of the question
at what it speaks of, then at what answers it. Fresh clips replace old ones all the time, and kinds of question that lag
behind are asked more often.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.embedded.clip_batches import ClipBatch, ClipPool, Prefix, make_pool, make_prefix, pack, where_to_look
from vtprune.embedded.clip_questions import KINDS
from vtprune.embedded.clips import FRAMES, LONG
from vtprune.embedded.train_answers import IGNORED, may_see
from vtprune.embedded.training_loop import train
from vtprune.embedded.video_architecture import HIDDEN

LOG = logging.getLogger(__name__)
FIRST_SEED = 10_000_000  # clips of this stage are not those of the first
CHECK_SEED = 90_000_000  # nor are those on which progress is watched
QUESTIONS = 10  # at most, per clip and step
LENGTHS = {FRAMES: (0.6, 16), 2 * FRAMES: (0.15, 8), LONG: (0.25, 4)}  # frames: share of the steps, clips in a step
POOL = {FRAMES: 1.0, 2 * FRAMES: 0.2, LONG: 0.12}  # size of each length's pool, as a share
RENEWED = 2  # clips of a step that are fresh
CLOSER_UNTIL, CLOSER_TOKENS = 0.08, 40  # of the time; visual tokens shown until then
GUIDED_UNTIL = 0.7  # of the time
WORD_LAYER, CUE_LAYER, EVIDENCE_LAYER = 1, 2, 3
GUIDED_HEADS, GUIDED_WEIGHT = 2, 0.2
SENTENCES = 0.1, 0.25  # of the time: from when on and until when they replace key words
CHAT_SHARE = 0.3  # of the steps: questions see the earlier ones
CHECK_EVERY = 200  # steps


def pool_size(pool: int, frames: int) -> int:
    """How many clips of that many frames are kept when ``pool`` of ordinary length are."""
    return max(16, int(pool * POOL[frames]))


def look_there(attention: Tensor, there: Tensor) -> Tensor:
    """Mean of -log of the share of attention that goes where it should. attention (A, heads, P), there (A, P)."""
    known = there.any(-1)
    share = (attention.float().mean(1) * there).sum(-1)
    return -(share[known] + 1e-4).log().mean() if known.any() else attention.new_zeros((), dtype=torch.float32)


class Reader:
    """Runs ``model``'s decoder over batches of packed questions, on features instead of pixels."""

    def __init__(self, model: nn.Module):
        self.model, self.prefixes = model, {}

    def prefix(self, frames: int) -> Prefix:
        if frames not in self.prefixes:
            self.prefixes[frames] = make_prefix(self.model, frames)
        return self.prefixes[frames]

    def __call__(
        self,
        pool: ClipPool,
        batch: ClipBatch,
        shown: int | None = None,
        guided: bool = False,
        prefix: Prefix | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) hidden states of the text and, if ``guided``, how far two layers look astray.

        shown:  how many visual tokens there are, those on objects first; all if None.
        prefix: where they stand; that of an ordinary clip if None.
        """
        prefix, rows, decoder = prefix or self.prefix(pool.frames), batch.clips, self.model.model.language_model
        n, visual, start = len(rows), prefix.visual, prefix.ids.shape[0]
        columns = torch.arange(start).expand(n, -1)
        owner = torch.zeros(n, start, dtype=torch.int64)
        owner[:, visual] = pool.owner[rows]
        if shown is not None:
            first = (owner > 0) + torch.rand(owner.shape) + 2.0 * ~visual
            columns = first.topk(start - int(visual.sum()) + shown, dim=1).indices.sort(dim=1).values
        embed, width = decoder.get_input_embeddings(), (-1, -1, HIDDEN)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = embed(prefix.ids).to(torch.bfloat16).repeat(n, 1, 1)
            before[:, visual] = pool.features[rows]
            deep = torch.zeros(n, pool.deep.shape[1], *before.shape[1:], dtype=torch.bfloat16)
            deep[:, :, visual] = pool.deep[rows]
            before = before.gather(1, columns[..., None].expand(*width))
            deep = deep.gather(2, columns[:, None, :, None].expand(-1, deep.shape[1], *width[1:]))
            seen = F.pad(visual[columns], (0, batch.tokens.shape[1]))
            there = prefix.position[:, columns]
            output = decoder(
                inputs_embeds=torch.cat([before, embed(batch.tokens).to(before.dtype)], 1),
                attention_mask=may_see(batch.turn, columns.shape[1]),
                position_ids=torch.cat([there, (prefix.after + batch.place).expand(3, -1, -1)], 2),
                use_cache=False,
                visual_pos_masks=seen,
                deepstack_visual_embeds=[block[visual[columns]] for block in deep.transpose(0, 1)],
                output_attentions=guided,
            )
        astray = {}
        if guided:
            cue, proof = where_to_look(batch, owner.gather(1, columns), prefix.frame[columns])
            sample, token = torch.tensor([entry[:2] for entry in batch.asked]).T
            token = token + columns.shape[1]
            for name, layer, target in (("cue", CUE_LAYER, cue), ("proof", EVIDENCE_LAYER, proof)):
                attention = output.attentions[layer][sample, :GUIDED_HEADS, token, : columns.shape[1]]
                astray[name] = look_there(attention, target)
            said = torch.full((n, 2, start), -1)
            said[:, :, visual] = pool.said[rows]
            said = said.gather(2, columns[:, None].expand(-1, 2, -1))
            attention = output.attentions[WORD_LAYER][:, :GUIDED_HEADS, columns.shape[1] :, : columns.shape[1]]
            meant = (batch.tokens[:, None, :, None] == said[:, :, None]).any(1)
            astray["word"] = look_there(attention.transpose(1, 2).flatten(0, 1), meant.flatten(0, 1))
        return output.last_hidden_state[:, columns.shape[1] :], astray


@torch.no_grad()
def check(reader: Reader, pool: ClipPool, batch: int = 16) -> dict[str, float]:
    """Share of right answers to all questions about the clips of ``pool``, by kind and of "all"."""
    rng, right, total = np.random.Generator(np.random.PCG64(0)), Counter(), Counter()
    for first in range(0, len(pool.questions), batch):
        packed = pack(pool, rng, np.arange(first, min(first + batch, len(pool.questions))), most=100)
        hidden, _ = reader(pool, packed)
        sample, token = torch.tensor([entry[:2] for entry in packed.asked]).T
        said = reader.model.lm_head(hidden[sample, token].to(reader.model.lm_head.weight.dtype)).argmax(-1)
        for good, (_, _, question) in zip((said == packed.labels[sample, token]).tolist(), packed.asked, strict=True):
            for kind in (question.kind, "all"):
                right[kind] += good
                total[kind] += 1
    return {kind: right[kind] / total[kind] for kind in (*KINDS, "all") if total[kind]}


def lagging(reader: Reader, checks: Mapping[int, ClipPool], frames: int) -> dict[str, float]:
    """Logs the share of right answers about clips of each length, ``frames`` or one clip at a time.

    Returns how often kinds of question shall be asked: those that lag behind, about ordinary clips, more often.
    """
    weights = {}
    for length, held in checks.items():
        scores = check(reader, held, max(1, frames // length))
        LOG.info("check %d frames: %s", length, " ".join(f"{k} {100 * v:.0f}" for k, v in scores.items()))
        if length == FRAMES:
            weights = {kind: 0.3 + 2 * (1 - score) for kind, score in scores.items()}
    return weights


def answer_loss(
    model: nn.Module, hidden: Tensor, batch: ClipBatch, astray: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """How far the answers to packed questions are from the right ones, and figures to log.

    hidden, astray: what a ``Reader`` returned for ``batch``.
    """
    due = batch.labels != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.lm_head(hidden[due]).float()
    wanted = batch.labels[due]
    right = (logits.argmax(-1) == wanted)[::2].float().mean().item()  # every other one is <eos>
    loss, figures = F.cross_entropy(logits, wanted), {"right": right}
    for name, value in astray.items():
        loss = loss + GUIDED_WEIGHT * value
        figures[name] = value.item()
    return loss, figures


def train_video_answers(model: nn.Module, path: Path, *, minutes: float, pool: int) -> tuple[int, float]:
    """Trains the decoder of ``model`` on the questions about clips, ``pool`` of them (of ordinary length) at a time.

    Returns steps and seconds.
    """
    tower = model.model.visual.requires_grad_(False).eval()
    reader = Reader(model)
    start = np.random.SeedSequence().generate_state(1)[0] if path.exists() else 0  # other clips after an interruption
    pools = {frames: make_pool(tower, pool_size(pool, frames), frames, FIRST_SEED + int(start)) for frames in POOL}
    checks = {frames: make_pool(tower, 960 // frames, frames, CHECK_SEED) for frames in (FRAMES, LONG)}
    LOG.info("pools of clips: %s", {frames: len(one.questions) for frames, one in pools.items()})
    weights = dict.fromkeys(KINDS, 1.0)

    def loss_of(step: int, spent: float) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.Generator(np.random.PCG64([step, FIRST_SEED]))
        closer, guided = spent < CLOSER_UNTIL, spent < GUIDED_UNTIL
        shares = [share for share, _ in LENGTHS.values()]
        frames = FRAMES if closer else list(LENGTHS)[rng.choice(len(shares), p=shares)]
        here = pools[frames]
        here.renew(tower, RENEWED * FRAMES // frames or int(rng.random() < 0.5))
        short_share = float(np.interp(spent, SENTENCES, [1.0, 0.1]))
        chosen = rng.integers(0, len(here.questions), LENGTHS[frames][1])
        chat = rng.random() < CHAT_SHARE
        batch = pack(here, rng, chosen, most=QUESTIONS, short_share=short_share, chat=chat, weights=weights)
        hidden, astray = reader(here, batch, CLOSER_TOKENS if closer else None, guided)
        loss, figures = answer_loss(model, hidden, batch, astray)
        figures["short"] = short_share
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            weights.update(lagging(reader, checks, 256))
        return loss, figures

    return train(nn.ModuleDict({"model": model}), loss_of, path, minutes=minutes, learning_rate=3e-3)
