"""The training loop: one step after another, exactly resumable, within a number of steps or minutes.

All randomness of step `s` comes from streams named by (seed, step), and the order of the data from (seed,
epoch, step); so the number of steps done is the whole state besides tensors, and a resumed run repeats the unbroken
one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn

from resgen.checkpoints.tensors import canonical_name, load_state, module_tensors
from resgen.config import config_to_dict
from resgen.data.loader import CounterSampler
from resgen.devices import choose_device
from resgen.errors import ConfigError
from resgen.files import write_json, write_text, writing
from resgen.ops.random import generator
from resgen.progress import format_seconds
from resgen.training.agreement import check_agreement
from resgen.training.ema import Ema, in_evaluation_mode
from resgen.training.interface import Task, TrainerConfig
from resgen.training.log import Log, Pending, check_finite
from resgen.training.loggers import check_packages
from resgen.training.optim import Optimizers, Plan
from resgen.training.parallel import autocast, average_gradients, choose_precision
from resgen.training.sharding import make_shard, skeleton_of, whole_copy
from resgen.training.state import (
    Checkpoint,
    TrainingState,
    check_resumable,
    check_run_folder,
    clean_checkpoints,
    environment,
    load_newest,
    lock_folder,
    no_checkpoint,
    plain_config,
    save_checkpoint,
    save_parts,
    versions,
)
from resgen.training.stop import Interrupted, StopSignals
from resgen.types import LOCAL, Reduce


class Trainer:
    """Runs a task in a run folder.

    Args:
        task: what is trained.
        config: how long and how fast.
        out_dir: the run folder.
        max_minutes: budget of wall time over all sessions; None for none.
        resume: continue the run in `out_dir`.
        start_from_data: whether a new run's task starts from data; one that has been given trained weights must not.
        reduce: sums over processes.
        run_config: the whole resolved configuration, for `config.yaml` and for the check on resume; by default
            `{"training": config}`.
        clock: monotonic seconds.

    Raises:
        ConfigError: `out_dir` holds a run and `resume` is False, or a setting does not fit the machine.
        MissingExtraError: the package of a logger is missing.
    """

    def __init__(
        self,
        task: Task,
        config: TrainerConfig,
        out_dir: str | Path,
        *,
        max_minutes: float | None = None,
        resume: bool = False,
        start_from_data: bool = True,
        reduce: Reduce = LOCAL,
        run_config: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_minutes is not None and not 0 < max_minutes < math.inf:
            raise ConfigError(f"max_minutes={max_minutes} must be above 0")
        config.micro_batches(reduce.world_size)
        for name in ("shard", "recompute"):
            if getattr(config, name) and not hasattr(task, name):
                raise ConfigError(f"{name}=true is for generators; a {task.name} cannot do it")
        if config.shard and reduce.world_size == 1:
            raise ConfigError("shard=true divides a model over processes; start them with torchrun, or leave it false")
        check_packages(config.loggers)
        self.task, self.config, self.reduce = task, config, reduce
        self.out_dir = Path(out_dir)
        self.max_minutes = max_minutes
        self._resume = resume
        self._start_from_data = start_from_data
        self._clock = clock
        self._run_config = plain_config({"training": config_to_dict(config)} if run_config is None else run_config)
        check_run_folder(self.out_dir, resume or reduce.rank != 0)
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self._main = reduce.rank == 0
        self._stop = StopSignals()
        full_config = self._run_config | {
            "task": task.name,
            "num_samples": task.num_samples,
            "max_minutes": max_minutes,
        }
        self._state = TrainingState(
            step=0,
            elapsed_s=0.0,
            plan=Plan.fresh(config.num_steps, max_minutes, config.decay_fraction),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=config.seed,
            world_size=reduce.world_size,
            precision=self.precision,
            config=full_config,
            versions=versions(),
        )
        self._pending = Pending()
        self._validated: tuple[int, dict[str, float]] = (-1, {})
        self._saved_step = -1
        lengths, blocks = getattr(task, "lengths", None), getattr(task, "blocks", None)
        self._sampler = CounterSampler(task.num_samples, config.batch_size, config.seed, lengths=lengths, blocks=blocks)

    def run(self) -> dict[str, float]:
        """Train to the end and export the model; returns the final metrics.

        Raises:
            Interrupted: SIGINT or SIGTERM; a checkpoint was written.
            TrainingError: a loss or gradient is not finite, or a file cannot be written.
            CheckpointError: the run cannot be resumed, or a checkpoint cannot be written.
        """
        with self._stop.listening(), lock_folder(self.out_dir) if self._main else contextlib.nullcontext():
            self._prepare()
            try:
                reason = self._loop()
                return self._finish(reason)
            finally:
                self._log.close()

    def _prepare(self) -> None:
        """Build what needs the device, with the values of the newest checkpoint on resume."""
        config, messages = self.config, list[str]()
        checkpoint = load_newest(self.out_dir / "checkpoints", messages.append) if self._resume else None
        self._skeleton = self._place(checkpoint, messages)
        groups = self.task.optimizer_groups()
        self._main_group = next(iter(groups))
        self._optimizers = Optimizers(
            groups,
            {parameter: canonical_name(name) for name, parameter in self.task.module.named_parameters()},
            learning_rate=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        averaged = self.task.ema_module
        self._ema = Ema(averaged, config.ema_decay) if averaged is not None and config.ema_decay > 0 else None
        if checkpoint is not None:
            self._restore(*checkpoint)
        if self._main:
            write_text(self.out_dir / "config.yaml", yaml.safe_dump(self._run_config, sort_keys=False))
            about = environment(self.device) | {"precision": self.precision, "world_size": self.reduce.world_size}
            write_json(self.out_dir / "env.json", about)
        state = self._state
        self._log = Log(
            self.out_dir, step=state.step, loggers=config.loggers, config=state.config, quiet=not self._main
        )
        for message in [*messages, self._outline()]:
            self._log.message(message)
        self._session = self._logged = (self._clock(), state.step)

    def _outline(self) -> str:
        """What is about to be trained, on what and for how long, in one line."""
        config, count = self.config, sum(parameter.numel() for parameter in self.task.module.parameters())
        time = "" if self.max_minutes is None else f"{self.max_minutes:g} minutes or "
        name = self.task.name.replace("_", " ")
        return (
            f"training the {name}: {count:,} parameters on {self.device} ({self.precision}), "
            f"{self.task.num_samples:,} samples in batches of {config.batch_size}, {time}{config.num_steps:,} steps"
        )

    def _place(self, checkpoint: Checkpoint | None, messages: list[str]) -> nn.Module | None:
        """The model's values, on the device; returns what a divided model is put together by.

        Raises:
            ConfigError: the processes do not agree.
            CheckpointError: the checkpoint does not fit.
        """
        task, config = self.task, self.config
        step = checkpoint[0].step if checkpoint else None
        at = {"precision": self.precision, "versions": versions(), "checkpoint": step}
        check_agreement(self._state.config | at, self.reduce)
        if not config.shard:  # else from the processor's memory, block by block: see below
            task.to(self.device)
        if checkpoint is not None:
            state, tensors, path = checkpoint
            messages.append(f"resuming '{self.out_dir}' after step {state.step}")
            messages += check_resumable(
                state, path, config=self._state.config, precision=self.precision, world_size=self.reduce.world_size
            )
            load_state(task.module, tensors.get("model", {}), str(path / "model.safetensors"))
        else:
            if self._resume:
                messages.append(no_checkpoint(self.out_dir))
            if self._start_from_data and hasattr(task, "before_start"):
                task.before_start(generator(config.seed, "before_start"), self.reduce)
        skeleton = skeleton_of(task.module) if config.shard else None
        if config.compile and hasattr(task, "compile"):
            task.compile()
        if config.recompute:
            cast(Any, task).recompute()
        if config.shard:
            cast(Any, task).shard(make_shard(self.device))
            task.to(self.device)
        return skeleton

    def _restore(self, state: TrainingState, tensors: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        self._optimizers.load(tensors.get("optimizer", {}), str(path / "optimizer.safetensors"))
        if self._ema is not None:
            self._ema.load(tensors.get("ema", {}), str(path / "ema.safetensors"))
        now, self._saved_step, self._pending = self._state, state.step, Pending(state.pending)
        planned_alike = (state.plan.num_steps, state.plan.max_minutes) == (now.plan.num_steps, now.plan.max_minutes)
        self._state = dataclasses.replace(
            now,
            step=state.step,
            elapsed_s=state.elapsed_s,
            plan=state.plan if planned_alike else now.plan,
            best_step=state.best_step,
            best_value=state.best_value,
            last_means=state.last_means,
            started=state.started,
        )

    def _elapsed(self) -> float:
        return self._state.elapsed_s + self._clock() - self._session[0]

    def _loop(self) -> str:
        """Train until the plan's end, the budget or a signal; returns which."""
        config, state = self.config, self._state
        self._log.start()
        while True:
            elapsed = self._agreed(self._elapsed()) if self.max_minutes is not None else 0.0
            state.plan = state.plan.updated(state.step, elapsed, config.decay_fraction)
            if state.plan.planned_steps is not None and state.step >= state.plan.planned_steps:
                return "end"
            if self.max_minutes is not None and elapsed >= 60 * self.max_minutes:
                return "budget"
            if self._stop_requested():
                self._save()
                raise Interrupted(state.step, self.out_dir)
            loss = self._train_step()
            state.step += 1
            self._show_progress(loss)
            if state.step % config.log_every == 0:
                self._write_log()
            better = False
            if config.validate_every and state.step % config.validate_every == 0:
                self._log.write("validation", state.step, self._validate())
                better = self._note_best(self._validate())
            if config.evaluate_every and state.step % config.evaluate_every == 0:
                self._evaluate()
            if config.sample_every and state.step % config.sample_every == 0:
                self._sample()
            if better or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                self._save()

    def _agreed(self, value: float) -> float:
        """The largest value over processes, so that all decide alike."""
        if self.reduce.world_size == 1:
            return value
        return float(self.reduce.max(torch.tensor(value, dtype=torch.float64)))

    def _stop_requested(self) -> bool:
        return self._agreed(float(self._stop.count)) > 0

    def _train_step(self) -> float | None:
        """One optimizer step; returns the main loss where it is known without waiting for the device."""
        step, world = self._state.step, self.reduce.world_size
        self._optimizers.zero_grad()
        self._prefetch(step, step + 1)
        stream = generator(self.config.seed, "train", step)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        with autocast(self.precision, self.device):
            tasks = self.task.losses(self._sampler.indices(step), self._parts, step, stream, self.reduce)
        for group, compute in tasks:
            with autocast(self.precision, self.device):
                loss, more = compute()
            self._backward(group, loss * world)  # of which the processes take the mean
            _add(losses, {self._label("loss", group): loss.detach().float()})
            _add(metrics, more)
        for name, value in metrics.items():
            self._pending.add(name, value * world)  # of which the log takes the mean
        losses = {name: self.reduce.sum(loss) for name, loss in losses.items()}
        self._note(losses)
        if self._skeleton is None:  # a divided model averages its own
            for parameters in self._optimizers.parameters.values():
                average_gradients(parameters, self.reduce)
        self._note({self._label("grad_norm", group): norm for group, norm in self._optimizers.clip().items()})
        self._optimizers.step(self._factor(step))
        if (after_step := getattr(self.task, "after_step", None)) is not None:
            stream = generator(self.config.seed, "after_step", step)
            for name, noted in (after_step(step, stream, self.reduce) or {}).items():
                self._pending.add(name, noted)
        if self._ema is not None:
            self._ema.update(step)
        return float(losses["loss"]) if self.device.type == "cpu" and "loss" in losses else None

    def _prefetch(self, *steps: int) -> None:
        """Name this process's samples of steps to a task that wants to know them."""
        if (prefetch := getattr(self.task, "prefetch", None)) is not None:
            own = slice(self._parts[0].start, self._parts[-1].stop)
            for step in steps:
                if step < self.config.num_steps:
                    prefetch(self._sampler.indices(step)[own])

    @property
    def _parts(self) -> list[slice]:
        """The micro-batches of this process within the batch of a step."""
        count, rank = self.config.accumulate, self.reduce.rank
        size = self.config.batch_size // (count * self.reduce.world_size)
        return [slice(number * size, (number + 1) * size) for number in range(rank * count, (rank + 1) * count)]

    def _backward(self, group: str, loss: Tensor) -> None:
        parameters = self._optimizers.parameters
        loss.backward(inputs=None if len(parameters) == 1 else parameters[group])

    def _note(self, values: Mapping[str, Tensor]) -> None:
        """Remember losses or norms; on the CPU, where it costs nothing, check them now."""
        for name, value in values.items():
            self._pending.add(name, value)
        if self.device.type == "cpu":
            self._check_finite({name: [float(value)] for name, value in values.items()}, self._state.step + 1)

    def _label(self, name: str, group: str) -> str:
        return name if group == self._main_group else f"{name}_{group}"

    def _factor(self, step: int) -> float:
        return self._state.plan.factor(step, warmup_steps=self.config.warmup_steps, shape=self.config.decay_shape)

    def _check_finite(self, values: Mapping[str, list[float]], step: int) -> None:
        remedy = f"try a learning_rate below {self.config.learning_rate} or precision=fp32"
        check_finite(values, step, saved_step=self._saved_step, remedy=remedy)

    @property
    def _total(self) -> int:
        return self._state.plan.planned_steps or self.config.num_steps

    def _time_left(self, steps_per_s: float) -> float:
        by_steps = (self._total - self._state.step) / steps_per_s if steps_per_s > 0 else math.inf
        return by_steps if self.max_minutes is None else min(by_steps, 60 * self.max_minutes - self._elapsed())

    def _show_progress(self, loss: float | None) -> None:
        since, step = self._session
        speed = (self._state.step - step) / max(self._clock() - since, 1e-9)
        self._log.progress(self._state.step, loss=loss, steps_per_s=speed, left_s=self._time_left(speed))

    def _write_log(self) -> None:
        state = self._state
        self._pending.average(self.reduce)
        self._check_finite(self._pending.values(), state.step)
        means = state.last_means = self._pending.means()
        self._pending.clear()
        (since, step), self._logged = self._logged, (self._clock(), state.step)
        speed = (state.step - step) / max(self._logged[0] - since, 1e-9)
        line = {
            **means,
            "learning_rate": self.config.learning_rate * self._factor(state.step - 1),
            "seconds": self._elapsed(),
            "samples_per_second": speed * self.config.batch_size,
        }
        self._log.write("train", state.step, line)
        left = self._time_left(speed)
        self._log.progress(state.step, loss=means.get("loss"), steps_per_s=speed, left_s=left)

    @contextlib.contextmanager
    def _evaluation(self) -> Iterator[nn.Module]:
        """The averaged weights in place, no gradients, and every submodule's mode put back afterwards.

        A divided model is put together again for it, so all processes must come here.
        """
        if self._skeleton is not None:
            values = None if self._ema is None else self._ema.tensors()
            module = whole_copy(self._skeleton, self.task.module, values)
            with cast(Any, self.task).replaced(module), torch.no_grad():
                yield module
            return
        module = self.task.ema_module or self.task.module
        # Validation batches have other shapes; compiling for each of them would take longer than it saves.
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else contextlib.nullcontext()
        averages = self._ema.applied() if self._ema is not None else contextlib.nullcontext()
        with in_evaluation_mode(self.task.module), eager, averages, torch.no_grad():
            yield module

    def _validate(self) -> dict[str, float]:
        """The task's validation metrics at this step, computed once."""
        if self._validated[0] != self._state.step:
            with self._evaluation() as module, autocast(self.precision, self.device):
                metrics = {name: float(value) for name, value in self.task.validate(module, self.reduce).items()}
            self._validated = (self._state.step, metrics)
        return self._validated[1]

    def _note_best(self, metrics: Mapping[str, float]) -> bool:
        state, value = self._state, metrics.get("val_loss", math.inf)
        if not math.isfinite(value) or (state.best_value is not None and value >= state.best_value):
            return False
        state.best_step, state.best_value = state.step, value
        return True

    def _sample(self) -> None:
        path = self.out_dir / "samples" / f"step_{self._state.step:08d}.png"
        with self._evaluation(), writing(path):
            if self._main:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.task.sample(path)
        self._log.samples(self._state.step, path)

    def _evaluate(self) -> None:
        """Metrics of generated samples into the log, where the task has them."""
        if (evaluate := getattr(self.task, "evaluate", None)) is None:
            return
        with self._evaluation() as module, autocast(self.precision, self.device):
            metrics = {name: float(value) for name, value in evaluate(module).items()} if self._main else {}
        if metrics:
            self._log.write("evaluation", self._state.step, metrics)
            self._log.message(f"step {self._state.step}  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def _save(self) -> None:
        """Write a checkpoint of this step, once; nothing is saved after a loss that is not finite."""
        self._pending.average(self.reduce)
        self._check_finite(values := self._pending.values(), self._state.step)
        if self._saved_step == self._state.step or not (self._main or self._skeleton is not None):
            return
        state = dataclasses.replace(self._state, elapsed_s=self._elapsed(), pending=values)
        files = {"model": module_tensors(self.task.module), "optimizer": self._optimizers.tensors()}
        if self._ema is not None:
            files["ema"] = self._ema.tensors()
        folder = self.out_dir / "checkpoints"
        self._saved_step = self._state.step
        if self._skeleton is not None:
            save_parts(folder, state, files, self.reduce.rank)
        else:
            save_checkpoint(folder, state, files)
        if not self._main:
            return
        clean_checkpoints(folder, newest_step=state.step, keep_last=self.config.keep_last, best_step=state.best_step)

    def _finish(self, reason: str) -> dict[str, float]:
        """Checkpoint, then the last validation, samples and the published model."""
        self._save()
        why = f": the time limit of {self.max_minutes:g} min is reached" if reason == "budget" else ""
        self._log.message(f"stopped after step {self._state.step:,}, {format_seconds(self._elapsed())}{why}")
        metrics = {**self._state.last_means, **self._pending.means(), **self._validate()}
        if self._note_best(self._validate()):
            self._saved_step = -1  # the same step again, now known as the best
            self._save()
        self._log.write("final", self._state.step, {**metrics, "seconds": self._elapsed()})
        self._raise_if_stopped()
        self._sample()
        self._raise_if_stopped()
        folder = self.out_dir / "model"
        with self._evaluation(), writing(folder):
            if self._main:
                self.task.export(folder, self._history(metrics))
        return metrics

    def _raise_if_stopped(self) -> None:
        if self._stop_requested():
            raise Interrupted(self._state.step, self.out_dir)

    def _history(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        state = self._state
        return {
            "steps": state.step,
            "seconds": self._elapsed(),
            "metrics": dict(metrics),
            "best": None if state.best_step is None else {"step": state.best_step, "value": state.best_value},
            "started": state.started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": state.config,
            "versions": state.versions,
            "precision": self.precision,
            "device": self.device.type,
        }


def _add(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value
