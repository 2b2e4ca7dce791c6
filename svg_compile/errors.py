"""The errors that svg_compile raises: each says what was expected, what came and what to do."""


class SvgError(Exception):
    """Base of every error that svg_compile raises itself."""


class OptionError(SvgError, ValueError):
    """An option of `torch.compile(..., backend="svg", options=...)` is unknown or has a value that cannot be used."""


class LayoutError(SvgError, ValueError):
    """A `VideoLayout` is impossible, or the tensors passed with it do not fit it."""


class NothingRewritten(SvgError, RuntimeError):
    """`strict=True` and no attention of the graph could be made sparse."""


class ScheduleError(SvgError, ValueError):
    """A pipeline or loop cannot tell the steps of its models, or `denoising` is used against its contract."""


class NeedsData(SvgError, RuntimeError):
    """A model was traced whose Python code, between two graphs, reads a value that follows from weights or a result."""


class WrappedForward(SvgError, RuntimeError):
    """A model cannot be traced: a module's forward is wrapped by what may move its tokens."""
