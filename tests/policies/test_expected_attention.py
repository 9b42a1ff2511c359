"""Expected Attention in a model: the prompt's queries, by the model's own rotation at every place to come."""

import inspect

import pytest
import torch
from torch import Tensor

import vtprune
from tests import tiny
from tests.policies.by_hand import LATENT, ByHand, assert_kept, best, eager_of, everywhere, heard, model_of
from vtprune.policies.expected_attention import ExpectedAttention

N_FUTURE = 6
CASES = [
    ("llava", "image"),
    ("qwen2_5_vl", "image"),
    ("qwen3_vl", "image"),
    ("glm4v", "image"),
    ("qwen2_5_vl", "video"),
]


def rotations(family: str, first: int, count: int) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer the cosines and sines (count, ...) that the model itself gives to text at these positions."""
    text, found = tiny.text_model(eager_of(family)), {}
    ids = torch.arange(first, first + count)[None]

    def listen(module, args, kwargs):
        found[owner[id(module)]] = kwargs["position_embeddings"]

    owner = {id(getattr(layer, "self_attn", None)): i for i, layer in enumerate(text.layers)}
    hooks = [m.register_forward_pre_hook(listen, with_kwargs=True) for m in text.modules() if id(m) in owner]
    try:
        hidden = torch.zeros(1, count, text.config.hidden_size, dtype=torch.float64)
        with torch.no_grad():
            text(inputs_embeds=hidden, position_ids=ids.expand(3, 1, -1) if tiny.has_mrope(family) else ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def queries_to_come(family: str, hand: ByHand, layer: int, count: int) -> Tensor:
    """(H, S, d): the prompt's queries as the layer computes them at each of the places to come, averaged over these."""
    model = model_of(family)
    attn, total = tiny.text_model(model).layers[layer].self_attn, 0
    tables = rotations(family, hand.next, count)[layer]
    more = {"shared_kv_states": {}} if "shared_kv_states" in inspect.signature(attn.forward).parameters else {}
    for place in range(count):
        # all tokens stand at this place
        length = len(hand.normed[layer])
        here = tuple(table[..., place : place + 1, :].expand(*table.shape[:-2], length, -1) for table in tables)
        with heard(model) as found, torch.no_grad():
            attn(hidden_states=hand.normed[layer][None], position_embeddings=here, attention_mask=None, **more)
        total = total + found[layer][0][0][0]
    return total / count


def score(family: str, hand: ByHand, layer: int, count: int, sink: int, covariance=True, value_norm=True) -> Tensor:
    """(H_kv, N): the softmax over keys of log E exp(q . k) of Gaussian queries, mean over heads, times |v|."""
    queries, keys, values = queries_to_come(family, hand, layer, count), hand.keys[layer], hand.values[layer]
    share, late = len(queries) // len(keys), range(sink, keys.shape[1])
    out = torch.zeros(len(keys), keys.shape[1], dtype=torch.float64)
    # in a later turn the sinks are keys of an earlier one
    skip = max(0, sink - (keys.shape[1] - queries.shape[1]))
    for head, query in enumerate(queries[:, skip:]):
        mean, centred = query.mean(0), query - query.mean(0)
        expected = []
        for key in keys[head // share, sink:]:
            # products with one key are Gaussian too: its variance is that of the products themselves
            spread = (centred @ key).square().mean() if covariance else 0
            expected.append(mean @ key + spread / 2)
        out[head // share, late] += torch.stack(expected).softmax(0) / share
    if value_norm:
        out = out * values.norm(dim=-1)
    out[:, :sink] = torch.inf
    return out[:, hand.visual]


@pytest.mark.parametrize(("family", "kind"), everywhere(CASES, ["llama4"]))
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: projections, norms and rotation of the unwrapped model's modules, at explicit positions of text."""

    def expected(hand, layer, k):
        found = score(family, hand, layer, N_FUTURE, 4)
        return best(found.mean(0) if family == LATENT else found, k)

    assert_kept("expected_attention", family, expected, kind, keep_ratio=0.4, n_future=N_FUTURE)


@pytest.mark.parametrize("family", ["llama4", "hunyuan_vl"])
def test_rotations_that_have_no_mean_are_refused(family):
    """Complex numbers for tables, and norms after the rotation."""
    with vtprune.pruned(model_of(family), "expected_attention"):
        with pytest.raises(NotImplementedError, match="policy that looks at queries of the prompt"):
            tiny.greedy(model_of(family), tiny.batch(family, "one"), 1)


@pytest.mark.parametrize(
    "options", [{"covariance": False}, {"value_norm": False}, {"n_sink": 0, "n_future": 40}, {"n_sink": 7}]
)
def test_options_are_those_of_the_formula(options):
    count, sink = options.get("n_future", 1), options.get("n_sink", 4)
    more = {name: options[name] for name in ("covariance", "value_norm") if name in options}

    def expected(hand, layer, k):
        return best(score("qwen2_5_vl", hand, layer, count, sink, **more), k)

    assert_kept("expected_attention", "qwen2_5_vl", expected, n_keep=5, **{"n_future": 1, **options})


def test_one_set_for_all_heads_is_that_of_the_mean():
    def expected(hand, layer, k):
        return best(score("llava", hand, layer, 3, 4).mean(0), k)

    assert_kept("expected_attention", "llava", expected, n_keep=5, heads="all", n_future=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_future": 0}, "n_future is an integer of 1 or more; got 0"),
        ({"n_sink": -1}, "n_sink is a number of first tokens, 0 or more; got -1"),
        ({"n_sink": 1.0}, "n_sink is a number of first tokens, 0 or more; got 1.0"),
        ({"covariance": 2}, "covariance is one of True, False; got 2"),
        ({"value_norm": None}, "value_norm is one of True, False; got None"),
        ({"heads": "q"}, "heads is one of 'all', 'kv'; got 'q'"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        ExpectedAttention(**options)
