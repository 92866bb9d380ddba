"""AdamW with a warm-up, constant, decay learning rate, and its state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resgen.errors import CheckpointError, TrainingError
from resgen.training.sharding import like, whole

DECAY_SHAPES = ("linear", "cosine")
_STATE = ("exp_avg", "exp_avg_sq", "step")


def learning_rate_factor(
    step: int, *, warmup_steps: int, decay_start: int, num_steps: int | None, shape: str = "linear"
) -> float:
    """The factor of the learning rate at step number `step` (from 0), in [0, 1].

    Args:
        step: steps done before this one.
        warmup_steps: steps of linear growth from near 0 to 1.
        decay_start: first step of the decay.
        num_steps: where the decay reaches 0; None while the end is not known yet, then there is no decay.
        shape: `linear` or `cosine`.
    """
    factor = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if num_steps is None or step < decay_start or num_steps <= decay_start:
        return factor
    progress = min(1.0, (step - decay_start) / (num_steps - decay_start))
    return factor * (0.5 + 0.5 * math.cos(math.pi * progress) if shape == "cosine" else 1.0 - progress)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where the learning rate falls and where training ends.

    Attributes:
        num_steps: the configured end that the plan was made for.
        max_minutes: the budget that the plan was made for.
        decay_start: first step of the decay; None until it is known.
        planned_steps: number of steps of the whole training; None until it is known.
    """

    num_steps: int
    max_minutes: float | None = None
    decay_start: int | None = None
    planned_steps: int | None = None

    @classmethod
    def fresh(cls, num_steps: int, max_minutes: float | None, decay_fraction: float) -> Plan:
        """The plan before the first step; under a budget of time the end is still open."""
        if max_minutes is not None:
            return cls(num_steps=num_steps, max_minutes=max_minutes)
        return cls(num_steps=num_steps, decay_start=round((1 - decay_fraction) * num_steps), planned_steps=num_steps)

    def updated(self, step: int, elapsed_s: float, decay_fraction: float) -> Plan:
        """Under a budget of time, fix the end as soon as the decay must begin, by the speed so far; then it stays.

        The decay gets 90 % of the budget at most, so that there is a speed to measure first.
        """
        if self.planned_steps is not None or self.max_minutes is None:
            return self
        constant = 1 - min(decay_fraction, 0.9)
        if step >= constant * self.num_steps:
            return replace(self, decay_start=step, planned_steps=max(step, self.num_steps))
        if step > 0 and elapsed_s >= constant * 60 * self.max_minutes:
            planned = max(step, min(self.num_steps, round(step / constant)))
            return replace(self, decay_start=step, planned_steps=planned)
        return self

    def factor(self, step: int, *, warmup_steps: int, shape: str) -> float:
        """See `learning_rate_factor`."""
        return learning_rate_factor(
            step,
            warmup_steps=warmup_steps,
            decay_start=self.decay_start or 0,
            num_steps=self.planned_steps,
            shape=shape,
        )


class Optimizers:
    """One AdamW per group of parameters; biases and other tensors of fewer than two axes get no weight decay.

    Args:
        groups: parameters by group name.
        names: the name of every parameter; its state is saved under this name. One whose last part contains `bias` is a
            bias, also where a tensor holds several: `blocks.0.bias`, `out_bias`, `biases`.
        learning_rate: peak value, for all groups.
        betas: AdamW's two decays.
        weight_decay: AdamW's weight decay.
        clip_norm: largest norm of a group's gradient; 0 disables clipping.

    Raises:
        TrainingError: a parameter without a name.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[nn.Parameter]],
        names: Mapping[nn.Parameter, str],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        clip_norm: float,
    ) -> None:
        for group, parameters in groups.items():
            if any(p not in names for p in parameters):
                raise TrainingError(f"group '{group}' has a parameter that is no part of the module")
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.parameters = {group: [p for p in ps if p.requires_grad] for group, ps in groups.items()}
        self._names = names
        self._optimizers = {
            group: torch.optim.AdamW(
                [
                    {"params": [p for p in ps if self._decays(p)], "weight_decay": weight_decay},
                    {"params": [p for p in ps if not self._decays(p)], "weight_decay": 0.0},
                ],
                lr=learning_rate,
                betas=betas,
                fused=True,
            )
            for group, ps in self.parameters.items()
        }

    def _decays(self, parameter: nn.Parameter) -> bool:
        name = self._names[parameter].rpartition(".")[2]
        return parameter.ndim >= 2 and "bias" not in name and name != "offset"  # of the low-rank means

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def clip(self) -> dict[str, Tensor]:
        """Clip each group's gradients to `clip_norm`; returns the norms before clipping (0-dim, on the device)."""
        norms = {}
        for group, parameters in self.parameters.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not gradients:
                continue
            norm = torch.nn.utils.get_total_norm(gradients)
            if self.clip_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
            norms[group] = whole(norm)
        return norms

    def step(self, factor: float) -> None:
        """One step of every optimizer at `learning_rate * factor`; parameters without a gradient stay."""
        for optimizer in self._optimizers.values():
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = self.learning_rate * factor
            optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state, named `GROUP.PARAMETER.exp_avg|exp_avg_sq|step`."""
        result = {}
        for group, optimizer in self._optimizers.items():
            for parameter in self.parameters[group]:
                state = optimizer.state.get(parameter, {})
                for key in _STATE:
                    if key in state:
                        result[f"{group}.{self._names[parameter]}.{key}"] = torch.as_tensor(state[key])
        return result

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Restore the state written by `tensors`, whole. Parameters never stepped have none.

        Raises:
            CheckpointError: a name or a shape does not fit.
        """
        rest = dict(tensors)
        for group, optimizer in self._optimizers.items():
            for parameter in self.parameters[group]:
                prefix = f"{group}.{self._names[parameter]}."
                saved = {key: rest.pop(prefix + key) for key in _STATE if prefix + key in rest}
                if not saved:
                    continue
                if len(saved) != len(_STATE):
                    raise CheckpointError(f"{where}: the state of '{prefix[:-1]}' is incomplete")
                for key, value in saved.items():
                    shape = torch.Size() if key == "step" else parameter.shape
                    if value.shape != shape:
                        raise CheckpointError(
                            f"{where}: tensor '{prefix}{key}' has shape {list(value.shape)} but needs {list(shape)}"
                        )
                optimizer.state[parameter] = {
                    "step": saved["step"].to(device=parameter.device, dtype=torch.float32, copy=True),
                    "exp_avg": like(saved["exp_avg"], parameter),
                    "exp_avg_sq": like(saved["exp_avg_sq"], parameter),
                }
        for name in rest:
            raise CheckpointError(f"{where}: tensor '{name}' belongs to no parameter")
