"""From utterances to the generator's conditions, and from its codes to sound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resgen.checkpoints.speech import VoiceConfig
from resgen.data.sound.decode import normalise_loudness, trim_silence
from resgen.data.spoken import Spoken
from resgen.data.text import cut_at_word, token_ids
from resgen.errors import DataError
from resgen.models.text import TextModel
from resgen.ops.alignment import expand
from resgen.ops.mel import MelConfig, log_mel
from resgen.pipelines.speech.speaking import pace
from resgen.pipelines.speech.utterances import Job, Prompt, SpeechOutput, Utterance
from resgen.samplers.records import StepRecord
from resgen.tokenizers.sound import SoundCodec
from resgen.types import CodeSpec

PAUSE_SECONDS = 0.12
SENTENCES_PER_TEXT = 1 << 16


class Speaker:
    """Prepares prompts and sentences for the generator, and decodes what it makes of them.

    Args:
        codec: between samples and codes.
        text_model: aligns, and predicts durations.
        mel: that it aligns, of `stride` frames per position.
        spec: shape of the codes.
        voice: how prompts are prepared.
    """

    def __init__(
        self, codec: SoundCodec, text_model: TextModel, mel: MelConfig, spec: CodeSpec, voice: VoiceConfig
    ) -> None:
        self.codec, self.text_model, self.mel, self.spec, self.voice = codec, text_model, mel, spec, voice
        self.stride = codec.samples_per_position // mel.hop_size

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.text_model.angles.device

    def cleaned(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " R"]:
        """A recording as those of the training were: without silence at its ends, at the model's loudness."""
        samples = trim_silence(samples.float(), self.codec.sample_rate_hz)
        loudness = self.voice.loudness_db
        return samples if loudness is None else normalise_loudness(samples, self.codec.sample_rate_hz, loudness)

    @torch.inference_mode()
    def word_ends(self, samples: Float[Tensor, " S"], spoken: Spoken) -> list[int]:
        """Where the words of a recording end, in samples, as the text model aligns them.

        Args:
            samples: prepared like a prompt.
            spoken: its text.

        Raises:
            DataError: too little speech for the text.
        """
        hop = self.mel.hop_size
        frames, (tokens, real) = len(samples) // hop, self.tokens(spoken)
        if frames < tokens.shape[1]:
            seconds = len(samples) / self.codec.sample_rate_hz
            raise DataError(f"{seconds:.2f} s of speech are too little for {spoken.text!r}")
        mels = log_mel(samples[None, : frames * hop].to(self.device), self.mel)
        durations = self.text_model.align(tokens, real, mels, torch.tensor([frames], device=self.device))[0]
        ends = (durations.cumsum(0) * hop).tolist()
        # A word ends where a space or the end of the text follows.
        content = spoken.content + b" "
        return [ends[place] for place in range(1, len(content)) if content[place] == ord(" ")]

    def aligned(self, samples: Tensor, spoken: Spoken, where: str) -> Prompt:
        """A prompt of whole positions; words beyond the model's longest are cut off, in sound and text."""
        unit = self.codec.samples_per_position
        length = len(samples) // unit
        tokens, real = self.tokens(spoken)
        frames = length * self.stride
        if not length or frames < tokens.shape[1]:
            seconds = len(samples) / self.codec.sample_rate_hz
            raise DataError(f"{where} has {seconds:.2f} s of speech, too little for its text {spoken.text!r}")
        if length > self.spec.num_positions:
            longest = self.spec.num_positions * unit / self.codec.sample_rate_hz
            raise DataError(
                f"{where} has {len(samples) / self.codec.sample_rate_hz:.1f} s of speech, the model hears at most "
                f"{longest:.1f} s at once; cut it, and its text"
            )
        samples = samples[: length * unit].to(self.device)
        codes, _ = self.codec.encode(samples[None], torch.tensor([len(samples)], device=self.device))
        hidden = self.text_model(tokens, real)
        count = torch.tensor([frames], device=self.device)
        durations = self._matched(hidden, real, samples, count)
        rate = pace(self.text_model.log_durations(hidden, real)[0, 1:-1], durations[0, 1:-1])
        most = max(1, int(self.voice.max_prompt_seconds * self.codec.sample_rate_hz / unit))
        if length > most:
            content, length = cut_at_word(spoken.content, durations[0].cumsum(0).tolist(), most, self.stride)
            spoken = Spoken(" ".join(spoken.text.split()[: len(content.split())]), content)
        features = expand(hidden.float(), durations, frames)[0]
        return Prompt(
            samples=samples[: length * unit].cpu(),
            codes=codes[0, :length],
            spoken=spoken,
            features=features[: length * self.stride],
            rate=rate,
        )

    def as_prompt(self, codes: Int[Tensor, "L D"], spoken: Spoken) -> Prompt:
        """The generated speech, as the prompt for the next sentence."""
        return self.aligned(self.codec.decode(codes[None])[0], spoken, "the first sentence")

    def first(self, utterance: Utterance) -> Job:
        """The first sentence."""
        sentences, prompt, continued, speed, seed, number = utterance
        if continued:
            assert prompt is not None
            job = self._continue(prompt, sentences[0], speed)
        else:
            job = self._say(prompt, sentences[0], speed)
        return job._replace(seed=seed, stream=SENTENCES_PER_TEXT * number)

    def rest(self, utterance: Utterance, codes: Int[Tensor, "L D"]) -> list[Job]:
        """The other sentences; without a prompt the voice of the first, whose `codes` are given, goes on."""
        sentences, prompt, _, speed, seed, number = utterance
        if len(sentences) == 1:
            return []
        prompt = prompt or self.as_prompt(codes, sentences[0])
        jobs = [self._say(prompt, spoken, speed) for spoken in sentences[1:]]
        begin = SENTENCES_PER_TEXT * number
        return [job._replace(seed=seed, stream=begin + place) for place, job in enumerate(jobs, start=1)]

    def _say(self, prompt: Prompt | None, spoken: Spoken, speed: float) -> Job:
        """A sentence of its own, after the prompt if there is one."""
        tokens, real = self.tokens(spoken)
        hidden = self.text_model(tokens, real)
        rate = speed if prompt is None else speed * prompt.rate
        codes = self._no_codes() if prompt is None else prompt.codes
        durations = self.text_model.durations(hidden, real, speed=rate)
        self._check_length(len(codes) * self.stride + int(durations.sum()), codes)
        features = self._expanded(hidden, durations)
        return Job(0, 0, codes, features if prompt is None else torch.cat([prompt.features, features]))

    def _continue(self, prompt: Prompt, spoken: Spoken, speed: float) -> Job:
        """The prompt's sentence, to be finished: one text, whose beginning is aligned with the prompt."""
        tokens, real = self.tokens(Spoken.join([prompt.spoken, spoken]))
        begin = 1 + len(prompt.spoken.content)  # with the boundary before it
        hidden = self.text_model(tokens, real)
        count = torch.tensor([len(prompt.codes) * self.stride], device=self.device)
        if begin > int(count):
            raise DataError(f"the prompt is too short for its text {prompt.spoken.text!r}")
        known = self._matched(hidden[:, :begin], real[:, :begin], prompt.samples.to(self.device), count)
        rest = self.text_model.durations(hidden, real, speed=speed * prompt.rate)[:, begin:]
        durations = torch.cat([known, rest], dim=1)
        self._check_length(int(durations.sum()), prompt.codes)
        return Job(0, 0, prompt.codes, self._expanded(hidden, durations))

    def _matched(self, hidden: Tensor, real: Tensor, samples: Tensor, count: Tensor) -> Int[Tensor, "1 N"]:
        """Durations of the tokens in a recording of `count` frames."""
        return self.text_model.match(
            hidden, real, self.text_model.normalise(log_mel(samples[None], self.mel), count), count
        )

    def tokens(self, spoken: Spoken) -> tuple[Int[Tensor, "1 N"], Bool[Tensor, "1 N"]]:
        """The text model's tokens of a sentence, and that all of them are real."""
        tokens = token_ids(spoken.content)[None].to(self.device)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def _expanded(self, hidden: Tensor, durations: Tensor) -> Float[Tensor, "T E"]:
        """Whole positions: the silence at the end takes what is missing."""
        durations = durations.clone()
        durations[:, -1] += -int(durations.sum()) % self.stride
        return expand(hidden.float(), durations, int(durations.sum()))[0]

    def _no_codes(self) -> Int[Tensor, "0 D"]:
        return torch.zeros(0, self.spec.depth, dtype=torch.int64, device=self.device)

    def _check_length(self, frames: int, codes: Tensor) -> None:
        """Reject a sentence that is too long with its prompt, before it is expanded."""
        if frames > self.spec.num_positions * self.stride:
            positions, also = -(-frames // self.stride), " with its prompt" if len(codes) else ""
            seconds = self.codec.samples_per_position / self.codec.sample_rate_hz
            raise DataError(
                f"a sentence takes {positions * seconds:.1f} s{also}, the model speaks at most "
                f"{self.spec.num_positions * seconds:.1f} s at once; use shorter sentences, a shorter prompt or more "
                "speed"
            )

    def output(
        self, jobs: Sequence[tuple[Job, Tensor]], steps: list[StepRecord], utterance: Utterance, begin: int = 0
    ) -> SpeechOutput:
        """The sound of sentences of an utterance, from number `begin` on; a pause goes before all but the first."""
        pause = torch.zeros(round(PAUSE_SECONDS * self.codec.sample_rate_hz))
        parts: list[Tensor] = []
        for number, (job, codes) in enumerate(jobs, begin):
            whole = self.codec.decode(torch.cat([job.codes, codes])[None])[0]
            if number:
                parts.append(pause)
            elif utterance.continued and utterance.prompt is not None:
                parts.append(utterance.prompt.samples)
            parts.append(whole[len(job.codes) * self.codec.samples_per_position :].float().cpu())
        return SpeechOutput(
            audio=torch.cat(parts),
            sample_rate_hz=self.codec.sample_rate_hz,
            codes=torch.cat([codes for _, codes in jobs]).cpu(),
            steps=steps,
            texts=[spoken.text for spoken in utterance.sentences[begin : begin + len(jobs)]],
            seed=utterance.seed,
        )
