"""Imports go down the floors only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jaxlm"
# From the ground up; what stands on one line is one floor, whose parts may import each other.
FLOORS = [
    ("errors", "typing"),
    ("initializers",),
    ("module",),
    ("sharding", "taps", "cost"),
    ("ops",),
    ("layers",),
    ("mixers", "blocks", "relay"),
    ("models", "memory", "data", "tasks"),
    ("codec", "files", "session", "generate", "speculate"),
    ("train",),
    ("analysis", "lenses", "compress", "bridges", "plan"),
    ("papers", "theory"),
    ("cli", "__main__"),
]
LEVEL = {part: level for level, parts in enumerate(FLOORS) for part in parts}
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """'ops' of jaxlm/ops/scan.py, 'module' of jaxlm/module.py."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(tree: ast.AST) -> set[tuple[str, int]]:
    """Parts of jaxlm that a module imports anywhere, functions included, with the line."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            whole = node.module == "jaxlm"
            names = [f"jaxlm.{a.name}" for a in node.names] if whole else [node.module or ""]
        found |= {(n.split(".")[1], node.lineno) for n in names if n.startswith("jaxlm.")}
    return found


def breaches(source: str, floor: str) -> list[str]:
    level = LEVEL[floor]
    return [
        f"line {line}: {floor} imports {name}"
        for name, line in sorted(imported(ast.parse(source)))
        if LEVEL.get(name, len(FLOORS)) > level
    ]


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_go_down(path):
    if path == ROOT / "__init__.py":
        return  # the front door sees every floor
    assert part(path) in LEVEL, f"{part(path)}: say on which floor it stands"
    assert not breaches(path.read_text(), part(path))


def test_data_imports_no_model_and_no_jax():
    for path in sorted((ROOT / "data").glob("*.py")):
        text = ast.parse(path.read_text())
        assert not {n for n, _ in imported(text)} - {"data", "errors"}, path
        names = {a.name.split(".")[0] for n in ast.walk(text) if isinstance(n, ast.Import) for a in n.names}
        names |= {(n.module or "").split(".")[0] for n in ast.walk(text) if isinstance(n, ast.ImportFrom)}
        assert "jax" not in names, path


def test_a_breach_is_seen():
    assert breaches("from jaxlm.mixers import LEM", "ops")
    assert breaches("def f():\n    import jaxlm.train.loop", "layers")
    assert breaches("from jaxlm import train", "models")
    assert not breaches("from jaxlm.ops.scan import scan\nimport jax", "mixers")


def test_only_the_command_line_prints():
    for path in FILES:
        if LEVEL.get(part(path), -1) < LEVEL["cli"]:
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path
