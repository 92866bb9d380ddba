"""A model that reads phonemes: the same pipeline, words stay words."""

from __future__ import annotations

from pathlib import Path

import pytest

from resgen.data.phonemes import ALPHABET
from resgen.errors import ConfigError, DataError
from resgen.pipelines.speech.pipeline import SpeechPipeline
from speech_parts import make_text_model, save_parts, voice


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> SpeechPipeline:
    folder = tmp_path_factory.mktemp("phonemes") / "model"
    save_parts(folder, text_model=make_text_model(front_end="english-1"), alphabet=ALPHABET)
    return SpeechPipeline.from_pretrained(folder, device="cpu")


def phonemes(pipe: SpeechPipeline, text: str) -> str:
    return pipe.reader.front_end.symbols(pipe.reader.whole(text).content)


def test_texts_are_words_and_what_is_read_are_phonemes(pipe: SpeechPipeline) -> None:
    result = pipe("The cat. Ask /ˈæɡnəs/, 2!")
    assert result.texts == ["the cat.", "ask /ˈæɡnəs/, two!"]
    assert phonemes(pipe, "The cat.") == "ðə kˈæt."
    assert len(result.codes) and result.duration_s > 0.2


def test_words_of_a_recording_and_its_edit(pipe: SpeechPipeline) -> None:
    recording = voice(2.0)
    words = pipe.words(recording, "The cat, a dog.")
    assert [word.text for word in words] == ["the", "cat", "a", "dog"]
    (edit,) = pipe.edit(
        recording, input_text="The cat, a dog.", text="church", begin_s=words[1].begin_s, end_s=words[1].end_s
    )
    assert edit.texts == ["the church, a dog."] and [word.text for word in edit.plan.replaced] == ["cat"]


def test_prompts_are_cut_at_words(pipe: SpeechPipeline) -> None:
    text = "church judge church judge church judge"
    prompt = pipe.prepare(voice(3.8), text)
    assert len(prompt.spoken.text) < len(text) and text.startswith(prompt.spoken.text)
    assert len(prompt.spoken.text.split()) == len(prompt.spoken.content.split())
    assert len(pipe("cat", prompt=voice(1.5), prompt_text="church", task="continuation").codes)


def test_a_lexicon_of_one_s_own(pipe: SpeechPipeline, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Nguyen wˈɪn\n", encoding="utf-8")
    try:
        pipe.use_lexicon(tmp_path / "names.txt")
        assert phonemes(pipe, "Nguyen's cat") == "wˈɪnz kˈæt"
        pipe.use_lexicon({"cat": "kˈɑt"})
        assert phonemes(pipe, "cat") == "kˈɑt"
    finally:
        pipe.use_lexicon({})
    with pytest.raises(DataError, match="'X' in 'kXt' is not a phoneme"):
        pipe.use_lexicon({"cat": "kXt"})


def test_a_sentence_has_as_many_phonemes_as_the_model_takes(pipe: SpeechPipeline) -> None:
    longest = pipe.reader.longest
    (spoken,) = pipe.sentences("a" * 5 + " 77777 77777")  # in words it is longer than it is written
    assert 40 < len(spoken.content) <= longest
    with pytest.raises(DataError, match=rf"a sentence has [0-9]+ letters or phonemes, at most {longest} are allowed"):
        pipe.sentences("77777 " * 6)


def test_what_cannot_be_said(pipe: SpeechPipeline, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^no English words: '日本'; write the phonemes between slashes"):
        pipe("Hello 日本")
    letters = SpeechPipeline.from_pretrained(save_parts(tmp_path / "letters"), device="cpu")
    with pytest.raises(ConfigError, match="a lexicon gives phonemes, but the front end 'bytes' reads letters"):
        letters.use_lexicon({"cat": "kˈæt"})
    few = save_parts(tmp_path / "few", text_model=make_text_model(front_end="english-1"), alphabet=" .kˈæt")
    with pytest.raises(DataError, match=r"the model cannot speak 'ð'"):
        SpeechPipeline.from_pretrained(few, device="cpu")("The cat")
