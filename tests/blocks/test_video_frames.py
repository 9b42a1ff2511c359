"""Videos as frames, on made-up prompts whose rows are written out."""

import torch

from tests.policies.fabricate import Sample, Source
from vtprune.blocks.frame_runs import IMAGES_AS_FRAMES
from vtprune.blocks.video_frames import NO_FRAMES, other_rows, video_counts, video_frames
from vtprune.tokens import Segment, VisualTokens


def prompt(kinds, grids, position=None):
    sizes = [t * h * w for t, h, w in grids]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    segments = tuple(
        Segment(slice(start, start + size), (grid,), kind, i)
        for i, (start, size, grid, kind) in enumerate(zip(starts, sizes, grids, kinds))
    )
    hidden = torch.zeros(sum(sizes), 2)
    coords = torch.cat([Source((grid,)).coords() for grid in grids])
    return VisualTokens(hidden, hidden, segments, coords=coords, position=position)


def test_the_video_among_images():
    """24 + 9 tokens of images, 3 frames of 8, 10 tokens of an image of no known grid."""
    tokens = Sample("mixed").at()
    [video], notes = video_frames(tokens)
    assert video.tolist() == (33 + torch.arange(24)).view(3, 8).tolist() and not notes
    others = other_rows([video], len(tokens), video.device)
    assert others.tolist() == [*range(33), *range(57, 67)]


def test_images_that_are_frames():
    """Two images of one size with text between them, and one of another size."""
    tokens = prompt(["image"] * 3, [(1, 1, 2), (1, 1, 2), (1, 1, 3)], torch.tensor([0, 1, 5, 6, 9, 10, 11]))
    assert video_frames(tokens, "apart") == ([], [])
    for images, noted in (("frames", []), ("spaced", [IMAGES_AS_FRAMES])):
        [video], notes = video_frames(tokens, images)
        assert video.tolist() == [[0, 1], [2, 3]] and notes == noted


def test_a_video_of_unknown_frames_is_left_out():
    tokens = prompt(["video", "video"], [(2, 1, 2), (1, 1, 3)])
    first, second = tokens.segments
    lost = (first, Segment(second.span, (), "video", 1))
    [video], notes = video_frames(VisualTokens(tokens.hidden, tokens.text, lost, coords=tokens.coords))
    assert video.tolist() == [[0, 1], [2, 3]] and notes == [NO_FRAMES]
    # without places only a video of one frame is known
    [video], notes = video_frames(VisualTokens(tokens.hidden, tokens.text, tokens.segments))
    assert video.tolist() == [[4, 5, 6]] and notes == [NO_FRAMES]


def test_counts_by_video_or_of_all():
    """By hand: half of 8 and 4, or 9 of all 12 by size."""
    videos = [torch.arange(8).view(2, 4), torch.arange(4).view(2, 2)]
    assert video_counts(videos, lambda n: n // 2, "segment") == [4, 2]
    assert video_counts(videos, lambda n: 9, "prompt") == [6, 3]
    assert video_counts([], lambda n: 9, "prompt") == []
