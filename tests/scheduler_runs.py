"""The schedulers that diffusers' video pipelines take, run by loops that do what the pipelines do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

X = (1, 4, 2, 3, 4)


def _euler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=5.0)


def _heun() -> Any:
    from diffusers import FlowMatchHeunDiscreteScheduler

    return FlowMatchHeunDiscreteScheduler(shift=5.0)


def _unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _dpm() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _dpm_single() -> Any:
    from diffusers import DPMSolverSinglestepScheduler

    return DPMSolverSinglestepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _ancestral() -> Any:
    from diffusers import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler()


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(timestep_spacing="trailing")


def _cogvideox_ddim() -> Any:
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(timestep_spacing="trailing")


def _cogvideox_dpm() -> Any:
    from diffusers import CogVideoXDPMScheduler

    return CogVideoXDPMScheduler(timestep_spacing="trailing")


def _lcm() -> Any:
    from diffusers import LCMScheduler

    return LCMScheduler()


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "FlowMatchEulerDiscreteScheduler": _euler,
    "FlowMatchHeunDiscreteScheduler": _heun,
    "UniPCMultistepScheduler": _unipc,
    "DPMSolverMultistepScheduler": _dpm,
    "DPMSolverSinglestepScheduler": _dpm_single,
    "EulerAncestralDiscreteScheduler": _ancestral,
    "DDIMScheduler": _ddim,
    "CogVideoXDDIMScheduler": _cogvideox_ddim,
    "CogVideoXDPMScheduler": _cogvideox_dpm,
    "LCMScheduler": _lcm,
}
# Those whose set_timesteps takes sigmas.
TAKE_SIGMAS = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")


def denoise(
    pipe: Any,
    steps: int,
    form: Callable[[torch.Tensor], Any],
    *,
    strength: float = 1.0,
    sigmas: list[float] | None = None,
    guidance: Callable[[int], bool] = lambda step: False,
    stop: int | None = None,
    begin: bool = False,
) -> None:
    """One run. guidance: True if a step calls the model twice; stop: the step before which the run is interrupted.

    begin: True if the pipeline sets the scheduler's begin index for `strength`; some do not.
    """
    scheduler, model = pipe.scheduler, pipe.transformer
    if sigmas is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(sigmas=np.array(sigmas))
    first = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    x, old, prompts = torch.zeros(X), None, (torch.zeros(1), torch.zeros(1))
    timesteps = scheduler.timesteps[first:]
    for place, t in enumerate(timesteps):
        if place == stop:
            return
        given = form(t)
        latents = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        noise = model(latents, given, prompts[0])
        if guidance(place):
            noise = noise + model(latents, given, prompts[1])
        if type(scheduler).__name__ == "CogVideoXDPMScheduler":
            before = timesteps[place - 1] if place else None
            x, old = scheduler.step(noise, old, t, before, x, return_dict=False)
        else:
            x = scheduler.step(noise, t, x, return_dict=False)[0]
