"""HiRED, against the released code's results, worked examples and a literal loop over tiles."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.tiles import anyres_tokens
from vtprune.policies.hired import HiRED
from vtprune.tokens import Segment, VisualTokens

SIGNAL = "cls_attention:0,-2"
PUBLISHED = {"exact_budget": False, "compat": "released-strips"}


def tiles_kept(policy, tokens):
    """The numbers of the tiles' patches that are kept, ascending."""
    return sorted(tokens.hidden[policy.select(tokens).keep, 0].long().tolist())


def sample(early, late, columns, rows, **padding):
    """Tokens of tiles whose class rows are (1 + crops, side * side); one head."""
    side = int(early.shape[-1] ** 0.5)
    return anyres_tokens(columns, rows, side, {SIGNAL: torch.stack([early, late])[:, None]}, **padding)


def test_released_results_are_met(golden):
    """Oracle: the authors' code: the same patches of every tile."""
    paths = sorted(golden("hired").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        columns, rows = case["grid_wh"].tolist()
        heads = torch.stack([case["top_cls"], case["bottom_cls"]]).transpose(1, 2)  # (2, H, P, N)
        side = int(heads.shape[-1] ** 0.5)
        tokens = anyres_tokens(columns, rows, side, {SIGNAL: heads})
        policy = HiRED(keep_ratio=float(case["rate"]), alpha=float(case["alpha"]), **PUBLISHED)
        expected = case["mask"].flatten().nonzero().flatten().tolist()
        assert tiles_kept(policy, tokens) == expected, path.name
        assert case["mask"][1:].sum(1).tolist() == case["budgets"].tolist(), path.name


def test_cells_and_strips_agree_in_one_column_of_crops_only(golden):
    """Oracle: the budgets of 2-D cells that were worked out for the golden cases by another program."""
    cells = {"case00": [20, 17, 15, 20], "case01": [20, 17], "case03": [77, 63, 67, 81], "case04": [57, 64, 57, 62]}
    found = {}
    for path in sorted(golden("hired").glob("case*.npz")):
        case = load(path)
        columns, rows = case["grid_wh"].tolist()
        heads = torch.stack([case["top_cls"], case["bottom_cls"]]).transpose(1, 2)
        n = heads.shape[-1]
        tokens = anyres_tokens(columns, rows, int(n**0.5), {SIGNAL: heads})
        policy = HiRED(keep_ratio=float(case["rate"]), alpha=float(case["alpha"]), exact_budget=False)
        tile = torch.tensor(tiles_kept(policy, tokens)) // n
        found[path.stem] = tile.bincount(minlength=columns * rows + 1)[1:].tolist()
        if columns == 1:
            cells[path.stem] = case["budgets"].tolist()
    assert found == {name: budgets for name, budgets in cells.items() if name in found}


def test_worked_example():
    """Two crops side by side of 2 x 2 patches: 6 tokens, 3 of them of the thumbnail, whose best half is marked."""
    early = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0, 0, 0, 0], [0, 0, 0, 0]])
    late = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    tokens = sample(early, late, 2, 1)
    thumbnail = [1, 2, 3]
    # strips: both marks lie in the first half, so the first crop gets 3
    assert tiles_kept(HiRED(keep_ratio=0.5, **PUBLISHED), tokens) == [*thumbnail, 5, 6, 7]
    # cells: one mark in each column, 1.5 each, rounded down, and the rest to the first
    assert tiles_kept(HiRED(keep_ratio=0.5, exact_budget=False), tokens) == [*thumbnail, 7, 8]
    assert tiles_kept(HiRED(keep_ratio=0.5), tokens) == [*thumbnail, 6, 7, 8]


