"""Second stage of the training: projector and decoder learn to answer questions about the frozen tower's features.

Many questions about one picture share a sequence, and with it the costly visual tokens. In most batches they cannot
see each other, as if each were asked alone; in the others they follow each other like the turns of a chat.
Before that the projector alone learns to write the words for what it sees into the visual tokens; and at the start the
decoder sees a few visual tokens only, those on objects first, among which there is less to search, and two heads of one
layer are shown where to look. As long, the visual tokens must go on resembling the words.
Key words ("color circle") come before full sentences: the look-up is learnt first, reading second.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtprune.embedded.architecture import GRID, VOCABULARY
from vtprune.embedded.drawing import COLORS, SHAPES
from vtprune.embedded.guidance import align_projector, look_closer, look_there, unsaid
from vtprune.embedded.scenes import KINDS, Question, make_scene
from vtprune.embedded.train_tower import dense_targets, pixels_of
from vtprune.embedded.training_loop import train

LOG = logging.getLogger(__name__)
BATCH = 16
QUESTIONS = 12  # at most, per picture and step
FIRST_SEED = 10_000_000  # scenes of this stage are not those of the first
IGNORED = -100
PREFIX = 1 + GRID * GRID  # <bos> and the visual tokens
CLOSER_UNTIL = 0.2  # of the time: until then only so many visual tokens are shown, those on objects first
CLOSER_TOKENS = 24
CLOSER_KINDS = ("color", "shape", "digit", "digit_color", "where")  # what one look at one object answers
GUIDED_UNTIL = 0.75  # of the time: until then some heads of one layer are shown where to look
GUIDED_LAYER, GUIDED_HEADS, GUIDED_WEIGHT = 2, 2, 0.3
WORDS_WEIGHT = 0.1
CHAT_SHARE = 0.5  # of the batches: questions see the earlier ones
_NAMES = {*SHAPES, *COLORS, *"0123456789", "shapes", "digits", "objects"}
_ASKED = {"color": "color", "digit_color": "color", "shape": "shape", "digit": "digit"}


@dataclass
class Pool:
    """Scenes as the decoder sees them.

    features:  (n, GRID * GRID, D) bfloat16, of the frozen tower.
    targets:   (n, 4, GRID * GRID) int64, see ``train_tower.dense_targets``.
    questions: of each scene.
    """

    features: Tensor
    targets: Tensor
    questions: list[tuple[Question, ...]]


@dataclass
class Batch:
    """Packed questions, each (B, T) int64.

    turn:  the question a token belongs to; -1 is padding.
    place: its position, as if its question followed the picture.
    about: where a word of an answer about one object is due, the word that the question names it by; else -1.
    """

    scenes: np.ndarray
    tokens: Tensor
    labels: Tensor
    turn: Tensor
    place: Tensor
    about: Tensor


def make_pool(tower: nn.Module, n: int) -> Pool:
    """The features of ``n`` training scenes, by the tower's last layer but one and without [CLS]."""
    features, targets, questions = [], [], []
    for first in range(0, n, 50):
        scenes = [make_scene(FIRST_SEED + i) for i in range(first, min(first + 50, n))]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            output = tower(pixels_of(scenes), output_hidden_states=True)
        features.append(output.hidden_states[-2][:, 1:].bfloat16())
        targets += [torch.from_numpy(dense_targets(scene)).flatten(1) for scene in scenes]
        questions += [scene.questions for scene in scenes]
    return Pool(torch.cat(features), torch.stack(targets), questions)


def words_of(question: Question, *, short: bool) -> list[str]:
    """The question's tokens up to the answer: the sentence and ``<answer>``, or its key words alone."""
    words = question.text.lower().replace("?", " ?").split()
    if not short:
        return [*words, "<answer>"]
    return [_ASKED.get(question.kind, words[0]), *(word for word in words if word in _NAMES)]


def encode(question: Question, *, short: bool) -> tuple[list[int], list[int]]:
    """Tokens and, shifted by one, what must be predicted at each: the answer and ``<eos>``; else ``IGNORED``."""
    asked = [VOCABULARY[word] for word in words_of(question, short=short)]
    answer = [VOCABULARY[word] for word in (*question.answer.split(), "<eos>")]
    return asked + answer, [IGNORED] * (len(asked) - 1) + answer + [IGNORED]


def named(question: Question, labels: list[int]) -> list[int]:
    """For each token the word by which the question names its object, where an answer's word is due; else -1."""
    if question.kind not in CLOSER_KINDS:
        return [-1] * len(labels)
    word = question.text.lower().strip("?").split()[-1]
    return [-1 if label in (IGNORED, VOCABULARY["<eos>"]) else VOCABULARY[word] for label in labels]


