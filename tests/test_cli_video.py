"""``vtprune run --video``: its numbers are those of the model, its frames those of the file, its errors one line."""

import json
import re
from importlib.util import find_spec
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
from tests import model_folder, tiny
from tests.video import processors
from tests.video.clips import write
from vtprune.cli import clips, main
from vtprune.cli.answer import placed
from vtprune.cli.prompt import make_inputs, split_prompt
from vtprune.draw import contact_sheet
from vtprune.embedded import load_video
from vtprune.embedded.clips import make_clip
from vtprune.models import Loaded, load
from vtprune.policies.base import POLICIES, ScorePolicy
from vtprune.video import read_frames

QUICK = ("--runs", "0", "--max-new-tokens", "3")
QUESTION, WORDS = "What color is the circle?", 6
SEED, COUNT = 1001, 64  # of the clip in the folder

# of the embedded video model: layers; bytes of keys and values of a token in a layer; tokens of two frames
LAYERS, EACH, SLICE = 6, 2 * 2 * 32 * 4, 16
MARKS = 2  # of each slice: where it begins, where it ends
TEXT = 2 + WORDS  # <bos> ... <answer>


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A clip as a folder of pictures, so that the pixels are exactly known."""
    folder = tmp_path_factory.mktemp("clips") / "film"
    folder.mkdir()
    for i, frame in enumerate(make_clip(SEED, "test", COUNT).frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def animation(tmp_path_factory):
    """Six frames of 0.5 s, 40 x 20."""
    frames = [Image.fromarray(np.full((20, 40, 3), 40 * i, np.uint8)) for i in range(6)]
    path = tmp_path_factory.mktemp("clips") / "six.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    return path


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return model_folder.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(capsys):
    """``vtprune run --json`` in this process: the JSON, and what came out on the error stream."""

    def call(*argv, quick=True) -> tuple[dict, str]:
        capsys.readouterr()
        assert main(["run", "--json", *map(str, argv), *(QUICK if quick else ())]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return call


def prefill_bytes(*tokens: int) -> int:
    """Keys and values of a prefill whose layers hold so many tokens, visual or not."""
    return EACH * sum(tokens)


# -------------------------------------------------------------------------------------------- the clip that ships


def test_without_a_file_there_is_an_example(capsys):
    """Oracle: the event that the question is about; the fixed seed and question are those that the model gets right."""
    name = re.fullmatch(r"What color is the (\w+)\?", clips.EXAMPLE_QUESTION)[1]
    [event] = [e for e in make_clip(clips.EXAMPLE_SEED, "test", clips.EXAMPLE_FRAMES).events if e.name == name]
    assert main(["run", "--video", *QUICK]) == 0
    out, err = capsys.readouterr()
    said = dict(re.findall(r"^(question|unpruned|pruned|right) +(.+)$", out, re.M)[:4])
    assert said["right"] == said["unpruned"] == said["pruned"] == event.color and err == ""
    assert "a bundled clip" in out and "64 of 64 frames, 8.0 s, 64 x 64" in out and "--video clip.mp4" in out


def test_the_example_keeps_what_it_is_told(run):
    """Oracle: by hand. 64 frames are 32 slices of 16 tokens; the last three layers see a quarter of them."""
    result, _ = run("--video", "--policy", "fastv", "--keep-ratio", 0.25, "--option", "layer=3")
    pruned, text = result["pruned"], 32 * MARKS + TEXT
    assert (pruned["visual_tokens_before"], pruned["visual_tokens"]) == (512, 128)
    assert pruned["sites"] == [{"site": "layer 3", "before": 512, "after": 128}]
    assert pruned["kv_bytes"] == prefill_bytes(*[512 + text] * 3, *[128 + text] * 3)
    assert result["unpruned"]["kv_bytes"] == prefill_bytes(*[512 + text] * LAYERS)
    assert result["model"]["name"] == "embedded-video" and result["decode_s"] is None
    [video] = result["videos"]
    assert (video["path"], video["frames"], video["count"], video["duration"]) == ("bundled", 64, 64, 8.0)
    assert video["seconds"] == [i / 8 for i in range(64)] and result["images"] == []


# ------------------------------------------------------------------------------------------------------ from a file


def test_answer_and_frames_are_those_of_the_file(run, pictures):
    """Oracle: reader, processor and ``generate`` called one by one."""
    result, err = run(
        "--video", pictures, "--frames", 16, "--prompt", QUESTION, "--policy", "random", "--n-keep", 9, "--seed", 4
    )
    frames, (model, processor) = read_frames(pictures, n=16), load_video()
    inputs = processor(f"<bos><video>{QUESTION}<answer>", [frames.pixels])
    with vtprune.pruned(model, "random", n_keep=9, seed=4) as report:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert result["pruned"]["kv_bytes"] == report.kv_bytes
    answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert result["pruned"]["answer"] == answer.strip() and result["unpruned"] is None
    [video] = result["videos"]
    assert video["seconds"] == frames.seconds.tolist() and video["size"] == [64, 64] and video["count"] == COUNT
    assert 0 < result["decode_s"] == video["decode_s"]
    assert result["pruned"]["visual_tokens_before"] == 8 * SLICE and result["pruned"]["visual_tokens"] == 9
    assert err.startswith(f"note: {pictures}: ") and err.count("\n") == 1, "a folder has no times of its own"


def test_the_default_number_of_frames_and_frames_by_rate(run, pictures, animation):
    common = ("--prompt", QUESTION, "--policy", "uniform")
    result, _ = run("--video", pictures, *common)
    assert result["videos"][0]["frames"] == 32 and result["policy"]["options"]["keep_ratio"] == 0.5
    result, _ = run("--video", animation, "--fps", 1, *common)
    assert result["videos"][0]["seconds"] == [0, 1, 2]


def test_clips_and_pictures_stand_where_the_prompt_says(run, animation, pictures, tmp_path):
    """Oracle: tokens by hand; the sheet below the picture, as each is drawn alone."""
    still, target = pictures / "30.png", tmp_path / "kept.png"
    argv = ("--video", animation, animation, "--image", still, "--frames", 4, "--policy", "none", "--overlay", target)
    result, _ = run(*argv, "--prompt", "the <video> is before <image> and <video> ?")
    assert result["pruned"]["visual_tokens_before"] == SLICE * (2 + 1 + 2)
    assert [v["path"] for v in result["videos"]] == [str(animation)] * 2
    assert [image["path"] for image in result["images"]] == [str(still)]
    drawn = np.array(Image.open(target))
    large = np.array(Image.open(still)).repeat(10, 0).repeat(10, 1)
    places = [y for y in range(len(drawn) - 640) if np.array_equal(drawn[y : y + 640, :640], large)]
    assert len(places) == 1 and 100 < places[0] < len(drawn) - 740, "the picture lies between the sheets"


def test_the_sheet_is_that_of_the_report(run, pictures, tmp_path):
    """Oracle: ``contact_sheet`` of the same frames and of a model wrapped by hand."""
    target = tmp_path / "sheet.png"
    argv = ("--video", pictures, "--frames", 8, "--prompt", QUESTION, "--policy", "fastv", "--keep-ratio", 0.3)
    run(*argv, "--overlay", target)
    frames, (model, processor) = read_frames(pictures, n=8), load_video()
    inputs = processor(f"<bos><video>{QUESTION}<answer>", [frames.pixels])
    with vtprune.pruned(model, "fastv", keep_ratio=0.3) as report:
        model.generate(**inputs, max_new_tokens=1)
        sheet = np.array(contact_sheet(frames.pixels, report.kept(), seconds=frames.seconds))
    drawn = np.array(Image.open(target))
    assert np.array_equal(drawn[: len(sheet), : sheet.shape[1]], sheet) and len(drawn) > len(sheet)


class Watch(ScorePolicy):
    """Keeps the first tokens, and remembers when they are shown."""

    seen: ClassVar[list] = []

    def score(self, tokens):
        self.seen.append(tokens.seconds)
        return -torch.arange(len(tokens)).float()


def test_policies_are_told_when_frames_are_shown(run, animation, tiny_folder, pictures, monkeypatch):
    """Oracle: by hand. Six frames 0.5 s apart, two of which are a slice; as images each has its own time."""
    monkeypatch.setitem(POLICIES, "watch", Watch)
    run("--video", animation, "--frames", 6, "--policy", "watch", "--prompt", QUESTION)
    assert Watch.seen[-1].tolist() == [second for second in (0.25, 1.25, 2.25) for _ in range(SLICE)]
    more = ("--model", tiny_folder, "--frames", 2, "--policy", "watch")
    run("--video", animation, *more, "--image", pictures / "3.png", "--prompt", "<image> what <video>")
    times = Watch.seen[-1].view(3, 64)
    assert times[0].isnan().all() and (times[1] == 0).all() and (times[2] == 2.5).all()


# -------------------------------------------------------------------------------------------------- other models


def test_frames_are_images_where_the_processor_takes_no_videos(run, tiny_folder, animation, tmp_path):
    """Oracle: by hand. Six frames of 64 tokens share one budget; pooled, not a quarter of each."""
    target, start = tmp_path / "sheet.png", ("--model", tiny_folder, "--video", animation, "--prompt", "what is this ?")
    result, err = run(*start, "--policy", "fastv", "--n-keep", 96, "--overlay", target)
    assert (result["pruned"]["visual_tokens_before"], result["pruned"]["visual_tokens"]) == (6 * 64, 96)
    assert result["policy"]["options"]["budget"] == "prompt"
    assert "takes no videos; each frame goes in as an image, budget=prompt" in err
    assert Image.open(target).width > 500
    result, _ = run(*start, "--policy", "fastv", "--n-keep", 10, "--option", "budget=segment")
    assert result["pruned"]["visual_tokens"] == 60, "what was said holds"
    result, _ = run(*start)
    options = result["policy"]["options"]
    assert result["policy"]["name"] == "framefusion" and (options["images"], options["budget"]) == ("frames", "prompt")
    frames, loaded = read_frames(animation, n=6), load(tiny_folder)
    text = f"<bos> user {'<image>' * 6} what is this ? assistant"
    inputs = loaded.processor(images=[Image.fromarray(f) for f in frames.pixels], text=text, return_tensors="pt")
    with vtprune.pruned(loaded.model, "framefusion", images="frames", budget="prompt"):
        out = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    said = loaded.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert result["pruned"]["answer"] == said.strip()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_processors_of_transformers_are_told_of_chosen_frames(family, run, monkeypatch, animation, tmp_path):
    """Oracle: tokens by hand, seconds by the rate: 5 frames of 3 s are 3 / 5 s apart."""
    folder, target = tmp_path / family, tmp_path / "sheet.png"
    tiny.build(family).float().save_pretrained(folder)
    processor = getattr(processors, family)()
    processor.tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text("{}")
    monkeypatch.setattr("vtprune.models.load_processor", lambda folder: processor)
    argv = ("--model", folder, "--video", animation, "--frames", 3, "--prompt", "w3 w4", "--policy", "uniform")
    result, err = run(*argv, "--keep-ratio", 0.5, "--overlay", target)
    frames = read_frames(animation, n=3)
    assert np.array_equal(processor.video_processor.seen[0], np.stack([processors.resized(f) for f in frames.pixels]))
    # a slice of two frames is four tokens there, the last one repeated; a frame is sixteen here
    before = 2 * 4 if family == "qwen2_5_vl" else 3 * 16
    assert (result["pruned"]["visual_tokens_before"], result["pruned"]["visual_tokens"]) == (before, before // 2)
    assert err == "" and Image.open(target).width > 300
    if family == "qwen2_5_vl":
        five = split_prompt("w3", [], [read_frames(animation, n=5)])
        inputs = make_inputs(Loaded("x", None, processor, False), five)
        assert inputs["second_per_grid_ts"].tolist() == [pytest.approx(6 / 5)], "of slices, two frames each"
        assert inputs["video_grid_thw"].tolist() == [[3, 4, 4]] and "pixel_values" not in inputs
        half = placed(inputs, SimpleNamespace(device="cpu", dtype=torch.bfloat16))
        assert half["pixel_values_videos"].dtype == torch.bfloat16
        # times that were rounded would move the positions of later tokens
        assert torch.equal(half["second_per_grid_ts"], inputs["second_per_grid_ts"])


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_video_processor_that_needs_torchvision(tmp_path, animation, capsys):
    """What transformers itself says where torchvision is missing, and what to do."""
    folder = tmp_path / "model"
    tiny.build("qwen2_5_vl").save_pretrained(folder)
    processor = processors.qwen2_5_vl()
    processor.tokenizer.save_pretrained(folder)
    halves = {"image_processor": {"image_processor_type": "Qwen2VLImageProcessor"}}
    halves["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor", **halves}))
    capsys.readouterr()
    line = failed(capsys, "--model", folder, "--video", animation, "--frames", 6)
    assert "pip install torchvision (the version that fits your torch)" in line


# ----------------------------------------------------------------------------------------- as many tokens, other frames


def test_other_frames_for_as_many_tokens(run, pictures):
    """Oracle: by hand. A quarter of 24 frames' 192 tokens are 48: six frames unpruned, or 60 frames pruned."""
    argv = ("--video", pictures, "--prompt", QUESTION, "--policy", "random", "--keep-ratio", 0.25)
    result, _ = run(*argv, "--frames", 24, "--compare", "frames", "--runs", 1, "--max-new-tokens", 3, quick=False)
    found = result["same_budget"]
    assert (found["budget"], found["counted"], found["note"]) == (48, "after the last site", "")
    few, plain, pruned, many = found["rows"]
    assert [row["name"] for row in found["rows"]] == [
        "fewer frames, unpruned",
        "unpruned",
        "pruned",
        "more frames, pruned",
    ]
    for row, frames, after in ((few, 6, 48), (plain, 24, 192), (pruned, 24, 48), (many, 60, 48)):
        before, slices = frames // 2 * SLICE, frames // 2
        assert (row["frames"], row["visual_tokens_before"], row["visual_tokens"]) == (frames, before, after)
        assert row["layer_mean"] == after, "random drops before the LLM"
        assert row["kv_bytes"] == prefill_bytes(*[after + slices * MARKS + TEXT] * LAYERS)
        assert row["same_budget"] == (after == 48) and row["prefill_ms"] > 0 and row["decode_s"] > 0
    assert (plain["answer"], pruned["answer"]) == (result["unpruned"]["answer"], result["pruned"]["answer"])
    alone, _ = run(*argv[:-2], "--n-keep", 48, "--frames", 60)
    unpruned, _ = run(*argv[:-4], "--policy", "none", "--frames", 6)
    assert (many["answer"], few["answer"]) == (alone["pruned"]["answer"], unpruned["pruned"]["answer"])


