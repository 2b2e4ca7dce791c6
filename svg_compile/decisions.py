"""The result of the passes: for each attention that it was rewritten, or why it stays dense."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from svg_compile.layout import VideoLayout


class Reason(enum.Enum):
    """Why an attention was left dense: (what was found, what to do about it)."""

    CROSS_ATTENTION = (
        "cross-attention: query and key run over different tokens",
        "nothing to do: only self-attention over video tokens is made sparse",
    )
    NOT_VIDEO = (
        "no video tokens: the sequence is one plain axis of an input (text, audio, or packed latents)",
        "if it is packed video, pass options={'layout': (frames, height, width)}",
    )
    UNKNOWN_GRID = (
        "the token grid could not be proven",
        "if the tokens are in raster order, pass options={'layout': (frames, height, width)}; if an operator of yours "
        "is named and its result has the rows of its first operand, declare it: svg_compile.register_rowwise_op",
    )
    SEVERAL_GRIDS = (
        "several token grids in one sequence",
        "nothing to do: one video is supported, with text or few other tokens before or after it",
    )
    LAYOUT_CONFLICT = (
        "options['layout'] contradicts the grid found in the graph",
        "correct or drop options['layout']",
    )
    SINGLE_FRAME = ("a single frame: there is no time to be sparse in", "generate more than one latent frame")
    TOO_SHORT = ("fewer tokens than min_tokens", "lower options['min_tokens'] if dense attention is slow here")
    DENSE_LAYER = ("one of the first dense_layers layers", "lower options['dense_layers'] to make it sparse")
    MASK = (
        "an attention mask that is not proven to hide keys, and nothing else",
        "pass a mask that hides keys alike from all heads and queries: boolean [B, 1, 1, N], or a bias that the model "
        "itself computes from booleans or an integer mask [B, N], 0 or at most -10000; none where no prompt is padded",
    )
    CAUSAL = ("causal attention", "nothing to do: causal attention is left as it is")
    DROPOUT = ("attention dropout", "call model.eval(); where that does not change it, pass dropout_p=0.0")
    RANK = (
        "operands that are not [batch, heads, tokens, channels]",
        "give query, key and value four dimensions: q.unsqueeze(0), or q.unflatten(0, (batch, heads))",
    )
    GROUPED_QUERY = (
        "operands that broadcast",
        "use equal batch counts, and as many heads for key and value as for the query, or fewer with enable_gqa=True",
    )
    GRADIENT = ("an operand needs gradients", "run under torch.no_grad() or torch.inference_mode(): inference only")
    SCALE = ("a scale that is not a number", "pass scale as a float")
    DTYPE = ("an unsupported dtype", "use float32, bfloat16 or float16")
    HEAD_DIM = (
        "an unsupported head dimension",
        "give query, key and value one head dimension, on a GPU one of 16 to 256",
    )
    DEVICE = ("a device that the chosen engine does not run on", "use options={'engine': 'auto'} on a CPU or GPU")
    HIGHER_ORDER = (
        "inside a higher-order operator whose body is not understood",
        "call the attention outside checkpointing, control flow or custom autograd functions",
    )
    BETWEEN_GRAPHS = (
        "attention that runs between graphs, in plain Python",
        "take away the graph break (torch.nn.attention.sdpa_kernel makes none, torch.backends.cuda.sdp_kernel does), "
        "or compile the model's blocks one by one and call svg_compile.attach(pipe), which serves it there "
        "unless options={'eager_attention': False} asks for none",
    )
    UNPROVEN_BETWEEN_GRAPHS = (
        "attention that runs between graphs, in plain Python, over tokens whose grid is not proven",
        "take away the graph break, or what the detail names; while it is there nothing makes this attention sparse, "
        "options={'layout': ...} neither, which is of graphs",
    )
    SYMBOLIC = (
        "its grid depends on sizes that are not inputs of the graph it stands in",
        "compile with dynamic=False, or pass options={'layout': (frames, height, width)}",
    )

    @property
    def text(self) -> str:
        return str(self.value[0])

    @property
    def remedy(self) -> str:
        return str(self.value[1])


# Of attention that is no `scaled_dot_product_attention` call, and so has no row.
BY_FLEX = (
    "attention by FlexAttention, whose masks are functions that are not looked into -> if they hide nothing but "
    "padding, select the native attention instead (diffusers: model.set_attention_backend('native'))"
)

# Added to what a backend says of a graph that may be a block of a model: there the graph does not show the grid.
BLOCK_REMEDY = (
    "If this graph is one block of a model that is compiled block by block, call svg_compile.attach(pipe) before the "
    "first run: the whole model shows what the block does not."
)


@dataclass(frozen=True)
class Site:
    """One attention of the graph.

    layer: its module path. layout: its grid where one was found, in traced sizes. source: file:line in the model's own
    code; stack: every line on the way to the call, outermost first. calls: how often one forward runs it, more than
    once where Dynamo shares one graph between layers. before: of the layout's text, the tokens that stand in front of
    the video, and are moved behind the others. unasked: of the layout's tokens, those at its beginning and at its end
    that are keys alone, and no queries.
    """

    rewritten: bool
    reason: Reason | None
    layer: str
    layout: VideoLayout | None
    batch: int
    heads: int
    head_dim: int
    tokens: int
    key_tokens: int
    sequence: str = ""
    source: str = ""
    detail: str = ""
    stack: tuple[str, ...] = ()
    calls: int = 1
    before: int = 0
    unasked: tuple[int, int] = (0, 0)

    @property
    def needs_whole_model(self) -> bool:
        """True if a graph of a larger part of the model could prove the grid that this one does not."""
        return self.reason in (Reason.NOT_VIDEO, Reason.UNKNOWN_GRID)

    @property
    def decision(self) -> str:
        """One line: what was done, or why nothing was."""
        if self.reason is None:
            return f"sparse: {self.detail}" if self.detail else "sparse"
        return f"{self.reason.text}: {self.detail}" if self.detail else self.reason.text


@dataclass(frozen=True)
class Decisions:
    """All attentions of one model or graph, in the order in which they run; notes say what else was found."""

    sites: tuple[Site, ...] = ()
    graphs: int = 1
    notes: tuple[str, ...] = ()

    @property
    def rewritten(self) -> int:
        """How many were made sparse."""
        return sum(site.rewritten for site in self.sites)
