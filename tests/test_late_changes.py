"""Changes after the import or the compile: to one dict of options, and to the SDPA that models call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import svg_compile
from lowering import kind, watch
from svg_compile.backend import svg
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "on_error": "raise"}
OWN = F.scaled_dot_product_attention

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def expected(density: Any) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(ToyVideoDiT(), backend="svg", options={**OPTIONS, "density": density})(latents())


@pytest.mark.parametrize("change", ["value", "inside", "added", "cleared"])
def test_one_dict_of_options_changed_between_compiles(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)
    before, after = {"inside": ([(0.0, 0.9)], [(0.0, 0.2)]), "added": (0.3, 0.2)}.get(change, (0.9, 0.2))
    after = 0.3 if change == "cleared" else after
    wanted = [expected(before), expected(after)]
    torch._dynamo.reset()
    model, options = ToyVideoDiT(), dict(OPTIONS)
    if change != "added":
        options["density"] = list(before) if isinstance(before, list) else before
    first = torch.compile(model, backend="svg", options=options)
    assert torch.equal(first(latents()), wanted[0])
    if change == "inside":
        options["density"][:] = after
    elif change == "cleared":
        del options["density"]
    else:
        options["density"] = after
    second = torch.compile(model, backend="svg", options=options)
    assert torch.equal(second(latents()), wanted[1])
    # The first one keeps its own, for shapes that come later, too.
    assert torch.equal(first(latents()), wanted[0])
    other = first(latents(frames=4))
    torch._dynamo.reset()
    again = torch.compile(model, backend="svg", options={**OPTIONS, "density": before})
    assert torch.equal(other, again(latents(frames=4)))


def test_equal_options_share_one_compile_and_the_callers_dict_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, kind)
    model, options = ToyVideoDiT(), {**OPTIONS, "density": [(0.0, 0.4)]}
    for given in (options, options, dict(options)):
        torch.compile(model, backend="svg", options=given)(latents())
    assert seen == ["sparse"]
    assert options == {**OPTIONS, "density": [(0.0, 0.4)]}


def test_a_backend_of_ones_own_may_call_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, kind)
    torch.compile(ToyVideoDiT(), backend=lambda graph, inputs: svg(graph, inputs, options=OPTIONS))(latents())
    assert seen == ["sparse"]


def patched(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
    """A dispatcher that hands everything to torch's own."""
    return OWN(query, key, value, **more)


@torch.compiler.allow_in_graph
def another(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
    """Computes something else, and is not traced through."""
    return OWN(query, key, value, **more) * 2


def call_by_name(*args: Any, **more: Any) -> Tensor:
    return F.scaled_dot_product_attention(*args, **more)


@pytest.mark.parametrize("attend", [patched, OWN, torch.ops.aten.scaled_dot_product_attention, call_by_name])
def test_a_replaced_sdpa_is_found_by_its_operator(attend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", patched)
    report = svg_compile.explain(ToyVideoDiT(attend=attend), latents(), options=OPTIONS)
    assert [site.rewritten for site in report.sites] == [True, True]
    found = svg_compile.bisect(ToyVideoDiT(attend=attend), (latents(),), options=OPTIONS, progress=False)
    assert (len(found.layers), found.floor) == (2, 0)


def test_a_replacement_that_stays_in_the_graph_is_not_taken_for_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", another)
    report = svg_compile.explain(ToyVideoDiT(attend=call_by_name), latents(), options=OPTIONS)
    assert report.sites == ()
    assert "another attention backend" in report.notes[0]


def test_it_may_be_replaced_before_the_backend_is_imported() -> None:
    program = """
import torch
own = torch.nn.functional.scaled_dot_product_attention
def patched(query, key, value, attn_mask=None, **more):
    return own(query, key, value, attn_mask=attn_mask, **more)
torch.nn.functional.scaled_dot_product_attention = patched
from toy import ToyVideoDiT, latents
import svg_compile
with torch.no_grad():
    report = svg_compile.explain(ToyVideoDiT(), latents(), options={"min_tokens": 0, "dense_layers": 0, "block": 8})
assert report.rewritten == 2, str(report)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
