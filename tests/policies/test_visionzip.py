"""VisionZip, against the released code's tokens, a worked example and the method spelt out on a real CLIP tower."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample, serve
from tests.policies.golden import load
from tests.test_unprojected import tower_of
from vtprune.apply import merge_rows
from vtprune.blocks.key_merge import zip_rows
from vtprune.policies.visionzip import VisionZip
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune.unprojected import Unprojected


def sample_of(hidden, rows, key):
    """Visual tokens of one image: hidden (1 + N, C) and key (N, d) of the tower, class token first; rows (heads, N)."""
    x = hidden[1:]
    signals = {
        "cls_attention:-2": rows[None],
        "vision_keys:-2": key.T[None],
        "unprojected": Unprojected(x, (hidden[0],), lambda values: values),
    }
    return VisualTokens(x, x[:1], (Segment(slice(0, len(x))),), signals)


def literal(hidden, score, key, dominant, contextual, how="add"):
    """The method, token by token: rows of the dominant ones and of the anchors, and all tokens, class token first."""
    n = len(score)
    top = sorted(sorted(range(n), key=lambda i: -float(score[i]))[:dominant])
    rest = [i for i in range(n) if i not in top]
    anchors = rest[:: max(1, len(rest) // contextual)][:contextual]
    unit = key.double() / key.double().norm(dim=1, keepdim=True)
    members = {a: [] for a in anchors}
    for i in rest:
        if i not in anchors:
            members[max(anchors, key=lambda a: float(unit[i] @ unit[a]))].append(i)
    merged = []
    for a, joined in members.items():
        x = hidden[1:]
        if how == "mean":
            merged.append(torch.stack([x[a], *(x[i] for i in joined)]).mean(0))
        else:
            merged.append(x[a] + torch.stack([x[i] for i in joined]).mean(0) if joined else x[a])
    return top, anchors, torch.stack([hidden[0], *hidden[1:][top], *merged])


def test_released_results_are_met(golden):
    """Oracle: the authors' code: which tokens stay, whom the others join, and all that leaves the tower."""
    paths = sorted(golden("visionzip").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        dominant, contextual = int(case["dominant"]), int(case["contextual"])
        k = 1 + dominant + contextual
        for b, hidden in enumerate(case["hidden"]):
            rows, key, tokens = case["cls_attn"][b], case["key"][b, 1:], case["tokens"][b]
            tolerance = 2e-3 if hidden.dtype == torch.float16 else 1e-5
            zipped = zip_rows(rows.sum(0), key, dominant, contextual)
            assert zipped.dominant.tolist() == case["dominant_ids"][b].tolist(), path.name
            assert zipped.anchors.tolist() == case["anchor_ids"][b].tolist(), path.name
            assert zipped.to.tolist() == case["merge_to"][b].tolist(), path.name
            merged = zipped.anchored(hidden[1:], "add")
            torch.testing.assert_close(merged, tokens[1 + dominant :], rtol=0, atol=tolerance)
            if k < len(key):  # else as many tokens as patches are asked for, and all of them stay
                policy = VisionZip(n_keep=k, contextual_share=contextual / k, space="tower")
                answer = policy.select(sample_of(hidden, rows, key))
                assert len(answer.keep) == k and {*zipped.rows.tolist()} < {*answer.keep.tolist()}
                torch.testing.assert_close(answer.values, tokens, rtol=0, atol=tolerance)


HIDDEN = torch.tensor([[9, 9], [1, 0], [0, 1], [2, 0], [0, 2], [4.0, 4]])
KEY = torch.tensor([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1]])
ROWS = torch.tensor([[0.1, 0.4, 0.1, 0.1, 0.2]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[9, 9], [0, 1], [3, 0], [4, 6]]),
        ({"merge": "mean"}, [[9, 9], [0, 1], [1.5, 0], [2, 3]]),
        ({"order": "raster"}, [[9, 9], [3, 0], [0, 1], [4, 6]]),
        ({"contextual_share": 0.0}, [[9, 9], [1, 0], [0, 1], [4, 4]]),
    ],
)
def test_worked_example(options, expected):
    """Patch 1 is looked at most; 0 and 3 are anchors, which 2 and 4 join. Without anchors patches 0, 1 and 4 stay."""
    policy = VisionZip(n_keep=4, space="tower", **{"contextual_share": 0.5, **options})
    answer = policy.select(sample_of(HIDDEN, ROWS, KEY))
    assert answer.values.tolist() == expected and len(answer.keep) == 4


@pytest.mark.parametrize(("k", "dominant", "contextual"), [(64, 54, 10), (128, 108, 20), (192, 162, 30)])
def test_published_budgets_are_split_as_published(k, dominant, contextual):
    """Oracle: the published tables; the dominant ones include the class token."""
    draw = torch.Generator().manual_seed(k)
    hidden, key = torch.randn(577, 4, generator=draw), torch.randn(576, 4, generator=draw)
    rows = torch.rand(2, 576, generator=draw)
    answer = VisionZip(keep_ratio=k / 576, space="tower").select(sample_of(hidden, rows, key))
    top, _, tokens = literal(hidden, rows.mean(0), key, dominant - 1, contextual)
    assert len(top) + 1 == dominant and len(answer.values) == k
    torch.testing.assert_close(answer.values, tokens, rtol=0, atol=1e-5)


