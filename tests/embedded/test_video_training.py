"""The training script of the video model: what is supervised, what may see what, where heads are told to look."""

import numpy as np
import pytest
import torch

from vtprune.embedded.clip_batches import ClipPool, encode, make_pool, make_prefix, pack, where_to_look
from vtprune.embedded.clip_questions import KINDS, ClipQuestion
from vtprune.embedded.clips import SIDE, SLICE, STEPS, make_clip
from vtprune.embedded.drawing import COLORS
from vtprune.embedded.slices import patches_of
from vtprune.embedded.stills import make_still
from vtprune.embedded.train_answers import IGNORED
from vtprune.embedded.train_video_answers import Reader, look_there
from vtprune.embedded.train_video_long import stretch
from vtprune.embedded.train_video_tower import (
    DENSE,
    NAMES,
    SHARPNESS,
    SLICES,
    clip_targets,
    dense_loss,
    slice_targets,
    some_slices,
)
from vtprune.embedded.video_architecture import GRID, TOKENS, VOCABULARY, build_video_model
from vtprune.embedded.video_processor import ClipProcessor


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_video_model().eval()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def pool(model):
    return make_pool(model.model.visual, 3, 16, 5)


def test_targets_name_what_covers_a_visual_token():
    """Oracle: for each visual token, pixels of each box in both frames counted one by one."""
    cell, named = SIDE // GRID, 0
    for seed in range(4):
        clip = make_clip(seed)
        for frames in ((0, 1), (6, 7), (8, 12)):
            targets = slice_targets(clip, frames)
            for token in range(TOKENS):
                row, column = divmod(token, GRID)
                shares = []
                for event in clip.events:
                    boxes = [event.box(f) for f in frames if event.first <= f < event.last]
                    inside = sum(
                        box[0] <= x < box[2] and box[1] <= y < box[3]
                        for box in boxes
                        for y in range(row * cell, (row + 1) * cell)
                        for x in range(column * cell, (column + 1) * cell)
                    )
                    shares.append(inside / cell**2 / max(len(boxes), 1))
                name, color, move, owner = targets[:, token]
                if not any(shares):
                    assert name == owner == 0 and color == move == IGNORED
                elif max(shares) < 0.3:
                    assert name == IGNORED and owner == 0
                else:
                    assert shares[owner - 1] >= 0.3
                    event = clip.events[owner - 1]
                    assert (NAMES[name], list(COLORS)[color]) == (event.name, event.color)
                    assert list(STEPS)[move] in ("nowhere", event.direction)
                    named += 1
    assert named > 30


