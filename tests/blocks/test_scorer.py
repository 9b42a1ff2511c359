"""The trained scorer, against the released code's scores and the formula with a matrix of all pairs."""

import pytest
import torch
from safetensors.torch import save_file

from tests.policies.golden import load, weights
from vtprune.blocks.scorer import WEIGHTS, Scorer, load_scorer


def all_pairs(state, x):
    """The formula as it is written: q_i . k_j of all pairs, then the mean."""
    query = x @ state["q_proj.weight"].T + state["q_proj.bias"]
    key = x @ state["k_proj.weight"].T + state["k_proj.bias"]
    return (query @ key.T / query.shape[-1] ** 0.5).mean(-1)


def state_of(width=6, hidden=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(hidden, width), (hidden,)] * 2
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in zip(WEIGHTS, shapes)}


def saved(tmp_path, state):
    path = tmp_path / "scorer.safetensors"
    save_file(state, path)
    return path


def features(n, width=6):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1))


def test_the_golden_case(golden, tmp_path):
    """Oracle: the authors' released code, and the formula in float64."""
    case = load(golden("idpruner") / "scorer.npz")
    scorer = load_scorer(saved(tmp_path, weights(case)))
    scores = scorer(case["x"][0])
    torch.testing.assert_close(scores, case["scores"][0], rtol=0, atol=1e-5)
    exact = all_pairs({name: value.double() for name, value in weights(case).items()}, case["x"][0].double())
    torch.testing.assert_close(scores.double(), exact, rtol=0, atol=1e-6)
    assert scorer.width == 24


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_features_are_cast_and_sums_are_not_rounded(tmp_path, dtype):
    """Oracle: the formula in float64 on the rounded features; only the result is rounded once more."""
    state, x = state_of(dtype=dtype), features(50).double() + 1e-9
    scores = load_scorer(saved(tmp_path, state))(x)
    assert scores.dtype == dtype
    exact = all_pairs({name: value.double() for name, value in state.items()}, x.to(dtype).double())
    error = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 1e-5)
    torch.testing.assert_close(scores.double(), exact, rtol=torch.finfo(dtype).eps, atol=error)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "visual.importance_scorer.", "_orig_mod.", "_orig_mod.module.visual.importance_scorer."]
)
def test_prefixes_of_names_are_ignored_and_so_are_other_weights(tmp_path, prefix):
    """Oracle: the same weights under their plain names."""
    state, x = state_of(), features(9)
    other = {"visual.merger.q_proj.weight": torch.ones(3), "lm_head.weight": torch.ones(2, 2)}
    scorer = load_scorer(saved(tmp_path, {prefix + name: value for name, value in state.items()} | other))
    assert torch.equal(scorer(x), load_scorer(saved(tmp_path, state))(x))


def test_missing_weights_are_named(tmp_path):
    state = state_of()
    del state["k_proj.bias"]
    with pytest.raises(ValueError, match=r"lacks k_proj\.bias, .*it has k_proj\.weight, q_proj\.bias"):
        load_scorer(saved(tmp_path, state))
    with pytest.raises(ValueError, match=r"lacks q_proj\.weight, q_proj\.bias, k_proj\.weight, k_proj\.bias"):
        load_scorer(saved(tmp_path, {"other.weight": torch.ones(2)}))


def test_a_weight_that_is_there_twice_is_refused(tmp_path):
    state = state_of() | {"module.q_proj.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"'q_proj\.bias' twice.*'module\.q_proj\.bias'"):
        load_scorer(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("q_proj.weight", (4,)), ("k_proj.weight", (4, 5)), ("q_proj.bias", (6,)), ("k_proj.bias", (4, 1))],
)
def test_shapes_that_do_not_fit_are_shown(tmp_path, name, shape):
    with pytest.raises(ValueError) as error:
        load_scorer(saved(tmp_path, state_of() | {name: torch.zeros(shape)}))
    assert f"{name} {shape}" in str(error.value)


def test_dtypes_that_do_not_fit_are_shown(tmp_path):
    with pytest.raises(ValueError, match="float16"):
        load_scorer(saved(tmp_path, state_of() | {"q_proj.bias": torch.zeros(4).half()}))
    with pytest.raises(ValueError, match="int64"):
        load_scorer(saved(tmp_path, state_of(dtype=torch.int64)))


def test_other_files_are_refused_by_name(tmp_path):
    pickled = tmp_path / "scorer.bin"
    torch.save(state_of(), pickled)
    with pytest.raises(ValueError, match=r"scorer\.bin' is not a safetensors file.*pickled weights are not read"):
        load_scorer(pickled)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty' is not a safetensors file"):
        load_scorer(tmp_path / "empty")
    for missing in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            load_scorer(missing)


@pytest.mark.parametrize("shape", [(3, 7), (3,), (1, 3, 6)])
def test_features_of_another_width_are_refused_by_value(tmp_path, shape):
    scorer = load_scorer(saved(tmp_path, state_of()))
    with pytest.raises(ValueError) as error:
        scorer(torch.zeros(shape))
    assert "width 6" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.gpu
def test_weights_follow_the_features_once():
    """Oracle: the CPU."""
    scorer, x = Scorer(*state_of().values()), features(20)
    first = scorer(x.cuda())
    assert first.device.type == "cuda"
    torch.testing.assert_close(first.cpu(), scorer(x))
    assert scorer._on(first.device) is scorer._on(first.device)
