"""GlobalCom2, against the released code's results, a worked example and a literal loop over crops."""

import math

import pytest
import torch
import torch.nn.functional as F

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.tiles import anyres_tokens
from vtprune.blocks.anyres import anyres
from vtprune.policies.globalcom2 import GlobalCom2, crop_scales
from vtprune.tokens import ModelFacts, Segment, VisualTokens

SIGNAL = "cls_logits:-2"


def tokens_of(scores, columns, rows, **padding):
    """Tokens of tiles with these scores (1 + crops, side * side), in two heads whose mean they are."""
    heads = torch.stack([scores + 1, scores - 1])[None]
    return anyres_tokens(columns, rows, int(scores.shape[1] ** 0.5), {SIGNAL: heads}, **padding)


def whole(side, columns, rows):
    """The views of an image without padding."""
    tokens = tokens_of(torch.zeros(1 + columns * rows, side * side), columns, rows)
    return anyres(tokens.segments[0], tokens.coords)


def emitted(policy, tokens):
    """The numbers of the tiles' patches in the order in which they enter the LLM."""
    selection = policy.select(tokens)
    values = tokens.hidden[selection.keep] if selection.values is None else selection.values
    return values[:, 0].long().tolist()


def test_released_results_are_met(golden):
    """Oracle: the authors' code: scales to 1e-8, patches and their order exact, newlines at the end of every row."""
    paths = sorted(golden("globalcom2").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        columns, rows = case["grid_wh"].tolist()
        n = len(case["base_scores"])
        side, rate, temperature = math.isqrt(n), float(case["rate"]), float(case["temperature"])
        scores = torch.cat([case["base_scores"][None], case["crop_scores"]])
        tokens = anyres_tokens(columns, rows, side, {SIGNAL: scores[None, None]})
        scales = crop_scales(case["base_scores"], whole(side, columns, rows), rate, temperature)
        torch.testing.assert_close(scales, case["scales"], rtol=0, atol=1e-8)
        policy = GlobalCom2(keep_ratio=rate, temperature=temperature, exact_budget=False, order="method")
        found = emitted(policy, tokens)
        few = len(case["thumb_keep"])
        assert found[:few] == case["thumb_keep"].tolist(), path.name
        assert sorted(found[few:]) == (n + case["crop_mask"].flatten().nonzero().flatten()).tolist(), path.name
        assert torch.equal(with_newlines(found[few:], case, side, columns, rows), case["tokens_with_newline"])
        ordered = emitted(GlobalCom2(keep_ratio=rate, temperature=temperature, exact_budget=False), tokens)
        assert ordered == [*sorted(found[:few]), *found[few:]]


def with_newlines(patches, case, side, columns, rows):
    """The features of the crops' patches with a newline at the end of every row of the canvas, in float16."""
    n, feature, lines = side * side, case["crop_feat"].flatten(0, 1), [[] for _ in range(rows * side)]
    for patch in patches:
        crop, place = divmod(patch - n, n)
        lines[crop // columns * side + place // side].append(feature[patch - n])
    newline = torch.full((feature.shape[1],), float(case["newline_value"]))
    return torch.stack([token for line in lines for token in (*line, newline)]).half()


def test_worked_example():
    """A thumbnail of 4 x 4 patches whose mass lies in the first, and 2 x 2 crops."""
    score = torch.zeros(16)
    score[0] = 4.0
    views = whole(4, 2, 2)
    for temperature, expected in ((10, [0.2705, 0.2432, 0.2432, 0.2432]), (1, [0.4245, 0.1918, 0.1918, 0.1918])):
        scales = crop_scales(score, views, 0.25, temperature)
        assert [round(scale, 4) for scale in scales.tolist()] == expected


def literal(scores, columns, rows, top, left, k, temperature):
    """The patches kept for a budget of k, by the formulas in float64 and loops over the patches that exist."""
    scores = scores.double()
    n = scores.shape[1]
    side = math.isqrt(n)
    height, width = rows * side - 2 * top, columns * side - 2 * left
    crops = [[] for _ in range(rows * columns)]
    for y in range(height):
        for x in range(width):
            crop = (y + top) // side * columns + (x + left) // side
            crops[crop].append(((y + top) % side * side + (x + left) % side, y, x))
    total, keep_ratio = n + height * width, k / (n + height * width)
    sums = [0.0] * len(crops)
    for place in range(n):
        y, x = min(place // side // (side // rows), rows - 1), min(place % side // (side // columns), columns - 1)
        sums[y * columns + x] += float(scores[0, place])
    powers = [math.exp((s - max(sums)) / temperature) for s in sums]
    shares = [p / (sum(powers) + 1e-8) for p in powers]
    mean = sum(shares) / len(shares)
    few = n * k // total
    wish = [len(crop) * min(keep_ratio * (1 + share - mean), 1) for crop, share in zip(crops, shares)]
    wish = [w * (k - few) / sum(wish) for w in wish]
    budget = [min(int(w), len(crop)) for w, crop in zip(wish, crops)]
    while sum(budget) < k - few:
        for c in sorted(range(len(crops)), key=lambda c: int(wish[c]) - wish[c]):
            if sum(budget) < k - few and budget[c] < len(crops[c]):
                budget[c] += 1
    guide = F.interpolate(scores[0].view(1, 1, side, side), size=(height, width), mode="bilinear")[0, 0]
    kept = sorted(range(n), key=lambda place: (-float(scores[0, place]), place))[:few]
    for c, crop in enumerate(crops):
        own = torch.stack([scores[1 + c, place] for place, _, _ in crop])
        shown = torch.stack([guide[y, x] for _, y, x in crop])
        both = (own / own.norm() + shown / shown.norm()).tolist()
        best = sorted(range(len(crop)), key=lambda i: -both[i])[: budget[c]]
        kept += [(1 + c) * n + crop[i][0] for i in best]
    return sorted(kept)


@pytest.mark.parametrize(("columns", "rows", "top", "left"), [(2, 2, 0, 0), (2, 2, 2, 0), (3, 1, 0, 3), (1, 2, 1, 0)])
def test_counts_are_exact_and_padding_is_no_candidate(columns, rows, top, left):
    """Oracle: ``literal``."""
    scores = torch.randn(1 + columns * rows, 64, generator=torch.Generator().manual_seed(columns * 10 + rows))
    tokens = tokens_of(scores, columns, rows, top=top, left=left)
    for k in (1, 9, 40, len(tokens) - 3):
        for temperature in (1.0, 10.0):
            found = emitted(GlobalCom2(n_keep=k, temperature=temperature), tokens)
            assert len(found) == k
            assert sorted(found) == literal(scores, columns, rows, top, left, k, temperature)


def test_scores_that_are_all_zero_or_equal_give_the_first_patches():
    """Ties go to the lowest index, and a length of 0 is not divided by."""
    for value in (0.0, 3.0):
        found = emitted(GlobalCom2(keep_ratio=0.25), tokens_of(torch.full((3, 16), value), 2, 1))
        tile = torch.tensor(found) // 16
        assert tile.bincount().tolist() == [4, 4, 4]
        assert [patch % 16 for patch in found[:4]] == [0, 1, 2, 3]
    tiny_budget = GlobalCom2(keep_ratio=0.01, exact_budget=False)
    assert emitted(tiny_budget, tokens_of(torch.arange(48.0).view(3, 16), 2, 1)) == [15]


def test_other_images_are_ranked_by_score_alone():
    """Oracle: the largest means over heads of each; by falling score where the method's order is asked for."""
    rows = torch.randn(1, 3, 30, generator=torch.Generator().manual_seed(1))
    spans = [slice(0, 16), slice(16, 30)]
    segments = (Segment(spans[0], ((1, 4, 4),)), Segment(spans[1]))
    hidden = torch.arange(30.0)[:, None]
    tokens = VisualTokens(hidden, hidden[:1], segments, {SIGNAL: rows})
    score = rows[0].mean(0).tolist()
    best = [
        sorted(range(span.start, span.stop), key=lambda i: -score[i])[:k] for span, k in zip(spans, (4, 4), strict=True)
    ]
    assert emitted(GlobalCom2(n_keep=4, order="method"), tokens) == [*best[0], *best[1]]
    assert "without a thumbnail" in GlobalCom2(n_keep=4).select(tokens).note
    assert emitted(GlobalCom2(n_keep=4), tokens) == [*sorted(best[0]), *sorted(best[1])]


def test_the_methods_order_needs_positions_on_a_line():
    facts = ModelFacts("qwen2_5_vl", depth=4, width=8, class_token=False, line_positions=False)
    with pytest.raises(ValueError, match="qwen2_5_vl"):
        GlobalCom2(order="method").fitted(facts)
    assert GlobalCom2().fitted(facts).needs == {"vision_attention"}


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"temperature": True}, {"layer": "x"}, {"order": "any"}])
def test_wrong_options_are_refused_by_value(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=option) as error:
        GlobalCom2(**wrong)
    assert repr(value) in str(error.value)


