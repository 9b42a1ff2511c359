"""HiPrune, against the released code's results, a worked example and loops over a grid."""

import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.tiles import anyres_tokens
from vtprune.policies.hiprune import HiPrune
from vtprune.tokens import ModelFacts, Segment, VisualTokens

SIGNALS = ("vision_attention:8", "vision_attention:-2")


def tokens_of(shallow, deep, *grids):
    """Images or videos with these grids and what their patches get in the two layers, (N,) each."""
    segments, places, start = [], [], 0
    for t, h, w in grids:
        places += [(0, f, r, c) for f in range(t) for r in range(h) for c in range(w)]
        segments.append(Segment(slice(start, len(places)), ((t, h, w),)))
        start = len(places)
    hidden = torch.zeros(start, 2)
    signals = dict(zip(SIGNALS, (shallow, deep), strict=True))
    return VisualTokens(hidden, hidden[:1], tuple(segments), signals, coords=torch.tensor(places))


def kept(policy, *args):
    return policy.select(tokens_of(*args)).keep.tolist()


def literal(shallow, deep, grid, k, alpha):
    """The rows kept, patch by patch: anchors with their neighbours in the order of their scores, then the rest."""
    (t, h, w), shallow, deep = grid, shallow.tolist(), deep.tolist()
    anchors = sorted(range(t * h * w), key=lambda i: (-shallow[i], i))[: round(k * alpha / 5)]
    taken = []
    for anchor in anchors:
        f, r, c = anchor // (h * w), anchor // w % h, anchor % w
        group = [(f, r, c), (f, r, c - 1), (f, r, c + 1), (f, r - 1, c), (f, r + 1, c)]
        for f, r, c in group:
            place = (f * h + r) * w + c
            if 0 <= r < h and 0 <= c < w and place not in taken and len(taken) < k:
                taken.append(place)
    rest = sorted(set(range(t * h * w)) - set(taken), key=lambda i: (-deep[i], i))
    return sorted(taken + rest[: k - len(taken)])


