"""HoloV, against the released code's results, a worked example and the formulas spelt out in loops."""

import math

import pytest
import torch

import vtprune
from tests import tiny
from tests.policies.golden import load
from tests.policies.tiles import anyres_tokens
from vtprune.policies.holov import BLOCK, HoloV, cosine_variance
from vtprune.tokens import ModelFacts, Segment, VisualTokens

SIGNAL = "cls_attention:-2"


def tokens_of(x, attention, grids=()):
    """One image with these features (N, D) and this attention (N,) in one head."""
    return VisualTokens(x, x[:1], (Segment(slice(0, len(x)), grids),), {SIGNAL: attention[None, None]})


def emitted(policy, tokens):
    """(K, D) the tokens in the order in which they enter the LLM."""
    selection = policy.select(tokens)
    return tokens.hidden[selection.keep] if selection.values is None else selection.values


def cut(n, crops):
    """The rows of each run: n // crops tokens, the first n % crops one more; empty ones are none."""
    sizes = [n // crops + (i < n % crops) for i in range(crops)]
    return [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(crops) if sizes[i]]


def literal(x, attention, crops, k, beta=0.09):
    """(quota of each run, rows kept) by the formulas in float64; what a run cannot hold goes to the best with room."""
    x, a = x.double(), attention.double().tolist()
    value = []
    for rows in crops:
        u = [x[i] / (x[i].norm() + 1e-6) for i in rows]
        m, variance = len(u), []
        for i in range(m if m > 1 else 0):
            cosines = [float(u[i] @ u[j]) if i != j else 0.0 for j in range(m)]
            mean = sum(cosines) / (m - 1)
            variance.append(sum((c - mean) ** 2 for c in cosines) / (m - 1))
        scale = sum(1000 * a[i] for i in rows) / m / (sum(variance) / m + 1e-6)
        value.append(sum(1000 * a[i] for i in rows) / m + beta * scale * sum(variance) / m)
    weight = [v / (sum(value) + 1e-6) for v in value]
    quota = [math.floor(w * k) for w in weight]
    order = sorted(range(len(crops)), key=lambda c: -weight[c])
    for c in order[: k - sum(quota)]:
        quota[c] += 1
    budget = [min(q, len(rows)) for q, rows in zip(quota, crops)]
    while sum(budget) < k:
        for c in order:
            if sum(budget) < k and budget[c] < len(crops[c]):
                budget[c] += 1
    kept = [i for rows, q in zip(crops, budget) for i in sorted(rows, key=lambda i: (-a[i], i))[:q]]
    return quota, sorted(kept)


def test_released_results_are_met(golden):
    """Oracle: the authors' code: quotas, order and the tokens themselves, zeros included, exact."""
    paths = sorted(golden("holov").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        k, compat = int(case["k"]), "released-zero-pad, released-single-crop-scale"
        options = {"n_keep": k, "n_crops": int(case["crops"]), "beta": float(case["beta"])}
        for b, (x, attention) in enumerate(zip(case["feat"], case["attn"], strict=True)):
            tokens = tokens_of(x, attention)
            policy = HoloV(**options, order="method", compat=compat)
            crops = [torch.tensor(rows) for rows in cut(len(x), int(case["crops"]))]
            assert policy.quotas(x, attention, crops, k)[0] == case["quota"][b].tolist(), path.name
            assert torch.equal(emitted(policy, tokens), case["tokens"][b]), path.name
            rows = case["keep_official_order"][b]
            padded = bool((rows < 0).any())
            assert padded == (path.stem in ("case04", "case05"))
            if not padded:
                assert HoloV(**options).select(tokens).keep.tolist() == rows.sort().values.tolist(), path.name
            else:  # real tokens instead of zeros
                kept = HoloV(**options).select(tokens).keep.tolist()
                assert len(kept) == k
                if path.stem == "case05":  # the quotas are the same
                    assert set(rows[rows >= 0].tolist()) < set(kept)


def test_worked_example():
    """Two runs of three tokens, quotas 1 and 2."""
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1], [2, 0], [0, 3]])
    attention = torch.tensor([0.3, 0.1, 0.1, 0.2, 0.2, 0.1])
    assert HoloV(n_keep=3, n_crops=2).select(tokens_of(x, attention)).keep.tolist() == [0, 3, 4]
    x[3:] = x[[4, 3, 5]]
    attention[4] = 0.25
    ordered = emitted(HoloV(n_keep=3, n_crops=2, order="method"), tokens_of(x, attention))
    assert ordered.tolist() == [[1, 0], [1, -1], [2, 0]]


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 50])
def test_the_formulas(n):
    """Oracle: ``literal``, for counts that overflow small runs, runs of one token and fewer tokens than runs."""
    generator = torch.Generator().manual_seed(n)
    x, attention = torch.randn(n, 6, generator=generator), torch.rand(n, generator=generator).pow(3)
    for n_crops in (1, 4, 16):
        crops = cut(n, n_crops)
        for k in sorted({1, max(1, n // 3), max(1, n - 2), n}):
            policy, (quota, kept) = HoloV(n_keep=k, n_crops=n_crops), literal(x, attention, crops, k)
            assert policy.quotas(x, attention, [torch.tensor(rows) for rows in crops], k)[0] == quota
            assert policy.select(tokens_of(x, attention)).keep.tolist() == kept


def test_variance_of_large_crops_is_summed_block_by_block():
    """Oracle: the whole matrix in float64."""
    x = torch.randn(BLOCK + 77, 5, generator=torch.Generator().manual_seed(0))
    u = x.double() / (x.double().norm(dim=1, keepdim=True) + 1e-6)
    cosine = (u @ u.T).fill_diagonal_(0)
    m = len(x) - 1
    expected = (cosine - cosine.sum(1, keepdim=True) / m).square().sum(1) / m
    torch.testing.assert_close(cosine_variance(x).double(), expected, rtol=1e-4, atol=1e-6)


def test_equal_tokens_and_no_attention_at_all_keep_the_first_of_every_run():
    """Ties go to the lowest index; nothing is divided by nothing."""
    for attention in (torch.zeros(20), torch.full((20,), 0.05)):
        tokens = tokens_of(torch.ones(20, 4), attention)
        assert HoloV(n_keep=8, n_crops=4).select(tokens).keep.tolist() == [0, 1, 5, 6, 10, 11, 15, 16]
        assert HoloV(n_keep=8, n_crops=4).select(tokens_of(torch.zeros(20, 4), attention)).keep.tolist()[::2] == [
            0,
            5,
            10,
            15,
        ]


def test_runs_of_an_anyres_image_follow_its_tiles():
    """Oracle: ``literal`` on the tokens tile by tile, the thumbnail first."""
    generator = torch.Generator().manual_seed(2)
    attention = torch.rand(3, 16, generator=generator)
    tokens = anyres_tokens(2, 1, 4, {SIGNAL: attention[None, None]})
    x = torch.randn(48, 6, generator=generator)
    number = tokens.hidden[:, 0].long()
    features = VisualTokens(x[number], x[:1], tokens.segments, tokens.signals, coords=tokens.coords)
    kept = HoloV(n_keep=20, n_crops=5).select(features).keep
    assert sorted(number[kept].tolist()) == literal(x, attention.flatten(), cut(48, 5), 20)[1]
    assert number.tolist() != sorted(number.tolist())


def test_grid_crops_are_boxes():
    """Oracle: ``literal`` on the four quadrants of a grid of 4 x 6 tokens."""
    generator = torch.Generator().manual_seed(3)
    x, attention = torch.randn(24, 6, generator=generator), torch.rand(24, generator=generator)
    places = torch.tensor([(0, 0, r, c) for r in range(4) for c in range(6)])
    segment = Segment(slice(0, 24), ((1, 4, 6),))
    tokens = VisualTokens(x, x[:1], (segment,), {SIGNAL: attention[None, None]}, coords=places)
    quadrants = [
        [r * 6 + c for r in rows for c in columns]
        for rows in (range(2), range(2, 4))
        for columns in (range(3), range(3, 6))
    ]
    kept = HoloV(n_keep=9, n_crops=4, crops="grid").select(tokens).keep.tolist()
    assert kept == literal(x, attention, quadrants, 9)[1]
    assert kept != HoloV(n_keep=9, n_crops=4).select(tokens).keep.tolist()


def test_orders_and_zeros_need_positions_on_a_line():
    facts = ModelFacts("qwen2_5_vl", depth=4, width=8, class_token=False, line_positions=False)
    for options in ({"order": "method"}, {"compat": "released-zero-pad"}):
        with pytest.raises(ValueError, match="qwen2_5_vl"):
            HoloV(**options).fitted(facts)
    assert HoloV().fitted(facts).needs == {"vision_attention"}


@pytest.mark.parametrize("wrong", [{"n_crops": 0}, {"n_crops": 2.5}, {"beta": -1}, {"layer": None}, {"crops": "boxes"}])
def test_wrong_options_are_refused_by_value(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=option) as error:
        HoloV(**wrong)
    assert repr(value) in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_generate_keeps_what_the_formulas_say(family):
    """Oracle: ``literal`` on the projector's output and the attention maps of the eager tower."""
    model, inputs = tiny.build(family, "eager"), tiny.batch(family, "one")

    class Listen(HoloV):
        def select(self, tokens):
            seen.append(self.score(tokens))
            return super().select(tokens)

    seen: list = []
    features = encode(model, inputs)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        policy = Listen(keep_ratio=0.4, n_crops=4)
        with vtprune.pruned(model, policy) as report:
            tiny.greedy(model, inputs, 2)
            [kept] = report.kept()
        n = len(features)
        assert kept.rows.tolist() == literal(features, seen[-1], cut(n, 4), round(n * 0.4))[1]
        assert bool(report.notes) == (family == "qwen2_5_vl")
    if family == "llava":
        model.set_attn_implementation("eager")
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
        torch.testing.assert_close(seen[0], maps[-2][0, :, 0, 1:].mean(0).float(), rtol=1e-6, atol=0)


def encode(model, inputs):
    """(N, D): what the unwrapped model puts into the prompt for the only image."""
    keys = [key for key in ("pixel_values", "image_grid_thw") if key in inputs]
    return model.model.get_image_features(**{key: inputs[key] for key in keys}, return_dict=True).pooler_output[0]
