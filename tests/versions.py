"""The Pythons, torches and diffusers that svg_compile is tested with; run by `make check-constraints` and
`make test-versions`, which install uv. uv uses the Pythons on PATH, and downloads the others. An environment lies in
`.venvs/NAME` and is kept (about 6 GB with torch's CUDA libraries).

    python tests/versions.py resolve          whether constraints.txt resolves on every Python; installs nothing
    python tests/versions.py test [NAME ...]  make the environments and run the core tests in each
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venvs"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Sparse on this Python and torch, exact at density 1, and each assumption about torch's internals by itself.
CORE = (
    "test_compat.py",
    "test_backend.py",
    "test_passes.py",
    "test_find_attention.py",
    "test_token_axes.py",
    "test_models.py",
    "test_schedule.py",
    "test_finding_the_timestep.py",
    "test_attach.py",
    "test_attached_pipelines.py",
    "test_regions.py",
    "test_cpu_attention.py",
    "test_triton_interpreter.py",
)


@dataclass(frozen=True)
class Versions:
    """One environment: a Python, and what differs from constraints.txt in it."""

    python: str
    torch: str
    triton: str
    diffusers: str | None = None

    @property
    def name(self) -> str:
        return f"py{self.python}-torch{self.torch}" + (f"-diffusers{self.diffusers}" if self.diffusers else "")

    def constraints(self) -> str:
        """constraints.txt with this environment's versions in the place of its own."""
        ours = {"torch": self.torch, "triton": self.triton}
        if self.diffusers:
            ours["diffusers"] = self.diffusers
        # torch 2.11 wants an older setuptools; an older diffusers an older hub and transformers.
        free = {"setuptools"} | ({"huggingface_hub", "transformers", "tokenizers"} if self.diffusers else set())
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        kept = [line for line in lines if line.split("==")[0] not in ours.keys() | free]
        return "\n".join([*kept, *(f"{name}=={version}" for name, version in ours.items())]) + "\n"


MATRIX = (
    Versions("3.11", "2.11.0", "3.6.0"),
    Versions("3.10", "2.13.0", "3.7.1"),
    Versions("3.12", "2.13.0", "3.7.1", diffusers="0.40.0"),
    Versions("3.11", "2.15.0", "3.9.0"),
    Versions("3.13", "2.15.0", "3.9.0"),
)


def resolve() -> int:
    """Whether constraints.txt can be installed from the package registry alone; prints a line a Python."""
    failed = 0
    for python in PYTHONS:
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", python]
        command += ["--python-platform", "x86_64-unknown-linux-gnu", "--all-extras"]
        command += ["-c", "constraints.txt", "pyproject.toml"]
        done = run(command, capture_output=True)
        found = re.findall(r"^(torch|triton|diffusers)==(\S+)", done.stdout, re.M)
        what = ", ".join(f"{name} {version}" for name, version in sorted(found))
        print(f"Python {python}: {what if done.returncode == 0 else done.stderr.strip()}", flush=True)
        failed += done.returncode != 0
    print(f"{len(PYTHONS) - failed} passed, {failed} failed")
    return failed


def test(versions: Versions) -> int:
    """Make one environment, where it is not there, and run the core tests in it."""
    folder = ENVIRONMENTS / versions.name
    python = folder / "bin" / "python"
    ENVIRONMENTS.mkdir(exist_ok=True)
    constraints = ENVIRONMENTS / f"{versions.name}.txt"
    constraints.write_text(versions.constraints())
    if not python.exists():
        run(["uv", "venv", "--quiet", "--python", versions.python, str(folder)], check=True)
    install = ["uv", "pip", "install", "--quiet", "--python", str(python), "-c", str(constraints)]
    run([*install, "setuptools>=77"], check=True)
    run([*install, "--no-build-isolation", "-e", ".[test]"], check=True)
    tests = [f"tests/{name}" for name in CORE]
    return run([str(python), "-m", "pytest", "-q", "-m", "not slow and not gpu", *tests]).returncode


def run(command: list[str], *, check: bool = False, capture_output: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout; uv is the one of the environment that runs this file."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # pip's own settings (local wheels, a cap on torch) are no part of what a user has.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment["PATH"] = path
    return subprocess.run(command, cwd=ROOT, env=environment, check=check, capture_output=capture_output, text=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["resolve"] and not arguments[1:]:
        return min(1, resolve())
    if arguments[:1] == ["test"]:
        names = [versions.name for versions in MATRIX]
        if unknown := set(arguments[1:]) - set(names):
            raise SystemExit(f"no such environment: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
        results = {v.name: test(v) for v in MATRIX if not arguments[1:] or v.name in arguments[1:]}
        for name, code in results.items():
            print(f"{name}: {'passed' if code == 0 else f'FAILED ({code})'}")
        return min(1, sum(code != 0 for code in results.values()))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
