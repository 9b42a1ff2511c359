"""Decoders in which some layers keep a state: pruning is running the layers on a physically shortened sequence.

The oracle is ``tests.shortened``; the masked columns of other families are none here. The recurrences run in float64
(``exact``), so that both agree to the last digits; once as they ship, within four times what padding alone changes.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.delta_rule import exact  # noqa: F401 (a fixture)
from tests.fake_flash import flash, use_fake_flash  # noqa: F401 (a fixture)
from tests.probe import ByNorm, Dice, answer, visible
from tests.release import RELEASE
from tests.shortened import Shortened, assert_same_states, floor
from vtprune import BEFORE_LLM, Selection
from vtprune.tokens import inside

FAMILIES = [name for name, newer in tiny.NEWER.items() if newer.hybrid]
USUAL = [name for name in FAMILIES if name != "minicpmv4_6"]  # it has 4.7's decoder and tower
GENERATIONS = ("qwen3_5", "lfm2_vl")  # a state and a window of its own; a window alone
SITES = [(BEFORE_LLM,), (1,), (2,), (3,), (5,), (BEFORE_LLM, 2), (1, 3, 4)]
SLOW = pytest.mark.slow(reason="every combination; `make test-matrix` runs them")
LAYERS = 6


@cache
def model_of(family: str, attn: str = "sdpa"):
    return tiny.build(family, attn, torch.float64 if attn == "sdpa" else torch.float32, layers=LAYERS)


@cache
def handed(family: str, kind: str):
    return Shortened(model_of(family), tiny.batch(family, kind))


def cases(families, *lists, usual):
    """Every family with every combination; those that are not ``usual`` are slow."""
    found = [()]
    for values in lists:
        found = [(*case, value) for case in found for value in values]
    return [
        pytest.param(family, *case, marks=() if (family, *case) in usual else SLOW)
        for family in families
        for case in found
    ]


def assert_tokens(got, b, length, expected):
    assert torch.equal(got[b, length:], expected)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    "family, kind, sites",
    cases(FAMILIES, tiny.KINDS, SITES, usual=[(family, "ragged", (1, 3, 4)) for family in USUAL]),
)
def test_pruning_is_shortening(family, kind, sites):
    """Oracle: layers by hand on shortened rows; logits, tokens, and in the cache states, keys and values."""
    model, inputs, alone = model_of(family), tiny.batch(family, kind), handed(family, kind)
    with vtprune.pruned(model, ByNorm(sites)):
        got, kept = tiny.greedy(model, inputs, 6), visible(model)
        logits = oracle.text_logits(model, inputs)
    visual = tiny.visual(inputs)
    for b, real in enumerate(inputs["attention_mask"].bool()):
        first = alone.prompt(b, kept)
        text = ~visual[b, real][first.rows]
        torch.testing.assert_close(logits[b], first.logits[0, text], atol=1e-9, rtol=0)
        tokens, expected, run = alone.greedy(b, kept, 6)
        assert_tokens(got.sequences, b, len(real), tokens)
        # generate keeps logits in float32
        torch.testing.assert_close(torch.stack(got.logits)[:, b].double(), expected, atol=1e-5, rtol=0)
        assert_same_states(got.past_key_values, b, run, 1e-6)
    if any(mask.all() for mask in kept.values()):
        raise AssertionError("nothing was pruned")


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    "family, sites", cases(FAMILIES, SITES, usual=[("qwen3_5", (BEFORE_LLM, 2)), ("lfm3_vl", (1, 3, 4))])
)
@pytest.mark.parametrize("policy", [ByNorm, Dice])
def test_beams_take_their_states_along(family, sites, policy):
    """Oracle: a beam search by hand on shortened rows. All beams begin with what the first of them kept."""
    model, inputs, alone = model_of(family), tiny.batch(family, "ragged"), handed(family, "ragged")
    with vtprune.pruned(model, policy(sites)):
        got = tiny.beams(model, inputs, 5, num_return_sequences=3)
        kept = {site: mask[::3] for site, mask in visible(model).items()}
    for b in range(2):
        tokens, scores = alone.beams(b, kept, 5, 3)
        mine = slice(3 * b, 3 * b + 3)
        assert torch.equal(got.sequences[mine, inputs["input_ids"].shape[1] :], tokens)
        torch.testing.assert_close(got.sequences_scores[mine], scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in GENERATIONS else SLOW) for f in FAMILIES])
def test_as_it_ships_it_is_off_by_what_padding_alone_changes(family):
    """Oracle: the same, with transformers' own kernels in float32; at most 4 times as far as padding takes a model, one
    with experts 8 times."""
    model, inputs = model_of(family), tiny.batch(family, "ragged")
    # as far off in 5.16, where padding takes this model a third as far
    times = (8 if "moe" in family else 4) if RELEASE >= (5, 23) else 12
    alone, allowed = Shortened(model, inputs), max(1e-5, times * floor(model, inputs))
    with vtprune.pruned(model, ByNorm((BEFORE_LLM, 3))):
        got, kept = tiny.greedy(model, inputs, 6), visible(model)
    for b in range(2):
        tokens, expected, run = alone.greedy(b, kept, 6)
        assert_tokens(got.sequences, b, inputs["input_ids"].shape[1], tokens)
        torch.testing.assert_close(torch.stack(got.logits)[:, b].double(), expected, atol=allowed, rtol=0)
        assert_same_states(got.past_key_values, b, run, allowed)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family, sites", cases(FAMILIES, SITES, usual=[("lfm3_vl", (BEFORE_LLM, 2))]))
def test_eager_attention_too(family, sites):
    """The same oracle in float32 and with additive masks."""
    model, inputs = model_of(family, "eager"), tiny.batch(family, "ragged", torch.float32)
    alone = Shortened(model, inputs)
    with vtprune.pruned(model, ByNorm(sites)):
        got, kept = tiny.greedy(model, inputs, 5), visible(model)
    for b in range(2):
        tokens, expected, _ = alone.greedy(b, kept, 5)
        assert_tokens(got.sequences, b, inputs["input_ids"].shape[1], tokens)
        torch.testing.assert_close(torch.stack(got.logits)[:, b], expected, atol=1e-3, rtol=0)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("layer", [0, 2, pytest.param(3, marks=SLOW), pytest.param(5, marks=SLOW)])
def test_a_site_inside_a_layer(layer):
    """Oracle: attention or what stands for it on all rows, the MLP and later layers on the kept ones."""
    model, inputs, alone = model_of("qwen3_5"), tiny.batch("qwen3_5", "ragged"), handed("qwen3_5", "ragged")
    with vtprune.pruned(model, ByNorm((inside(layer),))) as report:
        got, kept = tiny.greedy(model, inputs, 4), visible(model)
        assert report.notes == [] and report.last.lengths[0][layer][1] < report.last.lengths[0][layer][0]
    for b in range(2):
        tokens, _, run = alone.greedy(b, kept, 4)
        assert_tokens(got.sequences, b, inputs["input_ids"].shape[1], tokens)
        assert_same_states(got.past_key_values, b, run, 1e-6)


# ----------------------------------------------------------------------------------------------------- later turns


def two_turns(model, inputs, image, n=4):
    """Both turns on one cache: what each generated, what each kept, and the inputs of the second."""
    held = DynamicCache(config=model.config.get_text_config())
    first = tiny.greedy(model, inputs, n, past_key_values=held)
    before = visible(model)
    turn = tiny.new_turn(inputs.family, model, inputs, first.sequences, image)
    second = tiny.greedy(model, turn, n, past_key_values=held)
    return (first, before), (second, visible(model) if image else {}), turn, held


def assert_second_turn(model, inputs, turns, turn, held, n=4, compact=None):
    (first, before), (second, later) = turns
    alone = Shortened(model, inputs, compact)
    runs = [alone.greedy(b, before, n)[2] for b in range(len(inputs["input_ids"]))]
    # a stock cache of the same length, whatever it holds, makes the unwrapped model hand over the second turn alone
    stock = DynamicCache(config=model.config.get_text_config())
    tiny.greedy(model, inputs, n, past_key_values=stock)
    alone = Shortened(model, turn, compact, past_key_values=stock)
    for b, run in enumerate(runs):
        tokens, expected, run = alone.greedy(b, later, n, run)
        assert_tokens(second.sequences, b, turn["input_ids"].shape[1], tokens)
        torch.testing.assert_close(torch.stack(second.logits)[:, b].double(), expected, atol=1e-5, rtol=0)
        assert_same_states(held, b, run, 1e-6)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    "family, kind, sites, image",
    cases(
        FAMILIES,
        ("one", "ragged"),
        [(BEFORE_LLM,), (3,), (BEFORE_LLM, 2)],
        (False, True),
        usual=[("qwen3_5", "ragged", (3,), True), ("lfm2_vl", "ragged", (BEFORE_LLM, 2), True)],
    ),
)
def test_a_second_turn_goes_on_from_the_states(family, kind, sites, image):
    """Oracle: both turns by hand. The new images of a batch are of one size, so each sample keeps as many tokens."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    with vtprune.pruned(model, ByNorm(sites)):
        *turns, turn, held = two_turns(model, inputs, image)
    assert_second_turn(model, inputs, turns, turn, held)


