"""STTM, against the released results, a quadtree cut by recursion, and models asked by hand."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample
from tests.policies.golden import load
from tests.policies.test_evs import video
from vtprune.apply import merge_rows
from vtprune.blocks.quadtree import pyramid
from vtprune.policies.sttm import ROOTS_ONLY, STTM

RELEASED = "early-stop-union,border-slot"

# -------------------------------------------------------------------------------------------- released results


def case_of(path):
    """(case, the tokens of its video, its options)."""
    case = load(path)
    t, c, h, w = case["x"].shape
    tokens = video(case["x"].permute(0, 2, 3, 1).reshape(t, h * w, c), h)
    names = {"spatial": "tau_spatial", "temporal": "tau_temporal"}
    options = {ours: float(case[theirs]) for ours, theirs in names.items()}
    return case, tokens, {**options, "root": int(case["root_level"])}


def test_released_tokens_are_met(golden):
    """Oracle: the authors' code: boxes by their first patch and patch counts exact, tokens to rounding."""
    paths = sorted(golden("sttm").glob("case*.npz"))
    assert paths
    for path in paths:
        case, tokens, options = case_of(path)
        h, w = case["x"].shape[2:]
        selection = STTM(**options, compat=RELEASED).select(tokens)
        boxes = case["boxes"].long()
        assert selection.keep.tolist() == ((boxes[:, 0] * h + boxes[:, 1]) * w + boxes[:, 2]).tolist(), path.name
        if selection.merge is None:
            assert case["n_patches"].tolist() == [1] * len(tokens), path.name
        else:
            assert selection.merge.bincount().tolist() == case["n_patches"].tolist(), path.name
        torch.testing.assert_close(merge_rows(tokens.hidden, selection), case["tokens"], rtol=1e-4, atol=2e-6)


def test_the_complete_union_joins_more(golden):
    """Oracle: counts known of the complete union: 69 tokens where the release leaves 72, elsewhere the same."""
    for path in sorted(golden("sttm").glob("case*.npz")):
        case, tokens, options = case_of(path)
        kept = len(STTM(**options, compat="border-slot").select(tokens).keep)
        assert kept == (69 if path.stem == "case00" else len(case["tokens"])), path.name


def test_worked_example():
    """Two frames of 4 x 4, all (1, 0) but the first patch: its cell splits into four, of which three meet the second
    frame's whole cell. The release leaves two of them apart."""
    x = torch.zeros(2, 16, 2)
    x[..., 0] = 1
    x[0, 0] = torch.tensor([0.0, 1])
    options = {"spatial": 0.9, "temporal": 0.9, "root": 0}
    released = STTM(**options, compat=RELEASED).select(video(x, 4))
    assert released.keep.tolist() == [0, 1, 2, 4, 5, 8, 10]
    assert released.merge.bincount().tolist() == [1, 5, 8, 1, 1, 8, 8]
    complete = STTM(**options).select(video(x, 4))
    assert complete.keep.tolist() == [0, 1, 2, 8, 10]
    assert complete.merge.bincount().tolist() == [1, 7, 8, 8, 8]


# ------------------------------------------------------------------------------------ the method, by recursion


def cosine(a, b):
    norms = (sum(v * v for v in a) * sum(v * v for v in b)) ** 0.5
    return sum(v * w for v, w in zip(a, b)) / norms


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows)]


def halves(side):
    """Which children each half of a side has; the first of an odd number is alone."""
    pairs = [[0]] if side % 2 else []
    return pairs + [[i, i + 1] for i in range(side % 2, side, 2)]


class Tree:
    """The levels of one frame, finest first: lists of rows of (vector, box (y0, x0, y1, x1), children)."""

    def __init__(self, frame, height, width):
        cells = [[(frame[y * width + x], (y, x, y + 1, x + 1), []) for x in range(width)] for y in range(height)]
        self.levels = [cells]
        while min(len(cells), len(cells[0])) > 2:
            rows, columns = halves(len(cells)), halves(len(cells[0]))
            cells = [[self._cell([cells[y][x] for y in ys for x in xs]) for xs in columns] for ys in rows]
            self.levels.append(cells)

    @staticmethod
    def _cell(children):
        boxes = [child[1] for child in children]
        box = (boxes[0][0], boxes[0][1], boxes[-1][2], boxes[-1][3])
        return mean([child[0] for child in children]), box, children

    def cut(self, least, root):
        found, waiting = [], [cell for row in self.levels[max(0, len(self.levels) - 1 - root)] for cell in row]
        while waiting:
            cell = waiting.pop()
            if all(cosine(cell[0], child[0]) >= least for child in cell[2]):
                found.append(cell)
            else:
                waiting += cell[2]
        return found


