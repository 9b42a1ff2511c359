"""FLOPs and bytes of the decoder against torch's own counter, against the cache itself and against plain arithmetic."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tests import tiny
from vtprune.attention import attention_inputs
from vtprune.flops import (
    Flops,
    attention_rows_flops,
    decode_flops,
    decoder_flops,
    fastv_flops,
    kv_bytes,
    lm_head_flops,
)
from vtprune.layer_sizes import UNGATED
from vtprune_kernels.attention_rows import attention_rows

SDPA_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def count(run) -> FlopCounterMode:
    """Torch's counter around ``run()``; its attention on a CPU counts as nothing unless told otherwise."""
    counter = FlopCounterMode(
        display=False, custom_mapping={SDPA_ON_CPU: lambda q, k, v, *args, **kwargs: sdpa_flop_count(q, k, v)}
    )
    with torch.no_grad(), counter:
        run()
    return counter


def counted(counter: FlopCounterMode, ending: str = "Global") -> Flops:
    """What the counter saw in the module whose name ends so, rotary tables aside: linear and, in full, attention."""
    modules = counter.get_flop_counts()
    (name,) = [n for n in modules if n == ending or n.endswith("." + ending)]
    inside = "" if name == "Global" else name + "."
    operations = dict(modules[name])
    for table in [
        n for n in modules if n.startswith(inside) and n.endswith("rotary_emb")
    ]:  # a product in transformers 5.9
        for operation, flops in modules[table].items():
            operations[operation] -= flops
    # nothing else here but nn.MultiheadAttention multiplies in batches
    attention = operations.get(SDPA_ON_CPU, 0) + operations.get(torch.ops.aten.bmm, 0)
    return Flops(sum(operations.values()) - attention, attention)


def assert_same(mine: Flops, theirs: Flops) -> None:
    assert (mine.linear, mine.attention) == (theirs.linear, theirs.attention)


@cache
def model_of(family: str) -> nn.Module:
    return tiny.build(family, dtype=torch.float32)


def llama(**changes) -> hf.LlamaModel:
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "vocab_size": 32}
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **changes})
    return hf.LlamaModel._from_config(config, attn_implementation="sdpa").eval()


# -------------------------------------------------------------------------------------------------- whole decoders


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unpruned_decoder_equals_the_counter(family):
    """Oracle: torch's counter around the decoder, and around the head for all positions and for one."""
    model, inputs = model_of(family), tiny.batch(family, "ragged", torch.float32)
    config = model.config.get_text_config()
    samples, length = inputs["input_ids"].shape
    whole, last = count(lambda: model(**inputs)), count(lambda: model(**inputs, logits_to_keep=1))
    name = "text_model" if family in ("idefics3", "smolvlm") else "language_model"
    mine = sum([decoder_flops(config, [length] * config.num_hidden_layers)] * samples, Flops())
    assert_same(mine, counted(whole, name))
    assert counted(whole, "lm_head").total == samples * lm_head_flops(config, length).total
    assert counted(last, "lm_head").total == samples * lm_head_flops(config).total


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_shortened_prompt_equals_the_counter(family):
    """Oracle: the counter around the decoder that is handed fewer embeddings."""
    model, config = tiny.text_model(model_of(family)), model_of(family).config.get_text_config()
    for n in (1, 7, 30):
        embeds = torch.randn(1, n, config.hidden_size)
        counter = count(lambda embeds=embeds: model(inputs_embeds=embeds))
        assert_same(decoder_flops(config, [n] * config.num_hidden_layers), counted(counter))


@pytest.mark.parametrize(
    "changes", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"head_dim": 20}, {"attention_bias": True}]
)
def test_heads_of_any_number_and_size(changes):
    """Oracles: the counter (MHA, MQA, a head size of its own), and the weights of the nn.Linear modules."""
    model = llama(**changes)
    mine = decoder_flops(model.config, [11] * 4)
    assert_same(mine, counted(count(lambda: model(torch.ones(1, 11, dtype=torch.long)))))
    weights = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, nn.Linear))
    assert mine.linear == 2 * 11 * weights


