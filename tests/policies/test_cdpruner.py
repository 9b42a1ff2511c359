"""CDPruner, against the released code's picks, determinants of all candidates, and picks by hand in wrapped models."""

import numpy as np
import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.test_idpruner import embedded, kept, masked, noise, sample_of
from vtprune.blocks.greedy_dpp import clip_relevance, unit_scale
from vtprune.policies.cdpruner import CDPruner
from vtprune.tokens import Segment, VisualTokens


def literal(features, relevance, k):
    """In float64: always the token with which the determinant of L is largest; relevance is scaled to 0..1 here."""
    x, r = features.double().numpy(), np.asarray(relevance, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    r = (r - r.min() + 1e-6) / (r.max() - r.min())
    kernel, order = r[:, None] * (x @ x.T) * r, []
    while len(order) < k:
        left = [j for j in range(len(x)) if j not in order]
        order.append(max(left, key=lambda j: np.linalg.slogdet(kernel[np.ix_([*order, j], [*order, j])])[1]))
    return order


def test_released_results_are_met(golden):
    """Oracle: the authors' code, which scales relevance over all images of a call."""
    paths = sorted(golden("cdpruner").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        images, n, _ = case["feat"].shape
        relevance = clip_relevance(case["image_embeds"], case["text_embeds"])
        torch.testing.assert_close(unit_scale(relevance), case["relevance"], atol=1e-5, rtol=0)
        expected = (case["keep"] + n * torch.arange(images)[:, None]).flatten().tolist()
        for compat in ("released-shared-scale", "released-shared-scale,released-no-rank-guard"):
            policy = CDPruner(n_keep=case["k"].item(), relevance=relevance.flatten(), compat=compat)
            assert kept(policy, sample_of(case["feat"].flatten(0, 1), *[n] * images)) == expected, path.name


@pytest.mark.parametrize(("n", "width", "k"), [(2, 3, 1), (9, 9, 7), (30, 24, 12), (61, 40, 10)])
def test_picks_are_those_of_largest_determinants(n, width, k):
    """Oracle: ``literal``."""
    for seed in range(3):
        features, relevance = noise(n, width, seed=seed), noise(n, seed=10 + seed)
        found = kept(CDPruner(n_keep=k, relevance=relevance), sample_of(features))
        assert found == sorted(literal(features, relevance, k))


def test_worked_example():
    """The token most like the text, 0, is the first to lose: relevance is minus the cosine."""
    x = torch.tensor([[1.0, 0], [0.96, 0.28], [0, 1], [0.6, 0.8]])
    image, text = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]]), torch.tensor([[1.0, 0]])
    relevance = clip_relevance(image, text)
    torch.testing.assert_close(relevance, torch.tensor([-1.0, 0, -0.6, -0.8]))
    torch.testing.assert_close(unit_scale(relevance), torch.tensor([0.0, 1, 0.4, 0.2]), atol=2e-6, rtol=0)
    assert kept(CDPruner(n_keep=2, relevance=relevance), sample_of(x)) == [1, 2]


def test_relevance_of_several_parts_is_their_mean():
    image, text = noise(5, 6), noise(3, 6, seed=1)
    cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(clip_relevance(image, text), -cosine.mean(1))


def test_beyond_the_rank_the_most_relevant_follow():
    """Six dimensions hold six picks. The released code goes on with nan, repeats itself and keeps fewer than asked."""
    features, relevance = noise(60, 6), noise(60, seed=1)
    tokens, asked = sample_of(features), {"n_keep": 20, "relevance": relevance}
    first = literal(features, relevance, 6)
    rest = [i for i in relevance.argsort(descending=True).tolist() if i not in first][:14]
    assert kept(CDPruner(**asked), tokens) == sorted([*first, *rest])
    released = kept(CDPruner(**asked, compat="released-no-rank-guard"), tokens)
    assert set(first) <= set(released) and len(released) < 20


