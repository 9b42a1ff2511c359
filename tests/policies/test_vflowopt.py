"""VFlowOpt, against the released code's results, its published schedules, and pictures whose pixels are known."""

import json
import math

import pytest
import torch

import vtprune
from tests import tiny
from tests.test_patches import of_maps
from vtprune.apply import merge_rows
from vtprune.blocks.flow_schedule import PUBLISHED, schedule
from vtprune.blocks.graph_scores import hub_context
from vtprune.blocks.patch_entropy import entropy_share, grey_entropy, raw_rgb, wrapped
from vtprune.blocks.recycle import best_of_cells, cells_of
from vtprune.families.base import PIXEL_SCALES, family_of, grid_coords
from vtprune.patches import Pixels
from vtprune.pixels import in_patches
from vtprune.policies.base import ScorePolicy, top_rows
from vtprune.policies.vflowopt import VFlowOpt
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, VisualTokens


def cases(golden, name):
    """The golden cases whose names begin so, by name."""
    paths = sorted(golden("vflowopt").glob(f"{name}*.json"))
    assert paths
    return {path.stem: json.loads(path.read_text()) for path in paths}


def known(hidden, importance, segment, coords, site=BEFORE_LLM, rows=None):
    """Tokens of one image whose importance is known, as a policy finds it at later sites."""
    memory = {"vflowopt": importance}
    return VisualTokens(hidden, hidden[:1], (segment,), {}, site, rows, coords, memory=memory)


def test_released_maps_are_met(golden):
    """Oracle: the authors' code; pixels from 0 to 1, and negative ones that 8 bits wrap."""
    for name, case in cases(golden, "map").items():
        pixels, t, alpha = torch.tensor(case["pixel_values"]), case["t"], case["alpha_v"]
        for maps, image, entropy, expected in zip(
            torch.tensor(case["attn"]), pixels, case["entropy"], case["importance"], strict=True
        ):
            values = in_patches(image[None], (14, 14))[0]
            torch.testing.assert_close(
                grey_entropy(wrapped(values)), torch.tensor(entropy).flatten(), rtol=1e-4, atol=1e-4, msg=name
            )
            one = Pixels(values, None, None, 0, torch.arange(9))
            found = hub_context(of_maps(maps.clamp(min=1e-30)), t)
            found = found + alpha * entropy_share(one, torch.ones(9, dtype=torch.bool), "official_wrap", None, None)
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5, msg=name)


