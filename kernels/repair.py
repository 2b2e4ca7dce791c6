"""What a mask leaves out, mended: an affine map a head, fitted on the rows that the profile has by dense attention.

On R sampled rows of a head let o_i be the dense output, x_i the output of the mask that runs, y_i = o_i - x_i, and
p = 1 / R the weight of a row. With X = sqrt(p) (x - mean x) and Y = sqrt(p) (y - mean y), both [R, D], ridge regression
gives

    W = X^T (X X^T + r I)^-1 Y = (X^T X + r I)^-1 X^T Y     [D, D], by the smaller of the two inverses
    repaired = x + mean y + (x - mean x) W

The ridge r is chosen per head among `RIDGES` times the mean square of a row of X, by the error on rows left out. That
error needs no second fit (exact leave-one-out): with the leverage h_i = (X W_of_X)_ii of a row,

    error of row i, left out = (y_i - fitted y_i) / (1 - h_i - p)

A head whose best error left out is not below that of no repair, mean |y_i|^2, is not repaired. The fit is made in
float64: neither TF32 nor bfloat16 products, which PyTorch may use for float32, can enter it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
# Far above what rounding leaves of 0, far below what the smallest ridge leaves of a row.
_LEAST_FREE = 1e-9
# Positive definite float64 [n, S, S] -> their inverses; anything where a matrix is not finite.
Invert = Callable[[Tensor], Tensor]


def inverses(matrices: Tensor) -> Tensor:
    """Inverses of positive definite matrices [..., S, S], without an exception where one is not."""
    lower, _ = torch.linalg.cholesky_ex(matrices, check_errors=False)
    return torch.cholesky_inverse(lower)


def inverts_rows(sampled_rows: int, channels: int) -> bool:
    """Whether `fit_repair` inverts a matrix of rows by rows: from constants alone, as sizes may be symbolic."""
    return sampled_rows <= channels


def fit_repair(dense: Tensor, sparse: Tensor, *, by_rows: bool, invert: Invert = inverses) -> tuple[Tensor, Tensor]:
    """(fit float32 [..., D + 2, D], error left float32 [...]) of sampled rows [..., R, D], dense and sparse.

    fit holds W, mean x and mean y, and is 0 where a head is not repaired. The error is the mean square over rows and
    channels: that of the repair on rows left out, or without a repair where there is none; NaN where rows are not
    finite. by_rows: whether to invert [R, R] or [D, D], which is to be the smaller.
    """
    sparse, off = sparse.double(), dense.double() - sparse.double()
    rows, channels = sparse.shape[-2], sparse.shape[-1]
    finite = (sparse.isfinite() & off.isfinite()).all(-1, keepdim=True).all(-2, keepdim=True)
    sparse, off = (torch.where(finite, tensor, 0.0) for tensor in (sparse, off))
    share = 1.0 / rows
    mean_x, mean_y = sparse.mean(-2, keepdim=True), off.mean(-2, keepdim=True)
    x, y = (sparse - mean_x) * share**0.5, (off - mean_y) * share**0.5
    square = x.square().sum((-1, -2)) * share
    # Where all rows are alike W is 0 for every ridge; any other than 0 keeps the matrix definite.
    square = torch.where(square > 0, square, 1.0)
    # A tensor of the factors would be a copy from the host, which no CUDA graph can capture.
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
    # A row of leverage 1 cannot be left out: the fit would say nothing of it.
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
    dense. exact is the dense output of the rows, NaN in heads that are to be left as they are: those that run dense,
    and those whose mask loses nothing on these rows.
    """
    fit, left = fit_repair(dense, sparse, by_rows=by_rows, invert=invert)
    differs = (dense != sparse).any(-1).any(-1) & left.isfinite()
    return torch.where(differs[..., None, None], dense, float("nan")), fit, left


def kept_fit(previous_fit: Tensor, previous: Tensor, plan: Tensor) -> Tensor:
    """The fits [B, H, D + 2, D] of an earlier step, 0 where the plan [B, H, 2] has another mask than they are for."""
    same = (previous == plan).all(-1)
    return torch.where(same[..., None, None], previous_fit, 0.0)