def test_equal_relevance_leaves_diversity_alone():
    """Oracle: pivoted elimination of the unit vectors, where tokens that repeat are never picked twice."""
    x = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    assert kept(CDPruner(n_keep=3, relevance=torch.full((6,), 0.3)), sample_of(x)) == [0, 2, 4]
    assert kept(CDPruner(n_keep=1, relevance=torch.ones(1)), sample_of(torch.ones(1, 3))) == [0]


def test_images_have_their_own_scale_and_search():
    """Oracle: ``literal`` on each image; less relevant images lose nothing unless images share a budget."""
    x, relevance = noise(24, 16), torch.cat([noise(14, seed=1), noise(10, seed=2) - 9])
    tokens = sample_of(x, 14, 10)
    own = sorted(literal(x[:14], relevance[:14], 7)) + sorted(14 + i for i in literal(x[14:], relevance[14:], 5))
    assert kept(CDPruner(relevance=relevance), tokens) == own
    shared = kept(CDPruner(relevance=relevance, budget="prompt"), tokens)
    assert shared == sorted(literal(x, relevance, 12)) != own


def question_sample(features, text, position, text_position):
    segments = (Segment(slice(0, len(features))),)
    return VisualTokens(features, text, segments, position=position, text_position=text_position)


def test_the_question_stands_in_for_the_text_tower():
    """Oracle: ``literal`` with mean cosines to the text after the image; all text where none follows."""
    x, text = noise(20, 12), noise(7, 12, seed=1)
    places = torch.arange(20) + 3
    cosine = torch.nn.functional.cosine_similarity(x[:, None], text[None], dim=-1)
    after = question_sample(x, text, places, torch.tensor([0, 1, 2, 23, 24, 25, 26]))
    assert kept(CDPruner(), after) == sorted(literal(x, cosine[:, 3:].mean(1), 10))
    between = question_sample(
        x, text, torch.cat([torch.arange(9), torch.arange(11) + 12]), torch.tensor([9, 10, 11, 23, 24, 25, 26])
    )
    assert kept(CDPruner(), between) == sorted(literal(x, cosine[:, 3:].mean(1), 10))
    before = question_sample(x, text, places + 4, torch.arange(7))
    assert kept(CDPruner(), before) == sorted(literal(x, cosine.mean(1), 10))
    nothing = question_sample(x, text[:0], places, torch.arange(0))
    assert len(kept(CDPruner(), nothing)) == 10


def test_what_stands_in_is_told():
    assert "word-embedding relevance" in CDPruner().notes[0]
    assert "given relevance" in CDPruner(relevance=torch.ones(3)).notes[0]
    assert "computed relevance" in CDPruner(relevance=lambda tokens: tokens.hidden[:, 0]).notes[0]


@pytest.mark.parametrize("value", [torch.ones(23), torch.ones(24, 1), [1.0] * 24, None])
def test_relevance_of_another_shape_is_refused_by_value(value):
    with pytest.raises(ValueError, match="24"):
        CDPruner(relevance=lambda tokens: value).select(sample_of(noise(24, 8)))


@pytest.mark.parametrize(("option", "value"), [("relevance", "clip"), ("relevance", None), ("compat", "released")])
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        CDPruner(**{option: value})
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_wrapped_model_keeps_what_is_picked_by_hand(family):
    """Oracle: ``literal`` on the model's own embeddings, then decoding with the other columns masked."""
    model, inputs = tiny.build(family, "sdpa", torch.float64), tiny.batch(family, "one")
    features, columns = embedded(model, inputs), tiny.visual(inputs)[0].nonzero()[:, 0]
    words = model.get_input_embeddings()(inputs["input_ids"][0, columns[-1] + 1 :])
    cosine = torch.nn.functional.cosine_similarity(features[:, None], words[None], dim=-1)
    keep = sorted(literal(features, cosine.mean(1), round(0.4 * len(columns))))
    expected = masked(model, inputs, columns, keep, 4)
    with vtprune.pruned(model, "cdpruner", keep_ratio=0.4, positions="original") as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.kept()[0].rows.tolist() == keep
        assert any("word-embedding relevance" in note for note in report.notes)
    for mine, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
