"""Scores by attention, against the released code's and worked examples."""

import pytest
import torch

from tests.cache_scores.cases import asked, case, random_attention
from vtprune.cache_scores.attention_scores import observed, protected, snapkv, tova
from vtprune.cache_scores.keep import keep_best
from vtprune.cache_scores.key_scores import keydiff, knorm
from vtprune.cache_scores.probe import causal, probe_rows

N, SCALE = 48, 8**-0.5


def rotate(x, cosine, sine):
    one, other = x.chunk(2, -1)
    return x * cosine + torch.cat([-other, one], -1) * sine


@pytest.fixture(scope="module")
def released(golden):
    """The stored layer, with its queries: ``unrotated`` and ``queries`` (1, 4, N, 8)."""
    values = case(golden("kvpress") / "tiny_llama_layer1")
    values["unrotated"] = (values["hidden"] @ values["q_proj"].T).view(1, N, 4, 8).transpose(1, 2)
    values["queries"] = rotate(values["unrotated"], values["cos"][:, None], values["sin"][:, None])
    return values


def scores(values):
    q, k, place = values["queries"], values["keys"], torch.arange(N)
    return {
        "observed": observed(q, k, scale=SCALE, visible=causal(place, place)),
        "snapkv": snapkv(q[:, :, -8:], k, scale=SCALE, visible=causal(place[-8:], place)),
        "tova": tova(q[:, :, -1:], k, scale=SCALE, visible=causal(place[-1:], place)),
        "knorm": knorm(k),
        "keydiff": keydiff(k),
    }


def test_released_attention_is_met(released):
    """Oracle: the model's own eager attention."""
    place = torch.arange(N)
    rows = probe_rows(released["queries"], released["keys"], scale=SCALE, visible=causal(place, place))
    torch.testing.assert_close(rows, released["attn"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["observed", "snapkv", "tova", "knorm", "keydiff"])
def test_released_scores_are_met(released, name):
    """Oracle: the released code: scores of both key heads, and which keys it keeps, best first."""
    score = scores(released)[name]
    torch.testing.assert_close(score, released[f"results/{name}/score"], rtol=1e-4, atol=1e-5)
    keep = keep_best(score[0, 0], released[f"results/{name}/n_kept"])
    kept = released["keys"][0, 0, keep]
    expected = released[f"results/{name}/kept_keys_head0"]
    assert torch.equal(kept[kept[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_worked_example_of_observed_attention():
    """Oracle: three queries by hand."""
    rows = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    place = torch.arange(3)
    score = observed(*asked(rows[None, None]), scale=1.0, visible=causal(place, place))
    torch.testing.assert_close(score[0, 0], torch.tensor([1.7 / 3, 0.4, 0.5]))


def test_pooling_is_a_mean_of_neighbours_in_each_sample():
    """Oracle: a loop over keys; two samples of two groups, of which each has its own largest score."""
    attention = random_attention(2, 4, 3, 20)
    q, k = attention.log(), torch.eye(20).expand(2, 4, 20, 20)
    score = snapkv(q, k, scale=1.0, visible=causal(torch.arange(20, 23), torch.arange(20)), pool=3, window=6)
    mean = attention.mean(2)
    for b in range(2):
        for h in range(4):
            padded = [0.0, *mean[b, h, :14].tolist(), 0.0]
            expected = [sum(padded[j : j + 3]) / 3 for j in range(14)]
            torch.testing.assert_close(score[b, h, :14], torch.tensor(expected), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(score[b, :, 14:], (score[b, :, :14].max() + 1).expand(4, 6))
    plain = snapkv(q, k, scale=1.0, visible=causal(torch.arange(20, 23), torch.arange(20)), pool=1, window=0)
    torch.testing.assert_close(plain, mean, rtol=1e-4, atol=1e-6)


def test_protected_entries_are_above_all():
    score = torch.tensor([[1.0, 5.0], [0.0, 2.0]])
    assert protected(score, first=1, last=2).tolist() == [[6, 1, 5, 6, 6], [6, 0, 2, 6, 6]]
    assert protected(score[:, :0], last=2).tolist() == [[1, 1], [1, 1]]


def test_keys_alone():
    """Oracle: by hand; the longest key and the one that all point to are the first to go."""
    keys = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    assert knorm(keys).tolist() == [-5, -1, -2]
    mean = torch.tensor([0.6 + 1, 0.8 + 1]) / 3
    cosine = torch.tensor([0.6 * mean[0] + 0.8 * mean[1], mean[0], mean[1]]) / mean.norm()
    torch.testing.assert_close(keydiff(keys), -cosine)


def test_wrong_calls_are_refused_by_value():
    q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
    visible = causal(torch.arange(2, 5), torch.arange(5))
    with pytest.raises(ValueError, match="got 3"):
        tova(q, k, scale=1.0)
    with pytest.raises(ValueError, match="pool.*got 4"):
        snapkv(q, k, scale=1.0, visible=visible, pool=4)
    with pytest.raises(ValueError, match="window.*got 6"):
        snapkv(q, k, scale=1.0, visible=visible, window=6)
