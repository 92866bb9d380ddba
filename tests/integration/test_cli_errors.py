"""Bad input through the command line: one line that names the value, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resgen.cli.main import main

pytest.importorskip("resgen.pipelines.image.pipeline")
pytest.importorskip("resgen.recipes")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail; its error line, after the checks that all errors share."""

    def run(*argv: object, names: str) -> str:
        capsys.readouterr()
        before = sorted(p for p in tmp_path.rglob("*") if p.name != "__pycache__")
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in captured.err, captured.err
        assert names in errors[0], errors[0]
        assert sorted(p for p in tmp_path.rglob("*") if p.name != "__pycache__") == before, "nothing is left behind"
        return errors[0]

    return run


@pytest.fixture(scope="module")
def bundled() -> Path:
    """The folder of the smallest bundled pipeline."""
    from resgen.checkpoints.locate import resolve_model
    from resgen.cli.common import bundled_models

    models = [m for m in bundled_models() if m["kind"] == "pipeline"]
    if not models:
        pytest.skip("no pipeline is bundled")
    return Path(resolve_model(min(models, key=lambda m: m["size_bytes"])["name"]))


@pytest.fixture
def model(bundled: Path, tmp_path: Path) -> Path:
    """A copy of a pipeline's folder, to be damaged."""
    return Path(shutil.copytree(bundled, tmp_path / "model"))


@pytest.fixture
def edit_config(model: Path) -> Callable[..., None]:
    """Change the JSON of `model` in place."""

    def edit(change: Callable[[dict], None]) -> None:
        path = model / "config.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit


# Values and names.


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--class", "no-such-class"], "no-such-class"),
        (["--class", "10000"], "10000"),
        (["--class", "-1"], "-1"),
        (["--steps", "0"], "0"),
        (["--steps", "-3"], "-3"),
        (["--num-samples", "0"], "0"),
        (["--batch-size", "0"], "0"),
        (["--top-p", "0"], "0"),
        (["--top-p", "1.5"], "1.5"),
        (["--top-p", "nan"], "nan"),
        (["--temperature", "-0.5"], "-0.5"),
        (["--choice-temperature", "-1"], "-1"),
        (["--guidance-scale", "-1"], "-1"),
        (["--guidance-scale", "nan"], "nan"),
        (["--schedule", "cosin"], "did you mean 'cosine'?"),
        (["--device", "gpu"], "gpu"),
        (["--seed", "-1"], "-1"),
    ],
)
def test_generate_refuses_values(options, names, bundled, refused, tmp_path):
    refused("generate", "image", "--model", bundled, "--out", tmp_path / "a.png", *options, names=names)


def test_unknown_model(refused, tmp_path):
    refused("generate", "image", "--model", "fashion-mnits", "--out", tmp_path / "a.png", names="fashion-mnits")
    refused("inspect", tmp_path / "nowhere", names="nowhere")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--recipe", "digit"], "did you mean 'digits'?"),
        (["--set", "tokenizer_training.num_step=5"], "did you mean 'tokenizer_training.num_steps' or '"),
        (["--set", "tokenizer.image_size=large"], "large"),
        (["--set", "tokenizer.image_size=-8"], "-8"),
        (["--set", "tokenizer_training.batch_size=0"], "0"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--data", "missing.parquet"], "missing.parquet"),
        (["--max-minutes", "-1"], "-1"),
    ],
)
def test_train_refuses_values(options, names, refused, tmp_path):
    refused("train", "tokenizer", "--recipe", "digits", "--out", tmp_path / "run", *options, names=names)


# Places to write to.


@pytest.mark.parametrize("out", ["file/a.png", "a.xyz", "folder.png"])
def test_unusable_output(out, bundled, refused, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "full").mkdir()
    if out == "folder.png":
        refused("reconstruct", "--tokenizer", bundled, "--input", "digits", "--out", tmp_path / out, names=out)
    else:
        refused("generate", "image", "--model", bundled, "--out", tmp_path / out, names=out)


