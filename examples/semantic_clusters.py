"""Sparse VideoGen2 (arXiv 2505.18875) as a rival in the study: clusters of queries and of keys in place of bands.

Of each head, queries and keys are each clustered by k-means; the centroids go on from those of the step before. A pair
of clusters (i, j) has the estimated weight P_ij = |K_j| exp(q_i . k_j * scale) / sum over j of the same, q_i and k_j
being the centroids. Each query cluster attends to the key clusters of the largest weights until they add up to `top_p`.

The paper clusters 75,600 tokens into 100 and 500; here are as many clusters for each token, but at least 50 and 100.
And where the paper fixes one `top_p` and takes the density that follows, here the density is given: one `top_p` for the
heads of all layers, which would have given it in the step before (in the first sparse step one for the heads of a
layer). So the pairs are those of the other ways to plan; the time of k-means comes on top.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, scaled_dot_product_attention

from planned_attention import Profiled, dense

QUERY_CLUSTERS, KEY_CLUSTERS, PAPER_TOKENS = 100, 500, 75_600
LEAST_QUERY_CLUSTERS, LEAST_KEY_CLUSTERS = 50, 100
# Lloyd iterations at the first sparse step of a layer, and at those after it, as the published code runs them.
FIRST_ITERATIONS, MORE_ITERATIONS = 50, 2
SEARCH_STEPS = 20


class SemanticClusters(Profiled):
    """`attend` with the block-sparse masks of clusters, at the mean density of the study."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        share = self.layout.tokens / PAPER_TOKENS
        self.clusters = (
            max(LEAST_QUERY_CLUSTERS, round(QUERY_CLUSTERS * share)),
            max(LEAST_KEY_CLUSTERS, round(KEY_CLUSTERS * share)),
        )
        self.centroids: dict[int, tuple[Tensor, Tensor]] = {}
        self.densities: list[float] = []
        # Of each layer: the mass gathered before each of a query cluster's key clusters, and the pairs that it has.
        self.choices: dict[int, tuple[Tensor, Tensor]] = {}
        self.top_p: float | None = None

    def __call__(self, step: int, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if step < self.dense_steps or layer < self.dense_layers:
            return dense(step, layer, query, key, value)
        if query.shape[0] != 1:
            raise ValueError(f"the study generates one video at a time, got a batch of {query.shape[0]}")
        before = self.centroids.get(layer)
        iterations = FIRST_ITERATIONS if before is None else MORE_ITERATIONS
        starts = (None, None) if before is None else before
        (query_labels, query_means), (key_labels, key_means) = (
            k_means(tokens[0].float(), count, iterations, start)
            for tokens, count, start in zip((query, key), self.clusters, starts, strict=True)
        )
        self.centroids[layer] = query_means, key_means
        rows, columns = sizes_of(query_labels, query_means), sizes_of(key_labels, key_means)
        if layer == self.dense_layers:
            self.top_p = self.top_p_for(list(self.choices.values())) if self.choices else None
        shown = self.choose(layer, query_means, key_means, rows, columns, query.shape[3] ** -0.5)
        out = torch.empty_like(query)
        for head in range(query.shape[1]):
            for cluster in range(shown.shape[1]):
                mine = (query_labels[head] == cluster).nonzero().flatten()
                seen = shown[head, cluster][key_labels[head]].nonzero().flatten()
                if len(mine):
                    operands = query[:, head : head + 1, mine], key[:, head : head + 1, seen]
                    out[:, head, mine] = scaled_dot_product_attention(*operands, value[:, head : head + 1, seen])[:, 0]
        return out

    def choose(self, layer: int, queries: Tensor, keys: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        """bool [H, Cq, Ck]: the pairs of clusters that are computed.

        queries [H, Cq, D] and keys [H, Ck, D]: the centroids; rows [H, Cq] and columns [H, Ck]: the clusters' sizes.
        """
        scores = queries @ keys.mT * scale + columns[:, None].log()
        weights, order = scores.softmax(-1).sort(dim=-1, descending=True)
        # The mass before each cluster: those before which less than top_p is gathered are taken.
        gathered = weights.cumsum(-1) - weights
        pairs = rows[:, :, None] * columns[:, None].expand_as(order).gather(-1, order)
        self.choices[layer] = gathered, pairs
        top_p = self.top_p_for([(gathered, pairs)]) if self.top_p is None else self.top_p
        taken = gathered < top_p
        # Without a cluster a query would see nothing.
        taken[..., 0] = True
        self.densities.append(float(pairs[taken].sum()) / float(pairs.sum()))
        return torch.zeros_like(taken).scatter(-1, order, taken)

    def top_p_for(self, choices: list[tuple[Tensor, Tensor]]) -> float:
        """The largest `top_p` at which these choices have at most the density asked, all together."""
        most = self.density * sum(float(pairs.sum()) for _, pairs in choices)
        low, high = 0.0, 1.0
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            fits = sum(float(pairs[gathered < middle].sum()) for gathered, pairs in choices) <= most
            low, high = (middle, high) if fits else (low, middle)
        return low


def sizes_of(labels: Tensor, means: Tensor) -> Tensor:
    """float32 [H, C]: how many of the tokens [H, N] are in each of the clusters [H, C, D]."""
    return one_hot(labels, means.shape[1]).sum(1).float()


def k_means(tokens: Tensor, clusters: int, iterations: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means of tokens [H, N, D]: labels int64 [H, N] and centroids [H, C, D].

    start: centroids to go on from; None takes tokens at equal distances. A cluster that loses all of its tokens stays
    where it is.
    """
    if start is None:
        start = tokens[:, torch.linspace(0, tokens.shape[1] - 1, clusters).long()]
    means = start
    for _ in range(iterations):
        labels = nearest(tokens, means)
        counts = sizes_of(labels, means)[..., None]
        sums = torch.zeros_like(means).scatter_add(1, labels[..., None].expand_as(tokens), tokens)
        means = torch.where(counts > 0, sums / counts.clamp_min(1), means)
    return nearest(tokens, means), means


def nearest(tokens: Tensor, means: Tensor) -> Tensor:
    """int64 [H, N]: the centroid [H, C, D] that is nearest to each of the tokens [H, N, D]."""
    return (tokens @ means.mT - means.square().sum(-1)[:, None] / 2).argmax(-1)
