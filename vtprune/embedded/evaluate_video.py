"""Accuracy of the embedded video model on clips it was not trained on: ``python -m vtprune.embedded.evaluate_video``.

Every answer goes through the stock path, chat template, processor and ``model.generate``. What it says beside another
clip, a grey one or none, beside one frame repeated or frames in a random order shows how much it owes to what is seen,
and when. On long clips, as many visual tokens are spent on a few frames unpruned as on all frames pruned. Writes the
model's card.
"""

import argparse
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import vtprune
from vtprune.embedded import load_video, video_path
from vtprune.embedded.card import interval
from vtprune.embedded.clip_questions import KINDS, ClipQuestion
from vtprune.embedded.clips import FRAMES, LONG, SLICE, make_clip
from vtprune.embedded.video_architecture import MEAN
from vtprune.embedded.video_card import video_card
from vtprune.embedded.video_processor import ClipProcessor

LOG = logging.getLogger(__name__)
CONDITIONS = ("clip", "wrong clip", "grey clip", "middle frame", "shuffled frames", "no clip")
LONG_CONDITIONS = ("clip", "few frames", "few slices", "middle frame", "shuffled frames", "no clip")
BATCH = 32
FIRST_SEED = 1000
QUESTIONS = 8  # of a clip, at random
PRIOR_CLIPS = 1500  # of the training split, for the most frequent answer to each kind of question
FEW, FEW_SLICES = "few frames", "few slices"  # of a long clip: as many frames as an ordinary one has
RATIO = FRAMES / LONG  # with it all frames of a long clip cost as many visual tokens as a few unpruned


@dataclass(frozen=True)
class AskedClip:
    """A question, the frames of its clip and those of another one, (T, H, W, 3) uint8, and the clip's number."""

    question: ClipQuestion
    frames: np.ndarray
    wrong: np.ndarray
    seed: int


def held_out_clips(n: int, frames: int = FRAMES, first_seed: int = FIRST_SEED) -> list[AskedClip]:
    """Some questions about each of ``n`` clips of the test split; the wrong clip is the next one."""
    clips = [make_clip(first_seed + i, "test", frames) for i in range(n)]
    asked = []
    for i, clip in enumerate(clips):
        rng = np.random.Generator(np.random.PCG64([first_seed + i, QUESTIONS]))
        for row in rng.permutation(len(clip.questions))[:QUESTIONS]:
            asked.append(AskedClip(clip.questions[row], clip.frames, clips[(i + 1) % n].frames, first_seed + i))
    return asked


