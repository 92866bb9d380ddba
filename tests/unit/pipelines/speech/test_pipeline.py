"""The speech pipeline: prompts, continuation, batches, seeds, sentences, and everything that it refuses."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resgen.checkpoints.speech import VoiceConfig, load_speech_pipeline
from resgen.data.sound.decode import read_sound, write_sound
from resgen.data.text import cut_at_word, token_ids
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.pipelines.speech.pipeline import SpeechPipeline, Utterance
from resgen.pipelines.speech.speaker import PAUSE_SECONDS
from speech_parts import (
    ALPHABET,
    DEPTH,
    MEL,
    OTHER_MEL,
    RATE,
    STRIDE,
    TEXTS,
    UNIT,
    make_vocoder,
    make_waveform_tokenizer,
    save_parts,
    voice,
)

TWO = "abc. cab."
LONG = "abc cab abc bac cab"
"""Long enough that each of four steps has something to reveal."""
PAUSE = round(PAUSE_SECONDS * RATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("speech") / "model", voice=VoiceConfig(max_prompt_seconds=1.0))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SpeechPipeline:
    return SpeechPipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return voice(0.95)


def test_one_text(pipe: SpeechPipeline) -> None:
    result = pipe("abc")
    assert result.sample_rate_hz == pipe.sample_rate_hz == RATE and result.texts == ["abc"]
    assert result.codes.ndim == 2 and result.codes.shape[1] == DEPTH and len(result.codes) >= 1
    assert len(result.audio) == len(result.codes) * UNIT and result.audio.dtype == torch.float32
    assert result.audio.abs().max() <= 1 and result.audio.any()
    assert result.duration_s == len(result.audio) / RATE
    assert 0 < len(result.steps) <= 4 and {step.num_steps for step in result.steps} == {4}


def test_a_text_gives_one_output_and_a_list_a_list(pipe: SpeechPipeline) -> None:
    one, (first, second) = pipe("abc", seed=2), pipe(("abc", "cab"), seed=2)
    assert torch.equal(one.codes, first.codes) and second.texts == ["cab"]


def test_a_list_is_saved_as_a_folder_and_shown_as_players(pipe: SpeechPipeline, tmp_path: Path) -> None:
    both = pipe(["abc", "cab"], seed=2)
    assert isinstance(both, list) and both._repr_html_().count("<audio") == 2
    assert both.save(tmp_path / "new") == [tmp_path / "new" / name for name in ("0000.wav", "0001.wav")]
    both[1].save(tmp_path / "b.wav")
    assert (tmp_path / "new" / "0001.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    with pytest.raises(DataError, match="'a.wav' would hold one sound, there are 2; give the name of a folder"):
        both.save("a.wav")


def test_a_fresh_seed_is_recorded(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    first, second = (pipe("abc", seed=None) for _ in range(2))
    assert first.seed != second.seed
    assert torch.equal(pipe("abc", seed=first.seed).codes, first.codes)
    stretch = {"input_text": "a cab", "text": "abc", "begin_s": 0.2, "end_s": 0.5}
    edited = pipe.edit(prompt, seed=None, **stretch)[0]
    assert torch.equal(pipe.edit(prompt, seed=edited.seed, **stretch)[0].codes, edited.codes)


def test_words_out_of_a_small_vocabulary_are_named(
    pipe: SpeechPipeline, prompt: torch.Tensor, monkeypatch, capsys
) -> None:
    pipe("abc cab")
    monkeypatch.setattr(pipe, "parts", replace(pipe.parts, voice=replace(pipe.parts.voice, vocabulary=("a", "cab"))))
    monkeypatch.setattr(pipe.reader, "vocabulary", ("a", "cab"))
    with pytest.raises(DataError, match="^the model cannot speak 'hello'; it knows: a, cab$"):
        pipe("hello a cab. xab")
    pipe("A cab.")
    assert capsys.readouterr().err == ""
    pipe(["a cab", "bac. cab abc"], num_steps=1)
    stretch = {"input_text": "a cab", "text": "b", "begin_s": 0.2, "end_s": 0.5, "num_steps": 1}
    pipe.edit(prompt, **stretch)
    assert capsys.readouterr().err.splitlines() == [
        "'model' was trained on 2 words only (a, cab) and never learned: abc, bac; they will not be understood",
        "'model' was trained on 2 words only (a, cab) and never learned: b; they will not be understood",
    ]


def test_outputs_are_saved_and_shown(pipe: SpeechPipeline, tmp_path: Path) -> None:
    result = pipe("ab c.", seed=3)
    assert result.save(str(tmp_path / "new" / "a.wav")) == tmp_path / "new" / "a.wav"
    saved = read_sound(tmp_path / "new" / "a.wav", RATE)
    assert torch.equal(saved, (result.audio * 32768).round().clamp(-32768, 32767) / 32768)
    player = result._repr_html_()
    content = base64.b64decode(player.partition("base64,")[2].partition('"')[0])
    assert torch.equal(read_sound(content, RATE), saved)
    assert player.startswith('<figure><audio controls src="data:audio/wav;base64,') and "ab c." in player
    assert "<b>" not in replace(result, texts=["<b>"])._repr_html_()
    assert repr(result) == f"SpeechOutput({result.duration_s:.2f} s, 'ab c.', seed 3)"
    with pytest.raises(DataError, match=r"unknown suffix '\.aac'"):
        result.save(tmp_path / "a.aac")


def test_prompts_and_recordings_of_another_rate(pipe: SpeechPipeline) -> None:
    other = voice(0.95, rate=22_050)
    example = pipe.prepare((other.numpy(), 22_050), "a cab")
    assert len(example.codes) == pytest.approx(19, abs=1)
    words = pipe.words((other[None].expand(2, -1), 22_050), "a cab")
    assert [word.text for word in words] == ["a", "cab"] and words[-1].end_s <= 0.96


def test_another_device_and_type(folder: Path, pipe: SpeechPipeline) -> None:
    other = SpeechPipeline.from_pretrained(folder, device=torch.device("cpu"), dtype="bf16")
    assert next(other.generator.parameters()).dtype == torch.bfloat16
    assert {one.dtype for one in other.text_model.parameters()} == {torch.float32}
    assert torch.equal(other.to("cpu", torch.float32)("abc", seed=1).codes, pipe("abc", seed=1).codes)
    facts = "kind residual, speech at 8000 Hz, prompts of up to 1 s, 0.0M parameters, float32 on cpu"
    assert repr(other) == f"SpeechPipeline('model': {facts})"
    with pytest.raises(ConfigError, match="unknown argument 'torch_dtype' .did you mean 'dtype'"):
        SpeechPipeline.from_pretrained(folder, torch_dtype="bf16")


def test_speed_and_length(pipe: SpeechPipeline) -> None:
    lengths = [len(pipe("abcabcabc", speed=speed, num_steps=1).codes) for speed in (0.5, 1.0, 2.0)]
    assert lengths[0] > lengths[1] > lengths[2]


def test_batch_size_changes_nothing(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    texts = [*TEXTS, TWO]
    for given in ({}, {"prompt": prompt, "prompt_text": "a cab"}):
        single, pair, all_at_once = (pipe(texts, batch_size=size, **given) for size in (1, 2, 16))
        assert len({len(result.codes) for result in single}) > 1, "the texts are of different lengths"
        for one, two, many in zip(single, pair, all_at_once, strict=True):
            assert torch.equal(one.codes, two.codes) and torch.equal(one.codes, many.codes)
            torch.testing.assert_close(one.audio, many.audio)


def test_several_calls_share_a_batch(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    """Each with its own text, seed, voice and speed, as alone."""
    voice = pipe.prepare(prompt, "a cab")
    requests = [
        Utterance(pipe.sentences("abc"), seed=3),
        Utterance(pipe.sentences(TWO), voice, seed=4, speed=0.8),
        Utterance(pipe.sentences(TWO), seed=5),
        Utterance(pipe.sentences(LONG), voice, continued=True, seed=3),
    ]
    mixed = pipe.speak(requests, num_steps=3)
    alone = [
        pipe("abc", seed=3, num_steps=3),
        pipe(TWO, prompt=prompt, prompt_text="a cab", seed=4, speed=0.8, num_steps=3),
        pipe(TWO, seed=5, num_steps=3),
        pipe(LONG, prompt=prompt, prompt_text="a cab", task="continuation", seed=3, num_steps=3),
    ]
    for one, other in zip(mixed, alone, strict=True):
        assert torch.equal(one.codes, other.codes)
        torch.testing.assert_close(one.audio, other.audio)


def test_seeds_and_streams(pipe: SpeechPipeline) -> None:
    codes = pipe("abc", seed=3).codes
    assert torch.equal(pipe("abc", seed=3).codes, codes) and not torch.equal(pipe("abc", seed=4).codes, codes)
    first, second = pipe(["abc", "abc"], seed=3)
    assert torch.equal(first.codes, codes) and not torch.equal(second.codes, codes)
    assert not torch.equal(pipe("abc", seed=3, temperature=3.0).codes, codes), "settings arrive"


def test_cross_sentence_follows_the_prompt(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    example = pipe.prepare(prompt, "a cab")
    seen = []
    result = pipe(LONG, prompt=prompt, prompt_text="a cab", callback=lambda *args: seen.append(args))
    count = len(example.codes)
    assert count == 19 and example.samples.shape == (count * UNIT,) and example.features.shape[0] == count * STRIDE
    assert len(seen) == len(result.steps) == 4
    for _, codes, visible in seen:
        assert torch.equal(codes[0, :count], example.codes), "codes given are never altered"
        assert (visible[0, :count] == DEPTH).all()
    assert torch.equal(seen[-1][1][0, count:], result.codes)
    assert len(result.audio) == len(result.codes) * UNIT, "the prompt is not part of the audio"
    first, second = (pipe(LONG, prompt=one, prompt_text="a cab").codes for one in (prompt, voice(0.95, 260.0)))
    assert first.shape != second.shape or not torch.equal(first, second), "the prompt is heard"


def test_guidance_by_the_prompt(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    given = {"prompt": prompt, "prompt_text": "a cab", "guidance_scale": 2.0, "guidance_first": 2.0}
    codes, passes = {}, {}
    for share in (0.0, 0.5, 1.0):
        result = pipe(LONG, prompt_guidance=share, **given)
        codes[share], passes[share] = result.codes, {step.passes for step in result.steps}
    assert passes == {0.0: {2}, 0.5: {3}, 1.0: {2}}
    assert not torch.equal(codes[0.0], codes[0.5]) and not torch.equal(codes[0.5], codes[1.0])
    alone, plain = (pipe(LONG, guidance_scale=2.0, prompt_guidance=share) for share in (0.5, 0.0))
    assert torch.equal(alone.codes, plain.codes), "without a prompt there is nothing to be guided by"
    assert max(step.passes for step in alone.steps) == 2


def test_continuation_begins_with_the_prompt(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    voice = pipe.prepare(prompt, "a cab")
    seen = []
    result = pipe(
        "abc. ab", prompt=prompt, prompt_text="a cab", task="continuation", callback=lambda *args: seen.append(args)
    )
    count = len(voice.samples)
    assert torch.equal(result.audio[:count], voice.samples)
    assert len(result.audio) == count + len(result.codes) * UNIT + PAUSE
    assert torch.equal(seen[0][1][0, : len(voice.codes)], voice.codes)
    across = pipe("abc. ab", prompt=prompt, prompt_text="a cab")
    assert not torch.equal(across.codes, result.codes)


def test_a_prompt_of_whole_positions_comes_back_sample_by_sample(tmp_path: Path, prompt: torch.Tensor) -> None:
    path = save_parts(tmp_path / "model", voice=VoiceConfig(loudness_db=None))
    pipe = SpeechPipeline.from_pretrained(path, device="cpu")
    given = prompt[: 18 * UNIT]
    write_sound(given, RATE, tmp_path / "a.wav")
    for source in (given, tmp_path / "a.wav"):
        result = pipe("abc", prompt=source, prompt_text="a cab", task="continuation")
        rounded = given if source is given else (given * 32768).round() / 32768
        assert torch.equal(result.audio[: len(given)], rounded)


def test_prompts_are_trimmed_and_levelled(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    plain = pipe.prepare(prompt, "a cab")
    quiet = pipe.prepare(torch.nn.functional.pad(0.1 * prompt, (4000, 6000)), "a cab")
    assert abs(len(quiet.codes) - len(plain.codes)) <= 2, "silence is cut off"
    assert quiet.samples.square().mean().sqrt() == pytest.approx(plain.samples.square().mean().sqrt().item(), rel=0.1)


def test_long_prompts_are_cut_between_words(pipe: SpeechPipeline) -> None:
    text = "abc cab bca abc"
    long = pipe.prepare(voice(2.5), text)
    assert len(long.samples) <= RATE and len(long.features) == STRIDE * len(long.codes)
    assert len(long.samples) == UNIT * len(long.codes) and long.codes.numel()
    assert text.startswith(long.spoken.text) and 0 < len(long.spoken.text) < len(text)
    assert long.spoken.content == long.spoken.text.encode(), "whole words"
    result = pipe("abc", prompt=voice(2.5), prompt_text=text, task="continuation")
    assert torch.equal(result.audio[: len(long.samples)], long.samples)
    single = pipe.prepare(voice(2.5), "abcabcabc")
    assert len(single.samples) == RATE and b"abcabcabc".startswith(single.spoken.content)
    assert len(single.spoken.content) < 9 and single.spoken.text == "abcabcabc" * bool(single.spoken.content)


def test_where_prompts_are_cut() -> None:
    ends = [2, 6, 10, 12, 20, 30, 32, 60, 61]  # a boundary, "ab cd e", a boundary
    assert cut_at_word(b"ab cd e", ends, 5, 8) == (b"ab cd", 4), "30 frames are 4 positions"
    assert cut_at_word(b"ab cd e", ends, 3, 8) == (b"ab c", 3), "two letters in less than half of 24 frames"
    assert cut_at_word(b"ab cd e", ends, 2, 8) == (b"ab", 2)
    assert cut_at_word(b"abcd", [1, 9, 17, 25, 90, 91], 10, 8) == (b"abc", 10), "a single long word"


def test_sentences_in_one_voice(pipe: SpeechPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    listen = pipe.speaker.as_prompt
    monkeypatch.setattr(
        pipe.speaker, "as_prompt", lambda codes, text: records.append(listen(codes, text)) or records[-1]
    )
    seen = []
    result = pipe(TWO, callback=lambda record, codes, visible: seen.append(codes))
    assert result.texts == ["abc.", "cab."] and len(records) == 1
    first = pipe("abc.").codes
    assert torch.equal(result.codes[: len(first)], first)
    voice = records[0].codes
    assert torch.equal(seen[-1][0, : len(voice)], voice), "the first sentence is the prompt of the second"
    assert torch.equal(seen[-1][0, len(voice) :], result.codes[len(first) :])
    assert len(result.audio) == len(result.codes) * UNIT + PAUSE
    silence = result.audio[len(first) * UNIT :][:PAUSE]
    assert not silence.any()
    assert len(records) == 1, "a single sentence has no other to be heard by"


def test_a_stream_gives_what_a_call_gives_sentence_by_sentence(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    for options in (
        {},
        {"prompt": prompt, "prompt_text": "a cab", "speed": 1.2},
        {"prompt": prompt, "prompt_text": "a cab", "task": "continuation"},
    ):
        whole, parts = pipe(TWO, seed=5, **options), list(pipe.stream(TWO, seed=5, **options))
        assert [part.texts for part in parts] == [["abc."], ["cab."]] and {part.seed for part in parts} == {5}
        assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
        torch.testing.assert_close(torch.cat([part.audio for part in parts]), whole.audio, atol=1e-5, rtol=0)
        assert sum(len(part.steps) for part in parts) == len(whole.steps)


def test_a_stream_makes_nothing_before_it_is_asked_to(pipe: SpeechPipeline) -> None:
    evaluations = []
    parts = pipe.stream("abc, cab, ab. Cab.", max_chars=6, callback=lambda *step: evaluations.append(step))
    assert not evaluations
    assert next(parts).texts == ["abc,"]
    count = len(evaluations)
    assert [text for part in parts for text in part.texts] == ["cab,", "ab.", "cab."] and len(evaluations) > count > 0
    for wrong, message in (
        ({"max_chars": 0}, "max_chars"),
        ({"task": "sing"}, "unknown task"),
        ({"speed": 0.0}, "speed"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipe.stream("abc", **wrong)  # at once, not with the first part
    with pytest.raises(DataError, match="no letters"):
        pipe.stream("...")
    with pytest.raises(ConfigError, match=r"^stream takes no num_samples; a call of the pipeline, pipe\(...\), does$"):
        pipe.stream("abc", num_samples=2)


def test_sentences_in_the_prompt_s_voice(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    seen = []
    voice = pipe.prepare(prompt, "a cab")
    two = f"{LONG}. {LONG}."
    pipe(two, prompt=prompt, prompt_text="a cab", batch_size=1, callback=lambda _, codes, __: seen.append(codes))
    assert len(seen) == 8 and all(torch.equal(codes[0, : len(voice.codes)], voice.codes) for codes in seen)


def texts_of(pipe: SpeechPipeline, text: str) -> list[str]:
    return [one.text for one in pipe.sentences(text)]


def test_texts_are_normalised_and_cut(pipe: SpeechPipeline) -> None:
    assert texts_of(pipe, "ABC!!  Cab; ab".replace("!!", ".")) == ["abc.", "cab, ab"]
    long = " ".join(["abc"] * 60)
    parts = texts_of(pipe, long + ".")
    assert len(parts) == 2 and " ".join(parts) == long + "." and max(map(len, parts)) <= 126, "what the model takes"
    assert texts_of(pipe, "abc. ... cab.") == ["abc.", "cab."]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no letters"),
        (" \n ", "no letters"),
        ("...", "no letters"),
        ("abd", r"cannot speak 'd' \(U\+0064\)"),
        ("ab 日 c", r"U\+65E5"),
        ("a " * 10_001, "20000 bytes"),
        ("\ud800", "which is not text"),
        ("ab\ud800", "which is not text"),
    ],
)
def test_texts_that_are_refused(pipe: SpeechPipeline, text: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        pipe(text)
    with pytest.raises(DataError, match=named):
        pipe(["abc", text])


def test_a_sentence_longer_than_the_model(pipe: SpeechPipeline, prompt: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"speaks at most 4\.0 s at once"):
        pipe("abc", speed=0.01)
    with pytest.raises(DataError, match="with its prompt"):
        pipe("abc " * 20, prompt=prompt, prompt_text="a cab", speed=0.5)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"prompt": None}, DataError, "a prompt is missing"),
        ({"prompt": None, "prompt_text": None, "task": "continuation"}, DataError, "a prompt is missing"),
        ({"prompt_text": None}, DataError, "without its text"),
        ({"prompt_text": ""}, DataError, "without its text"),
        ({"prompt_text": "xyz"}, DataError, "cannot speak 'x'"),
        ({"prompt_text": "..."}, DataError, "no letters"),
        ({"prompt_text": "abc " * 40}, DataError, "too little for its text"),
        ({"prompt": torch.zeros(8000)}, DataError, "silent"),
        ({"prompt": voice(0.4)}, DataError, "at least 0.5 s"),
        ({"prompt": (20 * voice(1.0)).clamp(-1, 1)}, DataError, "clipped"),
        ({"prompt": torch.full((8000,), float("nan"))}, DataError, "not finite"),
        ({"prompt": "missing.wav"}, DataError, "missing.wav"),
        (
            {"prompt": voice(6.0)},
            DataError,
            r"the prompt has 6\.0 s of speech, the model hears at most 4\.0 s at once; cut",
        ),
        ({"task": "continuatoin"}, ConfigError, "did you mean 'continuation'"),
        ({"speed": 0.0}, ConfigError, "speed=0.0"),
        ({"speed": float("nan")}, ConfigError, "speed=nan"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"num_steps": 0}, ConfigError, "num_steps=0"),
        ({"num_step": 2}, ConfigError, "did you mean 'num_steps'"),
    ],
)
def test_what_is_refused(pipe: SpeechPipeline, prompt: torch.Tensor, changes: dict, error: type, named: str) -> None:
    with pytest.raises(error, match=named):
        pipe("abc", **({"prompt": prompt, "prompt_text": "a cab"} | changes))


def test_no_texts(pipe: SpeechPipeline) -> None:
    with pytest.raises(ConfigError, match="at least one text"):
        pipe([])


def test_corrupt_prompts(pipe: SpeechPipeline, prompt: torch.Tensor, tmp_path: Path) -> None:
    write_sound(prompt, RATE, tmp_path / "whole.wav")
    whole = (tmp_path / "whole.wav").read_bytes()
    for name, content in (("cut.wav", whole[:2000]), ("empty.wav", b""), ("text.wav", b"hello, this is no sound")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            pipe("abc", prompt=tmp_path / name, prompt_text="a cab")


def test_prompts_of_another_rate(pipe: SpeechPipeline, tmp_path: Path) -> None:
    write_sound(voice(0.95, rate=22_050), 22_050, tmp_path / "a.wav")
    assert len(pipe.prepare(tmp_path / "a.wav", "a cab").codes) == pytest.approx(19, abs=1)


def test_without_a_vocoder_the_phases_are_found(folder: Path, tmp_path: Path) -> None:
    path = save_parts(tmp_path / "model", vocoder=None, voice=VoiceConfig(max_prompt_seconds=1.0))
    pipe, full = (SpeechPipeline.from_pretrained(place, device="cpu", dtype="float32") for place in (path, folder))
    assert pipe.codec.needs_vocoder and not full.codec.needs_vocoder
    result, other = pipe("abc"), full("abc")
    assert torch.equal(result.codes, other.codes)
    assert result.audio.shape == other.audio.shape and not torch.equal(result.audio, other.audio)


def test_another_vocoder(folder: Path) -> None:
    parts = load_speech_pipeline(folder)
    vocoder = make_vocoder(seed=5)
    pipe = SpeechPipeline(parts, device="cpu", vocoder=vocoder)
    assert pipe.codec.vocoder is vocoder
    with pytest.raises(ConfigError, match="max_hz=3000"):
        SpeechPipeline(parts, device="cpu", vocoder=make_vocoder(mel=OTHER_MEL))


def test_a_model_of_waveforms(tmp_path: Path, prompt: torch.Tensor) -> None:
    given = VoiceConfig(mel=MEL, max_prompt_seconds=1.0)
    path = save_parts(tmp_path / "model", tokenizer=make_waveform_tokenizer(), vocoder=None, voice=given)
    pipe = SpeechPipeline.from_pretrained(path, device="cpu", dtype="float32")
    assert pipe.mel == MEL
    result = pipe("abc", prompt=prompt, prompt_text="a cab", task="continuation")
    example = pipe.prepare(prompt, "a cab").samples
    assert torch.equal(result.audio[: len(example)], example)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_load(folder: Path, tmp_path: Path, dtype: str) -> None:
    pipe = SpeechPipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    result = pipe("abc", seed=2)
    assert result.audio.isfinite().all()
    pipe.save_pretrained(tmp_path / "copy")
    for file in folder.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes(), file.name
    other = SpeechPipeline.from_pretrained(tmp_path / "copy", device="cpu", dtype=dtype)
    assert torch.equal(other("abc", seed=2).codes, result.codes)


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        SpeechPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="device"):
        SpeechPipeline.from_pretrained(folder, device="gpu")


def test_the_tests_texts_are_in_the_alphabet(pipe: SpeechPipeline) -> None:
    assert all(set(text) <= set(ALPHABET) for text in TEXTS) and len(token_ids(TEXTS[1].encode())) > 10


def test_named_voices_are_kept_with_the_model(pipe: SpeechPipeline, prompt: torch.Tensor, tmp_path: Path) -> None:
    own = SpeechPipeline(pipe.parts, device="cpu")
    own.add_voice("ann", prompt, "a cab")
    own.save_pretrained(tmp_path / "model")
    again = SpeechPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert list(again.voices) == ["ann"] and not pipe.voices
    voice = again.voices["ann"]
    assert repr(voice) == f"Voice({len(voice.content):,} bytes, {voice.text!r})"
    assert voice.prepared, "and so it is used as it is stored"
    kept = read_sound(voice.content, RATE, where="ann")
    torch.testing.assert_close(kept, pipe.speaker.cleaned(prompt), atol=2 / 32768, rtol=0)
    expected = pipe(TWO, prompt=kept, prompt_text="a cab", seed=2)
    assert torch.equal(again(TWO, voice="ann", seed=2).codes, expected.codes)
    assert torch.equal(again(TWO, voice="Ann", seed=2).codes, expected.codes)
    assert torch.equal(torch.cat([part.codes for part in again.stream(TWO, voice="ann", seed=2)]), expected.codes)
    assert torch.equal(again(TWO, voice="default", seed=2).codes, pipe(TWO, seed=2).codes)
    again.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "ann.flac").read_bytes() == own.voices["ann"].content


def test_a_card_comes_along_without_links_that_lead_nowhere(pipe: SpeechPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "first")
    (tmp_path / "first" / "README.md").write_text("# A\n\n**Data.** CC BY 4.0, by [ann](../ann.md). ![a](../a.png)\n")
    SpeechPipeline.from_pretrained(tmp_path / "first", device="cpu").save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "README.md").read_text() == "# A\n\n**Data.** CC BY 4.0, by ann. \n"


def test_a_text_is_spoken_several_times(pipe: SpeechPipeline) -> None:
    several = pipe("abc cab", num_samples=3, seed=4)
    expected = pipe(["abc cab"] * 3, seed=4)
    assert len(several) == 3 and all(torch.equal(a.codes, b.codes) for a, b in zip(several, expected, strict=True))
    assert not torch.equal(several[0].codes, several[1].codes)
    assert [one.texts[0] for one in pipe(["abc", "cab"], num_samples=2)] == ["abc", "abc", "cab", "cab"]
    assert len(pipe("abc", num_samples=1)) == 1
    with pytest.raises(ConfigError, match="num_samples=0 must be a whole number of at least 1"):
        pipe("abc", num_samples=0)


def test_a_named_voice_is_prepared_once(
    pipe: SpeechPipeline, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = SpeechPipeline(pipe.parts, device="cpu")
    own.add_voice("ann", prompt, "a cab")
    measured = own("abc", voice="ann").codes
    monkeypatch.setattr("resgen.data.sound.decode.loudness_db", None)
    assert torch.equal(own("abc", voice="ann").codes, measured)
    own.voices["ann"] = own.voices["ann"]._replace(prepared=False)
    with pytest.raises(TypeError, match="not callable"):
        own("abc", voice="ann")


def test_voices_that_are_refused(pipe: SpeechPipeline, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SpeechPipeline(pipe.parts, device="cpu")
    with pytest.raises(ConfigError, match="^unknown voice 'ann'; allowed: default$"):
        own("abc", voice="ann")
    for name in ("", "a b", "../a", "default", "a" * 65, "a\n"):
        with pytest.raises(ConfigError, match="must be a name"):
            own.add_voice(name, prompt, "a cab")
    with pytest.raises(ConfigError, match="is too long"):
        own.add_voice("ann", prompt, "a cab " * 200)
    with pytest.raises(DataError, match="silent"):
        own.add_voice("ann", torch.zeros(RATE), "a cab")
    assert not own.voices
    own.add_voice("ann", prompt, "a cab")
    with pytest.raises(ConfigError, match="two voices; give one"):
        own("abc", voice="ann", prompt=prompt, prompt_text="a cab")
    monkeypatch.setattr("resgen.checkpoints.voices.MAX_VOICES", 1)
    own.add_voice("ann", prompt, "a cab")
    with pytest.raises(ConfigError, match="one too many; at most 1"):
        own.add_voice("ben", prompt, "a cab")
