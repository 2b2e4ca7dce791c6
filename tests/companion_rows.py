"""The companions of docs/companions.md that diffusers, accelerate, peft and cache-dit put around a transformer.

Each row is applied to toys of the models that it supports, and run whole and by blocks: see `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from companions import STEPS, Beside, Context, alone, beside, eager, one_branch, timestep_of

Put = Callable[[Any], None]


def _deeper(case: models.Case, **layers: int) -> models.Case:
    """A case with more blocks, as many of each kind: caches keep the first one of a kind."""
    return replace(case, build=partial(case.build, **layers), video_sites=sum(layers.values()))


# The models of the table, by the name that it has for them.
MODELS: Mapping[str, models.Case] = {
    "Wan": models.case("wan"),
    "HunyuanVideo": _deeper(models.case("hunyuan_video"), num_layers=2, num_single_layers=2),
    "CogVideoX": models.case("cogvideox_5b"),
    "LTX": models.case("ltx_video"),
}


@dataclass(frozen=True)
class Companion:
    """A row of the table: a companion's name, the function that applies it to a model, and a note for the reader.

    context: a context manager around each step. changes: True if the companion changes the model's output. alone: True
    if it keeps attention out of all graphs, so that this package compiles it by itself. recompiles: the recompile
    limit that it needs, if above Dynamo's default. without: the reason for leaving a model out of the tests, by the
    model's name.
    """

    name: str
    put: Put
    note: str = ""
    context: Context = one_branch
    changes: bool = False
    alone: bool = False
    recompiles: int = 8
    without: Mapping[str, str] = field(default_factory=dict)

    def models(self) -> tuple[str, ...]:
        return tuple(name for name in MODELS if name not in self.without)

    def built(self, model: str) -> Any:
        """A model of the table that has this companion."""
        made = MODELS[model].build()
        self.put(made)
        return made


def check(companion: Companion, name: str, how: str, thorough: bool = True) -> None:
    """Check a model with its companion, "whole" or "blocks": the same output as without this backend, and sparse.

    The compiled model attends over the video as often as the eager one, on the right grid, dense at the requested steps
    and sparse at the others. At density 1 its output equals the eager model's. Dynamo compiles no more graphs than
    for another backend, except the one graph for attention that is compiled by itself.
    thorough: also at density 0.3, the output equals that with the grid given.
    """
    with torch._dynamo.config.patch(recompile_limit=companion.recompiles):
        _check(companion, name, how, thorough)


def _check(companion: Companion, name: str, how: str, thorough: bool) -> None:
    case = MODELS[name]
    inputs, context = case.inputs(1, case.grid), companion.context
    build = partial(companion.built, name)
    expected = eager(build(), inputs, case, context)
    if companion.changes:
        assert not all(map(torch.equal, expected.outputs, eager(case.build(), inputs, case).outputs))
    full = beside(build(), how, inputs, context, dense_steps=1)
    _check_run(full, case)
    assert full.same(expected.outputs)
    assert full.dense == expected.at_first > 0
    assert full.sparse == expected.attentions - expected.at_first > 0
    assert full.graphs <= alone(build(), how, inputs, context) + companion.alone
    if thorough:
        found, told = (
            beside(build(), how, inputs, context, density=0.3, **more) for more in ({}, {"layout": layout(case)})
        )
        _check_run(found, case)
        assert found.same(told.outputs)
        assert not found.same(expected.outputs)


def _check_run(run: Beside, case: models.Case) -> None:
    assert run.said == []
    assert {grid[:5] for forward in run.forwards for grid in forward.grids} == {
        (*case.grid, case.text_len, case.text_first)
    }


def layout(case: models.Case) -> tuple[Any, ...]:
    """The option that tells the grid of a case."""
    return (*case.grid, case.text_len, "first" if case.text_first else "last") if case.text_len else case.grid


def cache(name: str, **options: Any) -> Put:
    def enable(model: Any) -> None:
        from diffusers import hooks

        if not hasattr(hooks, name):
            pytest.skip(f"this diffusers has no {name}")
        model.enable_cache(getattr(hooks, name)(**options))

    return enable


def lora(model: Any) -> None:
    peft = pytest.importorskip("peft")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))


def layerwise_casting(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def group_offload(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def block_offload(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def model_offload(model: Any) -> None:
    pytest.importorskip("accelerate").cpu_offload_with_hook(model, execution_device=torch.device("cpu"))


def sequential_offload(model: Any) -> None:
    pytest.importorskip("accelerate").cpu_offload(model, execution_device=torch.device("cpu"))


NOW = [0.0]


def telling_the_time(model: Any, step: int) -> Any:
    NOW[0] = timestep_of(step)
    return one_branch(model, step)


def telling_the_step(model: Any, step: int) -> Any:
    return model.cache_context("cond", step_index=step, sigma=1.0 - 0.2 * step, num_inference_steps=STEPS)


def _video(model: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    video = kwargs["hidden_states"]
    if video.dim() == 3:
        # Tokens [B, N, C], with their grid.
        grid = [kwargs[name] for name in ("num_frames", "height", "width")]
        video = video.unflatten(1, grid).movedim(-1, 1)
    return list(video)


def skipped(model: Any, **which: bool) -> None:
    from diffusers import LayerSkipConfig
    from diffusers.hooks import apply_layer_skip

    # Each model has its blocks in a list of its own; the last one may be of another kind.
    (name, *_) = (name for name, child in model.named_children() if name in ("blocks", "transformer_blocks"))
    apply_layer_skip(model, LayerSkipConfig(indices=[1], fqn=name, **which))


def cache_dit(model: nn.Module) -> None:
    library = pytest.importorskip("cache_dit")
    config = library.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=0.5,
        max_warmup_steps=1,
        num_inference_steps=STEPS,
        enable_separate_cfg=False,
    )
    library.enable_cache(model, cache_config=config)


PAB = dict(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(100, 800),
    current_timestep_callback=lambda: 500,
)
# Attention is computed anew at every second step below timestep 900, and reused between.
FASTER = dict(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(-1, 900),
    current_timestep_callback=lambda: NOW[0],
    attention_weight_callback=lambda _: 0.3,
    is_guidance_distilled=True,
)
COMPANIONS: tuple[Companion, ...] = (
    Companion("LoRA", lora, "loaded before or after the compile (which it then repeats)", changes=True),
    Companion(
        "TaylorSeer",
        cache("TaylorSeerCacheConfig", cache_identifiers=[r".*\.attn1?"], disable_cache_before_step=2),
        "name the attentions in `cache_identifiers`: its own patterns know HunyuanVideo's alone",
        changes=True,
    ),
    Companion(
        "Pyramid Attention Broadcast",
        cache("PyramidAttentionBroadcastConfig", **PAB),
        "its skips recompile, with any backend: raise `torch._dynamo.config.recompile_limit`",
        changes=True,
        recompiles=64,
    ),
    Companion(
        "FirstBlockCache",
        cache("FirstBlockCacheConfig", threshold=0.2),
        "its hooks break the graph at every block: the blocks are served one by one",
        changes=True,
    ),
    Companion(
        "MagCache",
        cache("MagCacheConfig", num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS), max_skip_steps=1),
        "it switches compiling off in its blocks: their attention is compiled by itself",
        changes=True,
        alone=True,
    ),
    Companion("FasterCache", cache("FasterCacheConfig", **FASTER), context=telling_the_time, changes=True),
    Companion(
        "SeaCache",
        cache("SeaCacheConfig", threshold=50.0, raw_vision_callback=_video),
        "tell `cache_context` the step, the sigma and the number of steps, else it caches nothing; by "
        "blocks the first one runs as plain Python: its attention is compiled by itself",
        context=telling_the_step,
        changes=True,
        alone=True,
    ),
    Companion(
        "layerwise casting",
        layerwise_casting,
        "its hooks break the graph at every linear layer: attention is compiled by itself",
        changes=True,
        alone=True,
    ),
    Companion(
        "group offload, block level",
        block_offload,
        "its hooks break the graph at every block: the blocks are served one by one",
    ),
    Companion(
        "group offload, leaf level",
        group_offload,
        "its hooks break the graph at every layer: attention is compiled by itself",
        alone=True,
    ),
    Companion("model CPU offload", model_offload),
    Companion(
        "sequential CPU offload",
        sequential_offload,
        "its hooks break the graph at every layer: attention is compiled by itself",
        alone=True,
    ),
    Companion(
        "layer skip", skipped, "of whole blocks; diffusers 0.42 does not know Wan's attention alone", changes=True
    ),
    Companion("layer skip, feed-forward alone", partial(skipped, skip_attention=False), changes=True),
    Companion(
        "cache-dit", cache_dit, "1.5.3, `cache_dit.enable_cache(transformer, ...)` before the compile", changes=True
    ),
)


def companion(name: str) -> Companion:
    return next(each for each in COMPANIONS if each.name == name)