def test_released_results_are_met(golden):
    """Oracle: the authors' code; inside the grid it agrees with its fault but in one case, where a row is wrapped."""
    paths = sorted(golden("hiprune").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        options = {"n_keep": int(case["k_per_image"]), "alpha": float(case["alpha"])}
        side = int(case["width"])
        for shallow, deep, expected in zip(case["shallow"], case["deep"], case["keep"], strict=True):
            found = kept(HiPrune(**options, compat="released-row-wrap"), shallow, deep, (1, side, side))
            assert found == expected.tolist(), path.name
            inside = kept(HiPrune(**options), shallow, deep, (1, side, side))
            assert (inside == found) == (path.stem != "case01"), path.name


def test_worked_example():
    """The centre of 3 x 3 patches and its neighbours, then the best two of a deep layer."""
    shallow = torch.zeros(9)
    shallow[4] = 1
    deep = torch.tensor([0.3, 0.05, 0.2, 0.01, 0.02, 0.03, 0.25, 0.04, 0.1])
    assert kept(HiPrune(n_keep=7, alpha=1.0), shallow, deep, (1, 3, 3)) == [0, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("grid", [(1, 6, 4), (3, 4, 5), (1, 1, 7), (1, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0, 5.0])
def test_neighbours_are_those_of_the_grid_and_of_the_frame(grid, alpha):
    """Oracle: ``literal``; with many anchors they and their neighbours fill the budget in order of their scores."""
    n = grid[0] * grid[1] * grid[2]
    shallow, deep = torch.rand(2, n, generator=torch.Generator().manual_seed(n))
    for k in {1, max(1, n // 3), n}:
        assert kept(HiPrune(n_keep=k, alpha=alpha), shallow, deep, grid) == literal(shallow, deep, grid, k, alpha)


def test_a_budget_of_all_images_has_its_anchors_anywhere_and_neighbours_in_their_image():
    """Two 2 x 2 images: the last patch of the first is the only anchor, the first patch of the second is not beside."""
    shallow, deep = torch.zeros(8), torch.tensor([0.0, 1, 2, 3, 9, 8, 7, 6])
    shallow[3] = 1
    found = kept(HiPrune(n_keep=4, alpha=1.25, budget="prompt"), shallow, deep, (1, 2, 2), (1, 2, 2))
    assert found == [1, 2, 3, 4]
    alone = kept(HiPrune(n_keep=2, alpha=0.0), shallow, deep, (1, 2, 2), (1, 2, 2))
    assert alone == [2, 3, 4, 5]


def test_patches_without_a_place_have_no_neighbours():
    """Oracle: the best of the shallow layer, then the best of the deep one."""
    shallow, deep = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(12, 2)
    for coords in (None, torch.full((12, 4), -1)):
        signals = dict(zip(SIGNALS, (shallow, deep), strict=True))
        tokens = VisualTokens(hidden, hidden[:1], (Segment(slice(0, 12)),), signals, coords=coords)
        anchors = shallow.sort(descending=True).indices[:2].tolist()
        rest = [i for i in deep.sort(descending=True).indices.tolist() if i not in anchors]
        assert HiPrune(n_keep=5, alpha=2.0).select(tokens).keep.tolist() == sorted(anchors + rest[:3])


def test_tiles_share_a_budget_or_have_a_part_each():
    """Oracle: ``literal`` on each tile alone, a third of the budget for each of three equal ones."""
    shallow, deep = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(4))
    tokens = anyres_tokens(2, 1, 4, dict(zip(SIGNALS, (shallow, deep), strict=True)))
    found = tokens.hidden[HiPrune(n_keep=21, alpha=1.0, tiles="split").select(tokens).keep, 0].long().tolist()
    expected = [16 * tile + i for tile in range(3) for i in literal(shallow[tile], deep[tile], (1, 4, 4), 7, 1.0)]
    assert sorted(found) == expected
    pooled = tokens.hidden[HiPrune(n_keep=21, alpha=0.0).select(tokens).keep, 0].long().tolist()
    assert sorted(pooled) == sorted(deep.flatten().sort(descending=True).indices[:21].tolist())
    # beside the last column of the thumbnail lies nothing, beside the seam of two crops the other crop
    shallow = torch.zeros(3, 16)
    shallow[0, 3], shallow[1, 7] = 2, 1
    tokens = anyres_tokens(2, 1, 4, dict(zip(SIGNALS, (shallow, torch.zeros(3, 16)), strict=True)))
    found = tokens.hidden[HiPrune(n_keep=8, alpha=1.25).select(tokens).keep, 0].long().tolist()
    assert sorted(found) == sorted([3, 2, 7, 16 + 7, 16 + 6, 32 + 4, 16 + 3, 16 + 11])


@pytest.mark.parametrize(
    ("layers", "class_token", "expected"),
    [(24, True, (8, -2)), (32, False, (15, -1)), (3, True, (0, -2)), (1, False, (0, -1)), (0, True, (8, -2))],
)
def test_layers_follow_the_tower(layers, class_token, expected):
    """Oracle: the published layers of LLaVA-1.5 and Qwen2.5-VL."""
    facts = ModelFacts("some", depth=4, width=8, class_token=class_token, line_positions=True, tower_layers=layers)
    fitted = HiPrune().fitted(facts)
    assert fitted.needs == {f"vision_attention:{layer}" for layer in expected}
    assert HiPrune(shallow=1, deep=2).fitted(facts).needs == {"vision_attention:1", "vision_attention:2"}


@pytest.mark.parametrize("wrong", [{"alpha": 5.1}, {"alpha": "a"}, {"shallow": 1.5}, {"deep": True}, {"tiles": "each"}])
def test_wrong_options_are_refused_by_value(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=option) as error:
        HiPrune(**wrong)
    assert repr(value) in str(error.value)


@torch.no_grad()
def test_generate_keeps_what_the_attention_maps_say():
    """Oracle: ``literal`` on the columns of the eager tower's maps, class token's row included; eager and sdpa."""
    inputs = tiny.batch("llava", "one")
    maps = tiny.build("llava", "eager").model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    shallow, deep = (maps[layer][0].mean((0, 1))[1:] for layer in (0, -2))
    for attention in ("eager", "sdpa"):
        model = tiny.build("llava", attention)
        with vtprune.pruned(model, "hiprune", keep_ratio=0.5, alpha=1.0) as report:
            tiny.greedy(model, inputs, 2)
            [found] = report.kept()
        assert found.rows.tolist() == literal(shallow, deep, (1, 4, 4), 8, 1.0)