@pytest.mark.parametrize("model_type", sorted(UNGATED) + ["qwen3", "gemma", "phi3", "glm4", "cohere2", "olmo2"])
def test_mlp_with_and_without_a_gate(model_type):
    """Oracle: the counter around a tiny text model of each type; UNGATED ones have two matrices, the others three."""
    sizes = {"hidden_size": 48, "intermediate_size": 80, "ffn_dim": 80, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 48}
    few = {} if model_type in ("opt", "gpt_neox", "persimmon", "biogpt") else {"num_key_value_heads": 2, "head_dim": 12}
    config = hf.AutoConfig.for_model(model_type, **sizes, **heads, **few, pad_token_id=0)
    model = hf.AutoModel.from_config(config, attn_implementation="sdpa").eval()
    theirs = counted(count(lambda: model(torch.ones(1, 9, dtype=torch.long))))
    assert_same(decoder_flops(config, [9, 9]), theirs)
    other = decoder_flops(config, [9, 9], mlp_matrices=3 if model_type in UNGATED else 2)
    assert abs(other.linear - theirs.linear) == 2 * 2 * 9 * 48 * 80


# ------------------------------------------------------------------------------------- lengths that differ by layer


def cut_layer(length: int):
    def hook(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        tables = (cos[:, :length], sin[:, :length])
        return (args[0][:, :length],), {**kwargs, "position_embeddings": tables, "attention_mask": None}

    return hook


def test_a_site_between_layers():
    """Oracle: the counter around a model whose layers 2 and 3 are handed the first 5 rows of 12."""
    model = llama()
    handles = [layer.register_forward_pre_hook(cut_layer(5), with_kwargs=True) for layer in model.layers[2:]]
    theirs = counted(count(lambda: model(torch.ones(1, 12, dtype=torch.long))))
    for handle in handles:
        handle.remove()
    assert_same(decoder_flops(model.config, [12, 12, 5, 5]), theirs)


def test_a_site_inside_a_layer():
    """Oracle: the counter around a model whose layer 1 attends with 12 rows and hands its MLP 5 of them."""
    model = llama()
    mlp = model.layers[1].mlp
    mlp.register_forward_pre_hook(lambda module, args: (args[0][:, :5],))
    mlp.register_forward_hook(lambda module, args, out: nn.functional.pad(out, (0, 0, 0, 7)))
    for layer in model.layers[2:]:
        layer.register_forward_pre_hook(cut_layer(5), with_kwargs=True)
    theirs = counted(count(lambda: model(torch.ones(1, 12, dtype=torch.long))))
    assert_same(decoder_flops(model.config, [12, (12, 5), 5, 5]), theirs)


def test_a_second_turn_and_decode_steps_attend_to_the_cache():
    """Oracle: the counter around a second forward on a cache, and around five forwards of one token."""
    model, store = llama(), hf.DynamicCache()

    def forward(n):
        return counted(count(lambda: model(torch.ones(1, n, dtype=torch.long), past_key_values=store)))

    forward(9)
    assert_same(decoder_flops(model.config, [4] * 4, past=[9] * 4), forward(4))
    steps = sum((forward(1) for _ in range(5)), Flops())
    assert_same(decode_flops(model.config, [13] * 4, 5), steps)


def test_decode_steps_are_forwards_of_one_token():
    """Oracle: ``decoder_flops`` (held against the counter above), step by step, where layers hold different lengths."""
    config, prefill = llama().config, [9, (9, 4), 4, 2]
    cached = [9, 9, 4, 2]
    steps = [decoder_flops(config, [1] * 4, past=[n + t for n in cached]) for t in range(6)]
    assert decode_flops(config, prefill, 6) == sum(steps, Flops())
    assert decode_flops(config, prefill, 0) == Flops()


def test_causal_attention_is_the_pairs_of_a_triangle():
    """Oracle: the pairs (query, key), counted one by one."""
    config = llama().config
    flops = decoder_flops(config, [7, 5, 3, 1], past=[0, 2, 0, 4])
    pairs = [sum(key <= past + query for query in range(n) for key in range(past + n))
             for n, past in ((7, 0), (5, 2), (3, 0), (1, 4))]  # fmt: skip
    assert flops.attention_causal == 4 * 4 * 12 * sum(pairs)
    assert flops.attention == 4 * 4 * 12 * (7 * 7 + 5 * 7 + 3 * 3 + 1 * 5)
    assert (flops.total, flops.total_causal) == (
        flops.linear + flops.attention,
        flops.linear + flops.attention_causal,
    )


# --------------------------------------------------------------------------------------------- worked by hand


def test_llava_7b_by_hand():
    """32 layers, d = 4096, m = 11008, 576 visual and 64 text tokens; kept: 144 of the visual ones from layer 2 on."""
    config = SimpleNamespace(
        model_type="llama", num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, intermediate_size=11008
    )
    weights = 4 * 16_777_216 + 3 * 45_088_768  # 4096 x 4096 four times, 4096 x 11008 three times
    assert weights == 202_375_168
    full = decoder_flops(config, [640] * 32)
    assert full.linear == 32 * 640 * 2 * weights == 8_289_286_881_280
    assert full.attention == 32 * 4 * 640 * 640 * 4096 == 214_748_364_800
    assert full.attention_causal == 32 * 4 * (640 * 641 // 2) * 4096 == 107_541_954_560
    pruned = decoder_flops(config, [640] * 2 + [208] * 30)
    assert pruned.linear == (2 * 640 + 30 * 208) * 2 * weights == 3_043_722_526_720
    assert pruned.attention == 4 * 4096 * (2 * 640 * 640 + 30 * 208 * 208) == 34_686_894_080
    assert kv_bytes(config, [640] * 2 + [208] * 30, 2) == 2 * 2 * 4096 * (1280 + 6240) == 123_207_680


def test_grouped_queries_by_hand():
    """Qwen2-7B: d = 3584, 28 query heads on 4 key heads of 128, m = 18944, 28 layers."""
    config = SimpleNamespace(
        model_type="qwen2",
        num_hidden_layers=28,
        hidden_size=3584,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
    )
    weights = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    flops = decoder_flops(config, [1000] * 28)
    assert flops.linear == 28 * 1000 * 2 * weights
    assert flops.attention == 28 * 4 * 1000 * 1000 * 3584
    assert kv_bytes(config, [1000] * 28, 2) == 28 * 2 * 512 * 1000 * 2  # 57 kB a token


def test_the_figure_of_fastv():
    """Oracle: the paper's term written out for LLaVA-1.5-7B, and 2 n d m alone, which papers give as 2.99 T."""
    d, m = 4096, 11008
    one = 4 * 576 * d * d + 2 * 576 * 576 * d + 2 * 576 * d * m
    assert fastv_flops(d, m, [576] * 32) == 32 * one
    assert fastv_flops(d, m, [576] * 32) / 1e12 == pytest.approx(2.99, abs=0.005)
    halved = 2 * one + 30 * (4 * 288 * d * d + 2 * 288 * 288 * d + 2 * 288 * d * m)
    assert fastv_flops(d, m, [576] * 2 + [288] * 30) == halved


# ------------------------------------------------------------------------------------------------ bytes and signals


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_equal_those_of_the_cache(family, dtype):
    """Oracle: ``nbytes`` of the tensors in the cache that the unwrapped model fills."""
    model = tiny.text_model(model_of(family))
    store = hf.DynamicCache(config=model.config)
    with torch.no_grad():
        model(inputs_embeds=torch.randn(1, 13, 64), past_key_values=store)
    tensors = [tensor.to(dtype) for layer in store.layers for tensor in (layer.keys, layer.values)]
    lengths = [layer.keys.shape[-2] for layer in store.layers]
    assert kv_bytes(model.config, lengths, dtype.itemsize) == sum(tensor.nbytes for tensor in tensors) > 0


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("case", ["running", "own queries", "peek", "whole peek"])
def test_attention_rows_equal_the_counter(n_rows, case):
    """Oracle: the counter around the projections and products that such a signal is made of."""
    model = llama(head_dim=20)
    attention, n_keys = model.layers[0].self_attn, 17
    hidden, keys = torch.randn(n_keys, 48), torch.randn(2, n_keys, 20)

    def signal():
        queries = torch.randn(n_rows, 80)
        if case in ("running", "peek"):
            queries = attention.q_proj(hidden[-n_rows:])
        elif case == "whole peek":
            queries = attention.q_proj(hidden)[-n_rows:]
            attention.v_proj(hidden)
        stored = attention.k_proj(hidden).view(n_keys, 2, 20).transpose(0, 1) if "peek" in case else keys
        torch.matmul(queries.view(n_rows, 4, 20).transpose(0, 1), stored.repeat_interleave(2, 0).transpose(1, 2))

    more = {"own queries": {"query_rows": 0}, "whole peek": {"query_rows": n_keys, "value_rows": n_keys}}
    mine = attention_rows_flops(model.config, n_rows, n_keys, "peek" in case, **more.get(case, {}))
    operations = count(signal).get_flop_counts()["Global"]
    assert mine.attention == mine.attention_causal == operations[torch.ops.aten.bmm]
    assert mine.linear == operations.get(torch.ops.aten.mm, 0)


def test_what_the_library_computes_for_a_signal():
    """Oracle: the counter around the library's own peek at a layer and the two rows taken from it."""
    model, hidden = llama(head_dim=20), torch.randn(1, 17, 48)
    tables = model.rotary_emb(hidden, torch.arange(17)[None])

    def signal():
        (call,) = attention_inputs(
            model.layers[0].self_attn, hidden_states=hidden, position_embeddings=tables, attention_mask=None
        )
        attention_rows(call.query[:, :, -2:], call.key, scale=call.scaling)

    mine = attention_rows_flops(model.config, 2, 17, peek=True, query_rows=17, value_rows=17)
    assert mine.total == count(signal).get_total_flops()


# ---------------------------------------------------------------------------------------------------- user mistakes


def test_mistakes_are_named():
    config = llama().config
    with pytest.raises(ValueError, match="each of the 4 decoder layers is needed; got 3"):
        decoder_flops(config, [5, 5, 5])
    with pytest.raises(ValueError, match="got -1"):
        decoder_flops(config, [5, 5, 5, -1])
    with pytest.raises(ValueError, match=r"got \(5, 4, 3\)"):
        kv_bytes(config, [5, 5, 5, (5, 4, 3)], 2)
    with pytest.raises(ValueError, match="got -2"):
        decode_flops(config, [5] * 4, -2)
    with pytest.raises(ValueError, match="get_text_config"):
        decoder_flops(model_of("llava").config, [5] * 4)
    with pytest.raises(TypeError):
        decoder_flops(config, [5.0] * 4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kv_lora_rank": 16}, "kv_lora_rank"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers"),
    ],
)
def test_decoders_of_another_kind_are_refused(changes, named):
    """A wrong number would be worse than none."""
    config = SimpleNamespace(
        **{"model_type": "new", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2},
        **{"intermediate_size": 16, **changes},
    )
    with pytest.raises(NotImplementedError, match=named):
        decoder_flops(config, [3, 3])
    with pytest.raises(NotImplementedError, match=named):
        kv_bytes(config, [3, 3], 2)
    # what a layer stores does not depend on its MLP
    plain = {name: value for name, value in vars(config).items() if name not in changes}
    config = SimpleNamespace(**plain, num_experts=8)
    with pytest.raises(NotImplementedError, match="num_experts"):
        decoder_flops(config, [3, 3])
    assert kv_bytes(config, [3, 3], 2) == 2 * 8 * 6 * 2
