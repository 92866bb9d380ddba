"""A value of a type that no pipeline takes is a TypeError that names it in one line; in a process of its own, for the
suite's checks of types would come first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speech_parts import save_parts

CALLS = """
import json, sys
import numpy as np
import resgen
pictures, speech = (resgen.load(path, device="cpu", dtype="float32") for path in sys.argv[1:3])
for call in CALLS:
    try:
        eval(call)
    except Exception as error:
        print(json.dumps([call, type(error).__name__, str(error)]))
"""
REFUSED = {
    "pictures('B')": ("ConfigError", "unknown class 'B' (did you mean 'Bag'?); allowed: T-shirt/top, Bag, 1, 0..2"),
    "pictures(9)": ("ConfigError", "unknown class '9'"),
    "pictures(3.5)": ("WrongTypeError", "a class is a name or a whole number, not float"),
    "pictures(b'Bag')": ("WrongTypeError", "unknown class"),
    "pictures([[0, 1]])": ("WrongTypeError", "unknown class '[0, 1]'"),
    "pictures(True)": ("ConfigError", "unknown class 'True'"),
    "pictures('Bag', seed='a')": ("WrongTypeError", "seed='a' must be a whole number of at least 0"),
    "pictures('Bag', seed=1.0)": ("WrongTypeError", "seed=1.0 must be a whole number"),
    "pictures('Bag', num_samples='2')": ("WrongTypeError", "num_samples='2' must be a whole number"),
    "pictures('Bag', batch_size=1.5)": ("WrongTypeError", "batch_size=1.5 must be a whole number"),
    "pictures('Bag', num_steps='4')": ("WrongTypeError", "num_steps='4' must be a whole number"),
    "pictures('Bag', top_p=[1])": ("WrongTypeError", "top_p=[1] must be a number"),
    "pictures.edit(3, keep_levels=1, class_id=0)": ("WrongTypeError", "the image is 3 (int); give a PIL image"),
    "pictures.edit(np.zeros((8, 8), np.uint8), keep_levels='1', class_id=0)": (
        "ConfigError",
        "keep_levels='1' must lie in",
    ),
    "pictures.edit(np.zeros((8, 8), np.uint8), keep_levels=1.5, class_id=0)": (
        "ConfigError",
        "keep_levels=1.5 must lie",
    ),
    "pictures('Bag', mask_schedule=1)": ("WrongTypeError", "mask_schedule=1 must be a name"),
    "type(pictures)('avatars64')": ("WrongTypeError", "ImagePipeline takes loaded parts; use ImagePipeline.from_pretr"),
    "type(speech)('english-small')": ("WrongTypeError", "use SpeechPipeline.from_pretrained('english-small')"),
    "speech({'text': 'abc'})": ("WrongTypeError", "text={'text': 'abc'} must be a text or a list of texts"),
    "speech(3)": ("WrongTypeError", "text=3 must be a text or a list of texts"),
    "speech(['abc', 3])": ("WrongTypeError", "holds 3, which is not text"),
    "speech('abc', speed='fast')": ("WrongTypeError", "speed='fast' must be a number"),
    "speech('abc', speed=float('inf'))": ("ConfigError", "speed=inf must be a number above 0, and finite"),
    "speech('abc', speed=1e-300)": ("DataError", "use shorter sentences, a shorter prompt or more speed"),
    "speech.add_voice(5, np.zeros(800, np.float32), 'abc')": ("WrongTypeError", "voice 5: Voice("),
    "speech.add_voice('ann', np.zeros(800, np.float32), None)": ("WrongTypeError", "its name and text of type str"),
    "speech('abc', voice=['ann'])": ("WrongTypeError", "unknown voice '['ann']'"),
    "speech.use_lexicon(['a'])": ("WrongTypeError", "the lexicon is ['a'] (list); give a file, or phonemes by word"),
    "speech('abc', seed='a')": ("WrongTypeError", "seed='a' must be a whole number"),
    "speech('abc', prompt=3, prompt_text='abc')": ("WrongTypeError", "the prompt is 3 (int); give a file"),
    "speech('abc', prompt=(8000, __import__('torch').eye(9)), prompt_text='abc')": (
        "WrongTypeError",
        "(8000, tensor([[1.,",
    ),
    "pictures.edit([__import__('torch').eye(9)], keep_levels=1, class_id=0)": ("WrongTypeError", "[tensor([[1., 0.,"),
    "speech('abc', prompt=np.sin(np.arange(8000)) / 4, prompt_text=['abc'])": (
        "WrongTypeError",
        "prompt_text=['abc'] must be a text",
    ),
    "speech.edit(np.sin(np.arange(8000)) / 4, input_text=3, text='abc')": (
        "WrongTypeError",
        "input_text=3 must be a",
    ),
    "speech.stream(['abc'])": ("WrongTypeError", "text=['abc'] must be a text"),
    "pictures('Bag', callback=3)": ("WrongTypeError", "callback=3 must be a function of (record, codes, visible)"),
    "speech('abc', callback='print')": ("WrongTypeError", "callback='print' must be a function"),
    "resgen.load(None)": ("WrongTypeError", "None must be the name of a model or the path of a folder"),
    "resgen.load('')": ("CheckpointError", "unknown model ''; allowed: "),
    "speech('abc', num_samples='3')": ("WrongTypeError", "num_samples='3' must be a whole number"),
}


@pytest.fixture(scope="module")
def errors(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    speech = save_parts(tmp_path_factory.mktemp("speech") / "model")
    run = [sys.executable, "-c", CALLS.replace("CALLS", repr(list(REFUSED))), str(model), str(speech)]
    process = subprocess.run(run, capture_output=True, text=True, check=True)
    return {call: rest for call, *rest in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("call", REFUSED)
def test_the_value_is_named(errors: dict[str, list[str]], call: str) -> None:
    kind, text = errors[call]
    assert kind == REFUSED[call][0] and REFUSED[call][1] in text and "\n" not in text, (kind, text)
