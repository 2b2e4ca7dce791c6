"""The options that `torch.compile` holds for a compiled callable."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch


def keep_own_options(options: Mapping[str, Any] | None) -> None:
    """Give the `torch.compile` wrapper that calls the backend a copy of its options.

    The wrapper keeps the caller's dict itself and compares it with those of later compiles to find compiled code again.
    Were the caller to change the dict and compile anew, the old code would seem to have the new options. Inductor's own
    wrapper copies them too. Nothing happens where another caller than that wrapper stands on the stack.
    """
    wrapper = getattr(torch, "_TorchCompileWrapper", None)
    code = None if wrapper is None else getattr(vars(wrapper).get("__call__"), "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    kwargs: Any = getattr(frame.f_locals.get("self"), "kwargs", {}) if frame is not None else {}
    if options is not None and kwargs.get("options") is options:
        # Custom passes and the like are compared by identity, so only containers are copied in depth.
        deep = (list, tuple, dict)
        kept: Any = options
        kwargs["options"] = {
            key: copy.deepcopy(value) if isinstance(value, deep) else value for key, value in kept.items()
        }
