"""Mutation check of the Triton kernels: each fault, inserted into a copy of the sources, must make a test fail.

    python tests/mutation/run.py [name ...]

Prints a table and exits with 1 if a mutant survives. It works on a copy: the checkout is not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attention_faults
import profile_faults
import repair_faults
import width_faults
from mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = (*attention_faults.MUTANTS, *profile_faults.MUTANTS, *repair_faults.MUTANTS, *width_faults.MUTANTS)


def copy_sources(target: Path) -> None:
    """The packages laid out as they are imported, and the tests."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "svg_compile", target / "src" / "svg_compile", ignore=skip)
    for package in ("kernels", "passes"):
        shutil.copytree(ROOT / package, target / "src" / "svg_compile" / package, ignore=skip)
    shutil.copytree(ROOT / "tests", target / "tests", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", target)


def is_noticed(mutant: Mutant) -> bool:
    """True if the tests fail on a copy with the fault."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        copy_sources(target)
        package = target / "src" / "svg_compile"
        file = package / mutant.file.removeprefix("svg_compile/")
        source = file.read_text()
        if mutant.old not in source:
            raise SystemExit(f"{mutant.name}: {mutant.file} has no {mutant.old!r}; bring the mutant up to date.")
        file.write_text(source.replace(mutant.old, mutant.new))
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(target / "src"), "OMP_NUM_THREADS": "1"}
        where = [sys.executable, "-c", "import svg_compile; print(svg_compile.__file__)"]
        imported = subprocess.run(where, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
        if not imported.startswith(str(package)):
            raise SystemExit(f"the tests would import {imported.strip()}, not the copy")
        tests = target / "tests" / "triton_interpreted" / mutant.tests
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
        run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        # A negative code is a crash, which a fault that reads or writes out of bounds may cause.
        if run.returncode > 1:
            raise SystemExit(f"{mutant.name}: the tests did not run\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
        return run.returncode != 0


def main(names: list[str]) -> int:
    """Run the mutants whose name contains one of `names`, all without names."""
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    survivors = 0
    print("| fault | file | tests | time |\n| --- | --- | --- | --- |", flush=True)
    for mutant in chosen:
        start = time.perf_counter()
        noticed = is_noticed(mutant)
        survivors += not noticed
        verdict = "noticed" if noticed else "SURVIVED"
        print(f"| {mutant.name} | {mutant.file} | {verdict} | {time.perf_counter() - start:.0f} s |", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