def test_a_moving_shape_is_said_to_move_where_it_does():
    """Oracle: the places of the box in both frames of a slice."""
    moved = set()
    for seed in range(20):
        clip = make_clip(seed)
        targets = clip_targets(clip)
        for row, event in enumerate(clip.events):
            for first in range(event.first, event.last, SLICE):
                (x, y), (u, v) = event.path[first - event.first], event.path[first - event.first + 1]
                here = targets[:, first // SLICE * TOKENS : (first // SLICE + 1) * TOKENS]
                (move,) = set(here[2, here[3] == row + 1].tolist())
                expected = "nowhere" if (x, y) == (u, v) else event.direction
                assert list(STEPS)[move] == expected
                moved.add(expected)
    assert moved == set(STEPS)


def test_some_slices_are_digits_first_and_stay_in_the_clip():
    for seed in range(20):
        clip = make_clip(seed)
        chosen = some_slices(np.random.default_rng(seed), clip)
        assert len(chosen) == SLICES and all(0 <= a < b < len(clip.frames) for a, b in chosen)
        flashes = {f for e in clip.events if e.kind == "digit" for f in range(e.first, e.last)}
        seen = {frame for pair in chosen for frame in pair}
        assert not flashes or flashes & seen


def test_features_that_say_the_right_words_cost_nothing():
    """Oracle: words that are orthogonal, so that a sum of them says its parts; the last token is nothing."""
    words = torch.eye(len(VOCABULARY))
    said = words[VOCABULARY["ring"]] + words[VOCABULARY["blue"]] + words[VOCABULARY["up"]]
    features = torch.stack([said, words[VOCABULARY["7"]] + said, words[VOCABULARY["."]]])
    classes = [NAMES.index("ring"), list(COLORS).index("blue"), list(STEPS).index("up")]
    targets = torch.tensor([[c, c, IGNORED] for c in classes])
    targets[0, 1:] = torch.tensor([NAMES.index("7"), 0])
    features[1] -= words[VOCABULARY["ring"]]
    loss, right = dense_loss(features, words, targets)
    assert loss < 0.01 and set(right.values()) == {1.0}
    for i, choices in enumerate(DENSE.values()):
        wrong = features.clone()
        wrong[0] += 2 * words[VOCABULARY[choices[-1]]]
        more, worse = dense_loss(wrong, words, targets)
        # one of two objects is now said wrong by a margin of one word
        assert more - loss == pytest.approx(SHARPNESS / 2, abs=0.05) and list(worse.values())[i] == 0.5


def test_the_decoder_is_trained_on_what_it_will_be_asked(model, pool):
    """Oracle: the processor, on the same clip and questions."""
    processor, clip = ClipProcessor(), make_clip(5)
    prefix = make_prefix(model, 16)
    for question in clip.questions:
        user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
        inputs = processor(processor.apply_chat_template([user, said]), clip.frames)
        tokens, labels = encode(question, short=False)
        assert inputs["input_ids"][0].tolist() == prefix.ids.tolist() + tokens
        assert VOCABULARY["<unk>"] not in tokens
        assert [x for x in labels if x >= 0] == tokens[-2:] == [VOCABULARY[question.answer], VOCABULARY["<eos>"]]
        position, _ = model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
        )
        text = prefix.after + torch.arange(len(tokens)).expand(3, -1)
        assert torch.equal(position[:, 0], torch.cat([prefix.position, text], 1))
    assert pool.questions[0] == clip.questions


@pytest.mark.parametrize("chat", [False, True])
def test_a_packed_question_is_computed_as_the_stock_model_does(model, pool, chat):
    """Oracle: the stock model, from pixels, without a mask of ours; training runs in bfloat16."""
    batch = pack(pool, np.random.default_rng(0), np.array([1]), most=4, chat=chat)
    with torch.no_grad():
        hidden, _ = Reader(model)(pool, batch)
    patches, grid = patches_of(make_clip(6).frames)
    prefix = make_prefix(model, 16)
    for turn in (0,) if chat else range(4):
        tokens = batch.tokens[0, batch.turn[0] == turn]
        ids = torch.cat([prefix.ids, tokens])[None]
        with torch.no_grad():
            stock = model.model(
                input_ids=ids,
                mm_token_type_ids=2 * (ids == VOCABULARY["<video>"]).int(),
                pixel_values_videos=patches,
                video_grid_thw=torch.tensor([grid]),
            ).last_hidden_state[0, len(prefix.ids) :]
        mine = hidden[0, batch.turn[0] == turn].float()
        assert (mine - stock).norm() < 0.02 * stock.norm()
        assert (mine - stock.roll(1, 0)).norm() > 0.2 * stock.norm()  # and no other token would do


def test_few_visual_tokens_are_those_on_objects_and_keep_their_places(model, pool):
    """Oracle: with as many shown as there are, nothing changes; with fewer, something does."""
    batch = pack(pool, np.random.default_rng(0), np.array([0, 1]), most=4)
    with torch.no_grad():
        everything, few, all_shown = (Reader(model)(pool, batch, shown)[0] for shown in (None, 20, 8 * TOKENS))
    assert torch.equal(everything, all_shown) and not torch.allclose(everything, few, atol=1e-2)


