"""Expected attention, against the released code's, rotations of transformers, and queries drawn by hand."""

import pytest
import torch

from tests import tiny
from tests.cache_scores.cases import case
from vtprune import compat
from vtprune.attention import rotated_ones
from vtprune.cache_scores.expected_attention import expected_attention, mean_rotation, rotation_matrix
from vtprune.cache_scores.keep import keep_best

INV_FREQ = 10000.0 ** -(torch.arange(4) / 4)


@pytest.mark.parametrize(("name", "full"), [("expected_attention", True), ("expected_attention_nocov", False)])
def test_released_scores_are_met(golden, name, full):
    """Oracle: the released code: scores of both key heads, and which keys it keeps."""
    stored = case(golden("kvpress") / "tiny_llama_layer1")
    queries = (stored["hidden"][0] @ stored["q_proj"].T).view(48, 4, 8).transpose(0, 1)
    rotation = mean_rotation(stored["inv_freq"], 48, 16)
    keys, values = stored["keys"][0], stored["values"][0] if full else None
    score = expected_attention(queries, keys, values, rotation, covariance=full)
    torch.testing.assert_close(score, stored[f"results/{name}/score"][0], rtol=1e-5, atol=1e-7)
    kept = keys[0, keep_best(score[0], stored[f"results/{name}/n_kept"])]
    expected = stored[f"results/{name}/kept_keys_head0"]
    assert torch.equal(kept[kept[:, 0].argsort()], expected[expected[:, 0].argsort()])


@pytest.mark.parametrize(
    ("family", "interleaved"), [("llava", False), ("qwen2_5_vl", False), ("qwen3_vl", False), ("glm4v", True)]
)
def test_the_mean_rotation_is_that_of_the_model(family, interleaved):
    """Oracle: a layer's own rotation of ones, place by place; several axes agree on the places of text."""
    decoder = tiny.text_model(tiny.build(family, dtype=torch.float32))
    attn, hidden = decoder.layers[0].self_attn, torch.zeros(1, 16, decoder.config.hidden_size)
    place = torch.arange(1000, 1016).expand(3, 1, -1) if tiny.has_mrope(family) else torch.arange(1000, 1016)[None]
    tables = compat.rotary(decoder, 0, hidden, place)
    ones = rotated_ones(attn, hidden_states=hidden, position_embeddings=tables, attention_mask=None)[0]
    rotation = mean_rotation(
        decoder.rotary_emb.inv_freq,
        1000,
        16,
        head_dim=ones.shape[-1],
        scaling=decoder.rotary_emb.attention_scaling,
        interleaved=interleaved,
    )
    torch.testing.assert_close(rotation.sum(1), ones.mean(0), rtol=0, atol=2e-4)
    assert float((ones[0] - ones[-1]).abs().max()) > 0.5


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_are_turned_as_complex_numbers(interleaved):
    """Oracle: products of complex numbers; what is not rotated stays."""
    x = torch.randn(10, generator=torch.Generator().manual_seed(0))
    rotation = mean_rotation(INV_FREQ, 7, 5, head_dim=10, scaling=1.5, interleaved=interleaved)
    turn = 1.5 * torch.exp(1j * torch.arange(7, 12)[:, None] * INV_FREQ).mean(0)
    pairs = x[:8].view(4, 2) if interleaved else x[:8].view(2, 4).T
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    expected = torch.cat([(turned if interleaved else turned.T).flatten(), x[8:]])
    torch.testing.assert_close(rotation @ x, expected)


def test_later_queries_drawn_at_random_agree():
    """Oracle: 2^18 queries from the Gaussian, in float64: means of exp(scale q k), within their error."""
    generator = torch.Generator().manual_seed(3)
    d, n, m = 8, 9, 400
    queries = torch.randn(2, m, d, generator=generator, dtype=torch.float64) @ torch.randn(
        d, d, generator=generator, dtype=torch.float64
    ).mul(0.5)
    queries += torch.randn(2, 1, d, generator=generator, dtype=torch.float64)
    keys = torch.randn(1, n, d, generator=generator, dtype=torch.float64)
    values = torch.randn(1, n, 3, generator=generator, dtype=torch.float64)
    rotation = mean_rotation(INV_FREQ, 50, 6)
    score = expected_attention(queries.float(), keys.float(), values.float(), rotation, scale=0.3, n_sink=0)
    share, error = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for head in queries:
        spread = torch.linalg.cholesky(torch.cov(head.T, correction=0))
        drawn = torch.randn(1 << 18, d, generator=generator, dtype=torch.float64) @ spread.T + head.mean(0)
        paid = (0.3 * (drawn @ rotation.double().T) @ keys[0].T).exp()
        mean = paid.mean(0)
        relative = paid.std(0) / mean / (1 << 9)
        share += mean / mean.sum() / 2
        # a share moves by its own error and by that of the sum, at most the largest
        error += mean / mean.sum() / 2 * (relative + relative.max())
    size = values[0].norm(dim=-1)
    assert bool((error < 0.02 * share).all()) and float(share.max() / share.min()) > 2
    assert bool(((score[0].double() - share * size).abs() < 4 * error * size).all())


def test_first_keys_stay_and_the_softmax_is_of_the_others():
    """Oracle: the same without the first keys and queries; the largest score of all heads and one more."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(h, 20, 8, generator=generator) for h in (4, 2))
    rotation = mean_rotation(INV_FREQ, 20, 4)
    score = expected_attention(queries, keys, None, rotation, n_sink=3)
    alone = expected_attention(queries[:, 3:], keys[:, 3:], None, rotation, n_sink=0)
    torch.testing.assert_close(score[:, 3:], alone)
    torch.testing.assert_close(alone.sum(1), torch.ones(2))
    assert bool((score[:, :3] == alone.max() + 1).all())
    more = expected_attention(queries, keys, keys, rotation, n_sink=0, epsilon=0.5)
    plain = expected_attention(queries, keys, None, rotation, n_sink=0)
    torch.testing.assert_close(more, (plain + 0.5) * keys.norm(dim=-1))


def test_wrong_calls_are_refused_by_value():
    x = torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match="first 5 queries.*only 5"):
        expected_attention(x, x, x, torch.eye(8), n_sink=5)
    with pytest.raises(ValueError, match=r"\(6, 6\)"):
        expected_attention(x, x, x, torch.eye(6))
    with pytest.raises(ValueError, match="rotate 8 entries of a head, which has 6"):
        rotation_matrix(INV_FREQ, INV_FREQ, head_dim=6)
