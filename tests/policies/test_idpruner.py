"""IDPruner, against the released code's picks, picks by hand inside wrapped models, and full-length masking."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import vtprune
from tests import oracle, tiny
from tests.blocks.test_mmr import literal
from tests.blocks.test_scorer import all_pairs, state_of
from tests.policies.fabricate import Sample, serve
from tests.policies.golden import load, weights
from vtprune.policies.idpruner import IDPruner
from vtprune.tokens import BEFORE_LLM, ModelFacts, Segment, Selection, VisualTokens


def sample_of(features, *counts, **signals):
    """Visual tokens in images of so many tokens each."""
    spans, start = [], 0
    for n in counts or (len(features),):
        spans.append(Segment(slice(start, start + n)))
        start += n
    return VisualTokens(features, features[:1], tuple(spans), signals)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(policy, tokens):
    return policy.select(tokens).keep.tolist()


@pytest.fixture
def scorer(tmp_path):
    """The path of a scorer for features of width 6, and its weights."""
    state = state_of()
    save_file(state, tmp_path / "scorer.safetensors")
    return str(tmp_path / "scorer.safetensors"), state


# ----------------------------------------------------------------------------------------------------- selection


def test_released_results_are_met(golden):
    """Oracle: the authors' code: which columns of the sequence stay; its images share one budget."""
    paths = sorted(golden("idpruner").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        visual = case["input_ids"][0] == case["image_token"]
        policy = IDPruner(
            keep_ratio=1 - case["ratio"].item(),
            trade_off=case["mmr_lambda"].item(),
            parallel_k=case["parallel_k"].item(),
            importance=case["raw_scores"],
            budget="prompt",
        )
        keep = policy.select(sample_of(case["inputs_embeds"][0, visual])).keep
        assert keep.tolist() == case["keep_local"].tolist(), path.name
        mask = ~visual
        mask[visual.nonzero()[:, 0][keep]] = True
        assert torch.equal(mask, case["keep_mask"]), path.name


def test_worked_example():
    """Importance alone keeps 0 and 1; a negative cosine taken for 0 would keep 0 and 2."""
    tokens = sample_of(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0]]))
    importance = torch.tensor([3, 2.9, 1, 0])
    assert kept(IDPruner(importance=importance), tokens) == [0, 3]
    assert kept(IDPruner(importance=importance, trade_off=1.0), tokens) == [0, 1]


@pytest.mark.parametrize(
    ("n", "dropped", "count"),
    [(10, 0.75, 2), (30, 0.75, 8), (2, 0.75, 1), (6, 0.75, 2), (25, 0.9, 2), (5, 0.9, 1), (33, 0.99, 1)],
)
def test_counts_are_those_of_the_released_code(n, dropped, count):
    policy = IDPruner(keep_ratio=1 - dropped, importance="norm")
    assert len(kept(policy, sample_of(noise(n, 4)))) == count


def test_images_have_their_own_budget_or_share_one():
    """Oracle: ``literal`` on each image, then on both; the second is less important, and starves where they share."""
    features, importance = noise(30, 8), torch.cat([torch.arange(20) + 100.0, torch.arange(10) / 100])
    tokens = sample_of(features, 20, 10)
    own = sorted(literal(features[:20], importance[:20], 5, 0.9))
    own += sorted(20 + i for i in literal(features[20:], importance[20:], 2, 0.9))
    options = {"keep_ratio": 0.25, "importance": importance, "trade_off": 0.9}
    assert kept(IDPruner(**options), tokens) == own
    shared = kept(IDPruner(**options, budget="prompt"), tokens)
    assert shared == sorted(literal(features, importance, 8, 0.9))
    assert max(shared) < 20 < max(own)


# -------------------------------------------------------------------------------------- where importance is from


