"""`resgen sweep`: what is refused before anything is measured, and what an interruption leaves."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from image_parts import save_model
from resgen.checkpoints.artefacts import load_pipeline
from resgen.checkpoints.locate import ASSETS
from resgen.cli.main import main
from resgen.experiments.image.judge import Judge, Score

SWEEP = "sweep --data digits --grid steps=1,2,3 --num-samples 4 --out out --model".split()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The numbers of steps that a stand-in of `Judge` was asked about; the most steps are the best."""
    asked: list[int] = []

    def score(self: Judge, pipe: Any, sampling: Any, **settings: Any) -> Score:
        asked.append(sampling.num_steps)
        return Score(distance=9.0 - sampling.num_steps, recognised=None, num_samples=4, seconds=0.0)

    monkeypatch.setattr(Judge, "__init__", lambda *args, **settings: None)
    monkeypatch.setattr(Judge, "metric", "FD-x")
    monkeypatch.setattr(Judge, "score_pipeline", score)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_the_rows_measured_so_far(
    number: int, measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(Path("model"))
    Path("out").mkdir()
    (Path("out") / "sweep.png").write_bytes(b"of an earlier sweep")
    whole = Judge.score_pipeline

    def stopped(self: Judge, *args: Any, **settings: Any) -> Score:
        if len(measured) == 2:
            os.kill(os.getpid(), number)
        return whole(self, *args, **settings)

    monkeypatch.setattr(Judge, "score_pipeline", stopped)
    # As in a shell's foreground; alone, the handler of SIGTERM would only pass over it.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: lambda *_: None}
    before = {name: signal.signal(name, handler) for name, handler in handlers.items()}
    try:
        assert main([*SWEEP, "model", "--store"]) == 130
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted; the 2 combinations measured so far are in '{Path('out') / 'sweep.md'}'"
    )
    table = [line for line in (Path("out") / "sweep.md").read_text().splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in table] == ["2", "1"], "best first"
    assert [path.name for path in Path("out").iterdir()] == ["sweep.md"]


def test_a_run_s_model_takes_the_best_settings(measured: list[int]) -> None:
    pytest.importorskip("matplotlib")
    save_model(Path("run") / "model")
    for name in ("config.yaml", "env.json"):
        (Path("run") / name).write_text("")
    assert main([*SWEEP, "run", "--store"]) == 0
    assert load_pipeline("run").sampling.num_steps == 3 and measured == [1, 2, 3]
    assert {path.name for path in Path("run").iterdir()} == {"config.yaml", "env.json", "model"}


def test_models_that_are_not_the_user_s_are_not_stored_into(
    measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("cifar10-8x8", str(ASSETS / "cifar10-8x8")):
        assert main([*SWEEP, model, "--store"]) == 2
        assert "is not in a folder of yours; copy" in capsys.readouterr().err
    save_model(Path("cifar10-8x8"))  # which has a model's name and is the user's
    pytest.importorskip("matplotlib")
    assert main([*SWEEP, "cifar10-8x8", "--store"]) == 0 and measured == [1, 2, 3]


def test_a_folder_that_cannot_be_written_is_refused_before_the_sweep(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(Path("theirs") / "model")
    own = tempfile.TemporaryDirectory

    def read_only(*args: Any, dir: Path, **settings: Any) -> tempfile.TemporaryDirectory[str]:
        if Path(dir).name == "theirs":
            raise PermissionError(13, "Permission denied")
        return own(*args, dir=dir, **settings)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", read_only)
    assert main([*SWEEP, "theirs/model", "--store"]) == 2
    error = capsys.readouterr().err
    assert "--store" in error and "theirs' cannot be written: Permission denied" in error
    assert not measured and not Path("out").exists()


def test_one_sample_is_refused_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sweep", "--model", "fashion-mnist-small", "--data", "digits", "--grid", "steps=1", "--num-samples", "1"]
    assert main([*argv, "--out", str(tmp_path / "sweep")]) == 2
    assert capsys.readouterr().err == "error: --num-samples 1 must be at least 2; a distance needs as many\n"
