"""The files around the code agree with it: workflow and version matrix, site and pages, links, make's own help."""

from __future__ import annotations

import ast
import importlib
import re
import tokenize
from pathlib import Path
from typing import Any

import pytest
import yaml

import svg_compile.errors
import versions

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
    + [path for folder in ("passes", "kernels", "svg_compile", "examples") for path in (ROOT / folder).rglob("*.md")]
)


def read(name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(found, dict)
    return found


def test_the_workflow_runs_the_version_matrix() -> None:
    job = read(".github/workflows/test.yml")["jobs"]["versions"]
    assert job["strategy"]["matrix"]["environment"] == [each.name for each in versions.MATRIX]
    assert any("tests/versions.py test ${{ matrix.environment }}" in step.get("run", "") for step in job["steps"])


def test_the_workflow_runs_targets_that_exist() -> None:
    jobs = read(".github/workflows/test.yml")["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    asked = {name for command in commands for name in re.findall(r"make (\S+)", command)}
    assert asked
    assert asked <= targets()


def test_python_versions_are_the_same_everywhere() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert tuple(re.findall(r"Python :: (3\.\d+)", settings)) == versions.PYTHONS
    assert f'requires-python = ">={versions.PYTHONS[0]}"' in settings
    assert {each.python for each in versions.MATRIX} == set(versions.PYTHONS)


def test_faults_of_the_mutation_check_are_of_the_sources_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "mutation")
    faults = importlib.import_module("run").MUTANTS
    assert len(faults) > 50
    assert [fault.name for fault in faults if fault.old not in (ROOT / fault.file).read_text()] == []


def test_every_page_is_in_the_site() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    listed = pages(read("mkdocs.yml")["nav"])
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == there
    assert len(listed) == len(there)


def test_every_public_name_is_in_the_api_reference() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    shown = set(re.findall(r"^::: svg_compile\.(\w+)", page, re.M))
    # Its page shows the whole module.
    errors = {name for name in svg_compile.__all__ if hasattr(svg_compile.errors, name)}
    assert shown - {"errors"} == set(svg_compile.__all__) - errors
    assert "errors" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


def test_make_help_names_every_target_that_a_person_types() -> None:
    shown = set(re.findall(r'@echo "make (\S+) ', (ROOT / "Makefile").read_text()))
    parts = {
        "types",
        "laid-out",
        *(f"bench-{name}" for name in ("cpu-page", "gpu-attention", "gpu-models", "gpu-page")),
    }
    assert targets() - shown <= {"help", "clean"} | parts
    assert shown <= targets()


@pytest.mark.parametrize("folder", ["passes", "svg_compile/runtime", "svg_compile/regional"])
def test_a_folder_that_is_hard_to_enter_has_a_page_of_one_screen(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    assert 10 < len(text.splitlines()) <= 40
    # Files that it names are there.
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    assert named
    missing = [name for name in named if not any((place / name).exists() for place in (ROOT / folder, ROOT))]
    assert missing == []


# Words for which the field has better ones: next to, alongside, visible, printed, observed, query, its own, returns.
_VAGUE = re.compile(r"\b(beside|theirs|mine|shown|spoil\w*|pins|comes? back)\b", re.IGNORECASE)


def test_docstrings_and_comments_use_the_terms_of_the_field() -> None:
    found = []
    for folder in ("svg_compile", "passes", "kernels", "tests", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            with path.open() as file:
                lines = [
                    (token.start[0], token.string)
                    for token in tokenize.generate_tokens(file.readline)
                    if token.type == tokenize.COMMENT
                ]
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                    lines += [(node.body[0].lineno + more, line) for more, line in enumerate(text.split("\n"))]
            # A name in backquotes is a name.
            found += [
                f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
                for number, line in lines
                if _VAGUE.search(re.sub(r"`[^`]*`", "", line))
            ]
    assert not found, "say it in the field's terms (CONTRIBUTING.md, glossary):\n" + "\n".join(found)


def test_pages_use_the_terms_of_the_field() -> None:
    found = []
    for path in (path for path in PAGES if path.name != "CHANGELOG.md" and "weights" not in path.parts):
        # Code, names in backquotes and the targets of links are names.
        text = re.sub(
            r"```.*?```|`[^`]*`|\]\([^)]*\)", lambda code: "\n" * code[0].count("\n"), path.read_text(), flags=re.S
        )
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(text.split("\n"), 1)
            if _VAGUE.search(line)
        ]
    assert not found, "say it in the field's terms (CONTRIBUTING.md, glossary):\n" + "\n".join(found)


def test_functions_are_short() -> None:
    """At most 60 lines, but for kernels, which are one function each; ruff counts their branches."""
    folders = ("passes", "svg_compile", "examples", "tests")
    long = [
        f"{path.relative_to(ROOT)}: {node.name}, {length} lines"
        for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := node.end_lineno - node.lineno + 1) > 60  # type: ignore[operator]
    ]
    assert long == []


def targets() -> set[str]:
    """The targets of the Makefile that are names."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
