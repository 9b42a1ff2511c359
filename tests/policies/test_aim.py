"""AIM, against the released merging, ranks and schedule, powers of eager attention maps, and models asked by hand."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from tests.policies.test_evs import video
from tests.policies.test_tome import image
from vtprune import BEFORE_LLM
from vtprune.apply import merge_rows
from vtprune.blocks.attention_rank import attention_rank
from vtprune.policies.aim import AIM
from vtprune.tokens import ModelFacts, Segment, Selection, VisualTokens
from vtprune_kernels.attention_columns import Visible

# -------------------------------------------------------------------------------------------- released results


def test_released_means_are_met(golden):
    """Oracle: the authors' code, frame by frame; after full rounds the default order is the same."""
    paths = sorted(golden("aim").glob("merge*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        tokens, out = video(case["x"]), case["out"]
        ratio = out.shape[1] / case["x"].shape[1]
        for compat in ("order-by-similarity", ""):
            selection = AIM(merge_ratio=ratio, compat=compat).select(tokens)
            merged = merge_rows(tokens.hidden, selection).view(out.shape)
            if compat or path.stem == "merge00":
                torch.testing.assert_close(merged, out, rtol=1e-4, atol=1e-6)
            assert bool(selection.keep.diff().min() > 0)


def rank_of(logits):
    """Causal logits (1, H, L, L) -> (1, L): as queries that meet the unit vectors."""
    n = logits.shape[-1]
    keys = torch.eye(n).expand(1, logits.shape[1], n, n)
    visible, real = Visible(last=torch.arange(n)[None]), torch.ones(1, n, dtype=torch.bool)
    return attention_rank(logits.tril(), keys, scale=1.0, visible=visible, real=real)


def test_released_ranks_are_met(golden):
    """Oracle: the authors' code."""
    for path in sorted(golden("aim").glob("prune*.npz")):
        case = load(path)
        torch.testing.assert_close(rank_of(case["logits"]), case["importance"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_are_the_same_whether_a_map_is_held_or_not(masked, monkeypatch):
    """Oracle: the form that makes scores anew in every step; grouped heads, padding full of NaN, rows that see nothing
    but themselves or, by a mask, nothing at all."""
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randn(2, heads, 40, 6, generator=generator) for heads in (4, 2))
    real = torch.ones(2, 40, dtype=torch.bool)
    real[1, :7] = False
    q[1, :, :7] = k[1, :, :7] = torch.nan
    rows = torch.arange(40).expand(2, -1).contiguous()
    visible = Visible(last=rows, valid=real)
    if masked:
        allowed = (torch.rand(2, 40, 40, generator=generator) < 0.5).tril()
        allowed[0, 9] = False
        visible = Visible(valid=real, allowed=allowed)
    held = attention_rank(q, k, scale=0.3, visible=visible, real=real)
    monkeypatch.setattr("vtprune.blocks.attention_rank.HELD", 0)
    anew = attention_rank(q, k, scale=0.3, visible=visible, real=real)
    assert bool(held.isfinite().all()) and bool((held[1, :7] == 0).all()) and len(held.unique()) > 60
    torch.testing.assert_close(held, anew, rtol=1e-4, atol=1e-7)


def at_site(site, n, rank, memory):
    """``n`` living tokens of one image."""
    hidden = torch.zeros(n, 2)
    signals = {"attention_rank": rank}
    return VisualTokens(hidden, hidden[:1], (Segment(slice(0, n)),), signals, site=site, memory=memory)


def served(policy, n, ranks):
    """{layer: rows left after it}, by ranks (layers, n) of the unpruned tokens."""
    alive, memory, left = torch.arange(n), {}, {}
    for site in policy.sites[1:]:
        alive = alive[policy.select(at_site(site, len(alive), ranks[site - 1][alive], memory)).keep]
        left[site - 1] = alive.tolist()
    return left


def test_the_released_schedule_is_met(golden):
    """Oracle: the authors' code: who is alive after each layer; where nobody is, we keep the best of who was."""
    paths = sorted(golden("aim").glob("prune*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        first, end = case["vis"].tolist()
        left = served(AIM(), end - first, case["scores"][:, first:end])
        assert sorted(left) == list(range(14, 22))
        for layer, rows in left.items():
            alive = case["alive"][layer][first:end].nonzero().flatten().tolist()
            if layer < 21:
                assert rows == alive, (path.name, layer)
            else:
                assert not alive and len(rows) == 1 and rows[0] in left[20]


def test_worked_examples():
    """Pairs by hand; two tokens of which the second passes half its share to the first, five times; 14 tokens."""
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0, 2]])
    for ratio, expected in ((0.75, [[1, 0], [1, 0.1], [0, 1.5]]), (0.5, [[1, 0.05], [0, 1.5]])):
        merged = merge_rows(x, AIM(merge_ratio=ratio).select(image(x)))
        torch.testing.assert_close(merged, torch.tensor(expected, dtype=torch.float32))
    rank = rank_of(torch.tensor([[[[0.0, -1e9], [0.1, 0.1]]]]))
    torch.testing.assert_close(rank, torch.tensor([[0.984375, 0.015625]]))
    left = served(AIM(), 14, torch.rand(28, 14, generator=torch.Generator().manual_seed(0)))
    assert [len(rows) for rows in left.values()] == [12, 10, 8, 7, 5, 3, 1, 1]


# ------------------------------------------------------------------------------------ merging, in plain lists


def by_hand(vectors, k, size_weighted):
    """{place: vector}: rounds of even to odd; a round takes means of what it finds, or of all that stand behind it."""
    rows = [(list(v), 1, i) for i, v in enumerate(vectors)]

    def cosine(a, b):
        return sum(v * w for v, w in zip(a, b)) / (sum(v * v for v in a) * sum(v * v for v in b)) ** 0.5

    while len(rows) > k:
        best = []
        for a in range(0, len(rows), 2):
            value, partner = max((cosine(rows[a][0], rows[b][0]), -b) for b in range(1, len(rows), 2))
            best.append((-value, a, -partner))
        gone = {a: b for _, a, b in sorted(best)[: min(len(rows) // 2, len(rows) - k)]}
        merged = []
        for i, (_, _, place) in enumerate(rows):
            members = [rows[i], *(rows[a] for a, b in gone.items() if b == i)]
            shares = [size if size_weighted else 1 for _, size, _ in members]
            vector = [sum(s * v for s, v in zip(shares, c)) / sum(shares) for c in zip(*(m[0] for m in members))]
            if i not in gone:
                merged.append((vector, sum(m[1] for m in members), place))
        rows = merged
    return {place: vector for vector, _, place in rows}


@pytest.mark.parametrize("size_weighted", [False, True])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.9])
def test_every_frame_is_merged_by_itself(size_weighted, ratio):
    """Oracle: the rounds in lists, in double precision, on each frame alone."""
    x = torch.randn(3, 21, 5, generator=torch.Generator().manual_seed(2))
    tokens = video(x)
    selection = AIM(merge_ratio=ratio, size_weighted=size_weighted).select(tokens)
    places, vectors = [], []
    for t, frame in enumerate(x.double().tolist()):
        merged = by_hand(frame, round(21 * ratio), size_weighted)
        places += [21 * t + place for place in merged]
        vectors += merged.values()
    assert selection.keep.tolist() == places
    torch.testing.assert_close(merge_rows(tokens.hidden, selection), torch.tensor(vectors), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the budget


@pytest.mark.parametrize("depth", [2, 4, 12, 28, 32])
@pytest.mark.parametrize("keep_ratio", [0.05, 0.25, 0.6, 0.8, 1.0])
def test_keep_ratio_is_the_mean_over_the_layers(depth, keep_ratio):
    """Oracle: tokens counted in every layer."""
    policy = AIM(keep_ratio, layers=depth)
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    n = len(policy.select(image(x)).keep)
    left, seen = served(policy, n, torch.rand(depth, n, generator=torch.Generator().manual_seed(1))), []
    for layer in range(depth):
        seen.append(len(left[layer - 1]) if layer - 1 in left else seen[-1] if seen else n)
    assert sum(seen) / depth / 2000 == pytest.approx(keep_ratio, abs=1e-3)


def test_the_published_setting_is_a_sixth():
    """Oracle: a quarter in 15 layers, 7/8 to 1/8 of it in the next seven, nothing in the last six of 28."""
    assert AIM().ratios() == (0.25, 0)
    assert AIM(0.25 * (15 + 3.5) / 28).ratios() == pytest.approx((0.25, 0))
    assert AIM().sites == (BEFORE_LLM, *range(15, 23)) and AIM(layers=4).sites == (BEFORE_LLM, 3)


def test_images_have_budgets_of_their_own():
    """Oracle: by hand at 8 tokens each, after layer 14: 7 of each, or 14 of both by rank alone."""
    rank = torch.arange(16.0)
    for budget, expected in (("segment", [*range(1, 8), *range(9, 16)]), ("prompt", list(range(2, 16)))):
        tokens = VisualTokens(
            torch.zeros(16, 2),
            torch.zeros(1, 2),
            (Segment(slice(0, 8)), Segment(slice(8, 16), source=1)),
            {"attention_rank": rank},
            site=15,
        )
        assert AIM(budget=budget).select(tokens).keep.tolist() == expected


@pytest.mark.parametrize("x", [torch.ones(9, 3), torch.zeros(8, 3), torch.ones(1, 3)])
def test_extremes_stay_finite(x):
    """Oracle: whatever ties, means of equal tokens are that token."""
    merged = merge_rows(x, AIM().select(image(x)))
    assert torch.equal(merged, x[: max(1, round(len(x) / 4))])


@pytest.mark.parametrize(
    ("option", "value"),
    [("merge_ratio", 0), ("end_ratio", 1.5), ("layers", 0), ("compat", "mask-only"), ("size_weighted", "yes")],
)
def test_a_wrong_option_is_refused_by_value(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value!r}"):
        AIM(**{option: value})


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"keep_ratio=0\.5.*merge_ratio=0\.25"):
        AIM(0.5, merge_ratio=0.25)
    facts = ModelFacts("llava", depth=4, width=8, class_token=True, line_positions=True)
    assert AIM().fitted(facts).layers == 4
    with pytest.raises(ValueError, match="4 layers.*layers=28"):
        AIM(layers=28).fitted(facts)


# ------------------------------------------------------------------------------------------------ whole models


@cache
def model_of(family, attn="sdpa", dtype=torch.float64):
    return tiny.build(family, attn, dtype)


@dataclass
class Looks:
    """Remembers ranks; keeps everything, or every other token."""

    sites: tuple[float, ...]
    every: int = 1
    seen: list = field(default_factory=list)
    needs = frozenset({"attention_rank"})

    def select(self, tokens):
        if "attention_rank" in tokens.signals:
            self.seen.append((tokens, tokens.signals["attention_rank"].clone()))
        return Selection(torch.arange(0, len(tokens), self.every))


def power_rank(attention):
    """(H, L, L) attention maps of one sample without padding -> (L,): softmax(s / 0.1) is a^10, normalized."""
    sharp = attention.double() ** 10
    sharp = sharp / sharp.sum(-1, keepdim=True)
    share = torch.full((len(attention), 1, attention.shape[-1]), 1 / attention.shape[-1], dtype=torch.float64)
    for _ in range(5):
        share = share @ sharp
    return share[:, 0].square().mean(0).sqrt()


@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next", "gemma3"])
def test_ranks_are_those_of_eager_attention(family, kind):
    """Oracle: powers of the eager model's attention maps, padding cut off."""
    inputs = tiny.batch(family, kind, torch.float32)
    policy = Looks((BEFORE_LLM, 2))
    with vtprune.pruned(model_of(family, dtype=torch.float32), policy), torch.no_grad():
        model_of(family, dtype=torch.float32)(**inputs, **oracle.positions(inputs))
        maps = model_of(family, "eager", torch.float32)(**inputs, **oracle.positions(inputs), output_attentions=True)
    assert len(policy.seen) == len(inputs["input_ids"])
    for b, (tokens, rank) in enumerate(policy.seen):
        real = inputs["attention_mask"][b].bool()
        expected = power_rank(maps.attentions[1][b][:, real][:, :, real])[tokens.position]
        torch.testing.assert_close(rank.double(), expected, rtol=1e-3, atol=1e-6)


def test_ranks_of_a_pruned_batch_leave_its_pads_out():
    """Oracle: each sample alone, of which unequal numbers are left before layer 0."""

    def run(inputs):
        policy = Looks((BEFORE_LLM, 2), every=3)
        with vtprune.pruned(model_of("llava"), policy):
            oracle.text_logits(model_of("llava"), inputs)
        return [rank for _, rank in policy.seen]

    oracle.assert_batch_equals_rows(run, "llava", tiny.samples("llava", "ragged"), atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_merges_and_drops_as_planned(family):
    """Oracle: rounds by hand on the embeddings, then half of what merging left, by the rank that a policy saw."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    x = oracle.embeddings(model, inputs)[0][tiny.visual(inputs)[0]]
    with vtprune.pruned(model, "aim", merge_ratio=0.5) as report:
        assert tiny.greedy(model, inputs, 3).sequences.shape[1] >= 3
        early, late = report.sites
        assert early.kept[0].tolist() == list(by_hand(x.tolist(), round(len(x) / 2), False))
        n = len(early.kept[0])
        assert late.site == 3 and len(late.kept[0]) == n // 2
        assert report.positions == "original"
        assert report.flops_selector.total > 0


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_batch_is_its_samples(family):
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of(family), "aim", keep_ratio=0.4) as report:
            logits = oracle.text_logits(model_of(family), inputs)
            assert all(after < before for before, after in report.tokens)
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, "ragged"), atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_second_turn_ranks_its_own_tokens(family):
    """Oracle: powers of eager maps of the whole conversation, cut to the columns of the second turn."""
    model, inputs = model_of(family, dtype=torch.float32), tiny.batch(family, "ragged", torch.float32)
    policy = Looks((BEFORE_LLM, 2))
    with vtprune.pruned(model, policy):
        cached = DynamicCache(config=model.config.get_text_config())
        first = tiny.greedy(model, inputs, 3, past_key_values=cached)
        turn = tiny.new_turn(family, model, inputs, first.sequences, True)
        own = turn["input_ids"].shape[1] - cached.get_seq_length()
        policy.seen.clear()
        tiny.greedy(model, turn, 1, past_key_values=cached)
    whole = tiny.collate(family, turn.samples, torch.float32)
    with torch.no_grad():
        eager = model_of(family, "eager", torch.float32)
        maps = eager(**whole, **oracle.positions(whole), output_attentions=True).attentions[1]
    assert len(policy.seen) == len(maps)
    for b, (tokens, rank) in enumerate(policy.seen):
        new = tiny.visual(whole)[b][-own:].nonzero().flatten()
        assert len(new) == len(tokens)
        expected = power_rank(maps[b][:, -own:, -own:])[new]
        torch.testing.assert_close(rank.double(), expected, rtol=1e-3, atol=1e-6)
