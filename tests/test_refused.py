"""Models that cannot be pruned: the error names them, the reason and what to do, and nothing has changed."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

import vtprune
from benchmarks import readme
from tests import oracle, refused_models, tiny
from tests.probe import ByNorm, answer, traces, visible
from tests.tiny_parts import END, IMAGE, START, Sample, noise, words
from vtprune import BEFORE_LLM, cli, inside
from vtprune.families.base import FAMILIES
from vtprune.refused import REFUSED, check_known

TEXT = {
    "qwen4_exp": {
        **{"num_hidden_layers": 4, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 256},
        **{"indexer_budget": 64, "indexer_compress_ratio": 4},
    },
    "mllama": {"num_hidden_layers": 5},
    **{name: {"num_hidden_layers": 4} for name in ("dots3_note", "glm5_next", "mistral_large4", "nemotron_h_omni")},
}
USUAL = ("qwen4_exp", "inkling2", "nemotron_h_omni", "mllama", "pix2struct")
ALL = pytest.mark.slow(reason="real classes of every refused type; one of each kind runs by default")
# what its config's defaults lack cannot be guessed
UNBUILT = ("diffusion_gemma",)
TYPES = [pytest.param(n, marks=() if n in USUAL else ALL) for n in sorted(set(REFUSED) - set(UNBUILT))]


def refusal(model, policy="random", **options) -> str:
    """What ``wrap`` says; the model must be as it was."""
    before = traces(model)
    with pytest.raises(NotImplementedError) as error:
        vtprune.wrap(model, policy, **options)
    assert traces(model) == before and not vtprune.is_wrapped(model)
    text = str(error.value)
    assert "\n" not in text and type(model).__name__ in text or "layer" in text
    return text


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("model_type", TYPES)
def test_types_are_refused_by_name(model_type, strict):
    """Real classes. Oracle: traces of a wrap on every module; the model type, the reason and the next step are told."""
    model = refused_models.named(model_type, **TEXT.get(model_type, {}))
    text = refusal(model, strict=strict)
    assert f"model_type {model_type!r}" in text and REFUSED[model_type].why in text
    assert "`vtprune families`" in text


def test_a_type_whose_defaults_build_no_model_is_refused_too():
    model = SimpleNamespace(config=hf.DiffusionGemmaConfig())
    with pytest.raises(NotImplementedError, match="'diffusion_gemma'.*by diffusion"):
        check_known(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: hf.FalconH1Config(num_hidden_layers=2), "layer 0 of FalconH1Model has self_attn and mamba"),
        (lambda: hf.DeepseekV32Config(num_hidden_layers=2), "layer 0 of DeepseekV32Model has a DeepseekV32Indexer"),
        pytest.param(hf.ZambaConfig, "layer 2 of ZambaModel has self_attn and mamba", marks=ALL),
        pytest.param(hf.Zamba2Config, "layer 6 of Zamba2Model has self_attn and mamba", marks=ALL),
        pytest.param(hf.ZayaConfig, "layer 0 of ZayaModel has self_attn and conv_qk_depthwise", marks=ALL),
    ],
)
def test_a_known_model_around_such_a_decoder_is_refused_by_its_layers(config, words):
    """LLaVA around text models that have one layer, or all, of a kind that is refused. Oracle: as above."""
    assert words in refusal(refused_models.llava_with(config()))


def test_the_lists_name_every_refused_type(capsys):
    """Oracle: the data; no type is both known and refused."""
    assert not set(REFUSED) & set(FAMILIES)
    assert cli.main(["families"]) == 0
    told, table = capsys.readouterr().out, readme.refused()
    for name, one in REFUSED.items():
        assert name in told and one.why in told and f"`{name}`" in table and one.why in table


# -------------------------------------------------------------------- features added in the middle of the layers' loop


@cache
def granite():
    return refused_models.granite4_vision()


def picture(crops: tuple[int, int], seed: int) -> Sample:
    """A thumbnail of 2 x 2 tokens and a view of as many in each crop, whose rows end in newlines; pinpoints of 28."""
    high, wide = (2 * n for n in crops)
    tiles = 1 + crops[0] * crops[1]
    size = torch.tensor([[28 * crops[0], 28 * crops[1]]])
    ids = (START, *[IMAGE] * (4 + high * (wide + 1)), END)
    return Sample(ids, {"pixel_values": noise(seed, 1, tiles, 3, 28, 28), "image_sizes": size})


def prompts() -> tiny.Batch:
    """Two samples of unequal length."""
    one = Sample((1,)) + words(3, 1) + picture((2, 2), 2) + words(6, 3)
    two = Sample((1,)) + words(3, 4) + picture((1, 1), 5) + words(2, 6) + picture((1, 2), 7) + words(5, 8)
    return tiny.collate("granite4_vision", [one, two])


@pytest.mark.parametrize("sites", [(2,), (3, 5), (inside(2),)])
def test_sites_behind_the_last_injection_are_pruned(sites):
    """Oracle: masked columns at full length, greedy tokens and logits of every step and of every text position."""
    model, inputs = granite(), prompts()
    with vtprune.pruned(model, ByNorm(sites)) as report:
        got, kept = answer(model, inputs), visible(model)
        logits = oracle.text_logits(model, inputs)
        assert [one.grids for one in report.kept(0)] == [((1, 2, 2), (1, 4, 4))]
        assert [one.grids for one in report.kept(1)] == [((1, 2, 2), (1, 2, 2)), ((1, 2, 2), (1, 2, 4))]
        assert not report.notes
    assert any(float(mask.float().mean()) < 1 for mask in kept.values())
    moved = {3 if site == inside(2) else site: mask for site, mask in kept.items()}
    with oracle.MaskedColumns(model, moved):
        expected, expected_logits = answer(model, inputs), oracle.text_logits(model, inputs)
    assert torch.equal(got[0], expected[0])
    for a, b in zip([*got[1], *logits], [*expected[1], *expected_logits], strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sites", [(BEFORE_LLM,), (0,), (1, 4), (inside(1), 3)])
def test_sites_before_the_last_injection_are_refused(sites):
    text = refusal(granite(), ByNorm(sites))
    assert "before decoder layer 2" in text and "layer=2" in text and "Granite4VisionForConditionalGeneration" in text


def test_a_site_before_the_injection_would_have_failed():
    """Why it is refused: without the check the model itself breaks, on features that no longer fit."""
    model = granite()
    family = FAMILIES["granite4_vision"]
    from vtprune.plan import Plan
    from vtprune.pruner import Pruner

    pruner = Pruner(model, family, Plan(model, family, ByNorm((1,)), "original"))
    try:
        with pytest.raises((RuntimeError, IndexError)), torch.no_grad():
            model(**prompts())
    finally:
        pruner.close()