def pack(
    pool: Pool, rng: np.random.Generator, *, short_share: float, chat: bool, kinds: Sequence[str] = KINDS
) -> Batch:
    """A random batch of questions of some kinds; ``short_share`` of them are key words only."""
    chosen, rows = rng.integers(0, len(pool.questions), BATCH), []
    for scene in chosen:
        questions = [question for question in pool.questions[scene] if question.kind in kinds]
        tokens, labels, turn, place, about = [], [], [], [], []
        for i, row in enumerate(rng.permutation(len(questions))[:QUESTIONS]):
            asked, wanted = encode(questions[row], short=rng.random() < short_share)
            start = len(tokens) if chat else 0
            place += range(PREFIX + start, PREFIX + start + len(asked))
            about += named(questions[row], wanted)
            tokens, labels, turn = tokens + asked, labels + wanted, turn + [0 if chat else i] * len(asked)
        rows.append((tokens, labels, turn, place, about))
    length = max(len(row[0]) for row in rows)
    fields = [
        torch.tensor([row[i] + [filler] * (length - len(row[i])) for row in rows])
        for i, filler in enumerate((VOCABULARY["<pad>"], IGNORED, -1, 0, -1))
    ]
    return Batch(chosen, *fields)


def may_see(turn: Tensor, prefix: int = PREFIX) -> Tensor:
    """(B, 1, L, L) bfloat16, 0 or -inf, for turns (B, T): causal, and of the text only one's own turn.

    L = prefix + T, the prefix being <bos> and the visual tokens.
    """
    turns = F.pad(turn, (prefix, 0), value=-2)
    same = turns[:, :, None] == turns[:, None, :]
    seen = (same | (turns[:, None, :] == -2)).tril()[:, None]
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -torch.inf)


def train_answers(model: nn.Module, path: Path, *, minutes: float, pool: int) -> tuple[int, float]:
    """Trains everything but the vision tower of ``model`` on the questions about ``pool`` scenes.

    Returns steps and seconds.
    """
    model.model.vision_tower.requires_grad_(False).eval()
    scenes = make_pool(model.model.vision_tower, pool)
    LOG.info("pool of %d scenes, %d questions", pool, sum(map(len, scenes.questions)))
    decoder, projector = model.model.language_model, model.model.multi_modal_projector
    embed = decoder.get_input_embeddings()
    if not path.exists():
        error = align_projector(projector, embed.weight, scenes.features, scenes.targets)
        LOG.info("projector aligned with the words, error %.3f of their variance", error)
    start = torch.full((BATCH, 1), VOCABULARY["<bos>"])

    def loss_of(step: int, spent: float) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.Generator(np.random.PCG64([step, FIRST_SEED]))
        short_share = float(np.interp(spent, [0.3, 0.55], [1.0, 0.1]))
        closer = spent < CLOSER_UNTIL
        kinds = CLOSER_KINDS if closer else KINDS
        batch = pack(scenes, rng, short_share=short_share, chat=rng.random() < CHAT_SHARE, kinds=kinds)
        targets = scenes.targets[batch.scenes]
        features, rows = scenes.features[batch.scenes], torch.arange(GRID**2).expand(BATCH, -1)
        if closer:
            rows = look_closer(targets, CLOSER_TOKENS)
            targets = targets.gather(2, rows[:, None].expand(-1, targets.shape[1], -1))
            features = features.gather(1, rows[..., None].expand(-1, -1, features.shape[-1]))
        prefix = 1 + rows.shape[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            visual = projector(features)
            output = decoder(
                inputs_embeds=torch.cat(
                    [embed(start).to(visual.dtype), visual, embed(batch.tokens).to(visual.dtype)], 1
                ),
                attention_mask=may_see(batch.turn, prefix),
                position_ids=torch.cat([torch.zeros_like(start), 1 + rows, batch.place], 1),
                use_cache=False,
                output_attentions=spent < GUIDED_UNTIL,
            )
            hidden = output.last_hidden_state[:, prefix:]
            asked = batch.labels != IGNORED
            logits = model.lm_head(hidden[asked]).float()
        wanted = batch.labels[asked]
        content = wanted != VOCABULARY["<eos>"]
        right = (logits.argmax(-1) == wanted)[content].float().mean().item()
        loss, figures = F.cross_entropy(logits, wanted), {"right": right, "short": short_share}
        if spent < GUIDED_UNTIL:
            attention = output.attentions[GUIDED_LAYER][:, :GUIDED_HEADS, prefix:, 1:prefix]
            astray = look_there(attention, batch.about, targets)
            silent = unsaid(visual, embed.weight, targets)
            loss = loss + GUIDED_WEIGHT * astray + WORDS_WEIGHT * silent
            figures |= {"astray": astray.item(), "unsaid": silent.item()}
        return loss, figures

    return train(nn.ModuleDict({"model": model}), loss_of, path, minutes=minutes, learning_rate=3e-3)
