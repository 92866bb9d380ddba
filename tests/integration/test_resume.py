"""Training in a process that is killed, stopped or crashes, and goes on as if nothing had happened."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from processes import TIMEOUT_S, Worker
from resgen.checkpoints import sha256_file

SCRIPT = Path(__file__).with_name("toy_training.py")
_spec = importlib.util.spec_from_file_location("toy_training", SCRIPT)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def start(out, *arguments):
    return Worker(SCRIPT, out, *arguments)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    code, err = start(out).finish()
    assert code == 0, err
    return out


def wait_for_lines(out, count, process):
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"no {count} lines in time: {process.poll()}")


def assert_same_run(out, unbroken):
    ours, theirs = toy.metrics(out), toy.metrics(unbroken)
    assert [m["loss"] for m in ours if m["kind"] == "train"] == [m["loss"] for m in theirs if m["kind"] == "train"]
    assert ours == theirs
    for part in ("model/tokenizer.safetensors", "checkpoints/step_00000030/optimizer.safetensors"):
        assert sha256_file(out / part) == sha256_file(unbroken / part), part


def test_a_run_stopped_by_a_signal_equals_the_unbroken_run(tmp_path, unbroken):
    process = start(tmp_path / "run", "--slow", "0.01")
    wait_for_lines(tmp_path / "run", 5, process)
    process.terminate()
    code, err = process.finish()
    assert code == 130 and "interrupted after step" in err and "Traceback" not in err
    code, err = start(tmp_path / "run", "--resume").finish()
    assert code == 0 and "resuming" in err, err
    assert_same_run(tmp_path / "run", unbroken)


def test_a_run_killed_at_any_moment_equals_the_unbroken_run(tmp_path, unbroken):
    """`kill -9` at three random moments of one run, which includes moments in the middle of a checkpoint."""
    seed = int(os.environ.get("KILL_SEED") or random.randrange(2**32))
    print(f"KILL_SEED={seed} repeats these moments")
    moments = random.Random(seed)
    out = tmp_path / "run"
    for attempt in range(3):
        process = start(out, *(["--resume"] if attempt else []), "--slow", "0.01")
        before = len(toy.metrics(out)) if (out / "metrics.jsonl").exists() else 0
        try:
            wait_for_lines(out, min(before, 8) + 1, process)
        except AssertionError:
            assert process.poll() == 0, process.finish()
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.finish()
    code, err = start(out, "--resume").finish()
    assert code == 0, err
    assert_same_run(out, unbroken)
    assert not [p for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]


def test_a_checkpoint_cut_off_by_a_crash_falls_back_to_the_one_before(tmp_path, unbroken):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "model")
    newest = out / "checkpoints" / "step_00000030"
    file = newest / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (newest / "ema.safetensors").unlink()
    code, err = start(out, "--resume").finish()
    assert code == 0 and "checkpoint passed over" in err and "after step 28" in err, err
    assert_same_run(out, unbroken)


def test_errors_are_one_line(unbroken):
    code, err = start(unbroken).finish()
    assert code == 2 and err.count("\n") == 1 and "--resume" in err
