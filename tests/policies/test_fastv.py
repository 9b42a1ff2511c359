"""FastV, against the released code's results and a worked example."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from tests.policies.golden import load, weights
from vtprune.policies.fastv import FastV
from vtprune.tokens import Segment, VisualTokens


def tokens_of(row, *lengths):
    """Visual tokens in segments of the given lengths, whose last-query attention is ``row``."""
    segments, start = [], 0
    for n in lengths or (len(row),):
        segments.append(Segment(slice(start, start + n), source=len(segments)))
        start += n
    hidden = torch.zeros(len(row), 2)
    signals = {"last_query_attention": torch.as_tensor(row, dtype=torch.float32)}
    return VisualTokens(hidden, hidden[:1], tuple(segments), signals, site=2)


def llama(case):
    """The case's tiny LLaMA, eager."""
    state, heads = weights(case), int(case["heads"])
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    vocabulary, width = state["embed_tokens.weight"].shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=state["layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=int(case["kv_heads"]),
        rms_norm_eps=1e-6,
        pad_token_id=None,
        attn_implementation="eager",
    )
    model = LlamaModel(config).eval()
    model.load_state_dict(state)
    return model


def last_query_attention(out, layer, span):
    """(N,): the last token's attention to the visual tokens in a layer, mean over heads, from full attention maps."""
    return out.attentions[layer][0, :, -1, span].mean(0)


def shortened(model, hidden, first_layer, positions):
    """(1, L', D) after the final norm: ``hidden`` at the given positions through the layers from ``first_layer`` on."""
    rotary = model.rotary_emb(hidden, positions[None])
    n = len(positions)
    mask = torch.zeros(1, 1, n, n).masked_fill(torch.ones(n, n).triu(1).bool(), torch.finfo(torch.float32).min)
    for layer in model.layers[first_layer:]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=positions[None])
    return model.norm(hidden)


@torch.no_grad()
def test_released_results_are_met(golden):
    """Oracle: the authors' code on a tiny LLaMA: tokens, positions and lengths exact, final hidden states to 2e-5."""
    paths = sorted(golden("fastv").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        start, n, layer, dropped = int(case["image_start"]), int(case["n_image"]), int(case["K"]), float(case["R"])
        span = slice(start, start + n)
        model = llama(case)
        out = model(inputs_embeds=case["inputs_embeds"], output_attentions=True, output_hidden_states=True)

        tokens = tokens_of(last_query_attention(out, layer - 1, span))
        keep = FastV(keep_ratio=1 - dropped, layer=layer).select(tokens).keep
        assert keep.tolist() == case["keep"].tolist(), path.name

        positions = torch.cat(
            [torch.arange(start), start + keep, torch.arange(start + n, case["inputs_embeds"].shape[1])]
        )
        assert positions.tolist() == case["positions_after"].tolist(), path.name
        lengths = [case["inputs_embeds"].shape[1]] * layer + [len(positions)] * (len(model.layers) - layer)
        assert lengths == case["kv_lengths"].tolist(), path.name
        final = shortened(model, out.hidden_states[layer][:, positions], layer, positions)
        torch.testing.assert_close(final, case["final_hidden"], rtol=1e-4, atol=2e-5)


def test_worked_example():
    """Two heads see (.1, .3, .05, .15) and (.3, .1, .25, .05): of the mean (.2, .2, .15, .1) half are the first two."""
    row = torch.tensor([[0.1, 0.3, 0.05, 0.15], [0.3, 0.1, 0.25, 0.05]]).mean(0)
    assert FastV(keep_ratio=0.5).select(tokens_of(row)).keep.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("n", "keep_ratio", "k"), [(25, 0.5, 12), (27, 0.5, 14), (36, 0.25, 9), (576, 0.1, 58), (576, 1 - 0.9, 58)]
)
def test_counts_are_those_of_the_released_code(n, keep_ratio, k):
    assert len(FastV(keep_ratio=keep_ratio).select(tokens_of(torch.rand(n))).keep) == k


def test_each_image_keeps_its_share_unless_they_are_pooled():
    row = [0.9, 0.8, 0.7, 0.6, 0.1, 0.3, 0.2, 0.4]
    assert FastV(keep_ratio=0.5).select(tokens_of(row, 4, 4)).keep.tolist() == [0, 1, 5, 7]
    assert FastV(keep_ratio=0.5, budget="prompt").select(tokens_of(row, 4, 4)).keep.tolist() == [0, 1, 2, 3]


def test_it_acts_before_the_layer_it_is_given_and_reads_the_one_before():
    assert FastV().sites == (2,)
    assert FastV(layer=5).sites == (5,)
    assert FastV(layer=5).needs == {"last_query_attention"}


@pytest.mark.parametrize("layer", [0, -1, 2.0, True, "2", None])
def test_a_layer_with_none_before_it_is_refused_by_value(layer):
    with pytest.raises(ValueError, match="layer is an integer of 1 or more") as error:
        FastV(layer=layer)
    assert repr(layer) in str(error.value)
