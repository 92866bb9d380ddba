"""`resgen evaluate` with small untrained models on the built-in digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from PIL import Image

from resgen.checkpoints.artefacts import save_pipeline, save_tokenizer
from resgen.checkpoints.classifiers import save_classifier
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.measured import reports
from resgen.cli.evaluate import Evaluate
from resgen.errors import CheckpointError, ConfigError, DataError, ResGenError
from resgen.evaluation.image.report import load_report
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.nn.classifier import Classifier, ClassifierConfig
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

pytest.importorskip("sklearn")

DIGITS = tuple("0123456789")


def _write_model(path: Path, *, num_classes: int = 10) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = ImageTokenizer(
            ImageTokenizerConfig(
                image_size=8,
                channels=1,
                width=8,
                multipliers=(1, 2),
                num_res_blocks=1,
                code_dim=4,
                quantizer=QuantizerConfig(depth=2, codebook_size=8),
            )
        )
        tokenizer.quantizer.codebooks.normal_()
        config = ResGenConfig(
            width=16,
            num_layers=1,
            num_heads=2,
            mlp_width=32,
            condition_width=16,
            num_components=4,
            num_classes=num_classes,
        )
        generator = ResGen(config, tokenizer.spec)
        with torch.no_grad():
            for parameter in generator.parameters():  # so that classes make a difference
                parameter.add_(0.2 * torch.randn(parameter.shape))
        generator.set_codebooks(
            tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, torch.randint(8, (50, 16, 2))
        )
    sampling = SamplingConfig(num_steps=3, guidance_scale=1.0)
    names = DIGITS if num_classes else ()
    save_pipeline(path / "model", tokenizer, generator, sampling=sampling, class_names=names)
    save_tokenizer(path / "tokenizer", tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `tokenizer` and the classifier `judge`."""
    path = tmp_path_factory.mktemp("place")
    _write_model(path)
    judge = Classifier(ClassifierConfig(image_size=8, channels=1, num_classes=10, width=2))
    judge.reset_parameters(torch.Generator().manual_seed(0))
    save_classifier(path / "judge", judge.eval(), class_names=DIGITS)
    return path


def run(*argv: object) -> None:
    words = [str(word) for word in argv]
    tyro.cli(Evaluate, args=words, config=(tyro.conf.FlagCreatePairsOff,)).run()


def on_digits(
    place: Path,
    out: Path,
    *argv: object,
    what: str = "model",
    num_samples: int | None = 40,
    split: str | None = "test",  # the smaller one
) -> None:
    common = [f"--{what}", place / what, "--data", "digits", "--extractor", place / "judge", "--out", out]
    common += ["--num-samples", num_samples] if num_samples else []
    common += ["--split", split] if split and what == "model" and "--protocol" not in argv else []
    run(*common, *argv)


def test_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    argv = "--seed 0 3 --steps 2 --guidance-scale 0.5 --dtype float32 --json".split()
    on_digits(place, out, *argv, split=None)
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == [str(out), str(tmp_path / "a.md")] and document["metric"] == "FD-judge"
    report = load_report(out)
    assert report.settings == ("guided", "unguided") and [r.seed for r in report.generation] == [0, 3, 0, 3]
    protocol = report.protocol
    assert (protocol.reference, protocol.reference_split, protocol.num_reference) == ("digits/train", "train", 1618)
    assert (protocol.num_samples, protocol.seeds, protocol.class_balance) == (40, (0, 3), "equal")
    assert protocol.sampling["num_steps"] == 2 and protocol.sampling["guidance_scale"] == 0.5
    assert protocol.sampling["dtype"] == "float32" and protocol.sampling["top_p"] == SamplingConfig().top_p
    assert report.generation[0].recognised is not None
    assert "over 2 seeds" in (tmp_path / "a.md").read_text() and len(report.model_sha256) == 64
    guided, other = report.generation[0], report.generation[1]
    assert guided.distance != other.distance, "another seed, other samples"


