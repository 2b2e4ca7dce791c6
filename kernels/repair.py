"""The repair: an affine map per head, fitted on the profile's sampled rows, that corrects the error of the mask.

On R sampled rows of a head let o_i be the dense output, x_i the output under the plan's mask, y_i = o_i - x_i, and
p = 1 / R the weight of a row. With X = sqrt(p) (x - mean x) and Y = sqrt(p) (y - mean y), both [R, D], ridge regression
gives

    W = X^T (X X^T + r I)^-1 Y = (X^T X + r I)^-1 X^T Y     [D, D], by the smaller of the two inverses
    repaired = x + mean y + (x - mean x) W

The ridge r is chosen per head among `RIDGES` times the mean square of a row of X, by the leave-one-out error. That
error is exact without a second fit: with the leverage h_i = (X W_of_X)_ii of a row,

    error of row i, left out = (y_i - fitted y_i) / (1 - h_i - p)

A head whose best leave-one-out error is not below that without a repair, mean |y_i|^2, is not repaired. The fit is
computed in float64, for which PyTorch uses neither TF32 nor bfloat16 products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
# Far above rounding errors of 0, far below the smallest 1 - h_i - p that the smallest ridge allows.
_LEAST_FREE = 1e-9
# Positive definite float64 [n, S, S] -> their inverses; undefined where a matrix is not finite.
Invert = Callable[[Tensor], Tensor]


def inverses(matrices: Tensor) -> Tensor:
    """Inverses of positive definite matrices [..., S, S]; no exception where a matrix is not positive definite."""
    lower, _ = torch.linalg.cholesky_ex(matrices, check_errors=False)
    return torch.cholesky_inverse(lower)


def inverts_rows(sampled_rows: int, channels: int) -> bool:
    """True if `fit_repair` inverts the matrix [R, R]; decided by constants alone, as sizes may be symbolic."""
    return sampled_rows <= channels


def fit_repair(dense: Tensor, sparse: Tensor, *, by_rows: bool, invert: Invert = inverses) -> tuple[Tensor, Tensor]:
    """(fit float32 [..., D + 2, D], error left float32 [...]) of sampled rows [..., R, D], dense and sparse.

    fit is (W, mean x, mean y), and 0 in heads that are not repaired. The error is a mean square over rows and channels:
    the repair's leave-one-out error, or the error without a repair in heads that are not repaired; NaN where rows are
    not finite. by_rows: invert [R, R] rather than [D, D]; the smaller should be chosen.
    """
    sparse, off = sparse.double(), dense.double() - sparse.double()
    rows, channels = sparse.shape[-2], sparse.shape[-1]
    finite = (sparse.isfinite() & off.isfinite()).all(-1, keepdim=True).all(-2, keepdim=True)
    sparse, off = (torch.where(finite, tensor, 0.0) for tensor in (sparse, off))
    share = 1.0 / rows
    mean_x, mean_y = sparse.mean(-2, keepdim=True), off.mean(-2, keepdim=True)
    x, y = (sparse - mean_x) * share**0.5, (off - mean_y) * share**0.5
    square = x.square().sum((-1, -2)) * share
    # If all rows are equal W is 0 for every ridge; any ridge but 0 keeps the matrix definite.
    square = torch.where(square > 0, square, 1.0)
    # A tensor of the factors would be copied from the host, which a CUDA graph cannot capture.
    ridge = torch.stack([square * factor for factor in RIDGES], dim=-1)[..., None, None]
    gram = x @ x.mT if by_rows else x.mT @ x
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = invert(gram[..., None, :, :] + ridge * eye)
    if by_rows:
        weights = inverse @ y[..., None, :, :]
        remains = ridge * weights
        free = ridge[..., 0] * inverse.diagonal(dim1=-2, dim2=-1) - share
    else:
        weights = inverse @ (x.mT @ y)[..., None, :, :]
        x_all = x[..., None, :, :]
        remains = y[..., None, :, :] - x_all @ weights
        free = 1.0 - share - ((x_all @ inverse) * x_all).sum(-1)
    # A row of leverage 1 has no leave-one-out error: the other rows do not determine its prediction.
    left_out = torch.where(free[..., None] > _LEAST_FREE, remains / free[..., None], float("inf"))
    left_out = left_out.square().sum((-1, -2)).nan_to_num(float("inf"), float("inf"))
    least, best = left_out.min(-1)
    before = off.square().sum((-1, -2)) * share
    index = best[..., None, None, None].expand(*best.shape, 1, *weights.shape[-2:])
    weights = weights.gather(-3, index).squeeze(-3)
    matrix = x.mT @ weights if by_rows else weights
    fit = torch.cat((matrix, mean_x, mean_y), dim=-2).float()
    repaired = (least < before) & fit.isfinite().all(-1).all(-1)
    error = torch.where(repaired, least, before) / channels
    error = torch.where(finite[..., 0, 0], error, float("nan"))
    return torch.where(repaired[..., None, None], fit, 0.0), error.float()


def repair_of(dense: Tensor, sparse: Tensor, *, by_rows: bool, invert: Invert = inverses) -> tuple[Tensor, ...]:
    """(exact float32 [B, H, R, D], fit float32 [B, H, D + 2, D], error left float32 [B, H]) of profiled heads.

    dense, sparse: float32 [B, H, R, D], the sampled rows by dense attention and by the plan, equal in heads that run
    dense. exact is the dense output of the rows, NaN in heads to leave unchanged: those that run dense, and those whose
    mask has no error on these rows.
    """
    fit, left = fit_repair(dense, sparse, by_rows=by_rows, invert=invert)
    differs = (dense != sparse).any(-1).any(-1) & left.isfinite()
    return torch.where(differs[..., None, None], dense, float("nan")), fit, left


def kept_fit(previous_fit: Tensor, previous: Tensor, plan: Tensor) -> Tensor:
    """The fits [B, H, D + 2, D] of an earlier step, 0 in heads whose plan [B, H, 2] has changed since."""
    same = (previous == plan).all(-1)
    return torch.where(same[..., None, None], previous_fit, 0.0)
