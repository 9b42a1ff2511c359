"""FrameFusion, against the released code's results, a loop that merges row by row, and models run by hand."""

import dataclasses
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.fabricate import Sample, serve
from tests.policies.golden import load, weights
from tests.probe import answer
from vtprune import BEFORE_LLM, inside
from vtprune.apply import merge_rows
from vtprune.blocks.frame_runs import IMAGES_AS_FRAMES
from vtprune.policies.framefusion import FrameFusion
from vtprune.tokens import ModelFacts, Segment, VisualTokens
from vtprune_kernels.attention_columns import Visible
from vtprune_kernels.attention_rows import attention_rows

# ------------------------------------------------------------------------------- one sample, driven by hand


class Prompt:
    """The visual tokens of a prompt, and what a policy did to them so far.

    x:     (N, D). places: clip and (view, frame, row, column) of each.
    alive: rows that are left.
    """

    def __init__(self, x, places, kind="video"):
        self.x, self.places, self.kind, self.memory = x, places, kind, {}
        self.alive = torch.arange(len(x))

    def segments(self):
        segments, at = [], 0
        clips = [clip for clip, _ in self.places]
        for source in sorted(set(clips)):
            n = sum(clips[i] == source for i in self.alive.tolist())
            segments.append(Segment(slice(at, at + n), (), self.kind, source))
            at += n
        return tuple(segments)

    def call(self, policy, signals, x=None):
        """One call; x: (N, D) hidden states of all rows, instead of those that the last call left."""
        x = (self.x if x is None else x)[self.alive]
        tokens = VisualTokens(
            hidden=x,
            text=x[:1],
            segments=self.segments(),
            signals={name: signal[..., self.alive] for name, signal in signals.items()},
            rows=self.alive,
            coords=torch.tensor([self.places[i][1] for i in self.alive.tolist()]),
            memory=self.memory,
        )
        selection = policy.select(tokens)
        self.alive = self.alive[selection.keep]
        self.x = self.x.clone()
        self.x[self.alive] = merge_rows(x, selection)
        return selection

    @property
    def progress(self):
        return list(self.memory["framefusion"]["progress"].values())


def places_of(patch_type):
    """Places by the release's numbering: patch p of frame t at (0, t, 0, p)."""
    seen, places = {}, []
    for p in map(int, patch_type):
        places.append((0, (0, seen.get(p, 0), 0, p)))
        seen[p] = seen.get(p, 0) + 1
    return places


def play(case, policy):
    """The calls of a golden case: the prompt at the end, and the original positions left after each call."""
    visual = (case["patch_type"] >= 0).nonzero().flatten()
    text = (case["patch_type"] < 0).nonzero().flatten()
    prompt = Prompt(case["hidden"][visual], places_of(case["patch_type"][visual]))
    words, kept = case["hidden"][text], []
    for call in range(int(case["n_calls"])):
        signals = {}
        if call:
            delta, attention = case["deltas"][call - 1], case["attns"][call - 1].float().mean(0)
            prompt.x, words = prompt.x + delta[visual], words + delta[text]
            attention = attention[0] if len(attention) == 1 else attention
            signals = {next(iter(policy.needs)): attention[..., visual]}
        prompt.call(policy, signals)
        kept.append(sorted([*text.tolist(), *visual[prompt.alive].tolist()]))
    hidden = case["hidden"].clone()
    hidden[text], hidden[visual] = words, prompt.x
    return prompt, kept, hidden[kept[-1]]


def policy_of(case, queries, **more):
    names = {"keep_ratio": "cost", "similarity": "similarity_lower_bound", "stop_below": "ratio_lower_bound"}
    return FrameFusion(**{ours: float(case[theirs]) for ours, theirs in names.items()}, queries=queries, **more)


