"""The first pick of MaxMin without all pairs: the same row as by all pairs in float64, however wrong bfloat16 is."""

import pytest
import torch
from torch import Tensor

from vtprune_kernels import greedy_isolated
from vtprune_kernels.greedy_isolated import bfloat16_is_fast, most_isolated
from vtprune_kernels.greedy_rules import MaxMin
from vtprune_kernels.greedy_select import greedy_select_reference


def isolation(unit: Tensor) -> Tensor:
    """The oracle: (N,) float64, the largest product of each row with another, by all pairs."""
    return (unit.double() @ unit.double().T).fill_diagonal_(-torch.inf).amax(1)


def ask_bfloat16(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """Whatever the machine, and however alike rows are."""
    monkeypatch.setattr(greedy_isolated, "bfloat16_is_fast", lambda: fast)
    monkeypatch.setattr(greedy_isolated, "COARSE", torch.inf)


def unit_rows(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def plane(degrees: Tensor) -> Tensor:
    angle = degrees.double() * torch.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1).float()


G = torch.Generator().manual_seed(3)
GROUPS = unit_rows(torch.randn(200, 32, generator=G))
SHUFFLED = torch.randperm(1200, generator=G)
SHAPES = {
    "random": unit_rows(torch.randn(1200, 512, generator=G)),
    "walk": unit_rows(torch.randn(1200, 16, generator=G).cumsum(0)),
    # six near-twins of each of 200: which of them is nearest is decided far below what bfloat16 tells apart
    "near-twins": unit_rows(GROUPS.repeat(6, 1) + 1e-3 * torch.randn(1200, 32, generator=G))[SHUFFLED],
    # neighbours are 1.15 degrees apart, those of one token 1.45: one number in bfloat16
    "ring": plane(torch.arange(300) * 1.15 + 0.3 * (torch.arange(300) >= 150) + 0.3 * (torch.arange(300) >= 151))[
        torch.randperm(300, generator=G)
    ],
    "opposite": torch.cat([unit_rows(x := torch.randn(600, 8, generator=G)), -unit_rows(x)]),
    "not of unit length": torch.randn(1200, 24, generator=G) * torch.linspace(0.1, 3, 1200)[:, None],
    "one number": torch.randn(1200, 1, generator=G),
}


@pytest.mark.parametrize("tile", [1, 37, 128])
@pytest.mark.parametrize("fast", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_row_is_more_isolated(shape, fast, tile, monkeypatch):
    """Oracle: all pairs in float64; rows closer than the rounding of float32 may stand for each other."""
    if tile == 1 and shape != "random":
        pytest.skip("one row at a time is slow: one kind of rows is enough")
    ask_bfloat16(monkeypatch, fast)
    monkeypatch.setattr(greedy_isolated, "TILE", tile)
    unit = SHAPES[shape][: 150 if tile == 1 else None]
    nearest = isolation(unit)
    found = nearest[most_isolated(unit)]
    assert found <= nearest.min() + 4e-7 * unit.square().sum(1).max()
    # not any row would do
    assert nearest.max() > nearest.min() + 1e-5


@pytest.mark.parametrize("shift", [0, 1, 700, 1199])
def test_what_bfloat16_cannot_tell_apart_float32_does(shift, monkeypatch):
    """Hand-made: 600 pairs of equal cosine 0.99, but one pair of 0.9895, which bfloat16 rounds to the same number."""
    ask_bfloat16(monkeypatch, True)
    cosine = torch.full((600,), 0.99, dtype=torch.float64)
    cosine[321] = 0.9895
    assert cosine.bfloat16().unique().numel() == 1
    unit = torch.zeros(1200, 1200)
    first, second = torch.arange(600), torch.arange(600, 1200)
    unit[first, first] = 1
    unit[second, first], unit[second, second] = cosine.float(), (1 - cosine**2).sqrt().float()
    unit = unit.roll(shift, 0)
    assert most_isolated(unit) == min((321 + shift) % 1200, (921 + shift) % 1200)


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1e3])
def test_wrong_products_of_the_search_change_no_pick(wrong, monkeypatch):
    """Oracle: all pairs in float64. The search works on zeros, on opposites, and on numbers far too large."""
    unit = SHAPES["random"]
    ask_bfloat16(monkeypatch, True)
    asked = []
    monkeypatch.setattr(Tensor, "bfloat16", lambda x: asked.append(x) or (x * wrong).to(torch.bfloat16))
    assert most_isolated(unit) == int(isolation(unit).argmin())
    assert asked


@pytest.mark.parametrize(("width", "asked"), [(512, True), (3, False)])
def test_bfloat16_is_asked_where_nobody_has_a_near_neighbour(width, asked, monkeypatch):
    """Oracle: whether the rows were converted. In 512 dimensions random rows are far apart, in three they are not."""
    monkeypatch.setattr(greedy_isolated, "bfloat16_is_fast", lambda: True)
    converted = []
    monkeypatch.setattr(Tensor, "bfloat16", lambda x: converted.append(x) or x.to(torch.bfloat16))
    unit = unit_rows(torch.randn(1200, width, generator=torch.Generator().manual_seed(1)))
    assert most_isolated(unit) == int(isolation(unit).argmin())
    assert bool(converted) is asked


@pytest.mark.parametrize("fast", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("n", [1, 2, 3, 31, 33, 129, 1025])
def test_ties_go_to_the_lowest(n, fast, monkeypatch):
    """Rows that are all alike, all orthogonal, or all alike but two orthogonal ones: exact in any precision."""
    ask_bfloat16(monkeypatch, fast)
    assert most_isolated(torch.ones(n, 4) / 2) == 0
    assert most_isolated(torch.eye(n)) == 0
    if n > 3:
        unit = torch.zeros(n, 4)
        unit[:, 0] = 1
        unit[n - 1], unit[n // 2] = torch.eye(4)[1], torch.eye(4)[2]
        assert most_isolated(unit) == n // 2


@pytest.mark.parametrize("shape", ["random", "near-twins", "opposite"])
def test_every_pick_of_maxmin_is_the_farthest(shape, monkeypatch):
    """Oracle: products in float64 with the picks before; the same picks by bfloat16 and without it."""
    unit = SHAPES[shape]
    orders = []
    for fast in (True, False):
        ask_bfloat16(monkeypatch, fast)
        orders.append(greedy_select_reference(unit, 150, MaxMin()).tolist())
    assert orders[0] == orders[1] and len(set(orders[0])) == 150
    similarity = unit.double() @ unit.double().T
    nearest = similarity[orders[0][0]].clone()
    for pick in orders[0][1:]:
        free = torch.ones(1200, dtype=torch.bool).index_fill(0, torch.tensor(orders[0][: orders[0].index(pick)]), False)
        assert nearest[pick] <= nearest[free].min() + 1e-6
        nearest = torch.maximum(nearest, similarity[pick])


def test_bfloat16_is_for_machines_that_multiply_it(monkeypatch):
    """Oracle: what the machine is said to have; a torch that cannot tell counts as none."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for has in ((False, False), (True, False), (False, True), (None, None)):
        for name, answer in zip(names, has):
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
            if answer is None:
                monkeypatch.delattr(torch.cpu, name)
        bfloat16_is_fast.cache_clear()
        assert bfloat16_is_fast() is (any(has) and torch.backends.mkldnn.is_available())
    bfloat16_is_fast.cache_clear()
