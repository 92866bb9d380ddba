"""`resgen compare` and `resgen sweep` from end to end on digits: everything small, every part once."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from train_classifier import train_classifier

from processes import FORKS
from resgen.checkpoints.classifiers import save_classifier
from resgen.cli.main import main
from resgen.data.pictures.sources import load_array, open_images
from resgen.kinds import KINDS

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SMALL = (
    "generator.width=32 generator.num_layers=2 generator.num_heads=2 generator.mlp_width=64 "
    "generator.condition_width=32 generator_training.batch_size=32 generator_training.warmup_steps=2 "
    "generator_training.sample_every=0 generator_training.validate_every=0 generator_training.num_steps=12"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and an extractor of digits, hardly trained."""
    base = tmp_path_factory.mktemp("compare")
    words = "train tokenizer --recipe digits --set tokenizer_training.num_steps=20 tokenizer_training.validate_every=0"
    assert main([*words.split(), "--out", str(base / "tok")]) == 0
    source = open_images("digits", split="train")
    pictures, labels = load_array(source, size=8, channels=1)
    model = train_classifier(pictures, labels, num_classes=10, num_steps=5, width=8)
    save_classifier(base / "cls", model, class_names=source.class_names)
    return base


def command(folder: Path, out: str, *more: str) -> list[str]:
    words = (
        f"compare --recipe digits --tokenizer {folder / 'tok' / 'model'} --data digits --kinds residual rq_transformer "
        f"--seeds 1 --max-minutes-per-model 1 --num-samples 100 --search-samples 100 --depths 2 "
        f"--extractor {folder / 'cls'} --out {folder / out} --json"
    )
    return [*words.split(), "--set", *SMALL, *more]


def test_a_comparison_is_done_once_and_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)  # every stage starts a pool of processes
    monkeypatch.setitem(KINDS, "residual", replace(KINDS["residual"], step_counts=lambda depth: (2,)))
    assert main(command(folder, "cmp")) == 0
    out = folder / "cmp"
    document = json.loads((out / "report.json").read_text())
    assert {row["kind"] for row in document["rows"]} == {"residual", "rq_transformer"}
    assert {row["setting"] for row in document["rows"]} == {"guided", "unguided"}
    assert {row["depth"] for row in document["rows"]} == {2, 4}
    assert document["metric"].startswith("FD-") and len(document["verdicts"]) == 1
    assert all(row["steps"] == 12 and row["distance"] > 0 for row in document["rows"])
    text = (out / "report.md").read_text()
    assert "| RQ-Transformer |" in text and "(one seed)" in text and "fewer than 10,000" in text
    for name in ("report.csv", *(f"distance-against-{what}.png" for what in ("seconds", "steps", "depth"))):
        assert (out / name).stat().st_size > 100

    # Nothing finished is computed again: the same files, untouched.
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    (out / "parts" / "evaluate-residual-time-0.json").unlink()
    assert main(command(folder, "cmp", "--resume")) == 0
    after = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert set(after) == set(before)
    assert [path.stem for path in after if after[path] != before[path]] == ["evaluate-residual-time-0"]
    assert json.loads((out / "report.json").read_text())["rows"] == document["rows"]

    capsys.readouterr()
    assert main(command(folder, "cmp")) == 2
    assert "already holds a comparison; continue it with --resume" in capsys.readouterr().err
    assert main(command(folder, "cmp", "--resume", "--set", "generator.width=64")) == 2
    assert "recipe.generator.width=32, this one has recipe.generator.width=64" in capsys.readouterr().err


def test_a_sweep_stores_its_winner(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"train generator --recipe digits --tokenizer {folder / 'tok' / 'model'} --out {folder / 'gen'} --set"
    assert main([*words.split(), *SMALL]) == 0
    model = folder / "gen" / "model"
    capsys.readouterr()
    words = (
        f"sweep --model {model} --data digits --extractor {folder / 'cls'} --grid steps=2,3 guidance_scale=0.5,1 "
        f"--num-samples 100 --store --out {folder / 'sweep'} --json"
    )
    assert main(words.split()) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    distances = [row["score"]["distance"] for row in rows]
    assert len(rows) == 4 and distances == sorted(distances)
    stored = json.loads((model / "config.json").read_text())["sampling"]
    assert {name: stored[name] for name in rows[0]["settings"]} == rows[0]["settings"]
    assert main([*words.replace("steps=2,3", "stpes=2").split()]) == 2
    assert "did you mean 'num_steps'" in capsys.readouterr().err
