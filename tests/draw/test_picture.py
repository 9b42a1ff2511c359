"""The overlay, pixel by pixel: kept cells are the picture, dropped ones are grey and darker or lighter than it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtprune.draw.picture import BORDER, MAX_SIDE, MIN_SIDE, caption, overlay, side_by_side, stack
from vtprune.kept import Kept


def places(*grids: tuple[int, int, int]) -> torch.Tensor:
    """(N, 4) view, frame, row, column, spelt out."""
    cells = [
        (view, frame, row, column)
        for view, (frames, height, width) in enumerate(grids)
        for frame in range(frames)
        for row in range(height)
        for column in range(width)
    ]
    return torch.tensor(cells)


def kept_of(rows, *grids, kind: str = "image") -> Kept:
    coords, rows = places(*grids), torch.tensor(sorted(rows), dtype=torch.int64)
    return Kept(kind, 0, rows, coords[rows], len(coords), grids)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def luma(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(float) @ np.array([0.299, 0.587, 0.114])


def test_kept_cells_are_the_picture_and_dropped_ones_are_not():
    """Oracle: a picture of 12 x 12 cells of 8 x 8 pixels, enlarged seven times by repeating pixels."""
    pixels = noise(96, 96)
    kept = {0, 5, 13, 14, 143, 77, 88, 130}
    drawn = np.array(overlay(Image.fromarray(pixels), kept_of(kept, (1, 12, 12))))
    large = pixels.repeat(7, 0).repeat(7, 1)
    assert drawn.shape == large.shape == (672, 672, 3)
    for cell in range(144):
        row, column = divmod(cell, 12)
        area = np.s_[56 * row : 56 * row + 56, 56 * column : 56 * column + 56]
        if cell in kept:
            assert np.array_equal(drawn[area], large[area])
            continue
        inside = drawn[area][6:-6, 6:-6]
        assert np.all(inside == inside[..., :1]), "colours are left in a dropped cell"
        before, after = luma(large[area])[6:-6, 6:-6], inside[..., 0]
        assert after.mean() < 0.7 * before.mean() and np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99


@settings(max_examples=25)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    tall=st.integers(40, 90),
    wide=st.integers(40, 90),
    data=st.data(),
)
def test_the_mean_brightness_of_a_cell_changes_if_and_only_if_it_is_dropped(height, width, tall, wide, data):
    """Grids that do not divide the picture; a cell's pixels are those whose centre lies well within it."""
    kept = data.draw(st.sets(st.integers(0, height * width - 1)))
    pixels = np.full((tall, wide, 3), data.draw(st.sampled_from([0, 120, 255])), np.uint8)
    drawn = luma(np.array(overlay(Image.fromarray(pixels), kept_of(kept, (1, height, width)))))
    scale = drawn.shape[0] // tall
    assert drawn.shape == (tall * scale, wide * scale)
    for cell in range(height * width):
        row, column = divmod(cell, width)
        top, bottom = (int(np.ceil(drawn.shape[0] * r / height)) for r in (row, row + 1))
        left, right = (int(np.ceil(drawn.shape[1] * c / width)) for c in (column, column + 1))
        mean = drawn[top + 1 : bottom - 1, left + 1 : right - 1].mean()
        assert (abs(mean - pixels[0, 0, 0]) < 1e-6) == (cell in kept)


def test_borders_lie_between_kept_and_dropped_cells_and_are_seen_without_colour():
    """One kept cell in the middle of a black, and of a white, picture: a ring of border just outside it."""
    for value in (0, 255):
        pixels = np.full((60, 60, 3), value, np.uint8)
        drawn = np.array(overlay(Image.fromarray(pixels), kept_of([4], (1, 3, 3))))
        side = drawn.shape[0] // 3
        assert np.array_equal(np.argwhere((drawn == BORDER).all(-1)).min(0), [side - 3, side - 3])
        assert np.array_equal(np.argwhere((drawn == BORDER).all(-1)).max(0), [2 * side + 2, 2 * side + 2])
        veil = luma(drawn[side // 2, side // 2])
        assert abs(luma(np.array(BORDER)) - veil) > 40 and abs(luma(np.array(BORDER)) - value) > 40


def test_everything_and_nothing():
    pixels = noise(50, 50)
    whole = np.array(overlay(Image.fromarray(pixels), kept_of(range(25), (1, 5, 5))))
    assert np.array_equal(whole, pixels.repeat(13, 0).repeat(13, 1))
    nothing = np.array(overlay(Image.fromarray(pixels), kept_of([], (1, 5, 5))))
    assert not (nothing == BORDER).all(-1).any() and np.all(nothing == nothing[..., :1])


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((1, 1), (640, 640)), ((30, 20), (960, 640)), ((700, 800), (700, 800)), ((5120, 320), (2560, 160))],
)
def test_sizes(size, drawn):
    assert overlay(Image.new("RGB", size), kept_of([0], (1, 2, 2))).size == drawn
    assert MIN_SIDE == 640 and MAX_SIDE == 2560


def test_more_cells_than_pixels():
    """A token may be less than a pixel wide; the picture must still come out."""
    picture = Image.new("RGB", (2560, 100), "white")
    drawn = np.array(overlay(picture, kept_of(range(0, 300 * 2, 2), (1, 300, 2))))
    assert drawn[:, :1200].min() == 255 and drawn[:, 1300:].max() < 200


