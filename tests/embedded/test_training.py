"""The training script of the image model: what is supervised, what may see what, and going on after an interruption."""

import numpy as np
import pytest
import torch
from torch import nn

from vtprune.embedded.architecture import GRID, PATCH, VOCABULARY, build_model, build_processor
from vtprune.embedded.drawing import COLORS
from vtprune.embedded.guidance import align_projector, look_closer, look_there, unsaid
from vtprune.embedded.scenes import make_scene
from vtprune.embedded.train_answers import PREFIX, Pool, encode, may_see, named, pack
from vtprune.embedded.train_tower import NAMES, dense_targets, pixels_of, presence
from vtprune.embedded.training_loop import Checkpoint


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_training_sees_what_the_processor_makes(processor):
    """Oracle: the stock processor, on the same scene."""
    scene = make_scene(0)
    for question in scene.questions:
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
        inputs = processor(images=scene.image, text=processor.apply_chat_template([user, said]), return_tensors="pt")
        tokens, labels = encode(question, short=False)
        assert inputs["input_ids"][0].tolist() == [VOCABULARY["<bos>"]] + [VOCABULARY["<image>"]] * GRID**2 + tokens
        assert VOCABULARY["<unk>"] not in tokens
        wanted = [VOCABULARY[word] for word in [*question.answer.split(), "<eos>"]]
        assert [label for label in labels if label >= 0] == wanted == tokens[-len(wanted) :]
    torch.testing.assert_close(inputs["pixel_values"], pixels_of([scene]))


def test_a_packed_question_is_computed_as_if_asked_alone():
    """Oracle: the same decoder on the one question, causal, without a mask of ours."""
    torch.manual_seed(0)
    model = build_model().eval()
    decoder = model.model.language_model
    pool = Pool(torch.empty(1), torch.empty(1), [make_scene(0).questions])
    batch = pack(pool, np.random.default_rng(0), short_share=0.5, chat=False)
    visual = torch.randn(1, PREFIX, decoder.config.hidden_size)
    text = decoder.get_input_embeddings()(batch.tokens[:1])
    mask = may_see(batch.turn[:1]).float()
    place = torch.cat([torch.arange(PREFIX)[None], batch.place[:1]], 1)
    inputs = torch.cat([visual, text], 1)
    with torch.no_grad():
        packed = decoder(inputs_embeds=inputs, attention_mask=mask, position_ids=place).last_hidden_state
        for turn in (0, 5):
            rows = PREFIX + (batch.turn[0] == turn).nonzero()[:, 0]
            alone = decoder(inputs_embeds=torch.cat([visual, inputs[:, rows]], 1)).last_hidden_state
            torch.testing.assert_close(packed[0, rows], alone[0, PREFIX:], atol=1e-5, rtol=1e-5)


def test_in_a_chat_every_earlier_turn_is_seen():
    pool = Pool(torch.empty(1), torch.empty(1), [make_scene(0).questions])
    batch = pack(pool, np.random.default_rng(0), short_share=0.0, chat=True)
    text = batch.tokens.shape[1]
    row = int((batch.turn == 0).sum(1).argmax())  # the longest has no padding
    seen = may_see(batch.turn[row : row + 1])[0, 0].isfinite()
    assert torch.equal(seen, torch.ones(PREFIX + text, PREFIX + text).tril().bool())
    assert batch.place[row].tolist() == list(range(PREFIX, PREFIX + text))


def test_dense_targets_name_the_object_under_the_patch():
    """Oracle: for each patch, pixels of each box counted one by one."""
    for seed in range(5):
        scene = make_scene(seed)
        targets = dense_targets(scene)
        for row in range(GRID):
            for column in range(GRID):
                inside = [
                    sum(
                        thing.box[0] <= x < thing.box[2] and thing.box[1] <= y < thing.box[3]
                        for y in range(row * PATCH, (row + 1) * PATCH)
                        for x in range(column * PATCH, (column + 1) * PATCH)
                    )
                    for thing in scene.objects
                ]
                name, color = targets[:2, row, column]
                if not any(inside):
                    assert name == color == 0
                if name > 0:
                    thing = scene.objects[int(np.argmax(inside))] if sorted(inside)[-1] > 32 else None
                    if thing:
                        assert (NAMES[name - 1], list(COLORS)[color - 1]) == (thing.name, thing.color)
        assert (targets[3] == 1).sum() == len(scene.objects)
        here = {word for word, flag in zip((*NAMES, *COLORS), presence(scene), strict=True) if flag}
        assert here == {o.name for o in scene.objects} | {o.color for o in scene.objects}