def test_a_budget_that_is_counted_by_layer_or_cannot_be_reached(run, pictures):
    """Oracle: similarities are at most 1, so above nothing merges, and what the first layers held is too much."""
    argv = ("--video", pictures, "--frames", 24, "--prompt", QUESTION, "--compare", "frames", "--policy", "framefusion")
    result, _ = run(*argv, "--keep-ratio", 0.25)
    found = result["same_budget"]
    assert (found["budget"], found["counted"]) == (48, "mean of the layers")
    assert [row["frames"] for row in found["rows"]] == [6, 24, 24, 60]
    result, _ = run(*argv, "--keep-ratio", 0.1, "--option", "similarity=1", "--option", "stop_below=0")
    few, plain, pruned = result["same_budget"]["rows"]
    assert few["frames"] == 2 and few["same_budget"] and not plain["same_budget"]
    assert pruned["visual_tokens"] == 192 and not pruned["same_budget"]
    assert "allows all layers, so none were pruned" in pruned["notes"][0]


def test_a_clip_without_more_frames(animation, capsys):
    argv = ("--video", animation, "--frames", "6", "--prompt", QUESTION, "--policy", "fastv", "--compare", "frames")
    assert main(["run", *map(str, argv), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "note: the clip has 6 frames; no more can be pruned to as many" in out
    # half of 3 x 16 tokens; FastV's first two layers see all of them: (2 x 48 + 4 x 24) / 6
    assert ["*", "pruned", "6", "48", "->", "24", "32"] in [line.split()[:7] for line in out.splitlines()]


# ------------------------------------------------------------------------------------------------------ wrong lines


def failed(capsys, *argv) -> str:
    """The one line that a wrong command line prints."""
    assert main(["run", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vtprune: ") and err.endswith("\n") and err.count("\n") == 1
    return err


ERRORS = [
    (["--frames", "4"], "--frames is about clips, and there is none; add --video FILE"),
    (["--fps", "2"], "--fps is about clips"),
    (["--partial"], "--partial is about clips"),
    (["--compare", "frames"], "--compare frames is about the frames of a clip, and there is none; add --video FILE"),
    (["--video", "x.mp4", "--frames", "0"], "--frames is a number of frames, 1 or more; got 0"),
    (["--video", "x.mp4", "--frames", "few"], "invalid int value: 'few'"),
    (["--video", "x.mp4", "--fps", "0"], "--fps is how many frames of each second are taken, above 0; got 0"),
    (["--video", "x.mp4", "--fps", "nan"], "above 0; got nan"),
    (["--video", "x.mp4", "--frames", "4", "--fps", "0.5"], "give --frames or --fps, not both; got 4 and 0.5"),
    (["--video", "a.mp4", "b.mp4", "--compare", "frames"], "is about one clip; got 2 clips and 0 pictures"),
    (["--video", "a.mp4", "--image", "b.png", "--compare", "frames"], "got 1 clips and 1 pictures"),
    (["--video", "a.mp4", "--policy", "none", "--compare", "frames"], "a policy that has a keep_ratio; none has none"),
    (["--video", "a.mp4", "--n-keep", "4"], "policy 'framefusion' has no option 'n_keep'"),
    (["--video", "/no/such.mp4"], "there is no file /no/such.mp4; give the path of a clip"),
    (["--video", "a.mp4", "--prompt", "<video> or <video> ?"], "the prompt has 2 places <video> and there are 1 clips"),
    (["--video", "a.mp4", "--prompt", "<image> ?"], "the prompt has 1 places <image> and there are 0 pictures"),
    (["--video", "--prompt", " "], "--prompt is a question in words; got ' '"),
    (["--video", "a.mp4", "--overlay", "sheet.mp4"], "--overlay writes .png, .jpg, .jpeg, .webp; got sheet.mp4"),
]


@pytest.mark.parametrize(("argv", "fragment"), ERRORS, ids=[" ".join(argv) for argv, _ in ERRORS])
def test_a_mistake_is_told_in_one_line(argv, fragment, capsys):
    """Before a model is loaded: there is none to be had under the name given here."""
    assert fragment in failed(capsys, "--model", "/no/such/model", *argv)


def test_clips_that_cannot_be_read(tmp_path, capsys):
    broken = {"empty.mp4": b"", "words.mp4": b"#EXTM3U and so on", "noise.mp4": bytes(range(256)) * 40}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        assert name in failed(capsys, "--model", "/no/such/model", "--video", tmp_path / name)


def test_a_damaged_clip_and_what_can_be_read_of_it(run, tmp_path, capsys):
    """Oracle: a clip cut off in the middle, whose index is at the front and promises the rest."""
    path = write(tmp_path / "cut.mp4", 60, container={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    line = failed(capsys, "--model", "/no/such/model", "--video", path, "--frames", 20)
    assert str(path) in line and line.rstrip().endswith("with --partial")
    result, err = run("--video", path, "--frames", 20, "--partial", "--prompt", QUESTION)
    [video] = result["videos"]
    assert 2 < video["frames"] < 20 or video["count"] < 60
    assert str(path) in err and video["notes"] and all(text in " ".join(err.split()) for text in video["notes"])


def test_a_sheet_replaces_no_clip(animation, pictures, capsys):
    before = sorted(pictures.iterdir())
    line = failed(capsys, "--model", "/no/such/model", "--video", pictures, "--overlay", pictures / "sheet.png")
    assert f"would be one of the pictures of {pictures}" in line and sorted(pictures.iterdir()) == before
