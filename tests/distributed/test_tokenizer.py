"""A tokenizer trained on streamed tar shards: in two processes as in one, killed at any moment, and after a change."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from processes import TIMEOUT_S, Worker, run_processes
from tars import write_tar

WORKER = Path(__file__).with_name("tokenizer_worker.py")
CLOCK = ("seconds", "samples_per_second")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tokenizer_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(stream: np.random.Generator) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    smooth = stream.integers(256, size=(2, 2), dtype=np.uint8)
    Image.fromarray(smooth).resize((8, 8), Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images in three shards."""
    folder, stream = tmp_path_factory.mktemp("web"), np.random.default_rng(0)
    for shard in range(3):
        files = {f"{shard}/{number:03d}.png": picture(stream) for number in range(20)}
        write_tar(folder / f"web-{shard:05d}.tar", dict(files))
    return folder


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unbroken training in one process, of two micro-batches per step."""
    out, threads = tmp_path_factory.mktemp("one") / "run", torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        worker = _load()
        patch.setattr(worker.runs, "PictureStore", worker.PictureStore)
        assert worker.train(out, data, "tokenizer_training.accumulate=2") == 0
    yield out
    torch.set_num_threads(threads)


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in rows]


def test_two_processes_train_and_measure_as_one(data: Path, one: Path, tmp_path: Path) -> None:
    """Losses, all metrics of the log, usage and perplexity of the codebooks, and the tokenizer itself."""
    for status, errors in run_processes(2, WORKER, tmp_path / "run", data):
        assert status == 0, errors
    rows, expected = lines(tmp_path / "run"), lines(one)
    assert [line["kind"] for line in expected].count("validation") == 3 and len(expected) == 16
    for ours, theirs in zip(rows, expected, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    rows, expected = lines(tmp_path / "run"), lines(one)
    assert {"mse", "commitment", "loss", "grad_norm"} <= set(expected[0])
    assert {"usage/1", "perplexity/2", "psnr_db/2", "variance/1"} <= set(expected[-1])
    models = [load_file(run / "model" / "tokenizer.safetensors") for run in (tmp_path / "run", one)]
    torch.testing.assert_close(*models, rtol=1e-2, atol=1e-3)


def test_processes_with_different_settings_are_refused_by_all(data: Path, tmp_path: Path) -> None:
    results = run_processes(2, WORKER, tmp_path / "run", data, "1:tokenizer_training.batch_size=16")
    for status, errors in results:
        assert status == 2 and errors.count("\n") == 1
        named = "recipe.tokenizer_training.batch_size"
        assert f"process 0 has {named}=8, process 1 has {named}=16; start all with the same command" in errors
    assert not (tmp_path / "run").exists()


def test_killed_at_any_moment_it_equals_the_unbroken_one(data: Path, one: Path, tmp_path: Path) -> None:
    """`kill -9` at random moments, in the middle of a step, a checkpoint or an image decoded ahead."""
    seed = int(os.environ.get("KILL_SEED") or random.randrange(2**32))
    print(f"KILL_SEED={seed} repeats these moments")
    moments = random.Random(seed)
    out = tmp_path / "run"
    command = (WORKER, out, data, "tokenizer_training.accumulate=2")
    for attempt in range(2):
        process = Worker(*command, *(["resume"] if attempt else []))
        before = len(lines(out)) if (out / "metrics.jsonl").exists() else 0
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "metrics.jsonl").exists() and len(lines_so_far(out)) > min(before, 8):
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        status, errors = process.finish()
        assert status in (0, -9), errors
    status, errors = Worker(*command, "resume").finish()
    assert status == 0, errors
    assert lines(out) == lines(one)
    models = [(run / "model" / "tokenizer.safetensors").read_bytes() for run in (out, one)]
    assert models[0] == models[1]


def lines_so_far(run: Path) -> list[str]:
    """Complete lines of a log that is being written."""
    return (run / "metrics.jsonl").read_text().split("\n")[:-1]


@pytest.mark.parametrize("change", ["changed", "missing", "cut"])
def test_shards_that_changed_since_the_checkpoint(
    data: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    web, out = shutil.copytree(data, tmp_path / data.name), shutil.copytree(one, tmp_path / "run")
    shard = web / "web-00001.tar"
    if change == "changed":
        write_tar(shard, {f"1/{number:03d}.png": picture(np.random.default_rng(number)) for number in range(20)})
        named = "was trained with data.sha256="
    elif change == "missing":
        shard.unlink()
        named = "was trained with data.sha256="
    else:
        shard.write_bytes(shard.read_bytes()[:5000])
        named = "web-00001.tar' is cut short"
    before = (out / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    worker = _load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.runs, "PictureStore", worker.PictureStore)
        assert worker.train(out, web, "tokenizer_training.accumulate=2", "resume") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data ")]
    assert len(errors) == 1 and named in errors[0]
    assert (out / "metrics.jsonl").read_bytes() == before
