"""Relevance by CLIP's text tower, against CLIPModel's own features, put together by the published formula."""

import runpy
import textwrap
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample
from tests.policies.test_cdpruner import literal
from vtprune import ClipQuestion, Segment, VisualTokens
from vtprune.policies.cdpruner import CDPruner

WORDS = "what is on the table how many cups are there ?".split()
PARTS = {"What is on the table ?": 1, "how many cups are there on the table what is there": 2, "the " * 20: 3}
"""Questions, and in how many parts of 8 tokens they and their two special tokens come."""


@cache
def clip():
    """A random CLIP whose vision tower has the size of the tiny LLaVA's, and room for 8 words."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    text = {**sizes, "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 16, "max_position_embeddings": 8}
    text |= {"bos_token_id": 13, "eos_token_id": 14, "pad_token_id": 0, "projection_dim": 12}
    vision = {**sizes, "image_size": 28, "patch_size": 7, "projection_dim": 12}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
        for parameter in model.parameters():
            size = 1.0 if parameter.dim() < 2 else parameter.shape[-1] ** -0.5
            parameter.data += 1.5 * size * torch.randn_like(parameter)
    return model


@cache
def tokenizer():
    """Words are ids 1 to 11, the start is 13, the end 14, as in CLIP the largest."""
    vocabulary = {"<pad>": 0, **{word: i for i, word in enumerate(WORDS, 1)}, "<unk>": 12, "<s>": 13, "</s>": 14}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 13), ("</s>", 14)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=plain, **special)


@cache
def llava():
    """The tiny LLaVA around that CLIP's vision tower."""
    model = tiny.build("llava", "sdpa", torch.float32)
    tower = model.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(clip().vision_model.state_dict())
    return model


@torch.no_grad()
def by_formula(question, pixels):
    """(pictures, N): by CLIPModel's own features of every part of eight tokens, and its own projection of patches."""
    ids = [13, *(WORDS.index(word) + 1 if word in WORDS else 12 for word in question.split()), 14]
    embeds = []
    for start in range(0, len(ids), 8):
        part = ids[start : start + 8]
        text = {
            "input_ids": [part + [0] * (8 - len(part))],
            "attention_mask": [[1] * len(part) + [0] * (8 - len(part))],
        }
        found = clip().get_text_features(**{name: torch.tensor(value) for name, value in text.items()})
        embeds.append(getattr(found, "pooler_output", found)[0])
    patches = clip().vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    image = clip().visual_projection(clip().vision_model.post_layernorm(patches))
    cosines = F.cosine_similarity(image[:, :, None], torch.stack(embeds)[None, None], dim=-1)
    return -cosines.mean(-1), len(embeds)


@pytest.mark.parametrize("question", PARTS, ids=str.strip)
def test_relevance_is_the_published_one(question):
    """Oracle: the formula with CLIPModel's features, part by part, and picks of largest determinants, in a batch."""
    model, inputs = llava(), tiny.batch("llava", "ragged", torch.float32)
    expected, parts = by_formula(question, inputs["pixel_values"])
    assert parts == PARTS[question]
    seen = []

    class Watched(ClipQuestion):
        def __call__(self, tokens):
            seen.append(super().__call__(tokens))
            return seen[-1]

    asked = Watched(question, clip(), tokenizer())
    with vtprune.pruned(model, "cdpruner", keep_ratio=0.4, relevance=asked) as report, torch.no_grad():
        model(**inputs, **oracle.positions(inputs))
        assert not report.notes or not any("CLIP" in note for note in report.notes)
        kept = [one.rows.tolist() for b in range(2) for one in report.kept(b)]
    torch.testing.assert_close(torch.cat(seen), expected.flatten(), atol=1e-5, rtol=0)
    embeds = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    for features, relevance, rows in zip(embeds, expected, kept, strict=True):
        assert [row % 16 for row in rows] == sorted(literal(features.detach(), relevance, 6))