def test_importance_by_name():
    """Oracle: ``literal`` with the mean over layers and heads, the signal itself, and the length of the features."""
    features, rows = noise(24, 8), noise(2, 3, 24, seed=1).softmax(-1)
    tokens = sample_of(features, cls_attention=rows.half(), vision_attention=noise(24, seed=2).exp())
    expected = {
        "cls": rows.half().float().mean((0, 1)),
        "vision": tokens.signals["vision_attention"],
        "auto": tokens.signals["vision_attention"],
        "norm": features.norm(dim=-1),
    }
    answers = {name: kept(IDPruner(importance=name), tokens) for name in expected}
    assert answers == {name: sorted(literal(features, w, 12)) for name, w in expected.items()}
    assert len(set(map(tuple, answers.values()))) == 3


def test_it_asks_for_what_it_reads():
    assert IDPruner().needs == {"vision_attention"}
    assert IDPruner(importance="vision").needs == {"vision_attention"}
    assert IDPruner(importance="cls").needs == {"cls_attention"}
    for importance in ("norm", torch.ones(3), lambda tokens: tokens.hidden[:, 0]):
        assert IDPruner(importance=importance).needs == frozenset()


def test_a_tensor_or_a_function_gives_importance():
    """Oracle: ``literal`` with the same numbers."""
    features, importance = noise(24, 8), noise(24, seed=1)
    expected = sorted(literal(features, importance, 12))
    assert kept(IDPruner(importance=importance), sample_of(features)) == expected
    calls = []

    def score(tokens):
        calls.append(tokens)
        return importance

    tokens = sample_of(features)
    assert kept(IDPruner(importance=score), tokens) == expected
    assert calls == [tokens] and calls[0] is tokens
    whole = (importance * 1000).long()
    assert kept(IDPruner(importance=whole), tokens) == sorted(literal(features, whole.float(), 12))


@pytest.mark.parametrize("value", [torch.ones(23), torch.ones(24, 1), [1.0] * 24, None, torch.ones(24).cfloat()])
def test_importance_of_another_shape_is_refused_by_value(value):
    tokens = sample_of(noise(24, 8))
    shown = f"<tensor {tuple(value.shape)}>" if isinstance(value, torch.Tensor) else repr(value)
    policies = [IDPruner(importance=lambda tokens: value)]
    policies += [IDPruner(importance=value)] if isinstance(value, torch.Tensor) else []
    for policy in policies:
        with pytest.raises(ValueError) as error:
            policy.select(tokens)
        assert "24" in str(error.value) and shown in str(error.value)


def facts(class_token=False, width=6):
    return ModelFacts(
        model_type="llava", depth=4, width=width, class_token=class_token, tower_layers=3, line_positions=True
    )


def test_it_fits_itself_to_the_vision_tower():
    policy = IDPruner(keep_ratio=0.1)
    assert policy.fitted(facts(class_token=True)) == IDPruner(keep_ratio=0.1, importance="cls")
    assert policy.fitted(facts(class_token=False)) == IDPruner(keep_ratio=0.1, importance="vision")
    for importance in ("norm", "vision", torch.ones(3)):
        policy = IDPruner(importance=importance)
        assert policy.fitted(facts(class_token=True)) is policy


def test_what_stands_in_for_the_scorer_is_told(scorer):
    told = {
        "cls": "class-token attention",
        "vision": "vision-tower attention",
        "norm": "feature-norm",
    }
    for name, source in told.items():
        (note,) = IDPruner(importance=name).notes
        assert note == f"IDPruner selection with {source} importance; the published method uses a trained scorer"
    assert "with given importance" in IDPruner(importance=torch.ones(3)).notes[0]
    assert "with computed importance" in IDPruner(importance=lambda tokens: tokens.hidden[:, 0]).notes[0]
    assert IDPruner(scorer=scorer[0]).notes == ()


# -------------------------------------------------------------------------------------------------------- scorer


def test_the_scorer_gives_importance(scorer):
    """Oracle: ``literal`` with the formula of the scorer, on each image or on all."""
    path, state = scorer
    features = noise(30, 6)
    tokens, first, second = sample_of(features, 20, 10), features[:20], features[20:]
    policy = IDPruner(scorer=path)
    assert policy.needs == frozenset()
    own = sorted(literal(first, all_pairs(state, first), 10))
    own += sorted(20 + i for i in literal(second, all_pairs(state, second), 5))
    assert kept(policy, tokens) == own
    assert kept(replace(policy, budget="prompt"), tokens) == sorted(literal(features, all_pairs(state, features), 15))