@pytest.mark.parametrize("compat", ["", "released-means"])
def test_released_results_are_met(golden, compat):
    """Oracle: the authors' code over seven calls: who is left after each, what was merged, and the hidden states."""
    paths = sorted(golden("framefusion").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        policy = policy_of(case, case["attns"].shape[2], compat=compat)
        prompt, kept, hidden = play(case, policy)
        for call, rows in enumerate(kept):
            assert rows == case[f"kept_after_call{call}"].tolist(), f"{path.name}, call {call}"
        [progress] = prompt.progress
        assert progress.sparsity == pytest.approx(case["sparsity"].tolist(), abs=1e-12), path.name
        # the mean is rounded once where the release rounds every sum: a step of bfloat16 at the size of these values
        atol = 1e-6 if hidden.dtype == torch.float32 else 0 if compat else 4e-2
        torch.testing.assert_close(hidden, case["final_hidden"], rtol=0, atol=atol)


def test_released_attention_rows_are_met(golden):
    """Oracle: the authors' attention of the last one or four queries, causal or not."""
    paths = sorted(golden("framefusion").glob("lastq_attn_n*.npz"))
    assert paths
    for path in paths:
        case, causal = load(path), path.stem.endswith("causal1")
        q, k, n = case["q"], case["k"], case["weights"].shape[2]
        visible = Visible(last=torch.arange(9 - n, 9)[None]) if causal else Visible()
        rows = attention_rows(q[:, :, -n:], k, scale=q.shape[-1] ** -0.5, visible=visible)[0]
        torch.testing.assert_close(rows, case["weights"][0].mean(0), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------- a whole model


def released_model(case):
    """The tiny Qwen2-VL stored in a golden case."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "vocab_size": 200}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    ids = {"image_token_id": 190, "video_token_id": 191, "vision_start_token_id": 192, "vision_end_token_id": 193}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    model = Qwen2VLForConditionalGeneration(config).eval()
    state = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: value
        for name, value in weights(case).items()
    }
    state = {f"model.{name}" if name.startswith("visual.") else name: value for name, value in state.items()}
    model.load_state_dict(state, strict=True)
    return model


def released_inputs(case):
    """Its prompt, with the positions of the published mRoPE: text goes on one after the largest position of the video.

    Newer versions of transformers place it after the larger side of a frame, however many frames there are.
    """
    ids = case["input_ids"]
    t, h, w = case["video_grid_thw"][0].tolist()
    first = int((ids[0] == 191).nonzero()[0])
    video = first + torch.cartesian_prod(torch.arange(t), torch.arange(h // 2), torch.arange(w // 2)).T
    tail = int(video.max()) + 1 + torch.arange(ids.shape[1] - first - video.shape[1])
    position = torch.cat([torch.arange(first).expand(3, -1), video, tail.expand(3, -1)], 1)[:, None]
    names = ("input_ids", "pixel_values_videos", "video_grid_thw")
    return {**{name: case[name] for name in names}, "position_ids": position}


def rotary_of_last_layer(model, inputs):
    """The output of a forward, and the cos rows that its last layer got."""
    cos = []
    attention = model.model.language_model.layers[-1].self_attn
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: cos.append(kwargs["position_embeddings"][0]), with_kwargs=True
    )
    out = model(**inputs)
    hook.remove()
    return out, cos[0]


@torch.no_grad()
def test_a_model_gives_the_released_results(golden):
    """Oracle: the authors' code on a tiny Qwen2-VL: tokens in every layer, rotary rows that survive, logits."""
    paths = sorted(golden("framefusion").glob("qwen2vl_case*.npz"))
    if not paths:
        pytest.skip("no qwen2vl_case*.npz among the golden cases")
    for path in paths:
        case = load(path)
        n_text = int((case["input_ids"] != 191).sum())
        budget = {"keep_ratio": float(case["cost"]), "similarity": float(case["thr"]), "stop_below": float(case["rlb"])}
        model = released_model(case)
        with vtprune.pruned(model, FrameFusion(**budget, compat="28-layers")) as report:
            out, cos = rotary_of_last_layer(model, released_inputs(case))
            seen = [site.after[0] + n_text for site in report.sites]
        # once everything is done, the policy is not asked any more
        seen += seen[-1:] * (len(case["seq_per_call"]) - len(seen))
        assert seen == case["seq_per_call"].tolist(), path.name
        # the share of what a call found that it merged, as far as the calls merged
        visual = [int((case["input_ids"] == 191).sum()), *(length - n_text for length in seen)]
        merged = [1 - after / before for before, after in zip(visual, visual[1:], strict=False)]
        assert merged[: len(case["sparsity"])] == pytest.approx(case["sparsity"].tolist(), abs=1e-12)
        assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == case["seq_per_call"].tolist()[:-1]
        parts = case["cos_last"].split([2, 3, 3] * 2, -1)
        expected = torch.cat([part[i % 3] for i, part in enumerate(parts)], -1)
        torch.testing.assert_close(cos, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(out.logits[:, -1], case["logits_last"], rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------ worked examples


def test_worked_example():
    """Frames (1, 0), (1, 0), (0, 1), (0, 1): two pairs merge, nothing more is alike, then attention decides."""
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    prompt, policy = Prompt(x, places_of(torch.zeros(4))), FrameFusion(0.3)
    assert prompt.call(policy, {}).merge.tolist() == [0, 0, 1, 1]
    assert prompt.alive.tolist() == [0, 2] and prompt.progress[0].sparsity == [0.5]
    assert prompt.call(policy, {}).keep.tolist() == [0, 1]
    assert prompt.progress[0].sparsity == [0.5, 0]
    attention = {"last_query_attention": torch.tensor([0.1, 0.9, 0.3, 0.9])}
    assert prompt.call(policy, attention).keep.tolist() == [1]
    assert prompt.alive.tolist() == [2]
    for _ in range(3):
        assert prompt.call(policy, {}).keep.tolist() == [0]


@pytest.mark.parametrize("compat", ["", "released-means"])
def test_a_run_becomes_its_plain_mean_at_its_first_place(compat):
    prompt = Prompt(torch.tensor([[2.0, 0], [4, 0], [6, 0], [0, 1]]), places_of(torch.zeros(4)))
    prompt.call(FrameFusion(0.3, compat=compat), {})
    assert prompt.alive.tolist() == [0, 3]
    assert prompt.x[0].tolist() == [4, 0]


def test_an_image_is_pruned_by_attention_after_the_first_layer():
    """144 tokens: one layer of 28 has them all, so 27 share 7.4 layers' worth: 144 * 7.4 / 27 = 39.5, 39 tokens."""
    sample = Sample("image")
    served = serve(FrameFusion(0.3), sample)
    assert [len(selection.keep) for _, selection in served] == [144, *[39] * 28]
    best = sample.signal("last_query_attention").argsort(descending=True)[:39]
    assert served[1][1].keep.tolist() == best.sort().values.tolist()


def test_only_the_last_queries_judge():
    """Oracle: the mean of the last four rows, and of all seven where more are asked for than there are."""
    sample = Sample("image")
    rows = sample.signal("text_attention")
    for queries, judging in ((4, rows[3:]), (9, rows)):
        served = serve(FrameFusion(0.3, queries=queries), sample)
        best = judging.mean(0).argsort(descending=True)[:39]
        assert served[1][1].keep.tolist() == best.sort().values.tolist()


# ---------------------------------------------------------------------------------- a loop, written from the rules


class ByHand:
    """The publication's rules for one budget, in lists and floats. clip, place: of each row."""

    def __init__(self, cost, least, stop, layers):
        self.cost, self.least, self.stop, self.layers = cost, least, stop, layers
        self.listed, self.merging, self.pruning = [], True, True

    def budget(self):
        share, used = 1.0, 0.0
        for r in self.listed:
            share *= 1 - r
            used += share
        left, layers = self.layers * self.cost - used, self.layers - len(self.listed)
        if left < 0:
            return None
        if layers <= 0 or left / (layers * share) > 1:
            return 0
        return 1 - left / (layers * share)

    def call(self, alive, x, places, importance):
        """alive: row numbers. x: row -> vector. Returns {row that stays: rows that it is the mean of}."""
        groups = {row: [row] for row in alive}
        most = self.budget()
        if not alive or not (self.merging or self.pruning):
            return groups
        if most is None:
            self.merging = self.pruning = False
            return groups
        if not self.merging:
            self.pruning = False
            k = max(1, round(len(alive) * (1 - most)))
            best = sorted(alive, key=lambda row: (-importance[row], row))[:k]
            return {row: [row] for row in sorted(best)}
        before = {}
        for row in alive:
            clip, (view, _, line, column) = places[row]
            same = [r for r in alive if r < row and places[r][0] == clip and -1 not in places[r][1]]
            same = [r for r in same if (places[r][1][0], *places[r][1][2:]) == (view, line, column)]
            if same and -1 not in places[row][1]:
                before[row] = same[-1]
        alike = {}
        for row, earlier in before.items():
            dot = sum(v * w for v, w in zip(x[row], x[earlier]))
            norms = sum(v * v for v in x[row]) ** 0.5 * sum(v * v for v in x[earlier]) ** 0.5
            if norms and dot / norms >= self.least:
                alike[row] = dot / norms
        share = len(alike) / len(alive)
        joins = sorted(alike)
        if share < most:
            self.listed.append(share)
            self.merging = share >= self.stop
        else:
            self.merging = self.pruning = False
            joins = sorted(joins, key=lambda row: (-alike[row], row))[: int(most * len(alive))]
        for row in sorted(joins):
            anchor = before[row]
            while anchor not in groups:
                anchor = next(kept for kept, members in groups.items() if anchor in members)
            groups[anchor] += groups.pop(row)
        return groups


VECTORS = [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1), (-1, 0), (2, 1)]
EDGES = [-1.0, 0.0, 0.5, 1 / (1 * 2**0.5), 4 / (5**0.5 * 5**0.5), 1.0]


@st.composite
def prompts(draw):
    """Up to three clips, some rows of unknown place; and the hidden states that every call finds, few vectors often."""
    places = []
    for clip in range(draw(st.integers(1, 3))):
        frames, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        unknown = draw(st.integers(0, 5)) == 0
        places += [(clip, (-1,) * 4 if unknown else (0, t, 0, c)) for t in range(frames) for c in range(columns)]
    n, calls = len(places), draw(st.integers(2, 6))
    vectors = st.lists(st.sampled_from(VECTORS), min_size=n, max_size=n)
    return places, [draw(vectors) for _ in range(calls)], draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))


@settings(max_examples=300)
@given(
    prompts(),
    st.sampled_from([0.05, 0.3, 0.5, 0.75, 0.95, 1.0]),
    st.sampled_from(EDGES),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([2, 4, 28]),
    st.sampled_from(["segment", "prompt"]),
    st.sampled_from(["", "released-means"]),
)
def test_every_call_follows_the_rules(prompt, cost, least, stop, layers, budget, compat):
    """Oracle: a loop that looks at each pair and merges row by row; equal rows, zeros and values at the threshold."""
    places, states, importance = prompt
    policy = FrameFusion(cost, least, stop, layers=layers, budget=budget, compat=compat)
    pools = {}
    for row, (clip, _) in enumerate(places):
        pools.setdefault(clip if budget == "segment" else 0, []).append(row)
    by_hand = {pool: ByHand(cost, least, stop, layers) for pool in pools}
    ours = Prompt(torch.zeros(len(places), 2, dtype=torch.float64), places)
    attention = {"last_query_attention": torch.tensor(importance, dtype=torch.float32)}
    for state in states:
        x, alive = torch.tensor(state, dtype=torch.float64), set(ours.alive.tolist())
        ours.call(policy, attention, x)
        groups = {}
        for pool, rows in pools.items():
            groups |= by_hand[pool].call([row for row in rows if row in alive], state, places, importance)
        assert ours.alive.tolist() == sorted(groups)
        for row, members in groups.items():
            torch.testing.assert_close(ours.x[row], x[members].mean(0), rtol=0, atol=1e-12)
    listed = {pool: hand.listed for pool, hand in by_hand.items()}
    assert [progress.sparsity for progress in ours.progress] == list(listed.values())


# -------------------------------------------------------------------------------------------------- the budget


def video_of(frames, columns, drift, width=24):
    """A random walk of every place through time: the larger the drift, the less frames are alike."""
    generator = torch.Generator().manual_seed(int(100 * drift) + frames)
    steps = torch.randn(frames, columns, width, generator=generator) * drift
    steps[0] = torch.randn(columns, width, generator=generator)
    return Prompt(steps.cumsum(0).flatten(0, 1), places_of(torch.arange(columns).repeat(frames)))


@pytest.mark.parametrize("keep_ratio", [0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("drift", [0.1, 0.5, 0.8, 1.5, 4.0])
@pytest.mark.parametrize("layers", [12, 28])
def test_the_mean_over_the_layers_is_what_was_asked_for(keep_ratio, drift, layers):
    """Oracle: tokens in front of every layer, counted, with what layers change made up; half a token of rounding."""
    prompt, policy = video_of(8, 60, drift), FrameFusion(keep_ratio, layers=layers)
    n, seen, generator = len(prompt.x), [], torch.Generator().manual_seed(0)
    for _ in range(layers):
        prompt.call(policy, {"last_query_attention": torch.rand(n, generator=generator)})
        seen.append(len(prompt.alive))
        prompt.x = prompt.x + 0.3 * torch.randn(prompt.x.shape, generator=generator)
    [progress] = prompt.progress
    assert not progress.merging and not progress.pruning
    # where merging alone met the budget the count is rounded towards more tokens, else to the nearest
    off = sum(seen) / layers / n - keep_ratio
    capped = len(progress.sparsity) == 0 or progress.sparsity[-1] >= policy.stop_below
    assert -1e-9 < off < 1 / n if capped else abs(off) <= 0.5 / n


def test_a_budget_that_is_spent_leaves_everything_and_says_so_once():
    """Of 4 layers' 0.8 the first has had 1 already."""
    policy = FrameFusion(0.2, layers=4)
    served = serve(policy, Sample("image"))
    assert all(len(selection.keep) == 144 for _, selection in served)
    notes = [selection.note for _, selection in served]
    assert "keep_ratio=0.2" in notes[1] and notes == ["", notes[1], "", "", ""]


def test_clips_have_budgets_of_their_own_unless_they_are_pooled():
    """A still clip and a wild one: apart, both see the mean asked for; pooled, the still one pays."""
    generator = torch.Generator().manual_seed(3)
    still = torch.randn(1, 30, 16, generator=generator).expand(8, -1, -1) + 0.05 * torch.randn(
        8, 30, 16, generator=generator
    )
    x = torch.cat([still.flatten(0, 1), torch.randn(240, 16, generator=generator)])
    places = [(clip, (0, t, 0, c)) for clip in range(2) for t in range(8) for c in range(30)]
    means = {}
    for budget in ("segment", "prompt"):
        prompt, policy, seen = Prompt(x, places), FrameFusion(0.5, budget=budget), []
        for _ in range(28):
            prompt.call(policy, {"last_query_attention": torch.rand(480, generator=generator)})
            seen.append([int((prompt.alive < 240).sum()), int((prompt.alive >= 240).sum())])
        means[budget] = torch.tensor(seen).double().mean(0) / 240
    assert means["segment"].tolist() == pytest.approx([0.5, 0.5], abs=1 / 240)
    still, wild = means["prompt"].tolist()
    assert (still + wild) / 2 == pytest.approx(0.5, abs=1 / 480) and still < 0.3 < 0.6 < wild


def test_frames_that_are_images_stay_one_clip_when_some_are_used_up():
    """Four images of 10 tokens with text between; the two in the middle repeat the first but for one token.

    Of 20 pairs in those two 19 are alike, r = 19 / 40, and the fourth image is like nothing. Left are 21 tokens: 10, 0,
    1 and 10; nothing more is alike, and of 28 layers 26 share 28 * 0.4 - 2 * 21 / 40 of 40 tokens: 15.6, so 16.
    """
    generator = torch.Generator().manual_seed(7)
    first, last = torch.randn(2, 10, 40, generator=generator)
    middle = first.clone()
    middle[3] = -first[3]
    x = torch.stack([first, first, middle, last]).flatten(0, 1)
    coords = torch.tensor([(0, 0, 0, c) for c in range(10)]).repeat(4, 1)
    position = torch.arange(40) + 3 * torch.arange(4).repeat_interleave(10)
    rows, memory, left = torch.arange(40), {}, []
    score = torch.rand(40, generator=generator)
    for _ in range(4):
        counts = torch.bincount(rows // 10, minlength=4).tolist()
        stops = torch.tensor(counts).cumsum(0).tolist()
        tokens = VisualTokens(
            hidden=x[rows],
            text=x[:1],
            segments=tuple(
                Segment(slice(stop - n, stop), ((1, 1, 10),), "image", i)
                for i, (n, stop) in enumerate(zip(counts, stops, strict=True))
            ),
            signals={"last_query_attention": score[rows]},
            rows=rows,
            coords=coords[rows],
            position=position[rows],
            memory=memory,
        )
        rows = rows[FrameFusion(0.4, images="spaced").select(tokens).keep]
        left.append(torch.bincount(rows // 10, minlength=4).tolist())
    assert left[:2] == [[10, 0, 1, 10]] * 2
    assert sum(left[2]) == 16 and left[3] == left[2]


def test_an_image_without_tokens_is_no_obstacle():
    x = torch.eye(4)
    segments = (Segment(slice(0, 0), (), "image", 0), Segment(slice(0, 4), (), "image", 1))
    for budget in ("segment", "prompt"):
        tokens = VisualTokens(x, x[:1], segments, coords=torch.full((4, 4), -1))
        assert FrameFusion(budget=budget).select(tokens).keep.tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------------- models


@cache
def model_of(family, attn="sdpa"):
    return tiny.build(family, attn)


# frames of noise: with these their tokens merge before the LLM and inside its first layer, then they are pruned
OPTIONS = {
    "qwen2_vl": {"keep_ratio": 0.5, "similarity": 0.3, "stop_below": 0.2},
    "llava_onevision": {"keep_ratio": 0.7, "similarity": 0.8, "stop_below": 0.1},
    "internvl": {"keep_ratio": 0.55, "similarity": 0.4, "stop_below": 0.15},
}


@torch.no_grad()
def by_the_pseudocode(model, inputs, policy, after=()):
    """Last logits of an eager model, layer by layer; ``after``: tokens that follow the prompt and are never judged."""
    x, rotary, _ = oracle._first_layer_inputs(model, oracle._answered(inputs, after))
    ids, n, lengths = inputs["input_ids"][0], inputs["input_ids"].shape[1], []
    visual = tiny.visual(inputs)[0]
    source = model_sources(inputs.family, ids)
    hands = {clip: ByHand(policy.keep_ratio, policy.similarity, policy.stop_below, policy.layers) for clip in source}
    columns = torch.arange(x.shape[1])
    places = {column: (clip, place) for clip, known in source.items() for column, place in known.items()}

    def call(x, importance):
        values = dict(zip(columns.tolist(), x[0].tolist()))
        judged = {} if importance is None else dict(zip(columns.tolist(), importance.tolist()))
        groups = {c: [c] for c in columns.tolist() if c not in places}
        for clip, known in source.items():
            groups |= hands[clip].call([c for c in columns.tolist() if c in known], values, places, judged)
        rows = sorted(groups)
        at = {c: i for i, c in enumerate(columns.tolist())}
        x = torch.stack([x[0, [at[c] for c in groups[row]]].mean(0) for row in rows])[None]
        index = [at[row] for row in rows]
        return x, torch.tensor(rows), tuple(t[:, index] for t in rotary)

    text = tiny.text_model(model)
    x, columns, rotary = call(x, None)
    for layer in text.layers:
        lengths.append(int((columns < n).sum()))
        mask = torch.full((x.shape[1],) * 2, torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
        out, weights = layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)[:2]
        words = [i for i, c in enumerate(columns.tolist()) if c < n and not visual[c]][-policy.queries :]
        x, columns, rotary = call(x + out, weights[0].mean(0)[words].mean(0))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(text.norm(x))[0, -1], lengths


def model_sources(family, ids):
    """clip -> {column: place} of ``tiny.video(family, "one")``."""
    columns = ((ids == tiny.VIDEO) | (ids == tiny.IMAGE)).nonzero().flatten().tolist()
    height, width = {"qwen2_vl": (2, 4), "llava_onevision": (2, 2), "internvl": (4, 4)}[family]
    if family == "llava_onevision":
        columns = columns[:-1]  # a newline ends the video
    size = height * width
    return {0: {c: (0, i // size, i % size // width, i % width) for i, c in enumerate(columns)}}


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "internvl"])
def test_greedy_answers_are_those_of_the_pseudocode(family):
    """Oracle: the publication's loop over the layers of an eager model, anew for every token, without cache."""
    model, eager, inputs = model_of(family), model_of(family, "eager"), tiny.video(family, "one")
    with vtprune.pruned(model, FrameFusion(**OPTIONS[family])) as report:
        policy = report._plan.policy
        out = tiny.greedy(model, inputs, 4)
        stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        kept = [site.after[0] for site in report.sites]
    assert kept[0] < report_total(inputs, family) and kept == sorted(kept, reverse=True) and kept[1] < kept[0]
    after = []
    for step, logits in enumerate(out.logits):
        expected, lengths = by_the_pseudocode(eager, inputs, policy, after)
        torch.testing.assert_close(logits[0], expected.float(), atol=1e-5, rtol=0)
        assert stored == [length + 3 for length in lengths], f"step {step}"
        after.append(int(out.sequences[0, inputs["input_ids"].shape[1] + step]))


def report_total(inputs, family):
    return sum(len(known) for known in model_sources(family, inputs["input_ids"][0]).values())


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen2_vl", "padded"),
        ("qwen2_vl", "ragged"),
        ("qwen2_vl", "with_image"),
        ("llava_onevision", "padded"),
        ("internvl", "padded"),
        ("internvl", "ragged"),
        ("internvl", "with_image"),
    ],
)
def test_a_batch_of_two_is_two_of_one(family, kind):
    """Oracle: each sample alone."""
    model = model_of(family)

    def run(inputs):
        with vtprune.pruned(model, "framefusion", **OPTIONS[family]) as report:
            logits = oracle.text_logits(model, inputs)
            first, second = report.sites[:2]
            if len(first.before) == 2:
                assert first.after != first.before and second.after != first.after
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.video_samples(family, kind))
    inputs = tiny.video(family, kind)
    with vtprune.pruned(model, "framefusion", **OPTIONS[family]):
        tokens, _ = answer(model, inputs)
        static, _ = answer(model, inputs, cache_implementation="static")
    alone = []
    for i in range(2):
        with vtprune.pruned(model, "framefusion", **OPTIONS[family]):
            alone.append(answer(model, tiny.row(inputs, i))[0][0, -5:].tolist())
    assert tokens[:, -5:].tolist() == alone and torch.equal(tokens, static)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "internvl", "gemma3"])
def test_keeping_everything_changes_no_bit(family):
    """Oracle: the unwrapped model."""
    make = tiny.batch if family == "gemma3" else tiny.video
    model, inputs = model_of(family), make(family, "padded")
    tokens, expected = answer(model, inputs)
    with vtprune.pruned(model, "framefusion", keep_ratio=1.0, similarity=-1.0):
        again, logits = answer(model, inputs)
    assert torch.equal(tokens, again)
    assert all(torch.equal(got, want) for got, want in zip(logits, expected, strict=True))


def test_frames_that_come_as_images_are_one_clip_where_the_model_gets_videos_so():
    """Oracle: what merges before the LLM; two images of a question are not frames unless the user says so."""
    model, inputs = model_of("internvl"), tiny.video("internvl", "one")
    for images, merges in ((None, True), ("frames", True), ("spaced", True), ("apart", False)):
        with vtprune.pruned(model, FrameFusion(**OPTIONS["internvl"], images=images)) as report, torch.no_grad():
            model(**inputs)
            assert (report.sites[0].after != report.sites[0].before) == merges
            assert any(IMAGES_AS_FRAMES in note for note in report.notes) == (images in (None, "spaced"))
    model, inputs = model_of("llava"), tiny.batch("llava", "two_images")
    for images, merges in ((None, False), ("frames", True)):
        with vtprune.pruned(model, FrameFusion(similarity=-1.0, images=images)) as report, torch.no_grad():
            model(**inputs)
            assert (report.sites[0].after != report.sites[0].before) == merges


def test_rows_are_computed_in_one_layer_only():
    """The layers that only merge, and those after the pruning, look at no attention."""
    model, inputs = model_of("qwen2_vl"), tiny.video("qwen2_vl", "one")
    with vtprune.pruned(model, FrameFusion(**OPTIONS["qwen2_vl"])) as report, torch.no_grad():
        model(**inputs)
        read = [site.site for site in report.sites if site.reads]
        before = [len(site.kept[0]) for site in report.sites]
    assert len(read) == 1
    at = [site.site for site in report.sites].index(read[0])
    assert before[at] < before[at - 1] and set(before[at:]) == {before[at]}


# ----------------------------------------------------------------------------------------------------- options


def facts(model_type, depth=12):
    return ModelFacts(model_type, depth, 64, False, True)


def test_it_fits_itself_to_the_model():
    assert FrameFusion().sites == (BEFORE_LLM, *(inside(layer) for layer in range(28)))
    fitted = FrameFusion().fitted(facts("llava_onevision"))
    assert fitted.sites == (BEFORE_LLM, *(inside(layer) for layer in range(12)))
    assert fitted.needs == {"last_query_attention"} and fitted.images == "apart"
    for model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        fitted = FrameFusion().fitted(facts(model_type))
        assert fitted.queries == 4 and fitted.needs == {"text_attention"} and fitted.images == "apart"
    fitted = FrameFusion().fitted(facts("internvl"))
    assert fitted.queries == 1 and fitted.images == "spaced"
    fitted = FrameFusion(queries=2, images="apart").fitted(facts("internvl"))
    assert fitted.queries == 2 and fitted.images == "apart"
    assert fitted.fitted(facts("internvl")) == fitted


def test_the_depth_is_the_models():
    with pytest.raises(ValueError, match="12 layers.*layers=28"):
        FrameFusion(layers=28).fitted(facts("llava"))


def test_the_released_budget_is_over_28_layers():
    """144 tokens of an image: of 12 layers the first has all, 11 share 2.6 layers' worth (34); of 28, 7.4 for 27."""
    for compat, left in (("", 34), ("28-layers", 39), ("28-layers, released-means", 39)):
        served = serve(FrameFusion(0.3, layers=12, compat=compat), Sample("image"))
        assert len(served[-1][1].keep) == left


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("similarity", (1.5, -2, True, "0.6", float("nan"), None)),
        ("stop_below", (-0.1, 2, True, "some", float("nan"))),
        ("queries", (0, -1, 1.5, True, "4")),
        ("layers", (0, 2.5, True)),
        ("images", ("clip", 3)),
        ("compat", ("released", "28-layers,", 28, None)),
    ],
)
def test_wrong_options_are_refused_by_value(option, values):
    for value in values:
        with pytest.raises(ValueError, match=option) as error:
            FrameFusion(**{option: value})
        assert repr(value) in str(error.value)


def test_options_can_be_changed_for_a_call():
    """Oracle: a policy made with the option."""
    model, inputs = model_of("qwen2_vl"), tiny.video("qwen2_vl", "one")
    with vtprune.pruned(model, FrameFusion(**{**OPTIONS["qwen2_vl"], "keep_ratio": 0.7})):
        expected, _ = answer(model, inputs)
    with vtprune.pruned(model, FrameFusion(**OPTIONS["qwen2_vl"])), vtprune.options(model, keep_ratio=0.7):
        got, _ = answer(model, inputs)
    assert torch.equal(got, expected)
    assert dataclasses.replace(FrameFusion(), keep_ratio=0.7) == FrameFusion(keep_ratio=0.7)
