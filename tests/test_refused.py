"""Models that cannot be pruned: the error names them, the reason and what to do, and nothing has changed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers as hf

import vtprune
from benchmarks import readme
from tests import refused_models
from tests.probe import traces
from vtprune import cli
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
