"""Speech under a protocol, with judges whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resgen.errors import DataError
from resgen.evaluation.report import write_report
from resgen.evaluation.speech.evaluate import (
    Sound,
    SpeechProtocol,
    SpeechReport,
    SpeechSample,
    Trial,
    about_judge,
    evaluate_speech,
)

RATE = 16_000
WORDS = ("one", "two", "three")


def sound(word: int, voice: int) -> Sound:
    """0.1 s whose first sample tells the word and whose second tells the voice."""
    samples = torch.zeros(RATE // 10)
    samples[0], samples[1] = word / 10, voice / 10
    return Sound(samples, RATE)


class Ear:
    name, version, sha256, sample_rate_hz, vocabulary = "ear", "1", "built-in", RATE, WORDS

    def __call__(self, samples: Tensor) -> str:
        return WORDS[round(float(samples[0]) * 10)]


class Voices:
    name, version, sha256, sample_rate_hz = "voices", "1", "built-in", RATE

    def __call__(self, samples: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(round(float(samples[1]) * 10)), 3).float()


def protocol(**changes) -> SpeechProtocol:
    values = {
        "task": "cross-sentence",
        "data": "d",
        "split": "test",
        "data_sha256": "0",
        "num_trials": 3,
        "seeds": (0, 1),
        "sampling": {"num_steps": 2},
        "transcriber": about_judge(Ear()),
        "speaker_encoder": about_judge(Voices()),
        "candidates": ("a", "b", "c"),
        "model_sha256": "1",
    }
    return SpeechProtocol(**{**values, **changes})


TRIALS = [Trial(WORDS[k], sound(0, k), "one", sound(k, k), name) for k, name in enumerate("abc")]
CANDIDATES = {name: [sound(0, k)] for k, name in enumerate("abc")}


def run(speak, **changes) -> SpeechReport:
    values = {"transcriber": Ear(), "encoder": Voices(), "protocol": protocol(), "model": "m", "command": "resgen"}
    return evaluate_speech(TRIALS, speak, lossy, CANDIDATES, **{**values, **changes})


def wrong_once(trial: Trial, seed: int, number: int) -> SpeechSample:
    """The first word of the second seed is wrong and in another voice."""
    word = (number + 1) % 3 if seed == 1 and number == 0 else number
    voice = 1 if seed == 1 and number == 0 else number
    return SpeechSample(sound(word, voice), 5, 0.5)


def lossy(one: Sound) -> Sound:
    """The tokenizer loses the voice c in words after the first."""
    word, voice = (round(float(value) * 10) for value in one.samples[:2])
    return sound(word, min(voice, 1) if word else voice)


def test_the_scores_are_what_was_spoken() -> None:
    report = run(wrong_once)
    generated, recordings, tokenizer = report.scores
    assert (generated.name, recordings.name, tokenizer.name) == ("generated", "recordings", "tokenizer")
    assert generated.wer.value == pytest.approx(1 / 6) and recordings.wer.value == 0 and tokenizer.wer.value == 0
    assert generated.nearest.value == pytest.approx(5 / 6) and tokenizer.nearest.value == pytest.approx(2 / 3)
    assert generated.sim_o.value == pytest.approx(5 / 6) and recordings.sim_o.value == 1
    assert report.by_speaker == {"a": 0.5, "b": 0.0, "c": 0.0} and report.passes == 5
    assert report.transcripts[3] == ("a", "one", "two") and len(report.transcripts) == 6
    spoken = sound(0, 0)
    assert report.real_time_factor == pytest.approx(0.5 * spoken.sample_rate_hz / len(spoken.samples))


def test_more_seeds_do_not_narrow_the_intervals_of_recordings_and_copies() -> None:
    """They are the same for every seed, so each trial counts once there; it is heard and copied once."""
    heard: list[float] = []
    copied: list[Sound] = []

    class Deaf(Ear):
        def __call__(self, samples: Tensor) -> str:
            heard.append(float(samples[0]))
            return "one"  # two of three texts are something else

    def copy(one: Sound) -> Sound:
        copied.append(one)
        return lossy(one)

    def report(seeds: tuple[int, ...]) -> SpeechReport:
        values = {"transcriber": Deaf(), "encoder": Voices(), "protocol": protocol(seeds=seeds), "model": "m"}
        return evaluate_speech(TRIALS, wrong_once, copy, CANDIDATES, **values, command="")

    single, several = report((0,)), report((0, 1, 2, 3))
    assert several.scores[1:] == single.scores[1:]
    once, often = single.scores[1].wer.interval, several.scores[0].wer.interval
    assert often.high - often.low < once.high - once.low, "of 12 utterances and of 3"
    assert len(heard) == 3 * (1 + 2) + 3 * (4 + 2) and len(copied) == 2 * 2 * 3


def test_the_report_is_written_for_people_and_machines(tmp_path: Path) -> None:
    report = run(wrong_once)
    write_report(report, tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result == json.loads(json.dumps(report.document()))
    wer = result["scores"][0]["wer"]
    assert wer["value"] == pytest.approx(1 / 6) and wer["low"] <= wer["value"] <= wer["high"]
    text = (tmp_path / "r.md").read_text()
    assert text == report.markdown() and "| generated | 16.7% (" in text and "| a | 50.0% |" in text


@pytest.mark.parametrize(
    ("trials", "reason"),
    [([], "no trials"), ([TRIALS[0]._replace(speaker="d")], "'d' is not among the candidates")],
)
def test_nothing_to_say_and_strangers_are_refused(trials: list[Trial], reason: str) -> None:
    judges = {"transcriber": Ear(), "encoder": Voices()}
    with pytest.raises(DataError, match=reason):
        evaluate_speech(trials, wrong_once, lossy, CANDIDATES, **judges, protocol=protocol(), model="m", command="")
