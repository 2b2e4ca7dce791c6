"""What denoisers call the argument that says how noisy their latents are."""

from __future__ import annotations

from collections.abc import Iterable

# In order of preference: a model that takes several is driven by the first.
NAMES = ("timestep", "timesteps", "t", "sigma", "sigmas")


def is_timestep(name: str) -> bool:
    """True if an argument is a timestep by its name, of all that is denoised or of one modality: `vision_timesteps`."""
    *kind, last = name.split("_")
    return last in NAMES[:2] and kind[:1] != ["num"]


def timestep_among(names: Iterable[str]) -> str | None:
    """The argument that tells a denoiser its steps: its timestep, else that of the first modality; None without."""
    found = [name for name in names if is_timestep(name)]
    return NAMES[0] if NAMES[0] in found else next(iter(found), None)
