"""MMTok, against the released code's picks, the plain formula, and picks by hand in wrapped models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.test_idpruner import embedded, kept, masked, noise
from vtprune.blocks.greedy_coverage import cover_matrix
from vtprune.policies.mmtok import MMTok
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune.unprojected import Unprojected


def soft(cosine, temperature):
    """Softmax along rows, in float64."""
    e = np.exp((cosine - cosine.max(1, keepdims=True)) / temperature)
    return e / e.sum(1, keepdims=True)


def unit(x):
    x = x.double().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-8)


def matrix(words, tokens, features, alpha=0.5, warm=0.2, text_warm=0.02):
    t, x, c = unit(words), unit(tokens), unit(features)
    image = alpha * soft(c @ c.T, warm) / len(c)
    return np.concatenate([soft(t @ x.T, text_warm) / len(t), image]) if len(t) else image


def literal(covers, k, blocked=()):
    """Greedy coverage in float64, every gain anew for every pick; stops when only blocked columns are left."""
    best, order, n = np.zeros(len(covers)), [], covers.shape[1]
    while len(order) < min(k, n - len(blocked)):
        gain = np.maximum(covers - best[:, None], 0).sum(0)
        gain[[*order, *blocked]] = -np.inf
        order.append(int(gain.argmax()))
        best = np.maximum(best, covers[:, order[-1]])
    return order


def given(tokens, text, features=None, *counts):
    spans, start = [], 0
    for n in counts or (len(tokens),):
        spans.append(Segment(slice(start, start + n)))
        start += n
    signals = {} if features is None else {"unprojected": Unprojected(features, (None,) * len(spans), None)}
    return VisualTokens(tokens, text, tuple(spans), signals)


def test_released_results_are_met(golden):
    """Oracle: the authors' code."""
    paths = sorted(golden("mmtok").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        blocked = torch.zeros(len(case["vision"]), dtype=torch.bool)
        blocked[case["block"]] = True
        policy = MMTok(
            n_keep=case["k"].item(),
            alpha=case["alpha"].item(),
            temperature=case["vv_temp"].item(),
            text_temperature=case["tv_temp"].item(),
            words=case["text"],
            features="unprojected",
            blocked=blocked if len(case["block"]) else None,
        )
        found = kept(policy, given(case["vision"], case["text"][:0], case["vision_clip"]))
        assert found == case["keep"].tolist(), path.name


@pytest.mark.parametrize(("n", "m", "k"), [(2, 3, 1), (30, 5, 9), (41, 1, 30), (50, 0, 10)])
def test_picks_are_those_of_the_formula(n, m, k):
    """Oracle: ``literal``; without words the image alone counts."""
    tokens, text, features = noise(n, 12), noise(m, 12, seed=1), noise(n, 7, seed=2)
    policy = MMTok(n_keep=k, features="unprojected")
    assert kept(policy, given(tokens, text, features)) == sorted(literal(matrix(text, tokens, features), k))
    assert kept(MMTok(n_keep=k), given(tokens, text)) == sorted(literal(matrix(text, tokens, tokens), k))


@pytest.mark.parametrize(
    ("option", "name", "value", "k"),
    [("alpha", "alpha", 20.0, 4), ("temperature", "warm", 0.05, 12), ("text_temperature", "text_warm", 0.5, 12)],
)
def test_every_number_counts(option, name, value, k):
    """Oracle: ``literal`` with another number, which changes what is kept."""
    tokens, text, features = noise(40, 12), noise(6, 12, seed=1), noise(40, 7, seed=2)
    usual = MMTok(n_keep=k, features="unprojected")
    found = kept(replace(usual, **{option: value}), given(tokens, text, features))
    assert found == sorted(literal(matrix(text, tokens, features, **{name: value}), k))
    assert found != kept(usual, given(tokens, text, features))


def test_worked_example():
    x = torch.tensor([[1.0, 0], [0.96, 0.28], [0, 1], [-0.6, 0.8]])
    policy = MMTok(n_keep=2, temperature=0.5, text_temperature=0.5, words=torch.tensor([[0.0, 1]]))
    assert kept(policy, given(x, x[:0])) == [0, 2]


def test_large_images_are_compared_block_by_block():
    """Oracle: the whole matrix at once; 2100 tokens are three blocks."""
    tokens, text = noise(2100, 4), noise(3, 4, seed=1)
    found = cover_matrix(text, tokens, tokens, alpha=0.5, text_temperature=0.02, temperature=0.2)
    torch.testing.assert_close(found.double(), torch.from_numpy(matrix(text, tokens, tokens)), atol=1e-7, rtol=1e-3)


def test_blocked_tokens_are_never_kept():
    """Oracle: ``literal``. When no others are left fewer are kept; the released code keeps the first token then."""
    tokens, text = noise(20, 12), noise(4, 12, seed=1)
    blocked = torch.zeros(20, dtype=torch.bool)
    blocked[[0, 3, 17]] = True
    expected = sorted(literal(matrix(text, tokens, tokens), 8, (0, 3, 17)))
    assert kept(MMTok(n_keep=8, blocked=blocked), given(tokens, text)) == expected
    assert kept(MMTok(n_keep=8, blocked=lambda tokens: blocked), given(tokens, text)) == expected
    free = [i for i in range(20) if i not in (0, 3, 17)]
    assert kept(MMTok(n_keep=19, blocked=blocked), given(tokens, text)) == free
    released = MMTok(n_keep=19, blocked=blocked, compat="released-repeat-blocked")
    assert kept(released, given(tokens, text)) == [0, *free]
    assert len(kept(MMTok(n_keep=8, blocked=torch.ones(20, dtype=torch.bool)), given(tokens, text))) == 8
    with pytest.raises(ValueError, match="blocked.*20"):
        kept(MMTok(n_keep=8, blocked=blocked[1:]), given(tokens, text))


def test_alike_tokens_are_kept_in_order():
    assert kept(MMTok(n_keep=3), given(torch.ones(5, 2), torch.ones(2, 2))) == [0, 1, 2]
    assert kept(MMTok(n_keep=2), given(torch.zeros(5, 2), torch.zeros(2, 2))) == [0, 1]
    assert kept(MMTok(n_keep=2), given(torch.ones(1, 2), torch.ones(2, 2))) == [0]


def test_images_have_their_own_search_or_share_one():
    """Oracle: ``literal`` on each image with the same words, or on both."""
    x, text = noise(30, 12), noise(4, 12, seed=1)
    own = sorted(literal(matrix(text, x[:20], x[:20]), 10))
    own += sorted(20 + i for i in literal(matrix(text, x[20:], x[20:]), 5))
    assert kept(MMTok(), given(x, text, None, 20, 10)) == own
    assert kept(MMTok(budget="prompt"), given(x, text, None, 20, 10)) == sorted(literal(matrix(text, x, x), 15))


def test_it_fits_itself_to_the_model():
    facts = {"depth": 4, "width": 8, "tower_layers": 3, "line_positions": True}
    llava = MMTok().fitted(ModelFacts("llava", class_token=True, **facts))
    assert llava.needs == {"unprojected"} and llava.text_temperature == 0.02
    qwen = MMTok().fitted(ModelFacts("qwen2_5_vl", class_token=False, **facts))
    assert qwen.needs == frozenset() and qwen.text_temperature == 0.01
    assert "without stop list" in qwen.notes[0] and "compared as the projector gives" in qwen.notes[1]
    assert MMTok(words=torch.ones(1, 8), text_temperature=0.3).fitted(ModelFacts("x", class_token=True, **facts)) == (
        MMTok(features="unprojected", text_temperature=0.3)
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", bad) for bad in (-1, float("nan"), True)]
    + [(name, bad) for name in ("temperature", "text_temperature") for bad in (0, -1.0, float("nan"), True, "warm")]
    + [("temperature", None), ("words", "text"), ("words", None), ("features", "tower"), ("blocked", "padding")]
    + [("compat", "released")],
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        MMTok(**{option: value})
    assert repr(value) in str(error.value)


def test_words_of_another_width_are_refused_by_value():
    for words in (torch.ones(3, 5), lambda tokens: torch.ones(3, 5)):
        with pytest.raises(ValueError, match=r"\(m, 12\).*\(3, 5\)"):
            kept(MMTok(words=words), given(noise(6, 12), noise(2, 12)))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_wrapped_model_keeps_what_is_picked_by_hand(family):
    """Oracle: ``literal`` on the model's embeddings and the tower's hidden states, then masked decoding."""
    model, inputs = tiny.build(family, "sdpa", torch.float64), tiny.batch(family, "one")
    x, columns = embedded(model, inputs), tiny.visual(inputs)[0].nonzero()[:, 0]
    words = model.get_input_embeddings()(inputs["input_ids"][0, columns[-1] + 1 :])
    if family == "llava":
        features = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
        covers = matrix(words, x, features)
    else:
        covers = matrix(words, x, x, text_warm=0.01)
    keep = sorted(literal(covers, 6))
    expected = masked(model, inputs, columns, keep, 4)
    with vtprune.pruned(model, "mmtok", n_keep=6, positions="original") as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.kept()[0].rows.tolist() == keep
        assert any("without stop list" in note for note in report.notes)
    for mine, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
