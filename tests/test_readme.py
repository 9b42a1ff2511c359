"""The README is true: its tables come from the registries, its commands exist, it stays short."""

import re

from benchmarks import readme
from vtprune import cli


def test_the_tables_are_those_of_the_registries():
    """Run ``python -m benchmarks.readme`` when this fails."""
    text = readme.README.read_text()
    assert readme.filled(text) == text
    for path, table in readme.tables().items():
        assert path.read_text() == table, path.name


def test_it_is_short_and_speaks_of_nobody_s_machine():
    text = readme.README.read_text()
    assert len(text.splitlines()) < 200
    assert "/work" not in text and "/root" not in text


def test_every_make_target_it_names_exists():
    makefile = (readme.README.parent / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", readme.README.read_text()))
    assert {"run", "test"} <= named <= targets


def test_every_subcommand_it_names_exists(capsys):
    commands = set(re.findall(r"vtprune (run|policies|families|bench|demo)\b", readme.README.read_text()))
    for command in commands:
        try:
            cli.main([command, "--help"])
        except SystemExit as stop:
            assert stop.code == 0
        assert command in capsys.readouterr().out


def test_its_python_runs():
    """The examples are parsed; names they import exist."""
    blocks = re.findall(r"```python\n(.*?)```", readme.README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for module, names in re.findall(r"^from (vtprune[\w.]*) import (.+)$", block, re.MULTILINE):
            loaded = __import__(module, fromlist=["_"])
            assert all(hasattr(loaded, name.strip()) for name in names.split(","))