def test_fresh_clips_replace_the_oldest(model):
    pool = make_pool(model.model.visual, 3, 8, 100)
    before = pool.features.clone()
    pool.renew(model.model.visual, 2)
    for row, number in enumerate((103, 104, 102)):
        clip = make_clip(number, frames=8)
        assert pool.questions[row] == clip.questions
        assert pool.owner[row].tolist() == clip_targets(clip)[3].tolist()
        assert torch.equal(before[row], pool.features[row]) == (number == 102)
        for owner, said in zip(pool.owner[row].tolist(), pool.said[row].T.tolist(), strict=True):
            event = clip.events[owner - 1]
            assert said == ([VOCABULARY[event.name], VOCABULARY[event.color]] if owner else [-1, -1])


def test_kinds_with_more_weight_are_asked_first(pool):
    for kind in ("count", "exists"):
        weights = dict.fromkeys(KINDS, 1e-6) | {kind: 1.0}
        for seed in range(10):
            batch = pack(pool, np.random.default_rng(seed), np.arange(3), most=2, weights=weights)
            assert [question.kind for _, _, question in batch.asked] == [kind] * 6


def test_an_answer_is_due_where_the_batch_says(pool):
    batch = pack(pool, np.random.default_rng(0), np.arange(3), most=6, short_share=0.5, chat=True)
    due = {(b, t) for b, t in (batch.labels != IGNORED).nonzero().tolist()}
    assert due == {(b, t + i) for b, t, _ in batch.asked for i in (0, 1)}
    for sample, token, question in batch.asked:
        assert batch.tokens[sample, token] == VOCABULARY["<answer>"]
        assert batch.labels[sample, token] == VOCABULARY[question.answer]


def test_cue_and_evidence_point_at_the_events_tokens_while_they_count():
    """Oracle: six columns by hand: two of event 0, three of event 1, of which one during the question's time."""
    question = ClipQuestion("when", "", "red", cue=(0,), evidence=(1,), during=(4, 6))
    pool = ClipPool(8, 0, *(torch.empty(0),) * 4, [(question,)])
    batch = pack(pool, np.random.default_rng(0), np.array([0]), most=1)
    owner, frame = torch.tensor([[0, 1, 1, 2, 2, 2]]), torch.tensor([[-1, 2, 4, 2, 4, 6]])
    cue, proof = where_to_look(batch, owner, frame)
    assert cue.tolist() == [[False, True, True, False, False, False]]
    assert proof.tolist() == [[False, False, False, False, True, False]]


def test_attention_there_costs_nothing_and_elsewhere_much():
    attention = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.2, 0.3]], [[0.1, 0.1, 0.8]] * 2, [[1.0, 0.0, 0.0]] * 2])
    there = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    assert look_there(attention, there).item() == pytest.approx(-(np.log(0.8) + np.log(0.8)) / 2, abs=1e-3)
    assert look_there(attention, torch.zeros_like(there)) == 0


def test_stretched_slices_stand_where_those_of_a_longer_clip_would(model):
    """Oracle: the longer clip's own positions, slice by slice; the shorter clip's everything else."""
    short, wide = make_prefix(model, 16), make_prefix(model, 64)
    for seed in range(20):
        made = stretch(short, wide, np.random.default_rng(seed))
        assert torch.equal(made.ids, short.ids) and torch.equal(made.frame, short.frame)
        places = made.position[:, 1:].view(3, 8, -1)
        blocks = wide.position[:, 1:].view(3, 32, -1)
        found = [[j for j in range(32) if torch.equal(places[:, i], blocks[:, j])] for i in range(8)]
        assert all(len(one) == 1 for one in found)
        order = [one[0] for one in found]
        assert order == sorted(set(order))
        assert int(made.position.max()) < made.after <= wide.after


def test_stills_fill_a_pool(model):
    """Oracle: the stills themselves, one by one."""
    pool = make_pool(model.model.visual, 4, SLICE, 11, make=make_still)
    assert [list(questions) for questions in pool.questions] == [list(make_still(11 + i).questions) for i in range(4)]
    hidden, _ = Reader(model)(pool, pack(pool, np.random.default_rng(0), np.arange(4), most=6))
    assert hidden.shape[0] == 4 and hidden.isfinite().all()
