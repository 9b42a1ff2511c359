"""What policies see inside a wrapped model equals eager ``output_attentions`` of the same rows."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, visible
from vtprune import BEFORE_LLM, Selection, VisualTokens, inside


@cache
def model_of(family: str, attn: str = "sdpa"):
    return tiny.build(family, attn, torch.float32)


@dataclass
class Looks:
    """Keeps everything, or half by norm, and remembers what it saw: (site, sample in call order) -> signals."""

    needs: frozenset[str]
    sites: tuple[float, ...]
    ratio: float = 1.0
    seen: list = field(default_factory=list)

    def select(self, tokens: VisualTokens) -> Selection:
        self.seen.append((tokens.site, {name: s.clone() for name, s in tokens.signals.items()}, tokens))
        return ByNorm((0,), self.ratio).select(tokens) if self.ratio < 1 else Selection.all(tokens)


def eager(family, inputs):
    """(B, L, L) head means of every layer, from the model's own eager attention."""
    return [a.mean(1) for a in eager_heads(family, inputs)]


def eager_heads(family, inputs):
    """(B, heads, L, L) of every layer."""
    with torch.no_grad():
        out = model_of(family, "eager")(**inputs, **oracle.positions(inputs), output_attentions=True)
    return [a.float() for a in out.attentions]


def text_columns(inputs, b):
    real = inputs["attention_mask"][b].bool() & ~tiny.visual(inputs)[b]
    return real.nonzero().flatten()