def test_the_examples_run_from_a_folder(tmp_path):
    """Oracle: the same towers and tokenizer, given as objects; another question keeps other tokens."""
    clip().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model, inputs = llava(), dict(tiny.batch("llava", "one", torch.float32), max_new_tokens=2)
    example = textwrap.dedent("".join(ClipQuestion.__doc__.split("::\n")[1].split("\n    For")[0]))
    assert example.count("generate") == 2 and "asked.about" in example
    (tmp_path / "example.py").write_text(example)
    kept = []
    generate = model.generate
    names = {"vtprune": vtprune, "folder": str(tmp_path), "inputs": inputs, "model": model}
    model.generate = lambda **call: [generate(**call), kept.append(vtprune.report(model).kept()[0].rows.tolist())]
    try:
        runpy.run_path(str(tmp_path / "example.py"), names)
    finally:
        vtprune.unwrap(model)
        del model.generate
    assert kept[0] != kept[1]
    for question, rows in zip(("What is on the table?", "How many cups are there?"), kept, strict=True):
        with vtprune.pruned(model, "cdpruner", keep_ratio=0.25, relevance=ClipQuestion(question, clip(), tokenizer())):
            generate(**inputs)
            assert vtprune.report(model).kept()[0].rows.tolist() == rows


class Processor:
    """CLIP's processor, its tokenizer and what it does to pictures."""

    image_processor = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})

    def __call__(self, **asked):
        return tokenizer()(**asked)


def picture(width, height, seed):
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((3 * width, 3 * height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next"])
def test_pictures_are_put_onto_the_grid_of_the_model(family):
    """Oracle: torch's own bilinear resizing of the map by the formula, of every view."""
    model, inputs = tiny.build(family, "sdpa", torch.float32), tiny.batch(family, "two_images", torch.float32)
    pictures = [picture(9, 7, 1), picture(6, 12, 2)]
    squares = [one.resize((28, 28), Image.Resampling.BICUBIC) for one in pictures]
    pixels = Processor.image_processor(squares, do_resize=False, do_center_crop=False, return_tensors="pt")
    maps = by_formula("how many cups", pixels["pixel_values"])[0].view(2, 1, 4, 4)
    seen = []

    def watched(tokens):
        seen.append((asked(tokens), tokens))
        return seen[-1][0]

    asked = ClipQuestion("how many cups", clip(), Processor(), images=pictures)
    with vtprune.pruned(model, CDPruner(keep_ratio=0.5, relevance=watched)), torch.no_grad():
        model(**inputs, **oracle.positions(inputs))
    ((found, tokens),) = seen
    expected = []
    for segment, one in zip(tokens.segments, maps, strict=True):
        views = [F.interpolate(one[None], grid[1:], mode="bilinear")[0, 0] for grid in segment.grids]
        for view, _, row, column in tokens.coords[segment.span].tolist():
            expected.append(views[view][row, column])
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert len(found) == len(tokens) and "onto the model's grid" in CDPruner(relevance=asked).notes[0]


def tokens_of(n, width, **more):
    x = torch.ones(n, width)
    signals = {"unprojected": type("Seen", (), {"features": x})}
    return VisualTokens(x, x[:1], (Segment(slice(0, n), **more),), signals)


def test_wrong_calls_teach(tmp_path):
    for question in ("", "  ", None):
        with pytest.raises(ValueError, match=f"question is a text.*{question!r}"):
            ClipQuestion(question, clip(), tokenizer())
    with pytest.raises(ValueError, match="'no/such/folder' is no folder"):
        ClipQuestion("what", "no/such/folder")
    with pytest.raises(TypeError, match="CLIPModel.*got Linear without text_model"):
        ClipQuestion("what", torch.nn.Linear(1, 1), tokenizer())
    with pytest.raises(TypeError, match="tokenizer is CLIP's own.*got None"):
        ClipQuestion("what", clip())
    with pytest.raises(TypeError, match="images need CLIP's processor"):
        ClipQuestion("what", clip(), tokenizer(), images=[picture(4, 4, 0)])
    with pytest.raises(ValueError, match="gives 20 numbers for a patch and this CLIP's 32"):
        ClipQuestion("what", clip(), tokenizer())(tokens_of(5, 20))
    some = ClipQuestion("what", clip(), Processor(), images=[picture(4, 4, 0)])
    with pytest.raises(ValueError, match="got 1 for a prompt of 1 segments .video."):
        some(tokens_of(5, 8, kind="video"))
    with pytest.raises(ValueError, match="got 1 for a prompt of 4 segments .image, video."):
        some(Sample("mixed").at())
    with pytest.raises(ValueError, match="does not know where"):
        some(tokens_of(5, 8))
