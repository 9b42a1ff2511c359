"""The video benchmark: paired differences by clip, short prompts, clips in files, runs that go on."""

import json
import math

import pytest
import torch

import vtprune
from benchmarks import video, video_model
from benchmarks.engine_model import cache_bytes
from benchmarks.video_answers import Asker, Condition, SeenOnce, at_one_budget, grid, once, prompts
from benchmarks.video_clips import CODECS, LENGTH, file_clip
from benchmarks.video_ledger import Ledger
from benchmarks.video_table import accuracy, answers_table, budget_table, gathered, judged, mean_interval, times_table
from benchmarks.video_time import forward, prefill, short_inputs, timed_models, without_pixels
from vtprune.embedded import load_video
from vtprune.embedded.clips import make_clip

SEED = 3000


@pytest.fixture(scope="module")
def embedded():
    return load_video()


@pytest.fixture(scope="module")
def filed(tmp_path_factory):
    return file_clip(tmp_path_factory.mktemp("clips"), SEED, scale=2)


# --------------------------------------------------------------------------------------------------- the table


def clip(seed, **right):
    """A clip with two questions; right: policy at 64 frames and 25 % ("none" and "few": unpruned) -> its two digits."""
    rows = []
    for policy, digits in right.items():
        plain = {"frames": 16 if policy == "few" else 64, "keep_ratio": 1.0, "policy": "none"}
        pruned = {"frames": 64, "keep_ratio": 0.25, "policy": policy, "of": 512.0, "kept": 128.0}
        pruned |= {"layer_share": 0.25, "flops_share": 0.3, "idle": 0.0, "notes": [f"note {seed}"]}
        rows.append({**(plain if policy in ("none", "few") else pruned), "right": digits})
    return {"seed": seed, "kinds": ["color", "count"], "rows": rows}


def test_differences_are_paired_by_question_and_clustered_by_clip():
    """Oracle: by hand. evs minus few is +1, 0 | 0, -1: clips add 1 and -1, so the variance is (1 + 1) / 16 * 2."""
    clips = [
        clip(7, few="01", none="11", random="10", evs="11"),
        clip(9, few="11", none="11", random="10", evs="10"),
    ]
    rows, owners, kinds = gathered(clips)
    found = {(row["frames"], row["policy"]): row for row in judged(rows, owners, kinds)}
    assert owners == [7, 7, 9, 9]
    evs = found[64, "evs"]
    assert evs["right"] == "1110" and evs["accuracy"] == 0.75 and evs["kinds"] == {"color": 1.0, "count": 0.5}
    assert evs["over_few"] == 0 and evs["over_few_interval"] == pytest.approx(1.96 * 0.25**0.5)
    # minus random: 0, 1 | 0, 0, mean 1/4; clips are 1/2 above and below it: variance (1/4 + 1/4) / 16 * 2
    assert evs["over_random"] == 0.25 and evs["over_random_interval"] == pytest.approx(1.96 * 0.25)
    assert evs["over_whole"] == -0.25
    assert found[64, "none"]["over_few"] == 0.25 and "over_whole" not in found[64, "none"]
    assert "over_few" not in found[16, "none"] and "over_random" not in found[64, "random"]
    assert evs["notes"] == ["note 7", "note 9"]


def test_conditions_that_fail_or_idle_say_so():
    """Oracle: by hand; a mean over clips of what was kept, and a failure that hides no clip."""
    clips = [clip(7, few="01", evs="11"), clip(9, few="01", evs="11")]
    clips[1]["rows"][1] |= {"kept": 512.0, "layer_share": 1.0, "idle": 1.0}
    broken = {"frames": 64, "keep_ratio": 0.25, "policy": "fastv:layer=9", "error": "no layer 9"}
    for one in clips:
        one["rows"].append(dict(broken))
    rows, owners, kinds = gathered(clips)
    found = {row["policy"]: row for row in judged(rows, owners, kinds)}
    assert (found["evs"]["kept"], found["evs"]["layer_share"], found["evs"]["idle"]) == (320, 0.625, 0.5)
    assert "nothing was pruned for 50 %" in accuracy(found["evs"]) and "±" in accuracy(found["none"])
    assert accuracy(found["fastv:layer=9"]) == "failed for 2 clips: no layer 9"
    text = answers_table(list(found.values()), [16, 64], [0.25])
    # 320 of 512 tokens, by layers; unpruned rows first
    assert "| 64 | 25 % | `evs` | 320 |" in text and text.index("`none`") < text.index("`evs`")


