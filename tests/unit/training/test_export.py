"""A model as it was at a checkpoint."""

from __future__ import annotations

import itertools
import json
import shutil
import signal

import pytest
import torch

from resgen.checkpoints import load_folder, load_tensors, module_tensors, save_folder
from resgen.cli.main import main
from resgen.errors import CheckpointError, ConfigError
from resgen.training import Interrupted, Trainer
from resgen.training.export import export_checkpoint

VALIDATED = {10: 3.0, 20: 1.0, 30: 2.0}


@pytest.fixture
def run(toy, tmp_path):
    """A training that is best at step 20 of 30, and the weights that were validated, by step."""
    seen = {}

    class Task(toy.ToyTask):
        def __init__(self):
            super().__init__()
            self.ema_module = self.module

        def validate(self, module, reduce):
            step = 10 * (len(seen) + 1)
            seen[step] = {name: tensor.clone() for name, tensor in module_tensors(module).items()}
            return {"val_loss": VALIDATED[step]}

        def export(self, folder, history):
            super().export(folder, {"tokenizer": history, "measured": [{"of": "the last weights"}]})

    Trainer(Task(), toy.toy_config(keep_last=2), tmp_path / "run", run_config={"stage": "tokenizer"}).run()
    return tmp_path / "run", seen


def weights(folder):
    return load_tensors(load_folder(folder).component("tokenizer"))


def equal(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in others)


def test_the_best_is_what_was_validated_best(run, tmp_path):
    path, seen = run
    state = export_checkpoint(path, tmp_path / "best")
    assert equal(weights(path / "model"), seen[30]) and equal(weights(tmp_path / "best"), seen[20])
    assert (state.step, state.best_value) == (20, 1.0)
    last, best = (load_folder(folder).extra["history"] for folder in (path / "model", tmp_path / "best"))
    assert "measured" in last and "measured" not in best, "what was measured is of other weights"
    assert best["tokenizer"]["steps"] == 20 and best["tokenizer"]["metrics"]["val_loss"] == 1.0
    assert best["tokenizer"]["config"] == last["tokenizer"]["config"] and last["tokenizer"]["steps"] == 30


def test_a_step_and_the_place_of_the_model_itself(run):
    path, seen = run
    assert export_checkpoint(path, path / "model", 28).step == 28
    assert load_folder(path / "model").record("tokenizer")["steps"] == 28
    assert "val_loss" not in load_folder(path / "model").record("tokenizer")["metrics"]
    export_checkpoint(path, path / "model", 30)
    assert equal(weights(path / "model"), seen[30])


def test_the_command_says_what_it_wrote(run, tmp_path, capsys):
    path, seen = run
    assert main(["export", str(path), "--out", str(tmp_path / "best")]) == 0
    assert capsys.readouterr().out.startswith("model of step 20: ")
    argv = ["export", str(path), "--checkpoint", "30", "--out", str(tmp_path / "last"), "--json"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["step"] == 30 and document["best"] == {"step": 20, "val_loss": 1.0}
    assert equal(weights(tmp_path / "last"), seen[30])
    kept = "keeps no checkpoint of step 5; kept: 20, 28, 30"
    for checkpoint, named in (("5", kept), ("bst", "--checkpoint 'bst' must be best or the step")):
        assert main([*argv[:3], checkpoint, "--out", str(tmp_path / "none")]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_an_interrupted_training_ends_at_its_last_checkpoint_with_no_minutes_left(toy, tmp_path):
    """The remedy that the error names."""
    task, config, run = toy.ToyTask(), toy.toy_config(ema_decay=0.0), tmp_path / "run"
    task.on_loss = lambda step, first: signal.raise_signal(signal.SIGTERM) if step == 12 else None
    settings = {"run_config": {"stage": "tokenizer"}, "clock": itertools.count().__next__}
    with pytest.raises(Interrupted):
        Trainer(task, config, run, **settings).run()
    with pytest.raises(CheckpointError, match="--resume; with --max-minutes 0.001 as well, it ends"):
        export_checkpoint(run, tmp_path / "out")
    Trainer(toy.ToyTask(), config, run, resume=True, max_minutes=0.001, **settings).run()
    assert equal(weights(run / "model"), module_tensors(task.module))
    assert export_checkpoint(run, tmp_path / "out", 13).step == 13
    assert equal(weights(tmp_path / "out"), weights(run / "model"))


def test_what_cannot_be_exported_is_refused(run, toy, tmp_path):
    path, _ = run
    with pytest.raises(ConfigError, match="must be the folder of a training that has ended"):
        export_checkpoint(path / "model", tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no run '.*/runn'; did you mean '.*/run'"):
        export_checkpoint(tmp_path / "runn", tmp_path / "out")
    (tmp_path / "begun/checkpoints").mkdir(parents=True)
    (tmp_path / "begun/config.yaml").touch()
    (tmp_path / "begun/env.json").touch()
    with pytest.raises(CheckpointError, match="the training in .* has not finished and left no model yet; go on with"):
        export_checkpoint(tmp_path / "begun", tmp_path / "out")
    config = toy.toy_config(num_steps=3, validate_every=0, ema_decay=0.9)
    other = tmp_path / "other"
    task = toy.ToyTask()
    task.validate = lambda module, reduce: {}
    Trainer(task, config, other, run_config={"stage": "tokenizer"}).run()
    with pytest.raises(ConfigError, match=r"no best checkpoint \(the training was not validated\); kept: 3$"):
        export_checkpoint(other, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is not part of the model"):  # averages of other names
        export_checkpoint(other, tmp_path / "out", 3)
    (path / "checkpoints/step_00000020/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        export_checkpoint(path, tmp_path / "out")
    shutil.rmtree(path / "model")
    save_folder(path / "model", kind="vocoder", components={})
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        export_checkpoint(path, tmp_path / "out", 30)
    assert not (tmp_path / "out").exists()