def test_the_samples_are_the_pipeline_s(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample k of a seed is image k of the pipeline, whatever the chunks and batches."""
    from resgen.experiments.image import evaluation

    made: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    original = evaluation.evaluate_generation

    def spy(generate: Any, *args: Any, **options: Any) -> Any:
        def recorded(indices: range, class_ids: list[int], guided: bool, seed: int) -> torch.Tensor:
            made[guided].append(generate(indices, class_ids, guided, seed))
            return made[guided][-1]

        return original(recorded, *args, **{**options, "chunk_size": 9})

    monkeypatch.setattr(evaluation, "evaluate_generation", spy)
    on_digits(place, tmp_path / "a.json", "--dtype", "float32", "--batch-size", 4, "--seed", 5, num_samples=20)
    pipe = ImagePipeline.from_pretrained(place / "model", dtype="float32")
    assert not torch.equal(torch.cat(made[True]), torch.cat(made[False]))
    for guided, scale in ((True, 1.0), (False, 0.0)):
        expected = pipe(2 * list(range(10)), guidance_scale=scale, seed=5).codes
        pixels = torch.cat(made[guided])
        images = torch.stack([torch.tensor(list(image.tobytes())) for image in pipe.decode(expected)])
        assert torch.equal(pixels.flatten(1).long(), images)


def test_repeating_a_protocol(place: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b" / "b.json"
    on_digits(place, first, "--steps", 2, "--seed", 4, "--dtype", "float32", "--class-balance", "data")
    on_digits(place, second, "--protocol", first, num_samples=None)
    a, b = load_report(first), load_report(second)
    assert b.protocol == a.protocol and "data" in a.protocol.class_balance
    assert [r.distance for r in b.generation] == [r.distance for r in a.generation]
    with pytest.raises(ConfigError, match="--num-samples 40 is named by the protocol"):
        on_digits(place, second, "--protocol", first)
    with pytest.raises(ConfigError, match=r"--seed \(1,\) is named by the protocol"):
        on_digits(place, second, "--protocol", first, "--seed", 1, num_samples=None)
    with pytest.raises(ConfigError, match="is for generation, and --tokenizer asks for reconstruction"):
        on_digits(place, second, "--protocol", first, what="tokenizer", num_samples=None)
    other = json.loads(first.read_text())["protocol"]
    del other["sampling"]["guidance_end"]  # written before there was such a setting
    (tmp_path / "older.json").write_text(json.dumps(other))
    on_digits(place, tmp_path / "c.json", "--protocol", tmp_path / "older.json", num_samples=None)
    assert load_report(tmp_path / "c.json").protocol == a.protocol
    other["reference_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="reference_sha256 is 000000000000.*images that are compared with differ"):
        on_digits(place, second, "--protocol", tmp_path / "other.json", num_samples=None)
    other["extractor_sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="expected is 000000000000"):
        on_digits(place, second, "--protocol", tmp_path / "other.json", num_samples=None)


def test_tokenizer(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.json"
    on_digits(place, out, "--batch-size", 50, what="tokenizer", num_samples=None)
    assert "rFD-judge" in capsys.readouterr().out
    report = load_report(out)
    result = report.reconstruction
    assert result is not None and len(result.usage) == len(result.perplexity) == 2
    assert all(0 < share <= 1 for share in result.usage) and all(1 <= p <= 8 for p in result.perplexity)
    assert report.protocol.reference == "digits/test" and report.protocol.num_samples == 179
    again = tmp_path / "u.json"
    on_digits(place, again, "--protocol", out, what="tokenizer", num_samples=None)
    assert load_report(again).protocol == report.protocol
    for argv in (["--steps", 3], ["--seed", 1], ["--dtype", "float32"], ["--class-balance", "equal"]):
        with pytest.raises(ConfigError, match=f"{argv[0]} .* leave it out with --tokenizer"):
            on_digits(place, out, *argv, what="tokenizer", num_samples=None)


def test_the_cache_is_used(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_digits(place, tmp_path / "a.json")
    assert (tmp_path / "evaluation-cache").is_dir()
    monkeypatch.setattr(ImagePipeline, "generate_pixels", None)
    on_digits(place, tmp_path / "b.json")
    a, b = load_report(tmp_path / "a.json"), load_report(tmp_path / "b.json")
    assert a.generation == b.generation
    with pytest.raises(TypeError):
        on_digits(place, tmp_path / "b.json", "--cache", tmp_path / "other")


def test_numbers_are_kept_with_the_model(place: Path, tmp_path: Path) -> None:
    _write_model(tmp_path)
    argv = ["--data", "digits", "--extractor", place / "judge", "--out", tmp_path / "a.json", "--store"]
    run("--model", tmp_path, "--split", "test", "--num-samples", 40, *argv)  # the folder of a run is its model's, too
    kept = reports(load_folder(tmp_path / "model"))
    first = load_report(tmp_path / "a.json").generation[0]
    assert [m["value"] for m in kept[0]["metrics"] if m["name"] == "FD-judge, guided"] == [round(first.distance, 4)]
    run("--tokenizer", tmp_path / "tokenizer", *argv)
    assert reports(load_folder(tmp_path / "tokenizer"))[0]["metrics"][0]["type"] == "rfd-judge"


def test_a_model_without_classes(place: Path, tmp_path: Path) -> None:
    _write_model(tmp_path, num_classes=0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(12):
        Image.new("L", (8, 8), 20 * k).save(pictures / f"{k}.png")
    argv = ["--data", pictures, "--extractor", place / "judge", "--num-samples", 8, "--out", tmp_path / "a.json"]
    run("--model", tmp_path / "model", *argv)
    report = load_report(tmp_path / "a.json")
    assert report.settings == ("unguided",) and report.protocol.class_balance == "none"
    assert report.generation[0].recognised is None
    with pytest.raises(DataError, match="has no labels, but the model generates 10 classes"):
        run("--model", place / "model", *argv)


def bad(argv: list[object], error: type[ResGenError], named: str) -> Any:
    return pytest.param(argv, error, named, id=named)


@pytest.mark.parametrize(
    ("argv", "error", "named"),
    [
        bad(["--split", "val"], DataError, "unknown split 'val'"),
        bad(["--split", "test", "--num-samples", 3], ConfigError, "too few for pr_k=3"),
        bad(["--num-samples", 0], ConfigError, "--num-samples 0 must be at least 1"),
        bad(["--num-samples", 1], ConfigError, "num_samples=1 must be at least 2"),
        bad(["--batch-size", 0], ConfigError, "--batch-size 0"),
        bad(["--steps", 0], ConfigError, "num_steps=0"),
        bad(["--seed", 1, 1], ConfigError, "different numbers"),
        bad(["--class-balance", "some"], ConfigError, "unknown class_balance 'some'"),
        bad(["--extractor", "nothing"], CheckpointError, "unknown extractor 'nothing'"),
        bad(["--extractor-sha256", "0" * 64], CheckpointError, "expected is 000000000000"),
        bad(["--extractor", "cifar10-8x8"], CheckpointError, "an extractor is a classifier"),
        bad(["--model", "nothing"], CheckpointError, "unknown model 'nothing'"),
        bad(["--data", "nowhere"], DataError, "unknown data 'nowhere'"),
        bad(["--protocol", "none.json", "--num-samples", 5], ConfigError, "named by the protocol"),
        bad(["--tokenizer", "cifar10-8x8"], ConfigError, "one of --model"),
        bad(["--task", "continuation"], ConfigError, "--task must be left out: model '.*' is for images"),
        bad(["--out", "a.txt"], ConfigError, "must end in .json"),
        bad(["--store", "--model", "cifar10-8x8"], ConfigError, "--store: 'cifar10-8x8' is no folder of yours"),
    ],
)
def test_bad_input(place: Path, tmp_path: Path, argv: list[object], error: type[ResGenError], named: str) -> None:
    common = ["--model", place / "model", "--data", "digits", "--extractor", place / "judge"]
    with pytest.raises(error, match=named) as caught:
        run(*common, "--out", tmp_path / "a.json", *argv)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_pictures_of_another_size(place: Path, tmp_path: Path) -> None:
    for name in DIGITS:
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("L", (9, 9), 20 * int(name) + 10 * k).save(tmp_path / "data" / name / f"{k}.png")
    argv = ["--model", place / "model", "--data", tmp_path / "data", "--extractor", place / "judge"]
    argv += ["--num-samples", 20, "--out", tmp_path / "a.json"]
    with pytest.raises(DataError, match="9x9 pixels, but 8x8 is expected.*resize=True"):
        run(*argv)
    run(*argv, "--resize")
    assert load_report(tmp_path / "a.json").protocol.resize == "lanczos"


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    assert "resgen evaluate --model" in text and "--num-samples N" in text and "--out FILE.json" in text
