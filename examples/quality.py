"""How near one video is to another: PSNR and SSIM over 8-bit frames, LPIPS where the package and its weights are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def frames_of(video: Tensor) -> np.ndarray:
    """[3, F, H, W] in [-1, 1] -> uint8 [F, H, W, 3]."""
    shown = (video.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return shown.round().byte().permute(1, 2, 3, 0).numpy()


def psnr(video: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all frames, in 8 bits; 100 for equal videos."""
    from skimage.metrics import peak_signal_noise_ratio

    shown, wanted = frames_of(video), frames_of(reference)
    # It divides by the error, which is 0 for equal videos.
    equal = np.array_equal(shown, wanted)
    return 100.0 if equal else min(100.0, float(peak_signal_noise_ratio(wanted, shown, data_range=255)))


def ssim(video: Tensor, reference: Tensor) -> float:
    """Structural similarity, the mean over frames."""
    from skimage.metrics import structural_similarity

    pairs = zip(frames_of(video), frames_of(reference), strict=True)
    # 7 is the usual window; a picture that is smaller than that takes what fits.
    window = min(7, (min(video.shape[2:]) - 1) // 2 * 2 + 1)
    return float(np.mean([structural_similarity(a, b, channel_axis=2, win_size=window) for a, b in pairs]))


def lpips_or_none(video: Tensor, reference: Tensor) -> float | None:
    """LPIPS (AlexNet), the mean over frames; None where the `lpips` package or its weights cannot be had."""
    try:
        import lpips

        network = lpips.LPIPS(net="alex", verbose=False)
    except Exception:
        return None
    with torch.no_grad():
        distances = network(video.float().cpu().transpose(0, 1), reference.float().cpu().transpose(0, 1))
    return float(distances.mean())
