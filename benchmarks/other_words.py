"""Whose voice is it when a stranger who was recorded saying one thing is made to say another? Prompts are recordings of
one corpus (sentences), the texts are strings of digits, so that a recogniser of digits can judge voices of people who
were never asked for any.

    python benchmarks/other_words.py --model runs/sentences/model --data speech/speechocean762 --split test_unseen \\
        --others speech/digits --json J

Candidates are all speakers of both corpora. Beside the generated speech stand another recording of each speaker and the
tokenizer's copy of it, for the voice alone. The table goes to standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import tyro

from resgen.cli.main import guard
from resgen.config import config_to_dict
from resgen.data.sound.sources import open_speech
from resgen.errors import ConfigError
from resgen.evaluation.speech.evaluate import candidate_voices
from resgen.evaluation.speech.metrics import error_rates, mean_interval, nearest_speaker, similarity
from resgen.evaluation.speech.recognizer import DIGITS
from resgen.evaluation.speech.speakers import open_speaker_encoder
from resgen.evaluation.speech.transcribers import open_transcriber
from resgen.experiments.speech.judge import candidate_sounds, copied, cross_sentence
from resgen.files import write_json
from resgen.kinds import sampling_with
from resgen.ops.random import generator
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.progress import progress_bars


def main(
    model: str,
    data: str,
    split: str,
    others: tuple[str, ...] = (),
    transcriber: str = "digit-recognizer",
    speaker_encoder: str = "speaker-encoder",
    vocabulary: tuple[str, ...] = DIGITS,
    length: tuple[int, int] = (3, 5),
    guidance_scale: float | None = None,
    prompt_guidance: float | None = None,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Speak words of the vocabulary after every recording of a split, and judge words and voice.

    Args:
        model: folder of a speech pipeline, or a bundled name.
        data: recordings with texts and speakers.
        split: of the data.
        others: more data whose speakers are candidates.
        transcriber: recogniser of the vocabulary, by name or folder.
        speaker_encoder: by name or folder.
        vocabulary: the words.
        length: fewest and most words of a text.
        guidance_scale: in place of the model's own.
        prompt_guidance: in place of the model's own.
        seed: of texts and codes.
        json: file for all numbers.
    """
    if not 1 <= length[0] <= length[1]:
        raise ConfigError(f"length={length} must be two numbers, at least 1, the smaller first")
    pipe, hear = SpeechPipeline.from_pretrained(model), open_transcriber(transcriber)
    encoder = open_speaker_encoder(speaker_encoder)
    if not hear.sample_rate_hz == encoder.sample_rate_hz == pipe.sample_rate_hz:
        raise ConfigError(
            f"model, recogniser and encoder must have one rate; the model speaks {pipe.sample_rate_hz} Hz"
        )
    settings = {"guidance_scale": guidance_scale, "prompt_guidance": prompt_guidance}
    settings = {name: value for name, value in settings.items() if value is not None}
    source, stream = open_speech(data, split), generator("other words", seed)
    trials, candidates = cross_sentence(pipe, source), {}
    for folder in (data, *others):
        candidates |= {f"{folder}:{name}": sounds for name, sounds in candidate_sounds(folder, pipe).items()}
    names = sorted(candidates)
    texts, sounds = [], []
    with progress_bars() as advance:
        voices = candidate_voices(candidates, names, encoder, advance)
        for number, trial in enumerate(trials):
            count = int(torch.randint(length[0], length[1] + 1, (), generator=stream))
            words = torch.randint(len(vocabulary), (count,), generator=stream).tolist()
            texts.append(" ".join(vocabulary[word] for word in words))
            prompt = {"prompt": trial.prompt.samples, "prompt_text": trial.prompt_text}
            sounds.append(pipe(texts[-1], **prompt, seed=100_003 * seed + number, **settings).audio)
            advance(number + 1, len(trials), "speaking")
    transcripts = [hear(sound) for sound in sounds]
    prompts = torch.stack([encoder(trial.prompt.samples) for trial in trials])
    speakers = torch.tensor([names.index(f"{data}:{trial.speaker}") for trial in trials])
    errors, voice = error_rates(texts, transcripts), {}
    for name, group in (
        ("generated", sounds),
        ("recordings", [trial.truth.samples for trial in trials]),
        ("tokenizer", [copied(pipe, trial.truth).samples for trial in trials]),
    ):
        embedded = torch.stack([encoder(sound) for sound in group])
        alike = mean_interval(similarity(embedded, prompts))
        voice[name] = {"sim_o": alike, "nearest": mean_interval(nearest_speaker(embedded, speakers, voices).float())}
    print("| speech | WER | SIM-o | nearest speaker is the prompt's |\n| --- | --- | --- | --- |")
    for name, rates in voice.items():
        wer = errors.words.percent() if name == "generated" else ""
        print(f"| {name} | {wer} | {rates['sim_o'].value:.3f} | {rates['nearest'].percent()} |")
    print(f"\n{len(trials)} utterances after {len(set(speakers.tolist()))} speakers, {len(names)} candidates")
    if json is not None:
        about = {"model": model, "data": source.name, "split": split, "transcriber": hear.name, "seed": seed}
        about |= {"sampling": config_to_dict(sampling_with(pipe.sampling, settings)), "candidates": len(names)}
        utterances = [
            {"speaker": t.speaker, "text": x, "heard": y} for t, x, y in zip(trials, texts, transcripts, strict=True)
        ]
        rates = {name: {key: rate.document() for key, rate in row.items()} for name, row in voice.items()}
        write_json(json, {**about, "wer": errors.words.document(), "voice": rates, "utterances": utterances})


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