class Uneven(ByNorm):
    """Keeps three tokens of the first of two samples and four of the second."""

    asked = 0

    def select(self, tokens):
        self.asked += 1
        return Selection(torch.arange(4 - self.asked % 2))


def uneven_turn(family, **more):
    """A second turn in which a policy keeps unequal counts, as in the first."""
    model, inputs = model_of(family), tiny.batch(family, "padded")
    with vtprune.pruned(model, Uneven((3,)), **more) as report:
        out = two_turns(model, inputs, True)
        return out, report.tokens


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", GENERATIONS)
def test_unequal_counts_where_a_state_goes_on(family):
    """They raise an error that names the rows; with equalize=True the shorter sample keeps more, by the same oracle."""
    with pytest.raises(NotImplementedError, match=r"state of layer 3 .*row 0: \d+, row 1: \d+.*equalize=True"):
        uneven_turn(family)
    (*turns, turn, held), tokens = uneven_turn(family, equalize=True)
    assert tokens[0][1] == tokens[1][1] == 4
    assert_second_turn(model_of(family), tiny.batch(family, "padded"), turns, turn, held)


# ---------------------------------------------------------------------------------------- caches, kernels, positions


@pytest.mark.parametrize(
    "family, kind, sites",
    cases(
        [family for family in FAMILIES if family != "lfm3_vl"],
        ("one", "padded", "ragged", "ragged_unpadded"),
        [(BEFORE_LLM,), (1,), (BEFORE_LLM, 2)],
        usual=[("qwen3_5", "ragged", (1,)), ("lfm2_vl", "padded", (BEFORE_LLM, 2))],
    ),
)
def test_a_static_cache_is_a_dynamic_cache(family, kind, sites):
    """Oracle: the dynamic cache, twice, as generate keeps a static one."""
    model, inputs = model_of(family), tiny.batch(family, kind)
    with vtprune.pruned(model, ByNorm(sites)):
        expected = answer(model, inputs)
        for _ in range(2):
            got = answer(model, inputs, cache_implementation="static")
            assert torch.equal(got[0], expected[0])
            torch.testing.assert_close(torch.stack(got[1]), torch.stack(expected[1]), atol=1e-4, rtol=0)
        without = answer(model, inputs, use_cache=False)
    assert torch.equal(without[0], expected[0])


