"""A wheel, installed away from the checkout, works by its entry point alone and claims no other top-level name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import svg_compile
from svg_compile.kernels import ops

ROOT = Path(__file__).resolve().parent.parent

USE = """
import sys, torch
assert "svg_compile" not in sys.modules
class Attend(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = torch.nn.Conv3d(4, 32, 1)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2).unflatten(-1, (2, 16)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)
options = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "strict": True, "on_error": "raise"}
with torch.no_grad():
    out = torch.compile(Attend(), backend="svg", options=options)(torch.randn(1, 4, 5, 7, 3))
import importlib.util, svg_compile
print(out.shape, svg_compile.__file__)
assert not svg_compile.__file__.startswith(CHECKOUT), svg_compile.__file__
assert importlib.util.find_spec("passes") is None
assert importlib.util.find_spec("kernels").origin.endswith("hub_kernels/kernels/__init__.py")
import kernels
assert kernels.WHOSE == "the hub's"
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("svg_compile", "passes", "kernels", "tests", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"), "*.tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution alone, as an index's users may build it."""
    source = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"), "*.whl")


def build(what: str, source: Path, out: Path, pattern: str) -> Path:
    command = [sys.executable, "-m", "build", f"--{what}", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = out.glob(pattern)
    return path


def test_the_source_distribution_holds_no_half_of_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert not [name for name in names if name.startswith(("tests", "docs", "examples"))]
    assert {"CHANGELOG.md", "constraints.txt", "passes/__init__.py", "kernels/cpu/band.py"} <= set(names)


def test_the_version_stands_in_one_place(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == svg_compile.__version__
    assert "\nversion =" not in (ROOT / "pyproject.toml").read_text().partition("[tool.")[0]


def test_error_texts_name_packages_that_can_be_installed() -> None:
    """The project is on no index: `pip install 'svg-compile[plot]'` would find no package, or a foreign one."""
    for folder in ("svg_compile", "passes", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "install 'svg-compile" not in path.read_text(), path


def test_the_wheel_holds_one_top_level_name_and_every_module(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"svg_compile"}
    for folder, inside in (
        ("svg_compile", "svg_compile"),
        ("passes", "svg_compile/passes"),
        ("kernels", "svg_compile/kernels"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{inside}/{path.relative_to(ROOT / folder)}" in names
    # Data files of the package.
    sources = (".py", ".pyc", ".md")
    data = [path for path in (ROOT / "svg_compile").rglob("*") if path.is_file() and path.suffix not in sources]
    assert {path.suffix for path in data} >= {".j2", ".css"}
    assert {path.relative_to(ROOT).as_posix() for path in data} <= set(names)
    assert "svg_compile/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_every_kernel_is_in_the_hash_that_inductor_keys_its_caches_by() -> None:
    hashed = {path.relative_to(ROOT) for path in map(Path, ops.source_files()) if path.is_relative_to(ROOT)}
    assert hashed == {
        *(path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py")),
        Path("svg_compile/mask.py"),
        Path("svg_compile/layout.py"),
    }
    assert 0 <= ops.ABI < 2**63


def test_the_wheel_works_by_entry_point_alone_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    # Many machines also have Hugging Face's package `kernels`.
    hub = tmp_path / "hub_kernels" / "kernels"
    hub.mkdir(parents=True)
    (hub / "__init__.py").write_text('WHOSE = "the hub\'s"\n')
    # The editable install of the checkout must not answer in the wheel's place: take only its dependencies.
    code = (
        "import sys\n"
        f"CHECKOUT = {str(ROOT)!r}\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', str(f))]\n"
        f"sys.path[:0] = [{str(site)!r}, {str(hub.parent)!r}]\n" + USE
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, 2, 105, 16])" in result.stdout
