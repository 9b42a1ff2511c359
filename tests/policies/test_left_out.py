"""Clips of which the processor left out what repeats: policies that take frames of any size, and those that cannot."""

import dataclasses
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.contract import outcome
from tests.policies.fabricate import left_out
from tests.probe import visible
from vtprune.apply import merge_rows
from vtprune.families.base import grid_coords
from vtprune.policies.aim import AIM
from vtprune.policies.base import POLICIES
from vtprune.policies.quota import QuoTA
from vtprune.tokens import BEFORE_LLM, Segment, VisualTokens

ANY_SIZE = ("aim", "evs", "fastvid", "flashvid", "framefusion", "llava_scissor", "vidcom2")
WHOLE = ("dycoke", "holitom", "prunevid", "quota", "sttm")
SIZES = (9, 3, 1, 6)


@cache
def model_of():
    return tiny.build("video_llama_3", "sdpa", torch.float64)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_a_batch_of_two_is_two_of_one(name):
    """Oracle: each clip alone; some of it is dropped, and nothing is said of unknown frames."""
    found = outcome("video_llama_3", "video", name)
    assert found.status == "pruned" and not [note for note in found.notes if "not known" in note]


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_whole_frames_says_so(name):
    """Oracle: the mask of each clip says how many of its frames lack tokens."""
    found = outcome("video_llama_3", "video", name, alone=False)
    assert found.status == "refused" and "use_token_compression=False" in found.notes[0]
    for sample, frames in zip(tiny.video_samples("video_llama_3", "ragged"), (4, 2), strict=True):
        lack = sample.pixels["video_compression_mask"].view(frames, -1).logical_not().any(1).sum()
        with (
            vtprune.pruned(model_of(), name, keep_ratio=0.6),
            pytest.raises(NotImplementedError, match="whole") as told,
        ):
            oracle.text_logits(model_of(), tiny.collate("video_llama_3", [sample]))
        assert f"of {frames} frames in this prompt {lack} lack tokens" in str(told.value)


def test_dropped_rows_are_as_if_never_there():
    """Oracle: ``generate`` on embeddings without the rows that VidCom2 drops of two clips, positions counted anew."""
    model, inputs = model_of(), tiny.video("video_llama_3", "ragged")
    with vtprune.pruned(model, "vidcom2", keep_ratio=0.4) as report:
        got = tiny.greedy(model, inputs, 5)
        kept = visible(model)[BEFORE_LLM]
        assert all(after < before / 2 for before, after in report.tokens)
    expected = oracle.shortened(model, inputs, kept, 5)
    assert torch.equal(got.sequences[:, inputs["input_ids"].shape[1] :], expected.sequences)


def alone(tokens: VisualTokens, rows: torch.Tensor) -> VisualTokens:
    """Some rows of a clip as an image of no known grid."""
    hidden = tokens.hidden[rows]
    return VisualTokens(hidden, hidden[:0], (Segment(slice(0, len(rows))),), coords=torch.full((len(rows), 4), -1))


def test_aim_merges_every_frame_by_itself():
    """Oracle: each frame as an image of its own, with the count that it got."""
    tokens, _ = left_out(SIZES, 3, 8, 0)
    merged, start = AIM(merge_ratio=0.5, keep_ratio=None).select(tokens), 0
    for size in SIZES:
        rows = torch.arange(start, start + size)
        mine = merged.keep[(merged.keep >= start) & (merged.keep < start + size)]
        one = AIM(merge_ratio=0.5, keep_ratio=None).select(alone(tokens, rows))
        assert (mine - start).tolist() == one.keep.tolist() and len(mine) == max(1, round(size / 2))
        start += size


@pytest.mark.parametrize("name", ["aim", "fastvid", "flashvid", "llava_scissor", "vidcom2"])
def test_where_in_a_frame_its_tokens_are_is_no_matter(name):
    """Oracle: whole frames of as many tokens, in a line."""
    for seed in range(3):
        tokens, _ = left_out((4, 4, 4), 3, 8, seed, "vision_attention")
        line = (Segment(slice(0, 12), ((3, 1, 4),), "video"),)
        whole = dataclasses.replace(tokens, segments=line, coords=grid_coords(3, 1, 4), memory={})
        got, expected = (POLICIES[name](keep_ratio=0.5).select(some) for some in (tokens, whole))
        assert got.keep.tolist() == expected.keep.tolist() and len(got.keep) < 12
        assert torch.equal(merge_rows(tokens.hidden, got), merge_rows(tokens.hidden, expected))


@pytest.mark.parametrize("resize", ["sample", "merge"])
def test_quota_takes_lines(resize):
    """Oracle: the budget of the clip; lines of any length can be sampled and merged, grids cannot be resized."""
    tokens, _ = left_out(SIZES, 3, 8, 0)
    assert len(QuoTA(0.5, resize=resize).select(tokens).keep) == round(sum(SIZES) / 2)
    shares, _ = QuoTA(0.5).allot(tokens)
    assert [len(share.rows) for share in shares] == list(SIZES) and sum(s.k for s in shares) == round(sum(SIZES) / 2)
    with pytest.raises(NotImplementedError, match="4 frames in this prompt 3 lack tokens"):
        QuoTA(0.5).select(tokens)
