"""The house's one direction of imports, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A module may import modules of its own layer and of the layers before it.
LAYERS = (
    {"errors"},
    {"mask"},
    {"layout"},
    {"config"},
    {"decisions"},
    {"_compat"},
    {"kernels"},
    {"functional"},
    {"passes"},
    {"inspection"},
    {"regional"},
    {"runtime"},
    {"inspection.recording"},
    {"backend"},
    {"inspection.dump_run", "inspection.bisection"},
    {"bench", "targets", "cli_checks"},
    {"cli"},
)


def layer(module: str) -> int:
    parts = module.removeprefix("svg_compile").removeprefix(".").split(".")
    for name in (".".join(parts[:2]), parts[0]):
        for depth, names in enumerate(LAYERS):
            if name in names:
                return depth
    return len(LAYERS)


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module; kernels and passes lie beside the package's own folder."""
    found = []
    for folder in ("svg_compile", "kernels", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "svg_compile" else ("svg_compile", *parts)
            found.append((".".join(parts), path))
    return [(name, path) for name, path in sorted(found) if name != "svg_compile.__init__"]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "svg_compile"}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_imports_run_one_way(module: str, path: Path) -> None:
    names = imported(path)
    for name in names:
        # Report's methods load their writer when they are called.
        facade = module == "svg_compile.decisions" and name.startswith("svg_compile.inspection.")
        if name.startswith("svg_compile.") and not facade:
            assert layer(name) <= layer(module), f"{module} imports {name}"
    assert not any(name.split(".")[0] == "diffusers" for name in names)
    private = {name for name in names if name.startswith(("torch._dynamo", "torch._guards", "torch._subclasses"))}
    allowed = module.startswith("svg_compile._compat.") or module == "svg_compile.bench.attention"
    assert not private or allowed, f"{module}: {private}"


def test_every_module_has_a_layer() -> None:
    assert [name for name, _ in modules() if layer(name) == len(LAYERS)] == []


def test_importing_svg_compile_loads_nothing_heavy() -> None:
    code = (
        "import sys, svg_compile; svg_compile.VideoLayout(2, 2, 2);"
        "print([m for m in ('torch._inductor', 'torch._dynamo', 'triton', 'diffusers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
