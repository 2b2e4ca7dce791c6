"""torch's registry of backends, which several threads may ask for the same name at once."""

from __future__ import annotations

import sys
import threading
import time

_PATIENCE = 10.0
_lock = threading.Lock()
_registrar: threading.Thread | None = None


def registered_meanwhile(name: str) -> bool:
    """True if torch looks up an entry point in this thread that another thread has registered in the meantime.

    `lookup_backend` loads an entry point and then registers what it has loaded; a second thread between the two fails
    by "duplicate name". The first thread that asks here goes on to register; all others wait until it has. To them
    the result is None: torch registers nothing for None, and takes what is registered by then.
    """
    global _registrar
    if not _in_lookup():
        return False
    with _lock:
        first = _registrar is None or not _registrar.is_alive() or _registrar is threading.current_thread()
        if first:
            _registrar = threading.current_thread()
    fns = sys.modules["torch._dynamo.backends.registry"]._COMPILER_FNS
    end = time.monotonic() + _PATIENCE
    while not first and name not in fns and time.monotonic() < end:
        time.sleep(0.001)
    return name in fns


def _in_lookup() -> bool:
    """True if the caller is torch's `lookup_backend`."""
    registry = sys.modules.get("torch._dynamo.backends.registry")
    frame = sys._getframe(1) if hasattr(registry, "_COMPILER_FNS") else None
    while frame is not None:
        if frame.f_code.co_name == "lookup_backend" and frame.f_globals is vars(registry):
            return True
        frame = frame.f_back
    return False
