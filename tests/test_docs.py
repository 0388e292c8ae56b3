"""What the documents tell people to type works: commands and their options exist, examples in Python run."""

import ast
import os
import re
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from skimage import data as photographs

from showo2.tiny.words import COLOURS

ROOT = Path(__file__).resolve().parents[1]
# The log tells of commands as they were.
DOCUMENTS = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs/log.md"})]
COMMAND = re.compile(r"python -m (?P<module>[a-z0-9_.]+)(?P<arguments>[^\n`]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
# What has to be said before --help tells of all options.
FIRST = {"jobs.train": "tiny-stage2", "showo2.shards": "show"}
# Read before the options, and tested with their jobs.
ELSEWHERE = {("jobs.train", "--list"), ("jobs.train", "--through"), ("jobs.curate", "--check")}


def commands() -> dict[str, set[str]]:
    """The options that documents give to each `python -m MODULE`."""
    found: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for command in COMMAND.finditer(document.read_text().replace("\\\n", " ")):
            found.setdefault(command["module"], set()).update(OPTION.findall(command["arguments"]))
    return found


def examples(document: str) -> list[str]:
    """The Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def run(source: str, names: dict) -> None:
    """Execute an example statement by statement; an expression with a string in a comment has that value."""
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        code = ast.get_source_segment(source, statement)
        if not isinstance(statement, ast.Expr):
            exec(code, names)  # noqa: S102 (our own documents)
            continue
        value = eval(code, names)
        if promised := re.search(r'# (".*?")', lines[statement.end_lineno - 1]):
            assert value == ast.literal_eval(promised[1]), code


@pytest.mark.parametrize("module", sorted(module for module, options in commands().items() if options))
def test_options_exist(module, monkeypatch, capsys):
    wanted = {option for option in commands()[module] if (module, option) not in ELSEWHERE}
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", [module, *filter(None, [FIRST.get(module)]), "--help"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("ignore", RuntimeWarning)  # The module may have been imported by another test.
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    assert wanted <= {*OPTION.findall(capsys.readouterr().out)}


def test_modules_exist():
    for module in commands():
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_links_between_documents():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [example] = examples("docs/tiny.md")
    run(example, {})
    assert os.listdir(tmp_path) == ["scene.png"]


def test_the_readmes_pipeline():
    [example] = examples("README.md")
    names = {}
    run(example.replace("runs/stage2/export", "tiny:reference"), names)
    assert names["answer"] in COLOURS


def test_pictures_clips_and_stories():
    names = {}
    for example in examples("docs/generation.md"):
        run(example.replace("RUN/export", "tiny:reference"), names)
    assert len(names["frames"]) == 17
    assert names["answer"] == "left"
    assert len(names["told"]) > 1


def test_own_pictures_become_a_tar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("my_pictures")
    os.mkdir("photographs")
    shutil.copy(Path(photographs.__file__).parent / "rocket.jpg", "my_pictures")
    [example] = examples("docs/curation.md")
    run(example, {})
    assert os.path.getsize("photographs/00000.tar") > os.path.getsize("my_pictures/rocket.jpg")
