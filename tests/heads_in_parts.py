"""Several processes that each hold some heads of a layer, played one after another in this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from svg_compile.kernels import spread as spread_module

Result = TypeVar("Result")


def in_parts(ranks: int, run: Callable[[int], Result], monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """The results of `run(rank)` of each of `ranks` processes whose tensors are gathered from all of them.

    Everything runs twice: first each process gathers copies of its own tensors and these are noted, then it gets the
    noted ones of all. So no tensor that is gathered may depend on one gathered before.
    """
    noted: list[list[Tensor]] = []

    def note(tensor: Tensor, group: str, count: int) -> Tensor:
        assert count == ranks
        noted[-1].append(tensor.clone())
        return torch.cat([tensor] * ranks)

    monkeypatch.setattr(spread_module, "all_gathered", note)
    for rank in range(ranks):
        noted.append([])
        run(rank)
    assert len({len(each) for each in noted}) == 1
    assert noted[0]

    def results(rank: int) -> Result:
        calls = iter(zip(*noted, strict=True))

        def give(tensor: Tensor, group: str, count: int) -> Tensor:
            parts = next(calls)
            torch.testing.assert_close(parts[rank], tensor, rtol=0, atol=0, equal_nan=True)
            return torch.cat(parts)

        monkeypatch.setattr(spread_module, "all_gathered", give)
        return run(rank)

    return [results(rank) for rank in range(ranks)]
