"""Attention rows of decoder layers against eager attention, and how a policy's needs are read and refused."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface

from tests import tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401
from vtprune.families.base import family_of
from vtprune.rows import row_attention
from vtprune.signals import RowLayer, check_needs, needed, parse, row_layer
from vtprune.tokens import BEFORE_LLM, inside

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def capture(model, inputs, **more):
    """The keyword arguments of every decoder layer's attention, and of layer 1 itself, in one forward; its output."""
    seen, layers = {}, tiny.text_model(model).layers

    def hook(name):
        def pre(module, args, kwargs):
            seen[name] = {**kwargs, **({"hidden_states": args[0]} if args else {})}

        return pre

    handles = [layer.self_attn.register_forward_pre_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
    handles.append(layers[1].register_forward_pre_hook(hook("layer"), with_kwargs=True))
    try:
        with torch.no_grad():
            return seen, model(**inputs, **more)
    finally:
        for handle in handles:
            handle.remove()


def eager_rows(model, inputs, rows):
    """[layer] -> (B, R, L): eager attention's probabilities, mean over heads."""
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    return [a.mean(1).gather(1, rows[:, :, None].expand(-1, -1, a.shape[-1])) for a in attentions]


def text_rows(inputs):
    """(B, R): the rows of the text tokens, padding left out, the first repeated where a sample has fewer."""
    text = ~tiny.visual(inputs) & (inputs["attention_mask"] == 1)
    rows = [row.nonzero().flatten() for row in text]
    most = max(len(row) for row in rows)
    return torch.stack([torch.cat([row[:1].expand(most - len(row)), row]) for row in rows])


# under flash attention the images of gemma3 do not see their own later tokens: another model
BACK_ENDS = [(name, back_end) for name in tiny.FAMILIES for back_end in ("sdpa", "eager", "flash")]
BACK_ENDS.remove(("gemma3", "flash"))


@pytest.mark.parametrize(("name", "back_end"), BACK_ENDS)
def test_rows_equal_eager_attention(name, back_end, flash):  # noqa: F811
    """Oracle: eager ``output_attentions`` of two left-padded samples; gemma3's layer 0 has a window of 16 tokens."""
    model = tiny.build(name, "eager", torch.float32)
    inputs = tiny.batch(name, "padded", torch.float32)
    rows = text_rows(inputs)
    expected = eager_rows(model, inputs, rows)
    if back_end == "flash":
        use_fake_flash(model)
    else:
        model.set_attn_implementation(back_end)
    seen, out = capture(model, inputs)
    layers, length = tiny.text_model(model).layers, inputs["input_ids"].shape[1]
    mask = seen[0]["attention_mask"]
    assert (mask.dim() == 2) == (back_end == "flash") and length > 16

    for index in (0, 1):
        got = row_attention(layers[index].self_attn, seen[index], rows, seen[index]["attention_mask"])
        torch.testing.assert_close(got, expected[index], **CLOSE)
        keys = out.past_key_values.layers[index].keys
        if keys.shape[2] == length:  # a sliding cache forgets
            cached = row_attention(layers[index].self_attn, seen[index], rows, seen[index]["attention_mask"], keys)
            torch.testing.assert_close(cached, expected[index], **CLOSE)
    peek = {**seen["layer"], "hidden_states": layers[1].input_layernorm(seen["layer"]["hidden_states"])}
    got = row_attention(layers[1].self_attn, peek, rows, peek["attention_mask"])
    torch.testing.assert_close(got, expected[1], **CLOSE)
    assert got.shape == (2, rows.shape[1], length) and got.dtype == torch.float32


@pytest.mark.parametrize("kind", ["one", "padded"])
def test_windows_without_a_mask_that_draws_them(kind, flash):  # noqa: F811
    """Oracle: eager attention with a window of 9 tokens; flash attention gets the window as a number, if any mask a
    2-D one."""
    model = tiny.build("mistral3", "eager", torch.float32)
    model.config.text_config.sliding_window = 9
    inputs = tiny.batch("mistral3", kind, torch.float32)
    rows = text_rows(inputs)
    expected = eager_rows(model, inputs, rows)[1]
    seen, _ = capture(use_fake_flash(model), inputs)
    mask = seen[1]["attention_mask"]
    assert (mask is None) == (kind == "one") and (expected[:, -1] > 0).sum() == 9 * len(rows)
    got = row_attention(tiny.text_model(model).layers[1].self_attn, seen[1], rows, mask)
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("name", ["llava", "mistral3", "gemma3"])
def test_rows_look_at_earlier_turns(name):
    """Oracle: eager attention of the whole prompt at once; here its last tokens come after the first are cached."""
    model = tiny.build(name, "eager", torch.float32)
    inputs = tiny.batch(name, "one", torch.float32)
    length, new = inputs["input_ids"].shape[1], 4
    rows = torch.tensor([[0, 2, 3]])
    expected = eager_rows(model, inputs, rows + length - new)[1]
    model.set_attn_implementation("sdpa")
    first = {key: value[:, :-new] if value.shape[-1:] == (length,) else value for key, value in inputs.items()}
    cache = capture(model, first, use_cache=True)[1].past_key_values
    rest = {key: inputs[key][:, -new:] for key in ("input_ids", "token_type_ids") if key in inputs}
    rest = {**rest, "attention_mask": inputs["attention_mask"], "past_key_values": cache}
    seen, out = capture(model, rest)
    attn = tiny.text_model(model).layers[1].self_attn
    got = row_attention(attn, seen[1], rows, seen[1]["attention_mask"], out.past_key_values.layers[1].keys)
    torch.testing.assert_close(got, expected, **CLOSE)


def test_only_the_asked_rows_are_projected():
    """Oracle: the shapes that reach the projections when the keys are there already."""
    model = tiny.build("llava", dtype=torch.float32)
    seen, out = capture(model, tiny.batch("llava", "padded", torch.float32))
    attn, shapes = tiny.text_model(model).layers[1].self_attn, []
    for part in (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj):
        part.register_forward_hook(lambda module, args, out: shapes.append(tuple(args[0].shape)))
    rows = torch.tensor([[20, 21], [3, 24]])
    row_attention(attn, seen[1], rows, seen[1]["attention_mask"], out.past_key_values.layers[1].keys)
    assert shapes == [(2, 2, 64)]  # queries of two rows, and nothing else
    shapes.clear()
    row_attention(attn, seen[1], rows, seen[1]["attention_mask"])
    assert shapes == [(2, 2, 64), tuple(seen[1]["hidden_states"].shape)]  # and the keys of all, where none are stored


def test_adapted_projections_are_used():
    """Oracle: eager attention of the same model with random LoRA weights on its query and key projections."""
    peft = pytest.importorskip("peft")
    model = tiny.build("llava", "eager", torch.float32)
    inputs = tiny.batch("llava", "padded", torch.float32)
    rows = text_rows(inputs)
    plain = eager_rows(model, inputs, rows)[1]
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|k_proj)", init_lora_weights=False)
    peft.get_peft_model(model, config).eval()
    expected = eager_rows(model, inputs, rows)[1]
    assert (expected - plain).abs().max() > 1e-3
    seen, _ = capture(model, inputs)
    got = row_attention(tiny.text_model(model).layers[1].self_attn, seen[1], rows, seen[1]["attention_mask"])
    torch.testing.assert_close(got, expected, **CLOSE)