@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_before_and_after_a_layer_are_those_of_eager_attention(family, kind):
    """Oracle: output_attentions of the eager model; rows after layer 1, before layer 2, and of layer 0."""
    inputs = tiny.batch(family, kind, torch.float32)
    names = ("last_query_attention", "text_attention", "text_attention_max", "text_attention_heads")
    policy = Looks(frozenset(f"{n}{s}" for n in names for s in ("", ":peek", ":0")), (2,))
    with vtprune.pruned(model_of(family), policy), torch.no_grad():
        model_of(family)(**inputs, **oracle.positions(inputs))
    heads = eager_heads(family, inputs)
    rows, largest = [a.mean(1) for a in heads], [a.amax(1) for a in heads]
    for b, (_, seen, tokens) in enumerate(policy.seen):
        padding = int((inputs["attention_mask"][b] == 0).sum())
        columns, text = tokens.position + padding, text_columns(inputs, b)
        for suffix, layer in (("", 1), (":peek", 2), (":0", 0)):
            expected = rows[layer][b][text][:, columns]
            torch.testing.assert_close(seen["text_attention" + suffix], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(seen["last_query_attention" + suffix], expected[-1], atol=1e-5, rtol=0)
            most = largest[layer][b][text][:, columns]
            torch.testing.assert_close(seen["text_attention_max" + suffix], most, atol=1e-5, rtol=0)
            every = heads[layer][b][:, text][:, :, columns]
            torch.testing.assert_close(seen["text_attention_heads" + suffix], every, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["one", "ragged"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "llava_next"])
def test_rows_of_a_pruned_layer_are_those_of_masked_attention(family, kind):
    """Oracle: eager attention at full length, the columns that the first site dropped masked."""
    inputs = tiny.batch(family, kind, torch.float32)
    needs = frozenset({"last_query_attention", "text_attention:peek", "last_query_attention:1"})
    policy = Looks(needs, (1, 3), 0.5)
    with vtprune.pruned(model_of(family), policy), torch.no_grad():
        model_of(family)(**inputs, **oracle.positions(inputs))
        kept = visible(model_of(family))
    with oracle.MaskedColumns(model_of(family, "eager"), {1: kept[1]}):
        rows = eager(family, inputs)
    second = [item for item in policy.seen if item[0] == 3]
    for b, (_, seen, tokens) in enumerate(second):
        padding = int((inputs["attention_mask"][b] == 0).sum())
        columns, text = tokens.position + padding, text_columns(inputs, b)
        close = dict(atol=1e-5, rtol=0)
        torch.testing.assert_close(seen["last_query_attention"], rows[2][b][text[-1], columns], **close)
        torch.testing.assert_close(seen["last_query_attention:1"], rows[1][b][text[-1], columns], **close)
        torch.testing.assert_close(seen["text_attention:peek"], rows[3][b][text][:, columns], **close)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_second_turn_looks_at_the_first_one_too(family):
    """Oracle: eager attention over the whole conversation; rows are shares of all keys, past ones included."""
    inputs = tiny.batch(family, "ragged", torch.float32)
    policy = Looks(frozenset({"last_query_attention", "text_attention:peek"}), (2,))
    model = model_of(family)
    with vtprune.pruned(model, policy):
        cache_ = DynamicCache(config=model.config.get_text_config())
        first = tiny.greedy(model, inputs, 3, past_key_values=cache_)
        turn = tiny.new_turn(family, model, inputs, first.sequences, True)
        policy.seen.clear()
        tiny.greedy(model, turn, 1, past_key_values=cache_)
    whole = tiny.collate(family, turn.samples, torch.float32)
    rows = eager(family, whole)
    for b, (_, seen, tokens) in enumerate(policy.seen):
        new = tiny.visual(whole)[b].nonzero().flatten()[-len(tokens) :]
        last = int(whole["attention_mask"][b].nonzero().flatten()[-1])
        torch.testing.assert_close(seen["last_query_attention"], rows[1][b][last, new], atol=1e-5, rtol=0)
        torch.testing.assert_close(seen["text_attention:peek"][-1], rows[2][b][last, new], atol=1e-5, rtol=0)


def test_inside_a_layer_its_own_attention_is_seen():
    """Oracle: output_attentions of that very layer."""
    inputs = tiny.batch("llava", "one", torch.float32)
    policy = Looks(frozenset({"last_query_attention"}), (inside(1),))
    with vtprune.pruned(model_of("llava"), policy), torch.no_grad():
        model_of("llava")(**inputs)
    (_, seen, tokens), rows = policy.seen[0], eager("llava", inputs)
    torch.testing.assert_close(seen["last_query_attention"], rows[1][0][-1, tokens.position], atol=1e-5, rtol=0)


def test_class_attention_reaches_the_policy_by_segment():
    """Oracle: the tower's own eager attention, image by image; a batch in which rows hold other numbers of images."""
    inputs = tiny.batch("llava", "ragged", torch.float32)
    policy = Looks(frozenset({"cls_attention:-3,-2", "vision_attention"}), (BEFORE_LLM,))
    with vtprune.pruned(model_of("llava"), policy):
        tiny.beams(model_of("llava"), inputs, 2, num_beams=2)
    tower = model_of("llava", "eager").model.vision_tower
    with torch.no_grad():
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions
    image = 0
    assert len(policy.seen) == 4
    for row, (_, seen, tokens) in enumerate(policy.seen):
        first = image
        for segment in tokens.segments:
            expected = torch.stack([maps[layer][image][:, 0, 1:] for layer in (-3, -2)])
            torch.testing.assert_close(seen["cls_attention:-3,-2"][..., segment.span], expected, atol=1e-6, rtol=0)
            columns = maps[-1][image].mean((0, 1))[1:]
            torch.testing.assert_close(seen["vision_attention"][segment.span], columns, atol=1e-6, rtol=0)
            image += 1
        if row % 2 == 0:
            image = first  # the next row is a beam of the same sample


def test_signals_of_the_tower_need_the_tower_to_have_run():
    model, inputs = model_of("llava"), tiny.batch("llava", "one", torch.float32)
    with torch.no_grad():
        encoded = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with (
        vtprune.pruned(model, "vtc_cls", layers=(-2,)),
        pytest.raises(ValueError, match="encode with get_image_features after"),
    ):
        model.generate(**rest, mm_encoder_outputs={"image": encoded}, max_new_tokens=1)
