"""Proportional attention: a token that stands for w is w copies of it in the sequence, at the same position."""

import copy
import pickle
from functools import cache

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

import vtprune
from tests import oracle, tiny
from tests.fake_flash import flash, use_fake_flash  # noqa: F401 (a fixture)
from tests.probe import answer
from tests.repeated import RepeatedRows
from vtprune import BEFORE_LLM, Selection, inside
from vtprune.policies.pact import PACT
from vtprune.policies.tome import ToMe


@cache
def model_of(family: str, attn: str = "sdpa"):
    return tiny.build(family, attn, torch.float32 if attn == "eager" else torch.float64)


class Threes:
    """Merges threes into their middle row, which stands for as many; a few rows are dropped."""

    needs = frozenset()

    def __init__(self, site=1):
        self.sites = (site,)

    def answer(self, n):
        group = torch.arange(n) // 3
        keep = torch.stack([(group == g).nonzero().flatten().median() for g in range(int(group.max()) + 1)])
        group[(torch.arange(n) % 7 == 6)] = -1
        group[keep] = torch.arange(len(keep))
        return keep, group, torch.bincount(group[group >= 0]).double()

    def select(self, tokens):
        keep, group, times = self.answer(len(tokens))
        return Selection(keep, merge=group, stands_for=times)


def repeated(model, inputs, policy):
    """The oracle for ``policy`` on one sample."""
    columns = columns_of(model, inputs)
    return repeated_rows(model, inputs, policy.sites[0], columns, *policy.answer(len(columns)))


def repeated_rows(model, inputs, site, columns, keep, group, times):
    """The oracle for merging the visual tokens at ``columns`` (N,) by ``group`` (N,) into ``times`` (K,) each."""
    prompt = inputs["input_ids"].shape[1]
    visual = torch.zeros(prompt, dtype=torch.bool).index_fill(0, columns, True)
    kept = columns[keep]
    rows = torch.cat([(~visual).nonzero().flatten(), kept]).sort().values
    at = torch.searchsorted(rows, kept)
    many = torch.ones(len(rows), dtype=torch.int64).index_copy(0, at, times.long())
    plan = torch.zeros(len(rows), prompt, dtype=torch.float64)
    plan[torch.arange(len(rows)), rows] = 1
    for slot, g in zip(at.tolist(), range(len(keep))):
        plan[slot] = 0
        plan[slot, columns[group == g]] = 1 / float(times[g])
    return RepeatedRows(model, max(0, int(site)), rows, many, plan)


def columns_of(model, inputs):
    """Columns of the visual tokens of one sample that policies are offered."""
    with vtprune.pruned(model, "none") as report, torch.no_grad():
        model(**inputs, **oracle.positions(inputs))
        return report.last.layout.rows[0].columns[report.last.offered[0]]


def assert_same(got, expected, atol):
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("family", "attn", "site"),
    [
        *((family, "sdpa", 2) for family in ("llava", "qwen2_5_vl", "gemma3", "paligemma")),
        *((family, "eager", 2) for family in ("llava", "gemma3")),
        *((family, "sdpa", BEFORE_LLM) for family in ("llava_next", "gemma3")),
    ],
)
def test_a_token_that_stands_for_three_is_there_three_times(family, attn, site):
    """Oracle: repeated rows, recomputed without a cache at every step. Prefill, decode, windows, two dimensions."""
    model = model_of(family, attn)
    inputs = tiny.batch(family, "one", model.dtype)
    policy, atol = Threes(site), 1e-9 if attn == "sdpa" else 2e-5
    with repeated(model, inputs, policy):
        expected = answer(model, inputs, use_cache=False)
    with vtprune.pruned(model, policy):
        assert_same(answer(model, inputs), expected, atol)
        assert_same(answer(model, inputs, use_cache=False), expected, atol)


