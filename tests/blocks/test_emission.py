"""Emission: tokens in another order, and tokens of zeros."""

import torch

from vtprune.blocks.emission import in_order
from vtprune.tokens import Segment, VisualTokens

HIDDEN = torch.arange(1.0, 9.0)[:, None]
TOKENS = VisualTokens(HIDDEN, HIDDEN[:1], (Segment(slice(0, 5)), Segment(slice(5, 8))))


def answer(*rows):
    spans = (slice(0, 5), slice(5, 8))
    selection = in_order(TOKENS, [(span, torch.tensor(some)) for span, some in zip(spans, rows)], note="so")
    assert selection.note == "so" and selection.merge is None
    return selection.keep.tolist(), None if selection.values is None else selection.values[:, 0].tolist()


def test_an_ascending_order_is_a_plain_selection():
    assert answer([0, 3], [6]) == ([0, 3, 6], None)


def test_another_order_puts_the_values_on_the_places_of_the_kept():
    assert answer([3, 0, 4], [7, 5]) == ([0, 3, 4, 5, 7], [4, 1, 5, 8, 6])


def test_zeros_take_the_lowest_places_that_are_free_in_their_span():
    assert answer([3, -1, -1], [5, -1]) == ([0, 1, 3, 5, 6], [4, 0, 0, 6, 0])