@pytest.mark.parametrize(
    "family, kind, site, whole",
    cases(
        GENERATIONS,
        ("one", "ragged"),
        (BEFORE_LLM, 3),
        (False, True),
        usual=[("qwen3_5", "ragged", 3, True)],
    ),
)
def test_compiled_decoding_is_one_graph(family, kind, site, whole):
    """Oracle: uncompiled tokens; dynamo's own counters say that no graph broke."""
    from transformers import CompileConfig

    model, inputs = tiny.build(family), tiny.batch(family, kind)
    with vtprune.pruned(model, ByNorm((site,))):
        expected = answer(model, inputs, 4)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = CompileConfig(fullgraph=whole, mode="default", backend="eager")
        config._compile_all_devices = True
        got = answer(model, inputs, 4, cache_implementation="static", compile_config=config)
    assert torch.equal(got[0], expected[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    "family, kind", cases(GENERATIONS, ("one", "padded", "ragged"), usual=[("qwen3_5", "ragged"), ("lfm2_vl", "one")])
)
def test_the_flash_attention_contract_holds(family, kind, flash):  # noqa: F811
    """Oracle: sdpa. Under FlashAttention no mask has four dimensions and no prompt looks like packed sequences."""
    inputs, policy = tiny.batch(family, kind), ByNorm((BEFORE_LLM, 3))
    with vtprune.pruned(model_of(family), policy):
        expected = answer(model_of(family), inputs)
    model = use_fake_flash(tiny.build(family, layers=LAYERS))
    flash.calls.update(dict.fromkeys(flash.calls, 0))
    with vtprune.pruned(model, policy):
        got = answer(model, inputs)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(torch.stack(got[1]), torch.stack(expected[1]), atol=1e-4, rtol=0)
    assert flash.calls["packed"] == 0 and flash.calls["mask2d"] + flash.calls["none"] > 0


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", GENERATIONS)
def test_packed_samples_are_padded_samples(family):
    """Oracle: the other way to attend; padding stands before the tokens either way, as the states need it."""
    model, inputs, found = model_of(family), tiny.batch(family, "ragged"), []
    for ragged in ("padded", "packed"):
        with vtprune.pruned(model, ByNorm((BEFORE_LLM, 2)), ragged=ragged):
            found.append(oracle.text_logits(model, inputs))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("site", [BEFORE_LLM, 3])
def test_compact_positions_over_two_turns(site):
    """Oracle: the layers by hand, what is left from the site on numbered anew; layer 3 is a convolution."""
    model, inputs = model_of("lfm2_vl"), tiny.batch("lfm2_vl", "ragged")
    with vtprune.pruned(model, ByNorm((site,)), positions="compact"):
        *turns, turn, held = two_turns(model, inputs, True)
    assert_second_turn(model, inputs, turns, turn, held, compact=site)


def test_compact_positions():
    """Oracle: generate on the shortened embeddings, padded anew, whose positions count what is there."""
    model, inputs = model_of("lfm2_vl"), tiny.batch("lfm2_vl", "ragged")
    with vtprune.pruned(model, ByNorm(), positions="compact"):
        got = answer(model, inputs)
        (kept,) = visible(model).values()
    expected = oracle.shortened(model, inputs, kept, 5)
    assert torch.equal(got[0][:, inputs["input_ids"].shape[1] :], expected.sequences)
    torch.testing.assert_close(torch.stack(got[1]), torch.stack(expected.logits), atol=1e-5, rtol=0)
