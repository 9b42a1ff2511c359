"""Signals are computed when they are read and let go when no later site can ask; answers may be vectors."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import KeepAll, answer
from tests.test_report import count_flops
from vtprune import BEFORE_LLM, Selection, inside
from vtprune.forward import CURRENT
from vtprune.tokens import ModelFacts

INSIDE = tuple(inside(i) for i in range(4))


@cache
def model_of(family: str, dtype=torch.float32):
    return tiny.build(family, dtype=dtype)


@dataclass
class Reader:
    """Keeps everything and reads its needs at some of its sites."""

    needs: frozenset[str]
    sites: tuple[float, ...] = INSIDE
    reads_at: tuple[float, ...] = ()
    held: list = field(default_factory=list)
    captured: list = field(default_factory=list)

    def select(self, tokens):
        if tokens.site in self.reads_at:
            assert all(tokens.signals[name] is tokens.signals[name] for name in self.needs)
        self.captured.append(len(CURRENT.get().captured))
        self.held.append(tokens)
        return Selection.all(tokens)


def flops_with(policy) -> tuple[int, int]:
    """What torch counts in a forward, and what the report says the policy's signals cost."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, policy) as report:
        total = count_flops(lambda: model(**inputs, logits_to_keep=1))
        return total, report.flops_selector.total


@pytest.mark.parametrize("need", ["last_query_attention", "text_attention"])
def test_a_signal_that_is_not_read_costs_nothing(need):
    """Oracle: torch's FLOP counter beside a policy without needs; read once, it costs what the report says."""
    plain, _ = flops_with(KeepAll(*INSIDE))
    assert flops_with(Reader(frozenset({need}))) == (plain, 0)
    total, said = flops_with(Reader(frozenset({need}), reads_at=(inside(2),)))
    assert said > 0 and total - plain == said
    twice, said_twice = flops_with(Reader(frozenset({need}), reads_at=(inside(0), inside(2))))
    assert said_twice == 2 * said and twice - plain == said_twice


def test_a_peek_projects_keys_and_a_few_queries_and_no_values():
    """Oracle: torch's FLOP counter; by hand, keys of all tokens, queries of the text, their products."""
    plain, _ = flops_with(KeepAll(2))
    total, said = flops_with(Reader(frozenset({"text_attention:peek"}), (2,), (2,)))
    inputs = tiny.batch("llava", "one", torch.float32)
    config = model_of("llava").config.text_config
    length, text = inputs["input_ids"].shape[1], int((~tiny.visual(inputs)).sum())
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    by_hand = 2 * length * width * config.num_key_value_heads * size + 2 * text * width * width
    by_hand += 2 * text * length * config.num_attention_heads * size
    assert total - plain == said == by_hand


def test_a_signal_cannot_be_read_afterwards():
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    policy = Reader(frozenset({"last_query_attention"}), (2,))
    with vtprune.pruned(model, policy), torch.no_grad():
        model(**inputs)
        [tokens] = policy.held
        assert list(tokens.signals) == ["last_query_attention"]
        with pytest.raises(RuntimeError, match="'last_query_attention' of the site layer 2 .*only while select runs"):
            tokens.signals["last_query_attention"]
    with pytest.raises(KeyError):
        tokens.signals["text_attention"]


