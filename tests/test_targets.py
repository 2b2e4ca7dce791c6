"""Models named on the command line: their settings, and inputs as their classes' pipelines make them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import models
from svg_compile import SvgError
from svg_compile.targets import Request, cast, load, values
from svg_compile.targets.example_inputs import inputs_for
from svg_compile.targets.special_inputs import SPECIAL_INPUTS, Size
from svg_compile.zoo import CLASSES

TINY = ("num_attention_heads=2", "attention_head_dim=16", "num_layers=2", "ffn_dim=48", "text_dim=12", "freq_dim=16")


def test_values_are_json_where_they_can_be() -> None:
    told = values(["a=3", "b=[1,2]", "c=gelu", "d=True", "e=x=y", "f=null"])
    assert told == {"a": 3, "b": [1, 2], "c": "gelu", "d": True, "e": "x=y", "f": None}


# Toy configurations that the tests of the models have, by class; a class' first one.
TOYS = {case.build.args[0]: case for case in reversed(models.CASES) if isinstance(case.build, partial)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_the_inputs_of_every_class_run(name: str, dtype: torch.dtype) -> None:
    case = TOYS[name]
    model = case.build()
    cast(model, dtype)
    patch = 1 if name in ("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel") else 2
    frames = 2 * 3 if name == "CogVideoXTransformer3DModel" else 5
    size = Size(2, (frames, 7 * patch, 3 * patch), models.TEXT)
    with torch.no_grad():
        out = models.output(model(**inputs_for(model, size, dtype)))
    assert out.isfinite().all()


def test_special_inputs_are_of_known_classes() -> None:
    assert SPECIAL_INPUTS.keys() <= CLASSES.keys()


def test_a_class_that_is_not_known_says_what_it_needs() -> None:
    with pytest.raises(SvgError, match="module:function"):
        load("QwenImageTransformer2DModel", Request({"num_layers": 1}))


def test_modules_that_a_class_keeps_in_float32_stay_so() -> None:
    config = values(TINY)
    model = load("WanTransformer3DModel", Request(config, latents=(5, 14, 6), text=11, weights=True)).model
    assert model.blocks[0].attn1.to_q.weight.dtype is torch.bfloat16
    assert model.blocks[0].norm2.weight.dtype is torch.float32
    assert model.blocks[0].scale_shift_table.dtype is torch.float32