def test_a_slice_of_a_video():
    pixels = noise(64, 64)
    kept = kept_of([0, 4 + 3], (2, 2, 2), kind="video")
    for frame, corner in ((0, np.s_[:320, :320]), (1, np.s_[320:, 320:])):
        drawn = np.array(overlay(Image.fromarray(pixels), kept, frame=frame))
        clear = np.zeros((640, 640), bool)
        clear[corner] = True
        large = pixels.repeat(10, 0).repeat(10, 1)
        assert np.array_equal(drawn[clear], large[clear]) and (drawn[~clear] == large[~clear]).all(-1).mean() < 0.01
    with pytest.raises(ValueError, match="frames 0 to 1; got 2"):
        overlay(Image.fromarray(pixels), kept, frame=2)


def test_two_views_are_drawn_side_by_side():
    """The second view is the picture's overlay by itself; the first is a third as wide, beside it."""
    image = Image.fromarray(noise(640, 640))
    drawn = np.array(overlay(image, kept_of([1, 4 + 0, 4 + 11], (1, 2, 2), (1, 3, 4))))
    alone = np.array(overlay(image, kept_of([0, 11], (1, 3, 4))))
    assert np.array_equal(drawn[:, :640], alone)
    small = drawn[:213, 640 + 16 :]
    assert drawn.shape[1] == 640 + 16 + 213 and np.all(drawn[213:, 640:] == 255)
    shrunk = np.array(image.resize((213, 213), Image.Resampling.BOX))
    same = (small == shrunk).all(-1)
    assert same[:106, 107:].all() and same.mean() < 0.3


def test_newlines_have_no_place():
    """A policy that is offered newline tokens may keep them; they are drawn nowhere."""
    kept = kept_of([0], (1, 2, 2))
    coords = torch.cat([kept.coords, torch.full((1, 4), -1)])
    more = Kept("image", 0, torch.tensor([0, 4]), coords, 5, kept.grids)
    image = Image.fromarray(noise(9, 9))
    assert np.array_equal(np.array(overlay(image, more)), np.array(overlay(image, kept)))
    assert caption(more) == "2 of 5 visual tokens"


def test_what_cannot_be_drawn_says_why():
    image, unknown = Image.new("RGB", (8, 8)), Kept("image", 0, torch.arange(3), torch.full((3, 4), -1), 7, ())
    with pytest.raises(ValueError, match="places of these 7 visual tokens are unknown.*vtprune/families"):
        overlay(image, unknown)
    with pytest.raises(ValueError, match="one or two views can be drawn; this image has 3"):
        overlay(image, kept_of([0], (1, 1, 1), (1, 1, 1), (1, 1, 1)))
    one = kept_of([0], (1, 2, 2))
    with pytest.raises(ValueError, match="draws one picture, and there are the tokens of 2"):
        overlay(image, [one, one])
    assert np.array_equal(np.array(overlay(image, [one])), np.array(overlay(image, one)))


def test_the_picture_itself_is_not_changed():
    pixels = noise(640, 640)
    image = Image.fromarray(pixels)
    overlay(image, kept_of([0], (1, 2, 2)))
    assert np.array_equal(np.array(image), pixels)


def test_captions():
    assert caption(kept_of(range(36), (1, 12, 12))) == "36 of 144 visual tokens"
    assert caption(kept_of(range(1200), (1, 48, 48))) == "1,200 of 2,304 visual tokens"


def test_side_by_side():
    left, right = Image.fromarray(noise(300, 500)), Image.fromarray(noise(200, 450, 1))
    plain = np.array(side_by_side([left, right], gap=10))
    assert plain.shape == (300, 960, 3)
    assert np.array_equal(plain[:, :500], np.array(left)) and np.array_equal(plain[:200, 510:], np.array(right))
    assert np.all(plain[:, 500:510] == 255) and np.all(plain[200:, 510:] == 255)

    words = "a caption that is certainly too long for one line of four hundred and fifty pixels, is it not"
    named = np.array(side_by_side([left, right], ["short", words], gap=10))
    assert np.array_equal(named[:300, :500], np.array(left))
    ink = named.min(-1) < 128
    assert ink[300:, :500].any() and ink[200:, 510:].any() and not ink[:, 500:510].any()

    def lines(area):
        rows = area.any(1)
        return int((rows[1:] & ~rows[:-1]).sum() + rows[0])

    # a line of text is a run of rows with ink; dots and tails may split one, but never join two
    assert lines(ink[200:, 510:]) >= 2 > lines(ink[300:, :500])


def test_stack():
    above, below = Image.fromarray(noise(30, 50)), Image.fromarray(noise(20, 40, 1))
    drawn = np.array(stack([above, below], gap=5))
    assert drawn.shape == (55, 50, 3)
    assert np.array_equal(drawn[:30], np.array(above)) and np.array_equal(drawn[35:, :40], np.array(below))
    assert np.all(drawn[30:35] == 255) and np.all(drawn[35:, 40:] == 255)


def test_wrong_calls_of_side_by_side():
    image = Image.new("RGB", (4, 4))
    for call, reason in (
        (lambda: side_by_side([]), "one picture or more"),
        (lambda: stack([]), "one picture or more"),
        (lambda: side_by_side([image, image], ["one"]), "2 pictures need as many captions; got 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            call()