def show_clip(asked: AskedClip, condition: str) -> np.ndarray | None:
    """The frames that go with the question under one of ``CONDITIONS``, or few of them."""
    frames = asked.frames
    if condition == "wrong clip":
        return asked.wrong
    if condition == "grey clip":
        return np.full_like(frames, np.round(255 * np.array(MEAN)).astype(np.uint8))
    if condition == "middle frame":
        return frames[[len(frames) // 2] * len(frames)]
    if condition == "shuffled frames":
        return frames[np.random.Generator(np.random.PCG64([asked.seed, 1])).permutation(len(frames))]
    if condition == FEW:
        return frames[:: len(frames) // FRAMES]
    if condition == FEW_SLICES:
        return frames.reshape(-1, SLICE, *frames.shape[1:])[:: len(frames) // FRAMES].reshape(FRAMES, *frames.shape[1:])
    return None if condition == "no clip" else frames


def answer_clips(
    model: torch.nn.Module, processor: ClipProcessor, pairs: Sequence[tuple[np.ndarray | None, str]], batch: int = BATCH
) -> Iterator[str]:
    """The model's greedy answers to (frames or None, question) pairs; all pairs or none must have frames."""
    for first in range(0, len(pairs), batch):
        clips, texts = zip(*pairs[first : first + batch], strict=True)
        prompts = []
        for clip, text in zip(clips, texts, strict=True):
            content = [{"type": "video"}] * (clip is not None) + [{"type": "text", "text": text}]
            chat = [{"role": "user", "content": content}]
            prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
        inputs = processor(prompts, list(clips) if clips[0] is not None else None).to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs)
        new = output[:, inputs["input_ids"].shape[1] :]
        yield from (text.strip() for text in processor.batch_decode(new, skip_special_tokens=True))


def constant_answers(questions: Sequence[ClipQuestion], frames: int) -> list[str]:
    """The most frequent answer to each question's kind among training clips: what a constant guess is worth."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for seed in range(PRIOR_CLIPS):
        for question in make_clip(seed, "train", frames).questions:
            counts[question.kind][question.answer] += 1
    return [counts[question.kind].most_common(1)[0][0] for question in questions]


def tally(everything: Sequence[AskedClip], said: dict[str, list[str]]) -> dict[str, dict]:
    """{kind, and "all": {"n": questions, column: right answers}}."""
    rows = {}
    for kind in (*KINDS, "all"):
        which = [i for i, a in enumerate(everything) if kind in (a.question.kind, "all")]
        rows[kind] = {"n": len(which)} | {
            column: sum(texts[i] == everything[i].question.answer for i in which) for column, texts in said.items()
        }
    return rows


def measure_clips(model, processor, n: int, conditions: Sequence[str] = CONDITIONS) -> dict[str, dict]:
    """Right answers about ``n`` ordinary clips under each condition, and by a constant guess, see ``tally``."""
    everything, said = held_out_clips(n), {}
    for condition in conditions:
        pairs = [(show_clip(a, condition), a.question.text) for a in everything]
        said[condition] = list(answer_clips(model, processor, pairs))
    said["constant"] = constant_answers([a.question for a in everything], FRAMES)
    return tally(everything, said)


def measure_long(model, processor, n: int, policies: Sequence[str] = ()) -> dict[str, dict]:
    """Right answers about ``n`` long clips: all frames, few frames, and all frames pruned to the cost of few."""
    everything, said = held_out_clips(n, LONG), {}
    for condition in LONG_CONDITIONS:
        pairs = [(show_clip(a, condition), a.question.text) for a in everything]
        said[condition] = list(answer_clips(model, processor, pairs, BATCH // 4))
    pairs = [(a.frames, a.question.text) for a in everything]
    for policy in policies:
        with vtprune.pruned(model, policy, keep_ratio=RATIO):
            said[policy] = list(answer_clips(model, processor, pairs, BATCH // 4))
    said["constant"] = constant_answers([a.question for a in everything], LONG)
    return tally(everything, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200, help="number of ordinary clips of the test split")
    parser.add_argument("--long", type=int, default=50, help="and of long ones")
    parser.add_argument(
        "--policies", nargs="*", default=["random", "uniform", "framefusion"], help="how long clips are pruned"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    model, processor = load_video()
    tables = (
        measure_clips(model, processor, options.clips),
        measure_long(model, processor, options.long, options.policies),
    )
    for rows in tables:
        for kind, row in rows.items():
            low, high = interval(row["clip"], row["n"])
            shares = ", ".join(f"{name} {100 * row[name] / max(row['n'], 1):.1f} %" for name in row if name != "n")
            LOG.info(f"{kind}: n {row['n']}, {shares} (clip: {100 * low:.1f} to {100 * high:.1f})")
    facts = json.loads((video_path() / "training.json").read_text())
    command = f"python -m vtprune.embedded.evaluate_video --clips {options.clips} --long {options.long}"
    command += f" --policies {' '.join(options.policies)}" if options.policies else ""
    layout = {
        "clips": options.clips,
        "long_clips": options.long,
        "first": FIRST_SEED,
        "asked": QUESTIONS,
        "ratio": RATIO,
    }
    (video_path() / "README.md").write_text(video_card(*tables, facts, layout, command))


if __name__ == "__main__":
    main()