def test_the_golden_scorer_and_selection_work_together(golden, tmp_path):
    """Oracle: ``literal`` with the scores that the authors' code gave."""
    case = load(golden("idpruner") / "scorer.npz")
    save_file(weights(case), tmp_path / "scorer.safetensors")
    tokens = sample_of(case["x"][0])
    expected = sorted(literal(case["x"][0], case["scores"][0], 10))
    assert kept(IDPruner(n_keep=10, scorer=str(tmp_path / "scorer.safetensors")), tokens) == expected


def test_a_scorer_of_another_width_is_refused_before_the_first_prompt(scorer):
    policy = IDPruner(scorer=scorer[0])
    assert policy.fitted(facts(class_token=True)) is policy
    with pytest.raises(ValueError, match="width 6; this llava has 16"):
        policy.fitted(facts(width=16))
    with pytest.raises(ValueError, match="width 6; got"):
        policy.select(sample_of(noise(4, 7)))


def test_a_scorer_and_another_importance_are_one_too_many(scorer):
    for importance in ("cls", torch.ones(3)):
        with pytest.raises(ValueError, match=r"scorer\.safetensors.*leave one of them out"):
            IDPruner(scorer=scorer[0], importance=importance)
    with pytest.raises(ValueError, match=r"no file 'nowhere\.safetensors'"):
        IDPruner(scorer="nowhere.safetensors")


# ------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value"),
    [("trade_off", bad) for bad in (-0.1, 1.1, float("nan"), True, "half")]
    + [("parallel_k", bad) for bad in (0, 1.5, True, None)]
    + [("importance", bad) for bad in ("attention", "", None, [1.0], 3)]
    + [("compat", bad) for bad in ("released", None, "released-llava-decode,other")],
)
def test_wrong_options_are_refused_by_value(option, value):
    with pytest.raises(ValueError, match=option) as error:
        IDPruner(**{option: value})
    assert repr(value) in str(error.value)


def test_options_are_read_from_text(scorer):
    """Oracle: the same options as values."""
    from vtprune.cli.error import UserError
    from vtprune.cli.options import make_policy

    texts = ["trade_off=0.3", "parallel_k=4", "importance=norm", "budget=prompt", "compat=released-llava-decode"]
    expected = IDPruner(0.2, None, "prompt", 0.3, 4, "norm", None, "released-llava-decode")
    assert make_policy("idpruner", texts, keep_ratio="0.2") == expected
    assert make_policy("idpruner", [f"scorer={scorer[0]}"]) == IDPruner(scorer=scorer[0])
    with pytest.raises(UserError, match="importance.*'auto', 'cls', 'head_weighted_cls', 'vision', 'norm'"):
        make_policy("idpruner", ["importance=attention"])


def test_policies_with_tensors_can_be_compared_and_shown():
    one, same, other = (IDPruner(importance=w) for w in (torch.ones(500), torch.ones(500), torch.zeros(500)))
    assert one == same and one == replace(one) and not one != same
    assert one != other and one != IDPruner() and one != IDPruner(importance=torch.ones(3)) and one != "idpruner"
    assert replace(one, keep_ratio=0.1) != one
    assert repr(one) == (
        "IDPruner(keep_ratio=0.5, n_keep=None, budget='segment', trade_off=0.5, parallel_k=1, "
        "importance=<tensor (500,)>, scorer=None, compat='')"
    )


def test_a_tensor_serves_samples_of_its_length_alone():
    """In whatever dtype: small differences of these scores survive a copy in float64."""
    sample = Sample("mixed")
    importance = noise(len(sample), seed=3)
    [(tokens, selection)] = serve(IDPruner(importance=importance), sample)
    again = IDPruner(importance=importance.double()).select(tokens)
    assert torch.equal(selection.keep, again.keep)
    with pytest.raises(ValueError, match=str(len(sample))):
        serve(IDPruner(importance=importance[:-1]), sample)


# ----------------------------------------------------------------------------------------------- wrapped models


def embedded(model, inputs):
    """(N, D): the visual features of the only sample, in place before the decoder."""
    return oracle.embeddings(model, inputs)[0, tiny.visual(inputs)[0]]


