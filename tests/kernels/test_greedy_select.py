"""greedy_select: every way to its picks against the formulas on all pairs, and against the released codes' picks."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.policies.golden import load
from vtprune_kernels import greedy_coverage, greedy_isolated, greedy_nearest, greedy_race
from vtprune_kernels.greedy_products import select_by_products
from vtprune_kernels.greedy_rules import DPP, MMR, Coverage, MatrixCoverage, MaxMin, with_tensors

greedy_select = importlib.import_module("vtprune_kernels.greedy_select")  # the package has the function of that name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULES = ["mmr", "maxmin", "dpp", "cover", "cover_add", "cover_plain", "matrix"]
EXACT = [name for name in RULES if name != "dpp"]
"""Rules whose scores of exact products are exact in any order of summation, so that ties are ties."""


def rule_of(name: str, worth: Tensor):
    return {
        "mmr": lambda: MMR(worth, 0.5),
        "maxmin": MaxMin,
        "dpp": lambda: DPP(worth),
        "cover": lambda: Coverage(worth),
        "cover_add": lambda: Coverage(worth, "add"),
        "cover_plain": Coverage,
        "matrix": lambda: MatrixCoverage(worth),
    }[name]()


def literal(features: Tensor, k: int, rule, eligible: Tensor | None = None, normalize: bool = True) -> list[int]:
    """The oracle: the formulas as they are written down, in float64, all pairs at hand; nothing is remembered."""
    x = features.double()
    length = (x.norm(dim=-1, keepdim=True).float() + 1e-8).double()  # as in the definition: 1e-8 is lost beside 1
    unit = x / length if normalize else x
    s = x if isinstance(rule, MatrixCoverage) else unit @ unit.T
    free = torch.ones(s.shape[1], dtype=torch.bool) if eligible is None else eligible.clone()
    order: list[int] = []
    if isinstance(rule, DPP):
        r = rule.relevance.double()
        kernel = r[:, None] * s * r
        least = rule.rank_tolerance * kernel.diagonal()[free].max() if free.any() else 0
    while len(order) < k:
        if not free.any():
            order.append(-1)
            continue
        if isinstance(rule, MMR):
            a = rule.importance.double()
            score = a if not order else rule.trade_off * a - (1 - rule.trade_off) * s[order].amax(0)
        elif isinstance(rule, MaxMin):
            others = s.masked_fill(~free, -torch.inf).fill_diagonal_(-torch.inf)
            score = -s[order].amax(0) if order else -others.amax(1)
        elif isinstance(rule, DPP):
            # the Schur complement of the picks, not the recurrence
            score = kernel.diagonal().clone()
            if order:
                columns = kernel[order]
                score -= (columns * torch.linalg.lstsq(kernel[order][:, order], columns).solution).sum(0)
            if score[free].max() <= least:
                score = r
        else:
            cover = s[:, order].amax(1).clamp(min=0) if order else torch.zeros(len(s))
            score = (s - cover[:, None]).clamp(min=0).sum(0)
            if rule.weight is not None:
                score = score + rule.weight.double() if rule.mode == "add" else score * rule.weight.double()
        order.append(int(score.masked_fill(~free, -torch.inf).argmax()))
        free[order[-1]] = False
    return order


class Elsewhere(Tensor):
    """A tensor that claims not to be on the CPU, so that what is meant for other devices runs."""

    is_cpu = False


def by_kernel(features, k, rule, *, eligible=None, normalize=True):
    pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")
    from vtprune_kernels.greedy_select_triton import greedy_select_triton

    there = [x if x is None else x.to(DEVICE) for x in (features, eligible)]
    rule = with_tensors(rule, lambda x: x.to(DEVICE))
    return greedy_select_triton(there[0], k, rule, eligible=there[1], normalize=normalize).cpu()


def by_products(features, k, rule, **options):
    order = greedy_select.greedy_select(features.as_subclass(Elsewhere), k, rule, **options)
    return order.as_subclass(Tensor)


WAYS = {"reference": greedy_select.greedy_select_reference, "products": by_products, "kernel": by_kernel}
every_way = pytest.mark.parametrize("way", WAYS)
torch_ways = pytest.mark.parametrize("way", ["reference", "products"])


def signs(n: int, width: int, g: torch.Generator) -> Tensor:
    """Features whose cosines are exact in any order of summation: +-1 each, the width a power of four."""
    return (torch.randint(0, 2, (n, width), generator=g) * 2 - 1).float()


def case(n: int, width: int, pool: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Exact features, at most ``pool`` different ones, and a worth with ties."""
    g = torch.Generator().manual_seed(seed)
    return signs(pool, width, g)[torch.randint(0, pool, (n,), generator=g)], torch.randint(0, 5, (n,), generator=g) / 4


