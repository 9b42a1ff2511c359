"""Resizing a frame, against the authors' numbers, torch's own interpolation and pooling, and literal loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.golden import load
from vtprune.blocks.resize import LINES, MERGING, MODES, append_newlines, bipartite_merge, grid_of, resize

VERSIONS = {"v1": "bilinear", "v2": "pool", "v3": "sample", "v4": "merge", "v5": "merge_rows"}
FRAMES = [(1, 1), (1, 7), (6, 1), (5, 5), (9, 9), (4, 6), (7, 5), (3, 11), (13, 24)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts_for(height, width):
    n = height * width
    return sorted({1, 2, 3, n // 3, n // 2, n - 1, n} & set(range(1, n + 1)))


@pytest.mark.parametrize("version", VERSIONS)
def test_resized_features_of_the_golden_cases(golden, version):
    """Oracle: the authors' released code."""
    paths = sorted(golden("quota").glob(f"*_{version}.npz"))
    assert paths
    for path in paths:
        case = load(path)
        side = math.isqrt(case["features"].shape[1])
        flat, lines, shapes = [], [], []
        for frame, n in zip(case["kept_frames"].tolist(), case["budgets"].tolist(), strict=True):
            x = case["features"][frame]
            plan = resize(x, side, side, n, VERSIONS[version])
            flat.append(plan.apply(x))
            shapes.append([*plan.shape, x.shape[1]])
            if "with_newlines" in case:
                lines.append(append_newlines(flat[-1], plan.shape, case["newline"]))
        assert shapes == case["shapes"].tolist(), path.name
        torch.testing.assert_close(torch.cat(flat), case["flat"], atol=1e-5, rtol=0)
        if lines:
            torch.testing.assert_close(torch.cat(lines), case["with_newlines"], atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------ the grid


def test_square_grids_are_the_published_ones():
    """Oracle: the published rule, spelt out."""
    for n in range(1, 3000):
        h = w = int(math.sqrt(n))
        if h * w < n and (h + 1) * w <= n:
            h += 1
        assert grid_of(n) == grid_of(n, 27, 27) == (h, w), n


def test_the_grids_of_the_worked_example():
    assert [grid_of(n, 27, 27) for n in (32, 3)] == [(6, 5), (2, 1)]


def best_grid(n, height, width):
    """Every grid with sides one step around the ideal ones, compared as the docstring says."""
    tall, wide = math.sqrt(n * height / width), math.sqrt(n * width / height)
    found = []
    for h in range(1, n + 1):
        if not (math.floor(tall + 1e-9) <= h <= math.ceil(tall - 1e-9) or (h == 1 and tall < 1) or tall > n == h):
            continue
        for w in range(1, min(n // h, math.ceil(wide - 1e-9)) + 1):
            stretch = abs(math.log(h * width / (w * height)))
            found.append((h * w, -round(stretch, 9), h, w))
    return max(found)[2:]


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_other_grids_keep_the_aspect_and_use_most_of_the_budget(height, width, data):
    n = data.draw(st.integers(1, height * width))
    h, w = grid_of(n, height, width)
    assert (h, w) == best_grid(n, height, width)
    assert h * w <= n and h <= height and w <= width


def test_a_budget_of_everything_is_the_frame_itself():
    for height, width in FRAMES:
        assert grid_of(height * width, height, width) == (height, width)


# ----------------------------------------------------------------------------------------------------- the plans


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_every_plan_is_an_average_with_places_of_its_own(mode, height, width):
    x = noise(height * width, 3)
    for n in counts_for(height, width):
        plan = resize(x, height, width, n, mode)
        assert math.prod(plan.shape) == len(plan) <= n
        assert plan.weight.dtype == torch.float32 and bool((plan.weight > 0).all())
        sums = torch.zeros(len(plan)).index_add_(0, plan.token, plan.weight)
        torch.testing.assert_close(sums, torch.ones(len(plan)))
        assert len(set(plan.place.tolist())) == len(plan)
        assert 0 <= int(plan.place.min()) and int(plan.place.max()) < height * width
        assert 0 <= int(plan.cell.min()) and int(plan.cell.max()) < height * width


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_a_frame_of_its_own_size_stays_as_it_is(mode, height, width):
    x = noise(height * width, 3)
    plan = resize(x, height, width, height * width, mode)
    assert torch.equal(plan.apply(x), x)
    assert plan.place.tolist() == list(range(height * width))


@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_bilinear_is_torchs_interpolation_also_where_it_enlarges(height, width):
    x = noise(height * width, 3).float()
    image = x.T.view(1, 3, height, width)
    for n in [*counts_for(height, width), 2 * height * width, 5 * height * width + 3]:
        plan = resize(x, height, width, n)
        assert plan.shape == grid_of(n, height, width)
        expected = F.interpolate(image, plan.shape, mode="bilinear", align_corners=False, antialias=False)
        torch.testing.assert_close(plan.apply(x), expected.view(3, -1).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_pool_is_torchs_adaptive_average(height, width):
    x = noise(height * width, 3)
    for n in counts_for(height, width):
        plan = resize(x, height, width, n, "pool")
        expected = F.adaptive_avg_pool2d(x.T.view(1, 3, height, width), plan.shape).view(3, -1).T
        torch.testing.assert_close(plan.apply(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), FRAMES)
def test_sample_takes_equal_steps(height, width):
    """Oracle: torch's linspace in float32, cut to whole numbers."""
    x = noise(height * width, 3)
    for n in counts_for(height, width):
        cells = [int(cell) for cell in torch.linspace(0, height * width - 1, n)]
        assert torch.equal(resize(x, height, width, n, "sample").apply(x), x[cells])


@pytest.mark.parametrize("mode", ["bilinear", "pool"])
def test_a_token_stands_in_the_cell_nearest_to_its_centre(mode):
    """Oracle: distances of centres, in a frame twice as wide as a token's step and one that does not divide."""
    for height, width, n in ((6, 6, 9), (9, 9, 16), (7, 5, 12), (13, 24, 100)):
        plan = resize(noise(height * width, 2), height, width, n, mode)
        h, w = plan.shape
        for j, place in enumerate(plan.place.tolist()):
            centre = ((j // w + 0.5) * height / h, (j % w + 0.5) * width / w)
            distance = [
                max(abs(c // width + 0.5 - centre[0]), abs(c % width + 0.5 - centre[1])) for c in range(height * width)
            ]
            here = (abs(place // width + 0.5 - centre[0]), abs(place % width + 0.5 - centre[1]))
            assert max(here) <= 0.5 + 1e-9 and min(distance) <= 0.5 + 1e-9


# ------------------------------------------------------------------------------------------------------- merging


def merge_by_loop(vectors, n):
    """The rounds, token by token: [(vector, members with their weights, head)] in the order of the result."""
    tokens = [(v, {i: 1.0}, i) for i, v in enumerate(vectors)]
    while len(tokens) > n:
        evens, odds = tokens[::2], tokens[1::2]
        gone = min(len(tokens) - n, len(tokens) // 2)
        found = []
        for i, (v, _, _) in enumerate(evens):
            alike = [float(v @ u / (v.norm() * u.norm())) for u, _, _ in odds]
            j = alike.index(max(alike))
            found.append((-alike[j], i, j))
        found.sort()
        groups = [[odd] for odd in odds]
        for _, i, j in found[:gone]:
            groups[j].append(evens[i])
        merged = []
        for group in groups:
            members = {c: w / len(group) for _, some, _ in group for c, w in some.items()}
            merged.append((sum(v for v, _, _ in group) / len(group), members, group[0][2]))
        tokens = [evens[i] for _, i, _ in found[gone:]] + merged
    return tokens


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 25])
def test_merging_follows_the_rounds(length):
    """Oracle: a loop over tokens."""
    x = noise(length, 4)
    for n in range(1, length + 1):
        plan = resize(x, 1, length, n, "merge")
        expected = merge_by_loop(list(x), n)
        torch.testing.assert_close(plan.apply(x), torch.stack([v for v, _, _ in expected]), atol=1e-6, rtol=0)
        assert plan.place.tolist() == [head for _, _, head in expected]
        for j, (_, members, _) in enumerate(expected):
            got = {int(c): float(w) for t, c, w in zip(plan.token, plan.cell, plan.weight) if t == j}
            assert got == pytest.approx(members)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (7, 7), (4, 6), (6, 3)])
def test_merging_rows_then_columns(height, width):
    """Oracle: the loop over tokens along each row, then along each column of its results."""
    x = noise(height * width, 4)
    for n in (1, 3, 7, height * width // 2, height * width):
        h, w = grid_of(n, height, width)
        rows = [merge_by_loop(list(row), w) for row in x.view(height, width, 4)]
        columns = [merge_by_loop([row[j][0] for row in rows], h) for j in range(w)]
        expected = torch.stack([columns[j][i][0] for i in range(h) for j in range(w)])
        plan = resize(x, height, width, n, "merge_rows")
        assert plan.shape == (h, w)
        torch.testing.assert_close(plan.apply(x), expected, atol=1e-6, rtol=0)
        places = [columns[j][i][2] * width + rows[columns[j][i][2]][j][2] for i in range(h) for j in range(w)]
        assert plan.place.tolist() == places


def test_equal_tokens_merge_lowest_index_first():
    """Six equal tokens to four: the even ones 0 and 2 go into the first odd one, 4 is left and comes first."""
    plan = resize(torch.ones(6, 2), 2, 3, 4, "merge")
    assert plan.place.tolist() == [4, 1, 3, 5]
    assert plan.token.tolist() == [1, 1, 1, 2, 0, 3]
    assert plan.weight.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 1])


def test_many_equal_tokens_merge_lowest_index_first():
    """Of 300 equal tokens the first 100 even ones go; the other 50 come first, in order."""
    plan = resize(torch.ones(300, 2), 10, 30, 200, "merge")
    assert plan.place.tolist() == [*range(200, 300, 2), *range(1, 300, 2)]


def test_a_merged_token_counts_once_in_the_next_round():
    """Four tokens to one: first 0 and 1, 2 and 3 (nearly parallel), then the two means; every weight is a quarter."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert resize(x, 1, 4, 1, "merge").weight.tolist() == [0.25] * 4
    # three to one: 0 (nearest to 1) goes first, then 2 with their mean: a half and two quarters
    assert resize(x[:3], 1, 3, 1, "merge").weight.tolist() == [0.25, 0.25, 0.5]


def test_lines_of_a_batch_do_not_meet():
    x = noise(3, 9, 4)
    together = bipartite_merge(x, 4)
    for i in range(3):
        alone = bipartite_merge(x[i : i + 1], 4)
        torch.testing.assert_close(together.x[i], alone.x[0])
        assert together.head[i].tolist() == alone.head[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_resized_in_single(mode, dtype):
    """Oracle: the same numbers in float32, rounded once."""
    x = noise(35, 8).to(dtype)
    low, high = (resize(y, 7, 5, 11, mode).apply(y) for y in (x, x.float()))
    assert low.dtype == dtype and torch.equal(low, high.to(dtype))


def test_zero_vectors_merge_without_nan():
    plan = resize(torch.zeros(5, 3), 1, 5, 2, "merge")
    assert bool(plan.weight.isfinite().all()) and len(set(plan.place.tolist())) == 2


# ------------------------------------------------------------------------------------------------------- the rest


def test_newlines_end_every_row():
    x = torch.arange(6.0)[:, None]
    assert append_newlines(x, (2, 3), torch.tensor([9.0])).flatten().tolist() == [0, 1, 2, 9, 3, 4, 5, 9]


def test_the_modes_that_merge_and_those_without_a_grid_are_modes():
    assert {*MERGING, *LINES} <= set(MODES)
    for mode in MODES:
        assert (len(resize(noise(9, 2), 3, 3, 4, mode).shape) == 1) == (mode in LINES)


@pytest.mark.parametrize(
    ("n", "mode", "words"),
    [
        (0, "bilinear", "n=0"),
        (0, "pool", "1 to 6.*n=0"),
        (7, "merge", "1 to 6.*n=7"),
        (2, "cubic", "bilinear, pool, sample, merge, merge_rows.*'cubic'"),
    ],
)
def test_an_impossible_resizing_is_refused_by_value(n, mode, words):
    with pytest.raises(ValueError, match=words):
        resize(noise(6, 2), 2, 3, n, mode)
