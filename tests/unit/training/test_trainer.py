"""The training loop on a toy task: resume, damage, signals, budgets, messages."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml

from resgen.checkpoints import load_folder, load_tensors
from resgen.devices import choose_device
from resgen.errors import CheckpointError, ConfigError, ResGenError, TrainingError, WriteError
from resgen.training import Interrupted, Trainer, TrainerConfig
from resgen.training import state as training_state
from resgen.training.parallel import choose_precision
from resgen.training.state import list_checkpoints


def run(toy, out, *, task=None, resume=False, max_minutes=None, clock=None, run_config=None, **changes):
    task = task or toy.ToyTask()
    extra = {"clock": clock} if clock else {}
    trainer = Trainer(
        task,
        toy.toy_config(**changes),
        out,
        resume=resume,
        max_minutes=max_minutes,
        run_config=run_config,
        **extra,
    )
    return trainer.run(), task


def interrupt(task, step, number=signal.SIGTERM, times=1):
    def on_loss(at, first):
        if at == step and first == 0:
            for _ in range(times):
                os.kill(os.getpid(), number)

    task.on_loss = on_loss
    return task


def steps(out):
    return [int(path.name[5:]) for path in list_checkpoints(out / "checkpoints")]


def weights(out):
    return load_tensors(load_folder(out / "model").component("tokenizer"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("log_every", [1, 4])
def test_run_interrupted_by_a_signal_continues_exactly(toy, tmp_path, number, log_every):
    final, _ = run(toy, tmp_path / "a", log_every=log_every)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="interrupted after step 13") as error:
        run(toy, tmp_path / "b", task=interrupt(toy.ToyTask(), 12, number), log_every=log_every)
    assert error.value.step == 13 and signal.getsignal(number) is before
    assert steps(tmp_path / "b")[-1] == 13 and not (tmp_path / "b" / "model").exists()
    resumed, task = run(toy, tmp_path / "b", resume=True, log_every=log_every)
    assert task.started == 0
    assert toy.metrics(tmp_path / "a") == toy.metrics(tmp_path / "b")
    assert resumed == final
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and int(ours["calls"]) == 30


def test_second_signal_stops_at_once(toy, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path, task=interrupt(toy.ToyTask(), 12, signal.SIGINT, times=2))
    assert steps(tmp_path)[-1] == 10


def test_damaged_newest_checkpoint_is_passed_over(toy, tmp_path, capsys):
    run(toy, tmp_path / "a", num_steps=30)
    run(toy, tmp_path / "b", num_steps=25, decay_fraction=0.0)
    assert steps(tmp_path / "b") == [20, 21, 25]
    file = tmp_path / "b" / "checkpoints" / "step_00000025" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    capsys.readouterr()
    run(toy, tmp_path / "b", num_steps=25, decay_fraction=0.0, resume=True)
    message = capsys.readouterr().err
    assert "checkpoint passed over" in message and "step_00000025/optimizer.safetensors' is damaged" in message
    assert "after step 21" in message
    assert steps(tmp_path / "b") == [20, 21, 25]
    for path in list_checkpoints(tmp_path / "b" / "checkpoints"):
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        run(toy, tmp_path / "b", num_steps=25, decay_fraction=0.0, resume=True)


def test_checkpoint_of_a_newer_version_is_an_error_not_damage(toy, tmp_path):
    run(toy, tmp_path, num_steps=14)
    file = tmp_path / "checkpoints" / "step_00000014" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 9}))
    with pytest.raises(CheckpointError, match="upgrade resgen"):
        run(toy, tmp_path, num_steps=14, resume=True)


def test_a_loss_that_is_not_finite_stops_and_saves_nothing_more(toy, tmp_path):
    with pytest.raises(TrainingError, match="loss is nan at or before step 18; the last good checkpoint is of step 14"):
        run(toy, tmp_path, task=toy.ToyTask(nan_at=17))
    assert steps(tmp_path) == [7, 10, 14]
    assert toy.metrics(tmp_path)[-1]["step"] == 17 and not (tmp_path / "model").exists()
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        run(toy, tmp_path / "b", task=toy.ToyTask(nan_at=0))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(toy, tmp_path):
    task = toy.ToyTask()
    first = task.module.main[0].weight
    first.register_hook(lambda g: g * float("inf") if task.module.calls == 5 else g)
    with pytest.raises(TrainingError, match="grad_norm is (inf|nan)"):
        run(toy, tmp_path, task=task)
    assert torch.isfinite(first).all()


def test_resume_refuses_another_configuration_and_names_the_key(toy, tmp_path, capsys):
    run(toy, tmp_path, num_steps=8)
    with pytest.raises(
        CheckpointError, match=r"training.learning_rate=0.01 but this run has training.learning_rate=0.1"
    ):
        run(toy, tmp_path, num_steps=8, learning_rate=0.1, resume=True)
    task = toy.ToyTask()
    task.num_samples = 49
    with pytest.raises(CheckpointError, match="num_samples=50 but this run has num_samples=49"):
        run(toy, tmp_path, task=task, num_steps=8, resume=True)
    capsys.readouterr()
    run(toy, tmp_path, num_steps=9, log_every=2, validate_every=3, evaluate_every=5, checkpoint_every=4, resume=True)
    message = capsys.readouterr().err
    assert "training.num_steps: 8 -> 9" in message and "losses may differ" in message


def test_folder_with_a_run_needs_resume(toy, tmp_path, capsys):
    run(toy, tmp_path / "a", num_steps=2)
    with pytest.raises(ConfigError, match="holds a run; continue it with --resume or choose another --out"):
        run(toy, tmp_path / "a", num_steps=2)
    _, task = run(toy, tmp_path / "b", num_steps=2, resume=True)
    error = capsys.readouterr().err
    assert task.started == 1 and f"no checkpoint in '{tmp_path / 'b'}'; starting from the beginning" in error
    (tmp_path / "faces").mkdir()
    (tmp_path / "a").rename(tmp_path / "faces" / "a")
    run(toy, tmp_path / "faces2", num_steps=2, resume=True)
    assert "did you mean" not in capsys.readouterr().err, "a folder that holds no run"
    run(toy, tmp_path / "faces3", num_steps=2, resume=True)
    assert f"(did you mean '{tmp_path / 'faces2'}'?); starting" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        run(toy, tmp_path / "file")


def test_two_processes_cannot_train_in_one_folder(toy, tmp_path):
    task, errors = toy.ToyTask(), []

    def second(step, first):
        if step == 1 and not errors:
            try:
                run(toy, tmp_path, resume=True)
            except TrainingError as error:
                errors.append(str(error))

    task.on_loss = second
    run(toy, tmp_path, task=task, num_steps=3)
    assert len(errors) == 1 and "another process is training" in errors[0]


class Clock:
    """One second per training step."""

    def __init__(self, task):
        self.now = 1000.0
        task.on_loss = self.tick

    def tick(self, step, first):
        if first == 0:
            self.now += 1.0

    def __call__(self):
        return self.now


def test_budget_of_time_plans_the_decay_and_is_kept(toy, tmp_path):
    task = toy.ToyTask()
    _, task = run(toy, tmp_path, task=task, clock=Clock(task), max_minutes=1.0, num_steps=10**6, decay_fraction=0.25)
    train = [line for line in toy.metrics(tmp_path) if line["kind"] == "train"]
    assert len(train) == 60 and task.exports[0]["steps"] == 60
    rates = [line["learning_rate"] / 0.01 for line in train]
    assert rates[3:46] == [1.0] * 43
    assert rates[45:] == pytest.approx([1 - k / 15 for k in range(15)])
    state = json.loads((tmp_path / "checkpoints" / "step_00000060" / "state.json").read_text())["state"]
    assert state["plan"] == {"num_steps": 10**6, "max_minutes": 1.0, "decay_start": 45, "planned_steps": 60}
    assert state["elapsed_s"] == pytest.approx(60.0)


@pytest.mark.parametrize("stop_at", [30, 50])
def test_budget_counts_earlier_sessions_and_keeps_the_plan(toy, tmp_path, stop_at):
    options = {"max_minutes": 1.0, "num_steps": 10**6, "decay_fraction": 0.25}
    whole, task = toy.ToyTask(), interrupt(toy.ToyTask(), stop_at)
    run(toy, tmp_path / "a", task=whole, clock=Clock(whole), **options)
    stop, clock = task.on_loss, Clock(task)
    task.on_loss = lambda step, first: (stop(step, first), clock.tick(step, first))
    with pytest.raises(Interrupted):
        run(toy, tmp_path / "b", task=task, clock=clock, **options)
    rest = toy.ToyTask()
    run(toy, tmp_path / "b", task=rest, clock=Clock(rest), resume=True, **options)
    assert toy.metrics(tmp_path / "a") == toy.metrics(tmp_path / "b")


def test_budget_is_a_hard_stop_if_steps_become_slower(toy, tmp_path, capsys):
    task = toy.ToyTask()
    clock = Clock(task)
    task.on_loss = lambda step, first: setattr(clock, "now", clock.now + (0.5 if step < 45 else 2.0))
    run(toy, tmp_path, task=task, clock=clock, max_minutes=1.0, num_steps=10**6, decay_fraction=0.25)
    assert task.exports[0]["steps"] == 49 and steps(tmp_path)[-1] == 49
    begin, *_, end = capsys.readouterr().err.splitlines()
    assert begin.startswith("training the toy: ") and begin.endswith(", 1 minutes or 1,000,000 steps")
    assert "parameters on cpu (fp32), " in begin
    assert end.startswith("stopped after step 49, ") and end.endswith(": the time limit of 1 min is reached")


def test_best_checkpoint_is_kept_besides_the_last(toy, tmp_path):
    task = toy.ToyTask()
    values = iter([5.0, 1.0, 3.0, 4.0, 2.0, 6.0])
    task.validate = lambda module, reduce: {"val_loss": next(values)}
    run(toy, tmp_path, task=task, num_steps=60, keep_last=2, checkpoint_every=4)
    assert steps(tmp_path) == [20, 56, 60]
    assert task.exports[0]["best"] == {"step": 20, "value": 1.0}


def test_validation_uses_the_average_and_leaves_no_trace(toy, tmp_path):
    seen = []

    class Watch(toy.ToyTask):
        def validate(self, module, reduce):
            assert module is self.ema_module and not torch.is_grad_enabled() and not self.module.training
            seen.append(module[0].weight.detach().clone())
            return super().validate(module, reduce)

    task = Watch()
    task.module.main[1].eval()
    run(toy, tmp_path / "a", task=task, validate_every=1, sample_every=1)
    assert not torch.equal(seen[-1], task.module.main[0].weight)
    assert task.module.training and not task.module.main[1].training
    assert torch.equal(weights(tmp_path / "a")["main.0.weight"], seen[-1])
    run(toy, tmp_path / "b", validate_every=0)
    losses = [[m["loss"] for m in toy.metrics(tmp_path / p) if m["kind"] == "train"] for p in ("a", "b")]
    assert losses[0] == losses[1] and len(losses[0]) == 30
    assert (tmp_path / "a" / "samples" / "step_00000007.png").exists()


def test_samples_are_named_before_their_step_and_the_step_before(toy, tmp_path):
    named, used = [], []

    class Watch(toy.ToyTask):
        def prefetch(self, indices):
            named.append(indices.tolist())

        def losses(self, indices, *others):
            used.append((indices.tolist(), len(named)))
            return super().losses(indices, *others)

    run(toy, tmp_path, task=Watch(), num_steps=5)
    for step, (indices, count) in enumerate(used):
        assert indices in named[:count], "before its own step"
        if step > 0:
            assert indices in named[: used[step - 1][1]], "before the step before"


def test_steps_are_taken_at_the_learning_rate_that_the_log_tells(toy, tmp_path, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watch(optimizer, *args):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    run(toy, tmp_path)
    told = [line["learning_rate"] for line in toy.metrics(tmp_path) if line["kind"] == "train"]
    assert len(told) == 30 and len(rates) == 60  # of both groups
    assert rates == [[rate, rate] for rate in told for _ in range(2)]
    assert told[:4] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01])
    assert told[14:] == pytest.approx([0.01 * (1 - k / 15) for k in (0, *range(15))])


def test_what_is_exported_is_the_average_over_all_steps(toy, tmp_path):
    """Of the weights after each step, the later ones counting more: min(decay, (1 + s) / (10 + s)) of the old stays."""
    task = toy.ToyTask()
    average = task.module.main[0].weight.detach().clone()
    after_step = task.after_step

    def watch(step, *rest):
        keep = min(0.9, (1 + step) / (10 + step))
        average.copy_(keep * average + (1 - keep) * task.module.main[0].weight.detach())
        after_step(step, *rest)

    task.after_step = watch
    run(toy, tmp_path, task=task)
    torch.testing.assert_close(weights(tmp_path)["main.0.weight"], average)
    assert (average - task.module.main[0].weight).abs().max() > 1e-3


def test_micro_batches_sum_to_the_gradient_of_the_batch(toy, tmp_path):
    """What is random is drawn for the whole batch: a step in 1 or 4 micro-batches gives the same weights."""
    result = []
    for accumulate in (1, 4):
        _, task = run(toy, tmp_path / str(accumulate), task=toy.ToyTask(), accumulate=accumulate, num_steps=3)
        result.append((task.module.main[0].weight.detach(), toy.metrics(tmp_path / str(accumulate))[0]))
    torch.testing.assert_close(result[0][0], result[1][0], rtol=1e-4, atol=1e-6)
    assert result[0][1]["loss"] == pytest.approx(result[1][1]["loss"], rel=1e-5)
    assert result[0][1]["grad_norm"] == pytest.approx(result[1][1]["grad_norm"], rel=1e-5)


def test_a_loss_moves_its_own_group_only(toy, tmp_path):
    class MainOnly(toy.ToyTask):
        def losses(self, *args):
            return super().losses(*args)[:1]

    task = MainOnly()
    before = task.module.critic.weight.detach().clone()
    run(toy, tmp_path, task=task, num_steps=3)
    assert torch.equal(task.module.critic.weight, before)


def test_log_line_is_the_mean_since_the_last(toy, tmp_path):
    run(toy, tmp_path / "a", num_steps=8)
    run(toy, tmp_path / "b", num_steps=8, log_every=4)
    single = [m for m in toy.metrics(tmp_path / "a") if m["kind"] == "train"]
    joint = [m for m in toy.metrics(tmp_path / "b") if m["kind"] == "train"]
    assert [m["step"] for m in joint] == [4, 8]
    for name in ("loss", "loss_critic", "rms", "grad_norm", "grad_norm_critic"):
        assert joint[1][name] == pytest.approx(sum(m[name] for m in single[4:]) / 4)
    assert {"seconds", "samples_per_second", "learning_rate"} <= set(
        json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    )


def test_a_write_that_fails_keeps_the_last_checkpoint(toy, tmp_path, monkeypatch):
    write = training_state.write_tensors

    def full(path, tensors):
        write(path, tensors)
        if "step_00000014" in str(path) and "optimizer" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state, "write_tensors", full)
    with pytest.raises(WriteError, match="step_00000014': No space left on device") as error:
        run(toy, tmp_path)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000007", "step_00000010"]
    task = toy.ToyTask()

    def no_space(path):
        raise OSError(28, "No space left on device")

    task.sample = no_space
    with pytest.raises(WriteError, match="cannot write .*samples/step_00000002.png': No space"):
        run(toy, tmp_path / "b", task=task, num_steps=2)


class FullDisk:
    """No space left at the write number `at`, and at every later one."""

    def __init__(self, monkeypatch):
        self.at, self.count = 0, 0
        for owner, name in (
            (training_state, "write_tensors"),
            (Path, "mkdir"),
            (Path, "write_text"),
            (os, "rename"),
            (os, "replace"),
            (os, "fsync"),
        ):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))
        self.open = Path.open
        monkeypatch.setattr(Path, "open", lambda *args, **options: self.opened(*args, **options))

    def guarded(self, function):
        def call(*args, **options):
            self.write()
            return function(*args, **options)

        return call

    def opened(self, path, mode="r", *args, **options):
        if mode[0] in "wxa":
            self.write()
        return self.open(path, mode, *args, **options)

    def write(self):
        self.count += 1
        if self.at and self.count >= self.at:
            raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_at_any_write_loses_nothing_but_steps(toy, tmp_path, monkeypatch):
    settings = {"num_steps": 4, "checkpoint_every": 2, "validate_every": 2, "keep_last": 1}
    final, _ = run(toy, tmp_path / "unbroken", **settings)
    disk = FullDisk(monkeypatch)
    run(toy, tmp_path / "counted", **settings)
    writes = disk.count
    assert writes > 40
    for at in range(1, writes + 1):
        out = tmp_path / str(at)
        disk.at, disk.count = at, 0
        with pytest.raises(ResGenError, match="No space left on device") as error:
            run(toy, out, **settings)
        assert "\n" not in str(error.value), at
        saved = steps(out)
        disk.at = 0
        resumed, _ = run(toy, out, resume=True, **settings)
        assert resumed == final and toy.metrics(out) == toy.metrics(tmp_path / "unbroken"), at
        assert len(saved) <= 2 and steps(out)[-1] == 4, at
        assert not [path for path in out.rglob("*") if ".tmp" in path.name or ".old" in path.name], at


def test_run_folder_holds_the_resolved_configuration(toy, tmp_path):
    whole = {"model": {"shape": (2, 3)}, "training": {"num_steps": 2}}
    _, task = run(toy, tmp_path, num_steps=2, run_config=whole)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"] == {"shape": [2, 3]}
    environment = json.loads((tmp_path / "env.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__ and environment["precision"] == "fp32"
    history = load_folder(tmp_path / "model").extra["history"]
    assert history["steps"] == 2 and history["config"]["model"] == {"shape": [2, 3]}
    assert history["metrics"]["val_loss"] > 0 and history["started"] <= history["finished"]
    run(toy, tmp_path, num_steps=2, run_config=whole, resume=True)
    with pytest.raises(ConfigError, match="not plain data"):
        run(toy, tmp_path / "b", run_config={"model": object()})


def test_finished_run_only_exports_again(toy, tmp_path):
    final, _ = run(toy, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    again, task = run(toy, tmp_path, resume=True)
    assert task.exports[0]["steps"] == 30 and again["val_loss"] == final["val_loss"]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:-1] == before[:-1]


def test_losses_run_in_bfloat16_where_asked(toy, tmp_path):
    kinds = []

    class Watch(toy.ToyTask):
        def losses(self, *args):
            ((group, compute), *_) = super().losses(*args)
            return [(group, functools.partial(self.watch, compute))]

        def watch(self, compute):
            kinds.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return compute()

        def validate(self, module, reduce):
            kinds.append(torch.is_autocast_enabled("cpu"))
            return {}

    run(toy, tmp_path, task=Watch(), precision="bf16", num_steps=1, accumulate=1, validate_every=1)
    assert kinds == [torch.bfloat16, True]


def test_training_works_outside_the_main_thread(toy, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(toy, tmp_path, num_steps=2)[0]))
    thread.start()
    thread.join()
    assert results and results[0]["val_loss"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"batch_size": 9, "accumulate": 2}, "batch_size=9 must be a multiple of accumulate=2"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"decay_fraction": 1.5}, "decay_fraction=1.5"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"decay_shape": "cosin"}, r"did you mean 'cosine'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**changes)


def test_wrong_budget_or_machine_is_refused(toy, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="max_minutes=0"):
        Trainer(toy.ToyTask(), toy.toy_config(), tmp_path, max_minutes=0.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="usable GPU"):
        choose_device("cuda:1")
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("name", ["shard", "recompute"])
def test_what_a_task_cannot_do_is_refused(toy, tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name}=true is for generators; a toy cannot"):
        run(toy, tmp_path / "run", **{name: True})
    assert not (tmp_path / "run").exists()


def test_settings_that_only_one_side_has_are_different():
    with pytest.raises(CheckpointError, match="trained with a.c=<absent> but this run has a.c=2"):
        training_state.compare_configs({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, "x")
    with pytest.raises(CheckpointError, match="trained with a.d=1 but this run has a.d=<absent>"):
        training_state.compare_configs({"a": {"b": 1, "d": 1}}, {"a": {"b": 1}}, "x")
