"""Eager models with planned attention: every video self-attention is handed to a function of (step, layer, q, k, v).

The compiled backend decides inside of its graph; here a decision can be looked at or replaced, which is what a study
of decisions needs. The attention itself is svg_compile's own op, so a plan gives what the backend gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from svg_compile import VideoLayout, profile_heads, sparse_attention

# (step, layer, q, k, v) -> the attention's result; q, k, v are [B, H, N, D].
Attend = Callable[[int, int, Tensor, Tensor, Tensor], Tensor]


def dense(_step: int, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What the model does by itself."""
    return scaled_dot_product_attention(query, key, value)


class PlannedAttention(TorchFunctionMode):
    """While active, self-attention over `layout` is computed by `attend`; all other calls stay as they are.

    Layers are counted by their calls. Set `step` before each step's forward.
    """

    def __init__(self, layout: VideoLayout, attend: Attend, layers: int) -> None:
        super().__init__()
        self.layout, self.attend, self.layers = layout, attend, layers
        self.step = 0
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (
            args[at] if at < len(args) else kwargs[name] for at, name in enumerate(("query", "key", "value"))
        )
        if not query.shape[2] == key.shape[2] == self.layout.tokens:
            return func(*args, **kwargs)
        layer = self._calls % self.layers
        self._calls += 1
        return self.attend(self.step, layer, query, key, value)


class Profiled:
    """`attend` as the backend does it without `repair`, with uniform half-widths: first steps and layers dense, then
    each head as profiled.

    `plans[step, layer]` keeps the plan of each sparse call, int32 [B, H, 2] on the host.
    """

    widths_option = "uniform"

    def __init__(
        self, layout: VideoLayout, *, density: float, dense_steps: int, dense_layers: int = 0, rows: int = 64
    ) -> None:
        self.layout, self.density, self.rows = layout, density, rows
        self.dense_steps, self.dense_layers = dense_steps, dense_layers
        self.plans: dict[tuple[int, int], Tensor] = {}

    def __call__(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if step < self.dense_steps or layer < self.dense_layers:
            return dense(step, layer, query, key, value)
        plan = self.plan(step, layer, query, key, value)
        self.plans[step, layer] = plan.cpu()
        return sparse_attention(query, key, value, plan, self.layout)

    def figures(self) -> dict[str, float]:
        """Further results of a run to keep in addition to its plans, by name; empty unless a planner needs them."""
        return {}

    def plan(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The plan of one call; other ways of deciding replace this."""
        return profile_heads(
            query, key, value, self.layout, density=self.density, sampled_rows=self.rows, widths=self.widths_option
        )
