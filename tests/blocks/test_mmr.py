"""Greedy MMR, against the form with a matrix of all pairs, the released code's picks and scores in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.policies.golden import load
from vtprune.blocks.mmr import mmr
from vtprune_kernels import greedy_nearest, greedy_race

every_way = pytest.mark.parametrize("way", ["bounds", "products", "matrix"])


class Elsewhere(Tensor):
    """A tensor that claims not to be on the CPU, so that what is meant for other devices runs."""

    is_cpu = False


def choose(patch, way):
    """``mmr`` by one of its three ways, whatever the device."""
    patch.setattr(greedy_nearest, "few", lambda features, k: way == "matrix")

    def run(features, *args, **options):
        features = features.as_subclass(Elsewhere) if way == "products" else features
        return mmr(features, *args, **options).as_subclass(Tensor)

    return run


def literal(features, importance, k, trade_off=0.5, parallel_k=1):
    """The formulas as they are written down, with all similarities at hand."""
    importance = ((importance - importance.min()) / (importance.max() - importance.min() + 1e-6)).float()
    unit = features.float()
    unit = unit / (unit.norm(dim=-1, keepdim=True) + 1e-8)
    similarity = unit @ unit.T
    best = torch.full((len(unit),), -2.0)
    order = []
    while len(order) < k:
        score = trade_off * importance - (1 - trade_off) * best if order else importance.clone()
        score[order] = -torch.inf
        new = score.sort(descending=True, stable=True).indices[: min(parallel_k, k - len(order))]
        order += new.tolist()
        best = torch.maximum(best, similarity[new].amax(0))
    return order


@pytest.fixture
def by(monkeypatch):
    """``by("products")(...)`` is ``mmr`` by one of its three ways, whatever the device."""

    return lambda way: lambda *args, **options: choose(monkeypatch, way)(*args, **options).tolist()


def signs(n, width, generator):
    """Features whose cosines are exact in any order of summation: +-1 each, the width a power of four."""
    return (torch.randint(0, 2, (n, width), generator=generator) * 2 - 1).float()


def scene(n, width, seed, kind="clusters"):
    """Exact features and an importance with ties. clusters: near and exact duplicates. walk: each is like the last."""
    generator = torch.Generator().manual_seed(seed)
    x = signs(n, width, generator)
    flips = torch.randint(0, 12, (n, width), generator=generator) > 0
    if kind == "clusters":
        groups = torch.randint(0, max(1, n // 8), (n,), generator=generator)
        x = x[groups] * torch.where(flips | (torch.arange(n)[:, None] % 3 == 0), 1, -1)
    elif kind == "walk":
        x = x[0] * torch.where(flips, 1, -1).cumprod(0)
    importance = torch.randint(0, 6, (n,), generator=generator).float().exp()
    return x, importance


# ------------------------------------------------------------------------------------------------ hand-made, golden


@every_way
def test_worked_examples(by, way):
    """v3 wins over v2 only because a negative cosine counts, and over v1 because that is like v0."""
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0]])
    w = torch.tensor([3, 2.9, 1, 0])
    assert by(way)(x, w, 2) == [0, 3]
    assert by(way)(x, w, 2, 1.0) == [0, 1]
    assert by(way)(x, w, 2, parallel_k=2) == [0, 1]
    x = torch.tensor([[1, 0], [0.96, 0.28], [0, 1], [-0.6, 0.8]])
    assert by(way)(x, torch.tensor([0.4, 0.3, 0.2, 0.1]), 3) == [0, 3, 1]


@every_way
def test_the_golden_cases(golden, by, way):
    """Oracle: the authors' released code, in the order of its picks."""
    paths = sorted(golden("idpruner").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        features = case["inputs_embeds"][0][case["input_ids"][0] == case["image_token"]]
        order = case["greedy_order"].tolist()
        if len(order) == len(features):  # nothing to prune, so nothing was picked there
            continue
        options = {"trade_off": case["mmr_lambda"].item(), "parallel_k": case["parallel_k"].item()}
        assert by(way)(features, case["raw_scores"], len(order), **options) == order, path.name


# --------------------------------------------------------------------------------------------- the literal form


@every_way
@settings(max_examples=150)
@given(data=st.data())
def test_picks_are_those_of_the_literal_form(way, data):
    """Oracle: ``literal``, where all products are exact, so that ties are ties. Blocks of any size, small ones too."""
    n = data.draw(st.integers(1, 40))
    width = data.draw(st.sampled_from([1, 4, 16]))
    pool = data.draw(st.integers(1, n))  # at most so many different tokens
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    features = signs(pool, width, generator)[torch.randint(0, pool, (n,), generator=generator)]
    importance = torch.randint(0, data.draw(st.integers(1, 30)), (n,), generator=generator).float()
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    features, importance = features.to(dtype), importance.to(dtype)
    k, parallel_k = data.draw(st.integers(1, n)), data.draw(st.integers(1, 9))
    trade_off = data.draw(st.sampled_from([0, 0.25, 0.3, 0.5, 0.9, 1]))
    threads = data.draw(st.integers(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        for module in (greedy_nearest, greedy_race):
            patch.setattr(module, "FEW", data.draw(st.sampled_from([1, 2, 5, 1024])))
        patch.setattr(greedy_race, "TILE", data.draw(st.sampled_from([1, 4, 128])))
        patch.setattr(greedy_race, "ROWS", data.draw(st.sampled_from([1, 3, 256])))
        patch.setattr(torch, "get_num_threads", lambda: threads)
        before = features.clone(), importance.clone()
        order = choose(patch, way)(features, importance, k, trade_off, parallel_k)
    assert order.dtype == torch.int64 and order.shape == (k,)
    assert order.tolist() == literal(features, importance, k, trade_off, parallel_k)
    assert torch.equal(features, before[0]) and torch.equal(importance, before[1]), "inputs were changed"


@every_way
@pytest.mark.parametrize("kind", ["clusters", "walk", "random"])
@pytest.mark.parametrize(
    ("keep", "trade_off", "parallel_k"), [(0.1, 0.5, 1), (0.5, 0.5, 1), (0.3, 0, 1), (0.3, 0.7, 7)]
)
def test_picks_are_those_of_the_literal_form_on_many_tokens(by, way, kind, keep, trade_off, parallel_k):
    """Oracle: ``literal`` on exact products; many tokens, so that most bounds are never brought up to date."""
    features, importance = scene(1500, 64, 3, kind)
    k = round(1500 * keep)
    expected = literal(features, importance, k, trade_off, parallel_k)
    assert by(way)(features, importance, k, trade_off, parallel_k=parallel_k) == expected


@every_way
@pytest.mark.parametrize("trade_off", [0.0, 0.5])
def test_every_pick_is_the_best_to_rounding(by, way, trade_off):
    """Oracle: scores in float64. Features of any numbers, a smooth walk of near duplicates among them."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(1200, 48, generator=generator)
    features = torch.cat([steps[:600].cumsum(0), steps[600:] + 1])
    importance = torch.randn(1200, generator=generator).exp()
    order = by(way)(features, importance, 400, trade_off)
    unit = features.double() / features.double().norm(dim=-1, keepdim=True)
    scaled = (importance - importance.min()).double() / (importance.max() - importance.min() + 1e-6).double()
    assert order[0] == int(scaled.argmax())
    nearest = unit @ unit[order[0]]
    for i in range(1, 400):
        score = trade_off * scaled - (1 - trade_off) * nearest
        score[order[:i]] = -torch.inf
        assert score[order[i]] >= score.max() - 1e-6
        nearest = torch.maximum(nearest, unit @ unit[order[i]])


@every_way
def test_lambda_one_is_a_stable_ranking_and_so_is_one_round(by, way):
    """Oracle: a stable sort."""
    features, importance = scene(300, 16, 1)
    ranking = importance.sort(descending=True, stable=True).indices.tolist()
    assert by(way)(features, importance, 300, 1.0) == ranking
    for parallel_k in (120, 1000):
        assert by(way)(features, importance, 120, 0.2, parallel_k=parallel_k) == ranking[:120]


@every_way
def test_importance_is_scaled_in_its_own_dtype(by, way):
    """In bfloat16 256 and 257 are one number, so the first of both is picked; in float32 the larger."""
    x = torch.eye(3)
    assert by(way)(x, torch.tensor([0.0, 256, 257]), 1) == [2]
    assert by(way)(x, torch.tensor([0.0, 256, 257]).bfloat16(), 1) == [1]
    assert by(way)(x, torch.tensor([0, 256, 257]), 1) == [2]


@every_way
def test_tokens_without_length_are_like_nothing(by, way):
    """A row of zeros has cosine 0 to all: better than a twin, worse than an opposite."""
    x = torch.tensor([[1.0, 0], [2, 0], [0, 0], [-3, 0]])
    assert by(way)(x, torch.ones(4), 4, 0.0) == [0, 3, 2, 1]


# ------------------------------------------------------------------------------------------------ what it costs


class Watch(TorchDispatchMode):
    """The largest product that was made, how many multiplications all took, and how often the host waited."""

    def __init__(self):
        super().__init__()
        self.largest, self.work, self.waits, self.names = 0, 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.add(name)
        self.waits += name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")
        if name in ("mm", "mv", "addmv", "addmm", "bmm"):
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][:2]
            self.work += left.numel() * (right.shape[1] if right.dim() > 1 else 1)
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("way", ["bounds", "products"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("parallel_k", [1, 500, 1000])
def test_no_matrix_of_all_pairs_is_made(by, way, parallel_k, threads, monkeypatch):
    """3000 x 3000 similarities would be 9 million; half of the tokens are picked."""
    features, importance = scene(3000, 16, 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with Watch() as watch:
        by(way)(features, importance, 1500, parallel_k=parallel_k)
    assert 0 < watch.largest <= 1024 * 1500


@pytest.mark.parametrize("kind", ["clusters", "walk", "random"])
@pytest.mark.parametrize(("keep", "share"), [(0.1, 0.06), (0.25, 0.2), (0.5, 0.4)])
def test_few_similarities_are_computed(kind, keep, share):
    """Of those of all pairs. One product for each pick with all tokens is ``keep`` of them."""
    features, importance = scene(2880, 64, 5, kind)
    with Watch() as watch:
        mmr(features, importance, round(2880 * keep))
    assert 0 < watch.work <= share * 2880 * 2880 * 64


def test_the_way_for_other_devices_waits_for_none_of_its_picks(by):
    """Of its operators, run on a CPU, one reads a number back, however many are picked: whether all were finite."""
    features, importance = scene(200, 16, 4)
    for k, parallel_k in ((2, 1), (60, 1), (60, 7)):
        with Watch() as watch:
            by("products")(features, importance, k, 0.5, parallel_k)
        assert "mm" in watch.names
        assert watch.waits == 1


@pytest.mark.gpu
@pytest.mark.parametrize("parallel_k", [1, 5])
def test_a_gpu_picks_the_same(parallel_k):
    """Oracle: the CPU, on exact products."""
    features, importance = scene(1500, 64, 6)
    order = mmr(features.cuda(), importance.cuda(), 300, parallel_k=parallel_k)
    assert order.device.type == "cuda"
    assert order.tolist() == mmr(features, importance, 300, parallel_k=parallel_k).tolist()


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "1 to 4.*got 0"),
        ({"k": 5}, "1 to 4.*got 5"),
        ({"trade_off": 1.5}, "trade_off.*got 1.5"),
        ({"trade_off": float("nan")}, "trade_off.*got nan"),
        ({"parallel_k": 0}, "parallel_k.*got 0"),
        ({"importance": torch.ones(3)}, r"\(4, 2\) and \(3,\)"),
        ({"features": torch.ones(4)}, r"\(4,\) and \(4,\)"),
    ],
)
def test_wrong_arguments_are_refused_by_value(options, told):
    arguments = {"features": torch.ones(4, 2), "importance": torch.ones(4), "k": 2, **options}
    with pytest.raises(ValueError, match=told):
        mmr(**arguments)


@every_way
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(by, way, bad):
    good = torch.arange(8.0).view(4, 2)
    for features, importance in (
        (good, torch.tensor([1, bad, 0, 2])),
        (good.index_fill(0, torch.tensor(2), bad), good[:, 0]),
    ):
        with pytest.raises(ValueError, match="finite"):
            by(way)(features, importance, 2)
