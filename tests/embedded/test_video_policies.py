"""Policies that go by time or by frames, on clips read from files, with the embedded video model and its scorer."""

import numpy as np
import pytest
import torch

import vtprune
from tests.video.clips import write
from vtprune.embedded import load_video
from vtprune.embedded.asking import replies
from vtprune.embedded.clips import LONG, SLICE, make_clip
from vtprune.embedded.scorer import clip_scorer, objects_in
from vtprune.quota import answer
from vtprune.video import read_frames

SEEDS = (1301, 1302, 1304)
QUESTIONS = 4  # of a clip


@pytest.fixture(scope="module")
def embedded():
    return load_video()


@pytest.fixture(scope="module")
def filed(tmp_path_factory):
    """(clip, frames as read from its file) of a few long clips, twice as wide and high in the file."""
    found = []
    for seed in SEEDS:
        clip = make_clip(seed, "test", LONG)
        large = clip.frames.repeat(2, 1).repeat(2, 2)
        path = tmp_path_factory.mktemp("clips") / f"{seed}.mp4"
        write(path, LONG, (128, 128), gop=250, pictures=lambda number, width, height, large=large: large[number])
        found.append((clip, read_frames(path, n=LONG, max_side=64)))
    return found


def right(embedded, filed):
    """The share of questions that are answered right."""
    pairs, expected = [], []
    for clip, frames in filed:
        for i in np.random.default_rng(0).permutation(len(clip.questions))[:QUESTIONS]:
            pairs.append((frames.pixels, clip.questions[i].text))
            expected.append(clip.questions[i].answer)
    said = list(replies(*embedded, pairs, "video", QUESTIONS))
    return sum(a == b for a, b in zip(said, expected, strict=True)) / len(said)


def test_a_quarter_of_the_tokens_answers_nearly_all(embedded, filed):
    """Oracle: the clips' own answers; next to no tokens, which answer few."""
    model, _ = embedded
    for policy in ("framefusion", "evs"):
        with vtprune.pruned(model, policy, keep_ratio=0.25) as report:
            assert right(embedded, filed) >= 0.85, policy
            assert report.tokens[0] == (512, 128)
    with vtprune.pruned(model, "random", n_keep=4):
        assert right(embedded, filed) < 0.6


def test_tokens_stay_where_something_changes(embedded, filed):
    """Oracle: the clip's events, which say in which steps something comes, goes or moves."""
    model, processor = embedded
    for policy in ("framefusion", "evs"):
        for clip, frames in filed:
            changing = {0}
            for event in clip.events:
                changing |= {event.first // SLICE, event.last // SLICE}
                moves = [f for f in range(1, len(event.path)) if event.path[f] != event.path[f - 1]]
                changing |= {(event.first + f) // SLICE for f in moves}
            still = [step for step in range(LONG // SLICE) if step not in changing]
            with vtprune.pruned(model, policy, keep_ratio=0.2) as report, torch.no_grad():
                with vtprune.frame_times([frames.seconds]):
                    inputs = processor("<bos><video>Which shape appears first?<answer>", frames.pixels)
                    model.generate(**inputs)
            (kept,) = report.kept(0, 0)
            counts = torch.bincount(kept.coords[:, 1], minlength=LONG // SLICE).double()
            busy = counts[[step for step in sorted(changing) if step < LONG // SLICE]].mean()
            assert still and busy > 2 * counts[still].mean(), (policy, counts)
            pairs = frames.seconds.reshape(-1, SLICE)
            torch.testing.assert_close(kept.seconds, torch.from_numpy(pairs.mean(1)))


def test_quota_spends_its_tokens_on_frames_that_show_what_is_asked_for(embedded, filed):
    """Oracle: the events and answers of the clips. The scorer is the same model, asked yes or no about every frame."""
    model, processor = embedded
    scorer, said = clip_scorer(load_video()[0], processor), []
    for clip, frames in filed:
        for event in clip.events[:2]:
            question = f"What color is the {event.name}?"
            shown = [e for e in clip.events if e.name == event.name]
            steps = {f // SLICE for e in shown for f in range(e.first, e.last)}
            with vtprune.pruned(model, "quota", keep_ratio=0.25) as report:
                found = answer(
                    model, processor, list(frames.pixels), question, scorer=scorer, objects=objects_in(question)
                )
                (kept,) = report.kept(0, 0)
            counts = torch.bincount(kept.coords[:, 1], minlength=LONG // SLICE)
            assert counts[sorted(steps)].sum() > 0.8 * counts.sum(), (question, counts)
            assert found.tokens[0] == 512 and 0 < found.tokens[1] <= 128
            said.append(found.text == event.color)
    assert len(said) == 2 * len(SEEDS) and sum(said) >= len(said) - 1