def test_nothing_is_changed_and_threads_do_not_meet():
    """Oracle: the same rows one by one; meanwhile other threads run the model itself, bit for bit as before."""
    model = tiny.build("llava", dtype=torch.float32)
    registry = dict(AttentionInterface._global_mapping)
    batches = [tiny.collate("llava", [sample], torch.float32) for sample in tiny.samples("llava", "padded")]
    layer = tiny.text_model(model).layers[1].self_attn
    captured = [capture(model, batch)[0][1] for batch in batches]
    before, config = dict(vars(layer)), dict(vars(layer.config))
    logits = [model(**batch).logits for batch in batches]

    def rows(i):
        return row_attention(layer, captured[i % 2], torch.tensor([[20]]))

    def forward(i):
        return model(**batches[i % 2]).logits

    alone = [rows(i) for i in range(2)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: (rows if i % 4 < 2 else forward)(i), range(24)))
    for i, answer in enumerate(answers):
        assert torch.equal(answer, (alone if i % 4 < 2 else logits)[i % 2])
    assert dict(vars(layer)) == before and dict(vars(layer.config)) == config
    assert dict(AttentionInterface._global_mapping) == registry


@pytest.mark.parametrize(
    ("text", "name", "where"),
    [
        ("last_query_attention", "last_query_attention", None),
        ("last_query_attention:peek", "last_query_attention", "peek"),
        ("text_attention:3", "text_attention", 3),
        ("text_attention_max", "text_attention_max", None),
        ("cls_attention", "cls_attention", (-2,)),
        ("cls_attention:-4,-3,2", "cls_attention", (-4, -3, 2)),
        ("vision_attention", "vision_attention", (-1,)),
        ("vision_attention:7", "vision_attention", (7,)),
    ],
)
def test_needs_are_read(text, name, where):
    need = parse(text)
    assert (need.text, need.name, need.where) == (text, name, where)
    assert need.in_decoder == (name == "last_query_attention" or name.startswith("text_attention"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last_querry_attention", "did you mean 'last_query_attention'.*known: last_query_attention, text_attention"),
        ("entropy", "unknown signal 'entropy'; known: last_query_attention, .*vision_attention"),
        ("text_attention:-1", "takes nothing, ':peek' or the index of one decoder layer, as in 'text_attention:3'"),
        ("text_attention:1,2", "the index of one decoder layer"),
        ("text_attention:last", "the index of one decoder layer"),
        ("cls_attention:peek", "index of a layer of the vision tower, as in 'cls_attention:-2', or several"),
        ("vision_attention:-2,-1", "index of a layer of the vision tower, as in 'vision_attention:-2'$"),
        ("vision_attention:", "cannot read 'vision_attention:'"),
    ],
)
def test_needs_that_cannot_be_read_teach(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "site", "layer"),
    [
        ("text_attention", BEFORE_LLM, None),
        ("text_attention", 0, None),
        ("text_attention", 2, RowLayer(1, False)),
        ("text_attention", inside(2), RowLayer(2, False)),
        ("text_attention:1", 2, RowLayer(1, False)),
        ("text_attention:2", 2, None),
        ("text_attention:2", inside(2), RowLayer(2, False)),
        ("text_attention:peek", BEFORE_LLM, RowLayer(0, True)),
        ("text_attention:peek", 2, RowLayer(2, True)),
        ("text_attention:peek", inside(2), None),
    ],
)
def test_the_layer_that_serves_a_site(text, site, layer):
    assert row_layer(parse(text), site) == layer


