"""A stretch of a recording replaced: which words, what is given, how long, and everything that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kind_parts import matched_config
from resgen.checkpoints.speech import VoiceConfig
from resgen.data.sound.decode import read_sound, write_sound
from resgen.errors import ConfigError, DataError
from resgen.kinds import build, get_kind
from resgen.models.text import TextModel
from resgen.ops.mel import log_mel
from resgen.pipelines.speech import speaking
from resgen.pipelines.speech.edit import SpokenWord, _new_text, _span, _words
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.samplers.records import Samples
from speech_parts import DEPTH, HOP, MEL, RATE, STRIDE, UNIT, make_tokenizer, save_parts, voice

TEXT = "ab ca bac"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> SpeechPipeline:
    folder = save_parts(tmp_path_factory.mktemp("speech") / "model")
    return SpeechPipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def evenly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained text model aligns whole sounds with single letters; here each takes as long as the others."""

    def match(self: TextModel, hidden: Tensor, valid: Tensor, target: Tensor, frames: Tensor) -> Tensor:
        ends = torch.linspace(0, float(frames[0]), hidden.shape[1] + 1).round().long()
        return ends.diff().expand(len(hidden), -1)

    if request.node.originalname != "test_words_are_aligned":
        monkeypatch.setattr(TextModel, "match", match)


@pytest.fixture(scope="module")
def recording() -> torch.Tensor:
    """1.52 s: silence, 1.2 s of a voice that is no whole number of positions, silence."""
    return torch.cat([torch.zeros(1000), voice(1.21), torch.zeros(1500)])


def edited(pipe: SpeechPipeline, recording: torch.Tensor, number: int = 1, **changes):
    """The results of replacing the word of this number."""
    word = pipe.words(recording, TEXT)[number]
    given = {"input_text": TEXT, "text": "cab", "begin_s": word.begin_s, "end_s": word.end_s}
    return pipe.edit(recording, **(given | changes))