def features_for(rule, features: Tensor) -> Tensor:
    """For a matrix of rows to cover: products with the tokens of even number."""
    return features[::2] @ features.T / 64 + 0.5 if isinstance(rule, MatrixCoverage) else features


# ------------------------------------------------------------------------------------------------ the literal forms


@torch_ways
@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=20)
@given(data=st.data())
def test_picks_are_those_of_the_literal_form(way, name, data):
    """Oracle: ``literal``, on exact products with many ties. Blocks of any size, any number of tokens eligible."""
    n = data.draw(st.integers(1, 40))
    x, worth = case(
        n, data.draw(st.sampled_from([1, 4, 16])), data.draw(st.integers(1, n)), data.draw(st.integers(0, 999))
    )
    rule = rule_of(name, worth)
    if isinstance(rule, MatrixCoverage):
        x = (x @ x.T)[: data.draw(st.integers(1, n))] / 16
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    eligible = data.draw(st.sampled_from([None, worth > 0, worth != 0.5, worth > 9]))
    k = data.draw(st.integers(0, n))
    with pytest.MonkeyPatch.context() as patch:
        for module in (greedy_race, greedy_nearest):
            patch.setattr(module, "FEW", few := data.draw(st.sampled_from([1, 2, 5, 1024])))
        for module in (greedy_race, greedy_isolated):
            patch.setattr(module, "TILE", data.draw(st.sampled_from([1, 4, 128])))
        patch.setattr(greedy_isolated, "SCOUTS", data.draw(st.sampled_from([1, 3, 32])))
        patch.setattr(greedy_isolated, "COARSE", data.draw(st.sampled_from([0.5, torch.inf])))
        patch.setattr(greedy_isolated, "bfloat16_is_fast", data.draw(st.sampled_from([bool, lambda: True])))
        patch.setattr(greedy_nearest, "TINY", min(few, data.draw(st.sampled_from([0, 96]))))
        patch.setattr(greedy_race, "ROWS", data.draw(st.sampled_from([1, 3, 256])))
        if data.draw(st.booleans()):
            patch.setattr(greedy_coverage, "_SMALL", 0)
            patch.setattr(greedy_coverage, "_BLOCK", data.draw(st.sampled_from([50, 2**18])))
        patch.setattr(greedy_coverage, "_STORED", data.draw(st.sampled_from([0, 2**28])))
        before = x.to(dtype)
        order = WAYS[way](given_ := before.clone(), k, rule, eligible=eligible)
    assert order.dtype == torch.int64 and order.shape == (k,)
    assert order.tolist() == literal(before, k, rule, eligible)
    assert torch.equal(given_, before), "the features were changed"


@pytest.mark.parametrize("name", EXACT)
def test_picks_are_those_of_the_literal_form_on_many_tokens(name):
    """Oracle: ``literal`` on exact products; so many tokens that most bounds are never brought up to date."""
    x, worth = case(1100, 64, 400)
    rule, k = rule_of(name, worth), 110 if name in ("mmr", "maxmin") else 12
    x = features_for(rule, x)
    assert greedy_select.greedy_select(x, k, rule).tolist() == literal(x, k, rule)


@pytest.mark.parametrize("kind", ["random", "walk"])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "relevant"])
@pytest.mark.parametrize(("n", "k"), [(150, 100), (1100, 90)])
@torch_ways
def test_every_dpp_pick_has_the_largest_residual(way, n, k, flat, kind):
    """Oracle: squared distances to the span of the picks by a QR factorization in float64, that knows no recurrence."""
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 256, generator=g)
    x = x if kind == "random" else x.cumsum(0) + 4 * x
    relevance = torch.ones(n) if flat else torch.rand(n, generator=g)
    order = WAYS[way](x, k, DPP(relevance)).tolist()
    assert len(set(order)) == k
    unit = relevance.double()[:, None] * x.double() / x.double().norm(dim=-1, keepdim=True)
    for t in range(0, k, 11):
        basis = torch.linalg.qr(unit[order[:t]].T).Q
        residual = unit.square().sum(1) - (unit @ basis).square().sum(1)
        residual[order[:t]] = -torch.inf
        assert residual[order[t]] >= residual.max() - 3e-6, t


