"""SCOPE, against the released code's picks, the plain formula, and picks by hand in wrapped models."""

import numpy as np
import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.test_idpruner import embedded, kept, masked, noise, sample_of
from vtprune.policies.scope import SCOPE
from vtprune.tokens import ModelFacts

COMBINE = {"multi": "multiply", "add": "add"}


def literal(features, worth, k, combine="multiply"):
    """The formula in float64, every gain anew for every pick."""
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity, cover, order = x @ x.T, np.zeros(len(x)), []
    for _ in range(k):
        gain = [sum(max(0, similarity[i, j] - cover[i]) for i in range(len(x))) for j in range(len(x))]
        score = gain * worth if combine == "multiply" else gain + worth
        score[order] = -np.inf
        order.append(int(score.argmax()))
        cover = np.maximum(cover, similarity[:, order[-1]])
    return order


def given(features, *counts, attention):
    """Visual tokens whose class token pays ``attention``, (N,) or (heads, N)."""
    return sample_of(features, *counts, **{"cls_attention:-2": attention.reshape(1, -1, len(features))})


def test_released_results_are_met(golden):
    """Oracle: the authors' code; images of one call are images of one prompt here."""
    paths = sorted(golden("scope").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        images, n, _ = case["feat"].shape
        expected = (case["keep"] + n * torch.arange(images)[:, None]).flatten().tolist()
        policy = SCOPE(n_keep=case["k"].item(), alpha=case["alpha"].item(), combine=COMBINE[str(case["combine"])])
        tokens = given(case["feat"].flatten(0, 1), *[n] * images, attention=case["cls_attn_sum"])
        assert kept(policy, tokens) == expected, path.name


@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize(("n", "k", "alpha"), [(2, 1, 1.0), (25, 12, 1.0), (40, 10, 0.5), (33, 20, 0.0)])
def test_picks_are_those_of_the_formula(n, k, alpha, combine):
    """Oracle: ``literal`` with attention summed over heads, which is what 'add' weighs against the gain."""
    x, attention = noise(n, 6), noise(3, n, seed=1).softmax(-1)
    policy = SCOPE(n_keep=k, alpha=alpha, combine=combine)
    worth = attention.double().sum(0).numpy() ** alpha
    assert kept(policy, given(x, attention=attention)) == sorted(literal(x, worth, k, combine))


def test_worked_example():
    """Column sums of positive cosines (1.96, 2.24, 2.08, 1.8); times attention, 0 is first and 2 second."""
    x = torch.tensor([[1.0, 0], [0.96, 0.28], [0, 1], [-0.6, 0.8]])
    attention = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert kept(SCOPE(n_keep=2), given(x, attention=attention)) == [0, 2]
    assert kept(SCOPE(n_keep=1), given(x, attention=attention)) == [0]
    assert kept(SCOPE(n_keep=2, alpha=0.0), given(x, attention=attention)) == [1, 2]


def test_alike_and_empty_tokens_are_kept_in_order():
    attention = torch.full((5,), 0.2)
    assert kept(SCOPE(n_keep=3), given(torch.ones(5, 2), attention=attention)) == [0, 1, 2]
    assert kept(SCOPE(n_keep=2), given(torch.zeros(5, 2), attention=attention)) == [0, 1]
    assert kept(SCOPE(n_keep=4), given(torch.ones(1, 2), attention=torch.ones(1))) == [0]


def test_images_have_their_own_search_or_share_one():
    """Oracle: ``literal`` on each image, or on both."""
    x, attention = noise(30, 8), noise(30, seed=1).exp()
    worth = attention.double().numpy()
    own = sorted(literal(x[:20], worth[:20], 10)) + sorted(20 + i for i in literal(x[20:], worth[20:], 5))
    assert kept(SCOPE(), given(x, 20, 10, attention=attention)) == own
    assert kept(SCOPE(budget="prompt"), given(x, 20, 10, attention=attention)) == sorted(literal(x, worth, 15))


def test_it_fits_itself_to_the_vision_tower():
    facts = {"model_type": "llava", "depth": 4, "width": 8, "tower_layers": 3, "line_positions": True}
    clip = SCOPE().fitted(ModelFacts(**facts, class_token=True))
    assert clip.needs == {"cls_attention:-2", "unprojected"} and clip.notes == ()
    other = SCOPE().fitted(ModelFacts(**facts, class_token=False))
    assert other.needs == {"vision_attention"}
    assert "stand in for its class token" in other.notes[0] and "compared as the projector gives" in other.notes[1]


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", bad) for bad in (-1, float("nan"), float("inf"), True, "1")]
    + [("combine", "multi"), ("features", "tower"), ("signal", "both")],
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        SCOPE(**{option: value})
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("features", ["auto", "projected"])
def test_a_wrapped_llava_keeps_what_is_picked_by_hand(features):
    """Oracle: ``literal`` on what an eager tower gives, then decoding with the other columns masked."""
    model, inputs = tiny.build("llava", "sdpa", torch.float64), tiny.batch("llava", "one")
    columns = tiny.visual(inputs)[0].nonzero()[:, 0]
    model.set_attn_implementation("eager")
    tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    x = tower.hidden_states[-2][0, 1:] if features == "auto" else embedded(model, inputs)
    keep = sorted(literal(x, tower.attentions[-2][0, :, 0, 1:].sum(0).numpy(), 6))
    expected = masked(model, inputs, columns, keep, 4)
    with vtprune.pruned(model, "scope", n_keep=6, features=features, positions="original") as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.kept()[0].rows.tolist() == keep
    for mine, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_towers_without_a_class_token_say_what_stands_in(family):
    model, inputs = tiny.build(family), tiny.batch(family, "two_images")
    with vtprune.pruned(model, "scope", keep_ratio=0.4) as report:
        tiny.greedy(model, inputs, 1)
        assert all(after < before for before, after in report.tokens)
        assert any("stand in for its class token" in note for note in report.notes)