def test_needs_are_checked_against_sites_and_layers():
    model = tiny.build("llava")
    family = family_of(model)

    def check(sites, *needs):
        return check_needs(SimpleNamespace(needs=frozenset(needs), sites=sites), family, model)

    assert [need.text for need in check((2,), "text_attention", "last_query_attention:peek")] == [
        "last_query_attention:peek",
        "text_attention",
    ]
    assert check((BEFORE_LLM, 2), "text_attention")  # one site that can be served is enough
    assert needed(SimpleNamespace(needs=frozenset())) == ()
    with pytest.raises(
        ValueError, match=r"has not run at the policy's sites \(before the LLM\).*'text_attention:peek'"
    ):
        check((BEFORE_LLM,), "text_attention")
    with pytest.raises(ValueError, match=r"'text_attention:3' looks at a decoder layer that has not run .*\(layer 2\)"):
        check((2,), "text_attention:3")
    with pytest.raises(ValueError, match="asks for decoder layer 4; this model has layers 0 to 3"):
        check((9,), "text_attention:4")


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_wrap_refuses_class_attention_without_a_class_token(name):
    model = tiny.build(name)
    policy = SimpleNamespace(needs=frozenset({"cls_attention:0"}), sites=(-1,))
    if name in ("llava", "llava_next", "llava_next_video", "internvl", "video_llava"):
        assert [need.where for need in check_needs(policy, family_of(model), model)] == [(0,)]
    else:
        with pytest.raises(ValueError, match="class token, and the tower of .* has none. Ask for 'vision_attention'"):
            check_needs(policy, family_of(model), model)


@pytest.mark.parametrize("layer", [-4, 3])
def test_wrap_refuses_layers_that_the_tower_does_not_have(layer):
    model = tiny.build("llava")
    policy = SimpleNamespace(needs=frozenset({f"vision_attention:{layer}"}), sites=(-1,))
    with pytest.raises(ValueError, match=f"layer {layer} of the vision tower, which has layers 0 to 2"):
        check_needs(policy, family_of(model), model)