def test_run_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "run").write_text("")
    refused("train", "tokenizer", "--recipe", "digits", "--out", tmp_path / "run", names="run")


def test_full_disk_leaves_nothing_half_written(bundled, tmp_path):
    """A limit of the size of files stands for a full disk: the write itself fails."""
    out = tmp_path / "a.png"
    code = "import sys; from resgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "generate",
            "image",
            "--model",
            bundled,
            "--num-samples",
            "2",
            "--steps",
            "1",
            "--out",
            out,
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert str(out) in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


# Damaged models.


def test_wrong_hash(model, refused, tmp_path):
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    refused("generate", "image", "--model", model, "--out", tmp_path / "a.png", names=weights.name)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
@pytest.mark.parametrize("pattern", ["config.json", "*.safetensors"])
def test_damaged_file(damage, pattern, model, refused, tmp_path):
    path = next(model.glob(pattern))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    if damage == "missing":
        path.unlink()
    refused("generate", "image", "--model", model, "--out", tmp_path / "a.png", names=path.name)


@pytest.mark.parametrize("version", [999, "1", None])
def test_wrong_format_version(version, model, edit_config, refused, tmp_path):
    edit_config(lambda document: document.update(format_version=version))
    refused("generate", "image", "--model", model, "--out", tmp_path / "a.png", names=f"{version}")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_that_a_terminal_cannot_show_are_escaped(encoding, model, monkeypatch):
    import io

    from resgen.pipelines.describe import describe_artefact

    described = describe_artefact(str(model)) | {"class_names": ["日本", "naïve", "\ud800"]}
    monkeypatch.setattr("resgen.pipelines.describe.describe_artefact", lambda _: described)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    for options in ([], ["--json"]):
        assert main(["inspect", str(model), *options]) == 0
    assert (b"\\u65e5" in out.getvalue()) and ("日本".encode() in out.getvalue()) == (encoding == "utf-8")


def test_file_outside_the_folder(model, edit_config, refused, tmp_path):
    def change(document: dict) -> None:
        next(iter(document["components"].values()))["file"] = "../secret.safetensors"

    edit_config(change)
    refused("inspect", model, names="../secret.safetensors")


def test_unknown_key_in_a_saved_configuration(model, edit_config, refused, tmp_path):
    def change(document: dict) -> None:
        next(iter(document["components"].values()))["config"]["no_such_key"] = 1

    edit_config(change)
    refused("generate", "image", "--model", model, "--out", tmp_path / "a.png", names="no_such_key")


# Damaged data.


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.png", b""), ("broken.png", b"\x89PNG\r\n\x1a\n broken"), ("empty.parquet", b""), ("text.txt", b"hello")],
)
def test_unreadable_input(name, content, bundled, refused, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(
        "reconstruct", "--tokenizer", bundled, "--input", tmp_path / name, "--out", tmp_path / "out.png", names=name
    )


def test_truncated_picture(bundled, refused, tmp_path):
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:1000])
    argv = ["--tokenizer", bundled, "--input", tmp_path / "half.png", "--out", tmp_path / "out.png"]
    refused("reconstruct", *argv, names="half.png")


def test_picture_of_another_size(bundled, refused, tmp_path):
    Image.new("L", (31, 17)).save(tmp_path / "odd.png")
    argv = ["--tokenizer", bundled, "--input", tmp_path / "odd.png", "--out", tmp_path / "out.png"]
    line = refused("reconstruct", *argv, names="odd.png")
    assert "31" in line and "17" in line


def test_missing_and_empty_data(bundled, refused, tmp_path):
    (tmp_path / "nothing").mkdir()
    for name in ("nothing", "missing"):
        refused("encode", "--tokenizer", bundled, "--data", tmp_path / name, "--out", tmp_path / "codes", names=name)
        refused(
            "train", "tokenizer", "--recipe", "digits", "--data", tmp_path / name, "--out", tmp_path / "r", names=name
        )