def test_released_recycling_is_met(golden):
    """Oracle: the authors' code, on a base view and a tiled grid whose rows end in newlines."""
    for name, case in cases(golden, "merge").items():
        feat, imp = torch.tensor(case["feat"]), torch.tensor(case["imp"])
        side, rows, columns = case["base_side"], case["tile_rows"], case["tile_cols_with_newline"]
        tile = grid_coords(1, rows, columns, view=1)
        tile[columns - 1 :: columns] = -1
        segment = Segment(slice(0, len(feat)), ((1, side, side), (1, rows, columns - 1)))
        policy = VFlowOpt(r_v=case["keep_ratio"], m=case["m"])
        assert len(feat) - policy.keep_at(BEFORE_LLM, len(feat)) == case["reduce_tokens"]
        tokens = known(feat, imp, segment, torch.cat([grid_coords(1, side, side), tile]))
        found = policy.select(tokens)
        assert found.keep.tolist() == case["kept_idx"], name
        torch.testing.assert_close(merge_rows(feat, found), torch.tensor(case["out_feat"]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(imp[found.keep], torch.tensor(case["out_imp"]))


def test_released_stages_are_met(golden):
    """Oracle: the authors' masks over the prompts that enter the two inner stages."""
    for name, case in cases(golden, "llm").items():
        imp, start = torch.tensor(case["importance"]), case["image_start"]
        first, second = case["stage_keep"]
        policy, rows = VFlowOpt(r_1=first, r_2=second), torch.arange(len(imp))
        for site, mask in zip(policy.sites[1:], case["keep_masks"], strict=True):
            hidden = torch.zeros(len(rows), 2)
            tokens = known(hidden, imp, Segment(slice(0, len(rows)), ((1, 1, len(imp)),)), None, site, rows)
            keep = policy.select(tokens).keep
            mask = torch.tensor(mask, dtype=torch.bool)
            assert keep.tolist() == mask[start : start + len(rows)].nonzero()[:, 0].tolist(), name
            assert mask[:start].all() and mask[start + len(rows) :].all()
            rows = rows[keep]


def test_worked_example():
    """What the one hub sees, and half of the softmax of entropies 0 to 3."""
    maps = torch.tensor([[[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.5, 0.1, 0.3, 0.1], [0.4, 0.2, 0.2, 0.2]]])
    # 1, 2, 4 and 8 greys, all as often
    grey = torch.stack([torch.arange(8) // (8 >> i) * 20.0 for i in range(4)])
    rgb = grey[:, None].expand(-1, 3, -1)
    assert torch.allclose(grey_entropy(rgb), torch.arange(4.0), atol=1e-6)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    values = (rgb / 255 - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
    assert torch.equal(raw_rgb(values, mean, std), rgb)
    one = Pixels(values, mean, std, 0, torch.arange(4))
    share = entropy_share(one, torch.ones(4, dtype=torch.bool), "raw_rgb", None, None)
    found = hub_context(of_maps(maps), 1.5) + 0.5 * share
    torch.testing.assert_close(found, torch.tensor([0.7160, 0.1436, 0.2184, 0.4220]), rtol=0, atol=5e-5)
    blank = Pixels(values, None, None, 0, torch.arange(4))
    with pytest.raises(ValueError, match="give pixel_mean and pixel_std"):
        entropy_share(blank, torch.ones(4, dtype=torch.bool), "raw_rgb", None, None)
    assert torch.equal(entropy_share(blank, torch.ones(4, dtype=torch.bool), "raw_rgb", mean, std), share)


def test_pixels_of_an_8_bit_picture_come_back_whole():
    """Oracle: the picture."""
    rgb = torch.randint(0, 256, (3, 3, 50), generator=torch.Generator().manual_seed(0)).float()
    for mean, std in PIXEL_SCALES.values():
        values = (rgb / 255 - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
        assert torch.equal(raw_rgb(values, mean, std), rgb)


def test_cells_are_squares_of_any_side():
    """Oracle: each token's row and column over the side, rounded down; nobody is of a cell without a place."""
    coords = torch.cat([grid_coords(1, 5, 7), grid_coords(1, 4, 3, view=1), torch.full((2, 4), -1)])
    segment = torch.tensor([0] * 20 + [1] * 15 + [0] * 14)
    for m in (1.0, 1.5, 2.4, 30.0):
        cell = cells_of(coords, segment, m)
        keys = [(s, v, r // m, c // m) for s, (v, _, r, c) in zip(segment.tolist(), coords.tolist(), strict=True)]
        same = [[a == b for b in keys[:-2]] for a in keys[:-2]]
        assert (cell[:-2, None] == cell[:-2]).tolist() == same and cell[-2:].tolist() == [-1, -1]
    best = best_of_cells(torch.tensor([1.0, 3, 3, 2, 5, 4]), torch.tensor([0, 0, 0, 1, -1, 1]))
    assert best.tolist() == [1, 1, 1, 5, -1, 5]


@pytest.mark.parametrize(("ratio", "solved"), [(0.5, 0.4830), (0.25, 0.8700), (0.1, 0.6011)])
def test_published_schedules(ratio, solved):
    """Oracle: the publication's table, and r_2 solved from the mean over 28 layers."""
    published = PUBLISHED[ratio]
    assert VFlowOpt(schedule=ratio).numbers == published
    numbers = VFlowOpt(keep_ratio=ratio).numbers
    assert [getattr(numbers, name) for name in ("t", "m", "r_v", "r_1")] == pytest.approx(
        [getattr(published, name) for name in ("t", "m", "r_v", "r_1")]
    )
    assert numbers.r_2 == pytest.approx(solved, abs=3e-4)  # the table is rounded
    given = VFlowOpt(keep_ratio=ratio, r_v=published.r_v, r_1=0.8).numbers
    rest = 28 * ratio - 9 * published.r_v * 1.8
    assert given.r_2 == pytest.approx(min(1.0, rest / (10 * published.r_v * 0.8)))


@pytest.mark.parametrize("depth", [4, 6, 16, 24, 28, 32, 36, 48, 80])
def test_layers_have_what_is_asked_for(depth):
    """Oracle: the mean over the layers of what each has; shares fall from site to site, and rise with the ratio."""
    policy = VFlowOpt().fitted(ModelFacts("some", depth, 8, False, True))
    first, second = policy.layers
    before = (0.0, 0.0, 0.0)
    for percent in range(1, 101):
        one = schedule(percent / 100, policy.layers, depth)
        shares = (one.r_v, one.r_v * one.r_1, one.r_v * one.r_1 * one.r_2)
        assert 1 + 1e-9 >= shares[0] >= shares[1] - 1e-9 and shares[1] >= shares[2] - 1e-9 and shares[2] > 0
        mean = (first * shares[0] + (second - first) * shares[1] + (depth - second) * shares[2]) / depth
        assert mean == pytest.approx(percent / 100)
        assert all(now >= then - 1e-9 for now, then in zip(shares[:2], before, strict=False))
        before = shares


def test_pools_without_places_and_videos_are_dropped_from():
    """Oracle: the rounded count of the best, where nothing is recycled; of an image a cell more."""
    score = torch.rand(60, generator=torch.Generator().manual_seed(0))
    coords, hidden = grid_coords(1, 6, 10), torch.zeros(60, 2)
    policy = VFlowOpt(r_v=0.3, m=3.0)
    expected = top_rows(score, 60 - round(60 * 0.7)).tolist()
    for kind, grids in (("video", ((1, 6, 10),)), ("image", ())):
        tokens = known(hidden, score, Segment(slice(0, 60), grids, kind), coords)
        found = policy.select(tokens)
        assert found.keep.tolist() == expected and found.merge is None
    image = known(hidden, score, Segment(slice(0, 60), ((1, 6, 10),)), coords)
    assert VFlowOpt(r_v=0.3, m=3.0, recycle=False).select(image).keep.tolist() == expected
    found = policy.select(image)
    low = score.sort().indices[: 42 + int(60 / 9)].tolist()
    cells = {(i // 10 // 3, i % 10 // 3) for i in low}
    assert len(found.keep) == 60 - len(low) + len(cells)


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next", "qwen2_5_vl"])
def test_a_wrapped_model_keeps_what_is_looked_at(family):
    """Oracle: with every patch a hub, the rows of largest ``vision_attention``, as another policy gets it; newlines
    stay. Inside, a part of those by the same importance."""

    class Listen(ScorePolicy):
        needs = frozenset({"vision_attention:1" if family == "llava_next" else "vision_attention"})

        def score(self, tokens):
            scores.append(tokens.signals[next(iter(self.needs))])
            return scores[-1]

    model, inputs, scores = tiny.build(family), tiny.batch(family, "one"), []
    with vtprune.pruned(model, Listen(keep_ratio=0.4)):
        tiny.greedy(model, inputs, 1)
    with vtprune.pruned(model, "vflowopt", keep_ratio=0.4, t=0.0, recycle=False, newlines=False) as report:
        tiny.greedy(model, inputs, 1)
        before, kept = [record.before[0] for record in report.sites], [record.kept[0] for record in report.sites]
        assert [record.site for record in report.sites] == [BEFORE_LLM, 1, 3]
    assert before[0] == len(scores[0]) and [len(k) for k in kept] == before[1:] + [len(kept[-1])]
    for rows in kept:
        assert rows.tolist() == top_rows(scores[0], len(rows)).tolist()


SIDES = {"llava": 7, "llava_next": 14, "llava_onevision": 7, "qwen2_5_vl": 14, "mistral3": 7}


def tokens_entropy(family, rgb, sizes):
    """(N,) float64: the mean entropy of the patches of each token of plain images, pixel by pixel."""
    side, merge, found = SIDES[family], {"qwen2_5_vl": 2, "mistral3": 2}.get(family, 1), []
    for image, (height, width) in zip(rgb, sizes, strict=True):
        step = side * merge
        for top in range(0, height, step):
            for left in range(0, width, step):
                parts = []
                for y in range(top, top + step, side):
                    for x in range(left, left + step, side):
                        grey = [round(0.3333 * float(v)) for v in image[:, y : y + side, x : x + side].sum(0).flatten()]
                        p = [grey.count(g) / len(grey) for g in set(grey)]
                        parts.append(-sum(q * math.log2(q) for q in p))
                found.append(sum(parts) / len(parts))
    return torch.tensor(found)


class Entropy(ScorePolicy):
    """Listens to the entropies of what the picture shows."""

    needs = frozenset({"pixels"})
    found: list

    def score(self, tokens):
        def entropy(pixels, there):
            return grey_entropy(raw_rgb(pixels.values, pixels.mean, pixels.std))

        self.found.append(tokens.signals["pixels"].scores(entropy))
        return self.found[-1]


def picture(sizes, seed=0):
    """Pictures of 0 to 255 with few greys in some places and many in others."""
    generator, found = torch.Generator().manual_seed(seed), []
    for height, width in sizes:
        noise = torch.randint(0, 256, (3, height, width), generator=generator)
        few = 1 + torch.arange(width) * 80 // width
        found.append((noise // few * few).clamp(max=255).float())
    return found


def normalised(rgb, model):
    mean, std = family_of(model).pixel_scale(model)
    return [(x / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None] for x in rgb]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mistral3"])
def test_pixels_find_their_tokens(family):
    """Oracle: ``tokens_entropy`` of two pictures; windows, merged patches, padding to the larger picture."""
    inputs, listen = tiny.batch(family, "two_images", torch.float32), Entropy(keep_ratio=0.5)
    listen.found = []
    model = tiny.build(family, "sdpa", torch.float32)
    if family == "qwen2_5_vl":
        sizes = [(int(h) * 14, int(w) * 14) for _, h, w in inputs["image_grid_thw"]]
    elif family == "mistral3":
        sizes = [(int(h), int(w)) for h, w in inputs["image_sizes"]]
    else:
        sizes = [tuple(inputs["pixel_values"].shape[-2:])] * len(inputs["pixel_values"])
    rgb = picture(sizes)
    values = normalised(rgb, model)
    if family == "qwen2_5_vl":
        # blocks of 2 x 2 patches, of each its colours, two frames alike, rows and columns
        blocks = [v.view(3, h // 28, 2, 14, w // 28, 2, 14) for v, (h, w) in zip(values, sizes, strict=True)]
        patches = [b.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3)[:, :, None].expand(-1, -1, 2, -1, -1) for b in blocks]
        inputs["pixel_values"] = torch.cat(patches).flatten(1)
    else:
        made = torch.zeros_like(inputs["pixel_values"])
        for image, value in zip(made, values, strict=True):
            image[:, : value.shape[1], : value.shape[2]] = value
        inputs["pixel_values"] = made
    with vtprune.pruned(model, listen):
        tiny.greedy(model, inputs, 1)
    expected = tokens_entropy(family, rgb, sizes).float()
    torch.testing.assert_close(torch.cat(listen.found), expected, rtol=1e-4, atol=1e-4)


def test_pixels_that_seem_to_be_normalised_otherwise_are_told():
    """Oracle: a picture, and the same normalised by half the published standard deviation."""
    model, inputs = tiny.build("llava", "sdpa", torch.float32), tiny.batch("llava", "one", torch.float32)
    values = normalised(picture([(28, 28)]), model)[0][None]
    mean, std = family_of(model).pixel_scale(model)
    for scale, options, told in ((1, {}, False), (2, {}, True), (2, {"pixel_std": tuple(s / 2 for s in std)}, False)):
        inputs["pixel_values"] = values * scale
        with vtprune.pruned(model, "vflowopt", alpha=0.5, pixel_mean=mean, **options) as report:
            tiny.greedy(model, inputs, 1)
            assert any("do not come back into 0..255" in note for note in report.notes) == told


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next", "internvl", "idefics3", "qwen3_vl"])
def test_entropy_weighs_in_whatever_the_model(family):
    """Oracle: the same sample alone; and with the sign of alpha turned other tokens are kept."""
    model, samples, kept = tiny.build(family), tiny.samples(family, "ragged"), []
    for alpha in (1.0, -1.0):
        with vtprune.pruned(model, "vflowopt", keep_ratio=0.4, alpha=alpha, recycle=False) as report:
            tiny.greedy(model, tiny.collate(family, samples), 1)
            together, alone = [rows.tolist() for rows in report.sites[0].kept], []
            for sample in samples:
                tiny.greedy(model, tiny.collate(family, [sample]), 1)
                alone += [rows.tolist() for rows in report.sites[0].kept]
        assert together == alone
        kept.append(together)
    assert kept[0] != kept[1]


def test_pixels_are_refused_where_nobody_knows_them():
    """A tower that gets patches and no pixels, at once; one whose order of them is not known, when it gets them."""
    with pytest.raises(ValueError, match="'pixels' are seen where the vision tower cuts them"):
        vtprune.wrap(tiny.build("ernie4_5_vl_moe"), "vflowopt", alpha=0.5)
    model = tiny.build("kimi_k25")
    with pytest.raises(NotImplementedError, match="which pixels .* makes which visual token of"):
        with vtprune.pruned(model, "vflowopt", alpha=0.5):
            tiny.greedy(model, tiny.batch("kimi_k25", "one"), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": 0.3},
        {"r_v": 0},
        {"r_2": 1.5},
        {"t": -1},
        {"m": 0.5},
        {"alpha": 1.5},
        {"layers": (3,)},
        {"layer": "last"},
        {"recycle": "yes"},
        {"entropy_source": "grey"},
        {"pixel_mean": 0.5},
        {"pixel_std": (1, 0, 1)},
    ],
)
def test_wrong_options_are_refused_by_value(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=option) as error:
        VFlowOpt(**wrong)
    assert repr(value) in str(error.value)
    with pytest.raises(ValueError, match="schedule.*0.25 and 0.5"):
        VFlowOpt(schedule=0.25, keep_ratio=0.5)
