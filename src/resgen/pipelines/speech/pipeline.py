"""`SpeechPipeline`: text and a few seconds of a voice in, speech in that voice out."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.checkpoints.speech import SpeechParts, load_speech_pipeline, save_speech_pipeline
from resgen.data.announce import announce
from resgen.data.sound.decode import check_prompt, normalise_loudness, trim_silence
from resgen.data.text import (
    PROSODY,
    check_text,
    cut_at_word,
    encode_text,
    normalise_text,
    split_sentences,
    words_of,
)
from resgen.errors import ConfigError, DataError, unknown
from resgen.kinds import AnySampling, Settings, kind_of
from resgen.ops.alignment import expand
from resgen.ops.mel import MelConfig, log_mel
from resgen.pipelines.base import BasePipeline, NoOthers, check_whole, refuse_others, seed_of
from resgen.pipelines.speech.edit import Recording, SpeechEdit, SpeechEditor, SpokenWord, check_following, check_stretch
from resgen.pipelines.speech.inputs import SoundLike, Speaking, called, samples_of, texts_of
from resgen.pipelines.speech.speaking import SpeechRun, pace
from resgen.pipelines.speech.utterances import Job, Prompt, SpeechOutput, Utterance
from resgen.samplers.records import StepCallback, StepRecord
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.sound import SoundCodec

TASKS = ("cross-sentence", "continuation")
MAX_CHARS = 200
MAX_TEXT_BYTES = 20_000
PAUSE_SECONDS = 0.12
SENTENCES_PER_TEXT = 1 << 16


class SpeechPipeline(BasePipeline):
    """Tokenizer, vocoder, text model and generator of one folder.

        pipe = SpeechPipeline.from_pretrained("spoken-digits-small")
        pipe("three seven one").save("digits.wav")

    Args:
        parts: what `checkpoints.speech.load_speech_pipeline` returns.
        device: `cpu`, `cuda`, ...; a GPU if there is one by default.
        dtype: of the generator: `bfloat16` (or `bf16`), `float32`, or `auto`. The other parts are small and run in
            float32.
        vocoder: takes log-mels to samples in place of the folder's own, such as
            `checkpoints.vocoders.load_external_vocoder` returns.
    """

    tag, usage = "text-to-speech", 'pipe("some text").save("speech.wav")'

    def __init__(
        self,
        parts: SpeechParts,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        vocoder: torch.nn.Module | None = None,
    ) -> None:
        self.name, self.parts = parts.folder.path.name, parts
        self.generator, self.text_model = parts.generator, parts.text_model.float()
        own = parts.vocoder if vocoder is None else vocoder
        self.codec = SoundCodec(parts.tokenizer.float(), None if own is None else own.float())
        self.sampling: AnySampling = parts.sampling
        self.stride = int(self.generator.config.feature_stride)
        self.to("auto" if device is None else device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        **others: Unpack[NoOthers],
    ) -> SpeechPipeline:
        """Load a speech pipeline's folder, a bundled model, or `owner/model[@revision]` from the hub.

        Raises:
            CheckpointError: nothing there, damaged, of pictures, or its parts do not belong together.
            ConfigError: a device or type that cannot be used, or another argument.
        """
        refuse_others(others)
        return cls(load_speech_pipeline(name_or_path), device=device, dtype=dtype)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a speech pipeline's folder with these weights and sampling settings."""
        parts = self.parts
        save_speech_pipeline(
            path,
            tokenizer=parts.tokenizer,
            vocoder=parts.vocoder,
            text_model=self.text_model,
            alphabet=parts.alphabet,
            generator=self.generator,
            sampling=self.sampling,
            voice=parts.voice,
            history=dict(parts.folder.extra.get("history", {})),
        )

    @property
    def sample_rate_hz(self) -> int:
        """Rate of all samples."""
        return self.codec.sample_rate_hz

    @property
    def mel(self) -> MelConfig:
        """The mels that texts are aligned to: `stride` frames per position."""
        tokenizer = self.parts.tokenizer
        if isinstance(tokenizer, MelTokenizer):
            return tokenizer.config.mel
        assert self.parts.voice.mel is not None
        return self.parts.voice.mel

    @overload
    def __call__(self, text: str, **options: Unpack[Speaking]) -> SpeechOutput: ...

    @overload
    def __call__(self, text: list[str] | tuple[str, ...], **options: Unpack[Speaking]) -> list[SpeechOutput]: ...

    @torch.inference_mode()
    def __call__(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        prompt: SoundLike | None = None,
        prompt_text: str | None = None,
        task: str = "cross-sentence",
        speed: float = 1.0,
        seed: int | None = 0,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> SpeechOutput | list[SpeechOutput]:
        """Speak a text, or several in one voice.

        A text of several sentences is spoken sentence by sentence. Without a prompt the voice is the model's choice:
        that of the first sentence of each text, which is the prompt of the others.

        Args:
            text: English; for a list of texts the result is a list.
            prompt: a few seconds of the voice: a file, its content, samples at the model's rate, or `(samples, rate)`
                (see `inputs.SoundLike`). It is trimmed, brought to the model's loudness and cut to
                `max_prompt_seconds` of the model.
            prompt_text: what is said in it; needed with a prompt.
            task: `cross-sentence` says the text in the prompt's voice; `continuation` goes on from the prompt's end in
                one breath, and the prompt is the beginning of the audio.
            speed: above 1 is faster.
            seed: sentence k of text i draws from the stream (seed, i, k), so `batch_size` changes nothing but rounding.
                None takes a fresh one; the outputs have it as `seed`.
            batch_size: sentences per network evaluation.
            callback: called after every network evaluation with (record, codes, visible) of the batch.
            settings: `num_steps`, `guidance_scale`, ...: see `kinds.Settings`.

        Raises:
            ConfigError: no text, an unknown task or setting, or one out of range.
            DataError: a text that is empty, too long or has characters out of the model's reach; a prompt that is
                silent, clipped, too short, not a sound, or comes without its text.
        """
        if task not in TASKS:
            raise ConfigError(unknown("task", task, TASKS))
        _check_speed(speed)
        check_whole(1, batch_size=batch_size)
        seed = seed_of(seed)
        texts = texts_of(text)
        sentences = [self.sentences(one) for one in texts]
        self._warn(sentence for own in sentences for sentence in own)
        example = None if prompt is None else self.prepare(prompt, prompt_text)
        if example is None and (prompt_text or task == "continuation"):
            raise DataError("a prompt is missing: prompt_text and continuation need the recording as well")
        continued = task == "continuation"
        utterances = [Utterance(own, example, continued, speed, seed, number) for number, own in enumerate(sentences)]
        outputs = self.speak(utterances, batch_size=batch_size, callback=callback, **settings)
        return outputs[0] if isinstance(text, str) else outputs

    @torch.inference_mode()
    def speak(
        self,
        utterances: Sequence[Utterance],
        *,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> list[SpeechOutput]:
        """Speak prepared texts, each with its own voice, speed and seed; what they share are batches.

        Arguments and errors are those of a call.
        """
        run = SpeechRun(self.generator, self._settings(self.__call__, settings), batch_size, callback)
        firsts = [self._first(utterance) for utterance in utterances]
        first_codes = run.generate(firsts)
        rest = [self._rest(utterance, codes) for utterance, codes in zip(utterances, first_codes, strict=True)]
        later = iter(run.generate([job for jobs in rest for job in jobs]))
        outputs = []
        for utterance, first, codes, others in zip(utterances, firsts, first_codes, rest, strict=True):
            jobs = [(first, codes), *((job, next(later)) for job in others)]
            opening = utterance.prompt.samples if utterance.prompt is not None and utterance.continued else None
            outputs.append(self._output(jobs, run.steps, utterance, opening))
        return outputs

    @torch.inference_mode()
    def edit(
        self,
        recording: SoundLike,
        *,
        input_text: str,
        text: str,
        begin_s: float,
        end_s: float,
        speed: float = 1.0,
        keep_length: bool = False,
        blend: bool = False,
        num_samples: int = 1,
        seed: int | None = 0,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        **settings: Unpack[Settings],
    ) -> list[SpeechEdit]:
        """Speak a stretch of a recording anew with other words (see `pipelines.speech.edit`); the codes of the rest
        come back as they are.

        Args:
            recording: as the prompt of a call.
            input_text: what is said in it.
            text: the words for the stretch.
            begin_s: where the stretch begins.
            end_s: where it ends.
            speed: above 1 is faster than the recording.
            keep_length: let the new words take as long as the old ones.
            blend: take the samples outside the stretch from the recording itself instead of the decoder.
            num_samples: how many results.
            seed: result k draws from the stream (seed, k); None takes a fresh one.
            batch_size: results per network evaluation.
            callback: as of a call.
            settings: as of a call.

        Raises:
            ConfigError: a stretch that is empty or beyond the recording, a kind that cannot heed what follows it, or a
                value out of range.
            DataError: a recording that is silent, clipped, too short, too long or not a sound; a text that is empty or
                has characters out of the model's reach, or more letters than the recording has frames.
        """
        _check_speed(speed)
        check_whole(1, num_samples=num_samples, batch_size=batch_size)
        seed = seed_of(seed)
        if keep_length and speed != 1:
            raise ConfigError(f"speed={speed} and keep_length both say how long the new words take; give one of them")
        sampling = self._settings(self.__call__, settings)
        editor, source = self._listen(recording, input_text, (begin_s, end_s))
        sentences = self.sentences(text)
        self._warn(sentences)
        plan = editor.plan(source, " ".join(sentences), begin_s, end_s, speed=speed, keep_length=keep_length)
        check_following(kind_of(self.generator.config), plan)
        run = SpeechRun(self.generator, sampling, batch_size, callback)
        return [
            SpeechEdit(
                audio=plan.audio(self.codec.decode(codes[None])[0].float().cpu(), blend=blend),
                sample_rate_hz=self.sample_rate_hz,
                codes=codes.cpu(),
                steps=run.steps,
                texts=[plan.text],
                seed=seed,
                plan=plan,
            )
            for codes in map(plan.edited, run.generate([plan.job(seed, number) for number in range(num_samples)]))
        ]

    def words(self, recording: SoundLike, text: str) -> list[SpokenWord]:
        """The words of a recording and when they are spoken.

        Raises:
            DataError: see `edit`.
        """
        editor, source = self._listen(recording, text)
        return editor.words(source)

    def sentences(self, text: str) -> list[str]:
        """The normalised sentences of a text, each short enough to be generated at once.

        Punctuation that the model has not learned is left out.

        Raises:
            DataError: nothing to say, too long, or characters that the model has not learned.
        """
        if len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
            raise DataError(f"the text has more than {MAX_TEXT_BYTES} bytes; give it in parts")
        longest = self.text_model.config.max_tokens - 2
        unknown_marks = str.maketrans(dict.fromkeys(set(PROSODY) - set(self.parts.alphabet), " "))
        parts = [*split_sentences(text, min(MAX_CHARS, longest)), text]
        *complete, whole = (" ".join(normalise_text(part).translate(unknown_marks).split()) for part in parts)
        spoken = [part for part in complete if any(character.isalnum() for character in part)]
        for part in spoken or [whole]:
            check_text(part, self.parts.alphabet, longest)
        return spoken

    @torch.inference_mode()
    def prepare(self, prompt: SoundLike, prompt_text: str | None) -> Prompt:
        """A prompt as the model takes it, aligned with its text.

        Raises:
            DataError: as of a call.
        """
        samples, text, where = self._opened("prompt", prompt, "prompt_text", prompt_text)
        return self._aligned(self.cleaned(samples), text, where)

    def _warn(self, sentences: Iterable[str]) -> None:
        """Say which words the model cannot speak, if it was trained on few."""
        vocabulary = self.parts.voice.vocabulary
        if vocabulary and (others := sorted(words_of(sentences) - set(vocabulary))):
            announce(
                f"'{self.name}' was trained on {len(vocabulary)} words only ({', '.join(vocabulary[:20])}"
                f"{', ...' * (len(vocabulary) > 20)}) and cannot speak: {', '.join(others[:20])}"
            )

    def _opened(
        self, what: str, source: SoundLike, name: str, text: str | None
    ) -> tuple[Float[Tensor, " S"], str, str]:
        """Samples and normalised text of a prompt or recording, and what to call it in an error."""
        if not text:
            raise DataError(f"{called(source, what)} comes without its text; give what is said in it as {name}")
        samples, where = samples_of(source, self.sample_rate_hz, what)
        check_prompt(samples, self.sample_rate_hz, where=where)
        return samples, " ".join(self.sentences(text)), where

    def _listen(
        self, recording: SoundLike, text: str, stretch: tuple[float, float] | None = None
    ) -> tuple[SpeechEditor, Recording]:
        """A recording and its text as they are edited; a stretch in seconds is encoded even where it is silent."""
        rate = self.sample_rate_hz
        samples, transcript, where = self._opened("recording", recording, "input_text", text)
        if stretch is not None:
            check_stretch(*stretch, len(samples) / rate)
        also = None if stretch is None else (int(stretch[0] * rate), math.ceil(stretch[1] * rate))
        editor = SpeechEditor(self.codec, self.text_model, self.mel, self.parts.voice.loudness_db)
        return editor, editor.listen(samples, transcript, where, also)

    def cleaned(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " R"]:
        """A recording as those of the training were: without silence at its ends, at the model's loudness."""
        samples = trim_silence(samples.float(), self.sample_rate_hz)
        loudness = self.parts.voice.loudness_db
        return samples if loudness is None else normalise_loudness(samples, self.sample_rate_hz, loudness)

    @torch.inference_mode()
    def word_ends(self, samples: Float[Tensor, " S"], text: str) -> list[int]:
        """Where the words of a recording end, in samples, as the text model aligns them.

        Args:
            samples: prepared like a prompt.
            text: normalised.

        Raises:
            DataError: too little speech for the text.
        """
        hop = self.mel.hop_size
        frames, (tokens, real) = len(samples) // hop, self._tokens(text)
        if frames < tokens.shape[1]:
            raise DataError(f"{len(samples) / self.sample_rate_hz:.2f} s of speech are too little for {text!r}")
        mels = log_mel(samples[None, : frames * hop].to(self.device), self.mel)
        durations = self.text_model.align(tokens, real, mels, torch.tensor([frames], device=self.device))[0]
        ends = (durations.cumsum(0) * hop).tolist()
        # The bytes of a word end where a space or the end of the text follows.
        content = [*text.encode(), ord(" ")]
        return [ends[place] for place in range(1, len(content)) if content[place] == ord(" ")]

    def _aligned(self, samples: Tensor, text: str, where: str) -> Prompt:
        """A prompt of whole positions; words beyond the model's longest are cut off, in sound and text."""
        unit = self.codec.samples_per_position
        length = len(samples) // unit
        tokens, real = self._tokens(text)
        frames = length * self.stride
        if not length or frames < tokens.shape[1]:
            raise DataError(
                f"{where} has {len(samples) / self.sample_rate_hz:.2f} s of speech, too little for its text {text!r}"
            )
        samples = samples[: length * unit].to(self.device)
        codes, _ = self.codec.encode(samples[None], torch.tensor([len(samples)], device=self.device))
        hidden = self.text_model(tokens, real)
        count = torch.tensor([frames], device=self.device)
        durations = self._matched(hidden, real, samples, count)
        rate = pace(self.text_model.log_durations(hidden, real)[0, 1:-1], durations[0, 1:-1])
        most = max(1, int(self.parts.voice.max_prompt_seconds * self.sample_rate_hz / unit))
        if length > most:
            text, length = cut_at_word(text, durations[0].cumsum(0).tolist(), most, self.stride)
        features = expand(hidden.float(), durations, frames)[0]
        return Prompt(
            samples=samples[: length * unit].cpu(),
            codes=codes[0, :length],
            text=text,
            features=features[: length * self.stride],
            rate=rate,
        )

    def _as_prompt(self, codes: Int[Tensor, "L D"], text: str) -> Prompt:
        """What was generated, as the prompt of what follows."""
        return self._aligned(self.codec.decode(codes[None])[0], text, "the first sentence")

    def _first(self, utterance: Utterance) -> Job:
        """The first sentence."""
        sentences, prompt, continued, speed, seed, number = utterance
        if continued:
            assert prompt is not None
            job = self._continue(prompt, sentences[0], speed)
        else:
            job = self._say(prompt, sentences[0], speed)
        return job._replace(seed=seed, stream=SENTENCES_PER_TEXT * number)

    def _rest(self, utterance: Utterance, codes: Int[Tensor, "L D"]) -> list[Job]:
        """The other sentences; without a prompt the voice of the first, whose `codes` are given, goes on."""
        sentences, prompt, _, speed, seed, number = utterance
        if len(sentences) == 1:
            return []
        prompt = prompt or self._as_prompt(codes, sentences[0])
        jobs = [self._say(prompt, text, speed) for text in sentences[1:]]
        begin = SENTENCES_PER_TEXT * number
        return [job._replace(seed=seed, stream=begin + place) for place, job in enumerate(jobs, start=1)]

    def _say(self, prompt: Prompt | None, text: str, speed: float) -> Job:
        """A sentence of its own, after the prompt if there is one."""
        tokens, real = self._tokens(text)
        hidden = self.text_model(tokens, real)
        rate = speed if prompt is None else speed * prompt.rate
        features = self._expanded(hidden, self.text_model.durations(hidden, real, speed=rate))
        if prompt is None:
            return self._job(self._no_codes(), features)
        return self._job(prompt.codes, torch.cat([prompt.features, features]))

    def _continue(self, prompt: Prompt, text: str, speed: float) -> Job:
        """The prompt's sentence, to be finished: one text, whose beginning is aligned with the prompt."""
        tokens, real = self._tokens(f"{prompt.text} {text}")
        begin = len(encode_text(prompt.text)) - 1  # without the boundary at its end
        hidden = self.text_model(tokens, real)
        count = torch.tensor([len(prompt.codes) * self.stride], device=self.device)
        if begin > int(count):
            raise DataError(f"the prompt is too short for its text {prompt.text!r}")
        known = self._matched(hidden[:, :begin], real[:, :begin], prompt.samples.to(self.device), count)
        rest = self.text_model.durations(hidden, real, speed=speed * prompt.rate)[:, begin:]
        return self._job(prompt.codes, self._expanded(hidden, torch.cat([known, rest], dim=1)))

    def _matched(self, hidden: Tensor, real: Tensor, samples: Tensor, count: Tensor) -> Int[Tensor, "1 N"]:
        """Durations of the tokens in a recording of `count` frames."""
        return self.text_model.match(
            hidden, real, self.text_model.normalise(log_mel(samples[None], self.mel), count), count
        )

    def _tokens(self, text: str) -> tuple[Tensor, Tensor]:
        tokens = encode_text(text)[None].to(self.device)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def _expanded(self, hidden: Tensor, durations: Tensor) -> Float[Tensor, "T E"]:
        """Whole positions: the silence at the end takes what is missing."""
        durations = durations.clone()
        durations[:, -1] += -int(durations.sum()) % self.stride
        return expand(hidden.float(), durations, int(durations.sum()))[0]

    def _no_codes(self) -> Int[Tensor, "0 D"]:
        return torch.zeros(0, self.generator.spec.depth, dtype=torch.int64, device=self.device)

    def _job(self, codes: Tensor, features: Tensor) -> Job:
        length, most = len(features) // self.stride, self.generator.spec.num_positions
        if length > most:
            seconds = self.codec.samples_per_position / self.sample_rate_hz
            also = " with its prompt" if len(codes) else ""
            raise DataError(
                f"a sentence takes {length * seconds:.1f} s{also}, the model speaks at most "
                f"{most * seconds:.1f} s at once; use shorter sentences, a shorter prompt or more speed"
            )
        return Job(0, 0, codes, features)

    def _output(
        self, jobs: list[tuple[Job, Tensor]], steps: list[StepRecord], utterance: Utterance, opening: Tensor | None
    ) -> SpeechOutput:
        pause = torch.zeros(round(PAUSE_SECONDS * self.sample_rate_hz))
        parts: list[Tensor] = [] if opening is None else [opening]
        for number, (job, codes) in enumerate(jobs):
            whole = self.codec.decode(torch.cat([job.codes, codes])[None])[0]
            if number:
                parts.append(pause)
            parts.append(whole[len(job.codes) * self.codec.samples_per_position :].float().cpu())
        return SpeechOutput(
            audio=torch.cat(parts),
            sample_rate_hz=self.sample_rate_hz,
            codes=torch.cat([codes for _, codes in jobs]).cpu(),
            steps=steps,
            texts=utterance.sentences,
            seed=utterance.seed,
        )

    def _cast(self) -> Sequence[nn.Module]:
        return (self.generator,)

    def _modules(self) -> Sequence[nn.Module]:
        vocoder = () if self.codec.vocoder is None else (self.codec.vocoder,)
        return self.generator, self.text_model, self.codec.tokenizer, *vocoder

    def _facts(self) -> Sequence[str]:
        return (f"speech at {self.sample_rate_hz} Hz, prompts of up to {self.parts.voice.max_prompt_seconds:g} s",)


def _check_speed(speed: Any) -> None:
    if not isinstance(speed, numbers.Real) or not float(speed) > 0:
        raise ConfigError(f"speed={speed!r} must be a number above 0")
