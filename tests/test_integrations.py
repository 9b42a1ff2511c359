"""Beside other libraries: PEFT, accelerate's offloading, transformers' pipeline, per-call options."""

import pytest
import torch

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, answer, visible
from vtprune import BEFORE_LLM


def test_a_peft_model_is_pruned():
    """Oracle: masked columns in the same LoRA model; and its adapter can be switched off while wrapped."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, inputs = tiny.build("llava"), tiny.batch("llava", "ragged")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    lora = peft.get_peft_model(model, config).eval()
    vtprune.wrap(lora, ByNorm((BEFORE_LLM, 2)))
    got = lora.generate(**inputs, max_new_tokens=4, do_sample=False)
    kept = visible(lora)
    with lora.disable_adapter():
        off = lora.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert vtprune.report(lora).prefills == 2
    vtprune.unwrap(lora)
    with oracle.MaskedColumns(lora.get_base_model(), kept):
        assert torch.equal(got, lora.generate(**inputs, max_new_tokens=4, do_sample=False))
    assert off.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("wrap_first", [True, False])
def test_an_offloaded_model_is_pruned(tmp_path, wrap_first):
    """Oracle: the same model in memory."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    inputs = tiny.batch("llava", "ragged", torch.float32)
    model = tiny.build("llava", dtype=torch.float32)
    policy = ByNorm((BEFORE_LLM, 2))
    with vtprune.pruned(model, policy):
        expected = answer(model, inputs)
    if wrap_first:
        vtprune.wrap(model, policy)
    accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    if not wrap_first:
        vtprune.wrap(model, policy)
    got = answer(model, inputs)
    assert torch.equal(got[0], expected[0])
    assert vtprune.report(model).tokens == [(16, 4), (32, 8)]


def test_options_hold_for_the_calls_inside_and_nest():
    model, inputs = tiny.build("llava"), tiny.batch("llava", "one")
    vtprune.wrap(model, "random", keep_ratio=0.5)

    def kept() -> int:
        answer(model, inputs, 1)
        return vtprune.report(model).tokens[0][1]

    assert kept() == 8
    with vtprune.options(model, keep_ratio=0.25):
        assert kept() == 4
        with vtprune.options(model, n_keep=3):
            assert kept() == 3
            with vtprune.options(model, keep_ratio=1):
                assert kept() == 16
        assert kept() == 4
    assert kept() == 8


def test_budgets_are_shared_by_image_or_by_prompt():
    model, inputs = tiny.build("llava"), tiny.batch("llava", "two_images")
    with vtprune.pruned(model, "random", n_keep=5) as report:
        answer(model, inputs, 1)
        assert [len(kept.rows) for kept in report.kept()] == [5] * len(report.kept())
    with vtprune.pruned(model, "random", n_keep=5, budget="prompt") as report:
        answer(model, inputs, 1)
        assert sum(len(kept.rows) for kept in report.kept()) == 5


def test_newlines_are_kept_unless_a_policy_wants_them():
    model, inputs = tiny.build("llava_next"), tiny.batch("llava_next", "one")
    n_all = int(tiny.visual(inputs).sum())

    class Newlines(ByNorm):
        newlines = True

    with vtprune.pruned(model, ByNorm()) as report:
        answer(model, inputs, 1)
        patches = report.tokens[0][0]
    with vtprune.pruned(model, Newlines()) as report:
        answer(model, inputs, 1)
        assert report.tokens[0][0] == n_all > patches


def test_two_wrapped_models_do_not_mix():
    """Oracle: each alone."""
    a, b = tiny.build("llava"), tiny.build("qwen2_5_vl")
    x, y = tiny.batch("llava", "ragged"), tiny.batch("qwen2_5_vl", "ragged")
    vtprune.wrap(a, ByNorm((1,)))
    expected_a = answer(a, x)
    vtprune.wrap(b, ByNorm((2,), ratio=0.25))
    expected_b = answer(b, y)

    class Asks(ByNorm):
        """Runs another wrapped model inside its selection, as a scorer would."""

        def select(self, tokens):
            answer(b, y, 1)
            return super().select(tokens)

    assert torch.equal(answer(a, x)[0], expected_a[0]) and torch.equal(answer(b, y)[0], expected_b[0])
    vtprune.unwrap(a)
    with vtprune.pruned(a, Asks((1,))):
        assert torch.equal(answer(a, x)[0], expected_a[0])


def test_the_pipeline_answers_with_a_pruned_model(tmp_path):
    """Oracle: the same model's generate on the processor's own output."""
    from PIL import Image
    from transformers import pipeline

    from vtprune.embedded import load_image

    model, processor = load_image()
    vtprune.wrap(model, "uniform", keep_ratio=0.5)
    image = Image.new("RGB", (84, 84), (30, 120, 60))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What color is the circle?"}]
    chat = [{"role": "user", "content": content}]
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    out = pipe(text=chat, max_new_tokens=3, do_sample=False, return_full_text=False)
    assert vtprune.report(model).prefills == 1
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    # the pipeline keeps the space between prompt and answer
    assert out[0]["generated_text"].strip() == processor.decode(expected, skip_special_tokens=True).strip() != ""