def class_logits(model, pixels):
    """(tiles, patches): queries times keys of the class token in the last layer but one, scaled, mean over heads."""
    inputs = []
    attention = model.model.vision_tower.encoder.layers[-2].self_attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model.model.vision_tower(pixels)
    handle.remove()
    query, key = (
        project(inputs[0]).unflatten(-1, (attention.num_heads, -1)) for project in (attention.q_proj, attention.k_proj)
    )
    return torch.einsum("thd,tkhd->thk", query[:, 0], key)[:, :, 1:].mean(1) / query.shape[-1] ** 0.5


@torch.no_grad()
def test_generate_keeps_what_thumbnail_and_crops_rank_highest():
    """Oracle: ``literal`` on logits that were multiplied out by hand for every tile, sdpa and eager."""
    inputs = tiny.batch("llava_next_video", "one")  # two crops side by side of 4 x 4 patches
    for attention in ("sdpa", "eager"):
        model = tiny.build("llava_next_video", attention)
        with vtprune.pruned(model, "globalcom2", keep_ratio=0.25, temperature=0.5) as report:
            tiny.greedy(model, inputs, 2)
            [kept] = report.kept()
        found = [
            y * 4 + x if view == 0 else (1 + x // 4) * 16 + y * 4 + x % 4 for view, _, y, x in kept.coords.tolist()
        ]
        assert sorted(found) == literal(class_logits(model, inputs["pixel_values"][0]), 2, 1, 0, 0, 12, 0.5)
        assert report.notes == []


def test_the_methods_order_reaches_the_model():
    """Oracle: the bare decoder's logits on a prompt that was made of the kept features in order of their scores."""
    inputs, seen = tiny.batch("llava", "one"), {}
    model = tiny.build("llava")

    class Listen(GlobalCom2):
        def select(self, tokens):
            seen["score"], seen["hidden"] = self.score(tokens), tokens.hidden
            return super().select(tokens)

    with vtprune.pruned(model, Listen(n_keep=5, order="method")):
        out = tiny.greedy(model, inputs, 1)
    rows = seen["score"].sort(descending=True).indices[:5]
    assert rows.tolist() != sorted(rows.tolist())
    visual = tiny.visual(inputs)[0]
    words = model.get_input_embeddings()(inputs["input_ids"][0])
    first, last = visual.nonzero().flatten()[[0, -1]].tolist()
    prompt = torch.cat([words[:first], seen["hidden"][rows], words[last + 1 :]])[None]
    with torch.no_grad():
        logits = model.lm_head(model.model.language_model(inputs_embeds=prompt).last_hidden_state)[0, -1]
    torch.testing.assert_close(out.logits[0][0], logits.float(), rtol=0, atol=1e-6)
