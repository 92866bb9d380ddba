"""Images with two label columns through the command line, to a generator that heeds both, either or none."""

from __future__ import annotations

import io
import json
from itertools import product
from pathlib import Path

import attributes
import numpy as np
import pytest
import torch
import train_classifier
from PIL import Image

from resgen.checkpoints.artefacts import load_tokenizer, save_tokenizer
from resgen.cli.main import main
from resgen.data.codes.cache import open_codes
from resgen.errors import ConfigError
from resgen.nn.seeding import seeded
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STYLES, SHADES = ("plain", "striped", "halved"), ("dark", "light")
COLUMNS = "[style=label,shade]"
SETTINGS = """
generator.width=32 generator.num_layers=2 generator.num_heads=2 generator.mlp_width=64 generator.condition_width=32
generator_training.device=cpu generator_training.precision=fp32 generator_training.num_steps=300
generator_training.ema_decay=0.97
generator_training.batch_size=32 generator_training.learning_rate=3e-3 generator_training.validate_every=500
generator_training.sample_every=500 generator_training.log_every=100 generator_loss.validation_samples=8
sampling.num_steps=16 sampling.guidance_scale=1.0 sampling.choice_temperature=4.0
""".split()


def picture(style: int, shade: int) -> np.ndarray:
    """The style is in the upper half, the shade in the lower."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = [np.full(8, 128), np.arange(8) % 2 * 255, np.arange(8) // 4 * 255][style]
    pixels[4:] = (40, 220)[shade]
    return pixels


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write_split(path: Path, repeats: int) -> None:
    """Every combination; of a quarter of the rows the shade is not known."""
    rows = list(product(range(3), range(2))) * repeats
    features = {"label": {"names": list(STYLES), "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": pa.array([png(picture(*row)) for row in rows]),
            "label": pa.array([style for style, _ in rows], pa.int64()),
            "shade": pa.array([None if k % 24 >= 18 else SHADES[shade] for k, (_, shade) in enumerate(rows)]),
        }
    )
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an untrained tokenizer and the run of a generator."""
    work = tmp_path_factory.mktemp("axes")
    (work / "data").mkdir()
    write_split(work / "data" / "train.parquet", 16)
    write_split(work / "data" / "test.parquet", 4)
    with seeded("tokenizer"):
        quantizer = QuantizerConfig(depth=2, codebook_size=16)
        tokenizer = ImageTokenizer(
            ImageTokenizerConfig(image_size=8, channels=1, width=8, multipliers=(1, 2), code_dim=4, quantizer=quantizer)
        )
    save_tokenizer(work / "tokenizer", tokenizer)
    train("digits", work / "run", work, work / "data", f"data.class_columns={COLUMNS}")
    return work


def train(recipe: str, out: Path, work: Path, data: Path, *settings: str, init: Path | None = None) -> None:
    argv = ["train", "generator", "--recipe", recipe, "--tokenizer", work / "tokenizer", "--data", data, "--out", out]
    argv += ["--init", init] if init else []
    assert main([str(one) for one in [*argv, "--set", *SETTINGS, *settings]]) == 0


