"""Build the source distribution and the wheel, check both, and use the wheel as a user would; `make release-check`.

    python tests/release.py FOLDER        the distributions are left in FOLDER

The wheel is built from the unpacked source distribution. It is installed, with its dependencies, into a fresh
environment outside of the checkout, and there it compiles a small model by the backend's name alone, sparse.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Run in the fresh environment: the model's attention must be rewritten (strict), and not be dense attention.
SMOKE = """
import importlib.metadata, sys, torch
class Attend(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = torch.nn.Conv3d(4, 32, 1)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2).unflatten(-1, (2, 16)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)
model, x = Attend(), torch.randn(1, 4, 5, 7, 3)
options = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "strict": True, "on_error": "raise"}
with torch.no_grad():
    dense = model(x)
    exact = torch.compile(model, backend="svg", options=options | {"density": 1.0})(x)
    torch._dynamo.reset()
    sparse = torch.compile(model, backend="svg", options=options | {"density": 0.2})(x)
torch.testing.assert_close(exact, dense)
assert (sparse - dense).abs().max() > 1e-3, "nothing was left out"
import svg_compile
assert svg_compile.__file__.startswith(sys.prefix), svg_compile.__file__
assert svg_compile.explain(model, x, options=options).to_html().startswith("<!doctype html>")
print("svg-compile", importlib.metadata.version("svg-compile"), "on torch", torch.__version__, "is sparse")
"""


def build(out: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # Without --sdist or --wheel, build makes the wheel from the source distribution.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def use(wheel: Path, folder: Path) -> None:
    """Install the wheel into a fresh environment under `folder` and compile a model there."""
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = folder / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), "numpy", str(wheel))
    run(str(python), "-P" if sys.version_info >= (3, 11) else "-I", "-c", SMOKE, cwd=folder)
    run(str(folder / "venv" / "bin" / "svg-compile"), "--version", cwd=folder)


def run(*command: str, cwd: Path = ROOT) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(command, cwd=cwd, env=environment, check=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    out = Path(arguments[0]).resolve()
    source, wheel = build(out)
    run(sys.executable, "-m", "twine", "check", "--strict", str(source), str(wheel))
    with tempfile.TemporaryDirectory() as folder:
        use(wheel, Path(folder))
    print(f"{source}\n{wheel}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
