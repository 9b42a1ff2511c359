"""Even cells, against flood fill and counting."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.blocks.cells import even_cells, nearest_to_centre, share

GRIDS = [
    (1, 1, 1),
    (1, 1, 7),
    (1, 7, 1),
    (1, 2, 2),
    (1, 3, 5),
    (1, 7, 11),
    (1, 13, 5),
    (1, 12, 12),
    (1, 24, 24),
    (1, 4, 31),
]
GRIDS += [(2, 2, 2), (3, 5, 2), (7, 1, 1), (7, 3, 3), (5, 4, 4), (11, 2, 3), (4, 6, 6), (32, 14, 14)]


def counts_for(t, h, w):
    """All counts of small grids; of large ones the extremes, some primes, and some near multiples of the frames."""
    n = t * h * w
    if n <= 150:
        return range(1, n + 1)
    wanted = {1, 2, 3, 5, 7, 11, 97, n // 4, n // 3, n // 2, n - 1, n, t - 1, t, t + 1, 2 * t, 2 * t + 1, n // 10}
    return sorted(k for k in wanted if 1 <= k <= n)


def members_of(cell, t, h, w):
    members = {}
    for i, c in enumerate(cell.tolist()):
        members.setdefault(c, []).append((i // (h * w), i // w % h, i % w))
    return members


def is_connected(places):
    """Flood fill over neighbours in time, up, down, left and right."""
    left, front = set(places[1:]), [places[0]]
    while front:
        t, r, c = front.pop()
        for near in ((t + 1, r, c), (t - 1, r, c), (t, r + 1, c), (t, r - 1, c), (t, r, c + 1), (t, r, c - 1)):
            if near in left:
                left.remove(near)
                front.append(near)
    return not left


def check_cells(t, h, w, k):
    cell = even_cells(t, h, w, k)
    assert cell.dtype == torch.int64 and cell.shape == (t * h * w,)
    members = members_of(cell, t, h, w)
    assert sorted(members) == list(range(k)), "exactly k cells, none empty"
    assert list(members) == sorted(members), "numbered by their first token"
    for places in members.values():
        assert is_connected(places)
        sides = [len({place[axis] for place in places}) for axis in range(3)]
        assert sides[0] * sides[1] * sides[2] == len(places), "a cell is a box"
    return members


def sizes(members):
    return [len(places) for places in members.values()]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_grid_is_cut_into_exactly_k_connected_boxes(grid):
    for k in counts_for(*grid):
        check_cells(*grid, k)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_grid_is_cut_into_exactly_k_connected_boxes(data):
    t, h, w = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 17), st.integers(1, 17)))
    check_cells(t, h, w, data.draw(st.integers(1, t * h * w)))


@pytest.mark.parametrize("h", [1, 2, 3, 4, 5, 7, 12, 13, 24])
@pytest.mark.parametrize("w", [1, 2, 3, 5, 8, 12, 17, 24])
def test_cells_of_a_frame_are_of_nearly_the_same_size(h, w):
    """No cell is three times as large as another, or twice as large as the mean, whatever the count."""
    for k in counts_for(1, h, w):
        cells = sizes(check_cells(1, h, w, k)) if h * w < 100 else torch.bincount(even_cells(1, h, w, k)).tolist()
        assert max(cells) <= 3 * min(cells)
        assert max(cells) * k < 2 * h * w


def test_cells_of_a_square_are_near_square():
    """n x n cells of a 24 x 24 grid are the squares, and no count from 4 to 144 makes a cell longer than 1 to 3."""
    for n in (1, 2, 3, 4, 6, 8, 12, 24):
        side = 24 // n
        expected = [(r // side) * n + c // side for r in range(24) for c in range(24)]
        assert even_cells(1, 24, 24, n * n).tolist() == expected
    for k in range(4, 145):
        for places in members_of(even_cells(1, 24, 24, k), 1, 24, 24).values():
            high, wide = len({p[1] for p in places}), len({p[2] for p in places})
            assert max(high, wide) <= 3 * min(high, wide), (k, high, wide)


@pytest.mark.parametrize(("t", "h", "w"), [(2, 3, 3), (5, 4, 4), (7, 3, 5), (8, 2, 2), (32, 4, 4)])
def test_frames_get_the_same_number_of_cells_or_one_more_spread_evenly(t, h, w):
    """Oracle: after i frames the number of cells given is i * k / t, rounded down."""
    for k in range(t, t * h * w + 1):
        frames = [{place[0] for place in places} for places in members_of(even_cells(t, h, w, k), t, h, w).values()]
        assert all(len(frame) == 1 for frame in frames), "no cell spans two frames"
        per_frame = Counter(frame.pop() for frame in frames)
        assert max(per_frame.values()) - min(per_frame[i] for i in range(t)) <= 1
        assert all(sum(per_frame[j] for j in range(i)) == i * k // t for i in range(t + 1))


@pytest.mark.parametrize("t", [2, 3, 7, 8, 31])
def test_fewer_cells_than_frames_are_runs_of_whole_frames(t):
    for k in range(1, t):
        cells = sizes(check_cells(t, 2, 3, k))
        assert all(size % 6 == 0 for size in cells)
        assert max(cells) - min(cells) <= 6


def test_as_many_cells_as_tokens_are_the_tokens():
    for t, h, w in GRIDS:
        assert even_cells(t, h, w, t * h * w).tolist() == list(range(t * h * w))


@pytest.mark.parametrize(("t", "h", "w", "k"), [(1, 2, 3, 7), (1, 2, 3, 0), (1, 2, 3, -1), (0, 2, 3, 1)])
def test_an_impossible_count_is_refused_by_value(t, h, w, k):
    with pytest.raises(ValueError, match=f"{t} x {h} x {w} .*k={k}"):
        even_cells(t, h, w, k)


# ------------------------------------------------------------------------------------------------- share


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.data())
def test_shares_are_exact_and_as_close_to_proportional_as_whole_numbers_allow(sizes, data):
    k = data.draw(st.integers(0, sum(sizes)))
    shares = share(sizes, k)
    assert sum(shares) == k
    assert all(0 <= got <= size for got, size in zip(shares, sizes, strict=True))
    if k >= len(sizes):
        assert min(shares) >= 1
    # those above one were not lifted: between them the quota rule holds
    free = [i for i in range(len(sizes)) if shares[i] > 1] if k >= len(sizes) else list(range(len(sizes)))
    for i in free:
        for j in free:
            # moving one from i to j would not make the shares more equal per token than one step allows
            assert Fraction(shares[i] - 1, sizes[i]) < Fraction(shares[j] + 1, sizes[j])


@pytest.mark.parametrize(
    ("sizes", "k", "shares"),
    [
        ([36, 108], 16, [4, 12]),
        ([1, 144, 1], 3, [1, 1, 1]),
        ([10, 1000], 3, [1, 2]),
        ([5, 5, 5], 4, [2, 1, 1]),
        ([1, 9], 1, [0, 1]),
        ([2, 3, 4], 2, [0, 1, 1]),
        ([3, 2], 5, [3, 2]),
        ([24, 9, 24, 10], 10, [4, 1, 4, 1]),
        # twelve get less than one and are given one; of the 4 left the next has 4 * 2 / 20, so one too
        ([1] * 12 + [2, 9, 9], 16, [1] * 12 + [1, 2, 1]),
        # 576 tokens of thumbnail, 2304 of the view: a quarter of all
        ([576, 2304], 720, [144, 576]),
    ],
)
def test_hand_worked_shares(sizes, k, shares):
    assert share(sizes, k) == shares


# ---------------------------------------------------------------------------------------- nearest_to_centre


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10**6))
def test_the_centre_is_the_member_with_the_least_distance_to_the_mean(n, k, seed):
    """Oracle: a loop in exact fractions."""
    generator = torch.Generator().manual_seed(seed)
    k = min(k, n)
    cell = torch.cat([torch.arange(k), torch.randint(0, k, (n - k,), generator=generator)])
    place = torch.randint(0, 9, (n, 3), generator=generator)
    expected = []
    for c in range(k):
        rows = [i for i in range(n) if cell[i] == c]
        mean = [Fraction(sum(int(place[i, axis]) for i in rows), len(rows)) for axis in range(3)]
        expected.append(min(rows, key=lambda i: (sum((int(place[i, a]) - mean[a]) ** 2 for a in range(3)), i)))
    assert nearest_to_centre(cell, place).tolist() == expected
