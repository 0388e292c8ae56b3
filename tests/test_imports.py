"""Imports run downward only: jobs, pipelines, then showo2 from its recipes to its embedded default."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Top to bottom. A module may import its own layer and those below; train, generate and evaluate also not each other.
LAYERS = (
    ("benchmarks",),
    ("jobs",),
    ("pipelines",),
    ("showo2.recipes",),
    ("showo2.train", "showo2.generate", "showo2.evaluate"),
    ("showo2.data",),
    ("showo2.model",),
    ("showo2.shards.__main__",),
    ("showo2.compat",),
    ("showo2.sequence",),
    ("showo2.flow", "showo2.vae", "showo2.text"),
    ("showo2.store",),
    ("showo2.shards",),
    ("showo2.frame_vae",),
    ("showo2.hashing",),
    ("showo2.tiny",),
    ("showo2.hardware", "showo2.movies"),
)
DEPTH = {package: depth for depth, layer in enumerate(LAYERS) for package in layer}
FORBIDDEN_IN_SHOWO2 = ("ray", "jobs", "pipelines", "benchmarks", "tests")


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the project."""
    files = [path for top in ("benchmarks", "jobs", "pipelines", "showo2") for path in (ROOT / top).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path) -> set[str]:
    """Every dotted name that the file imports, also inside functions; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package(name: str) -> str | None:
    """The layer's package that a dotted name belongs to, or None for the world outside (and for `showo2` itself)."""
    parts = name.split(".")
    return next((known for n in (3, 2, 1) if (known := ".".join(parts[:n])) in DEPTH), None)


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_downward(name):
    own = package(name)
    assert own is not None or name == "showo2", f"{name} has no layer: add its package to LAYERS"
    for imported in imports(MODULES[name]):
        other = package(imported)
        if own is None or other is None or other == own:
            continue
        assert DEPTH[other] > DEPTH[own], f"{name} imports {imported}, which is not below it"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.split(".")[0] == "showo2"))
def test_the_model_knows_nothing_of_ray(name):
    bad = {other for other in imports(MODULES[name]) if other.split(".")[0] in FORBIDDEN_IN_SHOWO2}
    assert not bad, f"{name} imports {sorted(bad)}"
