"""FLOPs budgets. Oracle: the rows that every layer's projections really get, and the sizes of its weights."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import pytest
import torch
from transformers import MixtralConfig

import vtprune
from tests import oracle, tiny
from vtprune import BEFORE_LLM, POLICIES, AtFlops, ModelFacts, ScorePolicy, Selection, Then

FAMILIES = ("llava", "qwen2_5_vl", "gemma3")
LAYERS = 8


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float32, layers=LAYERS)


class Meter:
    """FLOPs of each decoder layer in the last forward of one sample: 2 for each weight and row, 4 for each allowed pair
    of a query and a key and each channel of all heads."""

    def __init__(self, model):
        self.layers = tiny.text_model(model).layers
        self.rows = {}
        self.hooks = [
            getattr(block, name).register_forward_pre_hook(lambda m, args, key=(i, name): self.see(key, args[0]))
            for i, layer in enumerate(self.layers)
            for block, name in ((layer.self_attn, "q_proj"), (layer.mlp, "up_proj"))
        ]

    def see(self, key, x):
        # signals project a few rows for themselves; the layer projects all
        self.rows[key] = max(self.rows.get(key, 0), x.shape[1])

    def layer(self, index: int) -> int:
        n, m = self.rows[index, "q_proj"], self.rows[index, "up_proj"]
        return self.cost(index, n, m)

    def cost(self, index: int, n: int, m: int) -> int:
        layer = self.layers[index]
        weights = {
            name: sum(p.numel() for key, p in part.named_parameters() if key.endswith("proj.weight"))
            for name, part in (("attention", layer.self_attn), ("mlp", layer.mlp))
        }
        channels = layer.self_attn.q_proj.out_features
        return 2 * weights["attention"] * n + 2 * weights["mlp"] * m + 4 * channels * n * (n + 1) // 2

    def total(self) -> int:
        return sum(map(self.layer, range(LAYERS)))

    def of(self, n: int) -> int:
        """With ``n`` tokens in all layers."""
        return sum(self.cost(i, n, n) for i in range(LAYERS))


@pytest.fixture
def meter(request):
    found = []

    def make(family):
        found.append(Meter(model_of(family)))
        return found[-1]

    yield make
    for one in found:
        for hook in one.hooks:
            hook.remove()


POLICIES_AT = [
    ("fastv", {"keep_flops": 0.7}, (2,)),
    ("divprune", {"keep_flops": 0.5}, (BEFORE_LLM,)),
    ("transprune", {"keep_flops": 0.75}, (2, 3)),
    ("aim", {"keep_flops": 0.7}, (BEFORE_LLM, 5, 6, 7)),
    ("framefusion", {"keep_flops": 0.55}, None),
    ("framefusion", {"keep_ratio": 0.5, "budget": "flops"}, None),
    ("fastv", {"keep_ratio": 0.5, "budget": "flops"}, (2,)),
    ("uniform >> fastv", {"keep_ratio": 0.5}, (BEFORE_LLM, 2)),
    ("divprune >> fastv >> random", {"keep_flops": 0.6}, None),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_spends_what_was_asked_but_for_one_token(family, meter):
    """Never more; and less than one token's worth less, where one token more at every site would be too much."""
    model, inputs, found = model_of(family), tiny.batch(family, "one", torch.float32), meter(family)
    length, visual = inputs["input_ids"].shape[1], int(tiny.visual(inputs).sum())
    for name, options, sites in POLICIES_AT:
        if name.endswith("random"):
            name = Then(POLICIES["divprune"](), POLICIES["fastv"](layer=2), POLICIES["random"](layer=4))
        found.rows.clear()
        with vtprune.pruned(model, name, **options) as report, torch.no_grad():
            model(**inputs)
            assert sites is None or tuple(record.site for record in report.sites) == sites
            ratio = options.get("keep_flops")
            kept = length - visual + round(visual * options.get("keep_ratio", 1))
            goal = found.of(length) * ratio if ratio else found.of(kept)
            spent, token = found.total(), found.of(length) - found.of(length - 1)
            assert goal - token < spent <= goal, (family, name, options, report.tokens)
            assert report.achieved().flops == pytest.approx(spent / found.of(length), rel=1e-12)
            assert report.achieved().asked == list(options.values())[0]


def test_every_stage_saves_as_much_as_the_others(meter):
    """Oracle: the stages one after the other, each pruned by hand to what it kept."""
    model, inputs, found = model_of("qwen2_5_vl"), tiny.batch("qwen2_5_vl", "one", torch.float32), meter("qwen2_5_vl")
    length = inputs["input_ids"].shape[1]
    with vtprune.pruned(model, "uniform >> fastv", keep_ratio=0.4) as report, torch.no_grad():
        model(**inputs)
        (before, middle), (_, after) = ((r.before[0], r.after[0]) for r in report.sites)
        both = found.total()
    full, token = found.of(length), found.of(length) - found.of(length - 1)
    first = found.of(length - before + middle)
    assert before > middle > after
    assert abs((full - first) - (first - both)) < 2 * token
    found.rows.clear()
    by_hand = Then(POLICIES["uniform"](n_keep=middle), POLICIES["fastv"](n_keep=after))
    with vtprune.pruned(model, by_hand) as again, torch.no_grad():
        logits = model(**inputs).logits
        assert found.total() == both
        rows = [record.kept[0].tolist() for record in again.sites]
    with vtprune.pruned(model, "uniform >> fastv", keep_ratio=0.4) as report, torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
        assert [record.kept[0].tolist() for record in report.sites] == rows