def test_a_checkpoint_restores_parameters_moments_and_counters(tmp_path):
    """Oracle: a run that was never interrupted takes the same next step."""

    def step(module, optimizer, seed):
        loss = (module["layer"](torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def fresh():
        torch.manual_seed(1)
        module = nn.ModuleDict({"layer": nn.Linear(3, 2)})
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    module, optimizer = fresh()
    checkpoint = Checkpoint(tmp_path / "run.safetensors", module, optimizer)
    assert checkpoint.load() == (0, 0.0)
    step(module, optimizer, 0)
    step(module, optimizer, 1)
    checkpoint.save(2, 1.5)
    again, its_optimizer = fresh()
    assert Checkpoint(tmp_path / "run.safetensors", again, its_optimizer).load() == (2, 1.5)
    step(module, optimizer, 2)
    step(again, its_optimizer, 2)
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_few_visual_tokens_are_those_on_objects_first():
    targets = torch.zeros(1, 4, 10, dtype=torch.int64)
    targets[0, 0, [2, 7]] = 3
    for n in (2, 5):
        rows = look_closer(targets, n)[0].tolist()
        assert rows == sorted(set(rows)) and len(rows) == n and {2, 7} <= set(rows)


def test_attention_on_the_asked_object_costs_nothing_and_elsewhere_much():
    """Oracle: three visual tokens by hand: a red circle, a blue ring on two."""
    names, colors = [1 + NAMES.index(name) for name in ("circle", "ring", "ring")], [1, 3, 3]
    assert list(COLORS)[0] == "red" and list(COLORS)[2] == "blue"
    targets = torch.tensor([[names, colors, [1, 2, 2], [0, 0, 0]]])
    attention = torch.tensor([[[[0.5, 0.25, 0.25], [0.1, 0.6, 0.3]]]])  # one sample, one head, two text tokens
    ring, red = VOCABULARY["ring"], VOCABULARY["red"]
    for about, share in (([ring, -1], 0.5), ([-1, ring], 0.9), ([-1, red], 0.1)):
        loss = look_there(attention, torch.tensor([about]), targets)
        assert loss.item() == pytest.approx(-np.log(share), abs=2e-3)


def test_questions_name_their_object_where_an_answer_is_due():
    for question in make_scene(0).questions:
        for short in (True, False):
            tokens, labels = encode(question, short=short)
            row = named(question, labels)
            assert len(row) == len(tokens)
            if question.kind in ("count", "exists"):
                assert set(row) == {-1}
            else:
                due = [i for i, word in enumerate(row) if word != -1]
                assert [tokens[i + 1] for i in due] == [VOCABULARY[word] for word in question.answer.split()]
                assert {row[i] for i in due} == {VOCABULARY[question.text[:-1].lower().split()[-1]]}


def test_a_visual_token_that_says_the_right_words_costs_nothing():
    """Oracle: words that are orthogonal, so that a sum of them says its parts; the other token is background."""
    words = 5 * torch.eye(len(VOCABULARY))
    said = words[[VOCABULARY[word] for word in ("ring", "blue", "bottom", "left")]].sum(0)
    targets = torch.tensor([[1 + NAMES.index("ring"), 0], [1 + list(COLORS).index("blue"), 0], [3, 0], [0, 0]])[None]
    background = torch.randn_like(said)
    assert unsaid(torch.stack([said, background])[None], words, targets).item() == pytest.approx(0, abs=1e-3)
    nothing = torch.stack([0 * said, background])[None]
    expected = np.log([len(NAMES), len(COLORS), 2, 2]).sum()
    assert unsaid(nothing, words, targets).item() == pytest.approx(expected, rel=1e-5)
    for wrong in ("circle", "red", "top", "right"):
        spoken = (said + 2 * words[VOCABULARY[wrong]])[None]
        assert unsaid(torch.cat([spoken, background[None]])[None], words, targets).item() > 10


def test_an_aligned_projector_turns_features_into_words():
    """Oracle: features that are one-hot in the name, so that the sum of words can be reached exactly."""
    torch.manual_seed(0)
    words = torch.randn(len(VOCABULARY), 8)
    targets = torch.zeros(6, 4, 5, dtype=torch.int64)
    targets[:, 0] = torch.randint(0, 3, (6, 5))
    targets[:, 1], targets[:, 2] = targets[:, 0], targets[:, 0]
    features = nn.functional.one_hot(targets[:, 0], 3).to(torch.bfloat16)
    projector = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 8))
    align_projector(projector, words, features, targets, steps=600)
    place = {1: ("top", "left"), 2: ("top", "right")}
    for label in (1, 2):
        said = [NAMES[label - 1], list(COLORS)[label - 1], *place[label]]
        wanted = words[[VOCABULARY[word] for word in said]].sum(0)
        made = projector(torch.eye(3)[label])
        assert (made - wanted).norm() < 0.1 * wanted.norm()