def masked(model, inputs, columns, keep, n):
    """Greedy decoding with the other visual columns hidden at full length, so at original positions."""
    mask = ~tiny.visual(inputs)
    mask[0, columns[keep]] = True
    with oracle.MaskedColumns(model, {-1: mask}):
        return tiny.greedy(model, inputs, n)


class Look:
    """Keeps everything and remembers the signal that it saw."""

    needs, sites = frozenset({"vision_attention"}), (BEFORE_LLM,)

    def select(self, tokens):
        self.seen = tokens.signals["vision_attention"]
        return Selection.all(tokens)


def importance_by_hand(family, model, inputs):
    """LLaVA: the class token's row of the last layer but one, from eager attention maps; else the signal as it is."""
    if family == "llava":
        model.set_attn_implementation("eager")
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        return maps[-2][0, :, 0, 1:].mean(0)
    look = Look()
    with vtprune.pruned(model, look):
        model(**inputs)
    return look.seen


@torch.no_grad()
@pytest.mark.parametrize(("family", "source"), [("llava", "class-token"), ("qwen2_5_vl", "vision-tower")])
def test_a_wrapped_model_keeps_what_is_picked_by_hand(family, source):
    """Oracle: ``literal`` on the model's own embeddings, then decoding with the other columns masked."""
    model, inputs = tiny.build(family, "sdpa", torch.float64), tiny.batch(family, "one")
    features, importance = embedded(model, inputs), importance_by_hand(family, model, inputs)
    columns = tiny.visual(inputs)[0].nonzero()[:, 0]
    keep = sorted(literal(features, importance.float(), round(0.4 * len(columns))))
    expected = masked(model, inputs, columns, keep, 6)
    with vtprune.pruned(model, "idpruner", keep_ratio=0.4) as report:
        found = tiny.greedy(model, inputs, 6)
        assert report.kept()[0].rows.tolist() == keep
        assert report.positions == "original"
        (note,) = [note for note in report.notes if "importance" in note]
        assert f"with {source} attention importance" in note
    assert torch.equal(found.sequences, expected.sequences)
    for mine, theirs in zip(found.logits, expected.logits):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@torch.no_grad()
def test_the_released_numbering_of_decoded_tokens_can_be_asked_for():
    """The prefill is as without it; decoded tokens stand where they would if the prompt had been shorter."""
    model, inputs = tiny.build("llava", "sdpa", torch.float64), tiny.batch("llava", "one")
    logits = {}
    for name, options in {
        "right": {},
        "released": {"compat": "released-llava-decode"},
        "asked": {"positions": "compact-decode"},
    }.items():
        with vtprune.pruned(model, "idpruner", keep_ratio=0.4, **options):
            logits[name] = torch.stack(tiny.greedy(model, inputs, 3).logits)
    assert torch.equal(logits["released"][0], logits["right"][0])
    assert not torch.allclose(logits["released"][1], logits["right"][1], atol=1e-6)
    assert torch.equal(logits["released"], logits["asked"])


@torch.no_grad()
def test_a_scorer_works_in_a_wrapped_model(tmp_path):
    """Oracle: ``literal`` with the formula of the scorer on the model's own embeddings."""
    model, inputs = tiny.build("llava", "sdpa", torch.float32), tiny.batch("llava", "one", torch.float32)
    features = embedded(model, inputs)
    state = state_of(features.shape[1], 5)
    save_file({f"visual.importance_scorer.{name}": value for name, value in state.items()}, tmp_path / "s.safetensors")
    keep = sorted(literal(features, all_pairs(state, features), 4))
    with vtprune.pruned(model, "idpruner", n_keep=4, scorer=str(tmp_path / "s.safetensors")) as report:
        tiny.greedy(model, inputs, 2)
        assert report.kept()[0].rows.tolist() == keep
        assert not [note for note in report.notes if "importance" in note]
    save_file(state_of(7, 5), tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="width 7"):
        vtprune.wrap(model, "idpruner", scorer=str(tmp_path / "s.safetensors"))
    vtprune.unwrap(model)
