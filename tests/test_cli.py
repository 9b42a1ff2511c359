"""The command line: its numbers are those of the model, its errors are one line, its help needs no model."""

import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import vtprune
import vtprune.embedded
from tests import model_folder
from vtprune import cli
from vtprune.cli import main
from vtprune.cli import run as cli_run
from vtprune.cli.console import printable, write_json
from vtprune.cli.docs import entries, policy_card, split_source
from vtprune.cli.error import UserError, one_line
from vtprune.cli.measure import Look, Times, Trial, agreement, middle_ratio, time_trials, timed_tokens
from vtprune.cli.options import make_policy, parse_value, type_name
from vtprune.cli.prompt import make_inputs, split_prompt
from vtprune.cli.result import compared, engineering
from vtprune.families.base import FAMILIES
from vtprune.models import Loaded, load
from vtprune.policies.base import POLICIES, ScorePolicy
from vtprune.refused import REFUSED

ROOT = Path(__file__).parents[1]
VISUAL = model_folder.GRID**2
QUICK = ("--runs", "0", "--max-new-tokens", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder.write(tmp_path_factory.mktemp("models") / "tiny")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    noise(56, 56).save(path)
    return path


@pytest.fixture
def run(folder, picture, capsys):
    """``vtprune run`` on the tiny folder, in this process: the JSON it writes."""

    def call(*more, quick=True, pictures=(picture,)) -> dict:
        argv = ["run", "--model", folder, "--image", *pictures, "--prompt", "what color is this ?", "--json"]
        assert main([str(part) for part in (*argv, *(QUICK if quick else ()), *more)]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def failed(capsys, *argv) -> str:
    """The one line that a wrong command line prints."""
    assert main([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("\n") and err.count("\n") == 1 and err.startswith("vtprune: ")
    assert "Traceback" not in err
    return err


def prompt_tokens(words: int, images: int = 1) -> int:
    return model_folder.TEMPLATE_TOKENS + words + images * VISUAL


# ----------------------------------------------------------------------------------------- the numbers of vtprune run


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.5, 0.73])
def test_tokens_and_bytes(run, ratio):
    """Oracle: round(n * ratio), and keys and values counted by hand: four layers, of which two see fewer tokens."""
    result = run("--policy", "fastv", "--keep-ratio", ratio, "--compare")
    pruned, kept, length = result["pruned"], round(VISUAL * ratio), prompt_tokens(words=5)
    assert (pruned["visual_tokens_before"], pruned["visual_tokens"]) == (VISUAL, kept)
    assert pruned["sites"] == [{"site": "layer 2", "before": VISUAL, "after": kept}]
    each = 2 * model_folder.KEY_HEADS * model_folder.HEAD_SIZE * 4
    assert pruned["kv_bytes"] == pruned["kv_bytes_predicted"] == each * (4 * length - 2 * (VISUAL - kept))
    assert result["unpruned"]["kv_bytes"] == pruned["kv_bytes_unpruned_predicted"] == each * 4 * length
    assert result["comparison"]["kv_ratio"] == pruned["kv_bytes"] / result["unpruned"]["kv_bytes"]
    assert 0 < pruned["flops"] < pruned["flops_unpruned"]
    assert result["policy"]["options"]["keep_ratio"] == ratio and result["policy"]["options"]["layer"] == 2


def test_what_was_asked_stands_beside_what_came_of_it(run):
    """Oracle: counted by hand; two of four layers see fewer tokens, which is one FLOPs ratio whoever asks for it."""
    result = run("--policy", "fastv", "--keep-ratio", 0.25)
    kept, budget = round(VISUAL * 0.25), result["pruned"]["budget"]
    assert (budget["asked"], budget["counts"], budget["final"]) == (0.25, "after the last site", kept / VISUAL)
    assert budget["layers"] == pytest.approx((2 * VISUAL + 2 * kept) / 4 / VISUAL)
    again = run("--policy", "fastv", "--keep-flops", budget["flops"] + 1e-9, "--option", "budget=prompt")
    assert again["pruned"]["visual_tokens"] == kept and again["pruned"]["budget"]["flops"] == budget["flops"]
    assert again["pruned"]["budget"]["asked"] == again["policy"]["options"]["keep_flops"] == budget["flops"] + 1e-9
    more = run("--policy", "fastv", "--keep-ratio", 0.75, "--option", "budget=flops", "--option", "budget=prompt")
    even = run("--policy", "uniform", "--keep-ratio", 0.75)["pruned"]["budget"]
    assert more["policy"]["options"]["budget"] == "prompt" and more["policy"]["options"]["keep_ratio_is"] == "flops"
    assert more["pruned"]["budget"]["final"] < 0.75 and more["pruned"]["budget"]["flops"] <= even["flops"]
    both = run("--policy", "uniform >> fastv", "--option", "split=0.5,0.5")
    assert [site["after"] for site in both["pruned"]["sites"]] == [VISUAL // 2, VISUAL // 4]


def test_keeping_everything_agrees_exactly(run):
    result = run("--keep-ratio", 1, "--compare")
    assert result["comparison"]["agreement"] == 1 and result["comparison"]["same_answer"]
    assert result["pruned"]["answer"] == result["unpruned"]["answer"]
    assert result["pruned"]["kv_bytes"] == result["unpruned"]["kv_bytes"]


def test_answers_and_agreement_are_those_of_the_model(run, folder, picture):
    """Oracle: the processor, ``generate`` and ``vtprune.wrap`` called by hand; the distance by another formula."""
    result = run("--policy", "random", "--n-keep", 3, "--option", "layer=1", "--seed", 5, "--compare")
    loaded = load(folder)
    prompt = "<bos> user <image> what color is this ? assistant"
    inputs = loaded.processor(images=Image.open(picture), text=prompt, return_tensors="pt")
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    outputs = [loaded.model.generate(**inputs, **settings)]
    vtprune.wrap(loaded.model, "random", n_keep=3, layer=1, seed=5)
    outputs.append(loaded.model.generate(**inputs, **settings))
    start = inputs["input_ids"].shape[1]
    answers = [loaded.processor.decode(out.sequences[0, start:], skip_special_tokens=True) for out in outputs]
    assert [result["unpruned"]["answer"], result["pruned"]["answer"]] == answers
    p, q = (out.logits[0][0].softmax(-1) for out in outputs)
    both = torch.minimum(p, q).sum()
    assert 0 < both < 0.999 and result["comparison"]["agreement"] == pytest.approx(float(both), abs=1e-5)


def test_a_decoder_whose_arithmetic_is_unknown_is_no_error(folder, picture, monkeypatch, capsys):
    """Oracle: a report that refuses to count."""

    def refuse(*args, **more):
        raise NotImplementedError("no formula")

    for name in ("decoder_flops", "kv_bytes"):
        monkeypatch.setattr(f"vtprune.flops.{name}", refuse)
    # by the table of modules, because vtprune.report is a function too
    monkeypatch.setattr(sys.modules["vtprune.report"], "vision_flops", refuse)
    argv = ["run", "--model", folder, "--image", picture, "--prompt", "what is this ?", *QUICK, "--compare"]
    assert main([str(part) for part in argv]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["prefill", "FLOPs,", "decoder", "and", "signals", "-", "-"] in rows
    assert any(row[:3] == ["KV", "cache,", "bytes"] and row[3] != "-" for row in rows), "measured all the same"


def test_without_compare_there_is_nothing_unpruned(run):
    result = run()
    assert result["unpruned"] is None and result["comparison"] is None and result["right_answer"] is None
    assert result["runs"] == 0 and result["pruned"]["prefill_ms"] is None
    assert result["model"]["parameters"] == model_folder.build_model().num_parameters()
    assert (result["model"]["dtype"], result["model"]["model_type"]) == ("float32", "llava")


def test_times_are_measured(run):
    result = run("--runs", 3, "--compare", "--max-new-tokens", 4, quick=False)
    pruned, unpruned, compared = result["pruned"], result["unpruned"], result["comparison"]
    assert result["runs"] == 3 and result["timed_tokens"] == 4
    assert min(pruned["prefill_ms"], pruned["token_ms"], unpruned["prefill_ms"], unpruned["token_ms"]) > 0
    assert 0 < pruned["selector_ms"] < pruned["prefill_ms"]
    assert compared["prefill_ratio"] > 0 and compared["token_ratio"] > 0


def test_two_pictures(run, tmp_path):
    """The budget is shared by picture; the order in the prompt is that of the files."""
    second = tmp_path / "second.png"
    noise(80, 60, 1).save(second)
    result = run("--image", second, "--prompt", "what is <image> and <image>", "--keep-ratio", 0.25)
    assert result["pruned"]["visual_tokens_before"] == 2 * VISUAL and result["pruned"]["visual_tokens"] == VISUAL // 2
    assert [image["size"] for image in result["images"]] == [[56, 56], [60, 80]]


def test_positions_and_policy_options_arrive(run):
    result = run("--policy", "vtc_cls", "--option", "layers=-2", "--option", "score_dtype=float32")
    assert result["positions"] == "compact"
    assert result["policy"]["options"] | {"layers": [-2], "score_dtype": "float32"} == result["policy"]["options"]
    compact, original = (
        run("--policy", "vtc_cls", "--option", "layers=-2", "--positions", how, "--compare")
        for how in ("compact", "original")
    )
    assert (compact["positions"], original["positions"]) == ("compact", "original")
    assert compact["comparison"]["agreement"] != original["comparison"]["agreement"]


def test_overlay(run, tmp_path):
    """Oracle: as many cells of the drawing equal the enlarged picture as the JSON says were kept."""
    target = tmp_path / "kept.png"
    result = run("--keep-ratio", 0.3, "--overlay", target, "--dtype", "bfloat16")
    assert result["model"]["dtype"] == "bfloat16"
    drawn, large = np.array(Image.open(target)), np.array(noise(56, 56)).repeat(12, 0).repeat(12, 1)
    assert drawn.shape[0] > 672 == drawn.shape[1] == large.shape[1], "the picture, and a caption below"
    side = 672 // model_folder.GRID
    cells = [np.s_[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(8) for c in range(8)]
    same = sum(np.array_equal(drawn[cell], large[cell]) for cell in cells)
    assert same == result["pruned"]["visual_tokens"] == round(0.3 * VISUAL)
    assert result["overlay"] == str(target)


def test_overlay_of_two_pictures(run, tmp_path):
    """A row for each picture."""
    second, target = tmp_path / "second.png", tmp_path / "kept.webp"
    noise(56, 112, 1).save(second)
    run("--image", second, "--overlay", target)
    assert Image.open(target).size[0] == 672 and Image.open(target).size[1] > 2 * 672


class Twice(ScorePolicy):
    """Half of the tokens at layer 1, and half of those at layer 3."""

    sites = (1, 3)

    def score(self, tokens):
        return torch.arange(len(tokens)).float()


def test_a_policy_with_two_sites(run, tmp_path, monkeypatch):
    """A drawing for each, side by side, from left to right fewer cells; the last ones of the raster have the score."""
    monkeypatch.setitem(POLICIES, "twice", Twice)
    target = tmp_path / "kept.png"
    pruned = run("--policy", "twice", "--keep-ratio", 0.5, "--overlay", target)["pruned"]
    assert [(site["site"], site["after"]) for site in pruned["sites"]] == [("layer 1", 32), ("layer 3", 16)]
    drawn, large = np.array(Image.open(target)), np.array(noise(56, 56)).repeat(12, 0).repeat(12, 1)
    assert drawn.shape[1] == 672 + 16 + 672
    for left, top in ((0, 336), (688, 504)):
        shown = drawn[:672, left : left + 672]
        assert np.array_equal(shown[top:], large[top:]) and not (shown[:top] == large[:top]).all(-1).all(1).any()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    noise(50, 90).save(path)
    return path


def test_overlay_of_thumbnail_and_tiles(run, wide, tmp_path):
    """LLaVA-NeXT: 2 x 2 thumbnail cells, and 2 x 4 cells of two tiles side by side without their padding."""
    folder, target = model_folder.write_family(tmp_path / "next", "llava_next"), tmp_path / "kept.png"
    argv = ("--model", folder, "--prompt", "w3 w4", "--policy", "none", "--overlay", target)
    result = run(*argv, pictures=[wide])
    assert result["pruned"]["visual_tokens"] == result["pruned"]["visual_tokens_before"] == 2 * 2 + 2 * 4
    drawn, large = np.array(Image.open(target)), np.array(noise(50, 90)).repeat(13, 0).repeat(13, 1)
    assert np.array_equal(drawn[:650, :1170], large) and drawn.shape[1] == 1170 + 16 + 1170 // 3


def test_tiles_that_cannot_be_drawn_are_no_reason_to_be_silent(wide, tmp_path, capsys):
    """Idefics3: four tiles and the whole picture are five images; the numbers come, the drawing does not."""
    folder, target = model_folder.write_family(tmp_path / "idefics", "idefics3"), tmp_path / "kept.png"
    argv = ["run", "--model", folder, "--image", wide, "--prompt", "w3", "--policy", "uniform", "--overlay", target]
    capsys.readouterr()
    assert main([str(part) for part in (*argv, *QUICK)]) == 2
    out, err = capsys.readouterr()
    assert ["visual", "tokens", "40"] in [line.split() for line in out.splitlines()]
    assert err.count("\n") == 1 and "5 images of 1 pictures (tiles)" in err and not target.exists()


def test_json_to_a_file_leaves_the_tables(folder, picture, tmp_path, capsys):
    target = tmp_path / "result.json"
    argv = ["run", "--model", folder, "--image", picture, "--prompt", "what is this ?", "--json", target, *QUICK]
    assert main([*map(str, argv), "--compare"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(target.read_text())
    for text in ("question  what is this ?", "unpruned", "layer 2", f"{result['pruned']['kv_bytes']:,}", "agree to"):
        assert text in out
    assert err == "" and "\x1b" not in out and all(line == line.rstrip() for line in out.splitlines())


def test_without_arguments_there_is_an_example(folder, monkeypatch, capsys):
    """The bundled picture, its question and right answer, unpruned beside pruned, and what this is."""
    monkeypatch.setattr(vtprune.embedded, "image_path", lambda: folder)
    monkeypatch.setattr(cli_run, "_HELLO", "Hello, this is an example.")
    assert main(["run", "--runs", "1"]) == 0
    out, err = capsys.readouterr()
    _, question, right = vtprune.embedded.example()
    assert question in out and f"right     {right}" in out and "Hello, this is an example." in out
    assert "unpruned" in out and "pruned / unpruned" in out and "1 runs of 8 tokens" in out
    assert "does not know these words" in err and "green?" not in err, "green and ? are words of the tiny model"


def test_a_folder_without_a_chat_template(tmp_path, picture, capsys):
    folder = model_folder.write(tmp_path / "plain", template=None)
    argv = ["run", "--model", folder, "--image", picture, "--prompt", "what is this ?", "--json", *QUICK]
    assert main([str(part) for part in argv]) == 0
    assert json.loads(capsys.readouterr().out)["pruned"]["visual_tokens_before"] == VISUAL


def test_a_terminal_that_knows_few_letters(folder, picture, monkeypatch):
    """What it cannot show is escaped."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    argv = ["run", "--model", folder, "--image", picture, "--prompt", "wie heißt du", *QUICK]
    assert main([str(part) for part in argv]) == 0
    screen.flush()
    shown = screen.buffer.getvalue().decode("ascii")
    assert "wie hei\\xdft du" in shown and "prefill, ms" not in shown, "nothing was timed"


@pytest.mark.gpu
def test_on_a_gpu(run):
    result = run("--device", "cuda", "--dtype", "bfloat16", "--runs", 3, "--compare", "--keep-ratio", 1, quick=False)
    assert result["model"]["device"] == "cuda:0" and result["comparison"]["agreement"] == 1
    assert result["pruned"]["kv_bytes"] == result["pruned"]["kv_bytes_predicted"]
    assert 0 < result["pruned"]["selector_ms"] < result["pruned"]["prefill_ms"]


def test_an_animation_is_a_note_and_no_error(run, folder, tmp_path, capsys):
    frames = [noise(20, 20, seed) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    argv = ["run", "--model", folder, "--image", tmp_path / "a.gif", "--prompt", "what is this ?", "--json", *QUICK]
    assert main([str(part) for part in argv]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"][0]["size"] == [20, 20]
    assert err == f"note: {tmp_path / 'a.gif'} is animated; the first of its 3 frames is read\n"


# --------------------------------------------------------------------------------------------------- wrong lines

RUN_ERRORS = [
    (["--keep-ratio", "75"], "keep_ratio is the fraction of visual tokens KEPT, in (0, 1]; got 75"),
    (["--keep-ratio", "0"], "in (0, 1]; got 0"),
    (["--keep-ratio", "-1"], "in (0, 1]; got -1"),
    (["--keep-ratio", "nan"], "in (0, 1]; got nan"),
    (["--keep-ratio", "a"], "in (0, 1]; got 'a'"),
    (["--n-keep", "0"], "1 or more; got 0"),
    (["--n-keep", "2.5"], "an integer of 1 or more; got '2.5'"),
    (["--keep-ratio", "0.5", "--n-keep", "3"], "--keep-ratio or --n-keep, not both; got 0.5 and 3"),
    (["--keep-ratio", "0.5", "--option", "keep_ratio=0.4"], "keep_ratio is given twice"),
    (["--keep-flops", "75"], "the unpruned prompt's FLOPs in the decoder's layers KEPT, in (0, 1]; got 75"),
    (["--keep-ratio", "0.5", "--keep-flops", "0.5"], "--keep-ratio or --keep-flops, not both"),
    (["--policy", "uniform >> fastv", "--option", "split=most"], "split is a list with commas (a number); got 'most'"),
    (["--option", "layer=1", "--option", "layer=2"], "'layer' is given twice: 1 and '2'"),
    (["--policy", "fastvv"], "unknown policy 'fastvv'; did you mean 'fastv'? known: "),
    (["--policy", "none", "--keep-ratio", "0.5"], "policy 'none' has no option 'keep_ratio'"),
    (["--option", "foo=1"], "policy 'fastv' has no option 'foo'"),
    (["--option", "seed=1"], "policy 'fastv' has no option 'seed'; it is an option of "),
    (["--option", "layer=two"], "layer is an integer; got 'two'"),
    (["--option", "layer"], "--option takes name=value, for instance --option layer=2; got 'layer'"),
    (["--option", "=2"], "--option takes name=value"),
    (["--option", "layer=__import__('os').getcwd()"], "layer is an integer"),
    (["--option", "budget=mine"], "budget is one of 'segment', 'prompt'; got 'mine'"),
    (["--positions", "both"], "--positions is original or compact; got 'both'"),
    (["--device", "gpu"], "there is no device 'gpu'; there are auto, cpu"),
    (["--dtype", "int8"], "unknown dtype 'int8'; known: auto, float32"),
    (["--max-new-tokens", "0"], "--max-new-tokens is 1 or more; got 0"),
    (["--max-new-tokens", "many"], "invalid int value: 'many'"),
    (["--runs", "-1"], "--runs is 0 (no times) or more; got -1"),
    (["--prompt", "what is <image> and <image> ?"], "the prompt has 2 places <image> and there are 1 pictures"),
    (["--prompt", " "], "--prompt is a question in words; got ' '"),
    (["--overlay", "/no/such/folder/x.png"], "--overlay cannot write /no/such/folder/x.png: there is no folder"),
    (["--overlay", "."], "--overlay writes .png, .jpg, .jpeg, .webp; got ."),
    (["--overlay", "kept.pdf"], "--overlay writes .png, .jpg, .jpeg, .webp; got kept.pdf"),
    (["--json", "/no/such/folder/x.json"], "--json cannot write /no/such/folder/x.json"),
    (["--json", "/"], "--json takes a file; / is a folder"),
    (["--model", "llava-hf/llava-1.5-7b-hf"], "downloads nothing"),
    (["--model", "/no/such/model"], "there is no folder /no/such/model"),
    (["--image", "/no/such.png"], "there is no file /no/such.png"),
    (["--image", "/"], "/ is a folder; give picture files"),
    (["--compare", "frame"], "--compare is unpruned or frames; did you mean 'frames'? got 'frame'"),
    (["--bogus"], "unrecognized arguments: --bogus; see vtprune --help"),
    (["--keep"], "unrecognized arguments: --keep"),
]


@pytest.mark.parametrize(("argv", "fragment"), RUN_ERRORS, ids=[" ".join(argv) for argv, _ in RUN_ERRORS])
def test_a_mistake_is_told_in_one_line(argv, fragment, picture, capsys):
    """Before a model is loaded: there is none to be had under the name given here."""
    assert fragment in failed(capsys, "run", "--image", picture, "--model", "/no/such/model", *argv)


def test_mistakes_that_the_model_must_tell(folder, picture, capsys):
    start = ["run", "--model", folder, "--image", picture, "--prompt"]
    line = failed(capsys, *start, "what is this ?", "--option", "layer=99")
    assert "this decoder has layers 0 to 3" in line
    line = failed(capsys, *start, "what is this ?", "--max-new-tokens", "1", "--attn", "quick")
    assert "unknown attention 'quick'; known: sdpa" in line
    line = failed(capsys, *start, "what is this ?", "--policy", "vtc_cls", "--option", "layers=7")
    assert "7" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_overlay_that_may_not_be_written(picture, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "Permission denied" in failed(capsys, "run", "--image", picture, "--overlay", tmp_path / "x.png")


def test_an_overlay_does_not_replace_its_picture(picture, capsys):
    before = picture.read_bytes()
    line = failed(capsys, "run", "--image", picture, "--overlay", picture)
    assert "would replace the picture itself" in line and picture.read_bytes() == before


def test_checking_a_target_leaves_nothing_behind_and_nothing_changed(tmp_path, picture, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("precious")
    for target in (old, new):
        failed(capsys, "run", "--model", "/no/such/model", "--image", picture, "--json", target)
    assert old.read_text() == "precious" and not new.exists()


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (
            ["polices"],
            "unknown command 'polices'; did you mean 'policies'? commands: run, demo, bench, cache-profile, "
            "policies, families",
        ),
        (["policies", "fastvv"], "unknown policy 'fastvv'; did you mean 'fastv'?"),
        (["--bogus"], "COMMAND"),
        (["families", "llava"], "unrecognized arguments: llava"),
    ],
)
def test_other_mistakes(argv, fragment, capsys):
    assert fragment in failed(capsys, *argv)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (NotImplementedError("not\nyet"), 2, "vtprune: not yet\n"),
        (OSError(28, "No space left on device"), 2, "vtprune: [Errno 28] No space left on device\n"),
        (ValueError(""), 2, "vtprune: ValueError\n"),
    ],
)
def test_exit_codes(error, code, said, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("vtprune.cli.families.run", fail)
    assert main(["families"]) == code
    assert capsys.readouterr() == ("", said)
    if code == 2:
        with pytest.raises(type(error)):
            main(["families", "--traceback"])


def test_a_mistake_of_ours_is_no_user_error(monkeypatch):
    """An error that no wrong input causes keeps its traceback."""

    def fail(arguments):
        raise AssertionError("a bug")

    monkeypatch.setattr("vtprune.cli.families.run", fail)
    with pytest.raises(AssertionError):
        main(["families"])


# ----------------------------------------------------------------------------------------- policies, families, help


def test_policies_as_json(capsys):
    """Oracle: the registry."""
    assert main(["policies", "--json"]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert sorted(cards) == sorted(POLICIES)
    for name, cls in POLICIES.items():
        card = cards[name]
        defaults = {field.name: field.default for field in fields(cls) if field.init}
        assert {option["name"] for option in card["options"]} == set(defaults)
        assert card["title"].endswith(".") and card["summary"]
        for option in card["options"]:
            default = defaults[option["name"]]
            plain = list(default) if isinstance(default, tuple) else default
            assert option["default"] == plain or not isinstance(default, (int, float, str, tuple))
            assert option["help"], f"{name} does not say what {option['name']} is"
    assert "arXiv:2403.06764" in cards["fastv"]["source"] and cards["random"]["source"] == ""


def test_policies_as_tables(capsys):
    assert main(["policies"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in POLICIES) and "arXiv:2403.06764" in out
    assert main(["policies", "fastv"]) == 0
    out = capsys.readouterr().out
    assert "layer" in out and "the first decoder layer that sees the shorter sequence." in out and "Differs from" in out


def test_families(capsys):
    assert main(["families", "--json"]) == 0
    found = {one["model_type"]: one for one in json.loads(capsys.readouterr().out)}
    assert found.keys() == {*FAMILIES, *REFUSED} and found["qwen3_vl"]["family"] == "Qwen3VL"
    assert {name for name, one in found.items() if one["family"] is None} == set(REFUSED)
    assert all(one["summary"].endswith(".") for one in found.values())
    assert main(["families"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in FAMILIES)


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "--help"], ["cache-profile", "--help"], ["policies", "--help"], ["families", "--help"]]
)
def test_help(argv, capsys):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "usage: vtprune" in out and err == ""


def test_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"vtprune {vtprune.__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2 and "commands:" in capsys.readouterr().out


def test_every_option_has_help_and_every_command_is_listed():
    parser = cli.build_parser()
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    assert list(commands.choices) == list(cli.COMMANDS)
    for command in commands.choices.values():
        assert all(action.help for action in command._actions)


def python(*argv: str, **more: Any) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "ascii"}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, cwd="/", **more)


def test_as_a_program(folder, picture):
    """``python -m vtprune``: nothing but JSON on the output, nothing on the error stream."""
    argv = ("run", "--model", folder, "--image", picture, "--prompt", "what is this ?", "--json", *QUICK)
    done = python("-m", "vtprune", *map(str, argv))
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["pruned"]["visual_tokens"] == VISUAL // 2


def test_help_and_mistakes_load_no_transformers():
    """Oracle: the modules of a fresh interpreter after the help."""
    code = (
        "import sys\nfrom vtprune.cli import main\ncodes = main(['--help']), main(['run', '--keep-ratio', '75'])\n"
        "print(codes, *sys.modules, sep='\\n')"
    )
    done = python("-c", code)
    modules = done.stdout.splitlines()
    assert "(0, 2)" in modules and done.stderr.count("\n") == 1 and "got 75" in done.stderr
    assert "vtprune.cli.run" in modules and not {"rich", "transformers", "jinja2"} & set(modules)


# ------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("1e-3", float, 0.001),
        ("3", float | None, 3.0),
        ("none", float | None, None),
        ("None", int | None, None),
        ("a b", str, "a b"),
        ("true", bool, True),
        ("OFF", bool, False),
        ("prompt", Literal["segment", "prompt"], "prompt"),
        ("2", Literal[1, 2], 2),
        ("1,2, 3", tuple[int, ...], (1, 2, 3)),
        ("(-4,-3)", tuple[int, ...], (-4, -3)),
        ("5", tuple[int, ...], (5,)),
        ("5,", tuple[int, ...], (5,)),
        ("()", tuple[int, ...], ()),
        ("1,0.5", tuple[int, float], (1, 0.5)),
        ("[0.25]", list[float], [0.25]),
        ("auto", int | str, "auto"),
        ("7", str | int, 7),
        ("1,2", tuple[int, ...] | None, (1, 2)),
    ],
)
def test_values_from_text(text, kind, value):
    parsed = parse_value(text, kind, "x")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "allowed"),
    [
        ("3.5", int, "an integer"),
        ("", int, "an integer"),
        ("x", float | None, "a number or none"),
        ("maybe", bool, "true or false"),
        ("1,b", tuple[int, ...], "a list with commas (an integer)"),
        ("1", tuple[int, int], "a list with commas (an integer, an integer)"),
        ("c", Literal["a", "b"], "one of 'a', 'b'"),
        ("{}", dict, "dict"),
    ],
)
def test_values_that_are_none(text, kind, allowed):
    with pytest.raises(UserError) as error:
        parse_value(text, kind, "x")
    assert str(error.value).startswith(f"x is {allowed}") and str(error.value).endswith(f"got {text!r}")


def test_types_in_words():
    assert type_name(int) == "int" and type_name(float | None) == "float | None"
    assert type_name(tuple[int, ...]) == "tuple[int, ...]" and type_name(Literal["a", "b"]) == "a | b"


def test_the_seed_goes_to_policies_that_have_one():
    assert make_policy("random", seed=9).seed == 9
    assert make_policy("random", ["seed=4"], seed=9).seed == 4
    assert make_policy("fastv", ["layer=3"], keep_ratio="0.25", seed=9) == POLICIES["fastv"](keep_ratio=0.25, layer=3)


def test_docstrings_become_cards():
    doc = """Does a thing.

    first:         what it is,
                   on two lines.
    second, third: both.

    No entry: because of the space.
    """
    assert entries(doc) == {"first": "what it is, on two lines.", "second": "both.", "third": "both."}
    source = 'Ann and Bo, "On Tokens", ACL 2024, arXiv:2401.00001, section 3.'
    text = source.replace("On ", "On\n") + "\nDiffers from the code: a lot.\nAnd more.\n\nX."
    assert split_source(text) == (source, "Differs from the code: a lot. And more.")
    assert split_source("The draw depends on the seed alone.") == ("", "")
    card = policy_card("fastv", POLICIES["fastv"])
    assert card.title.startswith("FastV: ") and card.source.startswith("Chen et al.") and card.source.endswith("4.1.")
    assert card.counts == "after the last site" and policy_card("none", POLICIES["none"]).counts == ""
    assert {name for name, cls in POLICIES.items() if "mean of the layers" in policy_card(name, cls).counts} == {
        "aim",
        "flashvid",
        "framefusion",
        "v2drop",
        "vflowopt",
    }
    assert card.options[-1].name == "layer" and card.options[-1].default == 2 and "``" not in str(card)


def test_prompts_are_split_at_the_places_of_pictures():
    """Oracle: written out; pictures and clips are told apart by who they are."""
    p, q, c, d = "picture p", "picture q", "clip c", "clip d"
    assert split_prompt("what is this ?", [p, q]) == [p, q, "what is this ?"]
    assert split_prompt("a <image> b <image>", [p, q]) == ["a", p, "b", q]
    own = SimpleNamespace(image_token="<|pad|>", video_token=None)
    assert split_prompt("<image><|pad|> b", [p, q], processor=own) == [p, q, "b"]
    assert split_prompt("<|pad|> b", [p]) == [p, "<|pad|> b"], "another model's placeholder is text"
    assert split_prompt(" is it so ?", [p], [c]) == [p, c, " is it so ?"]
    assert split_prompt("<video> a <image><video>b <image>", [p, q], [c, d]) == [c, "a", p, d, "b", q]
    assert split_prompt("first a <video>", [p], [c]) == [p, "first a", c], "who has no place comes first"
    for prompt, given, fragment in (
        ("<image>", ([p, q],), "there are 2 pictures"),
        ("<image> <image>", ([p],), "there are 1 pictures"),
        ("<video>", ([p],), "1 places <video> and there are 0 clips"),
        ("<image>", ([], [c]), "1 places <image> and there are 0 pictures"),
    ):
        with pytest.raises(UserError, match=fragment):
            split_prompt(prompt, *given)


def test_pictures_go_where_the_prompt_says(folder):
    """Oracle: the ids written out, word by word."""
    loaded = load(folder)
    red, blue = noise(56, 56, 1), noise(56, 56, 2)
    inputs = make_inputs(loaded, split_prompt("what is <image> and <image> ?", [red, blue]))
    words = ["<bos>", "user", "what", "is", *["<image>"] * VISUAL, "and", *["<image>"] * VISUAL, "?", "assistant"]
    assert inputs["input_ids"][0].tolist() == [model_folder.VOCABULARY[word] for word in words]
    alone = make_inputs(loaded, split_prompt("what is this ?", [red]))
    assert torch.equal(inputs["pixel_values"][0], alone["pixel_values"][0])
    assert alone["input_ids"].shape[1] == prompt_tokens(words=4)


def test_agreement_of_distributions():
    """Oracle: by hand, 1 - (|0.5 - 0.9| + |0.5 - 0.1|) / 2."""
    even, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert agreement(even, even) == 1 and agreement(even, other) == pytest.approx(0.6)
    assert agreement(torch.tensor([0.0, -1e9]), torch.tensor([-1e9, 0.0])) == 0
    assert agreement(even, torch.tensor([float("nan"), 0.0])) is None


def test_trials_are_timed_in_turn(monkeypatch):
    order = []

    class Stand:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            order.append(self.name)

        def __exit__(self, *error):
            pass

    def once(loaded, inputs, tokens, times):
        asked.append(inputs["prompt"])
        times.prefill.append(float(len(order)))

    asked = []
    monkeypatch.setattr("vtprune.cli.measure._time_once", once)
    trials = {name: Trial({"prompt": name}, partial(Stand, name)) for name in "ab"}
    times = time_trials(None, trials, 8, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"] and asked == order, "each with its own prompt"
    assert times["a"].prefill == [1, 4, 5] and times["b"].prefill == [2, 3, 6]
    assert middle_ratio(times["b"].prefill, times["a"].prefill) == 1.2  # of 2, 0.75 and 1.2
    order.clear()
    assert len(time_trials(None, trials, 8)["a"].prefill) == 9, "quick ones are repeated"
    monkeypatch.setattr("vtprune.cli.measure.SECONDS", -1.0)
    assert len(time_trials(None, trials, 8)["a"].prefill) == 3, "slow ones too, but not often"
    assert middle_ratio(Times().prefill, Times().prefill) is None
    assert [timed_tokens(n) for n in (1, 2, 5, 100)] == [2, 2, 5, 8]


def test_what_is_timed(monkeypatch):
    """Oracle: a clock that shows 0, 100, 130, 160 and 190 ms: the first token took 100, each later one 30."""
    clock = iter([0, 0.1, 0.13, 0.16, 0.19])
    monkeypatch.setattr("vtprune.clock.now", lambda device: next(clock))

    class Model:
        device = torch.device("cpu")

        def generate(self, stopping_criteria, min_new_tokens, max_new_tokens, **more):
            assert min_new_tokens == max_new_tokens == 4
            ids = torch.zeros(1, 7, dtype=torch.int64)
            assert not any(bool(stopping_criteria[0](ids, None).any()) for _ in range(max_new_tokens))

    loaded = Loaded("x", Model(), None, False)
    times = time_trials(loaded, {"a": Trial({}, nullcontext)}, 4, rounds=1)["a"]
    assert times.prefill == [pytest.approx(100)] and times.token == [pytest.approx(30)] and times.selector == []


def test_ratios_are_pruned_over_unpruned():
    """Oracle: by hand, the median of pruned / unpruned over the rounds."""
    pruned = Look("red", torch.zeros(2), 30), Times([1, 2, 30], [5, 5, 5])
    plain = Look("blue", torch.zeros(2), 120), Times([2, 8, 10], [10, 10, 10])
    assert compared(pruned[0], plain[0], pruned[1], plain[1]) == {
        "same_answer": False,
        "agreement": 1.0,
        "prefill_ratio": 0.5,
        "token_ratio": 0.5,
        "kv_ratio": 0.25,
    }


def test_numbers_for_people():
    assert [engineering(n) for n in (None, 0, 999, 1234567, 999_600, 2.5e15)] == [
        "-",
        "0",
        "999",
        "1.23 M",
        "1 M",
        "2.5 P",
    ]


def test_a_terminal_is_not_steered_by_what_a_model_says():
    assert printable("a\x1b[31mb\nc\u202e") == "a\ufffd[31mb\nc\ufffd"
    assert one_line(ValueError("a\n  b\x1b[2J\u202e")) == "a b?[2J?"


def test_json_knows_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json({"x": float("nan")}, str(tmp_path / "x.json"))
    assert not (tmp_path / "x.json").exists()


def test_scores_of_frames_arrive_from_the_command_line(run):
    """Oracle: what was typed; a list of numbers is typed with commas."""
    result = run("--policy", "quota", "--keep-ratio", "0.5", "--option", "frame_scores=0.25")
    assert result["policy"]["options"]["frame_scores"] == [0.25]
    assert result["policy"]["options"]["in_place"] is False, "as it was fitted to the model"
