"""The repair on CPUs: applies each head's affine map (kernels/repair.py) and writes the exact sampled rows."""

from __future__ import annotations

import torch
from torch import Tensor

from svg_compile.kernels.cpu.autocast import without_autocast
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.layout import VideoLayout

# Rows per step: their float32 copies stay in the caches.
_ROWS = 1024
_MOST_HALF = torch.finfo(torch.float16).max


@torch.no_grad()
# The caller may run eagerly under autocast, and the product must be in float32.
@without_autocast
def repair_(out: Tensor, exact: Tensor, fit: Tensor, layout: VideoLayout) -> Tensor:
    """Repair the video rows of `out` [B, H, N, D] in place, in heads whose fit is not 0; text rows are unchanged.

    exact float32 [B, H, R, D] and fit float32 [B, H, D + 2, D] as returned by `kernels.repair.repair_of`.
    """
    count, channels = exact.shape[2], out.shape[3]
    sampled = layout.video_start + sampled_video_token(torch.arange(count, device="cpu"), count, layout.video)
    mapped = (fit != 0).any(-1).any(-1).tolist()
    known = exact.isfinite().all(-1).all(-1).tolist()
    rows, moved = (torch.empty(_ROWS, channels, dtype=torch.float32, device="cpu") for _ in range(2))
    for batch in range(out.shape[0]):
        for head in range(out.shape[1]):
            target = out[batch, head]
            if mapped[batch][head]:
                matrix, mean_x, mean_y = fit[batch, head].split((channels, 1, 1))
                video = target[layout.video_start : layout.video_start + layout.video]
                for part in video.split(_ROWS):
                    x = torch.sub(part, mean_x, out=rows[: len(part)])
                    change = torch.addmm(mean_y, x, matrix, out=moved[: len(part)]).add_(part)
                    if out.dtype is torch.float16:
                        # A sum of finite numbers must stay finite; of the supported dtypes only float16 can overflow.
                        change.clamp_(-_MOST_HALF, _MOST_HALF)
                    part.copy_(change)
            if known[batch][head]:
                target[sampled] = exact[batch, head].to(out.dtype)
    return out
