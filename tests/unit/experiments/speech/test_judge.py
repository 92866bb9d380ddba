"""Which prompt each utterance of a speech evaluation is given."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from resgen.data.sound.sources import SpeechSource
from resgen.errors import DataError
from resgen.experiments.speech import judge as speech_judge
from resgen.experiments.speech.judge import continuation, cross_sentence, prepared
from resgen.pipelines.speech.pipeline import SpeechPipeline
from speech_parts import RATE, save_parts, voice

LENGTHS = (1.2, 1.1, 0.5, 1.3, 1.4)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> SpeechPipeline:
    return SpeechPipeline.from_pretrained(save_parts(tmp_path_factory.mktemp("judge") / "model"), device="cpu")


def source(**changes: object) -> SpeechSource:
    """Four utterances of one speaker, one of another."""

    def read(index: int, sample_rate_hz: int) -> Tensor:
        assert sample_rate_hz == RATE
        return voice(LENGTHS[index], 120.0 + 20 * index)

    values = {
        "name": "some",
        "split": "test",
        "texts": ("abc", "cab", "a", "bac ab", "cc"),
        "speakers": ("x", "x", "x", "x", "y"),
        "ids": tuple("01234"),
        "read": read,
    }
    return SpeechSource(**(values | changes))


def test_the_prompt_is_the_speaker_s_next_long_recording(pipe: SpeechPipeline) -> None:
    recordings = source()
    trials = cross_sentence(pipe, recordings)
    assert [trial.text for trial in trials] == ["abc", "cab", "a", "bac ab"], "y has nothing else"
    assert [trial.prompt_text for trial in trials] == ["cab", "bac ab", "bac ab", "abc"], "the third is too short"
    assert torch.equal(trials[0].prompt.samples, prepared(pipe, recordings, 1))
    assert torch.equal(trials[0].truth.samples, prepared(pipe, recordings, 0))
    with pytest.raises(DataError, match="no speaker with two utterances"):
        cross_sentence(pipe, source(speakers=tuple("vwxyz")))


def test_prompts_of_the_data_come_first(pipe: SpeechPipeline) -> None:
    def read_prompt(index: int, sample_rate_hz: int) -> Tensor:
        return 0.1 * voice(1.0, 300.0 + index)

    recordings = source(prompt_texts=("p", "q", "r", "s", "t"), read_prompt=read_prompt)
    trials = cross_sentence(pipe, recordings)
    assert [trial.prompt_text for trial in trials] == list("pqrst")
    assert torch.equal(trials[4].prompt.samples, pipe.speaker.cleaned(read_prompt(4, RATE)))
    assert [trial.speaker for trial in trials] == list("xxxxy")


def test_continuation_cuts_at_a_word(pipe: SpeechPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"abc": [900], "ab ab ab": [300, 700, 1300], "bac ab": [500, 1300]}
    monkeypatch.setattr(
        pipe.speaker, "word_ends", lambda samples, spoken: [x * RATE // 1000 for x in ends.get(spoken.text, [400])]
    )
    recordings = source(texts=("abc", "cab", "a", "ab ab ab", "bac ab"))
    (trial,) = continuation(pipe, recordings)  # the last one's first word ends too early
    assert (trial.prompt_text, trial.text) == ("ab ab", "ab")
    assert len(trial.prompt.samples) == 700 * RATE // 1000
    whole = torch.cat([trial.prompt.samples, trial.truth.samples])
    assert torch.equal(whole, prepared(pipe, recordings, 3))
    with pytest.raises(DataError, match="no utterance of two words"):
        continuation(pipe, source(texts=tuple("abcde")))


@pytest.mark.parametrize(("splits", "warned"), [(["train"], True), (["train", "test"], False)])
def test_judging_on_the_training_split_is_said(splits, warned, monkeypatch, capsys) -> None:
    monkeypatch.setattr(speech_judge, "available_splits", lambda data: splits)
    monkeypatch.setattr(speech_judge, "SpeechJudge", MagicMock())
    monkeypatch.setattr(speech_judge, "SpeechPipeline", MagicMock())
    speech_judge.SpeechEvaluation(model="m", data="mine").run(lambda *_: None)
    assert ("'mine' is judged on its split 'train'" in capsys.readouterr().err) == warned
