"""``vtprune demo``: what it says when it cannot start. The page itself is tested in test_app.py."""

import sys

import pytest

from vtprune.cli import demo, main


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demo --port 0", "--port is a number from 1 to 65535; got 0"),
        ("demo --port x", "--port"),
        ("demo --device abacus", "there is no device 'abacus'"),
        ("demo --dtype int3", "unknown dtype 'int3'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(capsys, line, message):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_gradio_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'vtprune[demo]'" in capsys.readouterr().err


def test_a_folder_that_holds_no_model_is_told_before_a_page_opens(capsys, monkeypatch, tmp_path):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'vtprune[demo]'")
    assert main(["demo", "--model", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_port_in_use_is_told(capsys):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'vtprune[demo]'")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port), "--device", "cpu"]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


def test_nothing_of_the_demo_needs_gradio_but_its_page():
    """Oracle: the modules of this interpreter after all of the rest was imported, where gradio was not."""
    import subprocess

    names = "batch clip_study controls engine grid pictures shown study trace watch".split()
    modules = ", ".join(f"vtprune.demo.{name}" for name in names)
    code = f"import {modules}, vtprune.cli.demo, sys; print('gradio' in sys.modules)"
    path = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert done.stdout.strip() == "False", done.stderr
