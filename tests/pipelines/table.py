"""docs/models.md: the result for each diffusers pipeline with 3D attention, from the rows that the tests check."""

from __future__ import annotations

from pipelines import cogvideox, cosmos, hunyuan, ltx, minimax, others, wan
from pipelines.rows import Row

FAMILIES: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("Wan and its relatives", wan.ROWS),
    ("HunyuanVideo and its relatives", hunyuan.ROWS),
    ("LTX-Video and LTX-2", ltx.ROWS),
    ("CogVideoX, and others of their own", cogvideox.ROWS),
    ("Cosmos", cosmos.ROWS),
    ("Kandinsky, Helios", others.ROWS),
    ("MiniMax-H3", minimax.ROWS),
)
ROWS = tuple(row for _, rows in FAMILIES for row in rows)

_HEAD = """# Models

What becomes of every diffusers pipeline whose denoiser attends over a whole video, in the pipeline itself: its own
`__call__`, with small random weights. *sparse*: in all steps that are not to be dense, every self-attention over video
tokens runs sparse, on the right grid, and at density 1 the pipeline makes what it makes without this backend. *dense*:
as without this backend, and a warning says why.

```python
svg_compile.attach(pipe)

pipe.transformer.compile(backend="svg")                       # whole
pipe.transformer.compile_repeated_blocks(backend="svg")       # by blocks
for block in pipe.transformer.transformer_blocks:             # by blocks, where the table says "each"
    block.compile(backend="svg")
```

"each": the class names no repeated blocks to diffusers, or not all of them, so `compile_repeated_blocks` raises, or
leaves blocks out. Where a pipeline has two transformers (Wan 2.2) compile both.

`make models-page` writes the tables out of what the tests check (tests/pipelines), with diffusers 0.42.1.
"""
_TAIL = """
## Not in the table

- EasyAnimate control and inpaint: diffusers 0.42.1 itself raises in them where embeddings are given.
- MiniMax-H3 with references, whose blocks need its autoencoders. The rows above are its modular blocks without the
  encoders, called with embeddings.
- Kandinsky 6 SR and Wan-Animate 2 attend by FlexAttention with masks of their own.
- Not run: LTX-2 with upsampling, HDR or diffusion forcing, Helios pyramid, SANA-WM, Cosmos 3 with sound or actions.

What became of models as their authors and ComfyUI ship them: [code by others](models-others.md).

Of a pipeline that is not here, `svg_compile.explain(pipe.transformer, ...)` with the arguments that it passes says what
would become of each attention ([debugging](debugging.md)).
"""


def page() -> str:
    """docs/models.md."""
    parts = [_HEAD]
    for title, rows in FAMILIES:
        lines = "".join(_line(row) for row in rows)
        parts.append(f"\n## {title}\n\n| pipeline | whole | by blocks | note |\n|---|---|---|---|\n{lines}")
    return "".join(parts) + _TAIL


def _line(row: Row) -> str:
    blocks = f"{row.blocks}, each" if row.each else row.blocks
    return f"| {row.name} (`{row.pipeline}`) | {row.whole} | {blocks} | {row.note} |\n"