@pytest.mark.parametrize(("family", "name"), [("llava", "fastv"), ("qwen2_5_vl", "framefusion")])
def test_a_batch_of_two_has_two_budgets(family, name):
    """Oracle: each sample alone, with a keep_ratio of its own."""
    model, kept = tiny.build(family, "sdpa", torch.float64, layers=LAYERS), []

    def run(inputs):
        with vtprune.pruned(model, name, keep_flops=0.7) as report:
            logits = oracle.text_logits(model, inputs)
            kept.append(report.tokens)
            assert all(0.65 < report.achieved(b).flops <= 0.7 for b in range(len(logits)))
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, "ragged"))
    together, *alone = kept
    assert together == [one for [one] in alone] and together[0] != together[1]


def test_before_the_llm_a_share_of_the_tokens_costs_what_it_costs():
    """Oracle: the policy itself. All of the FLOPs, or all of the tokens, change no bit."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged", torch.float32)
    rows = []
    for more in ({}, {"budget": "flops"}):
        with vtprune.pruned(model, "divprune", keep_ratio=0.3, **more) as report, torch.no_grad():
            model(**inputs)
            rows.append([kept.tolist() for kept in report.sites[0].kept])
    assert rows[0] == rows[1]
    with torch.no_grad():
        plain = model(**inputs).logits
    for options in ({"keep_flops": 1.0}, {"keep_ratio": 1.0, "budget": "flops"}):
        with vtprune.pruned(model, "fastv", **options), torch.no_grad():
            assert torch.equal(model(**inputs).logits, plain)


def test_a_budget_that_cannot_be_met_is_told():
    """FastV's first two of eight layers alone are more than a fifth of the FLOPs."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, "fastv", keep_flops=0.2) as report, torch.no_grad():
        model(**inputs)
        assert report.tokens == [(16, 1)]
        least = f"FastV leaves {report.achieved().flops:.1%} of them at least"
        assert any(least in note and "the budget is 20.0%" in note for note in report.notes)
        assert "asked for: 0.2 (of the FLOPs of the decoder's layers)" in str(report)
        with vtprune.options(model, keep_flops=0.9):
            model(**inputs)
            assert report.tokens[0][1] > 10
        with vtprune.options(model, keep_ratio=0.75):
            model(**inputs)
            assert report.achieved().asked == 0.75 and report.tokens[0][1] == 10


def test_the_next_stage_makes_good_what_one_cannot_save():
    """Oracle: by hand. FastV behind six of eight layers can save little, so uniform has to save nearly all."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    late = Then(POLICIES["uniform"](), POLICIES["fastv"](layer=7))
    with vtprune.pruned(model, late, keep_flops=0.6) as report, torch.no_grad():
        model(**inputs)
        assert report.achieved().flops == pytest.approx(0.6, abs=0.03) and report.achieved().flops <= 0.6
        assert report.tokens[0][1] < 3


@dataclass
class Silent:
    """A policy that does not tell what it leaves."""

    keep_ratio: float = 0.5
    needs: ClassVar[frozenset] = frozenset()
    sites: ClassVar[tuple] = (BEFORE_LLM,)

    def select(self, tokens):
        return Selection.all(tokens)


@dataclass
class Twice(ScorePolicy):
    """Acts at two sites and says nothing of it."""

    sites: ClassVar[tuple] = (1, 2)


MOE = ModelFacts("mixtral", 2, 8, True, True, decoder=MixtralConfig())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: AtFlops(POLICIES["fastv"]()), ValueError, "give keep_flops.*or keep_ratio"),
        (lambda: AtFlops(POLICIES["fastv"](), 0.5, 0.5), ValueError, "keep_flops=0.5 and keep_ratio=0.5"),
        (lambda: AtFlops(POLICIES["fastv"](), 75), ValueError, r"KEPT, in \(0, 1\]; got 75"),
        (lambda: AtFlops(POLICIES["fastv"](), keep_ratio=0), ValueError, "KEPT.*got 0"),
        (lambda: AtFlops(POLICIES["none"](), 0.5), ValueError, "KeepAll has no keep_ratio"),
        (lambda: AtFlops(Silent(), 0.5), ValueError, "Silent has no forecast"),
        (lambda: AtFlops(Twice(), 0.5), ValueError, "Twice has no forecast"),
        (lambda: AtFlops(POLICIES["prumerge"](ratio=0.2), 0.5), ValueError, "ratio counts the centres"),
        (lambda: AtFlops(Then(POLICIES["pool"](n_keep=9), POLICIES["fastv"]()), 0.5), ValueError, "n_keep=9.*leave it"),
        (lambda: AtFlops(POLICIES["aim"](merge_ratio=0.2), 0.5), ValueError, "give it alone"),
        (lambda: vtprune.api.named_policy("fastv", {"budget": "flops"}), ValueError, "takes keep_ratio.*got none"),
        (
            lambda: vtprune.api.named_policy("fastv", {"keep_flops": 0.5, "n_keep": 3}),
            ValueError,
            "n_keep=3 and keep_f",
        ),
        (lambda: vtprune.wrap(model_of("llava"), Silent(), keep_flops=0.5), ValueError, "Silent has no forecast"),
        (
            lambda: AtFlops(POLICIES["fastv"](), 0.5).fitted(
                ModelFacts("mixtral", 2, 8, True, True, 0, MixtralConfig())
            ),
            NotImplementedError,
            "cannot be met in this mixtral.*num_local_experts",
        ),
    ],
)
def test_mistakes_are_told(make, error, words):
    with pytest.raises(error, match=words):
        make()
    assert not vtprune.is_wrapped(model_of("llava"))
