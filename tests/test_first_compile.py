"""The first look-up of the backend, by several threads at once, in a new process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.metadata
import threading
import time
import torch
# Threads that look the entry point up meet between its loading and its registration.
real = importlib.metadata.EntryPoint.load
def slow(self):
    found = real(self)
    time.sleep(0.05 if found is not None else 0)
    return found
importlib.metadata.EntryPoint.load = slow
barrier, results = threading.Barrier(6), []
def first():
    barrier.wait()
    try:
        results.append(torch.compile(lambda x: x + 1, backend="svg", options={"dense_steps": 0}) is not None)
    except BaseException as error:
        results.append(repr(error))
threads = [threading.Thread(target=first) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert results == [True] * 6, results
from svg_compile.backend import svg
assert callable(svg) and torch._dynamo.lookup_backend("svg") is svg
(entry,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="svg")
assert entry.load() is svg
"""


def test_several_threads_may_look_the_backend_up_at_once() -> None:
    result = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
