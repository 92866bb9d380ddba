"""The scripts in `benchmarks/`, on the built-in digits and untrained models."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path

import class_accuracy
import decoder
import pytest
import torch
import train_classifier
import variants
from PIL import Image

from resgen.checkpoints.artefacts import save_pipeline, save_tokenizer
from resgen.checkpoints.classifiers import load_classifier, save_classifier
from resgen.cli.common import load_recipe
from resgen.config import config_from_dict, config_to_dict, load_yaml, replace_nested
from resgen.data.pictures.sources import load_array, open_images
from resgen.errors import ConfigError
from resgen.evaluation.image.classifier import features
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.nn.classifier import Classifier, ClassifierConfig
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

pytest.importorskip("sklearn")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judge") / "classifier"
    train_classifier.main(
        data="digits", image_size=8, channels=1, out=out, num_steps=60, width=8, batch_size=64, crop_padding=1
    )
    return out


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ImageTokenizerConfig(
        image_size=8,
        channels=1,
        width=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        code_dim=4,
        quantizer=QuantizerConfig(depth=2, codebook_size=8),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = ImageTokenizer(config)
        tokenizer.quantizer.codebooks.normal_()
        model = ResGenConfig(
            width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16, num_components=4, num_classes=10
        )
        generator = ResGen(model, config.spec)
        codes = torch.randint(0, 8, (4, config.spec.num_positions, 2))
    generator.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
    path = tmp_path_factory.mktemp("pipeline") / "model"
    save_pipeline(path, tokenizer, generator, sampling=SamplingConfig(num_steps=3), class_names=DIGITS)
    return path


def test_train_classifier(judge: Path) -> None:
    _, folder = load_classifier(judge)
    history = folder.extra["history"]
    assert folder.extra["class_names"] == list(DIGITS)
    assert history["test_accuracy"] > 0.85 and history["num_steps"] == 60
    assert history["test_pictures"] == 179 and history["epochs"] == pytest.approx(60 * 64 / 1618)


def test_class_accuracy(judge: Path, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_accuracy.main(
        model=str(pipeline),
        data="digits",
        classifier=judge,
        num_per_class=3,
        steps=(2, 4),
        json=tmp_path / "out.json",
        grid=tmp_path / "grid.png",
    )
    result = json.loads((tmp_path / "out.json").read_text())
    kinds = [(run["num_steps"], run["guidance_scale"]) for run in result["runs"]]
    assert kinds == [(2, 2.4), (4, 2.4), (4, 0.0)]
    for run in result["runs"]:
        low, high = run["interval"]
        assert low <= run["share"] <= high and run["pictures"] == 30
        assert sum(entry["share"] for entry in run["by_class"].values()) / 10 == pytest.approx(run["share"])
    assert result["references"]["test pictures"]["accuracy"] > 0.85
    assert result["references"]["test pictures"]["fd_classifier"] < result["runs"][0]["fd_classifier"]
    nearest = result["nearest_training_picture"]
    assert nearest["samples"]["distance"]["0.5"] > nearest["test pictures"]["distance"]["0.5"] > 0
    assert Image.open(tmp_path / "grid.png").mode == "L"
    table = capsys.readouterr().out
    assert table.count("| guided | ") == 2 and "FD-classifier" in table and "FID" not in table


def test_variants(judge: Path, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(
        "trainings:\n  a: {settings: {generator.num_layers: 2}}\n  b: {kind: direct, minutes: 1}\n"
        "measurements:\n  - {training: a}\n  - {training: b, sampling: {num_steps: 2}, about: {paper: 9.5}}\n"
    )
    settings = "width=16 num_layers=1 num_heads=2 mlp_width=16 condition_width=16".split()
    given = {
        "recipe": "digits",
        "tokenizer": str(pipeline),
        "data": "digits",
        "out": tmp_path / "out",
        "max_minutes": 1.0,
        "num_samples": 40,
        "extractor": str(judge),
        "settings": (*(f"generator.{value}" for value in settings), "generator_training.num_steps=2"),
        "sampling": ("num_steps=3",),
    }
    variants.main(file, **given)
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "variants.json").read_text())["rows"]
    assert [(row["training"], row["sampling"]["num_steps"], row.get("paper")) for row in rows] == [
        ("a", 3, None),
        ("b", 2, 9.5),
    ]
    assert all(row["guided"] > 0 and row["unguided"] > 0 for row in rows)
    assert "| b | num_steps=2 |" in table and "paper=9.5" in table
    for name, layers, head in (("a", 2, "residual"), ("b", 1, "tokens")):
        config = json.loads((tmp_path / "out" / f"{name}-0" / "model" / "config.json").read_text())
        model = config["components"]["generator"]["config"]["model"]
        assert (model["num_layers"], model["head"]) == (layers, head)
    variants.main(file, **given)
    assert capsys.readouterr().out == table, "nothing is done twice"
    variants.main(file, **{**given, "first_seed": 3})
    rows = json.loads((tmp_path / "out" / "variants.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 0, 3, 3] and (tmp_path / "out" / "a-3" / "model").is_dir()
    with pytest.raises(ConfigError, match="holds a comparison with comparison.num_samples=40, this one has"):
        variants.main(file, **{**given, "num_samples": 50})
    file.write_text("trainings:\n  a: {settings: {generator.num_layers: 3}}\n")
    with pytest.raises(ConfigError, match=r"recipe.generator.num_layers=2, this one has recipe.generator.num_layers=3"):
        variants.main(file, **given)
    file.write_text("trainings:\n  a: {}\nmeasurements:\n  - {training: c}\n")
    with pytest.raises(ConfigError, match="unknown training 'c'"):
        variants.main(file, **given)


def test_decoder(judge: Path, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = ImagePipeline.from_pretrained(pipeline).tokenizer
    save_tokenizer(tmp_path / "same", tokenizer)
    with torch.no_grad():
        tokenizer.decoder.out.bias += 1.0
    save_tokenizer(tmp_path / "bright", tokenizer)
    models = (str(pipeline),)
    given = {"models": models, "data": "digits", "extractor": str(judge), "num_samples": 20}
    rows = {}
    for name in ("same", "bright"):
        out = tmp_path / f"{name}.json"
        decoder.main(str(tmp_path / name), out=out, **given)
        (rows[name],) = json.loads(out.read_text())["rows"]
    assert rows["same"]["guided"] != rows["bright"]["guided"] and rows["same"]["unguided"] != rows["bright"]["unguided"]
    assert (
        f"| {pipeline} | {rows['bright']['guided']:.2f} | {rows['bright']['unguided']:.2f} |" in capsys.readouterr().out
    )
    for other in ({"num_samples": 10}, {"tokenizer": str(tmp_path / "same")}, {"sampling": ("num_steps=1",)}):
        with pytest.raises(ConfigError, match="bright.json' has .*; choose another --out"):
            decoder.main(**({"tokenizer": str(tmp_path / "bright"), "out": out} | given | other))
    tokenizer.quantizer.codebooks.normal_()
    save_tokenizer(tmp_path / "other", tokenizer)
    with pytest.raises(ConfigError, match="has other codebooks"):
        decoder.main(str(tmp_path / "other"), out=tmp_path / "other.json", **given)
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda file: file.stem)
def test_files_of_variants_fit_the_recipe(file: Path) -> None:
    document = config_from_dict(variants.Variants, load_yaml(file))
    assert document.trainings
    for training in document.trainings.values():
        _, recipe = load_recipe("fashion_mnist", None, [], training.kind)
        built = config_to_dict(replace_nested(recipe, training.settings))
        for key, value in training.settings.items():
            assert functools.reduce(operator.getitem, key.split("."), built) == value


def test_judged_pairs_pictures_and_classes(judge: Path) -> None:
    model, _ = load_classifier(judge)
    pictures, labels = load_array(open_images("digits", split="test"), size=8, channels=1)
    names, reference = list(DIGITS), features(model, pictures)
    judged = class_accuracy.judged
    right = judged(model, pictures, labels, names, reference)
    assert right["share"] > 0.85 and right["fd_classifier"] == pytest.approx(0, abs=1e-6)
    swapped = torch.where(labels == 3, 4, torch.where(labels == 4, 3, labels))
    wrong = judged(model, pictures, swapped, names, reference)
    assert wrong["by_class"]["0"] == right["by_class"]["0"]
    assert wrong["by_class"]["3"]["share"] < 0.2 and wrong["by_class"]["4"]["share"] < 0.2
    assert wrong["share"] < right["share"] - 0.1


def test_class_accuracy_refuses_other_classes(judge: Path, pipeline: Path, tmp_path: Path) -> None:
    model = Classifier(ClassifierConfig(image_size=8, channels=1, num_classes=10, width=4))
    save_classifier(tmp_path / "other", model, class_names=tuple("abcdefghij"))
    with pytest.raises(ConfigError, match="classes of the classifier are"):
        class_accuracy.main(model=str(pipeline), data="digits", classifier=tmp_path / "other")
    with pytest.raises(ConfigError, match="num_per_class=0"):
        class_accuracy.main(model=str(pipeline), data="digits", classifier=judge, num_per_class=0)