@pytest.fixture(scope="module")
def pipe(work: Path) -> ImagePipeline:
    return ImagePipeline.from_pretrained(work / "run" / "model", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def known(work: Path) -> dict[tuple[int, int], torch.Tensor]:
    """Codes of every combination."""
    tokenizer, _ = load_tokenizer(work / "tokenizer")
    codes = {}
    for row in product(range(3), range(2)):
        pixels = torch.from_numpy(picture(*row)).float() / 127.5 - 1
        codes[row] = tokenizer.encode(pixels[None, None])[0]
    assert len({tuple(one.flatten().tolist()) for one in codes.values()}) == 6
    return codes


def drawn(pipe: ImagePipeline, known: dict[tuple[int, int], torch.Tensor], request: object) -> list[tuple[int, int]]:
    """The combinations that samples are nearest to, by the share of equal codes."""
    samples = pipe([request], num_samples=48).codes
    rows = list(known)
    equal = torch.stack([(samples == known[row]).float().mean((1, 2)) for row in rows], 1)
    return [rows[k] for k in equal.argmax(1).tolist()]


def test_codes_hold_what_the_columns_say(work: Path) -> None:
    cache = open_codes(work / "run" / "codes" / "train")
    assert cache.plan.class_axes == (("style", STYLES), ("shade", SHADES)) and cache.plan.class_names == STYLES
    assert sorted(set(cache.labels.tolist())) == [0, 1, 2, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("request_", ["striped, light", {"style": "halved", "shade": "dark"}, {"style": 0, "shade": 1}])
def test_both_conditions_at_once(pipe: ImagePipeline, known: dict, request_: object) -> None:
    expected = {"striped, light": (1, 1)}.get(str(request_)) or ((2, 0) if "halved" in str(request_) else (0, 1))
    assert drawn(pipe, known, request_).count(expected) >= 43, "nine in ten"


def test_one_condition_leaves_the_other_to_the_model(pipe: ImagePipeline, known: dict) -> None:
    rows = drawn(pipe, known, "striped")
    assert sum(style == 1 for style, _ in rows) >= 43 and {shade for _, shade in rows} == {0, 1}
    rows = drawn(pipe, known, "shade=light")
    assert sum(shade == 1 for _, shade in rows) >= 43 and {style for style, _ in rows} == {0, 1, 2}


def test_no_condition_draws_everything(pipe: ImagePipeline, known: dict) -> None:
    rows = drawn(pipe, known, {})
    assert {style for style, _ in rows} == {0, 1, 2} and {shade for _, shade in rows} == {0, 1}


def test_samples_of_the_training_show_the_first_axis(work: Path) -> None:
    assert list((work / "run" / "samples").glob("*.png"))


def test_a_model_of_one_axis_learns_another(work: Path, known: dict) -> None:
    """`--init` keeps the styles; one more axis of the same codes is learned."""
    train("digits", work / "styles", work, work / "data")
    styles = ImagePipeline.from_pretrained(work / "styles" / "model", device="cpu", dtype="float32")
    assert styles.class_names == STYLES and not styles.class_axes
    codes = work / "run" / "codes"
    train("digits", work / "both", work, codes, init=work / "styles" / "model")
    both = ImagePipeline.from_pretrained(work / "both" / "model", device="cpu", dtype="float32")
    asked = list(known)
    rows = [drawn(both, known, {"style": style, "shade": shade}) for style, shade in asked]
    right = [
        [row[axis] == want[axis] for want, row_ in zip(asked, rows, strict=True) for row in row_] for axis in (0, 1)
    ]
    assert np.mean(right[0]) >= 0.95, "styles are kept"
    assert np.mean(right[1]) >= 0.65, "five standard errors above a shade drawn at random"


def test_encoding_takes_the_columns(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["encode", "--tokenizer", work / "tokenizer", "--data", work / "data", "--out", work / "codes", "--json"]
    assert main([*map(str, argv), "--class-columns", "style=label", "shade"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["class_axes"] == {"style": list(STYLES), "shade": list(SHADES)}
    for split in ("train", "held_out"):
        ours, trained = (open_codes(work / part / split).labels for part in ("codes", "run/codes"))
        assert torch.equal(ours, trained)
    train(
        "digits",
        work / "again",
        work,
        work / "codes",
        "generator_training.num_steps=1",
        "data.class_columns=[style=label,shade]",
    )
    argv = ["train", "generator", "--recipe", "digits", "--tokenizer", work / "tokenizer", "--data", work / "codes"]
    assert main([*map(str, argv), "--out", str(work / "no"), "--set", "data.class_columns=[shade]"]) == 2
    assert "data.class_columns=['shade'], but the codes in" in capsys.readouterr().err


def test_a_judge_of_one_axis_and_its_verdict(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier of one column leaves out the rows that the column says nothing of, and so does its verdict."""
    judge, data = tmp_path / "judge", str(work / "data")
    train_classifier.main(
        data, 8, 1, judge, num_steps=60, width=8, batch_size=24, crop_padding=0, class_column="shade", as_json=True
    )
    trained = json.loads(capsys.readouterr().out)
    assert (trained["train_pictures"], trained["test_pictures"], trained["class_column"]) == (72, 18, "shade")
    judged = {"class_columns": ("style=label", "shade"), "judges": (f"shade={judge}",), "num_pictures": 24}
    attributes.main(str(work / "run" / "model"), data, **judged, json=tmp_path / "out.json", grid=tmp_path / "grid.png")
    shade = json.loads((tmp_path / "out.json").read_text())["axes"]["shade"]
    assert list(shade) == ["held-out pictures", "their reconstructions", "guided", "unguided"]
    assert {one["pictures"] for one in shade.values()} == {18} and shade["held-out pictures"]["share"] == 1
    assert all(one["interval"][0] <= one["share"] <= one["interval"][1] for one in shade.values())
    assert "| shade | 18 | 100.0% (" in capsys.readouterr().out
    assert Image.open(tmp_path / "grid.png").mode == "L"
    for changes, message in (
        ({"class_columns": ("style=label",)}, "the axes of '.*' are"),
        ({"judges": (str(judge),)}, "must be axis=FOLDER"),
        ({"judges": (f"hat={judge}",)}, "unknown axis 'hat'"),
        ({"judges": (f"style={judge}",)}, r"knows \['dark', 'light'\] at 8 pixels; style is"),
        ({"num_pictures": 25}, r"num_pictures=25 must lie in 1\.\.24"),
    ):
        with pytest.raises(ConfigError, match=message):
            attributes.main(str(work / "run" / "model"), data, **judged | changes)