def test_words_are_aligned(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    words = pipe.words(recording, "Ab, ca. bac")
    assert [word.text for word in words] == ["ab", "ca", "bac"], "punctuation is no part of a word"
    tokens, real = pipe.speaker.tokens(pipe.reader.whole("ab, ca. bac"))
    editor, analysis = pipe._listen(recording, "ab, ca. bac")
    inside = analysis.gain * torch.cat([recording, torch.zeros(UNIT)])[analysis.offset :][: len(analysis.codes) * UNIT]
    frames = torch.tensor([len(analysis.codes) * STRIDE])
    ends = pipe.text_model.align(tokens, real, log_mel(inside[None], MEL), frames)[0].cumsum(0)
    for word, (first, last) in zip(words, ((0, 2), (4, 6), (8, 11)), strict=True):
        assert word.begin_s == pytest.approx((analysis.offset + int(ends[first]) * HOP) / RATE)
        assert word.end_s == pytest.approx((analysis.offset + int(ends[last]) * HOP) / RATE)


def test_words_lie_where_the_voice_is(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    times = [time for word in pipe.words(recording, TEXT) for time in word[1:]]
    assert times == sorted(times) and len(times) == 6
    letter = 25 * UNIT / RATE / 11  # nine letters and two boundaries in 25 positions
    assert times[0] == pytest.approx(1000 / RATE - 0.05 + letter, abs=0.02)
    assert times[3] - times[2] == pytest.approx(2 * letter, abs=0.02)


@pytest.mark.parametrize("blend", [False, True])
def test_what_is_given_comes_back(pipe: SpeechPipeline, recording: torch.Tensor, blend: bool) -> None:
    seen = []
    (result,) = edited(pipe, recording, blend=blend, callback=lambda *step: seen.append(step))
    plan = result.plan
    assert result.texts == ["ab cab bac"] and [word.text for word in plan.replaced] == ["ca"]
    assert 0 < plan.begin < plan.end < len(plan.codes) and plan.num_new >= 1
    assert result.codes.shape == (len(plan.codes) - (plan.end - plan.begin) + plan.num_new, DEPTH)
    assert torch.equal(result.codes[: plan.begin], plan.codes[: plan.begin])
    assert torch.equal(result.codes[plan.begin + plan.num_new :], plan.codes[plan.end :])
    for _, codes, visible in seen:
        assert (visible[0, : plan.begin] == DEPTH).all() and torch.equal(
            codes[0, : plan.begin], plan.codes[: plan.begin]
        )
        after = len(result.codes) - (len(plan.codes) - plan.end)
        assert torch.equal(codes[0, after:], plan.codes[plan.end :])
    assert not (seen[0][2][0] == DEPTH).all(), "something was left to draw"
    begin, end = plan.cut
    assert begin == plan.offset + plan.begin * UNIT and end == plan.offset + plan.end * UNIT
    assert len(result.audio) == len(recording) + (plan.num_new - (plan.end - plan.begin)) * UNIT
    before, after = result.audio[:begin], result.audio[begin + plan.num_new * UNIT :]
    assert torch.equal(before, recording[:begin]) == torch.equal(after, recording[end:]) == blend
    assert torch.equal(before[: plan.offset], recording[: plan.offset]), "silence around the speech is the recording's"
    assert result.audio.abs().max() <= 1 and result.sample_rate_hz == RATE


def test_several_results_are_saved_into_a_folder(pipe: SpeechPipeline, recording: torch.Tensor, tmp_path: Path) -> None:
    results = edited(pipe, recording, num_samples=2)
    assert [file.name for file in results.save(tmp_path / "edits")] == ["0000.wav", "0001.wav"]
    kept = read_sound(tmp_path / "edits" / "0001.wav", RATE)
    torch.testing.assert_close(kept, results[1].audio, atol=2 / 32768, rtol=0)


def test_the_seams_are_mixed_within_the_stretch(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    (result,) = edited(pipe, recording, blend=True)
    plan, fade = result.plan, 80
    begin, end = plan.cut
    decoded = torch.zeros(len(result.codes) * UNIT)  # the new speech is silence: what is heard there is the recording
    audio = plan.audio(decoded, blend=True)
    assert torch.equal(audio[:begin], recording[:begin])
    left = audio[begin : begin + fade] / recording[begin : begin + fade]
    assert left[0] > 0.99 and left[-1] < 0.03 and (left.diff() < 0).all()
    stop = begin + plan.num_new * UNIT
    right = audio[stop - fade : stop] / recording[end - fade : end]
    assert right[0] < 0.03 and right[-1] > 0.99 and (right.diff() > 0).all()
    assert not audio[begin + fade : stop - fade].any()


def test_the_recording_s_level_is_kept(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    loud, quiet = (edited(pipe, scale * recording)[0] for scale in (1.0, 0.125))
    assert torch.equal(loud.codes, quiet.codes)
    torch.testing.assert_close(8 * quiet.audio, loud.audio, atol=1e-4, rtol=1e-3)


def test_results_have_their_own_streams(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    changes = {"text": "cab abc", "num_samples": 3, "seed": 4}
    three = edited(pipe, recording, **changes)
    again = edited(pipe, recording, **changes, batch_size=1)
    assert len(three) == 3 and not torch.equal(three[0].codes, three[1].codes)
    for one, other in zip(three, again, strict=True):
        assert torch.equal(one.codes, other.codes)
    assert torch.equal(edited(pipe, recording, text="cab abc", seed=4)[0].codes, three[0].codes)
    assert not torch.equal(edited(pipe, recording, text="cab abc", seed=5)[0].codes, three[0].codes)


def test_both_sides_are_heeded(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    """The new codes depend on what is given before the stretch and on what is given after it."""
    (result,) = edited(pipe, recording)
    plan = result.plan
    run = speaking.SpeechRun(pipe.generator, pipe.sampling, 1, None)
    (base,) = run.generate([plan.job(0, 0)])
    for part in ("codes", "after"):
        other = plan.job(0, 0)
        other = other._replace(**{part: (getattr(other, part) + 1) % 10})
        with torch.inference_mode():
            assert not torch.equal(run.generate([other])[0], base), part


def test_speed_pace_and_length(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    long = "cab ab"
    counts = [edited(pipe, recording, text=long, speed=speed)[0].plan.num_new for speed in (0.7, 1.0, 2.0)]
    assert counts[0] > counts[1] > counts[2]
    kept = edited(pipe, recording, keep_length=True)[0]
    assert kept.plan.num_new == kept.plan.end - kept.plan.begin and len(kept.audio) == len(recording)
    slow = torch.cat([torch.zeros(1000), voice(2.4), torch.zeros(1500)])
    assert edited(pipe, slow, text=long)[0].plan.num_new > counts[1], "the pace is the recording's"


def test_features_agree_with_what_is_given(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    """Outside the stretch every frame has the letter that it has in the recording."""
    for number in range(3):
        plan = edited(pipe, recording, number, text="b")[0].plan
        assert len(plan.features) == STRIDE * (len(plan.codes) - (plan.end - plan.begin) + plan.num_new)
        tokens, real = pipe.speaker.tokens(pipe.reader.whole(plan.text))
        with torch.inference_mode():
            hidden = pipe.text_model(tokens, real)[0]
        letters = torch.cdist(plan.features, hidden).argmin(1)
        editor, analysis = pipe._listen(recording, TEXT)
        old = torch.repeat_interleave(torch.arange(len(analysis.durations)), analysis.durations)
        first, last = plan.begin * STRIDE, plan.end * STRIDE
        assert torch.equal(letters[:first], old[:first])
        shift = len(hidden) - len(analysis.durations)
        assert torch.equal(letters[len(letters) - (len(old) - last) :] - shift, old[last:])
        assert (letters.diff() >= 0).all() and set(letters.tolist()) == set(range(len(hidden)))


@pytest.mark.parametrize(
    ("begin_s", "end_s", "selection"),
    [
        (1.0, 1.4, (1, 2)),  # the word
        (1.1, 1.2, (1, 2)),  # within the word
        (1.0, 1.2, (1, 2)),  # half of it
        (0.9, 1.15, (1, 1)),  # less than half, and its centre is later: before it
        (1.3, 1.55, (2, 2)),  # less than half, and its centre is earlier: after it
        (0.2, 1.3, (0, 2)),
        (0.0, 3.0, (0, 3)),
        (0.0, 0.1, (0, 0)),
        (2.6, 2.9, (3, 3)),
        (1.42, 1.58, (2, 2)),  # a pause
    ],
)
def test_which_words_are_replaced(begin_s: float, end_s: float, selection: tuple[int, int]) -> None:
    words = [SpokenWord("ab", 0.2, 0.8), SpokenWord("ca", 1.0, 1.4), SpokenWord("bac", 1.6, 2.4)]
    assert _span(words, begin_s, end_s) == slice(*selection)


@pytest.mark.parametrize(
    ("content", "selection", "new", "parts"),
    [
        (b"ab ca bac", (1, 2), b"c", (b"ab ", b"c", b" bac")),
        (b"ab, ca. bac!", (1, 2), b"c", (b"ab, ", b"c", b". bac!")),
        (b"ab, ca. bac!", (1, 2), b"c.", (b"ab, ", b"c", b". bac!")),
        (b"ab ca bac", (1, 2), b"c.", (b"ab ", b"c.", b" bac")),
        (b"ab ca bac", (0, 3), b"c b", (b"", b"c b", b"")),
        (b"ab ca bac", (0, 0), b"c", (b"", b"c ", b"ab ca bac")),
        (b"ab, ca bac", (1, 1), b"c", (b"ab,", b" c ", b"ca bac")),
        (b"ab ca bac.", (3, 3), b"c", (b"ab ca bac.", b" c", b"")),
    ],
)
def test_how_texts_are_joined(content: bytes, selection: tuple[int, int], new: bytes, parts: tuple[bytes, ...]) -> None:
    assert _new_text(content, slice(*selection), new) == parts


def test_punctuation_is_no_part_of_a_word() -> None:
    content = b"ab, ca. bac!"
    assert [content[begin:end] for begin, end in _words(content)] == [b"ab", b"ca", b"bac"]


@pytest.mark.parametrize(
    ("text", "replaced", "new"),
    [
        ("ab cab bac", "ca", "cab"),
        ("c ab ca bac", "", "c"),
        ("ab c ca bac", "", "c"),
        ("ab ca bac c", "", "c"),
        ("ab ca", "ca bac", "ca"),
    ],
)
@pytest.mark.parametrize("silence", [1000, 0])
def test_a_whole_text_changes_the_words_that_differ(
    pipe: SpeechPipeline, text: str, replaced: str, new: str, silence: int
) -> None:
    """As the stretch of these words would; what is before and after it is the recording."""
    recording = torch.cat([torch.zeros(silence), voice(1.21), torch.zeros(silence)])
    (result,) = pipe.edit(recording, input_text=TEXT, text=text, blend=True)
    plan = result.plan
    assert plan.text == text and " ".join(word.text for word in plan.replaced) == replaced
    assert " ".join(text.split()[plan.new_words]) == new
    begin, end = plan.cut
    assert torch.equal(result.audio[:begin], recording[:begin])
    if end < len(recording):
        assert torch.equal(result.audio[begin + plan.num_new * UNIT :], recording[end:])
    if replaced:
        stretch = {"begin_s": plan.replaced[0].begin_s, "end_s": plan.replaced[-1].end_s}
        (other,) = pipe.edit(recording, input_text=TEXT, text=new, **stretch, blend=True)
        assert torch.equal(other.audio, result.audio)
    else:
        assert end - begin <= 4 * UNIT, "a gap, and no word"


@pytest.mark.parametrize(
    ("place", "text"),
    [("before", "c ab ca bac"), ("between", "ab ca c bac"), ("after", "ab ca bac c")],
)
def test_words_are_put_in_where_none_is_replaced(pipe: SpeechPipeline, place: str, text: str) -> None:
    recording = torch.cat([torch.zeros(4000), voice(0.6), torch.zeros(2400), voice(0.4), torch.zeros(4000)])
    words = pipe.words(recording, TEXT)
    pause = words[1].end_s + 0.001, words[2].begin_s - 0.001
    begin_s, end_s = {"before": (0.0, 0.3), "between": pause, "after": (len(recording) / RATE - 0.3, 2.3)}[place]
    (result,) = pipe.edit(recording, input_text=TEXT, text="c", begin_s=begin_s, end_s=end_s, blend=True)
    plan = result.plan
    assert result.texts == [text] and not plan.replaced
    begin, end = plan.cut
    assert torch.equal(result.audio[:begin], recording[:begin])
    if end < len(recording):
        assert torch.equal(result.audio[begin + plan.num_new * UNIT :], recording[end:])
    assert begin <= begin_s * RATE + 1 and end >= min(end_s * RATE, len(recording)) - 1, "the stretch is replaced"
    assert plan.features.isfinite().all() and len(plan.features) == STRIDE * len(result.codes)


@pytest.mark.parametrize(
    ("said", "durations", "begin_s", "text"),
    [
        ("ab ca bac", [8, 8, 8, 8, 8, 8, 80, 8, 8, 8, 0], 0.55, "ab ca c bac"),
        ("ab ca bac.", [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 80, 0], 0.75, "ab ca bac. c"),
    ],
    ids=["between", "after a full stop"],
)
def test_words_are_put_into_long_silence(
    pipe: SpeechPipeline,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    durations: list[int],
    begin_s: float,
    text: str,
) -> None:
    """What is left of the silence on either side keeps its own frames."""
    known = torch.tensor(durations)

    def match(self: TextModel, hidden: Tensor, valid: Tensor, target: Tensor, frames: Tensor) -> Tensor:
        rest = torch.zeros_like(known)
        rest[-1] = int(frames[0]) - int(known.sum())
        return (known + rest).expand(len(hidden), -1)

    monkeypatch.setattr(TextModel, "match", match)
    recording = voice(1.3)
    (result,) = pipe.edit(recording, input_text=said, text="c", begin_s=begin_s, end_s=begin_s + 0.1)
    plan = result.plan
    assert plan.text == text and not plan.replaced
    first, last = plan.begin * STRIDE, plan.end * STRIDE
    pause = durations.index(80)
    begins, ends = sum(durations[:pause]), sum(durations[: pause + 1])
    assert begins < first < last < ends, "the stretch lies within the silence"
    tokens, real = pipe.speaker.tokens(pipe.reader.whole(plan.text))
    with torch.inference_mode():
        hidden = pipe.text_model(tokens, real)[0]
    letters = torch.cdist(plan.features, hidden).argmin(1)
    assert len(letters) == STRIDE * len(result.codes) and (letters.diff() >= 0).all()
    space = len(said.encode()[: pause - 1].rstrip()) + 1
    if said.endswith("."):
        assert (letters[begins:first] == len(said)).all(), "the full stop goes on"
    else:
        assert (letters[begins:first] == space).all(), "the space before the new word"
        following = plan.num_new * STRIDE + first
        assert (letters[following : following + ends - last] == space + 2).all(), "the space after it"


def test_the_last_word_of_a_recording_of_no_whole_positions(pipe: SpeechPipeline) -> None:
    recording = voice(1.21)  # 24.2 positions
    to_the_end = {"end_s": len(recording) / RATE}
    (result,) = edited(pipe, recording, 2, **to_the_end, keep_length=True)
    assert result.plan.end == len(result.plan.codes) == 25 and len(result.audio) == len(recording)
    (result,) = edited(pipe, recording, 2, **to_the_end, text="abc abc", blend=True)
    assert len(result.audio) == result.plan.cut[0] + result.plan.num_new * UNIT, "nothing of the new speech is cut off"
    (result,) = edited(pipe, recording, 0, blend=True)
    assert torch.equal(result.audio[-4000:], recording[-4000:]), "nothing is added at the end"


def test_a_stretch_shorter_than_a_sample_is_a_position(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    _, analysis = pipe._listen(recording, TEXT)
    at = (analysis.offset + 8 * UNIT) / RATE  # where a position begins, within the first space
    (result,) = pipe.edit(recording, input_text=TEXT, text="c", begin_s=at, end_s=at + 1e-6, blend=True)
    begin, end = result.plan.cut
    assert not result.plan.replaced and (begin, end) == (round(at * RATE), round(at * RATE) + UNIT)
    assert torch.equal(result.audio[:begin], recording[:begin]) and torch.equal(
        result.audio[end - len(recording) :], recording[end:]
    )


def test_a_file_at_another_rate(pipe: SpeechPipeline, tmp_path: Path) -> None:
    write_sound(voice(1.2, rate=22_050), 22_050, tmp_path / "a.wav")
    (result,) = pipe.edit(tmp_path / "a.wav", input_text=TEXT, text="c", begin_s=0.4, end_s=0.8)
    assert result.plan.recording.shape == (9600,) and result.sample_rate_hz == RATE


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"begin_s": None}, ConfigError, "begin_s or end_s alone makes no stretch; give both, or neither"),
        ({"end_s": None}, ConfigError, "begin_s or end_s alone makes no stretch"),
        ({"begin_s": None, "end_s": None, "text": "Ab, ca bac."}, DataError, "'ab, ca bac.' has the words of the rec"),
        ({"begin_s": None, "end_s": None, "text": "..."}, DataError, "no letters"),
        ({"begin_s": -0.1}, ConfigError, "the stretch from -0.1 to"),
        ({"begin_s": 0.8, "end_s": 0.8}, ConfigError, "must have 0 <= from < to <= 1.52 s"),
        ({"end_s": 1.54}, ConfigError, "to 1.54 s must have"),
        ({"begin_s": float("nan")}, ConfigError, "the stretch from nan"),
        ({"begin_s": 1.523, "end_s": 1.53}, ConfigError, "the stretch from 1.523"),
        ({"text": ""}, DataError, "no letters"),
        ({"text": "..."}, DataError, "no letters"),
        ({"text": "abd"}, DataError, r"cannot speak 'd' \(U\+0064\)"),
        ({"text": "abc " * 33}, DataError, "a text of [0-9]+ tokens is longer than max_tokens=128"),
        ({"input_text": ""}, DataError, "comes without its text; give what is said in it as input_text"),
        ({"input_text": "xyz"}, DataError, "cannot speak 'x'"),
        ({"speed": 0.0}, ConfigError, "speed=0.0"),
        ({"speed": 2.0, "keep_length": True}, ConfigError, "keep_length both say"),
        ({"keep_length": True, "text": "abc " * 28}, DataError, "does not fit into"),
        ({"text": "abc " * 9, "speed": 0.05}, DataError, r"speaks at most 4\.0 s at once"),
        ({"num_samples": 0}, ConfigError, "num_samples=0"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"num_step": 2}, ConfigError, "did you mean 'num_steps'"),
    ],
)
def test_what_is_refused(pipe: SpeechPipeline, recording: torch.Tensor, changes: dict, error: type, named: str) -> None:
    given = {"input_text": TEXT, "text": "cab", "begin_s": 0.5, "end_s": 0.8}
    with pytest.raises(error, match=named) as caught:
        pipe.edit(recording, **(given | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recording", "named"),
    [
        (torch.zeros(8000), "the recording is silent"),
        (voice(0.4), "the recording is 0.40 s long; it takes at least 0.5 s"),
        ((20 * voice(1.0)).clamp(-1, 1), "the recording is overdriven"),
        (torch.full((8000,), float("nan")), "not finite"),
        (voice(5.0), "has 5.0 s of speech, the model takes at most 4.0 s"),
    ],
)
def test_recordings_that_are_refused(pipe: SpeechPipeline, recording: torch.Tensor, named: str) -> None:
    with pytest.raises(DataError, match=named):
        pipe.edit(recording, input_text=TEXT, text="c", begin_s=0.1, end_s=0.3)
    with pytest.raises(DataError, match=named):
        pipe.words(recording, TEXT)


def test_a_text_that_cannot_be_aligned(pipe: SpeechPipeline) -> None:
    with pytest.raises(DataError, match=r"the recording has 0\.60 s of speech, too little for its text 'abc abc"):
        pipe.edit(voice(0.6), input_text="abc " * 30, text="c", begin_s=0.1, end_s=0.3)


def test_corrupt_files(pipe: SpeechPipeline, tmp_path: Path) -> None:
    write_sound(voice(1.0), RATE, tmp_path / "whole.wav")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:2000])
    for name in ("cut.wav", "none.wav"):
        with pytest.raises(DataError, match=name):
            pipe.edit(tmp_path / name, input_text=TEXT, text="c", begin_s=0.1, end_s=0.3)


def test_a_kind_that_draws_in_order_edits_the_end_only(tmp_path: Path, recording: torch.Tensor) -> None:
    tokenizer = make_tokenizer()
    folder = save_parts(tmp_path / "model", tokenizer=tokenizer)
    pipe = SpeechPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    torch.manual_seed(0)
    pipe.generator = build(
        matched_config(pipe.generator.config, tokenizer.spec, "rq_transformer"), tokenizer.spec
    ).eval()
    codes = torch.randint(10, (9, 16, DEPTH))
    pipe.generator.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
    pipe.sampling = get_kind("rq_transformer").sampling()
    with pytest.raises(ConfigError, match="kind 'rq_transformer' draws positions in order"):
        edited(pipe, recording, 1)
    (result,) = pipe.edit(recording, input_text=TEXT, text="c", begin_s=1.0, end_s=len(recording) / RATE)
    assert torch.equal(result.codes[: result.plan.begin], result.plan.codes[: result.plan.begin])


def test_a_stretch_grows_to_hold_its_words(pipe: SpeechPipeline, recording: torch.Tensor) -> None:
    word = pipe.words(recording, TEXT)[1]
    for share in ((0.4, 0.6), (0.45, 1.2), (-0.2, 0.55)):
        begin_s, end_s = (word.begin_s + part * (word.end_s - word.begin_s) for part in share)
        plan = edited(pipe, recording, begin_s=begin_s, end_s=end_s)[0].plan
        assert plan.replaced == [word]
        assert plan.cut_s[0] <= min(begin_s, word.begin_s) and plan.cut_s[1] >= max(end_s, word.end_s)
        assert plan.cut_s[1] - plan.cut_s[0] < max(end_s, word.end_s) - min(begin_s, word.begin_s) + 2 * UNIT / RATE


def test_no_word_ends_after_the_recording(pipe: SpeechPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def match(self: TextModel, hidden: Tensor, valid: Tensor, target: Tensor, frames: Tensor) -> Tensor:
        durations = torch.ones(hidden.shape[:2], dtype=torch.int64)
        durations[:, -2] += int(frames[0]) - hidden.shape[1]
        return durations

    monkeypatch.setattr(TextModel, "match", match)
    recording = voice(1.21)  # 24.2 positions: the last one reaches beyond the end
    assert pipe.words(recording, TEXT)[-1].end_s == 1.21
    assert edited(pipe, recording, 2)[0].plan.replaced, "its times can be given back"


def test_all_that_is_given_is_the_example(
    pipe: SpeechPipeline, recording: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = speaking.sample, []

    def noting(*args, **options):
        seen.append(options)
        return honest(*args, **options)

    monkeypatch.setattr(speaking, "sample", noting)
    plan = edited(pipe, recording)[0].plan
    prompt = seen[0]["sequence"].prompt[0]
    expected = torch.ones_like(prompt)
    expected[plan.begin : plan.begin + plan.num_new] = False
    assert torch.equal(prompt, expected) and torch.equal(seen[0]["start"][1][0] == DEPTH, expected)


def test_a_sampler_that_alters_given_codes_is_found_out(
    pipe: SpeechPipeline, recording: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = speaking.sample

    def altering(*args, **options):
        samples = honest(*args, **options)
        codes = samples.codes.clone()
        codes[0, -1, 0] = (codes[0, -1, 0] + 1) % 10
        return Samples(codes, samples.steps)

    monkeypatch.setattr(speaking, "sample", altering)
    with pytest.raises(RuntimeError, match="altered codes that were given"):
        edited(pipe, recording)


def test_a_model_of_its_own_loudness(tmp_path: Path, recording: torch.Tensor) -> None:
    folder = save_parts(tmp_path / "model", voice=VoiceConfig(loudness_db=None))
    pipe = SpeechPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    assert edited(pipe, recording)[0].plan.gain == 1.0
