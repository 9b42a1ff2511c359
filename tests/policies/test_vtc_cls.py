"""VTC-CLS, against the released code's results, a worked example and a real CLIP tower."""

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import vtprune
from tests import tiny
from tests.policies.golden import load, weights
from vtprune.policies.base import ScorePolicy
from vtprune.policies.vtc_cls import VTCCLS, layers_from_start
from vtprune.tokens import Segment, VisualTokens


def tokens_of(rows, policy):
    """Visual tokens whose [CLS] rows (all layers, heads, N) are known, as ``policy`` asks for them."""
    [name] = policy.needs
    n = rows.shape[-1]
    hidden = torch.zeros(n, 2)
    return VisualTokens(hidden, hidden[:1], (Segment(slice(0, n)),), {name: rows[list(policy.layers)]})


def cls_rows(model, pixel_values):
    """(layers, heads, N): the [CLS] token's attention to the patches in every layer, from full attention maps."""
    attentions = model(pixel_values, output_attentions=True).attentions
    return torch.stack([attention[0, :, 0, 1:] for attention in attentions])


def tiny_clip(case):
    """The CLIP vision tower stored in the golden case, eager."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=7, attn_implementation="eager")).eval()
    state = {name.removeprefix("vision_model."): value for name, value in weights(case).items()}
    ours = {name.removeprefix("vision_model."): name for name in model.state_dict()}
    model.load_state_dict({ours[name]: value for name, value in state.items()}, assign=True, strict=False)
    missing = set(ours) - set(state)
    assert missing <= {"embeddings.position_ids"}, missing
    return model


def assert_score(score, expected, name):
    """Relative 1e-6 in float32, one unit in the last place in float16."""
    assert score.dtype == expected.dtype
    if expected.dtype == torch.float16:
        ulp = np.spacing(expected.abs().numpy()).astype(np.float64)
        assert (np.abs(score.double().numpy() - expected.double().numpy()) <= ulp).all(), name
    else:
        torch.testing.assert_close(score, expected, rtol=1e-6, atol=0, msg=lambda text: f"{name}: {text}")


def test_released_results_are_met(golden):
    """Oracle: the authors' code: kept patches and their features exact, scores to rounding."""
    paths = sorted(golden("vtc_cls").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        rows, k = case["cls_attn"], int(case["k"])
        policy = VTCCLS(n_keep=k, layers=layers_from_start(int(case["start_layer"]), len(rows)))
        tokens = tokens_of(rows, policy)
        assert_score(policy.score(tokens), case["score"], path.name)
        keep = policy.select(tokens).keep
        assert keep.tolist() == case["keep"].tolist(), path.name
        assert torch.equal(case["features"][:, keep], case["out_pre_proj"]), path.name


@torch.no_grad()
def test_released_results_are_met_from_pixels_on(golden):
    """Oracle: the authors' code on a tiny CLIP tower, from pixel values to kept patches."""
    path = golden("vtc_cls") / "tiny_clip_e2e.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    case = load(path)
    rows = cls_rows(tiny_clip(case), case["pixel_values"])
    torch.testing.assert_close(rows, case["cls_rows"], rtol=0, atol=1e-6)
    policy = VTCCLS(n_keep=int(case["k"]), layers=layers_from_start(int(case["start_layer"]), len(rows)))
    tokens = tokens_of(rows, policy)
    torch.testing.assert_close(policy.score(tokens), case["score"], rtol=0, atol=1e-6)
    assert policy.select(tokens).keep.tolist() == case["keep"].tolist()


def test_worked_example():
    """Head means (.2, .3, .2, .3) and (.1, .1, .4, .4) of layers 1 and 2; the other two favour patch 0."""
    rows = torch.tensor(
        [
            [[0.9, 0, 0, 0.05], [0.9, 0, 0, 0.05]],
            [[0.1, 0.4, 0.3, 0.2], [0.3, 0.2, 0.1, 0.4]],
            [[0.05, 0.15, 0.5, 0.3], [0.15, 0.05, 0.3, 0.5]],
            [[0.9, 0, 0, 0.1], [0.9, 0, 0, 0.1]],
        ]
    )
    policy = VTCCLS(n_keep=2, layers=layers_from_start(1, 4))
    torch.testing.assert_close(policy.score(tokens_of(rows, policy)), torch.tensor([0.3, 0.4, 0.6, 0.7]))
    assert policy.select(tokens_of(rows, policy)).keep.tolist() == [2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_score_dtype_decides_where_it_is_rounded(dtype):
    """Oracle: the sum of head means of the rounded rows in float64."""
    rows = torch.rand(6, 16, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = rows[2:5].double().mean(1).sum(0)
    model, single = (VTCCLS(layers=(2, 3, 4), score_dtype=name) for name in ("model", "float32"))
    score = {policy.score_dtype: policy.score(tokens_of(rows, policy)) for policy in (model, single)}
    assert score["model"].dtype == dtype and score["float32"].dtype == torch.float32
    torch.testing.assert_close(score["float32"].double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(score["model"].double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert not torch.equal(score["model"].double(), score["float32"].double())


@pytest.mark.parametrize(
    ("start", "n", "layers"),
    [(16, 24, (16, 17, 18, 19, 20, 21, 22)), (-3, 24, (21, 22)), (0, 3, (0, 1)), (-99, 3, (0, 1)), (22, 24, (22,))],
)
def test_a_start_layer_means_the_layers_up_to_the_last_but_one(start, n, layers):
    assert layers_from_start(start, n) == layers


@pytest.mark.parametrize(("start", "n"), [(23, 24), (-1, 24), (30, 24), (0, 1)])
def test_a_start_layer_that_leaves_no_layer_is_refused_by_value(start, n):
    with pytest.raises(ValueError, match=f"{n} lies from start_layer={start} "):
        layers_from_start(start, n)


def test_it_asks_for_its_layers_and_for_nothing_else():
    assert VTCCLS().needs == {"cls_attention:-4,-3,-2"}
    assert VTCCLS(layers=[20, 21, 22]).needs == {"cls_attention:20,21,22"}
    assert VTCCLS(layers=[20, 21, 22]) == VTCCLS(layers=(20, 21, 22))
    assert VTCCLS().positions == "compact"


@pytest.mark.parametrize("layers", [(-1,), (-3, -2, -1), (), "-3", 5, None, (1.5,), (True,), (3, 3)])
def test_wrong_layers_are_refused_by_value(layers):
    with pytest.raises(ValueError, match="layers") as error:
        VTCCLS(layers=layers)
    assert repr(layers) in str(error.value)


def test_a_wrong_score_dtype_is_refused_by_value():
    with pytest.raises(ValueError, match="'float64'"):
        VTCCLS(score_dtype="float64")


@torch.no_grad()
def test_released_results_are_met_inside_a_wrapped_model(golden):
    """Oracle: the authors' code on the same tower, which here sits in a LLaVA that ``vtprune.wrap`` prunes; logits: the
    bare decoder on a prompt that was made of the kept features alone."""
    path = golden("vtc_cls") / "tiny_clip_e2e.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    case = load(path)
    tower = tiny_clip(case)
    text = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower.config, text_config=text, image_token_index=9)
    ).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    layers = layers_from_start(int(case["start_layer"]), tower.config.num_hidden_layers)
    n = case["cls_rows"].shape[-1]
    inputs = {"input_ids": torch.tensor([[1, *[9] * n, 2, 3]]), "pixel_values": case["pixel_values"]}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with vtprune.pruned(model, "vtc_cls", layers=layers, n_keep=int(case["k"])) as report:
            out = model.generate(
                **inputs, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            assert report.kept()[0].rows.tolist() == case["keep"].tolist()
        states = model.model.vision_tower(case["pixel_values"], output_hidden_states=True).hidden_states
        words = model.get_input_embeddings()(torch.tensor([[1, 2, 3, int(out.sequences[0, -2])]]))
        image = model.model.multi_modal_projector(states[-2][:, 1:][:, case["keep"]])
        prompt = torch.cat([words[:, :1], image, words[:, 1:]], 1)
        logits = model.lm_head(model.model.language_model(inputs_embeds=prompt).last_hidden_state)[0, -2:]
        torch.testing.assert_close(torch.cat(out.logits), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "gemma3", "idefics3"])
def test_towers_without_a_class_token_use_the_stand_in_and_say_so(family):
    """Oracle: the rows of largest ``vision_attention``, as another policy gets it; towers with one do not need it."""

    class Listen(ScorePolicy):
        needs = frozenset({"vision_attention"})

        def score(self, tokens):
            return tokens.signals["vision_attention"]

    model, inputs = tiny.build(family), tiny.batch(family, "two_images")
    with vtprune.pruned(model, Listen(keep_ratio=0.4)) as report:
        tiny.greedy(model, inputs, 1)
        expected = report.sites[0].kept
    with vtprune.pruned(model, "vtc_cls", keep_ratio=0.4) as report:
        tiny.greedy(model, inputs, 1)
        assert all(map(torch.equal, report.sites[0].kept, expected))
        assert any("stand in for its class token" in note for note in report.notes)
        assert report.notes[0] in str(report)


def test_a_class_token_is_used_where_there_is_one():
    with vtprune.pruned(tiny.build("llava"), "vtc_cls", layers=(-2,)) as report:
        assert report.notes == []


def test_the_last_layer_is_refused_by_any_name():
    model = tiny.build("llava")
    last = model.config.vision_config.num_hidden_layers - 1
    with pytest.raises(ValueError, match=f"here {last}; got layers=\\(0, {last}\\)"):
        vtprune.wrap(model, "vtc_cls", layers=(0, last))
    with pytest.raises(ValueError, match="'both'"):
        VTCCLS(signal="both")
