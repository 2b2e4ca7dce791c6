"""These tests run in Triton's interpreter, which has to be chosen before Triton is imported: in a process of its own.

tests/test_triton_interpreter.py starts it; by hand: TRITON_INTERPRET=1 pytest tests/triton_interpreted
"""

from __future__ import annotations

import os

from hypothesis import Phase, settings

if os.environ.get("TRITON_INTERPRET") == "1":
    # An example takes seconds, so a failing one is reported as it was drawn.
    settings.register_profile("interpreter", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
    settings.load_profile("interpreter")
else:
    collect_ignore_glob = ["test_*.py"]