def test_what_no_later_site_can_ask_for_is_let_go():
    """Oracle: a site inside each layer looks at that layer alone, so one is held; ``:0`` is held to the end."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    for need, held in (("last_query_attention", [1, 1, 1, 1]), ("last_query_attention:0", [1, 1, 1, 1])):
        policy = Reader(frozenset({need}))
        with vtprune.pruned(model, policy), torch.no_grad():
            model(**inputs)
        assert policy.captured == held


@dataclass
class Doubles:
    """Keeps every second row, doubled: as vectors of its own, or as a plan over the rows, halves of which add up."""

    site: float
    own: bool
    needs: frozenset[str] = frozenset()

    @property
    def sites(self):
        return (self.site,)

    def select(self, tokens):
        n = len(tokens)
        keep = torch.arange(0, n, 2)
        plan = torch.zeros(len(keep), n, dtype=tokens.hidden.dtype)
        plan[range(len(keep)), keep] = 0.5
        plan[range(len(keep)), (keep + 1) % n] = 0.5
        if self.own:
            return Selection(keep, values=plan @ tokens.hidden, note="made of pairs")
        return Selection(keep, merge=plan.to_sparse())


@pytest.mark.parametrize("site", [BEFORE_LLM, 2, inside(1)])
@pytest.mark.parametrize("kind", ["one", "ragged"])
def test_vectors_of_its_own_equal_a_plan_that_makes_them(kind, site):
    """Oracle: the sparse plan, itself held to a matrix product elsewhere."""
    model, inputs = model_of("llava", torch.float64), tiny.batch("llava", kind)
    with vtprune.pruned(model, Doubles(site, False)):
        expected = answer(model, inputs)
    with vtprune.pruned(model, Doubles(site, True)) as report:
        got = answer(model, inputs)
        assert any(note.endswith("made of pairs") for note in report.notes) and "made of pairs" in str(report)
    assert torch.equal(got[0], expected[0])
    for one, other in zip(got[1], expected[1]):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


VALUES = {
    "shape": (lambda keep, hidden: dict(values=hidden), "values must be float of shape (2,"),
    "dtype": (lambda keep, hidden: dict(values=hidden[keep].long()), "values must be float of shape (2,"),
    "nan": (lambda keep, hidden: dict(values=hidden[keep] * torch.nan), "values must be finite"),
    "type": (lambda keep, hidden: dict(values=[1]), "values must be a tensor or None; got list"),
    "both": (
        lambda keep, hidden: dict(values=hidden[keep], merge=torch.tensor([0, 1] + [-1] * (len(hidden) - 2))),
        "got both",
    ),
}


@pytest.mark.parametrize("wrong", VALUES)
def test_wrong_vectors_teach(wrong):
    make, message = VALUES[wrong]

    class Wrong(KeepAll):
        def select(self, tokens):
            keep = torch.arange(2)
            return Selection(keep, **make(keep, tokens.hidden))

    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, Wrong(BEFORE_LLM)), pytest.raises((ValueError, TypeError)) as error:
        answer(model, inputs)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["one", "ragged"])
def test_projected_features_are_those_before_pooling(kind):
    """Oracle: the model's own pooling of them gives the visual tokens, video by video."""
    model, inputs = model_of("llava_onevision"), tiny.video("llava_onevision", kind, torch.float32)
    pooled = []

    class Pools(KeepAll):
        needs = frozenset({"projected_features"})

        def select(self, tokens):
            features = tokens.signals["projected_features"]
            assert len(features) == len(tokens.segments)
            for feature, segment in zip(features, tokens.segments):
                frames = model.model.apply_pooling(feature)
                assert feature.shape[1] > frames.shape[1]
                pooled.append((frames.flatten(0, 1), tokens.hidden[segment.span]))
            return Selection.all(tokens)

    with vtprune.pruned(model, Pools(BEFORE_LLM)), torch.no_grad():
        model(**inputs)
    assert pooled
    for expected, hidden in pooled:
        torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=1e-6)


