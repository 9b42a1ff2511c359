"""PACT, against the released code's clusters and merges, a worked example, plain loops and watched projections."""

import dataclasses
import math

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from vtprune.blocks.bounded_peaks import Bounded, nearest_centre
from vtprune.policies.pact import PACT, importance
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune_kernels.merge import merge_tokens


def made_up(keys, hidden, n_survive=None, sizes=None):
    """Tokens of which the first ``n_survive`` are what the mean query looks at; none is preferred without it."""
    n = len(keys)
    content = torch.zeros(1, n, 1)
    content[:, n if n_survive is None else n_survive :] = -60.0
    stops = torch.tensor(sizes or [n]).cumsum(0).tolist()
    segments = tuple(
        Segment(slice(stop - size, stop), source=i) for i, (size, stop) in enumerate(zip(sizes or [n], stops))
    )
    signals = {
        "keys:peek": keys[None],
        "unrotated_keys:peek": content,
        "unrotated_queries:peek": torch.ones(1, n, 1),
    }
    return VisualTokens(hidden, hidden[:1], segments, signals, site=4)


def test_released_clusters_and_merges_are_met(golden):
    """Oracle: the authors' code: centres, what joins them, sizes and means, pruned tokens that are near included."""
    paths = sorted(golden("pact").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        n, m = len(case["keys"]), len(case["pruned_keys"])
        keys, hidden = (
            torch.cat([case[name], case[f"pruned_{name}"].view(m, -1)]) if m else case[name]
            for name in ("keys", "hidden")
        )
        assert float(case["dc"]) == 2
        policy = PACT(
            survivors=(n + 0.5) / (n + m) if m else 1.0,
            cutoff=float(case["cutoff"]),
            rescue=float(case["coef_pruned"]),
        )
        found = policy.select(made_up(keys, hidden, n))
        assert found.keep.tolist() == case["centres"].tolist(), path.name
        joined = torch.where(found.merge < 0, -1, found.keep[found.merge.clamp(min=0)])
        assert joined.tolist() == case["labels"].tolist(), path.name
        merged = merge_tokens(hidden, found.merge, None, len(found.keep))
        torch.testing.assert_close(merged, case["merged"], atol=1e-5, rtol=1e-4)
        assert found.stands_for.tolist() == case["weights"].tolist()


def angles(*degrees):
    turn = torch.tensor(degrees).deg2rad()
    return torch.stack([turn.cos(), turn.sin()], 1)


def test_worked_example():
    """Keys at 0, 5 and 90 degrees: the second is densest and takes the first."""
    keys, hidden = angles(0.0, 5.0, 90.0), torch.tensor([[2.0], [4.0], [9.0]])
    found = PACT(survivors=1.0).select(made_up(keys, hidden))
    assert found.keep.tolist() == [1, 2] and found.merge.tolist() == [0, 0, 1]
    assert merge_tokens(hidden, found.merge, None, 2).flatten().tolist() == [3, 9]
    assert found.stands_for.tolist() == [2, 1]
    assert PACT(survivors=1.0, proportional=False).select(made_up(keys, hidden)).stands_for is None
    # tokens that stood for several before
    before = dataclasses.replace(made_up(keys, hidden), stands_for=torch.tensor([3.0, 1.0, 5.0]))
    assert PACT(survivors=1.0).select(before).stands_for.tolist() == [4, 5]


def test_a_pruned_token_joins_a_centre_that_is_near():
    """1 - cos is 0.134 at 30 degrees, 0.293 at 45 and 0.5 at 60; the bound is 1.5 * 0.21 = 0.315."""
    tokens = made_up(angles(0.0, 180.0, 30.0, 45.0, 60.0), torch.ones(5, 1), n_survive=2)
    assert PACT(survivors=0.4).select(tokens).merge.tolist() == [0, 1, 0, 0, -1]
    assert PACT(survivors=0.4, rescue=0).select(tokens).merge.tolist() == [0, 1, -1, -1, -1]


def by_hand(keys, cutoff):
    """Centres in the order they open, by two plain loops in double precision."""
    rows = keys.double().tolist()
    length = [math.hypot(*row) for row in rows]

    def far(i, j):
        cosine = sum(a * b for a, b in zip(rows[i], rows[j])) / (length[i] * length[j])
        return 0.0 if i == j else max(0.0, 1 - cosine)

    density = [sum(math.exp(-((far(i, j) / 2) ** 2)) for j in range(len(rows))) for i in range(len(rows))]
    centres = []
    for i in sorted(range(len(rows)), key=lambda i: -density[i]):
        if all(far(i, j) > cutoff for j in centres):
            centres.append(i)
    return centres


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.4, 1.2, 2.0])
def test_centres_are_the_plain_loop(cutoff, whole, monkeypatch):
    """Oracle: pairs one by one, with the matrix of distances and without it, in blocks that do not divide the count."""
    if not whole:
        monkeypatch.setattr("vtprune.blocks.bounded_peaks.WHOLE", 0)
        monkeypatch.setattr("vtprune.blocks.bounded_peaks.BLOCK", 16)
    keys = torch.randn(70, 3, generator=torch.Generator().manual_seed(5))
    assert Bounded(keys).centres(cutoff).tolist() == by_hand(keys, cutoff)


