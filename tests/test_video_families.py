"""Videos in every family that knows them: mixed with images in any order, merged, in a second turn, place by place."""

import copy
from functools import cache

import pytest
import torch
from transformers import DynamicCache

import vtprune
from tests import oracle, tiny
from tests.probe import ByNorm, visible
from tests.release import as_named
from vtprune import BEFORE_LLM, Selection

every_family = pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)


@cache
def model_of(family: str):
    return tiny.build(family)


class ByKind(ByNorm):
    """Keeps a quarter of every video and three quarters of every image, those of largest norm."""

    def select(self, tokens):
        norm, keep = tokens.hidden.norm(dim=-1), []
        for segment in tokens.segments:
            k = max(1, len(segment) // 4 if segment.kind == "video" else 3 * len(segment) // 4)
            keep.append(norm[segment.span].topk(k).indices.sort().values + segment.span.start)
        return Selection(torch.cat(keep))


def sources_of(family: str, order: str) -> list[tuple[str, int]]:
    """Kind and frames of what an order of ``tiny.mixed_samples`` should be seen as."""
    found = []
    for one in order:
        frames = {"i": 1, "v": 4, "w": 2}[one]
        if one == "i" or family == "internvl":  # the frames of InternVL's videos come as images
            found += [("image", 1)] * frames
        else:
            found.append(("video", frames // 2 if family in tiny.MROPE_FAMILIES else frames))
    return found


@pytest.mark.parametrize("policy", ["kinds", "random"])
@every_family
def test_videos_and_images_in_any_order(family, policy):
    """Oracle: masked columns at full length. A batch of every order of two videos and an image, or of unequal ones."""
    free = family in (*tiny.MROPE_FAMILIES, "internvl")  # the other models stack the frames of a batch
    orders = ("wvi", "iw", "vwv") if free and policy == "random" else tiny.ORDERS
    model, inputs = model_of(family), tiny.collate(family, tiny.mixed_samples(family, orders))
    wanted = ByKind((BEFORE_LLM, 2)) if policy == "kinds" else vtprune.POLICIES["random"](keep_ratio=0.4)
    with vtprune.pruned(model, wanted) as report:
        got = tiny.greedy(model, inputs, 2)
        kept = visible(model)
        for b, order in enumerate(orders):
            seen = report.kept(b)
            assert [(one.kind, one.grids[0][0]) for one in seen] == sources_of(family, order)
            assert all(0 < len(one.rows) < one.of for one in seen)
    with oracle.MaskedColumns(model, kept):
        expected = tiny.greedy(model, inputs, 2)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-9, rtol=0)


@pytest.mark.parametrize("new", ["", "video and image"])
@every_family
def test_a_second_turn_after_a_video(family, new):
    """Oracle: masked columns at full length through both turns; a batch of two orders."""
    model, inputs = model_of(family), tiny.collate(family, tiny.mixed_samples(family, ("iv", "v")))

    def talk(between=lambda cache, length: None):
        turns = DynamicCache(config=model.config.get_text_config())
        first = tiny.greedy(model, inputs, 2, past_key_values=turns)
        masks = visible(model) if vtprune.is_wrapped(model) else None
        turn = tiny.new_turn(family, model, inputs, first.sequences, image=bool(new), clip=bool(new))
        between(turns, turn)
        return masks, turns, tiny.greedy(model, turn, 2, past_key_values=turns)

    with vtprune.pruned(model, ByKind((BEFORE_LLM, 2))) as report:
        masks, pruned, second = talk()
        assert report.prefills == 1 + bool(new)
        later = visible(model) if new else {}
    with oracle.MaskedColumns(model, masks) as masking:

        def extend(turns, turn):
            gap = turns.get_seq_length() - inputs["input_ids"].shape[1]
            for site, mask in masks.items():
                parts = [mask, mask.new_ones(len(mask), gap), *([later[site]] if new else [])]
                masking.kept[site] = torch.cat(parts, 1)

        _, plain, expected = talk(extend)
    assert torch.equal(second.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(second.logits), torch.stack(expected.logits), atol=1e-5, rtol=0)
    assert pruned.get_seq_length() == plain.get_seq_length()
    assert pruned.layers[-1].keys.shape[2] < plain.layers[-1].keys.shape[2]


# ------------------------------------------------------------------------------------------------- merging


class Logged:
    """FrameFusion, with its calls by prompt: (site, positions of the offered tokens, answer)."""

    def __init__(self, policy, log=None):
        self.policy, self.log = policy, {} if log is None else log
        self.needs, self.sites = policy.needs, policy.sites

    def fitted(self, facts):
        return Logged(self.policy.fitted(facts), self.log)

    def select(self, tokens):
        answer = self.policy.select(tokens)
        self.log.setdefault(tokens.seed, []).append((tokens.site, tokens.position, answer))
        return answer


def cuts_of(calls, length: int) -> dict[int, list[oracle.Cut]]:
    """The calls of one prompt as cuts of a sequence of ``length``: dense averages, row by row."""
    alive, cuts = list(range(length)), {}
    for site, position, answer in calls:
        offered, keep = position.tolist(), answer.keep.tolist()
        kept = [offered[i] for i in keep]
        new = sorted(set(alive) - set(offered) | set(kept))
        weights = torch.zeros(len(new), len(alive), dtype=torch.float64)
        for row, place in enumerate(new):
            members = [place]
            if answer.merge is not None and place in kept:
                members = [offered[i] for i, into in enumerate(answer.merge.tolist()) if into == kept.index(place)]
            weights[row, [alive.index(member) for member in members]] = 1 / len(members)
        rows = torch.tensor([alive.index(place) for place in new])
        inside = site >= 0 and site != int(site)
        cuts.setdefault(max(0, int(site)), []).append(oracle.Cut(rows, weights, inside))
        alive = new
    return cuts


@every_family
def test_frames_merge_in_any_order_of_videos_and_images(family):
    """Oracle: every sample alone through a loop over the layers that averages hidden states as the answers say."""
    model, inputs = model_of(family), tiny.collate(family, tiny.mixed_samples(family))
    policy = Logged(vtprune.POLICIES["framefusion"](keep_ratio=0.5, similarity=0.05, stop_below=0.4))
    with vtprune.pruned(model, policy) as report:
        logits = oracle.text_logits(model, inputs)
        total = [after for _, after in report.tokens]
        stands_for = torch.cat([one.target for one in report.kept(0, 0)]).clamp(min=0).bincount()
    calls = list(policy.log.values())
    answers = [answer for some in calls for _, _, answer in some]
    assert any(a.merge is not None for a in answers) and any(a.merge is None and a.last for a in answers)
    assert int(stands_for.max()) > 1, "no token stands for another"
    for b, some in enumerate(calls):
        alone = tiny.row(inputs, b)
        loop = oracle.layer_loop(model, alone, cuts_of(some, alone["input_ids"].shape[1]))
        text = ~tiny.visual(alone)[0]
        torch.testing.assert_close(loop.logits[text[loop.rows]], logits[b], atol=1e-9, rtol=0)
        specials = len(loop.rows) - int(text.sum()) - total[b]
        assert specials == len(order_specials(family, tiny.ORDERS[b]))


def order_specials(family: str, order: str) -> list[str]:
    """What of the placeholders is no place in a grid, by hand: newlines and class tokens."""
    image = {"llava_next_video": 4, "llava_onevision": 4}.get(family, 0)  # a newline ends each row of the larger view
    video = {"llava_onevision": 1, "video_llava": 4}.get(family, 0)  # one newline; a class token for each frame
    return ["special"] * sum(image if kind == "i" else video for kind in order)


# -------------------------------------------------------------------------------------------------- places


def without_tower_attention(family: str):
    """A model in whose vision tower no patch hears of another, so that a token is what its own pixels are."""
    model = copy.deepcopy(model_of(family))
    for module in model.modules():
        for name in ("out_proj", "projection_layer"):
            if hasattr(module, name):
                for parameter in getattr(module, name).parameters():
                    parameter.data.zero_()
    return model


def features_of(model, inputs):
    kind = "video" if "pixel_values_videos" in inputs else "image"
    arguments = {name: value for name, value in inputs.items() if name.startswith("pixel_values")}
    with torch.no_grad():
        encode = getattr(model.model, f"get_{kind}_features")
        found = encode(**as_named(encode, arguments), return_dict=True).pooler_output
    return torch.cat([one.flatten(0, -2) for one in found])


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision", "video_llava", "internvl"])
def test_a_token_s_place_is_where_its_pixels_are(family):
    """Oracle: one cell of one frame made bright; one token changes at the encoder's output, and it has that place."""
    model, inputs = without_tower_attention(family), tiny.video(family, "one")
    with vtprune.pruned(model, "none") as report:
        oracle.text_logits(model, inputs)
        row = report.last.layout.rows[0]
        grids = [source.grids[0] for source in row.sources]
        where = [(s, *place) for s, place in zip(row.source.tolist(), row.coords.tolist())]
    assert row.patch.tolist() == [place[1] >= 0 for place in where]
    pixels = "pixel_values_videos" if family != "internvl" else "pixel_values"
    plain = features_of(model, inputs)
    frames = inputs[pixels][0] if family != "internvl" else inputs[pixels]
    for frame in range(len(frames)):
        source, step = (frame, 0) if family == "internvl" else (0, frame)
        _, height, width = grids[source]
        side = frames.shape[-1] // height
        for y in range(height):
            for x in range(width):
                bright = copy.deepcopy(inputs)
                target = bright[pixels][0, frame] if family != "internvl" else bright[pixels][frame]
                target[:, y * side : (y + 1) * side, x * side : (x + 1) * side] += 3
                changed = (features_of(model, bright) != plain).any(-1).nonzero().flatten().tolist()
                assert [where[token] for token in changed] == [(source, 0, step, y, x)]


@pytest.mark.parametrize("family", tiny.MROPE_FAMILIES)
def test_places_are_those_of_the_positions_in_time_height_and_width(family):
    """Oracle: the position ids that the model itself gives its decoder; two videos of unequal length and an image."""
    model, inputs = model_of(family), tiny.collate(family, tiny.mixed_samples(family, ("wvi",)))
    seen = []
    hook = tiny.text_model(model).register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["position_ids"][-3:, 0]), with_kwargs=True
    )
    with vtprune.pruned(model, "none") as report:
        tiny.greedy(model, inputs, 1)
        kept, row = report.kept(0), report.last.layout.rows[0]
    hook.remove()
    at = 0
    for one in kept:
        time, height, width = seen[0][:, row.columns[at : at + one.of]]
        expected = []
        for step, t in enumerate(sorted(set(time.tolist()))):
            rows, columns = height[time == t], width[time == t]
            cells = torch.stack([rows - rows.min(), columns - columns.min()], 1).tolist()
            expected += [[0, step, *cell] for cell in cells]
        assert one.places.tolist() == expected
        at += one.of
    assert [one.grids for one in kept] == [((1, 2, 4),), ((2, 2, 4),), ((1, 4, 4),)]


class Corner(ByNorm):
    """Keeps the first token of every source."""

    def select(self, tokens):
        return Selection(torch.tensor([segment.span.start for segment in tokens.segments]))


@every_family
def test_time_stamps_newlines_and_class_tokens_stay(family):
    """Oracle: counted by hand; in the cache are the text, what is no place in a grid, and one token of each source."""
    for order in ("v", "iv"):
        model, inputs = model_of(family), tiny.collate(family, tiny.mixed_samples(family, (order,)))
        with vtprune.pruned(model, Corner((BEFORE_LLM,))):
            turns = tiny.greedy(model, inputs, 1).past_key_values
        text = int((~tiny.visual(inputs)).sum())
        held = text + len(order_specials(family, order)) + len(sources_of(family, order))
        assert turns.layers[-1].keys.shape[2] == held
