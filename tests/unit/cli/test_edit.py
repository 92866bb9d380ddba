"""`resgen edit image`, and `--trace` of both commands that draw images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.checkpoints.artefacts import save_pipeline
from resgen.cli.main import main
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.pipelines.image.output import SHEET_CELL
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(depth=3, codebook_size=10)
    shape = {"image_size": 8, "channels": 1, "width": 8, "multipliers": (1, 2), "num_res_blocks": 1, "code_dim": 4}
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**shape, quantizer=quantizer))
    widths = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32, "condition_width": 16}
    generator = ResGen(ResGenConfig(**widths, num_components=5, num_classes=2), tokenizer.spec)
    with torch.no_grad():
        for parameter in (*generator.parameters(), *tokenizer.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    generator.set_codebooks(
        tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, torch.randint(10, (50, 16, 3))
    )
    path = tmp_path_factory.mktemp("models") / "model"
    sampling = SamplingConfig(num_steps=4, choice_temperature=1.0, guidance_scale=1.0)
    save_pipeline(path, tokenizer, generator, sampling=sampling, class_names=("Bag", "T-shirt/top"))
    return path


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an image, a mask, a black mask, a larger image and a text."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("a.png")
    Image.new("L", (8, 8)).save("black.png")
    Image.new("L", (16, 16)).save("large.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    Path("text.png").write_text("no image")
    return tmp_path


def command(model: Path, *options: str) -> list[str]:
    return ["edit", "image", "--model", str(model), "--input", "a.png", "--device", "cpu", *options]


def run_json(argv: list[str], capsys: Any) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sheet(model: Path, inputs: Path, capsys: Any) -> None:
    document = run_json(command(model, "--mask", "0,0,8,4", "--class", "bag", "--out", "new/sheet.png"), capsys)
    assert document["files"] == ["new/sheet.png"] and document["trace"] == []
    assert document["class_name"] == "Bag" and document["depth"] == 3
    assert (document["positions"], document["new_positions"], document["given_codes"]) == (16, 8, 24)
    assert document["steps"] and document["passes"] > len(document["steps"])
    assert Image.open("new/sheet.png").width == 2 + 4 * (SHEET_CELL + 2)
    assert main(command(model, "--mask", "0,0,8,4", "--class", "bag", "--out", "new/sheet.png")) == 0
    assert capsys.readouterr().out.startswith("1 image with 8 of 16 positions (2x2 pixels each) regenerated")


def test_a_folder_with_blended_pictures(model: Path, inputs: Path, capsys: Any) -> None:
    options = ["--mask", "mask.png", "--class", "1", "--blend", "--num-samples", "2", "--seed", "5", "--out", "out"]
    files = run_json(command(model, *options), capsys)["files"]
    names = ["T-shirt-top_0000_5.png", "T-shirt-top_0001_5.png", "sheet.png"]
    assert [Path(file).name for file in files] == names == sorted(p.name for p in Path("out").iterdir())
    pictures = [np.asarray(Image.open(file)) for file in files[:2]]
    for picture in pictures:
        assert np.array_equal(picture[:, :4], PIXELS[:, :4]) and not np.array_equal(picture[:, 4:], PIXELS[:, 4:])
    assert not np.array_equal(*pictures)
    again = [*options[:-1], "again", "--batch-size", "1"]
    for file, picture in zip(run_json(command(model, *again), capsys)["files"][:2], pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), picture), "whatever the batch"


def test_options_of_the_sampler_and_other_ways_to_keep(model: Path, inputs: Path, capsys: Any) -> None:
    base = ["--class", "bag", "--out", "a/b.png"]
    levels = run_json(command(model, "--keep-levels", "2", "--steps", "1", "--guidance-scale", "0", *base), capsys)
    assert levels["given_codes"] == 32 and levels["passes"] == len(levels["steps"]) == 1
    kept = run_json(command(model, "--keep", "0,0,4,4", "--resize", *base), capsys)
    assert kept["given_codes"] == 12 and kept["new_positions"] == 12


def test_traces(model: Path, inputs: Path, capsys: Any) -> None:
    argv = command(model, "--mask", "0,0,8,4", "--class", "bag", "--out", "a.jpg", "--trace")
    document = run_json([*argv, "t/a.gif"], capsys)
    assert document["trace"] == ["t/a.gif"] and Image.open("t/a.gif").n_frames == len(document["steps"])
    generate = ["generate", "image", "--model", str(model), "--device", "cpu", "--out", "g.png", "--trace"]
    document = run_json([*generate, "steps"], capsys)
    assert document["trace"] == [f"steps/step_000{k}.png" for k in (1, 2, 3, 4)]
    assert sorted(p.name for p in Path("steps").iterdir()) == [Path(file).name for file in document["trace"]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--class", "bag"], "nothing would be regenerated: give --mask=BOX, --keep=BOX or --keep-levels=N"),
        (["--class", "bag", "--keep-levels", "1", "--seed", "-1"], "--seed=-1 must be a whole number of at least 0"),
        (["--class", "bag", "--keep-levels", "1", "--steps", "0"], "--steps=0 must be at least 1"),
        (["--class", "bag", "--mask", "9,0,9,0"], "mask box"),
        (["--mask", "0,0,4,4"], "this model needs a class, --class; allowed: Bag, T-shirt/top, 0..1"),
        (["--mask", "0,0,4,4", "--class", "Bags"], "unknown class 'Bags' (did you mean 'Bag'?)"),
        (["--class", "bag"], "nothing would be regenerated"),
        (["--class", "bag", "--mask", "0,0,9,4"], "mask box 0,0,9,4"),
        (["--class", "bag", "--mask", "2,2,2,4"], "mask box 2,2,2,4"),
        (["--class", "bag", "--mask", "2,2,4"], "box '2,2,4' must be four whole numbers"),
        (["--class", "bag", "--mask", "nothing.png"], "--mask 'nothing.png' is neither a file nor a box"),
        (["--class", "bag", "--mask", "black.png"], "mask 'black.png' has no white pixel"),
        (["--class", "bag", "--mask", "text.png"], "mask 'text.png' is not an image"),
        (["--class", "bag", "--keep", "mask.png"], "--keep 'mask.png' must be a box"),
        (["--class", "bag", "--keep-levels", "4"], "--keep-levels=4 must lie in 0..3"),
        (["--class", "bag", "--keep-levels", "1", "--input", "text.png"], "image 'text.png' is not an image"),
        (["--class", "bag", "--keep-levels", "1", "--input", "large.png"], "convert it, or have it done (--resize)"),
        (["--class", "bag", "--keep-levels", "1", "--input", "no.png"], "image 'no.png'"),
        (["--keep-levels", "1", "--input", "no.png"], "image 'no.png'"),  # before a class is asked for
        (["--class", "bag", "--keep-levels", "1", "--num-samples", "0"], "--num-samples 0"),
        (["--class", "bag", "--keep-levels", "1", "--blend"], "blend copies the pixels outside a mask"),
        (["--class", "bag", "--keep-levels", "1", "--model", "nowhere"], "nowhere"),
        (["--class", "bag", "--keep-levels", "1", "--out", "a.txt"], "--out 'a.txt' must end in"),
        (["--class", "bag", "--keep-levels", "1", "--trace", "a.mp4"], "--trace 'a.mp4' must end in .gif"),
        (["--class", "bag", "--keep-levels", "1", "--trace", "text.png/a"], "--trace 'text.png/a' cannot be written"),
        (["--class", "bag", "--keep-levels", "3", "--trace", "t"], "no sampling step was taken"),
        (["--class", "bag", "--keep-levels", "1", "--top-k", "3"], "unknown sampling setting '--top-k'"),
    ],
)
def test_what_is_refused_leaves_nothing(options: list[str], named: str, model: Path, inputs: Path, capsys: Any) -> None:
    before = sorted(inputs.iterdir())
    assert main(command(model, "--out", "out/result.png", *options)) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(inputs.iterdir()) == before