@torch_ways
def test_every_pick_of_any_numbers_is_the_best_to_rounding(way):
    """Oracle: minimum distances and coverage gains in float64; a smooth walk and rows of one common direction."""
    g = torch.Generator().manual_seed(0)
    steps = torch.randn(1100, 48, generator=g)
    x = torch.cat([steps[:500].cumsum(0), steps[500:] + 1])
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    s = unit @ unit.T
    for rule in (MaxMin(), Coverage()):
        order = WAYS[way](x, 100, rule).tolist()
        assert len(set(order)) == 100
        for t in range(0, 100, 9):
            if isinstance(rule, Coverage):
                cover = s[:, order[:t]].amax(1).clamp(min=0) if t else torch.zeros(1100)
                score = (s - cover[:, None]).clamp(min=0).sum(0)
            else:
                score = -(s[order[:t]].amax(0) if t else s.clone().fill_diagonal_(-torch.inf).amax(0))
            score[order[:t]] = -torch.inf
            assert score[order[t]] >= score.max() - 2e-6 * (1100 if isinstance(rule, Coverage) else 1), t


# ------------------------------------------------------------------------------------------------------- the kernel


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 3), (17, 16, 7)], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_the_kernel_picks_the_same(name, shape):
    """Oracle: ``literal``; exact products, planted duplicates, some tokens not eligible and the rest fewer than k."""
    n, width, k = shape
    x, worth = case(n, width, max(1, n - 4), seed=n)
    rule = rule_of(name, worth)
    x = features_for(rule, x)
    assert by_kernel(x, k, rule).tolist() == literal(x, k, rule)
    eligible = torch.arange(n) % 3 > 0
    assert by_kernel(x.bfloat16(), k, rule, eligible=eligible).tolist() == literal(x.bfloat16(), k, rule, eligible)


def test_the_kernel_goes_through_several_blocks(monkeypatch):
    """Oracle: ``literal``. Widths, rows to cover and picks beyond one block; strides that are not contiguous."""
    pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")
    monkeypatch.setattr("vtprune_kernels.greedy_select_triton._BLOCK_K", 4)
    g = torch.Generator().manual_seed(5)
    x, worth = torch.randn(1025, 9, generator=g).T, torch.rand(9, generator=g)
    for rule in (MMR(worth), MaxMin()):
        assert by_kernel(x, 4, rule).tolist() == literal(x, 4, rule)
    x, worth = torch.randn(12, 64, generator=g)[:, ::2], torch.rand(24, generator=g)[::2]
    assert by_kernel(x, 11, DPP(worth)).tolist() == literal(x, 11, DPP(worth))
    matrix, worth = torch.rand(9, 70, generator=g).T, torch.rand(9, generator=g)
    assert by_kernel(matrix, 5, MatrixCoverage(worth)).tolist() == literal(matrix, 5, MatrixCoverage(worth))
    matrix = torch.rand(3, 40, generator=g)  # two blocks of columns
    assert by_kernel(matrix, 3, MatrixCoverage()).tolist() == literal(matrix, 3, MatrixCoverage())


def test_the_kernel_refuses_to_pick_several_at_a_time():
    with pytest.raises(NotImplementedError, match="parallel_k=2"):
        by_kernel(torch.ones(3, 2), 2, MMR(torch.ones(3), parallel_k=2))


@torch_ways
@pytest.mark.parametrize("name", RULES)
def test_nothing_in_gives_nothing_out(way, name):
    """No tokens, no picks, or features without width, which are all alike: the lowest of the most worthy is first."""
    assert (
        WAYS[way](torch.ones(4, 0) if name == "matrix" else torch.ones(0, 4), 0, rule_of(name, torch.ones(0))).numel()
        == 0
    )
    assert WAYS[way](torch.ones(3, 3), 0, rule_of(name, torch.ones(3))).shape == (0,)
    x = torch.ones(0, 3) if name == "matrix" else torch.ones(3, 0)
    assert WAYS[way](x, 3, rule_of(name, torch.ones(3))).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------ hand-made, golden