def inside(a, b):
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def by_hand(frames, height, width, spatial, temporal, root, area_weighted):
    """{first row: (vector, number of tokens)}."""
    nodes = []
    for t, frame in enumerate(frames):
        for vector, box, _ in Tree(frame, height, width).cut(spatial, root):
            nodes.append(((t * height + box[0]) * width + box[1], t, box, vector))
    nodes.sort()
    group = list(range(len(nodes)))
    for i, (_, t, box, vector) in enumerate(nodes):
        for j, (_, u, other, second) in enumerate(nodes):
            near = u == t + 1 and (inside(box, other) or inside(other, box))
            if temporal > 0 and near and cosine(vector, second) >= temporal:
                low, high = sorted((group[i], group[j]))
                group = [low if g == high else g for g in group]
    found = {}
    for g in sorted(set(group)):
        members = [node for node, label in zip(nodes, group) if label == g]
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for _, _, box, _ in members]
        shares = areas if area_weighted else [1] * len(members)
        vector = [sum(s * v for s, v in zip(shares, column)) / sum(shares) for column in zip(*(m[3] for m in members))]
        found[members[0][0]] = (vector, sum(areas))
    return found


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([0.5, 0.9]),
    st.sampled_from([-1.0, 0.5, 0.9]),
    st.integers(0, 2),
    st.booleans(),
)
def test_any_video_follows_the_recursion(seed, t, h, w, spatial, temporal, root, area_weighted):
    """Oracle: recursion, boxes compared one with another, and unions in plain lists, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, h * w, 3, generator=generator)
    x = base.mean(1, keepdim=True) + 0.3 * base + 0.2 * torch.randn(t, h * w, 3, generator=generator)
    tokens = video(x, h)
    selection = STTM(None, spatial, temporal, root, area_weighted=area_weighted).select(tokens)
    expected = by_hand(x.double().tolist(), h, w, spatial, temporal, root, area_weighted)
    assert selection.keep.tolist() == list(expected)
    vectors = torch.tensor([vector for vector, _ in expected.values()])
    torch.testing.assert_close(merge_rows(tokens.hidden, selection), vectors, rtol=1e-4, atol=1e-5)
    if selection.merge is not None:
        assert selection.merge.bincount().tolist() == [count for _, count in expected.values()]


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [(14, 14, [(2, 2), (4, 4), (7, 7), (14, 14)]), (6, 10, [(2, 3), (3, 5), (6, 10)]), (1, 9, [(1, 9)])],
)
def test_sides_are_halved_until_one_is_two(height, width, sizes):
    levels = pyramid(torch.zeros(1, height * width, 2), height, width)
    assert [(level.height, level.width) for level in levels] == sizes


# ---------------------------------------------------------------------------------------------- edges and options


def test_extremes_stay_finite():
    """Oracle: by hand: equal tokens become the root cells of the first frame; zeros are like nothing; one stays one."""
    same = STTM(root=0).select(video(torch.ones(3, 16, 2), 4))
    assert same.keep.tolist() == [0, 2, 8, 10]
    torch.testing.assert_close(merge_rows(torch.ones(48, 2), same), torch.ones(4, 2))
    assert STTM().select(video(torch.zeros(2, 16, 2), 4)).keep.tolist() == list(range(32))
    assert STTM().select(video(torch.ones(1, 1, 4))).keep.tolist() == [0]


@pytest.mark.parametrize("keep_ratio", [0.02, 0.1, 0.4, 0.8])
def test_keep_ratio_finds_thresholds(keep_ratio):
    """Oracle: the count that was asked for; the coarsest cells of independent frames are the least that can be had."""
    x = torch.randn(4, 64, 6, generator=torch.Generator().manual_seed(3))
    x = x + 2 * x.mean(0, keepdim=True)
    selection = STTM(keep_ratio).select(video(x, 8))
    wanted = round(keep_ratio * 256)
    if keep_ratio == 0.02:
        assert selection.note == ROOTS_ONLY and wanted < len(selection.keep) <= 64
    else:
        assert not selection.note and 0.9 * wanted <= len(selection.keep) <= wanted


def test_a_number_is_a_ratio_of_it():
    """Oracle: the ratio. A number is that of each video, and no more than it has."""
    x = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(0))
    by_ratio, by_number = (policy.select(video(x, 8)).keep for policy in (STTM(0.4), STTM(n_keep=102)))
    assert by_ratio.tolist() == by_number.tolist() and 80 < len(by_number) <= 102
    assert len(STTM(n_keep=10**6).select(video(x, 8)).keep) == 256


def test_a_still_video_keeps_what_was_asked_for():
    """Oracle: the count; at the published threshold joining over time alone leaves less than half."""
    x = torch.randn(1, 64, 6, generator=torch.Generator().manual_seed(3)).repeat(4, 1, 1)
    x[1:] += 0.1 * torch.randn(3, 64, 6, generator=torch.Generator().manual_seed(4))
    assert len(STTM(spatial=1.0).select(video(x, 8)).keep) < 0.5 * 256
    assert 0.7 * 256 < len(STTM(0.8).select(video(x, 8)).keep) <= 0.8 * 256


def test_views_of_an_image_are_cut_one_by_one():
    """Oracle: each view as an image of its own."""
    sample = Sample("anyres")
    tokens = sample.at()
    whole = STTM(spatial=0.0).select(tokens).keep.tolist()
    views = [tokens.hidden[:36].view(1, 36, -1), tokens.hidden[36:].view(1, 108, -1)]
    small, large = (STTM(spatial=0.0).select(video(x, h)).keep for x, h in zip(views, (6, 12)))
    assert whole == [*small.tolist(), *(large + 36).tolist()]


@pytest.mark.parametrize(
    ("option", "value"),
    [("spatial", 1.5), ("temporal", "high"), ("root", -1), ("layer", 2.0), ("compat", "border"), ("images", "joined")],
)
def test_a_wrong_option_is_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
        STTM(**{option: value})


# ------------------------------------------------------------------------------------------------ whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


def entering(family, inputs, layer):
    """(N, D) what a layer of the unwrapped model gets at the placeholders of its only sample."""
    model, seen = model_of(family), []
    hook = (
        tiny.text_model(model)
        .layers[layer]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    oracle.text_logits(model, inputs)
    hook.remove()
    return seen[0][0][tiny.visual(inputs)[0]]


@pytest.mark.parametrize("family", ["llava_next_video", "qwen2_5_vl", "internvl"])
def test_a_model_keeps_what_the_recursion_says_of_its_hidden_states(family):
    """Oracle: the recursion on what layer 2 of the unwrapped model gets; then it generates."""
    model, inputs = model_of(family), tiny.video(family, "one")
    x = entering(family, inputs, 2)
    with vtprune.pruned(model, "sttm", spatial=0.5, temporal=0.3, root=0) as report:
        assert tiny.greedy(model, inputs, 3).sequences.shape[1] >= 3
        [site] = report.sites
        assert site.site == 2
        grids = [source.grids for source in report.last.layout.rows[0].sources]
    (_, h, w), t = grids[0][0], sum(grid[0][0] for grid in grids)
    expected = by_hand(x.view(t, h * w, -1).tolist(), h, w, 0.5, 0.3, 0, False)
    assert site.kept[0].tolist() == list(expected) and len(expected) < len(x)


def test_a_batch_of_videos_is_its_samples():
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of("qwen2_5_vl"), "sttm", keep_ratio=0.4):
            return oracle.text_logits(model_of("qwen2_5_vl"), inputs)

    oracle.assert_batch_equals_rows(run, "qwen2_5_vl", tiny.video_samples("qwen2_5_vl", "ragged"))
