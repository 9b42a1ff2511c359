"""Wrong calls: one clear error with the value, what is allowed and the next step; and the model stays usable."""

from functools import cache

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer, traces, visible
from vtprune import BEFORE_LLM, Selection
from vtprune.encoder import check_chunks


@cache
def model_of(family: str):
    return tiny.build(family, dtype=torch.float32)


WRONG_OPTIONS = [
    (dict(keep_ratio=75), "KEPT, in (0, 1]; got 75"),
    (dict(keep_ratio=0), "got 0"),
    (dict(keep_ratio=-1), "got -1"),
    (dict(keep_ratio=float("nan")), "got nan"),
    (dict(keep_ratio="a"), "got 'a'"),
    (dict(keep_ratio=True), "got True"),
    (dict(n_keep=0), "integer of 1 or more; got 0"),
    (dict(n_keep=2.5), "got 2.5"),
    (dict(keep_ratio=0.5, n_keep=3), "keep_ratio or n_keep, not both"),
    (dict(budget="frame"), "got 'frame'"),
    (dict(keepratio=0.5), "did you mean 'keep_ratio'"),
    (dict(score_dtype="float32"), "option of divprune, vtc_cls"),
    (dict(colour=1), "no option 'colour'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS, ids=lambda v: str(v)[:40])
def test_wrong_options_teach(options, message):
    model = model_of("llava")
    before = traces(model)
    with pytest.raises(ValueError) as error:
        vtprune.wrap(model, "random", **options)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert traces(model) == before


@pytest.mark.parametrize(
    ("policy", "kind", "message"),
    [
        ("fastvv", ValueError, "unknown policy 'fastvv'; did you mean 'fastv'?"),
        ("", ValueError, "known: "),
        (3, TypeError, "an object with needs, sites and select"),
        (ByNorm, TypeError, "the class ByNorm; pass an instance"),
        (ByNorm((99,)), ValueError, "site 99; this decoder has layers 0 to 3"),
        (ByNorm((4,)), ValueError, "site 4"),
        (ByNorm((-2,)), ValueError, "site -2"),
        (ByNorm((1.25,)), ValueError, "site 1.25"),
        (ByNorm((2, 1)), ValueError, "ascending"),
        (ByNorm(()), ValueError, "at least one"),
        (ByNorm((0,), needs=frozenset({"lastquery"})), ValueError, "last_query_attention"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_wrong_policies_teach(policy, kind, message):
    model = model_of("llava")
    before = traces(model)
    with pytest.raises(kind) as error:
        vtprune.wrap(model, policy)
    assert message in str(error.value)
    assert traces(model) == before


def test_layer_99_of_a_named_policy_teaches():
    with pytest.raises(ValueError, match="layers 0 to 3"):
        vtprune.wrap(model_of("llava"), "fastv", layer=99)


def test_a_policy_object_takes_no_options():
    with pytest.raises(TypeError, match=r"\['keep_ratio'\] go with a policy name; got a ByNorm object"):
        vtprune.wrap(model_of("llava"), ByNorm(), keep_ratio=0.5)


def test_wrapping_twice_names_the_policy_in_force():
    model = tiny.build("llava")
    vtprune.wrap(model, "random", keep_ratio=0.25)
    with pytest.raises(ValueError, match=r"already wrapped with Random.*0\.25.*unwrap"):
        vtprune.wrap(model, "fastv")
    assert vtprune.unwrap(vtprune.unwrap(model)) is model
    with pytest.raises(ValueError, match="not wrapped"):
        vtprune.report(model)


ANSWERS = {
    "empty": (lambda n: torch.arange(0), ValueError, "keep is empty; at least one of the"),
    "unsorted": (lambda n: torch.tensor([3, 1]), ValueError, "unsorted at 0: 3, 1"),
    "repeated": (lambda n: torch.tensor([1, 1]), ValueError, "repeated at 0: 1, 1"),
    "too far": (lambda n: torch.tensor([0, n]), ValueError, "must lie in [0, "),
    "negative": (lambda n: torch.tensor([-1, 0]), ValueError, "from -1 to 0"),
    "float": (lambda n: torch.tensor([0.0]), TypeError, "int64"),
    "mask": (lambda n: torch.ones(n, dtype=torch.bool), TypeError, "int64"),
    "list": (lambda n: [0], TypeError, "got list"),
    "elsewhere": (lambda n: torch.zeros(1, dtype=torch.int64, device="meta"), ValueError, "keep is on meta"),
}


@pytest.mark.parametrize("wrong", ANSWERS)
def test_wrong_selections_teach_and_lose_nothing(wrong):
    keep, kind, message = ANSWERS[wrong]

    class Wrong(ByNorm):
        def select(self, tokens):
            return Selection(keep(len(tokens)))

    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    expected = answer(model, inputs)
    with vtprune.pruned(model, Wrong((1,))), pytest.raises(kind) as error:
        answer(model, inputs)
    assert message in str(error.value) and "Wrong.select at layer 1" in str(error.value)
    assert torch.equal(answer(model, inputs)[0], expected[0])


def plan(n, rows):
    return torch.tensor(rows).float().to_sparse()


MERGES = {
    "shape": (lambda n: dict(merge=torch.zeros(n - 1, dtype=torch.int64)), "merge must be int64 of shape"),
    "range": (lambda n: dict(merge=torch.full((n,), 5)), "merge must lie in [-1, 2)"),
    "self": (lambda n: dict(merge=torch.zeros(n, dtype=torch.int64)), "merged into itself"),
    "sum": (lambda n: dict(merge=torch.full((2, n), 2.0).to_sparse()), "must sum to 1; row 0 sums to"),
    "nan": (lambda n: dict(merge=torch.full((2, n), float("nan")).to_sparse()), "must sum to 1"),
    "plan shape": (lambda n: dict(merge=torch.ones(3, n).to_sparse()), "float of shape (2,"),
    "weight alone": (lambda n: dict(weight=torch.ones(n)), "weight goes with merge"),
    "weight zero": (lambda n: dict(merge=identity(n), weight=torch.zeros(n)), "finite and above 0"),
    "weight shape": (lambda n: dict(merge=identity(n), weight=torch.ones(n + 1)), "weight must be float of shape"),
    "stands for none": (lambda n: dict(stands_for=torch.zeros(2)), "every stands_for must be finite and above 0"),
    "stands for shape": (lambda n: dict(stands_for=torch.ones(n)), "stands_for must be float of shape (2,)"),
}


def identity(n):
    merge = torch.full((n,), -1)
    merge[:2] = torch.arange(2)
    return merge


@pytest.mark.parametrize("wrong", MERGES)
def test_wrong_merges_teach(wrong):
    make, message = MERGES[wrong]

    class Wrong(ByNorm):
        def select(self, tokens):
            return Selection(torch.arange(2), **make(len(tokens)))

    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, Wrong()), pytest.raises(ValueError) as error:
        answer(model, inputs)
    assert message in str(error.value)


def test_a_selection_of_another_type_is_refused():
    class Wrong(ByNorm):
        def select(self, tokens):
            return torch.arange(3)

    message = "must return a vtprune.Selection; got Tensor"
    with vtprune.pruned(model_of("llava"), Wrong()), pytest.raises(TypeError, match=message):
        answer(model_of("llava"), tiny.batch("llava", "one", torch.float32))


def test_a_prompt_without_images_is_untouched_and_reported():
    """Oracle: the unwrapped model, by bits."""
    model = model_of("llava")
    text = dict(input_ids=torch.tensor([[1, 5, 6, 7]]), attention_mask=torch.ones(1, 4, dtype=torch.long))
    expected = model.generate(**text, max_new_tokens=4, do_sample=False)
    with vtprune.pruned(model, "random") as report:
        assert torch.equal(model.generate(**text, max_new_tokens=4, do_sample=False), expected)
        assert report.without_visual == 1 and report.tokens == []
        assert "1 prompts had no visual tokens" in str(report)


def test_more_placeholders_than_features_is_an_error_and_the_model_stays_usable():
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    expected = answer(model, inputs)
    wrong = dict(inputs)
    wrong["input_ids"] = torch.cat([torch.tensor([[1, tiny.IMAGE]]), inputs["input_ids"]], 1)
    wrong["attention_mask"] = torch.ones_like(wrong["input_ids"])
    with vtprune.pruned(model, "random"):
        with pytest.raises((ValueError, RuntimeError), match="(?i)image features and image tokens do not match"):
            model.generate(**wrong, max_new_tokens=2)
        answer(model, inputs)
    assert torch.equal(answer(model, inputs)[0], expected[0])


def test_training_with_gradients_is_refused():
    model, inputs = tiny.build("llava", dtype=torch.float32), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, "random"):
        model.train()
        with pytest.raises(RuntimeError, match="call|Call model.eval"):
            model(**inputs)
        with torch.no_grad():
            model(**inputs)


def test_compiling_the_whole_forward_is_refused():
    model, inputs = tiny.build("llava", dtype=torch.float32), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, "random"), torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        with pytest.raises(Exception, match="compiled forward") as error:
            compiled(**inputs)
        assert "cache_implementation='static'" in str(error.value)
    with pytest.raises(NotImplementedError, match="compiled model"):
        vtprune.wrap(torch.compile(tiny.build("llava"), backend="eager"), "random")


def test_chunked_prefill_is_refused():
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with vtprune.pruned(model, "random"):
        with pytest.raises(NotImplementedError, match="prefill_chunk_size=None"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=8)
        answer(model, inputs)


def test_what_a_forward_encodes_itself_waits_for_no_other():
    """Oracle: features of one token, encoded elsewhere, are a slice of nothing: no error, before as after."""
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    elsewhere = {"image": BaseModelOutputWithPooling(pooler_output=[torch.zeros(1, 4)])}
    check_chunks(elsewhere)
    with vtprune.pruned(model, "random"), torch.no_grad():
        model(**inputs)
        check_chunks(elsewhere)


def image_after(model, inputs, n_text):
    """The logits of an image prompt that goes on after ``n_text`` tokens of text in the cache."""
    cache_ = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=torch.arange(2, 2 + n_text)[None], past_key_values=cache_)
        mask = torch.ones(1, n_text + inputs["input_ids"].shape[1], dtype=torch.long)
        return model(**{**inputs, "attention_mask": mask}, past_key_values=cache_).logits


def test_a_sliding_cache_that_lost_tokens_is_refused():
    model, inputs = model_of("gemma3"), tiny.batch("gemma3", "one", torch.float32)
    with vtprune.pruned(model, "random"), pytest.raises(NotImplementedError, match="5 of 20 tokens have left"):
        image_after(model, inputs, 20)


def test_a_sliding_cache_that_lost_nothing_is_pruned():
    """Oracle: masked columns at full length."""
    model, inputs = model_of("gemma3"), tiny.batch("gemma3", "one", torch.float32)
    with vtprune.pruned(model, ByNorm((BEFORE_LLM,))):
        got = image_after(model, inputs, 10)
        (kept,) = visible(model).values()
    kept = torch.cat([torch.ones(1, 10, dtype=torch.bool), kept], 1)
    with oracle.MaskedColumns(model, {BEFORE_LLM: kept}):
        expected = image_after(model, inputs, 10)
    text = ~tiny.visual(inputs)
    torch.testing.assert_close(got[text], expected[text], atol=1e-4, rtol=0)


def test_a_static_cache_that_only_slides_is_refused():
    """Where no layer sees everything, nothing says how much a conversation may grow to."""
    model, inputs = tiny.build("mistral3", dtype=torch.float32), tiny.batch("mistral3", "one", torch.float32)
    model.config.text_config.sliding_window = 16
    with vtprune.pruned(model, "random"), pytest.raises(NotImplementedError, match="StaticSlidingWindowLayer"):
        answer(model, inputs, cache_implementation="static")


def test_an_unknown_family_names_itself_and_the_file_to_write():
    from transformers import LlamaConfig, LlamaForCausalLM

    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    model = LlamaForCausalLM(LlamaConfig(**small))
    with pytest.raises(NotImplementedError) as error:
        vtprune.wrap(model, "random")
    for part in ("'llama'", "llava", "vtprune/families/base.py", "strict=False"):
        assert part in str(error.value)


def test_signals_that_a_tower_lacks_are_refused_at_wrap():
    before = traces(model_of("qwen2_5_vl"))
    with pytest.raises(ValueError, match="class token"):
        vtprune.wrap(model_of("qwen2_5_vl"), "vtc_cls", signal="cls")
    assert traces(model_of("qwen2_5_vl")) == before


def test_options_teach_too():
    model = tiny.build("llava")
    vtprune.wrap(model, "fastv", keep_ratio=0.5, layer=2)
    wrong = [(dict(keep_ratio=2), "KEPT"), (dict(layer=1), "not where it acts"), (dict(ratio=1), "keep_ratio")]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message), vtprune.options(model, **changes):
            raise AssertionError("the body must not run")
    vtprune.unwrap(model)
    vtprune.wrap(model, tiny_object())
    with pytest.raises(TypeError, match="dataclass"), vtprune.options(model, keep_ratio=0.1):
        raise AssertionError("the body must not run")


def tiny_object():
    from tests.probe import KeepAll

    return KeepAll(BEFORE_LLM)