def test_edges():
    """One token, all equal, as many as there are: no nan, the number that was asked for, the lowest of equals."""
    one = VisionZip(n_keep=1, space="tower").select(sample_of(HIDDEN[:2], ROWS[:, :1], KEY[:1]))
    assert one.keep.tolist() == [0] and one.values is None
    two = VisionZip(n_keep=1, space="tower").select(sample_of(HIDDEN, ROWS, KEY))
    assert two.keep.tolist() == [1] and two.values.tolist() == [[0, 1]], "a class token alone says nothing of the image"
    equal = sample_of(torch.zeros(10, 3), torch.full((2, 9), 0.1), torch.zeros(9, 3))
    for k in range(1, 10):
        for options in ({"space": "tower"}, {"space": "decoder"}):
            answer = VisionZip(n_keep=k, contextual_share=0.4, **options).select(equal)
            assert len(answer.keep) == k
            made = merge_rows(equal.hidden, answer)
            assert made.shape == (k, 3) and not made.isnan().any()
    answer = VisionZip(n_keep=4, contextual_share=0.25, space="decoder").select(equal)
    assert answer.keep.tolist() == [0, 1, 2, 3] and answer.merge.tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("budget", ["segment", "prompt"])
def test_after_the_projector_tokens_are_averaged_in_place(budget):
    """Oracle: ``literal`` on every image or on all, with averages and without a class token."""
    policy = VisionZip(keep_ratio=0.4, contextual_share=0.3, budget=budget)
    [(tokens, answer)] = serve(policy, Sample("mixed"))
    score, key = tokens.signals["cls_attention:-2"][0].mean(0), tokens.signals["vision_keys:-2"].mean(0).T
    spans = [s.span for s in tokens.segments] if budget == "segment" else [slice(0, len(tokens))]
    keep, made = [], []
    for span in spans:
        k = max(1, round(0.4 * (span.stop - span.start)))
        contextual = round(k * 0.3)
        hidden = torch.cat([tokens.hidden[:1], tokens.hidden[span]])
        top, anchors, all_of_them = literal(hidden, score[span], key[span], k - contextual, contextual, "mean")
        keep += [span.start + i for i in top + anchors]
        made += list(all_of_them[1:])
    order = sorted(range(len(keep)), key=keep.__getitem__)
    assert answer.keep.tolist() == sorted(keep)
    torch.testing.assert_close(merge_rows(tokens.hidden, answer), torch.stack([made[i] for i in order]))


def test_it_fits_itself_to_the_model():
    facts = {"model_type": "llava", "depth": 4, "width": 8}
    published = VisionZip(layer=-3).fitted(ModelFacts(class_token=True, line_positions=True, **facts))
    assert published.needs == {"cls_attention:-3", "vision_keys:-3", "unprojected"} and published.notes == ()
    for class_token, line in ((False, True), (True, False)):
        other = VisionZip().fitted(ModelFacts(class_token=class_token, line_positions=line, **facts))
        assert "unprojected" not in other.needs and "after the projector" in other.notes[-1]
        assert ("vision_attention" in other.needs) == (not class_token)


@pytest.mark.parametrize(
    ("option", "value"),
    [("contextual_share", bad) for bad in (-0.1, 1, True, "half", float("nan"))]
    + [("merge", "sum"), ("order", "sorted"), ("space", "both")],
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        VisionZip(**{option: value})
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("order", ["method", "raster"])
def test_a_wrapped_model_sees_the_tokens_made_by_hand(order):
    """Oracle: ``literal`` on maps, keys and hidden states of the tower, the model's projector, and ``generate`` on a
    prompt made of that."""
    model, inputs = tiny.build("llava", "eager", torch.float64), tiny.batch("llava", "one")
    blocks, states = tower_of(model, inputs["pixel_values"])
    maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    attn = blocks[-2].self_attn
    key = attn.k_proj(blocks[-2].layer_norm1(states[-3][0]))[1:].unflatten(1, (attn.num_heads, -1)).mean(1)
    n = len(key)
    k = round(0.6 * n)
    contextual = round(0.4 * k)
    options = {"keep_ratio": 0.6, "contextual_share": 0.4, "order": order}
    top, anchors, x = literal(states[-2][0], maps[-2][0, :, 0, 1:].mean(0), key, k - contextual - 1, contextual)
    if order == "raster":
        x = x[[0, *(1 + torch.tensor(top + anchors).argsort()).tolist()]]
    image = model.model.multi_modal_projector(x[None])
    prompt, columns = oracle.embeddings(model, inputs), tiny.visual(inputs)[0].nonzero().flatten()
    made = torch.cat([prompt[:, : columns[0]], image, prompt[:, columns[-1] + 1 :]], 1)
    expected = tiny.greedy(model, {"inputs_embeds": made, "attention_mask": torch.ones(made.shape[:2]).long()}, 4)
    with vtprune.pruned(model, "visionzip", **options) as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.tokens[0] == (n, k) and report.notes == []
    torch.testing.assert_close(torch.cat(found.logits), torch.cat(expected.logits), rtol=0, atol=1e-9)


def test_where_no_class_token_can_be_added_it_is_told():
    """InternVL's projector takes four patches at a time; the count is met all the same."""
    model, inputs = tiny.build("internvl"), tiny.batch("internvl", "one")
    with vtprune.pruned(model, "visionzip", keep_ratio=0.4) as report:
        tiny.greedy(model, inputs, 1)
        [(before, after)] = report.tokens
        assert after == round(0.4 * before)
        assert any("no class token was added" in note for note in report.notes)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["visionzip", "vispruner", "prumerge"])
def test_keeping_everything_changes_no_bit(name, family):
    """Oracle: the unwrapped model."""
    model, inputs = tiny.build(family, "sdpa", torch.float32), tiny.batch(family, "padded", torch.float32)
    expected = oracle.text_logits(model, inputs)
    with vtprune.pruned(model, name, keep_ratio=1.0, positions="original"):
        assert all(map(torch.equal, oracle.text_logits(model, inputs), expected))
