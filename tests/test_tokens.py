"""The values that cross borders: order and names of sites, lengths, defaults that must not be shared, frozen fields."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from vtprune.tokens import BEFORE_LLM, Segment, Selection, VisualTokens, inside, site_name


def tokens(n=5):
    return VisualTokens(torch.zeros(n, 3), torch.zeros(2, 3), (Segment(slice(0, n)),))


def test_sites_sort_in_the_order_in_which_a_forward_reaches_them():
    """Oracle: the order of a decoder layer's parts, written down by hand."""
    reached = [BEFORE_LLM, 0, inside(0), 1, inside(1), 2, inside(2), 27, inside(27), 28]
    assert sorted(reversed(reached)) == reached
    assert len(set(reached)) == len(reached)


@pytest.mark.parametrize("layer", [-1, BEFORE_LLM, 1.0, 0.5, True, "3", None])
def test_inside_refuses_what_is_no_layer_and_says_what_it_got(layer):
    with pytest.raises(ValueError, match="0 or more") as error:
        inside(layer)
    assert repr(layer) in str(error.value)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (BEFORE_LLM, "before the LLM"),
        (float(BEFORE_LLM), "before the LLM"),
        (0, "layer 0"),
        (2, "layer 2"),
        (2.0, "layer 2"),
        (inside(0), "inside layer 0"),
        (inside(13), "inside layer 13"),
    ],
)
def test_site_name_puts_a_site_into_words(site, words):
    assert site_name(site) == words


@pytest.mark.parametrize(("span", "n"), [(slice(0, 16), 16), (slice(7, 8), 1), (slice(5, 5), 0)])
def test_segment_is_as_long_as_its_span(span, n):
    assert len(Segment(span)) == n


def test_segment_of_an_unknown_family_is_an_image_without_grid():
    segment = Segment(slice(0, 4))
    assert (segment.grids, segment.kind, segment.source) == ((), "image", 0)


def test_visual_tokens_count_their_rows():
    assert len(tokens(5)) == 5
    assert tokens(5).site == BEFORE_LLM


def test_two_samples_share_no_memory():
    """A policy writes into ``memory``; a default that both shared would let one sample see the other's."""
    first, second = tokens(), tokens()
    first.memory["seen"] = 1
    assert second.memory == {}
    assert second.signals == {}


@pytest.mark.parametrize(
    ("value", "name"),
    [(Segment(slice(0, 1)), "kind"), (tokens(), "hidden"), (Selection(torch.tensor([0])), "keep")],
)
def test_the_values_are_frozen(value, name):
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)


def test_selection_all_names_every_row_once_and_merges_nothing():
    selection = Selection.all(tokens(4))
    assert selection.keep.tolist() == [0, 1, 2, 3]
    assert selection.keep.dtype == torch.int64
    assert selection.merge is None and selection.weight is None


@pytest.mark.gpu
def test_selection_all_lies_where_the_tokens_lie():
    on_gpu = VisualTokens(torch.zeros(3, 2, device="cuda"), torch.zeros(0, 2, device="cuda"), (Segment(slice(0, 3)),))
    assert Selection.all(on_gpu).keep.is_cuda
