"""What resized frames become in a prompt, on grids small enough to write the answer down."""

import torch

from vtprune.blocks.frame_rows import Part, merged_rows, new_rows, resize_frames


def part(height, width, rows):
    x = torch.arange(float(height * width * 2)).view(-1, 2)
    return Part(x, height, width, torch.tensor(rows))


def test_frames_without_a_budget_are_left_out_and_views_share_theirs():
    frames = [(part(2, 2, [0, 1, 2, 3]),), (part(1, 2, [4, 5]),), (part(2, 2, [6, 7, 8, 9]), part(1, 2, [10, 11]))]
    drawn = resize_frames(frames, [4, 0, 3], "sample")
    assert [(p.rows[0].item(), len(plan)) for p, plan in drawn] == [(0, 4), (6, 2), (10, 1)]


def test_tokens_stand_at_their_places_or_in_their_order():
    """A line of four told backwards: its first and last cell are rows 3 and 0."""
    drawn = resize_frames([(part(1, 4, [3, 2, 1, 0]),)], [2], "sample")
    keep, plan = merged_rows(drawn, 4, in_place=True)
    assert keep.tolist() == [0, 3] and plan is None
    keep, plan = merged_rows(drawn, 4, in_place=False)
    assert keep.tolist() == [0, 3] and plan.to_dense().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]


def test_sums_are_written_in_rows_of_the_sample():
    """Four cells pooled to one: it stands where the third of them stood, a quarter of each."""
    drawn = resize_frames([(part(1, 1, [0]),), (part(2, 2, [4, 5, 6, 7]),)], [1, 1], "pool")
    keep, plan = merged_rows(drawn, 8, in_place=True)
    assert keep.tolist() == [0, 7]
    assert plan.is_sparse and plan.dtype == torch.float32
    assert plan.to_dense().tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25]]


def test_new_vectors_stay_inside_the_span():
    """Rows 4 to 9 are free; six tokens fill them although the frame's own are 7 to 9; two spread over the latter."""
    frame = part(2, 3, [7, 8, 9])
    rows, values = new_rows(resize_frames([(frame,)], [6], "sample"), slice(4, 10), None)
    assert rows.tolist() == [4, 5, 6, 7, 8, 9] and torch.equal(values, frame.x)
    rows, values = new_rows(resize_frames([(frame,)], [2], "sample"), slice(4, 10), None)
    assert rows.tolist() == [7, 9] and torch.equal(values, frame.x[[0, 5]])


def test_newlines_are_vectors_of_their_own():
    frame, newline = part(2, 2, [0, 1, 2, 3, 4, 5]), torch.tensor([-1.0, -2.0])
    rows, values = new_rows(resize_frames([(frame,)], [4], "bilinear"), slice(0, 6), newline)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert values.tolist() == [[0, 1], [2, 3], [-1, -2], [4, 5], [6, 7], [-1, -2]]
