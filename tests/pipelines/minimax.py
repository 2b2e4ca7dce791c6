"""MiniMax-H3: one packed sequence of text, sound and video, and modular blocks in the place of a pipeline."""

from __future__ import annotations

from typing import Any

import torch

import models
from pipelines.parts import TEXT, draw, quiet
from pipelines.rows import Row


def _pipe(blocks: str) -> Any:
    """A pipeline of the blocks that stand behind the encoders."""
    import diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 as modular
    from diffusers import MiniMaxH3Scheduler

    # Channels of latents as the blocks take them where they are given no autoencoder.
    transformer = models.build(
        "MiniMaxH3Transformer3DModel", num_attention_heads=2, attention_head_dim=16, hidden_size=32, num_layers=2,
        num_refiner_layers=1, ffn_dim=32, in_channels=24, audio_in_channels=32, text_dim=12, freq_dim=16,
        time_embed_hidden_dim=16, time_embed_dim=16, rope_freq_dim=2,
    )  # fmt: skip
    pipe = getattr(modular, blocks)().init_pipeline()
    pipe.update_components(transformer=transformer, scheduler=MiniMaxH3Scheduler(shift=12.0),
                           audio_scheduler=MiniMaxH3Scheduler(shift=3.0))  # fmt: skip
    return quiet(pipe)


def _text(**more: Any) -> dict[str, Any]:
    # Five seconds, the least that the blocks take: 37 x 6 x 5 tokens of the video, 414 of the sound. The scheduler
    # counts the end of the last step, too.
    given = {"height": 192, "width": 160, "num_frames": 124, "num_inference_steps": 3}
    text = {"prompt_embeds": draw(1, TEXT, 12), "text_token_tags": torch.ones(TEXT)}
    return given | text | {"output": "latents", "output_type": ..., "return_dict": ...} | more


_SOUND = (
    "text and sound stand in front of the video and are attended in full: 27% of the sequence here, about 1% at 768p"
)
_GIVEN: dict[str, Any] = {"grid": (37, 6, 5), "text_first": True}
ROWS = (
    Row("MiniMax-H3, text to video and sound", "MiniMaxH3ModularPipeline", lambda: _pipe("MiniMaxH3CoreDenoiseStep"),
        _text, text=TEXT + 414, note=_SOUND, **_GIVEN),
    Row("MiniMax-H3, first frame given", "MiniMaxH3ModularPipeline", lambda: _pipe("MiniMaxH3FL2VACoreDenoiseStep"),
        lambda: _text(keyframe_anchors=("first",), condition_latents=[draw(1, 24, 1, 12, 10)]),
        text=TEXT + 414 + 30, note=_SOUND, **_GIVEN),
)  # fmt: skip
