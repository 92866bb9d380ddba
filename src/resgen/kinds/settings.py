"""The sampling settings of all kinds as keyword arguments, so that editors and type checkers know them."""

from __future__ import annotations

from typing import TypedDict


class Settings(TypedDict, total=False):
    """Sampling settings of a call; those that are left out or None are the model's own.

    A kind has a part of these (`Kind.sampling`), and a call with another one lists that part.
    """

    num_steps: int | None
    """Network evaluations at most."""
    guidance_scale: float | None
    """Guidance weight of the last step; 0 is off and halves the time."""
    guidance_first: float | None
    """Guidance weight of the first step."""
    guidance_start: float | None
    """Share of the steps before guidance sets in."""
    guidance_end: float | None
    """Share of the steps after which guidance is off again."""
    prompt_guidance: float | None
    """Share of the guidance that strengthens what the prompt alone tells."""
    top_p: float | None
    """Mass of the codes or mixture components to draw from, in (0, 1]."""
    top_k: int | None
    """Most likely codes to draw from; 0 for all."""
    temperature: float | None
    """Randomness of the codes."""
    choice_temperature: float | None
    """Randomness of the order in which tokens are revealed."""
    mask_schedule: str | None
    """One of `ops.masking.SCHEDULES`."""
    unmasking: str | None
    """`confidence`, `component` or `random`."""
    level_decay: float | None
    """What each finer level weighs in a depthwise schedule."""


OTHER_NAMES = {
    "bf16": "dtype",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "class_ids": "class_id",
    "fp16": "dtype",
    "generator": "seed",
    "guidance": "guidance_scale",
    "half": "dtype",
    "num": "num_samples",
    "num_images_per_prompt": "num_samples",
    "num_inference_steps": "num_steps",
    "num_results": "num_samples",
    "schedule": "mask_schedule",
    "steps": "num_steps",
    "torch_dtype": "dtype",
}
"""What other libraries, or the command line, call an argument: for the hint of an error."""