def test_signals_that_a_model_cannot_give_are_refused():
    for family, needs, message in (
        ("llava", {"projected_features"}, "does not pool after its projector"),
        ("llava", {"transition:4"}, "layers 0 to 3"),
        ("llava", {"transition:2"}, "a site of 3 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            vtprune.wrap(model_of(family), Reader(frozenset(needs), (2,)))


@pytest.mark.parametrize("need", ["transition", "transition:", "transition:peek", "transition:1,1", "transition:-1"])
def test_a_wrong_place_for_a_transition_teaches(need):
    with pytest.raises(ValueError, match="indices of different decoder layers"):
        vtprune.wrap(model_of("llava"), Reader(frozenset({need}), (2,)))


def test_a_policy_is_fitted_to_the_model_once():
    """Oracle: the model's config."""
    seen = []

    class Fits(KeepAll):
        def fitted(self, facts: ModelFacts):
            seen.append(facts)
            return KeepAll(facts.depth - 1)

    for family in ("llava", "qwen2_5_vl", "llava_onevision"):
        model = model_of(family)
        with vtprune.pruned(model, Fits(99)) as report:
            answer(model, tiny.batch(family, "one", torch.float32), 2)
            assert [record.site for record in report.sites] == [3]
        text, facts = tiny.text_model(model).config, seen.pop()
        assert (facts.model_type, facts.depth, facts.width) == (family, text.num_hidden_layers, text.hidden_size)
        assert facts.class_token == (family == "llava") and facts.line_positions == (family != "qwen2_5_vl")
        assert facts.tower_layers > 0 and not seen


def test_positions_renumbered_after_the_prefill_only():
    """Oracle: original positions in the prefill; then the next token at the place that the number of survivors says."""
    model, inputs = model_of("llava", torch.float64), tiny.batch("llava", "one")
    n = inputs["input_ids"].shape[1]

    class Halves(Doubles):
        def select(self, tokens):
            return Selection(torch.arange(0, len(tokens), 2))

    with vtprune.pruned(model, Halves(BEFORE_LLM, True), positions="original") as report, torch.no_grad():
        first = model(**inputs, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        before, after = report.tokens[0]
        place = {"position_ids": torch.tensor([[n - (before - after)]])}
        second = model(input_ids=token, past_key_values=first.past_key_values, **place).logits[:, -1]
    with vtprune.pruned(model, Halves(BEFORE_LLM, True), positions="compact-decode"), torch.no_grad():
        again = model(**inputs, use_cache=True)
        torch.testing.assert_close(again.logits, first.logits, atol=0, rtol=0)
        position_ids = torch.tensor([[n]])
        got = model(input_ids=token, past_key_values=again.past_key_values, position_ids=position_ids).logits[:, -1]
    torch.testing.assert_close(got, second, atol=1e-9, rtol=1e-9)


@dataclass
class Stops:
    """Halves by norm at every site until few are left; then says that this was the last, or goes on answering all."""

    says: bool
    needs: frozenset[str] = frozenset({"last_query_attention"})
    sites: tuple[float, ...] = (BEFORE_LLM, *INSIDE)
    asked: list = field(default_factory=list)

    def select(self, tokens):
        self.asked.append(tokens.site)
        self.held = len(CURRENT.get().captured)
        if tokens.memory.get("done") or len(tokens) < 9:
            tokens.memory["done"] = True
            return Selection(torch.arange(len(tokens)), last=self.says)
        keep = tokens.hidden.float().norm(dim=-1).topk(len(tokens) // 2).indices.sort().values
        return Selection(keep)


@pytest.mark.parametrize("kind", ["one", "ragged"])
def test_a_policy_that_is_done_with_a_sample_is_not_asked_again(kind):
    """Oracle: the same policy that is asked at every site and keeps what there is."""
    model, inputs = model_of("llava", torch.float64), tiny.batch("llava", kind)
    patient, brief = Stops(False), Stops(True)
    with vtprune.pruned(model, patient) as report:
        expected, lengths = answer(model, inputs), report.last.lengths
    with vtprune.pruned(model, brief) as report:
        got = answer(model, inputs)
        assert [[n if isinstance(n, int) else n[1] for n in row] for row in report.last.lengths] == [
            [n if isinstance(n, int) else n[1] for n in row] for row in lengths
        ]
    assert len(patient.asked) > len(brief.asked)
    assert torch.equal(got[0], expected[0])
    for one, other in zip(got[1], expected[1]):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_text_positions_are_the_columns_of_the_text():
    """Oracle: the placeholders in the ids, padding taken off."""
    inputs = tiny.batch("llava", "ragged", torch.float32)
    policy = Reader(frozenset(), (BEFORE_LLM,))
    with vtprune.pruned(model_of("llava"), policy), torch.no_grad():
        model_of("llava")(**inputs, **oracle.positions(inputs))
    for b, tokens in enumerate(policy.held):
        real = inputs["attention_mask"][b].bool()
        visual = tiny.visual(inputs)[b][real]
        assert tokens.text_position.tolist() == (~visual).nonzero().flatten().tolist()
        assert tokens.position.tolist() == visual.nonzero().flatten().tolist()
