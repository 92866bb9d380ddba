"""A sampler that speaks, watched: spectrograms of what is known, maps of levels, sequences of different lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resgen.checkpoints.speech import VoiceConfig
from resgen.data.sound.spectrogram import spectrogram_picture
from resgen.ops.mel import log_mel
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.pipelines.speech.reconstruct import spectrogram_of
from resgen.pipelines.speech.trace import SpeechTrace, level_columns
from resgen.tokenizers.codec import CodecTokenizer
from speech_parts import DEPTH, MEL, STRIDE, UNIT, make_waveform_tokenizer, save_parts, voice

BANDS, GAP, CELL = MEL.num_bands, 3, 4


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> SpeechPipeline:
    folder = save_parts(tmp_path_factory.mktemp("speech") / "model", voice=VoiceConfig(max_prompt_seconds=1.0))
    return SpeechPipeline.from_pretrained(folder, device="cpu", dtype="float32")


class Noted(SpeechTrace):
    """A trace that also keeps what it was told."""

    def __init__(self, pipe: SpeechPipeline, **options) -> None:
        super().__init__(pipe, **options)
        self.seen: list[tuple] = []
        self.lengths: list[list[int]] = []

    def begin_batch(self, lengths) -> None:
        self.lengths.append(list(lengths))
        super().begin_batch(lengths)

    def __call__(self, record, codes, visible) -> None:
        self.seen.append((record, codes.clone(), visible.clone()))
        super().__call__(record, codes, visible)


def rows_of(frame: Image.Image, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Spectrogram and map of every sequence; they lie at the bottom of the frame, one below the other."""
    height = 2 * BANDS + GAP + DEPTH * CELL + GAP
    array, rows = np.asarray(frame), []
    for row in range(count):
        top = len(array) - (count - row) * height
        rows.append((array[top : top + 2 * BANDS], array[top + 2 * BANDS + GAP : top + height - GAP]))
    return rows


def test_frames_show_what_is_known(pipe: SpeechPipeline) -> None:
    trace = Noted(pipe)
    results = pipe(["abc cab", "abc cab abc cab"], callback=trace)
    lengths = [len(result.codes) for result in results]
    assert trace.lengths == [lengths] and lengths[0] < lengths[1], "a batch is sorted by length"
    frames = trace.frames()
    assert len(frames) == len(trace.seen) == 4 and len({frame.size for frame in frames}) == 1
    for frame, (_, codes, visible) in zip(frames, trace.seen, strict=True):
        for row, (spectrogram, heat) in enumerate(rows_of(frame, 2)):
            part = slice(lengths[row])
            with torch.inference_mode():
                mel = pipe.codec.tokenizer.decode(codes[row : row + 1, part], visible=visible[row : row + 1, part])[0]
            expected = np.asarray(spectrogram_picture(mel, scale=2))
            assert np.array_equal(spectrogram[:, : expected.shape[1]], expected)
            assert (spectrogram[:, expected.shape[1] :] == 255).all(), "nothing is shown beyond a sequence's end"
            columns = np.asarray(level_columns(visible[row, part], DEPTH))
            picture = columns.repeat(CELL, axis=0).repeat(2 * STRIDE, axis=1)
            assert np.array_equal(heat[:, : picture.shape[1]], picture)
    assert (rows_of(frames[-1], 2)[1][1] == rows_of(frames[-1], 2)[1][1][0, 0]).all(), "all is known at the end"


def test_prompts_and_sentences_that_follow(pipe: SpeechPipeline) -> None:
    trace, prompt = Noted(pipe), voice(0.95)
    pipe("abc cab. cab abc abc.", prompt=prompt, prompt_text="a cab", callback=trace)
    assert len(trace.lengths) == 2 and all(len(lengths) == 1 for lengths in trace.lengths)
    count = len(pipe.prepare(prompt, "a cab").codes)
    first = trace.frames()[0]
    for _, heat in rows_of(first, 2):
        assert len(np.unique(heat[:, : count * 2 * STRIDE].reshape(-1, 3), axis=0)) == 1, (
            "the prompt is known throughout"
        )


def test_a_column_per_position_from_the_bottom() -> None:
    image = np.asarray(level_columns(torch.tensor([0, 1, 3]), 3))
    dark, bright = image[0, 0], image[2, 2]
    assert image.shape == (3, 3, 3) and int(bright.sum()) > int(dark.sum())
    assert (image[:, 0] == dark).all() and (image[:2, 1] == dark).all() and (image[:, 2] == bright).all()
    assert not (image[2, 1] == dark).all() and not (image[2, 1] == bright).all()


def test_at_most_so_many_sequences(pipe: SpeechPipeline, tmp_path: Path) -> None:
    trace = Noted(pipe, max_samples=2)
    pipe(["abc", "cab abc", "abc cab abc"], batch_size=1, callback=trace)
    assert trace.lengths == [[length] for length in sorted(sum(trace.lengths, []))]
    height = 2 * BANDS + GAP + DEPTH * CELL + GAP
    assert 2 * height < trace.frames()[0].height < 3 * height
    files = trace.save(tmp_path / "steps")
    assert [file.name for file in files] == [f"step_{k:04d}.png" for k in range(1, len(files) + 1)]
    assert trace.save(tmp_path / "a.gif") == [tmp_path / "a.gif"] and Image.open(tmp_path / "a.gif").n_frames == len(
        files
    )


def test_edits_are_watched_with_what_is_given_around(pipe: SpeechPipeline) -> None:
    trace = Noted(pipe)
    (result,) = pipe.edit(voice(1.5), input_text="ab ca bac", text="abc cab", begin_s=0.6, end_s=0.9, callback=trace)
    assert trace.lengths == [[len(result.codes)]]
    plan, frame = result.plan, trace.frames()[0]
    heat = rows_of(frame, 1)[0][1]
    known = (heat == heat[0, 0]).all((0, 2))[:: 2 * STRIDE][: len(result.codes)]
    assert known[: plan.begin].all() and known[plan.begin + plan.num_new :].all()
    assert not known[plan.begin : plan.begin + plan.num_new].all()


def test_waveforms_are_shown_as_their_spectrograms(tmp_path: Path) -> None:
    folder = save_parts(
        tmp_path / "model", tokenizer=make_waveform_tokenizer(), vocoder=None, voice=VoiceConfig(mel=MEL)
    )
    pipe = SpeechPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    trace = Noted(pipe)
    result = pipe("abc", callback=trace)
    mel = spectrogram_of(pipe.codec)
    with torch.inference_mode():
        samples = pipe.codec.tokenizer.decode(result.codes[None])
    expected = np.asarray(spectrogram_picture(log_mel(samples, mel)[0], scale=2))
    frame = np.asarray(trace.frames()[-1])
    assert expected.shape[1] == 2 * len(result.codes) * UNIT // mel.hop_size
    top = len(frame) - (2 * mel.num_bands + GAP + DEPTH * CELL + GAP)
    assert np.array_equal(frame[top : top + 2 * mel.num_bands, : expected.shape[1]], expected)


def test_codes_of_a_codec_are_shown_as_maps(pipe: SpeechPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Noted(pipe)
    pipe("abc cab", callback=trace)
    monkeypatch.setattr(pipe.codec, "tokenizer", object.__new__(CodecTokenizer))
    visible = trace.seen[0][2][0]
    frame = np.asarray(trace.frames()[0])
    expected = np.asarray(level_columns(visible, DEPTH)).repeat(8, axis=0).repeat(8, axis=1)
    assert np.array_equal(frame[-GAP - expected.shape[0] : -GAP, : expected.shape[1]], expected)
