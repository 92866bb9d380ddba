"""`SpeechPipeline`: text and a few seconds of a voice in, speech in that voice out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.checkpoints.card import card_of
from resgen.checkpoints.speech import SpeechParts, load_speech_pipeline, save_speech_pipeline
from resgen.checkpoints.voices import Voice, check_voice, choose_voice
from resgen.data.announce import announce
from resgen.data.phonemes import check_lexicon, read_lexicon
from resgen.data.sound.decode import check_prompt, encode_sound
from resgen.data.spoken import Spoken
from resgen.errors import ConfigError, DataError, WrongTypeError, unknown
from resgen.kinds import AnySampling, Settings, kind_of
from resgen.nn.int8 import check_floating
from resgen.ops.mel import MelConfig
from resgen.pipelines.base import BasePipeline, NoOthers, check_callback, check_whole, refuse_others, seed_of
from resgen.pipelines.speech.edit import (
    Recording,
    SpeechEdit,
    SpeechEditor,
    SpeechEditPlan,
    SpokenWord,
    changed_words,
    check_following,
    check_stretch,
    results_of,
)
from resgen.pipelines.speech.fit import tell_doubt
from resgen.pipelines.speech.inputs import SoundLike, Speaking, SpeakingAll, check_speed, name_of, samples_of, texts_of
from resgen.pipelines.speech.reading import MAX_CHARS, Reader
from resgen.pipelines.speech.speaker import Speaker
from resgen.pipelines.speech.speaking import SpeechRun
from resgen.pipelines.speech.talk import Talk
from resgen.pipelines.speech.utterances import Prompt, SpeechOutput, SpeechOutputs, Utterance
from resgen.samplers.records import StepCallback, StepRecord
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.sound import SoundCodec

TASKS = ("cross-sentence", "continuation")


class SpeechPipeline(BasePipeline):
    """Generates and edits speech with the tokenizer, vocoder, text model and generator of a model folder.

        pipe = SpeechPipeline.from_pretrained("english-small")
        pipe("Few positions, many levels.", voice="emma").save("hello.wav")

    Args:
        parts: what `checkpoints.speech.load_speech_pipeline` returns.
        device: `cpu`, `cuda`, ...; a GPU if there is one by default.
        dtype: of the generator: `bfloat16` (or `bf16`), `float32`, `auto`, or on CPUs `int8`; see `ImagePipeline`. The
            other components are small and run in float32.
        vocoder: turns log-mels into samples, instead of the folder's own vocoder; for example the result of
            `checkpoints.vocoders.load_external_vocoder`.
    """

    tag, usage = "text-to-speech", 'pipe("some text").save("speech.wav")'

    def __init__(
        self,
        parts: SpeechParts,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = "auto",
        vocoder: torch.nn.Module | None = None,
    ) -> None:
        self._check_parts(parts)
        self.path, self.parts = parts.folder.path, parts
        self.generator, self.text_model = parts.generator, parts.text_model.float()
        own = parts.vocoder if vocoder is None else vocoder
        self.codec = SoundCodec(parts.tokenizer.float(), None if own is None else own.float())
        self.reader = Reader(self.text_model.config, parts.alphabet, vocabulary=parts.voice.vocabulary)
        self.sampling: AnySampling = parts.sampling
        self.voices = dict(parts.voices)
        self.speaker = Speaker(self.codec, self.text_model, self.mel, self.generator.spec, parts.voice)
        self.to("auto" if device is None else device, "auto" if dtype is None else dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = "auto",
        **others: Unpack[NoOthers],
    ) -> SpeechPipeline:
        """Load a speech pipeline's folder, a bundled model, or `owner/model[@revision]` from the hub.

        Raises:
            CheckpointError: the model is missing, damaged, not of speech, or its components do not belong together.
            ConfigError: an unusable device or type, or an unknown argument.
        """
        refuse_others(others)
        return cls(load_speech_pipeline(name_or_path), device=device, dtype=dtype)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a speech pipeline's folder with these weights, voices and sampling settings, and all further entries
        of its `config.json`.

        Raises:
            ConfigError: the weights are int8.
        """
        check_floating(self.generator, "save_pretrained")
        save_speech_pipeline(
            path,
            tokenizer=self.parts.tokenizer,
            vocoder=self.parts.vocoder,
            text_model=self.text_model,
            alphabet=self.parts.alphabet,
            generator=self.generator,
            sampling=self.sampling,
            voice=self.parts.voice,
            voices=self.voices,
            extra=self.parts.folder.extra,
            files=card_of(self.path),
        )

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of all audio, in Hz."""
        return self.codec.sample_rate_hz

    @property
    def mel(self) -> MelConfig:
        """Settings of the mel spectrograms that texts are aligned to: `stride` frames per position."""
        tokenizer = self.parts.tokenizer
        if isinstance(tokenizer, MelTokenizer):
            return tokenizer.config.mel
        assert self.parts.voice.mel is not None
        return self.parts.voice.mel

    @overload
    def __call__(self, text: str, **options: Unpack[Speaking]) -> SpeechOutput: ...

    @overload
    def __call__(self, text: str, *, num_samples: int, **options: Unpack[Speaking]) -> SpeechOutputs[SpeechOutput]: ...

    @overload
    def __call__(
        self, text: list[str] | tuple[str, ...], **options: Unpack[SpeakingAll]
    ) -> SpeechOutputs[SpeechOutput]: ...

    @torch.inference_mode()
    def __call__(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        prompt: SoundLike | None = None,
        prompt_text: str | None = None,
        voice: str | None = None,
        task: str = "cross-sentence",
        speed: float = 1.0,
        num_samples: int | None = None,
        seed: int | None = 0,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> SpeechOutput | SpeechOutputs[SpeechOutput]:
        """Speak a text, or several in one voice.

        Texts are spoken sentence by sentence. Without a prompt the model chooses the voice: the first sentence of each
        text becomes the prompt for the others.

        Args:
            text: English; for a list of texts the result is a list, with `save(folder)`.
            prompt: a few seconds of the voice: a file, its content, samples at the model's rate, or `(samples, rate)`
                (see `inputs.SoundLike`). It is trimmed, normalised to the model's loudness and cut to the model's
                `max_prompt_seconds`.
            prompt_text: transcript of the prompt; required with a prompt.
            voice: name of one of `voices`, instead of a prompt; `default` lets the model choose.
            task: `cross-sentence` speaks the text in the prompt's voice; `continuation` continues seamlessly from the
                end of the prompt, and the audio begins with the prompt.
            speed: above 1 is faster.
            num_samples: recordings per text, consecutive in the result, which is then a list.
            seed: sentence k of recording i depends only on (seed, i, k), so `batch_size` changes nothing but rounding.
                None draws a fresh seed, stored in the outputs as `seed`.
            batch_size: sentences per batch.
            callback: called after every sampling step with (record, codes, visible) of the batch.
            settings: `num_steps`, `guidance_scale`, ...: see `kinds.Settings`.

        Raises:
            ConfigError: no text, an unknown voice, task or setting, or one out of range.
            DataError: a text that is empty, too long or has characters that the model cannot read; a prompt that is
                silent, clipped, too short, not a sound, or has no transcript.
        """
        count = 1 if num_samples is None else num_samples
        check_whole(1, batch_size=batch_size, num_samples=count)
        check_callback(callback)
        sentences = [self.sentences(one) for one in texts_of(text) for _ in range(count)]
        utterances = self._utterances(sentences, prompt, prompt_text, voice, task, speed, seed)
        outputs = self.speak(utterances, batch_size=batch_size, callback=callback, **settings)
        return outputs[0] if isinstance(text, str) and num_samples is None else SpeechOutputs(outputs)

    def stream(
        self,
        text: str,
        *,
        prompt: SoundLike | None = None,
        prompt_text: str | None = None,
        voice: str | None = None,
        task: str = "cross-sentence",
        speed: float = 1.0,
        seed: int | None = 0,
        max_chars: int = MAX_CHARS,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[SpeechOutput]:
        """Speak a text piece by piece, so that playback can start before all of it is generated.

            for part in pipe.stream(text):
                player.write(part.audio)

        Concatenated, the pieces equal the result of a call, up to rounding.

        Args:
            text: any number of sentences.
            prompt: as in a call, and so are `prompt_text`, `voice`, `task`, `speed`, `seed`, `callback` and `settings`.
            prompt_text: likewise.
            voice: likewise.
            task: likewise.
            speed: likewise.
            seed: likewise.
            max_chars: maximum length of a piece; longer sentences are split after clauses, for an earlier first sound.
            callback: likewise.
            settings: likewise.

        Raises:
            ConfigError: as in a call, before anything is generated.
            DataError: likewise.
        """
        check_whole(1, max_chars=max_chars)
        check_callback(callback)
        if not isinstance(text, str):
            raise WrongTypeError(f"text={text!r} must be a text")
        (utterance,) = self._utterances(
            [self.reader.sentences(text, max_chars)], prompt, prompt_text, voice, task, speed, seed
        )
        return self._pieces(utterance, self._settings(self.stream, settings), callback)

    def _pieces(
        self, utterance: Utterance, sampling: AnySampling, callback: StepCallback | None
    ) -> Iterator[SpeechOutput]:
        talk = Talk(self.speaker, utterance)
        while not talk.is_over:
            (codes,), steps = self.next_codes([talk], sampling, callback)
            yield talk.spoken(codes, steps)

    @torch.inference_mode()
    def next_codes(
        self, talks: Sequence[Talk], sampling: AnySampling, callback: StepCallback | None = None
    ) -> tuple[list[Int[Tensor, "_ D"]], list[StepRecord]]:
        """The next sentence of each of several texts, in one batch: its codes, and one record per step."""
        run = SpeechRun(self.generator, sampling, len(talks), callback)
        return run.generate([talk.job for talk in talks]), run.steps

    def _utterances(
        self,
        sentences: Sequence[list[Spoken]],
        prompt: SoundLike | None,
        prompt_text: str | None,
        voice: str | None,
        task: str,
        speed: float,
        seed: int | None,
    ) -> list[Utterance]:
        """What a call asks for, checked; the prompt is prepared once."""
        if task not in TASKS:
            raise ConfigError(unknown("task", task, TASKS))
        check_speed(speed)
        seed, continued = seed_of(seed), task == "continuation"
        self.reader.warn(self.name, (sentence for own in sentences for sentence in own))
        prompt, prompt_text, prepared = choose_voice(voice, prompt, prompt_text, self.voices)
        doubt = announce if voice is None else None
        example = None if prompt is None else self.prepare(prompt, prompt_text, doubt, prepared=prepared)
        if example is None and (prompt_text or continued):
            raise DataError("a prompt is missing: prompt_text and continuation need the recording as well")
        return [Utterance(own, example, continued, speed, seed, number) for number, own in enumerate(sentences)]

    @torch.inference_mode()
    def speak(
        self,
        utterances: Sequence[Utterance],
        *,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> list[SpeechOutput]:
        """Speak prepared texts, each with its own voice, speed and seed; they share only batches.

        Arguments and errors are those of a call.
        """
        check_whole(1, batch_size=batch_size)
        run = SpeechRun(self.generator, self._settings(self.__call__, settings), batch_size, callback)
        firsts = [self.speaker.first(utterance) for utterance in utterances]
        first_codes = run.generate(firsts)
        rest = [self.speaker.rest(utterance, codes) for utterance, codes in zip(utterances, first_codes, strict=True)]
        later = iter(run.generate([job for jobs in rest for job in jobs]))
        outputs = []
        for utterance, first, codes, others in zip(utterances, firsts, first_codes, rest, strict=True):
            jobs = [(first, codes), *((job, next(later)) for job in others)]
            outputs.append(self.speaker.output(jobs, run.steps, utterance))
        return outputs

    @torch.inference_mode()
    def edit(
        self,
        recording: SoundLike,
        *,
        input_text: str,
        text: str,
        begin_s: float | None = None,
        end_s: float | None = None,
        speed: float = 1.0,
        keep_length: bool = False,
        blend: bool = False,
        num_samples: int = 1,
        seed: int | None = 0,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> SpeechOutputs[SpeechEdit]:
        """Replace words in a recording (see `pipelines.speech.edit`); all other codes stay unchanged.

            (edited,) = pipe.edit("cat.wav", input_text="The cat sat.", text="The bird sat.")

        Args:
            recording: as the prompt of a call.
            input_text: transcript of the recording.
            text: what it should say: the words that differ are replaced. With `begin_s`, new words for the interval.
            begin_s: start of the interval to replace, in seconds; by default it is found by comparing the texts.
            end_s: end of the interval in seconds; required with `begin_s`.
            speed: above 1 is faster than the recording.
            keep_length: give the new words the duration of the old ones.
            blend: copy the samples outside the interval from the recording instead of decoding them.
            num_samples: how many results.
            seed: result k draws from the stream (seed, k); None draws a fresh seed.
            batch_size: results per network evaluation.
            callback: as in a call.
            settings: as in a call.

        Raises:
            ConfigError: an interval that is empty or beyond the recording, a kind that cannot use what follows it, or a
                value out of range.
            DataError: a recording that is silent, clipped, too short, too long or not a sound; a text that is empty,
                changes no word, has characters that the model cannot read, or more letters than there are frames.
        """
        check_whole(1, num_samples=num_samples, batch_size=batch_size)
        check_callback(callback)
        seed, sampling = seed_of(seed), self._settings(self.edit, settings)
        change: dict[str, Any] = {"input_text": input_text, "text": text, "begin_s": begin_s, "end_s": end_s}
        plan = self.plan_edit(recording, **change, speed=speed, keep_length=keep_length, doubt=announce)
        run = SpeechRun(self.generator, sampling, batch_size, callback)
        return results_of(plan, self.codec, run, blend=blend, num_samples=num_samples, seed=seed)

    @torch.inference_mode()
    def plan_edit(
        self,
        recording: SoundLike,
        *,
        input_text: str,
        text: str,
        begin_s: float | None = None,
        end_s: float | None = None,
        speed: float = 1.0,
        keep_length: bool = False,
        doubt: Callable[[str], object] | None = None,
    ) -> SpeechEditPlan:
        """Plan what an edit keeps of a recording and what it generates; arguments and errors are those of `edit`, and
        `doubt` is called with a line that names `input_text` if it seems wrong."""
        check_speed(speed)
        if keep_length and speed != 1:
            raise ConfigError(f"speed={speed} and keep_length both say how long the new words take; give one of them")
        if (begin_s is None) != (end_s is None):
            raise ConfigError("begin_s or end_s alone makes no stretch; give both, or neither")
        stretch = None if begin_s is None or end_s is None else (begin_s, end_s)
        editor, source = self._listen(recording, input_text, stretch)
        words = self.reader.whole(text)
        span: slice | None = None
        if stretch is None:
            span, words = changed_words(source.spoken, words)
            stretch = editor.stretch(source, span)
        self.reader.warn(self.name, [words])
        plan = editor.plan(source, words, *stretch, span, speed=speed, keep_length=keep_length)
        check_following(kind_of(self.generator.config), plan)
        if doubt is not None:
            editor.tell_doubt(source, doubt)
        return plan

    def words(self, recording: SoundLike, text: str) -> list[SpokenWord]:
        """The words of a recording and when they are spoken.

        Raises:
            DataError: see `edit`.
        """
        editor, source = self._listen(recording, text)
        editor.tell_doubt(source, announce)
        return editor.words(source)

    def use_lexicon(self, words: str | Path | Mapping[str, str]) -> None:
        """Pronounce words as given in a lexicon: `pipe.use_lexicon({"nguyen": "wˈɪn"})`.

        Args:
            words: phonemes by word, or a file with a word and its phonemes on each line.

        Raises:
            ConfigError: the model reads letters.
            DataError: a file that cannot be read, or a character that is not a phoneme.
        """
        own = read_lexicon(words) if isinstance(words, str | Path) else check_lexicon(words, "the lexicon")
        self.reader = Reader(self.text_model.config, self.parts.alphabet, own, self.parts.voice.vocabulary)

    def add_voice(self, name: str, prompt: SoundLike, text: str) -> None:
        """Keep a recording as a named voice, which `save_pretrained` writes with the model:

            pipe.add_voice("ann", "ann.wav", "what is said in it")
            pipe("some text", voice="ann")

        Args:
            name: up to 64 letters, digits, `_` and `-`; an old voice of this name is replaced.
            prompt: as in a call. Only record people who agree, and note down that they do: `resgen serve` plays it to
                every client.
            text: its transcript.

        Raises:
            ConfigError: a name that is not allowed, too many voices, or a recording or text that is too long.
            DataError: as in a call, for the prompt.
        """
        samples, _ = samples_of(prompt, self.sample_rate_hz, "prompt")
        content = encode_sound(self.speaker.cleaned(samples), self.sample_rate_hz, ".flac")
        check_voice(name, voice := Voice(content, text, prepared=True), self.voices)
        self.prepare(samples, text, announce)
        self.voices[name] = voice

    def sentences(self, text: str) -> list[Spoken]:
        """The sentences of a text, each short enough to be generated at once; see `reading.Reader.sentences`."""
        return self.reader.sentences(text)

    @torch.inference_mode()
    def prepare(
        self,
        prompt: SoundLike,
        prompt_text: str | None,
        doubt: Callable[[str], object] | None = None,
        *,
        prepared: bool = False,
    ) -> Prompt:
        """A prompt prepared for the model and aligned with its text; `doubt` is called with a line that names the text
        if it seems wrong (see `fit`). What is `prepared` is taken as it is (see `Voice`).

        Raises:
            DataError: as in a call.
        """
        samples, text, where = self._open_recording("prompt", prompt, "prompt_text", prompt_text)
        samples = samples if prepared else self.speaker.cleaned(samples)
        example = self.speaker.aligned(samples, text, where)
        if doubt is not None:
            samples = samples.to(self.speaker.device)
            tell_doubt(self.text_model, samples, text, self.mel, where=where, doubt=doubt)
        return example

    def _open_recording(
        self, what: str, source: SoundLike, name: str, text: str | None
    ) -> tuple[Float[Tensor, " S"], Spoken, str]:
        """Samples and text of a prompt or recording, and what to call it in an error."""
        if not text:
            raise DataError(f"{name_of(source, what)} comes without its text; give what is said in it as {name}")
        samples, where = samples_of(source, self.sample_rate_hz, what)
        check_prompt(samples, self.sample_rate_hz, where=where)
        return samples, self.reader.whole(text, name), where

    def _listen(
        self, recording: SoundLike, text: str, stretch: tuple[float, float] | None = None
    ) -> tuple[SpeechEditor, Recording]:
        """A recording and its text as they are edited; a stretch in seconds is encoded even where it is silent."""
        rate = self.sample_rate_hz
        samples, transcript, where = self._open_recording("recording", recording, "input_text", text)
        if stretch is not None:
            check_stretch(*stretch, len(samples) / rate)
        also = None if stretch is None else (int(stretch[0] * rate), math.ceil(stretch[1] * rate))
        editor = SpeechEditor(self.codec, self.text_model, self.mel, self.parts.voice.loudness_db)
        return editor, editor.listen(samples, transcript, where, also)

    def _cast(self) -> Sequence[nn.Module]:
        return (self.generator,)

    def _modules(self) -> Sequence[nn.Module]:
        vocoder = () if self.codec.vocoder is None else (self.codec.vocoder,)
        return self.generator, self.text_model, self.codec.tokenizer, *vocoder

    def _facts(self) -> Sequence[str]:
        return (f"speech at {self.sample_rate_hz} Hz, prompts of up to {self.parts.voice.max_prompt_seconds:g} s",)
