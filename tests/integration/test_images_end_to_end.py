"""The whole path through the command line: images, tokenizer, codes, generator, new images.

The models are far too small and too little trained to draw anything; what counts is that every step runs on data of
every kind, that a killed training goes on as if nothing had happened, and what the commands report.
"""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from processes import TIMEOUT_S, Worker
from resgen.checkpoints.format import sha256_file
from resgen.cli.main import main

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("sklearn")

COMMAND = Path(__file__).with_name("command.py")
TINY = """
tokenizer.width=8 tokenizer.quantizer.depth=3 tokenizer.quantizer.codebook_size=16 tokenizer.code_dim=8
generator.width=32 generator.num_layers=2 generator.num_heads=2 generator.mlp_width=64 generator.condition_width=32
generator.num_components=8 sampling.num_steps=4
tokenizer_training.device=cpu tokenizer_training.precision=fp32
generator_training.device=cpu generator_training.precision=fp32
""".split()
TOKENIZER_STEPS = (
    "tokenizer_training.num_steps=20 tokenizer_training.log_every=5 tokenizer_training.batch_size=32".split()
)
GENERATOR_STEPS = """
generator_training.num_steps=40 generator_training.batch_size=16 generator_training.log_every=1
generator_training.validate_every=10 generator_training.checkpoint_every=5 generator_training.sample_every=0
generator_loss.validation_samples=8
""".split()
COLOUR = "tokenizer.patch_size=4 tokenizer.multipliers=[1,2] tokenizer.channels=3 tokenizer.image_size=32".split()
SETTINGS = ["--set", *TINY, *TOKENIZER_STEPS, *GENERATOR_STEPS]


def run(*argv: object) -> None:
    assert main([str(a) for a in argv]) == 0, argv


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]):
    def call(*argv: object) -> dict:
        capsys.readouterr()
        run(*argv, "--json")
        return json.loads(capsys.readouterr().out)

    return call


def start(*argv: object) -> Worker:
    return Worker(COMMAND, *argv)


