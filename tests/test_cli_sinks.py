"""``vtprune sinks`` finds planted dimensions, ``vtprune run --sinks`` uses them; mistakes are one line."""

import json

import pytest
import torch

from tests import model_folder
from vtprune import SinkDetector
from vtprune.cli import main

DIM = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of six layers in which the word "what" is massive in one dimension of 32."""
    path = tmp_path_factory.mktemp("models") / "sunk"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_folder, "LAYERS", 6)
        model = model_folder.build_model()
        with torch.no_grad():
            model.get_input_embeddings().weight[model_folder.VOCABULARY["what"], DIM] = 500
        patch.setattr(model_folder, "build_model", lambda: model)
        return model_folder.write(path)


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("files") / "sinks.json"
    argv = ["sinks", str(folder), "--out", str(out), "--prompt", "what is this ?", "--prompt", "what", "--tau", "4.5"]
    assert main(argv) == 0
    return out


def failed(capsys, *argv) -> str:
    assert main([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_the_planted_dimension_is_written(file, folder):
    """Oracle: what was planted, and the sizes in the folder's config."""
    found = SinkDetector.load(file)
    assert (found.dims, found.tau, found.width, found.depth) == ((DIM,), 4.5, 32, 6)
    assert found.source == "calibrated on 2 prompts"


@pytest.mark.parametrize("mode", ["ignore", "drop"])
def test_run_uses_the_file(mode, file, folder, capsys):
    argv = ["run", "--model", folder, "--prompt", "what color is this ?", "--runs", "0", "--max-new-tokens", "2"]
    argv += ["--keep-ratio", "0.5", "--compare", "no", "--json", "--sinks", mode]
    argv += ["--sink-file", file] if mode == "drop" else []
    assert main([str(part) for part in argv]) == 0
    pruned = json.loads(capsys.readouterr().out)["pruned"]
    assert pruned["visual_tokens"] == 32
    expected = f"sinks='drop': massive in dimensions {DIM}, tau 4.5 (calibrated on 2 prompts)"
    assert (expected in pruned["notes"]) == (mode == "drop")


def test_mistakes_are_one_line(file, folder, tmp_path, capsys):
    assert "did you mean 'keep'? got 'kep'" in failed(capsys, "run", "--sinks", "kep")
    assert "there is no file" in failed(capsys, "run", "--sinks", "keep", "--sink-file", tmp_path / "no.json")
    assert "there is no folder" in failed(capsys, "sinks", folder, "--out", tmp_path / "no" / "sinks.json")
    assert "no dimension of the first token is above tau=20.0" in failed(
        capsys, "sinks", folder, "--out", tmp_path / "sinks.json", "--prompt", "what"
    )
    assert not (tmp_path / "sinks.json").exists()
    asked = ["run", "--model", folder, "--prompt", "what ?", "--runs", "0"]
    assert "sinks='ignore' looks for none" in failed(capsys, *asked, "--sink-file", file)
