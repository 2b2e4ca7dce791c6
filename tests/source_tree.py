"""The project's own source files as modules: their imports, and the private names of other packages that they use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("svg_compile", "kernels", "passes")
# Public methods of named tuples, whose names begin with an underscore so as not to be fields.
_NAMED_TUPLE = {"_asdict", "_replace", "_fields", "_make"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module; the folders kernels and passes are outside of the package's own folder."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "svg_compile" else ("svg_compile", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


def imported(tree: ast.AST, types_too: bool) -> set[str]:
    """Dotted names that a file imports anywhere in it; those under TYPE_CHECKING only if `types_too`."""
    names: set[str] = set()
    for node in _nodes(tree, types_too):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def import_graph(types_too: bool) -> dict[str, set[str]]:
    """Module -> the project's modules that it imports at import time or in a function."""
    known = modules()
    graph = {}
    for name, path in known.items():
        targets = set()
        for target in imported(ast.parse(path.read_text()), types_too):
            # `from svg_compile.layout import VideoLayout` imports the module that holds the name.
            owner = target if target in known else target.rpartition(".")[0]
            targets |= {owner} & known.keys()
        graph[name] = targets - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The sets of modules of which each reaches all others."""
    reached = {name: _reached(graph, name) for name in graph}
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return {circle for circle in found if len(circle) > 1}


def private_names(text: str, defined: frozenset[str]) -> set[str]:
    """The private names of other packages in a source file.

    A part of a dotted name of torch or triton that begins with an underscore (`torch._dynamo`), imported or spelled
    out; an attribute of anything (`func._schema`), or a string that is such a name (`getattr(model, "_orig_mod")`),
    that the project itself does not define. Operators of ATen are no Python API: `aten._to_copy` is none of them.
    """
    tree = ast.parse(text)
    found = {name for name in imported(tree, types_too=True) if _of_torch(name) and any(map(_private, name.split(".")))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr):
            root = ast.unparse(node.value)
            operator = root in ("aten", "torch.ops.aten")
            if not operator and (node.attr not in defined or _of_torch(root)):
                found.add(f"{root}.{node.attr}" if _of_torch(root) else f".{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"_[a-z]\w*", node.value) and node.value not in defined:
                found.add(f".{node.value}")
    return found


@cache
def names_defined() -> frozenset[str]:
    """Every function, class, variable, parameter and attribute of `self` that the project's files define."""
    found: set[str] = set(_NAMED_TUPLE)
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    found.add(node.attr)
    return frozenset(found)


def _nodes(tree: ast.AST, types_too: bool) -> Iterator[ast.AST]:
    yield tree
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test) and not types_too:
        for node in tree.orelse:
            yield from _nodes(node, types_too)
        return
    for node in ast.iter_child_nodes(tree):
        yield from _nodes(node, types_too)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _of_torch(name: str) -> bool:
    return name.split(".")[0] in ("torch", "triton")
