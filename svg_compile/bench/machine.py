"""The machine of a measurement: hardware, versions, commit, date, and a GPU's current clocks."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_PACKAGES = ("torch", "triton", "diffusers", "svg-compile")
_CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def machine(device: torch.device) -> dict[str, str | int]:
    """The conditions of a run, stored with its figures."""
    found: dict[str, str | int] = {"device": device.type, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        found["name"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda or f"ROCm {torch.version.hip}"
        found["cudnn"] = torch.backends.cudnn.version() or 0
        found["driver"] = _nvidia_smi("driver_version") or "unknown"
    else:
        found["name"] = f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"
        found["threads"] = torch.get_num_threads()
    found["commit"] = _commit()
    found["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return found


def clocks(device: torch.device, load: Callable[[], object]) -> str | None:
    """SM clock, memory clock, power and temperature of the GPU while it runs `load` again and again, with units.

    None where nvidia-smi does not answer. Asked while idle, a GPU would report its idle clocks.
    """
    if device.type != "cuda":
        return None
    with torch.no_grad(), ThreadPoolExecutor(1) as beside:
        load()
        asked = beside.submit(_nvidia_smi, ",".join(_CLOCKS))
        while not asked.done():
            load()
            torch.cuda.synchronize()
        return asked.result()


def _nvidia_smi(query: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the checkout that is measured, "+" where it was changed since; SVG_COMMIT says it elsewhere."""
    if "SVG_COMMIT" in os.environ:
        return os.environ["SVG_COMMIT"]
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