def literal(early, late, columns, rows, top, left, k, alpha):
    """The patches kept, by loops over those that exist; the crop of a thumbnail patch is where its centre lies."""
    n = early.shape[1]
    side = int(n**0.5)
    height, width = rows * side - 2 * top, columns * side - 2 * left
    crops = [[] for _ in range(rows * columns)]
    for y in range(height):
        for x in range(width):
            crops[(y + top) // side * columns + (x + left) // side].append((y + top) % side * side + (x + left) % side)

    def best(values, places, count):
        return sorted(places, key=lambda place: (-float(values[place]), place))[:count]

    full = min(int(k * alpha), n)
    rest = min(k - full, height * width)
    full = k - rest
    marked = best(early[0], range(n), int(n * (1 - alpha)))
    votes = [0] * len(crops)
    for patch in marked:
        y = (patch // side + 0.5) / side * height + top
        x = (patch % side + 0.5) / side * width + left
        votes[int(y // side) * columns + int(x // side)] += 1
    wish = [rest * vote / len(marked) for vote in votes]
    budget = [min(int(w), len(crop)) for w, crop in zip(wish, crops)]
    order = sorted(range(len(crops)), key=lambda c: int(wish[c]) - wish[c])
    while sum(budget) < rest:
        for c in order:
            if sum(budget) < rest and budget[c] < len(crops[c]):
                budget[c] += 1
    kept = best(late[0], range(n), full)
    for c, crop in enumerate(crops):
        kept += [(1 + c) * n + place for place in best(late[1 + c], crop, budget[c])]
    return sorted(kept)


@pytest.mark.parametrize(("columns", "rows", "top", "left"), [(2, 2, 0, 0), (2, 2, 2, 0), (3, 1, 0, 3), (1, 2, 1, 0)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_counts_are_exact_and_padding_is_no_candidate(columns, rows, top, left, alpha):
    """Oracle: ``literal``."""
    generator = torch.Generator().manual_seed(columns * 10 + rows)
    early, late = torch.rand(2, 1 + columns * rows, 64, generator=generator)
    tokens = sample(early, late, columns, rows, top=top, left=left)
    for k in (1, 7, 50, len(tokens) - 3):
        expected = literal(early, late, columns, rows, top, left, k, alpha)
        assert len(expected) == k
        assert tiles_kept(HiRED(n_keep=k, alpha=alpha), tokens) == expected


def test_a_salient_quadrant_gets_what_its_crop_can_hold():
    """Only the top left quadrant is marked: all tokens of the crops are that crop's; what it cannot hold is shared."""
    early = torch.zeros(5, 8, 8)
    early[0, :4, :4] = 1
    early, late = early.view(5, 64), torch.rand(5, 64, generator=torch.Generator().manual_seed(0))
    tokens = sample(early, late, 2, 2)

    def budgets(policy):
        tile = torch.tensor(tiles_kept(policy, tokens)) // 64
        return tile.bincount(minlength=5).tolist()

    assert budgets(HiRED(n_keep=80, alpha=0.75)) == [60, 20, 0, 0, 0]
    assert budgets(HiRED(n_keep=180, alpha=0.75, exact_budget=False)) == [64, 64, 0, 0, 0]
    assert budgets(HiRED(n_keep=180, alpha=0.75)) == [64, 64, 18, 17, 17]
    # all marks on the upper half of the thumbnail's rows: strips make them the first two crops'
    assert budgets(HiRED(n_keep=80, alpha=0.75, **PUBLISHED)) == [60, 10, 10, 0, 0]


def test_other_images_are_ranked_by_the_late_layer_alone():
    """Oracle: the largest values of each; a plain image, a video, and one of which no place is known."""
    rows = torch.rand(2, 3, 34, generator=torch.Generator().manual_seed(1))
    grids = [((1, 4, 4),), ((2, 2, 2),), ()]
    spans = [slice(0, 16), slice(16, 24), slice(24, 34)]
    segments = tuple(Segment(span, grid) for span, grid in zip(spans, grids))
    tokens = VisualTokens(torch.zeros(34, 2), torch.zeros(1, 2), segments, {SIGNAL: rows})
    score = rows[1].sum(0).tolist()
    expected = []
    for span, k in zip(spans, (8, 4, 5)):
        expected += sorted(sorted(range(span.start, span.stop), key=lambda i: -score[i])[:k])
    assert HiRED(keep_ratio=0.5).select(tokens).keep.tolist() == expected


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"alpha": True}, {"layers": (0,)}, {"signal": "x"}])
def test_wrong_options_are_refused_by_value(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=option) as error:
        HiRED(**wrong)
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision"])
def test_generate_keeps_each_crops_share_and_every_newline(family):
    """Oracle: ``literal`` on the attention maps of the eager tower, whose tiles the model was given one by one."""
    model, inputs = tiny.build(family, "eager"), tiny.batch(family, "one")  # two crops side by side of 4 x 4 patches
    with vtprune.pruned(model, "hired", keep_ratio=0.5) as report:
        out = tiny.greedy(model, inputs, 2)
        [kept] = report.kept()
    tower = model.model.vision_tower
    maps = tower(inputs["pixel_values"][0], output_attentions=True).attentions
    if family == "llava_onevision":  # no class token: the attention that patches get
        early, late = (maps[layer].mean((1, 2)) for layer in (0, -1))
    else:
        early, late = (maps[layer][:, :, 0, 1:].sum(1) for layer in (0, -2))
    expected = literal(early, late, 2, 1, 0, 0, 24, 0.5)
    # the numbers of the patches that stand at the places kept
    found = [y * 4 + x + (view and (1 + x // 4) * 16 - x // 4 * 4) for view, _, y, x in kept.coords.tolist()]
    assert sorted(found) == expected
    newlines, text = 4, len(inputs["input_ids"][0]) - 52
    assert out.past_key_values.layers[0].keys.shape[2] == text + newlines + 24 + 1
    assert bool(report.notes) == (family == "llava_onevision")
