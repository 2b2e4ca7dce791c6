"""The contestants of the benchmark: dense attention by backend, this package's op, and its alternatives.

A peer takes a `Problem` and returns a call that computes its attention; `Unavailable` says why it cannot.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from svg_compile._compat.gpu import plain_triton
from svg_compile.errors import SvgError
from svg_compile.functional import sparse_attention
from svg_compile.kernels.triton.configs import TileConfig
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import attends, tokens_at
from svg_compile.zoo import Shape

BANDS = (HeadKind.SPATIAL, HeadKind.TEMPORAL)


class Unavailable(SvgError):
    """Why a peer cannot be timed here."""


@dataclass(frozen=True)
class Problem:
    """q, k, v [B, H, N, D] over [B, N, H, D] storage, as the models keep them, and each head's kind and half-width.

    Spatial heads stand before temporal ones.
    """

    shape: Shape
    query: Tensor
    key: Tensor
    value: Tensor
    kinds: tuple[HeadKind, ...]
    half_widths: tuple[int, ...]

    @property
    def layout(self) -> VideoLayout:
        return self.shape.layout

    @property
    def plan(self) -> Tensor:
        """int32 [B, H, 2]."""
        heads = list(zip(self.kinds, self.half_widths, strict=True))
        return torch.tensor([heads] * self.shape.batch, dtype=torch.int32, device=self.query.device)


Peer = Callable[[Problem], Callable[[], Tensor]]


def peer(name: str) -> Peer:
    """The peer of a name: one of `DENSE` or `SPARSE`, or `svg-MxNxWxS`, the op with a tile that is not the table's."""
    if name in DENSE:
        return DENSE[name]
    if name in SPARSE:
        return SPARSE[name]
    tile = re.fullmatch(r"svg-(\d+)x(\d+)x(\d+)x(\d+)", name)
    if tile is None:
        raise SvgError(
            f"no peer {name!r}. Known: {', '.join([*DENSE, *SPARSE])}, and svg-MxNxWxS for the Triton kernel with "
            "tiles of M queries x N keys, W warps and S stages."
        )
    return partial(_tiled, TileConfig(*map(int, tile.groups())))


def _dense(backend: SDPBackend | None, problem: Problem) -> Callable[[], Tensor]:
    if backend is not None and problem.query.device.type != "cuda":
        raise Unavailable(f"{backend.name} runs on GPUs only")
    query, key, value = problem.query, problem.key, problem.value

    def call() -> Tensor:
        if backend is None:
            return F.scaled_dot_product_attention(query, key, value)
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(query, key, value)

    return _tried(call)


def _svg(problem: Problem) -> Callable[[], Tensor]:
    return _tried(partial(sparse_attention, problem.query, problem.key, problem.value, problem.plan, problem.layout))


def _tiled(tile: TileConfig, problem: Problem) -> Callable[[], Tensor]:
    if problem.query.device.type != "cuda":
        raise Unavailable("tiles are the Triton kernel's, which runs on GPUs only")
    from svg_compile.kernels.triton.attention import sparse_attention as launch

    plan, grid = problem.plan, problem.layout.grid

    def call() -> Tensor:
        # As inside the op: otherwise each call would pay about a millisecond that only tracing needs.
        with plain_triton():
            return launch(problem.query, problem.key, problem.value, plan, None, grid, None, (tile,))

    return _tried(call)


def _hopper(problem: Problem) -> Callable[[], Tensor]:
    try:
        from svg_compile.kernels.hopper.attention import hopper_attention, supports
    except Exception as error:
        # Gluon changes from version to version, also in what its modules do while they are imported.
        raise Unavailable(f"this Triton has no Gluon for Hopper: {type(error).__name__}: {error}") from error
    reason = supports(problem.query, problem.key, problem.value, None)
    if reason is not None:
        raise Unavailable(reason)
    plan, grid = problem.plan, problem.layout.grid
    return _tried(lambda: hopper_attention(problem.query, problem.key, problem.value, plan, None, grid, None))


def _transpose(problem: Problem) -> Callable[[], Tensor]:
    """The layout change as a copy: temporal heads' bodies are brought into place-major order, attended, and put back.

    In that order a temporal band is a spatial one, so both are attended by the same kernel. Only the queries of frame
    0 see another stretch of the body than a temporal head's would; it is as long.
    """
    layout, spatial = problem.layout, problem.kinds.count(HeadKind.SPATIAL)
    if spatial == len(problem.kinds):
        raise Unavailable("spatial heads need no transpose")
    plan = problem.plan.clone()
    plan[:, :, 0] = int(HeadKind.SPATIAL)
    body = slice(layout.video_start + layout.area, layout.video_start + layout.video)
    moved = (layout.frames - 1, layout.area)

    def turned(tensor: Tensor, grid: tuple[int, int]) -> Tensor:
        """A copy in which the bodies of temporal heads are transposed from `grid`."""
        out = tensor.transpose(1, 2).clone().transpose(1, 2)
        source = tensor[:, spatial:, body].unflatten(2, grid).transpose(2, 3)
        out[:, spatial:, body].unflatten(2, grid[::-1]).copy_(source)
        return out

    def call() -> Tensor:
        query, key, value = (turned(tensor, moved) for tensor in (problem.query, problem.key, problem.value))
        return turned(sparse_attention(query, key, value, plan, layout), moved[::-1])

    return _tried(call)


def _flex(options: Mapping[str, str], problem: Problem) -> Callable[[], Tensor]:
    """FlexAttention, compiled, with the mask of the plan in blocks of 128."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if options and (problem.query.device.type != "cuda" or not _has_flash_attention_4()):
        raise Unavailable("runs on GPUs only, with the package flash-attn-4")
    layout, device = problem.layout, problem.query.device
    positions = torch.arange(layout.tokens, device=device)
    is_text, frame, _, _ = tokens_at(layout, HeadKind.SPATIAL, positions)
    blocks = torch.stack([tokens_at(layout, kind, positions).block for kind in BANDS])
    kind = torch.tensor(problem.kinds, device=device)
    half_width = torch.tensor(problem.half_widths, device=device)

    def mask(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        near = (blocks[kind[head], row], blocks[kind[head], column], half_width[head])
        return attends(is_text[row], is_text[column], frame[column], *near)

    # Compiled, the mask is never written out in full.
    block_mask = create_block_mask(
        mask, 1, problem.shape.heads, layout.tokens, layout.tokens, device, 128, _compile=device.type == "cuda"
    )
    compiled = torch.compile(partial(flex_attention, kernel_options=dict(options) or None))
    return _tried(lambda: compiled(problem.query, problem.key, problem.value, block_mask=block_mask))


def _has_flash_attention_4() -> bool:
    # Asked before the mask is built: without the package that would take a block mask and a failing compile each time.
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ImportError:
        return False


def _tried(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call, once it has run; what it raises is why it is not available."""
    try:
        with torch.no_grad():
            if call().is_cuda:
                # A fault in a kernel is raised at the next synchronisation.
                torch.cuda.synchronize()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Unavailable(f"{type(error).__name__}: {reason}") from error
    return call


# The first that is available is what speedups are over.
DENSE: dict[str, Peer] = {
    "cudnn": partial(_dense, SDPBackend.CUDNN_ATTENTION),
    "flash": partial(_dense, SDPBackend.FLASH_ATTENTION),
    "sdpa": partial(_dense, None),
}
SPARSE: dict[str, Peer] = {
    "svg": _svg,
    "hopper": _hopper,
    "flex": partial(_flex, {}),
    "flex-flash": partial(_flex, {"BACKEND": "FLASH"}),
    "transpose": _transpose,
}
