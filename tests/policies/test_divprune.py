"""DivPrune, against the released code's picks, the plain formula, and full-length masking in wrapped models."""

import numpy as np
import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.test_idpruner import embedded, kept, masked, noise, sample_of
from vtprune.policies.divprune import DivPrune


def literal(features, k):
    """The formula in loops of float64: start where the nearest other is farthest, go on where the nearest pick is."""
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance, n = 1 - x @ x.T, len(x)
    order = [max(range(n), key=lambda j: min(distance[i, j] for i in range(n) if i != j))]
    while len(order) < k:
        left = [j for j in range(n) if j not in order]
        order.append(max(left, key=lambda j: min(distance[i, j] for i in order)))
    return order


def test_released_results_are_met(golden):
    """Oracle: the authors' code, whose picks are no duplicates here, in the dtype of the tokens or not."""
    paths = sorted(golden("divprune").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        for options in ({}, {"score_dtype": "model"}, {"compat": "released-duplicates"}):
            policy = DivPrune(keep_ratio=case["ratio"].item(), **options)
            assert kept(policy, sample_of(case["feat"])) == case["keep"].tolist(), (path.name, options)


@pytest.mark.parametrize(("n", "width", "k"), [(2, 3, 1), (7, 2, 5), (41, 5, 17), (60, 16, 59), (150, 4, 30)])
def test_picks_are_those_of_the_formula(n, width, k):
    """Oracle: ``literal``."""
    for seed in range(3):
        features = noise(n, width, seed=seed)
        assert kept(DivPrune(n_keep=k), sample_of(features)) == sorted(literal(features, k))


def test_worked_example():
    """Distances to the nearest other are .04, .04, .4 and .064; then 1, .72 and .4 from 2; then 3 is farther than 1."""
    x = torch.tensor([[1.0, 0], [0.96, 0.28], [0, 1], [0.8, 0.6]])
    assert [kept(DivPrune(n_keep=k), sample_of(x)) for k in (1, 2, 3)] == [[2], [0, 2], [0, 2, 3]]


def test_alike_tokens_are_kept_once_or_as_often_as_needed():
    """Five of eight tokens are the same; the released code, which picks tokens again, keeps the four directions."""
    x = torch.eye(4)[[0, 1, 2, 3, 1, 1, 1, 1]]
    assert kept(DivPrune(n_keep=4), sample_of(x)) == [0, 1, 2, 3]
    assert len(kept(DivPrune(n_keep=6), sample_of(x))) == 6
    assert kept(DivPrune(n_keep=6, compat="released-duplicates"), sample_of(x)) == [0, 1, 2, 3]
    assert kept(DivPrune(n_keep=3), sample_of(torch.ones(5, 2))) == [0, 1, 2]


def test_tokens_of_zeros_are_kept_last():
    """The released code keeps one first, and then the first token for ever."""
    x = noise(6, 4)
    x[[1, 4]] = 0
    rest = [0, 2, 3, 5]
    for dtype in ("float32", "model"):
        policy = DivPrune(n_keep=3, score_dtype=dtype)
        assert kept(policy, sample_of(x)) == sorted(rest[i] for i in literal(x[rest], 3))
        assert kept(DivPrune(n_keep=5, score_dtype=dtype), sample_of(x)) == [0, 1, 2, 3, 5]
        assert kept(DivPrune(n_keep=2, score_dtype=dtype), sample_of(torch.zeros(3, 2))) == [0, 1]
    assert kept(DivPrune(n_keep=3, compat="released-duplicates"), sample_of(x)) == [0, 1]


def test_the_dtype_of_the_tokens_can_decide():
    """Oracle: the same loop over distances that are computed and rounded in bfloat16."""
    x = (noise(96, 32) + 3 * noise(6, 32, seed=1).repeat_interleave(16, 0)).bfloat16()
    unit = x / x.norm(dim=-1, keepdim=True)
    distance = (1 - unit @ unit.T).float().numpy()
    start = np.partition(distance, 1, axis=0)[1]
    order = [int(start.argmax())]
    while len(order) < 24:
        score = distance[order].min(0)
        score[order] = -np.inf
        order.append(int(score.argmax()))
    rounded = kept(DivPrune(n_keep=24, score_dtype="model"), sample_of(x))
    assert rounded == sorted(order)
    exact = kept(DivPrune(n_keep=24), sample_of(x))
    assert exact == sorted(literal(x, 24)) != rounded


def test_images_have_their_own_search_or_share_one():
    """Oracle: ``literal`` on each image, or on both."""
    x = noise(30, 8)
    own = sorted(literal(x[:20], 10)) + sorted(20 + i for i in literal(x[20:], 5))
    assert kept(DivPrune(), sample_of(x, 20, 10)) == own
    assert kept(DivPrune(budget="prompt"), sample_of(x, 20, 10)) == sorted(literal(x, 15))


@pytest.mark.parametrize(
    ("option", "value"), [("score_dtype", "float64"), ("newlines", "yes"), ("compat", "released"), ("compat", None)]
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        DivPrune(**{option: value})
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_wrapped_model_keeps_what_is_picked_by_hand(family):
    """Oracle: ``literal`` on the model's own embeddings, then decoding with the other columns masked."""
    model, inputs = tiny.build(family, "sdpa", torch.float64), tiny.batch(family, "one")
    columns = tiny.visual(inputs)[0].nonzero()[:, 0]
    keep = sorted(literal(embedded(model, inputs), round(0.4 * len(columns))))
    expected = masked(model, inputs, columns, keep, 4)
    with vtprune.pruned(model, "divprune", keep_ratio=0.4, positions="original") as report:
        found = tiny.greedy(model, inputs, 4)
        assert report.kept()[0].rows.tolist() == keep
    for mine, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@torch.no_grad()
def test_newlines_compete_when_asked():
    """Oracle: ``literal`` on all embeddings of a high-resolution image, row ends among them."""
    model, inputs = tiny.build("llava_next", "sdpa", torch.float64), tiny.batch("llava_next", "one")
    x = embedded(model, inputs)
    counts = {}
    for newlines in (False, True):
        with vtprune.pruned(model, "divprune", keep_ratio=0.5, newlines=newlines) as report:
            tiny.greedy(model, inputs, 1)
            counts[newlines] = report.sites[0].kept[0]
    # all newlines are one vector, so distances of 0 tie among them and none but the first is picked early
    assert counts[True].tolist() == sorted(literal(x, round(len(x) / 2)))
    assert len(counts[False]) < len(counts[True])
