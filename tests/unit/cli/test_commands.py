"""What each command hands to the library, and what it reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from resgen import modalities
from resgen.cli.main import main
from resgen.errors import CheckpointError, ResGenError, unknown
from resgen.experiments.image.reconstruction import reconstruct_pictures
from resgen.modalities import Modality
from resgen.types import CodeSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeTraining:
    evaluate_every: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeRecipe:
    name: str
    seed: int = 0
    generator_training: FakeTraining = FakeTraining()


def run_json(argv, capsys):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_generate_passes_classes_and_only_the_given_settings(pipeline, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    classes = "--class one 0 --class T-shirt/top --num-samples 2 --seed 4".split()
    settings = "--dtype int8 --steps 5 --guidance-scale 0 --top-p 0.9 --choice-temperature 3 --schedule linear".split()
    document = run_json(["generate", "image", "--model", "m", *classes, *settings, "--out", str(out)], capsys)
    assert pipeline.calls == [
        {"model": "m", "device": None, "dtype": "int8"},
        {
            "class_ids": [1, 1, 0, 0, 2, 2],
            "num_samples": 1,
            "seed": 4,
            "num_steps": 5,
            "guidance_scale": 0.0,
            "top_p": 0.9,
            "choice_temperature": 3.0,
            "mask_schedule": "linear",
        },
    ]
    assert document["files"] == [str(out)] and document["passes"] == 3 and document["depth"] == 8
    assert document["class_names"][-1] == "T-shirt/top"
    assert document["steps"][1] == {
        "step": 2,
        "num_steps": 3,
        "guidance_scale": 1.5,
        "revealed": 5,
        "visible_tokens": 10,
        "seconds": 0.1,
        "passes": 2,
    }
    width, height = Image.open(out).size
    assert height > width, "three rows of two images"


def test_generate_without_classes_takes_every_class(pipeline, tmp_path):
    assert main(["generate", "image", "--model", "m", "--out", str(tmp_path / "a.png")]) == 0
    assert pipeline.calls[1] == {"class_ids": [0, 1, 2], "num_samples": 1, "seed": 0}


def test_generate_with_a_model_without_classes(pipeline, tmp_path):
    pipeline.class_names = ()
    assert main(["generate", "image", "--model", "m", "--num-samples", "3", "--out", str(tmp_path)]) == 0
    assert pipeline.calls[1] == {"class_ids": None, "num_samples": 3, "seed": 0}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"picture_000{k}_0.png" for k in range(3)]


def test_generate_into_a_folder_writes_one_file_per_picture(pipeline, tmp_path):
    out = tmp_path / "pictures"
    argv = ["generate", "image", "--model", "m", "--class", "2", "one", "--seed", "9", "--out", str(out)]
    assert main(argv) == 0
    assert sorted(p.name for p in out.iterdir()) == ["T-shirt-top_0000_9.png", "one_0001_9.png"]
    assert Image.open(out / "one_0001_9.png").getpixel((0, 0)) == 10


def test_generate_one_picture_is_no_grid(pipeline, tmp_path):
    out = tmp_path / "a.png"
    assert main(["generate", "image", "--model", "m", "--class", "1", "--out", str(out)]) == 0
    assert Image.open(out).size == (4, 4)
    assert main(["generate", "image", "--model", "m", "--class", "1", "--scale", "8", "--out", str(out)]) == 0
    assert Image.open(out).size == (32, 32)
    argv = ["generate", "image", "--model", "m", "--num-samples", "2", "--scale", "3", "--out", str(tmp_path / "all")]
    assert main(argv) == 0
    assert {Image.open(file).size for file in (tmp_path / "all").iterdir()} == {(12, 12)}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--class", "nine"], "nine"),
        (["--num-samples", "0"], "--num-samples 0"),
        (["--scale", "65"], "--scale=65 must be at most 64"),
        (["--out", "x.txt"], "x.txt"),
    ],
)
def test_generate_refuses_and_writes_nothing(options, named, pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "image", "--model", "m", "--out", "a.png", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir()) and len(pipeline.calls) < 2


def test_a_class_option_without_a_class_is_refused(pipeline, tmp_path, capsys):
    assert main(["generate", "image", "--model", "any", "--class", "--out", str(tmp_path / "a.png")]) == 2
    assert "--class needs a class, by name or number" in capsys.readouterr().err


def test_an_unknown_key_of_a_recipe_says_where_all_are(capsys):
    assert main(["inspect", "--recipe", "digits", "--set", "batch_size=4"]) == 2
    line = capsys.readouterr().err
    assert "did you mean 'tokenizer_training.batch_size' or 'generator_training.batch_size'" in line
    assert "`resgen inspect --recipe NAME` shows all" in line and len(line) < 300


def test_a_name_in_other_case_is_suggested():
    assert unknown("class", "bags", ["Bag", "Coat"]) == "unknown class 'bags' (did you mean 'Bag'?); allowed: Bag, Coat"


def test_demo_shows_all_classes_of_the_bundled_model(pipeline, bundled, tmp_path, capsys):
    bundled(cifar10_a="pipeline", avatars_a="tokenizer", avatars_b="pipeline")
    document = run_json(["demo", "--out", str(tmp_path / "out")], capsys)
    assert pipeline.calls[0]["model"] == "avatars-b"
    assert pipeline.calls[1]["class_ids"] == [0] * 8 + [1] * 8 + [2] * 8
    seconds = document.pop("seconds")
    assert seconds >= 0 and document == {
        "file": str(tmp_path / "out" / "demo.png"),
        "model": "avatars-b",
        "pictures": 24,
        "steps": 2,
        "passes": 3,
        "depth": 8,
    }
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "2 steps, 3 network passes, depth 8" in captured.out and "demo.png" in captured.out
    assert "avatars-b" in captured.err
    assert Image.open(tmp_path / "out" / "demo.png").size[0] > 8 * 4 * 2


def test_demo_without_a_bundled_model_says_so(bundled, pipeline, tmp_path, capsys):
    bundled(fashion_mnist_a="tokenizer")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "no model is bundled" in capsys.readouterr().err


@pytest.fixture
def trainings(fake, monkeypatch):
    """Calls of the training functions."""
    calls = []

    class Interrupted(ResGenError):
        pass

    def train(stage, recipe, run):
        calls.append((stage, recipe, run))
        if stage == "generator":
            raise Interrupted("checkpoint at step 7, continue with --resume")
        return {"loss": 0.5}

    monkeypatch.setattr("resgen.modalities.of_recipe", lambda name: modality(act=train))
    fake("resgen.training", Interrupted=Interrupted, Run=dict)
    return calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeModality(Modality):
    act: Callable[..., dict[str, float]] | None = None

    def train(self, *given):
        return self.act(*given)


def modality(**members):
    """One whose only recipe is a fake."""
    recipes = {"digits": lambda: FakeRecipe(name="digits")}
    return FakeModality(name="image", noun="images", recipes=recipes, components=frozenset(), stages={}, **members)


def test_train_tokenizer(trainings, tmp_path, capsys):
    out = tmp_path / "run"
    argv = f"train tokenizer --recipe digits --data d --set seed=3 --max-minutes 1.5 --resume --out {out}".split()
    assert run_json(argv, capsys) == {"model": str(out / "model"), "metrics": {"loss": 0.5}}
    run = {
        "out": out,
        "data": "d",
        "max_minutes": 1.5,
        "resume": True,
        "init": None,
        "models": {},
        "evaluate_on": None,
        "extractor": None,
    }
    assert trainings == [("tokenizer", FakeRecipe(name="digits", seed=3), run)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureData:
    resize: bool = False
    skip_unreadable: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithData(FakeRecipe):
    data: PictureData = PictureData()


@pytest.mark.parametrize("stage", ["tokenizer", "generator --tokenizer t"])
def test_options_of_the_data(stage, trainings, monkeypatch, tmp_path, capsys):
    argv = f"train {stage} --recipe digits --resize --skip-unreadable --out {tmp_path}".split()
    monkeypatch.setattr(FakeRecipe, "data", dataclasses.make_dataclass("SoundData", [])(), raising=False)
    assert main(argv) == 2 and not trainings
    assert "--resize and --skip-unreadable must be left out: recipe 'digits' is for" in capsys.readouterr().err
    pictures = dataclasses.replace(modality(act=None), recipes={"digits": lambda: WithData(name="digits")})
    monkeypatch.setattr("resgen.modalities.of_recipe", lambda name: pictures)
    monkeypatch.setattr(FakeModality, "train", lambda own, *given: trainings.append(given) or {})
    assert main(argv) == 0
    assert trainings[0][1].data == PictureData(resize=True, skip_unreadable=True)


def following(argv, capsys, metrics, monkeypatch):
    """The lines at the end of a training."""
    monkeypatch.setattr("resgen.modalities.Modality.train", lambda *given: metrics)
    assert main(argv.split()) == 0
    return capsys.readouterr().out.splitlines()


def test_a_training_ends_with_its_quality_and_the_next_command(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    metrics = {"loss": 1.0, "val_loss": 0.25, "psnr_db/2": 20.0, "psnr_db/10": 30.0, "usage/1": 1.0}
    argv = "train tokenizer --recipe digits --data mine --resize --out runs/a-tokenizer --set tokenizer.width=16 "
    argv += "tokenizer_training.num_steps=5"
    assert following(argv, capsys, metrics, monkeypatch) == [
        "model: runs/a-tokenizer/model",
        "quality: PSNR 30.00 dB, validation loss 0.2500",
        "samples: runs/a-tokenizer/samples",
        "healthy? resgen doctor runs/a-tokenizer",
        "next: resgen train generator --recipe digits --data mine --tokenizer runs/a-tokenizer/model --resize --set "
        "tokenizer.width=16 --out runs/a-generator",
    ]
    argv = "train generator --recipe digits --tokenizer runs/a-tokenizer/model --out runs/a"
    lines = following(argv, capsys, {"val_loss": 4.0}, monkeypatch)
    assert lines[-1] == "next: resgen generate image --model runs/a/model --num-samples 8 --out runs/a/samples.png"
    argv = "train tokenizer --recipe digits --init t --out runs/d --set tokenizer_loss.decoder_only=true"
    lines = following(argv, capsys, {}, monkeypatch)
    assert lines[-1] == "next: resgen export RUN --replace tokenizer=runs/d/model --out DIR"


@pytest.mark.parametrize(
    ("argv", "last"),
    [
        (
            "tokenizer --recipe spoken_digits --out v-tokenizer",
            "vocoder --recipe spoken_digits --tokenizer v-tokenizer/model",
        ),
        ("tokenizer --recipe spoken_digits_waveform --out w", "text --recipe spoken_digits_waveform --out w-text"),
        ("text --recipe spoken_digits --out v-text", "--tokenizer DIR --text v-text/model --out v-generator"),
    ],
)
def test_the_next_command_of_speech(argv, last, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert last in following(f"train {argv}", capsys, {}, monkeypatch)[-1]


@pytest.mark.parametrize(
    ("example", "last"),
    [((), "resgen inspect m/model"), (("--out", "a.txt"), "resgen generate image --model m/model --out m/a.txt")],
)
def test_the_last_command_is_the_modality_s_example(example, last, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    of_recipe = modalities.of_recipe
    monkeypatch.setattr(modalities, "of_recipe", lambda recipe: dataclasses.replace(of_recipe(recipe), example=example))
    argv = "train generator --recipe digits --tokenizer t --out m"
    assert following(argv, capsys, {}, monkeypatch)[-1] == f"next: {last}"


def test_of_several_processes_only_the_first_reports(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("resgen.modalities.Modality.train", lambda *given: {"loss": 1.5})
    argv = ["train", "tokenizer", "--recipe", "digits", "--out", str(tmp_path)]
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert main(argv) == 0
        assert ("model: " in capsys.readouterr().out) == said


def test_interrupted_training_says_how_to_go_on(trainings, tmp_path, capsys):
    argv = ["train", "generator", "--recipe", "digits", "--tokenizer", "t", "--out", str(tmp_path)]
    assert main(argv) == 130
    run = {
        "out": tmp_path,
        "data": None,
        "max_minutes": None,
        "resume": False,
        "init": None,
        "evaluate_on": None,
        "extractor": None,
    }
    assert trainings[0][2] == {**run, "models": {"tokenizer": "t"}}
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "checkpoint at step 7, continue with --resume\n"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--set", "sed=3"], "'sed' (did you mean 'seed'?)"),
        (["--set", "seed"], "'seed' must have the form key=value"),
        (["--max-minutes", "0"], "--max-minutes 0 must be greater than 0"),
        (["--max-minutes", "nan"], "--max-minutes nan"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_train_refuses_before_it_begins(options, named, trainings, tmp_path, capsys):
    assert main(["train", "tokenizer", "--recipe", "digits", "--out", str(tmp_path / "r"), *options]) == 2
    assert named in capsys.readouterr().err
    assert not trainings and not list(tmp_path.iterdir())


class FakeCache:
    spec = CodeSpec(depth=8, codebook_size=16, code_dim=4, shape=(2, 3))
    plan = SimpleNamespace(class_names=("a",), class_axes=(), ragged=False)

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def test_encode_reports_the_caches(fake, tmp_path, capsys, monkeypatch):
    calls = []

    def encode(tokenizer, data, out, *, flip, device, shard_samples=None):
        assert (tokenizer, data, out) == ("t", "digits", tmp_path / "c")
        calls.append({"flip": flip, "device": device, "shard_samples": shard_samples})
        return FakeCache(7), FakeCache(2)

    fake("resgen.modalities", of_model=lambda name: modality(encode=encode))
    fake("resgen.training.parallel", finalise=lambda: None)
    argv = ["encode", "--tokenizer", "t", "--data", "digits", "--flip", "--device", "cpu", "--out", str(tmp_path / "c")]
    document = run_json(argv, capsys)
    assert document["spec"]["shape"] == [2, 3] and document["num_samples"] == {"train": 7, "held_out": 2}
    assert document["class_names"] == ["a"]
    assert main([*argv, "--shard-samples", "500"]) == 0
    assert "7 samples for training and 2 held out, each of 2x3 positions and 8 levels" in capsys.readouterr().out
    options = {"flip": True, "device": "cpu"}
    assert calls == [{**options, "shard_samples": None}, {**options, "shard_samples": 500}]
    monkeypatch.setenv("RANK", "1")
    assert main(argv) == 0 and capsys.readouterr().out == "", "one report is enough"
    assert main([*argv, "--text", "x", "--resize"]) == 2
    assert "--resize and --text must be left out: tokenizer 't' is for images" in capsys.readouterr().err


def test_encode_verifies(fake, tmp_path, capsys):
    calls = []

    def check_encoded(out, **given):
        calls.append((out, given))
        return FakeCache(7), FakeCache(2)

    fake("resgen.modalities", check_encoded=check_encoded)
    argv = ["encode", "--verify", "--out", str(tmp_path)]
    assert run_json(argv, capsys)["num_samples"] == {"train": 7, "held_out": 2}
    assert main([*argv, "--tokenizer", "t", "--data", "d"]) == 0
    assert calls == [
        (tmp_path, {"tokenizer": None, "data": None}),
        (tmp_path, {"tokenizer": "t", "data": "d"}),
    ]


def test_encode_verifies_sequences_without_speakers(fake, tmp_path, capsys):
    class Ragged(FakeCache):
        plan = SimpleNamespace(ragged=True, columns={"steps": "number"})
        lengths = torch.tensor([3, 5])

    fake("resgen.modalities", check_encoded=lambda out, **given: (Ragged(7), Ragged(2)))
    document = run_json(["encode", "--verify", "--out", str(tmp_path)], capsys)
    assert document["num_positions"] == {"train": 8, "held_out": 8} and document["columns"] == ["steps"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "--tokenizer and --data are required"),
        (["--tokenizer", "t"], "--tokenizer and --data are required"),
        (["--tokenizer", "t", "--data", "d", "--shard-samples", "0"], "--shard-samples 0 must be at least 1"),
        (["--verify", "--flip", "--text", "t"], "--text and --flip must be left out"),
        (["--verify", "--shard-samples", "5"], "--shard-samples must be left out"),
    ],
)
def test_encode_refuses_before_it_begins(options, line, fake, tmp_path, capsys):
    fake("resgen.training.image.runs")
    assert main(["encode", "--out", str(tmp_path / "c"), *options]) == 2
    assert line in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_reconstruct_reports_psnr_coarse_to_fine(fake, monkeypatch, tmp_path, capsys):
    result = SimpleNamespace(levels=[1, 2], psnr_db=[10.0, 20.25], num_pictures=3, seconds=1.0)
    calls = []

    def reconstruct(tokenizer, input, out, *, resize, levels):
        calls.append((tokenizer, input, out, resize, levels))
        return result

    monkeypatch.setattr("resgen.experiments.image.reconstruction.reconstruct", reconstruct)
    fake("resgen.modalities", of_model=lambda name: modality(reconstruct=reconstruct_pictures))
    out = tmp_path / "levels.png"
    argv = ["reconstruct", "--tokenizer", "t", "--input", "in.png", "--out", str(out)]
    assert run_json(argv, capsys)["psnr_db"] == [10.0, 20.25]
    assert main([*argv, "--resize"]) == 0
    assert main([*argv, "--levels", "2", "1"]) == 0
    assert [call[:3] for call in calls] == 3 * [("t", Path("in.png"), out)]
    assert [call[3:] for call in calls] == [(False, ()), (True, ()), (False, (2, 1))]
    printed = capsys.readouterr().out
    assert "2       20.25" in printed and "PSNR falls" not in printed and "3 images in" in printed
    result.levels.append(4)
    result.psnr_db.append(20.2)
    assert main(argv) == 0
    assert "PSNR falls" not in capsys.readouterr().out, "a fall this small says nothing of the tokenizer"
    result.levels.append(8)
    result.psnr_db.append(20.0)
    assert main(argv) == 0
    assert "PSNR falls" not in capsys.readouterr().out, "three images say nothing of it, either"
    result.num_pictures = 16
    assert main(argv) == 0
    assert "the PSNR falls after 2 levels" in capsys.readouterr().out


def test_inspect_describes_a_folder_or_a_recipe(fake, capsys, monkeypatch):
    described = modality(describe=lambda recipe: {"seed": recipe.seed})
    monkeypatch.setattr("resgen.modalities.of_recipe", lambda name: described)
    fake(
        "resgen.pipelines.describe",
        describe_artefact=lambda path: {"kind": "pipeline", "path": path},
    )
    assert run_json(["inspect", "runs/x"], capsys) == {"kind": "pipeline", "path": "runs/x"}
    assert run_json(["inspect", "--recipe", "digits", "--set", "seed=2"], capsys) == {"seed": 2}
    assert main(["inspect", "runs/x"]) == 2
    assert "'runs/x' has no valid description; --full shows the record" in capsys.readouterr().err
    assert main(["inspect", "runs/x", "--full"]) == 0
    assert capsys.readouterr().out == "kind: pipeline\npath: runs/x\n"


def test_inspect_counts_parameters_as_the_network_does():
    from resgen.pipelines.describe import describe_artefact
    from resgen.pipelines.image.pipeline import ImagePipeline

    pipe = ImagePipeline.from_pretrained("fashion-mnist-small")
    components = describe_artefact("fashion-mnist-small")["components"]
    for name, module in (("tokenizer", pipe.tokenizer), ("generator", pipe.generator)):
        trained = sum(parameter.numel() for parameter in module.parameters())
        assert components[name]["parameters"] == trained < components[name]["numbers"]
    judge = describe_artefact("fashion-mnist-classifier")
    assert judge["components"]["classifier"]["parameters"] == judge["history"]["parameters"]


@pytest.mark.parametrize("name", ["fashion-mnist-small", "spoken-digits-small", "digit-recognizer"])
def test_inspect_fits_a_screen(name, capsys):
    assert main(["inspect", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 15 and lines[0].endswith(" MB") and lines[-1] == "everything: --full"
    if name == "fashion-mnist-small":
        assert "codes: 4x4 positions x 8 levels of 256 codes" in lines
        assert any(line.startswith("classes: 10 (T-shirt/top, ") for line in lines)
        assert any(line.startswith("tokenizer trained: recipe ") and " PSNR " in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "inspect takes either DIR_OR_NAME or --recipe NAME"),
        (["a", "--recipe", "b"], "inspect takes either DIR_OR_NAME or --recipe NAME"),
        (["a", "--set", "seed=1"], "--config and --set change a recipe; a saved model is shown as it is"),
    ],
)
def test_inspect_refuses_ambiguous_requests(argv, line, fake, capsys):
    fake("resgen.pipelines.describe", describe_artefact=None)
    assert main(["inspect", *argv]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_inspect_of_an_unknown_model_is_an_error(fake, capsys):
    def describe_artefact(path):
        raise CheckpointError(f"unknown model '{path}'")

    fake("resgen.pipelines.describe", describe_artefact=describe_artefact)
    assert main(["inspect", "nope"]) == 2
    assert capsys.readouterr().err == "error: unknown model 'nope'\n"