@pytest.mark.parametrize("k", [1, 2, 9, 33, 40])
def test_a_number_of_clusters_is_met_by_the_widest_cutoff(k):
    """Oracle: the plain loop opens so many at the cutoff found, and fewer at a wider one; all need none."""
    keys = torch.randn(40, 3, generator=torch.Generator().manual_seed(6))
    found, cutoff = Bounded(keys).exactly(k)
    assert found.tolist() == by_hand(keys, cutoff)[:k] and len(found) == k
    if 1 < k < 40:
        assert len(by_hand(keys, cutoff + 1e-3)) < k


def test_equal_and_empty_keys():
    """All equal: the lowest takes all. Rows of zeros are at distance 1 of everything, each a cluster."""
    found = PACT(survivors=1.0).select(made_up(torch.ones(6, 2), torch.ones(6, 2)))
    assert found.keep.tolist() == [0] and found.merge.tolist() == [0] * 6
    found = PACT(survivors=1.0).select(made_up(torch.zeros(3, 2), torch.ones(3, 2)))
    assert found.keep.tolist() == [0, 1, 2] and found.merge.tolist() == [0, 1, 2]
    assert PACT().select(made_up(torch.ones(1, 2), torch.ones(1, 2))).keep.tolist() == [0]
    assert [len(part) for part in nearest_centre(torch.zeros(0, 2), torch.ones(1, 2))] == [0, 0]