def test_a_budget_s_table_has_its_rows_and_what_every_token_costs():
    """Oracle: by hand; 128 tokens are a quarter of 64 frames' and all of 16 frames'."""
    rows, owners, kinds = gathered([clip(s, few="01", none="11", evs="11") for s in (1, 2)])
    other = {"frames": 64, "keep_ratio": 0.1, "policy": "evs", "right": "1111"}
    times = [{"frames": 64, "keep_ratio": 0.25, "policy": "evs", "prefill_seconds": 0.125, "kv_bytes": 4096}]
    lines = budget_table(judged([*rows, other], owners, kinds), times, 128).splitlines()[2:]
    starts = ["| 16 | 1 |  | `none` | 128", "| 64 | 4 |  | `none` | 512", "| 64 | 4 | 25 % | `evs` | 128"]
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 3
    assert lines[2].endswith("| 0.125 | 4,096 |") and "+50.0" in lines[2]


def test_conditions_by_hand():
    assert grid([16, 64], [1.0, 0.25], ["evs"]) == [
        *(Condition(16), Condition(64), Condition(16, 0.25, "evs"), Condition(64, 0.25, "evs"))
    ]
    assert at_one_budget(128, [1, 4, 10], ["evs"]) == [
        *(Condition(16), Condition(64), Condition(64, 0.25, "evs"), Condition(160), Condition(160, 0.1, "evs"))
    ]
    assert len(once([*grid([64], [0.25], ["evs"]), *at_one_budget(128, [4], ["evs"])])) == 2
    assert Condition(256).tokens == 2048