@pytest.mark.parametrize("ragged", ["padded", "packed"])
@pytest.mark.parametrize("kind", ["padded", "ragged", "text_row"])
def test_batches_are_their_samples(kind, ragged):
    """Oracle: each sample alone. Samples of unequal length are padded where scores are added to, whatever was asked."""
    for family in ("llava", "gemma3") if ragged == "padded" else ("llava",):
        model = model_of(family)

        def run(inputs, model=model):
            with vtprune.pruned(model, Threes(), ragged=ragged):
                return oracle.text_logits(model, inputs)

        oracle.assert_batch_equals_rows(run, family, tiny.samples(family, kind))
        inputs = tiny.batch(family, kind)
        with vtprune.pruned(model, Threes(), ragged=ragged):
            together = tiny.greedy(model, inputs, 4)
            for b in range(2):
                alone = tiny.greedy(model, tiny.row(inputs, b), 4)
                assert torch.equal(together.sequences[b, -4:], alone.sequences[0, -4:])
                torch.testing.assert_close(together.logits[-1][b], alone.logits[-1][0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_beams_take_the_numbers_along(family):
    """Oracle: repeated rows without a cache."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    with repeated(model, inputs, Threes()):
        expected = tiny.beams(model, inputs, 6, use_cache=False)
    with vtprune.pruned(model, Threes()):
        got = tiny.beams(model, inputs, 6)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=1e-9, rtol=0)


def next_logits(model, inputs, cache_, token, rows=None):
    """The logits after one token (B,) more on a cache. rows: of the prompt's mask, where the cache was rearranged."""
    mask = inputs["attention_mask"] if rows is None else inputs["attention_mask"][rows]
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    with torch.no_grad():
        return model(input_ids=token[:, None], attention_mask=mask, past_key_values=cache_).logits[:, -1]


def test_the_cache_takes_the_numbers_along():
    """Oracle: the untouched cache, of which rows are picked, repeated, copied, stored and cropped."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, Threes()), torch.no_grad():
        cache_ = model(**inputs, past_key_values=DynamicCache(config=model.config.get_text_config())).past_key_values
        token, rows = torch.tensor([7, 9]), torch.tensor([1, 0, 0])
        expected = next_logits(model, inputs, copy.deepcopy(cache_), token)
        stored = pickle.loads(pickle.dumps(cache_))
        assert torch.equal(next_logits(model, inputs, stored, token), expected)
        stored.crop(-1)
        assert torch.equal(next_logits(model, inputs, stored, token), expected)
        # and one of the prompt's own tokens, which is then told again
        stored.crop(-2)
        told = {"attention_mask": inputs["attention_mask"][:, :-1]}
        next_logits(model, told, stored, inputs["input_ids"][:, -1])
        torch.testing.assert_close(next_logits(model, inputs, stored, token), expected, atol=1e-9, rtol=0)
        twice = copy.deepcopy(cache_)
        twice.batch_repeat_interleave(2)
        twice.batch_select_indices(torch.tensor([2, 0, 1]))
        got = next_logits(model, inputs, twice, token[rows], rows)
        torch.testing.assert_close(got, expected[rows], atol=1e-9, rtol=0)
        fixed = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
        model(**inputs, past_key_values=fixed)
        fixed.reorder_cache(torch.tensor([1, 0]))
        got = next_logits(model, inputs, fixed, token.flip(0), torch.tensor([1, 0]))
        torch.testing.assert_close(got, expected.flip(0), atol=1e-9, rtol=0)
        cache_.layers[-1].slots.bias.zero_()
        assert not torch.allclose(next_logits(model, inputs, cache_, token), expected, atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_second_turn_sees_the_first_as_it_did(family):
    """Oracle: repeated rows of the first prompt, in the whole conversation computed anew without a cache."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    cache_ = DynamicCache(config=model.config.get_text_config())
    with vtprune.pruned(model, Threes()):
        first = tiny.greedy(model, inputs, 4, past_key_values=cache_)
        turn = tiny.new_turn(family, model, inputs, first.sequences, image=False)
        got = tiny.greedy(model, turn, 4, past_key_values=cache_)
    whole = {**turn, **{name: value for name, value in inputs.items() if name.startswith(("pixel", "image"))}}
    whole.pop("mm_encoder_outputs", None)
    with repeated(model, inputs, Threes()):
        expected = tiny.greedy(model, whole, 4, use_cache=False)
    assert_same((got.sequences, got.logits), (expected.sequences, expected.logits), 1e-8)


def test_a_static_cache_keeps_the_numbers():
    """Oracle: the dynamic cache, twice on one static cache; compiled decoding is one graph."""
    model, inputs = model_of("llava"), tiny.batch("llava", "ragged")
    with vtprune.pruned(model, Threes()):
        expected = answer(model, inputs)
        for _ in range(2):
            assert_same(answer(model, inputs, cache_implementation="static"), expected, 1e-9)
        beams = tiny.beams(model, inputs, 4).sequences
        assert torch.equal(tiny.beams(model, inputs, 4, cache_implementation="static").sequences, beams)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = CompileConfig(fullgraph=True, mode="default", backend="eager")
        config._compile_all_devices = True
        got = answer(model, inputs, cache_implementation="static", compile_config=config)
        assert_same(got, expected, 1e-9)
        assert not torch._dynamo.utils.counters["graph_break"]


def test_inside_a_layer_it_is_the_same():
    """Oracle: a hand-written layer loop in which rows come several times after the attention of layer 1."""
    model, inputs, policy = model_of("llava"), tiny.batch("llava", "one"), Threes(inside(1))
    copies = repeated(model, inputs, policy)
    rows, plan = (part.repeat_interleave(copies.times, 0) for part in (copies.rows, copies.plan))
    expected = oracle.loop_greedy(model, inputs, {1: oracle.Cut(rows, plan, inside=True)}, 5)
    with vtprune.pruned(model, policy):
        got = answer(model, inputs)
    assert got[0][0, -5:].tolist() == expected[0]
    torch.testing.assert_close(torch.cat(got[1]), expected[1].float(), atol=1e-5, rtol=0)


class Watch(Threes):
    """Merges at layer 1, then looks at layers 2 and 3 from the site before layer 3, and drops the first row there."""

    needs = frozenset({"last_query_attention", "text_attention:peek", "attention_rank"})
    sites = (1, 3)

    def __init__(self):
        self.seen = []

    def select(self, tokens):
        if tokens.site == 1:
            return super().select(tokens)
        self.seen.append({name: tokens.signals[name] for name in self.needs})
        return Selection(torch.arange(1, len(tokens)))


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_signals_are_of_the_attention_that_was_paid(family):
    """Oracle: the maps that eager attention returns; the rank by powers of their matrix, sharpened to the tenth."""
    model, inputs, policy = model_of(family, "eager"), tiny.batch(family, "one", torch.float32), Watch()
    with vtprune.pruned(model, policy) as report, torch.no_grad():
        maps = model(**inputs, **oracle.positions(inputs), output_attentions=True).attentions
        row = report.last.layout.rows[0]
        alive = report.last.layout.rows[0].columns[report.last.offered[0]][report.last.sites[0].kept[0]]
    rows = torch.cat([row.text, alive]).sort().values
    places, text = torch.searchsorted(rows, alive), torch.searchsorted(rows, row.text)
    assert maps[2].shape[-1] == len(rows) == maps[3].shape[-1] + 1
    (seen,) = policy.seen
    torch.testing.assert_close(seen["last_query_attention"], maps[2][0].mean(0)[-1, places], atol=1e-6, rtol=1e-4)
    sharp = maps[2][0].double() ** 10
    sharp, rank = sharp / sharp.sum(-1, keepdim=True), torch.full((len(rows),), 1 / len(rows)).double()
    ranks = torch.stack([rank @ torch.matrix_power(head, 5) for head in sharp]).square().mean(0).sqrt()
    torch.testing.assert_close(seen["attention_rank"].double(), ranks[places], atol=1e-5, rtol=1e-3)
    # nobody dropped anything before the layer that was looked at beforehand
    with vtprune.pruned(model, Threes(1)), torch.no_grad():
        whole = model(**inputs, **oracle.positions(inputs), output_attentions=True).attentions[3][0].mean(0)
    torch.testing.assert_close(seen["text_attention:peek"], whole[text][:, places], atol=1e-6, rtol=1e-4)


class Later(Threes):
    """Merges at layer 1, drops every other row before layer 2 without a word, and says anew before layer 3."""

    sites = (1, 2, 3)

    def __init__(self):
        self.seen = []

    def select(self, tokens):
        if tokens.site == 1:
            return super().select(tokens)
        self.seen.append(tokens.stands_for)
        keep = torch.arange(0, len(tokens), 2)
        return Selection(keep, stands_for=None if tokens.site == 2 else torch.full((len(keep),), 0.5))


def test_numbers_stay_with_their_rows_until_a_site_says_others():
    """Oracle: what was said, indexed by hand; unequal counts put pads on the left."""
    model, inputs, policy = model_of("llava_next"), tiny.batch("llava_next", "ragged"), Later()
    with vtprune.pruned(model, policy) as report, torch.no_grad():
        cache_ = model(**inputs, past_key_values=DynamicCache(config=model.config.get_text_config())).past_key_values
        said = [policy.answer(n)[2] for n in report.last.sites[0].before]
    for b, numbers in enumerate(said):
        assert torch.equal(policy.seen[b], numbers)
        assert torch.equal(policy.seen[2 + b], numbers[::2])
    assert not hasattr(cache_.layers[0], "slots")
    for layer, expected in ((1, said), (2, [n[::2] for n in said]), (3, [n[::4] * 0 + 0.5 for n in said])):
        bias, valid = cache_.layers[layer].slots.bias, cache_.layers[layer].slots.valid
        for b, numbers in enumerate(expected):
            row = bias[b] if valid is None else bias[b][valid[b]]
            assert torch.equal(row[row != 0], numbers.log()[numbers != 1])


class Ones(Threes):
    def select(self, tokens):
        n = len(tokens) // 2
        return Selection(torch.arange(n), stands_for=torch.ones(n))


def test_standing_for_one_costs_nothing(flash):  # noqa: F811
    """Nothing is added anywhere, no mask is made, and FlashAttention serves."""
    model, inputs = tiny.build("llava"), tiny.batch("llava", "one")
    with vtprune.pruned(model, Ones()), torch.no_grad():
        cache_ = model(**inputs, past_key_values=DynamicCache(config=model.config.get_text_config())).past_key_values
        assert all(layer.slots.bias is None for layer in cache_.layers[1:])
        expected = answer(model, inputs)
        assert_same(answer(use_fake_flash(model), inputs), expected, 1e-9)


def test_flash_attention_is_refused_by_name(flash):  # noqa: F811
    model, inputs = use_fake_flash(tiny.build("llava")), tiny.batch("llava", "one")
    for policy in (PACT(), vtprune.Then(ToMe(keep_ratio=0.9), PACT())):
        with pytest.raises(NotImplementedError, match="'sdpa', or wrap it with proportional=False"):
            vtprune.wrap(model, policy)
        assert not vtprune.is_wrapped(model)
    with vtprune.pruned(model, "pact", cutoff=0.6, proportional=False) as report:
        answer(model, inputs)
        assert any("count once in attention" in note for note in report.notes)
        with vtprune.options(model, proportional=True), pytest.raises(NotImplementedError, match="fake_flash"):
            answer(model, inputs)
    with vtprune.pruned(model, Threes()), pytest.raises(NotImplementedError, match="proportional=False"):
        answer(model, inputs)


POLICIES = {
    "pact": PACT(cutoff=0.6),
    "tome": ToMe(keep_ratio=0.4, proportional=True),
    "tome, method": ToMe(keep_ratio=0.4, order="method", proportional=True),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_policies_say_how_many_they_merged(family, policy):
    """Oracle: repeated rows, by the groups that the report tells."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    with vtprune.pruned(model, policy, positions="original") as report:
        got = answer(model, inputs)
        (site,), row = report.last.sites, report.last.layout.rows[0]
        columns = row.columns[report.last.offered[0]]
        keep, group = site.kept[0], site.merges[0]
        group = group.to_dense().argmax(0) if group.is_sparse else group
    times = torch.bincount(group[group >= 0])
    assert times.max() > 2
    with repeated_rows(model, inputs, int(site.site), columns, keep, group, times):
        expected = answer(model, inputs, use_cache=False)
    # plans are in float32
    assert_same(got, expected, 1e-5)