def test_importance_is_the_formula():
    """Oracle: head by head in double precision, two query heads for each key head."""
    generator = torch.Generator().manual_seed(8)
    q, k, h = (torch.randn(*shape, generator=generator) for shape in ((4, 9, 5), (2, 9, 5), (9, 7)))
    heads = [(k[i // 2].double() @ q[i].double().mean(0) / math.sqrt(5)).softmax(0) for i in range(4)]
    expected = torch.stack(heads).mean(0) * h.double().pow(2).sum(1).sqrt()
    torch.testing.assert_close(importance(q, k, h).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("n", "kept"), [(20, 11), (9, 4), (3, 1), (1, 1)])
def test_the_fraction_survives_and_the_released_threshold_loses_one(n, kept):
    """A cutoff of 0 clusters nothing that differs: what survives is what is kept."""
    hidden = torch.arange(1.0, n + 1)[:, None]
    tokens = made_up(angles(*torch.linspace(0, 300, n).tolist()), hidden)
    policy = PACT(cutoff=0.0, rescue=0.0)
    assert policy.select(tokens).keep.tolist() == list(range(n - kept, n))
    strict = PACT(cutoff=0.0, rescue=0.0, compat="released-strict-threshold")
    assert strict.select(tokens).keep.tolist() == list(range(min(n - kept + 1, n - 1), n))


def test_images_are_clustered_apart_unless_they_are_pooled():
    keys = angles(0.0, 1.0, 0.0, 1.0)
    apart = PACT(survivors=1.0).select(made_up(keys, torch.ones(4, 1), sizes=[2, 2]))
    assert apart.keep.tolist() == [0, 2] and apart.merge.tolist() == [0, 0, 1, 1]
    pooled = PACT(survivors=1.0, budget="prompt").select(made_up(keys, torch.ones(4, 1), sizes=[2, 2]))
    assert pooled.merge.tolist() == [0, 0, 0, 0]


def rotated_half(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_signals_are_the_projections_before_and_after_rotation(family):
    """Oracle: what the projections, or the norms after them, of the layer gave in the unpruned model, by hooks."""
    model, inputs, seen, took = tiny.build(family), tiny.batch(family, "padded"), {}, []
    attn = tiny.text_model(model).layers[1].self_attn
    for name in ("q", "k"):
        module = getattr(attn, f"{name}_norm", None) or getattr(attn, f"{name}_proj")
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, out))

    def tables(module, args, kwargs):
        seen["tables"] = kwargs["position_embeddings"]

    handle = attn.register_forward_pre_hook(tables, with_kwargs=True)
    model(**inputs, **oracle.positions(inputs))
    handle.remove()
    heads = {
        name: seen[name].reshape(*seen[name].shape[:2], -1, attn.head_dim).transpose(1, 2).clone()
        for name in ("q", "k")
    }

    class Look(PACT):
        def select(self, tokens):
            took.append({name: tokens.signals[name] for name in self.needs})
            return super().select(tokens)

    with vtprune.pruned(model, Look(layer=1, of=None)) as report:
        model(**inputs, **oracle.positions(inputs))
        rows = report.last.layout.rows
    for b, row in enumerate(rows):
        columns = row.columns[row.patch]
        torch.testing.assert_close(took[b]["unrotated_queries:peek"], heads["q"][b][:, columns])
        torch.testing.assert_close(took[b]["unrotated_keys:peek"], heads["k"][b][:, columns])
        if family == "llava":
            cos, sin = (table.expand(2, -1, -1)[b, columns] for table in seen["tables"])
            torch.testing.assert_close(took[b]["keys:peek"], rotated_half(heads["k"][b][:, columns], cos, sin))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_a_batch_is_its_samples_and_generates(family):
    """Oracle: every sample alone; the counts that were asked for."""
    model = tiny.build(family)

    def logits(inputs):
        with vtprune.pruned(model, "pact", keep_ratio=0.3) as report:
            found = oracle.text_logits(model, inputs)
            for b, row in enumerate(report.last.layout.rows):
                assert [len(one.rows) for one in report.kept(b)] == [
                    max(1, round(0.3 * int(source.patch.sum()))) for source in row.sources
                ]
        return found

    oracle.assert_batch_equals_rows(logits, family, tiny.samples(family, "ragged"))
    inputs = tiny.batch(family, "ragged")
    with vtprune.pruned(model, "pact"):
        tokens = tiny.greedy(model, inputs, 4).sequences
        assert torch.equal(tiny.greedy(model, inputs, 4, cache_implementation="static").sequences, tokens)


def test_the_layer_is_a_fraction_of_depth():
    for depth, layer in ((28, 4), (32, 5), (80, 11), (4, 1)):
        fitted = PACT().fitted(ModelFacts("llava", depth, 8, True, True))
        assert fitted.sites == (layer,) and fitted.fitted(ModelFacts("llava", depth, 8, True, True)) == fitted


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("survivors", (0, 1.5, True, float("nan"))),
        ("cutoff", (-0.1, 3, "near")),
        ("rescue", (-1, float("inf"), None)),
        ("layer", (0, 1.5, True)),
        ("of", (4, 1, "28")),
        ("proportional", (1, "yes", None)),
        ("compat", ("released", 1)),
    ],
)
def test_wrong_options_are_refused_by_value(option, values):
    for value in values:
        with pytest.raises(ValueError, match=option) as error:
            PACT(**{option: value})
        assert repr(value) in str(error.value)
