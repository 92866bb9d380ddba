"""Speech recognisers behind one contract: PocketSphinx, Moonshine, local folders of `transformers`, our own."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from resgen.checkpoints.format import CONFIG_NAME, read_json
from resgen.errors import CheckpointError, ConfigError, DataError, unknown
from resgen.evaluation.speech.folders import (
    BUILT_IN,
    SoundJudge,
    find_judge,
    load_judge,
    names_of,
    open_transformers,
    sha256_of_all,
)
from resgen.evaluation.speech.hearing import check_sound
from resgen.evaluation.speech.metrics import normalise_transcript
from resgen.evaluation.speech.recognizer import DIGITS, Recognizer
from resgen.extras import MissingExtraError, import_extra, install_command

POCKETSPHINX = "pocketsphinx"
GRAMMARS = {"digits": DIGITS}
MOONSHINE = "moonshine"
NAMES = (POCKETSPHINX, *(f"{POCKETSPHINX}-{grammar}" for grammar in GRAMMARS), MOONSHINE)


@runtime_checkable
class Transcriber(SoundJudge, Protocol):
    """A speech recogniser.

    Attributes:
        vocabulary: the only words that it can hear; empty for any.
    """

    vocabulary: tuple[str, ...]

    def __call__(self, samples: Float[Tensor, " S"]) -> str:
        """What is said in a sound in -1..1; empty where nothing is understood."""
        ...


class PocketsphinxTranscriber:
    """PocketSphinx with the English acoustic model that comes with it.

    Args:
        grammar: `digits` allows any sequence of the ten digits and nothing else; None takes the package's own language
            model of general English.

    Raises:
        ConfigError: an unknown grammar.
        MissingExtraError: pocketsphinx is not installed.
    """

    def __init__(self, grammar: str | None = None) -> None:
        if grammar is not None and grammar not in GRAMMARS:
            raise ConfigError(unknown("grammar", grammar, GRAMMARS))
        pocketsphinx = import_extra("pocketsphinx", "speech-eval")
        self.name = POCKETSPHINX if grammar is None else f"{POCKETSPHINX}-{grammar}"
        self.version = f"pocketsphinx {metadata.version('pocketsphinx')}"
        self.sha256 = BUILT_IN
        self.sample_rate_hz = 16000
        self.vocabulary: tuple[str, ...] = () if grammar is None else GRAMMARS[grammar]
        closed = {} if grammar is None else {"lm": None}
        self._decoder = pocketsphinx.Decoder(samprate=self.sample_rate_hz, loglevel="FATAL", **closed)
        if grammar is not None:
            words = " | ".join(GRAMMARS[grammar])
            self._decoder.add_jsgf_string(grammar, f"#JSGF V1.0; grammar {grammar}; public <said> = ({words})+;")
            self._decoder.activate_search(grammar)

    def __call__(self, samples: Float[Tensor, " S"]) -> str:
        """See `Transcriber`.

        Raises:
            DataError: no samples.
        """
        check_sound(samples)
        pcm = (samples.detach().cpu().clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes()
        self._decoder.reinit_feat()  # it adapts; the result must not depend on what was heard before
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


class MoonshineTranscriber:
    """The smallest English Moonshine, 27 million parameters, whose weights come inside its package.

    A sound is heard as a whole: the package would search it for speech first, and what it cuts out is heard worse. Made
    for sentences; in strings of digits it likes to hear telephone numbers.

    Raises:
        CheckpointError: a version of the package that comes without the weights.
        MissingExtraError: moonshine-voice is not installed.
    """

    def __init__(self) -> None:
        try:
            from moonshine_voice import moonshine_api, transcriber, utils
        except ImportError as error:
            raise MissingExtraError("moonshine-voice", "moonshine") from error
        self.version = f"moonshine-voice {metadata.version('moonshine-voice')}"
        folder = Path(utils.get_assets_path()) / "tiny-en"
        files = sorted(folder.glob("*.ort"))
        if not files:
            raise CheckpointError(f"{self.version} comes without its weights; {install_command('moonshine')}")
        self.name = f"{MOONSHINE}-{folder.name}"
        self.sha256 = sha256_of_all(files)
        self.sample_rate_hz = 16000
        self.vocabulary: tuple[str, ...] = ()
        whole = {"vad_threshold": "0.0"}
        self._transcriber = transcriber.Transcriber(str(folder), moonshine_api.ModelArch.TINY, options=whole)

    def __call__(self, samples: Float[Tensor, " S"]) -> str:
        """See `Transcriber`.

        Raises:
            DataError: no samples.
        """
        check_sound(samples)
        transcript = self._transcriber.transcribe_without_streaming(samples.float().cpu().tolist(), self.sample_rate_hz)
        return " ".join(line.text.strip() for line in transcript.lines).strip()


class TransformersTranscriber:
    """A Whisper model, or one with a CTC head (Wav2Vec2, HuBERT, WavLM, ...), from a local folder of `transformers`.

    Raises:
        CheckpointError: no safetensors weights there, or no such model.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        encoder_decoder = read_json(Path(folder) / CONFIG_NAME).get("is_encoder_decoder", False)
        self._generates = bool(encoder_decoder)
        model_class = "AutoModelForSpeechSeq2Seq" if self._generates else "AutoModelForCTC"
        loaded = open_transformers(folder, model_class, "AutoProcessor")
        self.name, self.version, self.sha256 = loaded.name, loaded.version, loaded.sha256
        self.sample_rate_hz = loaded.sample_rate_hz
        self.vocabulary: tuple[str, ...] = ()
        self._model, self._processor = loaded.model, loaded.processor

    @torch.inference_mode()
    def __call__(self, samples: Float[Tensor, " S"]) -> str:
        """See `Transcriber`.

        Raises:
            DataError: no samples, or more than the model can hear at one time.
        """
        check_sound(samples)
        longest = getattr(self._processor.feature_extractor, "n_samples", None)  # of Whisper: 30 s, the rest is cut off
        if longest is not None and len(samples) > longest:
            raise DataError(
                f"{len(samples) / self.sample_rate_hz:.1f} s of sound given; '{self.name}' hears at most "
                f"{longest / self.sample_rate_hz:g} s; split the text into shorter utterances"
            )
        inputs = self._processor(samples.cpu().numpy(), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        if self._generates:
            english = {"language": "en", "task": "transcribe"}
            several = getattr(self._model.generation_config, "is_multilingual", False)
            tokens = self._model.generate(**inputs, do_sample=False, **(english if several else {}))
            return str(self._processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()
        best = self._model(**inputs).logits.argmax(-1)
        return str(self._processor.batch_decode(best)[0]).strip()


class RecognizerTranscriber:
    """A `Recognizer` of a folder.

    Raises:
        CheckpointError: nothing there, damaged, or not a recogniser.
    """

    def __init__(self, folder: str | Path) -> None:
        self.recognizer, saved = load_judge(folder, Recognizer)
        self.name, self.version, self.sha256 = names_of(saved)
        config = self.recognizer.config
        self.sample_rate_hz = config.mel.sample_rate_hz
        self.vocabulary: tuple[str, ...] = config.symbols if config.unit == "words" else ()

    def __call__(self, samples: Float[Tensor, " S"]) -> str:
        """See `Recognizer.transcribe`."""
        return self.recognizer.transcribe(samples)


def open_transcriber(name_or_folder: str | Path) -> Transcriber:
    """A transcriber: one of `NAMES`, a bundled recogniser, a folder of ours or of transformers.

    Raises:
        CheckpointError: nothing of that name, or a folder that holds something else.
        MissingExtraError: a package is missing.
    """
    if str(name_or_folder) == MOONSHINE:
        return MoonshineTranscriber()
    if str(name_or_folder) in NAMES:
        return PocketsphinxTranscriber(str(name_or_folder).partition("-")[2] or None)
    folder, ours = find_judge(name_or_folder, Recognizer.kind, NAMES)
    return RecognizerTranscriber(folder) if ours else TransformersTranscriber(folder)


def check_vocabulary(transcriber: Transcriber, texts: Iterable[str]) -> None:
    """Whether a transcriber can hear all words of the texts.

    Raises:
        ConfigError: with the first word that it cannot.
    """
    for text in texts if transcriber.vocabulary else ():
        for word in normalise_transcript(text).split():
            if word not in transcriber.vocabulary:
                raise ConfigError(
                    f"'{transcriber.name}' hears {len(transcriber.vocabulary)} words only, and {word!r} is none of "
                    f"them; name another recogniser: --transcriber {MOONSHINE}, {POCKETSPHINX} or a folder"
                )