# ------------------------------------------------------------------------------------------ clips, files, models


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_is_read_back_from_its_file(codec, filed, tmp_path):
    """Oracle: the generated frames, which encoding and resizing change a little; numpy's linspace, cut off."""
    one = filed if codec == CODECS[0] else file_clip(tmp_path, SEED, scale=2, codec=codec)
    found = one.read(16)
    assert found.count == LENGTH and found.pixels.shape == (16, 64, 64, 3)
    assert found.rows.tolist() == [i * 255 // 15 for i in range(16)]
    frames = make_clip(SEED, "test", LENGTH).frames[found.rows].astype(int)
    assert abs(found.pixels - frames).mean((1, 2, 3)).max() < 7
    # half of the frames before them, with other shapes in them, are far from that
    assert sorted(abs(found.pixels[1:] - frames[:-1]).mean((1, 2, 3)))[8] > 10
    assert 1 <= len(one.questions) <= 8


def test_a_tower_that_looks_once_says_what_the_tower_says(embedded, filed):
    """Oracle: the tower itself, given the clip twice."""
    model, processor = embedded
    tower, inputs = model.model.visual, prompts(processor, filed.questions, filed.read(16).pixels, "cpu")
    two = {"hidden": inputs["pixel_values_videos"][:1024], "grid_thw": inputs["video_grid_thw"][:2]}
    stands_in = SeenOnce(tower)
    with torch.no_grad():
        expected = tower(two["hidden"], grid_thw=two["grid_thw"], return_dict=True)
        found = stands_in(two["hidden"], grid_thw=two["grid_thw"], return_dict=True)
        again = stands_in(torch.zeros_like(two["hidden"]), grid_thw=two["grid_thw"], return_dict=True)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    torch.testing.assert_close(found.deepstack_features, expected.deepstack_features)
    assert torch.equal(again.pooler_output, found.pooler_output)
    assert stands_in.spatial_merge_size == tower.spatial_merge_size and stands_in.dtype == tower.dtype


def test_asking_many_at_once_changes_no_answer_and_leaves_the_model_alone(embedded, filed):
    """Oracle: the stock path, question by question, pruned by hand."""
    model, processor = embedded
    tower, asker = model.model.visual, Asker(model, processor)
    rows = list(asker.ask(filed, [Condition(16), Condition(16, 0.25, "evs"), Condition(16, 0.25, "fastv:layer=9")]))
    asker.close()
    assert model.model.visual is tower and not vtprune.is_wrapped(model)
    assert "layer" in rows[2]["error"]
    inputs = prompts(processor, filed.questions, filed.read(16).pixels, "cpu")
    for row, policy in zip(rows, ("none", "evs")):
        with vtprune.pruned(model, policy, **({"keep_ratio": 0.25} if policy == "evs" else {})):
            with torch.no_grad():
                output = model.generate(**inputs)
        said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [text.strip() == question.answer for text, question in zip(said, filed.questions)]
        assert row["right"] == "".join(str(int(hit)) for hit in right)
    assert (rows[1]["of"], rows[1]["kept"], rows[1]["layer_share"], rows[1]["idle"]) == (128, 32, 0.25, 0)


def test_each_question_is_scored_apart(embedded, filed):
    """Oracle: quota by hand, with scores that single out a frame by the question; without a scorer there are none."""
    model, processor = embedded

    def scorer(frames, question, objects=()):
        return torch.arange(len(frames)) == len(question) % len(frames)

    asker = Asker(model, processor, scorer)
    (row,) = asker.ask(filed, [Condition(16, 0.25, "quota")])
    asker.close()
    pixels, right, kept = filed.read(16).pixels, [], []
    for question in filed.questions:
        inputs = prompts(processor, [question], pixels, "cpu")
        scores = torch.zeros(16)
        scores[len(question.text) % 16] = 1
        with vtprune.pruned(model, "quota", keep_ratio=0.25, frame_scores=scores) as report, torch.no_grad():
            output = model.generate(**inputs)
        right.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        kept.append(report.tokens[0][1])
    assert row["right"] == "".join(str(int(a == q.answer)) for a, q in zip(right, filed.questions, strict=True))
    # one slice of 16 tokens takes all
    assert row["kept"] == sum(kept) / len(kept) == 16
    asker = Asker(model, processor)
    (row,) = asker.ask(filed, [Condition(16, 0.25, "quota")])
    asker.close()
    assert row["kept"] > 16 and any("no frame_scores" in note for note in row["notes"])


@pytest.mark.parametrize("shape", ["embedded", "tiny"])
def test_a_short_prompt_is_the_pruned_one(shape, embedded, filed):
    """Oracle: pruning before the LLM and a prompt without those tokens give the same logits, and as large a cache."""
    if shape == "embedded":
        model, processor = embedded
        inputs = prompts(processor, filed.questions, filed.read(16).pixels, "cpu")
        inputs = {
            name: value[: len(value) // len(filed.questions)] if "pixel" in name else value[:1]
            for name, value in inputs.items()
        }
        # the first question may be shorter than the longest one
        start = int(inputs["attention_mask"].argmax())
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            inputs[name] = inputs[name][:, start:]
    else:
        model = video_model.build(video_model.SHAPES["tiny"], torch.float32, "cpu")
        inputs = video_model.prompt(model, 16, 2)
    plain, pruned = timed_models(model, inputs, [Condition(16, 0.25, "evs")])
    pruned.prefill()
    assert pruned.report.tokens[0][1] == pruned.report.tokens[0][0] // 4
    whole = {**without_pixels(inputs), "mm_encoder_outputs": {"video": pruned.encoded}}
    expected, found = forward(pruned.model, whole), forward(model, short_inputs(pruned))
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-5, rtol=1e-4)
    assert cache_bytes(prefill(model, short_inputs(pruned))) == cache_bytes(pruned.cache)
    plain.prefill()
    length, (before, after) = inputs["input_ids"].shape[1], pruned.report.tokens[0]
    assert cache_bytes(plain.cache) * (length - before + after) == cache_bytes(pruned.cache) * length


def test_a_made_up_clip_changes_in_some_places(embedded):
    """Oracle: the share of patches that differ from the slice before."""
    model = video_model.build(video_model.SHAPES["tiny"], torch.float32, "cpu")
    pixels = video_model.prompt(model, 200, 2)["pixel_values_videos"].view(100, 16, -1)
    changed = (pixels[1:] != pixels[:-1]).any(-1).float().mean()
    assert float(changed) == pytest.approx(video_model.CHANGING, abs=0.03)


# -------------------------------------------------------------------------------------------------------- runs


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    """Oracle: what was written; half a line is no line, and another run begins anew."""
    path = tmp_path / "some.jsonl"
    ledger = Ledger(path, {"seed": 1, "pair": (1, 2)})
    ledger.add("clip 1", {"right": "01"})
    path.write_text(path.read_text() + '["clip 2", {"rig')
    again = Ledger(path, {"seed": 1, "pair": (1, 2)})
    assert again.found == {"clip 1": {"right": "01"}}
    again.add("clip 2", 5)
    assert Ledger(path, {"seed": 1, "pair": (1, 2)}).found == {"clip 1": {"right": "01"}, "clip 2": 5}
    assert Ledger(path, {"seed": 2, "pair": (1, 2)}).found == {}
    again.close()
    assert not path.exists()


def test_a_run_writes_rows_tables_and_plot(tmp_path, capsys):
    """Oracle: every condition that was asked for has a row of each part; a quarter kept is a quarter paid."""
    arguments = ["--clips", "2", "--frames", "16", "--keep", "0.25", "--policies", "random", "evs", "--times", "1"]
    video.main([*arguments, "--budgets", "32", "--rounds", "1", "--scale", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "video-embedded-cpu.json").read_text())
    names = [row["policy"] for row in found["rows"]]
    assert names == ["none", "random", "evs"] == [row["policy"] for row in found["times"]]
    assert found["clips"] == 2 and len(found["owners"]) == found["questions"] == len(found["rows"][0]["right"])
    none, random, evs = found["times"]
    assert (evs["of"], evs["kept"]) == (128, 32) and evs["kv_share"] < 0.5 < none["kv_share"] == 1
    assert none["prefill_speedup"] == 1 and none["first_token_seconds"] > none["vision_seconds"] > 0
    assert {"read_seconds", "prepare_seconds", "select_seconds", "speed_over_flops", "speed_over_short"} <= set(evs)
    assert capsys.readouterr().out == (tmp_path / "video-embedded-cpu.txt").read_text()
    assert not (tmp_path / "video-embedded-cpu.part.jsonl").exists()
    assert "| 16 | 25 % | `evs` |" in times_table(found["times"])
    pytest.importorskip("matplotlib")
    assert (tmp_path / "video-embedded-cpu.png").stat().st_size > 5000


def test_another_shape_is_timed_alone(tmp_path):
    """Oracle: the counts that a tenth of 32 tokens allows: 3, and for EVS the first slice of 4."""
    arguments = ["--shape", "tiny", "--frames", "16", "--keep", "0.1", "--policies", "uniform", "evs", "framefusion"]
    video.main([*arguments, "--times", "1", "--budgets", "--rounds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "video-tiny-cpu.json").read_text())
    assert found["rows"] == [] and [row.get("kept") for row in found["times"][:3]] == [None, 3, 4]
    assert "read_seconds" not in found["times"][1] and "speed_over_short" not in found["times"][3]


@pytest.mark.parametrize("arguments", [["--frames", "17"], ["--frames", "512"], ["--keep", "25"], ["--times", "20"]])
def test_a_wrong_number_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        video.parse(arguments)
    assert "frames are even numbers up to 256, keep ratios lie in (0, 1]" in capsys.readouterr().err


def test_independent_values_have_the_textbook_interval():
    """Oracle: the standard error of a mean."""
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    mean, half = mean_interval(values, range(6))
    assert mean == pytest.approx(4 / 6)
    assert half == pytest.approx(1.96 * torch.tensor(values).std().item() / math.sqrt(6))


def test_repeating_a_scene_s_questions_does_not_narrow_the_interval():
    """Oracle: the same scenes with one question each; copies add no knowledge."""
    values = [0.2, 1.0, 0.6, 0.0]
    once = mean_interval(values, range(4))
    copied = mean_interval([v for v in values for _ in range(5)], [s for s in range(4) for _ in range(5)])
    assert copied == pytest.approx(once)
    assert math.isnan(mean_interval([1.0, 0.0], [3, 3])[1])
