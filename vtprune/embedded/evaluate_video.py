"""Accuracy of the embedded video model on clips it was not trained on: ``python -m vtprune.embedded.evaluate_video``.

Every answer goes through the stock path, chat template, processor and ``model.generate``. What it says beside another
clip, a grey one or none, beside one frame repeated or frames in a random order shows how much it owes to what is seen,
and when. On long clips, as many visual tokens are spent on a few frames unpruned as on all frames pruned. Writes the
model's card.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import vtprune
from vtprune.embedded import load_video, video_path
from vtprune.embedded.asking import most_frequent, replies, tally
from vtprune.embedded.card import interval
from vtprune.embedded.clip_questions import KINDS, ClipQuestion
from vtprune.embedded.clips import FRAMES, LONG, SLICE, make_clip
from vtprune.embedded.stills import NOUNS, make_still
from vtprune.embedded.video_architecture import MEAN
from vtprune.embedded.video_card import video_card
from vtprune.embedded.video_processor import ClipProcessor

LOG = logging.getLogger(__name__)
CONDITIONS = ("clip", "wrong clip", "grey clip", "middle frame", "shuffled frames", "no clip")
LONG_CONDITIONS = ("clip", "few frames", "few slices", "middle frame", "shuffled frames", "no clip")
LONGEST_CONDITIONS = ("clip", "few frames", "more frames")
BATCH = 32
FIRST_SEED = 1000
QUESTIONS = 8  # of a clip, at random
LONGEST = 4 * LONG  # frames
PRIOR_CLIPS = {FRAMES: 1500, LONG: 1500, LONGEST: 300}  # training clips, for the most frequent answers by kind
FEW, FEW_SLICES = "few frames", "few slices"  # of a long clip: as many frames as an ordinary one has
MORE = "more frames"  # and as many as a long one has


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
    if condition in (FEW, MORE):
        return frames[:: len(frames) // (FRAMES if condition == FEW else LONG)]
    if condition == FEW_SLICES:
        return frames.reshape(-1, SLICE, *frames.shape[1:])[:: len(frames) // FRAMES].reshape(FRAMES, *frames.shape[1:])
    return None if condition == "no clip" else frames


def answer_clips(
    model: torch.nn.Module, processor: ClipProcessor, pairs: Sequence[tuple[np.ndarray | None, str]], batch: int = BATCH
) -> Iterator[str]:
    """The model's greedy answers to (frames or None, question) pairs; all pairs or none must have frames."""
    return replies(model, processor, pairs, "video", batch)


def measure_clips(
    model,
    processor,
    n: int,
    frames: int = FRAMES,
    conditions: Sequence[str] = CONDITIONS,
    policies: Sequence[str] = (),
) -> dict[str, dict]:
    """Right answers about ``n`` clips under each condition, pruned and by a constant guess, see ``asking.tally``.

    policies: prune all frames to the cost of ``FRAMES`` unpruned.
    """
    everything, said = held_out_clips(n, frames), {}
    batch = max(1, BATCH * FRAMES // frames)
    for condition in conditions:
        pairs = [(show_clip(a, condition), a.question.text) for a in everything]
        said[condition] = list(answer_clips(model, processor, pairs, batch))
    pairs = [(a.frames, a.question.text) for a in everything]
    for policy in policies:
        with vtprune.pruned(model, policy, keep_ratio=FRAMES / frames):
            said[policy] = list(answer_clips(model, processor, pairs, batch))
    questions = [a.question for a in everything]
    seen = (question for seed in range(PRIOR_CLIPS[frames]) for question in make_clip(seed, "train", frames).questions)
    said["constant"] = most_frequent(questions, seen)
    return tally(questions, said, KINDS)


def measure_stills(model, processor, n: int) -> dict[str, dict]:
    """Right answers to whether something is seen in ``n`` single frames, by how it is called."""
    stills = [make_still(FIRST_SEED + i, "test") for i in range(n)]
    asked = [(still.frames[0], question) for still in stills for question in still.questions]
    questions = [dataclasses.replace(question, kind=called(question.text)) for _, question in asked]
    pairs = [(frame, question.text) for frame, question in asked]
    said = {"clip": list(replies(model, processor, pairs, "image", 2 * BATCH))}
    said["no clip"] = list(replies(model, processor, [(None, text) for _, text in pairs], "image", 2 * BATCH))
    return tally(questions, said, sorted({question.kind for question in questions}))


def called(text: str) -> str:
    """How a question about a still names a thing: "colour and name", "name", "colour and kind" or "kind"."""
    words = text.split()[2:-1]
    what = "kind" if words[-1] in NOUNS else "name"
    return f"colour and {what}" if len(words) == 2 else what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200, help="number of ordinary clips of the test split")
    parser.add_argument("--long", type=int, default=50, help="of long ones")
    parser.add_argument("--longest", type=int, default=24, help="of the longest ones")
    parser.add_argument("--stills", type=int, default=200, help="and of single frames")
    parser.add_argument(
        "--policies", nargs="*", default=["random", "uniform", "framefusion"], help="how long clips are pruned"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    model, processor = load_video()
    tables = {"clips": measure_clips(model, processor, options.clips)}
    _log(tables)
    tables["long"] = measure_clips(model, processor, options.long, LONG, LONG_CONDITIONS, options.policies)
    _log(tables)
    tables["longest"] = measure_clips(model, processor, options.longest, LONGEST, LONGEST_CONDITIONS, options.policies)
    _log(tables)
    tables["stills"] = measure_stills(model, processor, options.stills)
    _log(tables)
    facts = json.loads((video_path() / "training.json").read_text())
    numbers = {name: getattr(options, name) for name in ("clips", "long", "longest", "stills")}
    command = "python -m vtprune.embedded.evaluate_video " + " ".join(f"--{k} {v}" for k, v in numbers.items())
    command += f" --policies {' '.join(options.policies)}" if options.policies else ""
    layout = {f"n_{name}": number for name, number in numbers.items()}
    layout |= {"first": FIRST_SEED, "asked": QUESTIONS, "longest": LONGEST}
    (video_path() / "README.md").write_text(video_card(tables, facts, layout, command))


def _log(tables: dict[str, dict[str, dict]]) -> None:
    """The table that was made last."""
    name, rows = list(tables.items())[-1]
    for kind, row in rows.items():
        low, high = interval(row["clip"], row["n"])
        shares = ", ".join(f"{name} {100 * row[name] / max(row['n'], 1):.1f} %" for name in row if name != "n")
        LOG.info(f"{name}, {kind}: n {row['n']}, {shares} (clip: {100 * low:.1f} to {100 * high:.1f})")


if __name__ == "__main__":
    main()
