"""Which modality a recipe, a model or a folder of codes is of, and what a command imports for it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from image_parts import save_model
from resgen.checkpoints.format import Component, save_folder
from resgen.cli.common import ask
from resgen.cli.compare import Compare
from resgen.cli.evaluate import Evaluate
from resgen.errors import CheckpointError, ConfigError
from resgen.evaluation.speech.evaluate import SpeechReport
from resgen.experiments.speech.judge import SpeechEvaluation
from resgen.modalities import Modality, modalities, of_model, of_recipe, register
from resgen.progress import Advance
from resgen.training import Run
from speech_parts import save_parts

SOUND = ("speech", "sound", "mel", "waveform", "vocoder", "codec", "alignment", "spectral", "models.text")


def test_a_recipe_names_its_modality() -> None:
    assert [modality.name for modality in modalities()][:2] == ["image", "speech"]
    for modality in modalities():
        for name in modality.recipes:
            assert of_recipe(name) is modality
    with pytest.raises(ConfigError, match="'spoken-digits'.*did you mean 'spoken_digits'"):
        of_recipe("spoken-digits")


def test_a_model_names_its_modality_and_no_weights_are_read(tmp_path: Path) -> None:
    picture, voice = save_model(tmp_path / "picture"), save_parts(tmp_path / "voice")
    (voice / "generator.safetensors").write_bytes(b"damaged")
    assert of_model(picture).name == "image" and of_model(voice).name == "speech"
    assert of_model("fashion-mnist-small").name == "image" and of_model("spoken-digits-small").name == "speech"
    save_folder(
        tmp_path / "other", kind="tokenizer", components={"tokenizer": Component(type="scent", config={}, tensors={})}
    )
    with pytest.raises(CheckpointError, match="holds scent: of no modality"):
        of_model(tmp_path / "other")


def test_stages_take_the_models_that_they_need(tmp_path: Path) -> None:
    image, speech = of_recipe("digits"), of_recipe("spoken_digits")
    digits, spoken = (one.recipes[name]() for one, name in ((image, "digits"), (speech, "spoken_digits")))
    for modality, stage, recipe, models, message in (
        (
            image,
            "vocoder",
            digits,
            {},
            "'digits' is for images; their stages are tokenizer, generator, not 'vocoder'",
        ),
        (image, "generator", digits, {}, "--tokenizer is missing"),
        (image, "generator", digits, {"tokenizer": "t", "text": "x"}, "--text must be left out: .* is for images"),
        (speech, "generator", spoken, {"tokenizer": "t"}, "--text is missing"),
        (speech, "text", spoken, {"tokenizer": "t"}, "--tokenizer must be left out"),
    ):
        with pytest.raises(ConfigError, match=message):
            modality.train(stage, recipe, Run(out=tmp_path / "run", models=models))
    assert not list(tmp_path.iterdir())


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="modality 'image' is there already"):
        register(of_recipe("digits"))
    for taken, message in (
        ({"recipes": {"walk": dict, "digits": dict}}, "recipe 'digits' of modality 'motion' is one of 'image'"),
        ({"components": frozenset({"text-model", "joints"})}, "component 'text-model' of .* is one of 'speech'"),
    ):
        bare = Modality(name="motion", noun="motion", recipes={}, components=frozenset(), stages={})
        with pytest.raises(ConfigError, match=message):
            register(replace(bare, **taken))
    assert [modality.name for modality in modalities()] == ["image", "speech"]


def test_what_a_modality_does_not_have_is_one_line() -> None:
    bare = Modality(name="motion", noun="motion", recipes={}, components=frozenset(), stages={})
    command = Evaluate(model="m", data="d", out=Path("a.json"))
    with pytest.raises(ConfigError, match="^there is no 'evaluate' for motion: the modality 'motion' has none$"):
        ask(bare, "evaluate", command, "model 'm'")
    able = replace(bare, evaluate=lambda model, data, out: (model, data, out))
    assert ask(able, "evaluate", command, "model 'm'") == ("m", "d", Path("a.json"))
    with pytest.raises(ConfigError, match="--steps must be left out: model 'm' is for motion"):
        ask(able, "evaluate", replace(command, steps=3), "model 'm'")
    assert ask(able, "evaluate", replace(command, steps=3), "model 'm'", handled=("steps",))[0] == "m"


@pytest.mark.parametrize(
    ("given", "option"),
    [({"jobs": 0}, "--jobs"), ({"equal_steps_seeds": 2}, "--equal-steps-seeds"), ({"extractor": ""}, "--extractor")],
)
def test_options_of_pictures_are_refused_for_speech(given: dict, option: str, tmp_path: Path) -> None:
    command = Compare(recipe="spoken_digits", tokenizer="t", text="x", data="d", out=tmp_path / "out", **given)
    with pytest.raises(ConfigError, match=f"^{option} must be left out: recipe 'spoken_digits' is for speech$"):
        command.run()


@pytest.mark.parametrize(("name", "option"), [("evaluate_on", "--evaluate-on"), ("extractor", "--extractor")])
def test_what_evaluations_take_is_refused_without_them(name: str, option: str, tmp_path: Path) -> None:
    image = of_recipe("digits")
    run = Run(out=tmp_path / "run", models={"tokenizer": "t"}, **{name: "nope"})
    with pytest.raises(ConfigError, match=f"^{option} needs evaluations: --set generator_training.evaluate_every=N$"):
        image.train("generator", image.recipes["digits"](), run)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_need_not_take_the_file_of_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_parts(tmp_path / "voice")

    def run(self: SpeechEvaluation, advance: Advance) -> SpeechReport:
        raise ConfigError(f"evaluating {self.model}")

    monkeypatch.setattr(SpeechEvaluation, "run", run)
    with pytest.raises(ConfigError, match=f"^evaluating {model}$"):
        Evaluate(model=str(model), data="d", out=tmp_path / "a.json").run()


def test_training_a_picture_tokenizer_imports_nothing_of_speech(tmp_path: Path) -> None:
    settings = ["tokenizer_training.num_steps=1", "tokenizer_training.loggers=[]", "tokenizer_training.device=cpu"]
    command = ["train", "tokenizer", "--recipe", "digits", "--out", str(tmp_path / "run"), "--set", *settings]
    program = (
        "import json, sys; from resgen.cli.main import main; "
        f"code = main({command}); print(json.dumps([code, sorted(sys.modules)]))"
    )
    pytest.importorskip("sklearn")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code, names = json.loads(result.stdout.splitlines()[-1])
    assert code == 0 and (tmp_path / "run" / "model").is_dir()
    beneath = [name for name in names if name.startswith("resgen.") and not name.startswith("resgen.cli.")]
    assert not [name for name in beneath if any(word in name for word in SOUND)], "but for the commands' options"