def metrics(folder: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def tokenizer(work: Path) -> Path:
    """A tokenizer of digits, trained for a moment."""
    run("train", "tokenizer", "--recipe", "digits", *SETTINGS, "--out", work / "tokenizer")
    return work / "tokenizer" / "model"


@pytest.fixture(scope="module")
def codes(work: Path, tokenizer: Path) -> Path:
    run("encode", "--tokenizer", tokenizer, "--data", "digits", "--device", "cpu", "--out", work / "codes")
    return work / "codes"


@pytest.fixture(scope="module")
def generator(work: Path, tokenizer: Path, codes: Path) -> Path:
    """A run folder of a generator, trained without a break on the cache of codes."""
    argv = ["train", "generator", "--recipe", "digits", "--tokenizer", tokenizer, "--data", codes, *SETTINGS]
    status, errors = start(*argv, "--out", work / "generator").finish()
    assert status == 0, errors
    return work / "generator"


@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_a_training_starts_from_a_model(
    stage: str, work: Path, tokenizer: Path, codes: Path, generator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step that learns next to nothing leaves the weights where they were; what does not fit is refused."""
    init = generator / "model" if stage == "generator" else tokenizer
    given, data = (["--tokenizer", tokenizer], ["--data", codes]) if stage == "generator" else ([], [])
    tiny = ["--set", f"{stage}_training.num_steps=1", f"{stage}_training.learning_rate=1e-12", "--init", init]
    argv = ["train", stage, "--recipe", "digits", *given, *SETTINGS]
    run(*argv, *data, *tiny, "--out", work / f"{stage}-again")
    actual, expected = (load_file(path / f"{stage}.safetensors") for path in (work / f"{stage}-again" / "model", init))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)  # codebooks follow their codes
    wider = ["--set", f"{stage}.{'mlp_width=96' if stage == 'generator' else 'width=16'}"]
    assert main([str(word) for word in [*argv, *wider, "--init", init, "--out", work / "refused"]]) == 2
    assert f"give --set {stage}." in capsys.readouterr().err.splitlines()[-1]
    assert not (work / "refused").exists(), "nothing was encoded for it"


def test_tokenizer_run_folder(tokenizer: Path) -> None:
    folder = tokenizer.parent
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "env.json", "metrics.jsonl", "samples", "checkpoints", "model"} <= names
    assert [line["step"] for line in metrics(folder) if line["kind"] == "train"] == [5, 10, 15, 20]
    assert list((folder / "samples").glob("*.png"))
    assert sorted(path.name for path in tokenizer.iterdir()) == ["config.json", "tokenizer.safetensors"]


def test_no_pickle_anywhere(generator: Path) -> None:
    suffixes = {path.suffix for path in generator.rglob("*") if path.is_file()}
    assert not suffixes & {".pt", ".pth", ".bin", ".pkl", ".ckpt"} and ".safetensors" in suffixes


def test_a_generator_killed_in_the_middle_goes_on_as_if_nothing_had_happened(
    work: Path, tokenizer: Path, codes: Path, generator: Path
) -> None:
    out = work / "killed"
    argv = ["train", "generator", "--recipe", "digits", "--tokenizer", tokenizer, "--data", codes, *SETTINGS]
    process = start(*argv, "--out", out)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") >= 8:
            break
        time.sleep(0.002)
    process.kill()
    assert process.finish()[0] == -signal.SIGKILL, "the training was over before it was killed"
    assert not (out / "model").exists()
    assert main([str(a) for a in (*argv, "--out", out)]) == 2, "without --resume the run is left alone"
    status, errors = start(*argv, "--out", out, "--resume").finish()
    assert status == 0 and "resuming" in errors, errors
    assert metrics(out) == metrics(generator)
    for name in ("tokenizer.safetensors", "generator.safetensors"):
        assert sha256_file(out / "model" / name) == sha256_file(generator / "model" / name)


def test_training_on_pictures_equals_training_on_the_cache(work: Path, tokenizer: Path, generator: Path) -> None:
    """Without a cache the images are encoded into the run folder first: the same codes, so the same losses."""
    out = work / "from-pictures"
    short = ["generator_training.num_steps=3", "generator_training.decay_fraction=0"]
    run("train", "generator", "--recipe", "digits", "--tokenizer", tokenizer, *SETTINGS, *short, "--out", out)
    for name in ("codes-00000.safetensors", "meta.json"):
        assert (out / "codes" / "train" / name).read_bytes() == (work / "codes" / "train" / name).read_bytes()
    ours, theirs = ([m["loss"] for m in metrics(run) if m["kind"] == "train"] for run in (out, generator))
    assert ours == pytest.approx(theirs[:3], rel=1e-5)


def test_another_run_does_not_touch_an_existing_one(work: Path, tokenizer: Path, folder: Path) -> None:
    """A forgotten --resume must not replace the codes that the run was trained on."""
    out = work / "from-pictures"
    if not out.exists():
        pytest.skip("needs the test before")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    argv = ["train", "generator", "--recipe", "digits", "--tokenizer", tokenizer, "--data", folder, *SETTINGS]
    argv += ["--set", "data.resize=true"]
    assert main([str(a) for a in (*argv, "--out", out)]) == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_generate(work: Path, generator: Path, run_json) -> None:
    model = generator / "model"
    grid = run_json(
        "generate", "image", "--model", model, "--class", 3, 7, "--num-samples", 3, "--out", work / "grid.png"
    )
    assert grid["class_ids"] == [3, 3, 3, 7, 7, 7] and grid["depth"] == 3
    width, height = Image.open(work / "grid.png").size
    assert width > 24 and height > 16 and width > height
    argv = ["generate", "image", "--model", generator, "--class", 3, 7, "--num-samples", 3, "--batch-size", 2]
    folder = run_json(*argv, "--out", work / "pictures")
    assert [Path(file).name[:6] for file in folder["files"]] == [
        "3_0000",
        "3_0001",
        "3_0002",
        "7_0003",
        "7_0004",
        "7_0005",
    ]
    assert all(Image.open(file).size == (8, 8) and Image.open(file).mode == "L" for file in folder["files"])
    assert folder["passes"] == 3 * grid["passes"] == 3 * 6, "the first of four steps reveals nothing, the others take 2"
    again = run_json("generate", "image", "--model", model, "--class", 3, "--num-samples", 3, "--out", work / "again")
    for first, second in zip(folder["files"][:3], again["files"], strict=True):
        assert Path(first).read_bytes() == Path(second).read_bytes()
    other = run_json("generate", "image", "--model", model, "--class", 3, "--seed", 1, "--out", work / "other")
    assert Path(other["files"][0]).read_bytes() != Path(again["files"][0]).read_bytes()


def test_reconstruct(work: Path, tokenizer: Path, generator: Path, run_json) -> None:
    for name, model in (("tokenizer", tokenizer), ("pipeline", generator / "model"), ("run", generator)):
        out = work / f"reconstruct-{name}.png"
        document = run_json("reconstruct", "--tokenizer", model, "--input", "digits", "--out", out)
        assert len(document["psnr_db"]) == 3 and document["num_pictures"] == 179
        assert all(0 < psnr < 60 for psnr in document["psnr_db"])
        assert Image.open(out).size[0] > 4 * 8
    final = metrics(tokenizer.parent)[-1]
    # The published weights are bfloat16, the validation's float32.
    assert document["psnr_db"] == pytest.approx([final[f"psnr_db/{k}"] for k in (1, 2, 3)], abs=0.2)


def test_inspect(tokenizer: Path, generator: Path, run_json) -> None:
    document = run_json("inspect", generator / "model")
    assert document["kind"] == "pipeline" and document["class_names"] == [str(k) for k in range(10)]
    assert set(document["components"]) == {"tokenizer", "generator"}
    for name, component in document["components"].items():
        assert component["sha256"] == sha256_file(generator / "model" / f"{name}.safetensors")
    assert document["history"]["generator"]["steps"] == 40 and document["history"]["tokenizer"]["steps"] == 20
    assert run_json("inspect", tokenizer)["kind"] == "tokenizer"
    recipe = run_json("inspect", "--recipe", "imagenet256")
    assert recipe["parameters"]["generator"]["total"] == pytest.approx(576e6, rel=0.01)


def test_models(run_json) -> None:
    models = run_json("models")["models"]
    assert isinstance(models, list)
    for model in models:
        assert model["name"].startswith(
            (
                "avatars64",
                "fashion-mnist-",
                "cifar10-",
                "english-",
                "spoken-digits-",
                "digit-recognizer",
                "speaker-encoder",
            )
        ) and model["size_bytes"] < (30e6 if model["name"] == "avatars64" else 25e6)


# Data that a user brings.


def colour_picture(rng: np.random.Generator, label: int) -> Image.Image:
    array = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
    array[..., label] += 120
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def parquet(work: Path) -> Path:
    rng, rows, labels = np.random.default_rng(0), [], []
    for k in range(60):
        file = io.BytesIO()
        colour_picture(rng, k % 3).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": f"{k}.png"})
        labels.append(k % 3)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(rows, kind), "label": pa.array(labels, pa.int64())})
    names = {"info": {"features": {"label": {"names": ["red", "green", "blue"], "_type": "ClassLabel"}}}}
    path = work / "colours.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), path)
    return path


@pytest.fixture(scope="module")
def folder(work: Path) -> Path:
    rng = np.random.default_rng(1)
    for label, name in enumerate(["crimson", "emerald"]):
        (work / "pictures-in" / name).mkdir(parents=True)
        for k in range(15):
            colour_picture(rng, label).save(work / "pictures-in" / name / f"{k}.{('png', 'webp')[k % 2]}")
    return work / "pictures-in"


@pytest.mark.parametrize(("kind", "class_name"), [("parquet", "green"), ("folder", "emerald")])
def test_other_data(kind: str, class_name: str, request: pytest.FixtureRequest, work: Path, run_json) -> None:
    data = request.getfixturevalue(kind)
    short = ["tokenizer_training.num_steps=5", "generator_training.num_steps=5", "data.flip=true"]
    common = ["--recipe", "cifar10", "--data", data, *SETTINGS, *COLOUR, *short]
    first, second = work / f"{kind}-tokenizer", work / f"{kind}-generator"
    run_json("train", "tokenizer", *common, "--out", first)
    run_json("train", "generator", *common, "--tokenizer", first, "--out", second)
    meta = json.loads((second / "codes" / "train" / "meta.json").read_text())
    assert meta["versions"] == 2, "mirrored as well"
    out = work / f"{kind}.png"
    document = run_json("generate", "image", "--model", second, "--class", class_name, "--out", out)
    assert document["class_ids"] == [1]
    picture = Image.open(out)
    assert picture.size == (32, 32) and picture.mode == "RGB"
    psnr = run_json("reconstruct", "--tokenizer", second, "--input", data, "--out", work / f"{kind}-levels.png")
    assert len(psnr["psnr_db"]) == 3
