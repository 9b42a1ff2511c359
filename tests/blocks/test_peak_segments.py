"""Segments of a clip by clusters of its frames, by hand."""

import pytest
import torch

from vtprune.blocks.peak_segments import contiguous, peak_segments


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ((0, 0, 1, 0, 2, 2, 2, 1), (0, 0, 2, 2, 2, 2, 2, 2)),
        ((0, 1, 1, 2, 1, 1, 1, 3, 3), (1, 1, 1, 1, 1, 1, 1, 3, 3)),
        ((0, 0, 1, 2, 2), (0, 0, 0, 2, 2)),
        ((1, 1, 0, 1, 1), (1, 1, 1, 1, 1)),
        ((3, 1, 2), (0, 0, 0)),
        ((1,), (0,)),
    ],
)
def test_labels_become_runs(labels, found):
    """Oracle: by hand."""
    assert contiguous(labels) == list(found)


def test_a_clip_of_three_scenes_has_three_segments():
    """Oracle: the scenes; and of one frame, of equal frames, one segment."""
    scenes = torch.tensor([0.0, 0.1, 0.25, 5.0, 5.1, 5.16, 5.3, -9.0, -9.1, -9.3])
    assert peak_segments(scenes[:, None], 3, 3) == [3, 4, 3]
    assert peak_segments(scenes[:1, None], 1, 7) == [1]
    assert peak_segments(torch.ones(6, 2), 1, 7) == [6]
