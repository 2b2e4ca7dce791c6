"""What every test shares: import paths, threads and Hypothesis' profile."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent

# The checkout's `kernels` and `passes` are packages of svg_compile; as top-level names they would shadow others.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != TESTS.parent]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, one of several processes would run it alone."""
    items.sort(key=lambda item: "test_triton_interpreter" not in item.nodeid)


# Workers share two cores.
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="module", autouse=True)
def collect_only_what_a_file_makes() -> Iterator[None]:
    """Keep Python's collector from walking through torch, diffusers and the leftovers of other files each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Compile as a new process would, and under no_grad, which sparse attention asks for."""
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.fixture
def no_schedule_left() -> Iterator[None]:
    """Fails where a test leaves a schedule registered; name it before `fresh_dynamo`, whose reset frees models."""
    from svg_compile.runtime.dispatcher import registered

    before = registered()
    yield
    gc.collect()
    assert registered() == before, "a test left a schedule registered"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The timesteps that were read on the host."""
    from svg_compile.runtime import timestep

    values: list[float] = []
    real = timestep._read

    def read(tensor: torch.Tensor) -> tuple[float, ...]:
        found = real(tensor)
        values.append(found[0])
        return found

    monkeypatch.setattr(timestep, "_read", read)
    return values
