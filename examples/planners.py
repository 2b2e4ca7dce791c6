"""Ways to decide what each head attends to, for the study: the profile, its rivals, and the published code's masks."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from planned_attention import Profiled, dense
from semantic_clusters import SemanticClusters
from svg_compile import HeadKind, VideoLayout, profile_heads, repaired_attention, sparse_attention
from svg_compile.kernels import ops, repair_ops
from svg_compile.runtime.layer_shares import LayerShares, Profiles


class OneKind(Profiled):
    """All heads spatial, all temporal, or (the noise floor) all dense, computed by the sparse engine."""

    kind = HeadKind.SPATIAL

    def plan(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.fill(torch.full(query.shape[:2], int(self.kind), device=query.device))

    def fill(self, kinds: Tensor) -> Tensor:
        """Kinds [B, H] -> the plan with the half-widths of this density."""
        widths = [self.layout.half_width_for(self.density, kind) for kind in (0, 1)] + [0]
        return torch.stack([kinds, torch.tensor(widths, device=kinds.device)[kinds]], dim=-1).int()


class AllTemporal(OneKind):
    kind = HeadKind.TEMPORAL


class AllDense(OneKind):
    kind = HeadKind.DENSE


class RandomKinds(OneKind):
    """Each head spatial or temporal by the throw of a coin, anew at each layer and step."""

    def plan(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rng = np.random.default_rng([step, layer])
        return self.fill(torch.from_numpy(rng.integers(0, 2, query.shape[:2])).to(query.device))


class Widths(Profiled):
    """Profiled, and wider bands for the heads that lose more: half-widths by need, without repair."""

    widths_option = "adaptive"


class Repaired(Profiled):
    """Profiled, and what the mask leaves out mended on the profile's rows."""

    def __call__(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if step < self.dense_steps or layer < self.dense_layers:
            return dense(step, layer, query, key, value)
        return repaired_attention(
            query, key, value, self.layout, density=self.density, sampled_rows=self.rows, widths=self.widths_option
        )


class Both(Repaired):
    """Half-widths by need in each layer, and repair: the backend with `share_layers` off."""

    widths_option = "adaptive"


class Shared(Profiled):
    """As the backend does it by default: half-widths by need, shared by the heads of all layers, and repair."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.shares = LayerShares()

    def __call__(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if step < self.dense_steps or layer < self.dense_layers:
            return dense(step, layer, query, key, value)
        layout = self.layout
        grid = layout.grid
        tail = (None, "auto", ops.ABI)
        call, share = self.shares.enter(step, layer)
        options = ([self.density], self.rows, True, *tail, None, None, None, None if share is None else share[0])
        plan, errors, exact, fit, missing = repair_ops.PROFILE(query, key, value, None, grid, *options)
        found = Profiles((errors[..., :2],), (missing,), (layout,), self.density, spreads=(None,))
        self.shares.note(call, layer, found)
        self.plans[step, layer] = plan.cpu()
        out: Tensor = torch.ops.svg.attention(query, key, value, plan, None, grid, *tail)
        bands = out.clone() if self.keeps_bands else out
        repair_ops.REPAIR(out, exact, fit, grid, *tail[1:])
        self.look((query, key, value), plan, fit, bands, out)
        return out

    # Whether `look` needs the output as it was before the repair.
    keeps_bands = False

    def look(self, qkv: tuple[Tensor, Tensor, Tensor], plan: Tensor, fit: Tensor, bands: Tensor, out: Tensor) -> None:
        """Called with each sparse call's plan, fit, and output before and after the repair."""


class Watched(Shared):
    """The same, with what a study wants to know: the errors of rows, and how many heads each part changes.

    A row's error is relative to the mean square of its head's dense rows.
    """

    keeps_bands = True

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.looks: list[tuple[float, ...]] = []

    def look(self, qkv: tuple[Tensor, Tensor, Tensor], plan: Tensor, fit: Tensor, bands: Tensor, out: Tensor) -> None:
        query, key, value = qkv
        exact = scaled_dot_product_attention(query, key, value).float()
        power = exact.square().mean((2, 3))[..., None]
        figures = []
        for given in (bands, out):
            errors = ((given.float() - exact).square().mean(-1) / power).sqrt().flatten()
            figures += [errors.mean().item(), errors.quantile(0.99).item()]
        uniform = torch.tensor([self.layout.half_width_for(self.density, kind) for kind in (0, 1)])
        moved = (plan[..., 1] != uniform[plan[..., 0].long().clamp(0, 1)]).float().mean().item()
        self.looks.append((*figures, (fit != 0).any(-1).any(-1).float().mean().item(), moved))

    def figures(self) -> dict[str, float]:
        names = ("bands_error", "bands_p99", "repaired_error", "repaired_p99", "repaired_heads", "moved_heads")
        return dict(zip(names, np.mean(self.looks, axis=0).tolist(), strict=True))


class Oracle(OneKind):
    """Each head the kind whose whole output is nearer to dense: the profile with all rows sampled.

    Keeps what a study wants to know of each call: the heads' relative errors, and how often 64 rows agree.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.errors: list[tuple[float, float, float]] = []
        self.agreements: list[float] = []

    def __call__(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        exact = dense(step, layer, query, key, value)
        if step < self.dense_steps or layer < self.dense_layers:
            return exact
        outputs, errors = [], []
        for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL):
            plan = self.fill(torch.full(query.shape[:2], int(kind), device=query.device))
            outputs.append(sparse_attention(query, key, value, plan, self.layout))
            errors.append((outputs[-1] - exact).float().square().mean(dim=(2, 3)))
        temporal = errors[1] < errors[0]
        sampled = profile_heads(
            query, key, value, self.layout, density=self.density, sampled_rows=self.rows, widths="uniform"
        )
        power = exact.float().square().mean(dim=(2, 3))
        best = torch.where(temporal, errors[1], errors[0])
        spatial_error, temporal_error, best_error = ((e / power).sqrt().mean().item() for e in (*errors, best))
        self.errors.append((spatial_error, temporal_error, best_error))
        self.agreements.append((sampled[..., 0] == temporal).float().mean().item())
        self.plans[step, layer] = self.fill(temporal.long())
        return torch.where(temporal[..., None, None], outputs[1], outputs[0])

    def figures(self) -> dict[str, float]:
        names = ("spatial_error", "temporal_error", "best_error")
        found = dict(zip(names, np.mean(self.errors, axis=0).tolist(), strict=True))
        return found | {"agreement": float(np.mean(self.agreements))}


class Published(Profiled):
    """The masks of the published code for models without text in the sequence (Wan), at the density of ours.

    - The band runs over all frames, and "the first frame" is the first S positions in the head's own order: for
      temporal heads that is the upper rows of every frame.
    - Heads are profiled by bands two frames wide, whatever the density, on random rows from the start of the video
      alone: there the first 10,000 of 75,600.
    """

    SHARE_SAMPLED = 10_000 / 75_600

    def __init__(self, layout: VideoLayout, **options: float) -> None:
        super().__init__(layout, **options)  # type: ignore[arg-type]
        self.made: list[Tensor] = []
        self.rank = [torch.arange(layout.tokens), temporal_ranks(layout)]
        self.widths = [
            width_for(layout, layout.density(layout.half_width_for(self.density, kind), kind)) for kind in (0, 1)
        ]

    def __call__(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if step < self.dense_steps or layer < self.dense_layers:
            return dense(step, layer, query, key, value)
        kinds = self.choose(step, layer, query, key, value)
        out = torch.empty_like(query)
        for kind, mask in enumerate(self.masks(query)):
            heads = (kinds == kind).nonzero().flatten()
            if len(heads):
                chosen = query[:, heads], key[:, heads], value[:, heads]
                out[:, heads] = scaled_dot_product_attention(*chosen, attn_mask=mask)
        return out

    def masks(self, query: Tensor) -> list[Tensor]:
        """The two masks [N, N], to be added to the scores; made once."""
        if not self.made:
            tokens = self.layout.tokens
            everything = torch.arange(tokens, device=query.device)
            for kind in (0, 1):
                mask = torch.zeros(tokens, tokens, dtype=query.dtype, device=query.device)
                self.made.append(mask.masked_fill_(~self.visible(kind, everything, self.widths[kind]), float("-inf")))
        return self.made

    def choose(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Kinds [H] of the first video of the batch."""
        rows = np.random.default_rng([step, layer]).integers(0, int(self.SHARE_SAMPLED * self.layout.tokens), self.rows)
        picked = torch.from_numpy(rows).to(query.device)
        some = query[:, :, picked]
        exact = scaled_dot_product_attention(some, key, value)
        errors = []
        for kind in (0, 1):
            mask = self.visible(kind, picked, 2 * self.layout.area)
            errors.append((scaled_dot_product_attention(some, key, value, attn_mask=mask) - exact).float().square())
        spatial, temporal = (error.mean(dim=(0, 2, 3)) for error in errors)
        return (temporal < spatial).long()

    def visible(self, kind: int, rows: Tensor, width: int) -> Tensor:
        """bool [rows, N]: what these queries see."""
        rank = self.rank[kind].to(rows.device)
        return ((rank[rows, None] - rank[None]).abs() <= width) | (rank < self.layout.area)[None]


def temporal_ranks(layout: VideoLayout) -> Tensor:
    """Place after place: token (frame, place) -> place * frames + frame."""
    place, frame = torch.arange(layout.area), torch.arange(layout.frames)
    return (place[None] * layout.frames + frame[:, None]).flatten()


@cache
def width_for(layout: VideoLayout, density: float) -> int:
    """The widest band, in tokens, that with the first S positions keeps at most this share of all pairs."""
    tokens, row = layout.tokens, np.arange(layout.tokens)

    def share(width: int) -> float:
        first, last = np.maximum(row - width, 0), np.minimum(row + width + 1, tokens)
        band_beyond = np.maximum(last - np.maximum(first, layout.area), 0)
        return float((layout.area + band_beyond).sum() / tokens**2)

    low, high = 0, tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(middle) <= density else (low, middle - 1)
    return low


PLANNERS: dict[str, type[Profiled]] = {
    "profile": Profiled,
    "repair": Repaired,
    "widths": Widths,
    "both": Both,
    "shared": Shared,
    "watched": Watched,
    "clusters": SemanticClusters,
    "oracle": Oracle,
    "spatial": OneKind,
    "temporal": AllTemporal,
    "random": RandomKinds,
    "published": Published,
    "floor": AllDense,
}