@every_way
def test_worked_examples(way):
    """Worked by hand in the plane; the first pick of MaxMin is a tie between 2 and 3."""
    x, a = torch.tensor([[1, 0], [0.96, 0.28], [0, 1], [-0.6, 0.8]]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    scaled = (a - 0.1) / 0.3
    pick = WAYS[way]
    assert pick(x, 3, MMR(scaled)).tolist() == [0, 3, 1]
    assert pick(x, 3, MaxMin()).tolist() == [2, 0, 3]
    assert pick(x, 2, DPP(scaled)).tolist() == [0, 2]
    assert pick(x, 3, Coverage()).tolist() == [1, 2, 3]
    assert pick(x, 3, Coverage(a)).tolist() == [0, 2, 3]
    x = torch.tensor([[1, 0], [0.96, 0.28], [0, 1], [0.8, 0.6]])
    assert pick(x, 3, MaxMin()).tolist() == [2, 0, 3]


@every_way
def test_two_that_are_each_others_nearest_are_a_tie(way):
    """Oracle: similarities added up exactly, one for each pair; the lower of two mutual neighbours is first."""
    ties = 0
    for seed in range(8 if way == "kernel" else 60):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
        unit = (x / (x.norm(dim=-1, keepdim=True) + 1e-8)).tolist()
        pair = {(i, j): math.fsum(a * b for a, b in zip(unit[i], unit[j])) for i in range(7) for j in range(i)}
        nearest = [max(value for ij, value in pair.items() if i in ij) for i in range(7)]
        ties += nearest.count(min(nearest)) > 1
        assert WAYS[way](x, 1, MaxMin()).tolist() == [nearest.index(min(nearest))], seed
    assert ties


@every_way
def test_beyond_the_rank_dpp_goes_by_relevance(way):
    """Three directions, one of them thrice and one twice: the twins come last, the more relevant first."""
    x = torch.tensor([[3.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [0, 0, 5], [0, 7, 0]])
    relevance = torch.tensor([1, 0.5, 0.75, 1, 0.625, 0.75])
    assert WAYS[way](x, 6, DPP(relevance)).tolist() == [0, 2, 4, 3, 5, 1]
    assert len(set(WAYS[way](torch.ones(5, 3), 5, DPP(torch.ones(5))).tolist())) == 5


@every_way
@pytest.mark.parametrize("name", ["mmr", "dpp", "cover", "matrix"])
def test_twins_are_one_token(way, name):
    """Oracle: ``literal``, up to which twin. Every token is there twice; the kernel's picks are the first twins.

    Of any numbers, so products of matrices may round twins apart; the kernel treats all tokens alike.
    """
    g = torch.Generator().manual_seed(11)
    x, worth = torch.randn(9, 24, generator=g), torch.rand(9, generator=g) + 0.1
    rule, x = rule_of(name, worth.repeat(2)), x.abs().T.repeat(1, 2) if name == "matrix" else x.repeat(2, 1)
    order = WAYS[way](x, 5, rule).tolist()
    assert [p % 9 for p in order] == [p % 9 for p in literal(x, 5, rule)]
    assert way != "kernel" or name == "cover" or max(order) < 9


@every_way
@pytest.mark.parametrize("name", RULES)
def test_features_may_be_taken_as_they_are(way, name):
    """Oracle: ``literal`` without lengths; picks differ from those with them."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(9, 12, generator=g) * torch.linspace(0.1, 0.9, 9)[:, None]
    worth = torch.rand(9, generator=g)
    rule = rule_of(name, worth)
    x = x[:, :9].abs() if name == "matrix" else x
    assert WAYS[way](x, 4, rule, normalize=False).tolist() == literal(x, 4, rule, normalize=False)


def golden_cases(folder, method):
    """(features, rule, eligible, picks, whether they are in order) of each golden case."""
    for path in sorted(folder.glob("case*.npz")):
        c = load(path)
        if method == "divprune":
            yield c["feat"], MaxMin(), None, c["order"], True
        elif method == "cdpruner":
            for x, r, keep in zip(c["feat"], c["relevance"], c["keep"]):
                yield x, DPP(r), None, keep, False
        elif method == "scope":
            mode = "add" if str(c["combine"]) == "add" else "multiply"
            for x, a, order in zip(c["feat"], c["cls_attn_sum"], c["order"]):
                yield x, Coverage(a ** c["alpha"].item(), mode), None, order, True
        else:
            text, x, clip = (v / v.norm(dim=-1, keepdim=True) for v in (c["text"], c["vision"], c["vision_clip"]))
            p = (text @ x.T / c["tv_temp"].item()).softmax(1) / len(text)
            q = (clip @ clip.T / c["vv_temp"].item()).softmax(1) / len(clip)
            free = torch.ones(len(x), dtype=torch.bool).index_fill(0, c["block"].long(), False)
            matrix = torch.cat([p, c["alpha"].item() * q]).float()
            yield matrix, MatrixCoverage(), free, c["keep"], False


@every_way
@pytest.mark.parametrize("method", ["divprune", "cdpruner", "scope", "mmtok"])
def test_the_golden_cases(golden, way, method):
    """Oracle: the authors' released code. The kernel takes the cases that are small enough for an interpreter."""
    seen = 0
    for x, rule, eligible, picks, ordered in golden_cases(golden(method), method):
        if way == "kernel" and DEVICE == "cpu" and len(x) * len(picks) > 600:
            continue
        order = WAYS[way](x, len(picks), rule, eligible=eligible).tolist()
        assert (order if ordered else sorted(order)) == picks.tolist(), seen
        seen += 1
    if not seen:
        pytest.skip(f"no case of {method} is small enough for Triton's interpreter")


# ------------------------------------------------------------------------------------------------- what it costs


class Watch(TorchDispatchMode):
    """The largest product that was made, how many multiplications all took, and how often the host waited."""

    def __init__(self):
        super().__init__()
        self.largest, self.work, self.waits = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.waits += name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")
        if name in ("mm", "mv", "addmv", "addmm", "bmm"):
            left, right = [arg for arg in args if isinstance(arg, Tensor)][-2:]
            self.work += left.numel() * (right.shape[1] if right.dim() > 1 else 1)
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("name", RULES)
def test_elsewhere_the_host_waits_for_none_of_its_picks(name):
    """Of the operators for other devices, run on a CPU, none reads a number back, however many are picked."""
    x, worth = case(24, 16, 20)
    rule = rule_of(name, worth)
    x = x @ x.T if name == "matrix" else x
    with Watch() as watch:
        select_by_products(x, 6, rule, True, worth > 0)
    assert watch.waits == 0


@pytest.mark.parametrize(("name", "share"), [("maxmin", 0.5), ("dpp", 0.15)])
@pytest.mark.parametrize("kind", ["random", "walk"])
def test_few_similarities_are_computed(name, share, kind):
    """Of those of all pairs, and never so many at once as a matrix of them would be."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2048, 256, generator=g)
    x = x if kind == "random" else x.cumsum(0)
    with Watch() as watch:
        greedy_select.greedy_select(x, 200, rule_of(name, torch.rand(2048, generator=g)))
    assert 0 < watch.work <= share * 2048 * 2048 * 256
    assert watch.largest <= 1024 * 1024


def test_beyond_its_memory_coverage_makes_no_matrix_of_all_pairs(monkeypatch):
    """Oracle: the picks with the matrix; without it no product is larger than a block of its rows."""
    x, worth = case(1500, 16, 1000)
    with_matrix = greedy_select.greedy_select(x, 20, Coverage(worth)).tolist()
    monkeypatch.setattr(greedy_coverage, "_STORED", 1000)
    with Watch() as watch:
        assert greedy_select.greedy_select(x, 20, Coverage(worth)).tolist() == with_matrix
    assert watch.largest <= 256 * 1500


@pytest.mark.parametrize(
    ("n", "k", "threads", "few"),
    [(576, 58, 1, False), (576, 288, 1, True), (576, 58, 2, True), (576, 10, 2, False), (1025, 1000, 2, False)],
)
def test_all_similarities_at_once_are_for_few_tokens(n, k, threads, few, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert greedy_nearest.few(torch.ones(n, 1), k) is few


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"features": torch.ones(4)}, ValueError, r"got \(4,\)"),
        ({"features": torch.ones(4, 2).long()}, TypeError, r"int64.*features\.float\(\)"),
        ({"k": 5}, ValueError, "0 to 4; got 5"),
        ({"k": -1}, ValueError, "got -1"),
        ({"rule": "mmr"}, TypeError, "MaxMin.*got 'mmr'"),
        ({"rule": MMR(torch.ones(3))}, ValueError, r"importance.*4 tokens.*\(3,\)"),
        ({"rule": MMR(torch.ones(4), 1.5)}, ValueError, "trade_off.*got 1.5"),
        ({"rule": MMR(torch.ones(4), parallel_k=0)}, ValueError, "parallel_k.*got 0"),
        ({"rule": DPP(torch.ones(4), 0)}, ValueError, "rank_tolerance.*got 0"),
        ({"rule": Coverage(mode="plus")}, ValueError, "'multiply' or 'add'; got 'plus'"),
        ({"rule": MatrixCoverage(torch.ones(4))}, ValueError, "2 tokens"),
        ({"eligible": torch.ones(4)}, ValueError, r"\(4,\) bool.*float32"),
        ({"rule": DPP(torch.ones(4, device="meta"))}, ValueError, "meta and cpu"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(change, error, says):
    with pytest.raises(error, match=says):
        greedy_select.greedy_select(**{"features": torch.ones(4, 2), "k": 2, "rule": MaxMin(), **change})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", RULES)
def test_numbers_that_are_not_finite_are_refused_on_a_cpu(name, bad):
    x, worth = torch.rand(6, 6), torch.rand(6)
    with pytest.raises(ValueError, match="finite"):
        greedy_select.greedy_select(x.index_fill(0, torch.tensor(2), bad), 2, rule_of(name, worth))
    if name not in ("maxmin", "cover_plain"):
        with pytest.raises(ValueError, match="finite"):
            greedy_select.greedy_select(x, 2, rule_of(name, worth.index_fill(0, torch.tensor(3), bad)))


def test_gradients_are_not_asked_for():
    x, worth = torch.rand(6, 4, requires_grad=True), torch.rand(6, requires_grad=True)
    for name in ("mmr", "dpp", "cover"):
        assert not greedy_select.greedy_select(x, 3, rule_of(name, worth)).requires_grad


def test_dispatch_asks_for_the_kernel(monkeypatch):
    """Oracle: which of the two was called; several at a time are for the reference."""
    pytest.importorskip("triton", reason="the kernel needs triton (extra: kernels)")
    called = []
    monkeypatch.setattr("vtprune_kernels.greedy_select_triton.greedy_select_triton", lambda *a, **o: called.append(a))
    monkeypatch.setattr(greedy_select, "use_triton", lambda *tensors: True)
    greedy_select.greedy_select(torch.ones(4, 2), 2, MaxMin())
    greedy_select.greedy_select(torch.ones(4, 2), 2, MMR(torch.ones(4), parallel_k=2))
    greedy_select.greedy_select(torch.ones(4, 2), 0, MaxMin())
    assert len(called) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXACT)
def test_the_kernel_picks_the_same_on_a_gpu_at_real_sizes(name):
    """Oracle: the CPU, on exact products with many ties; the host is not allowed to wait."""
    x, worth = case(2880, 1024, 1500)
    rule = rule_of(name, worth)
    x = features_for(rule, x)
    there, moved = x.cuda().bfloat16(), with_tensors(rule, Tensor.cuda)
    greedy_select.greedy_select(there, 4, moved)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        order = greedy_select.greedy_select(there, 288, moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert order.tolist() == greedy_select.greedy_select(x, 288, rule).tolist()


@pytest.mark.gpu
def test_every_dpp_pick_has_the_largest_residual_on_a_gpu():
    """Oracle: squared distances to the span of the picks by a QR factorization in float64."""
    g = torch.Generator().manual_seed(0)
    x, relevance = torch.randn(2880, 1024, generator=g).cuda(), (torch.rand(2880, generator=g) + 0.5).cuda()
    order = greedy_select.greedy_select(x, 288, DPP(relevance)).tolist()
    unit = relevance.double()[:, None] * x.double() / x.double().norm(dim=-1, keepdim=True)
    for t in range(0, 288, 7):
        basis = torch.linalg.qr(unit[order[:t]].T).Q
        residual = unit.square().sum(1) - (unit @ basis).square().sum(1)
        residual[order[:t]] = -torch.inf
        assert residual[order[t]] >= residual.max() - 1e-5, t
