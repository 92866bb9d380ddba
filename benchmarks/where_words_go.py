"""Which part of a speech model loses the words? The recordings, the tokenizer's copies of them, and what the text model
alone has to say: the mel frame that each letter stands for, held for its duration and voiced by the vocoder.

    python benchmarks/where_words_go.py --model runs/sentences/model --data speech/sentences --split test_unseen \\
        --transcriber moonshine --json J

No code is generated: `resgen evaluate` has the whole model's words. The band means of the recording are given to the
text model, which knows nothing of voices. The table goes to standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import tyro
from torch import Tensor

from resgen.cli.main import guard
from resgen.data.sound.sources import open_speech
from resgen.data.spoken import Spoken
from resgen.data.text import token_ids
from resgen.errors import ConfigError
from resgen.evaluation.speech.evaluate import Sound
from resgen.evaluation.speech.metrics import error_rates
from resgen.evaluation.speech.transcribers import check_vocabulary, open_transcriber
from resgen.experiments.speech.judge import copied, prepared
from resgen.files import write_json
from resgen.ops.alignment import expand
from resgen.ops.mel import log_mel
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.progress import progress_bars

ROWS = ("recordings", "tokenizer", "text alone, aligned durations", "text alone, predicted durations")


def main(
    model: str,
    data: str,
    split: str,
    transcriber: str = "digit-recognizer",
    num_samples: int = 40,
    json: Path | None = None,
) -> None:
    """Listen to recordings, spread evenly over the split, and to what becomes of them.

    Args:
        model: folder of a speech pipeline with a vocoder, or a bundled name.
        data: recordings with texts.
        split: of the data.
        transcriber: recogniser, by name or folder.
        num_samples: recordings.
        json: file for all numbers.
    """
    if num_samples < 1:
        raise ConfigError(f"num_samples={num_samples} must be at least 1")
    pipe, hear, source = SpeechPipeline.from_pretrained(model), open_transcriber(transcriber), open_speech(data, split)
    if hear.sample_rate_hz != pipe.sample_rate_hz:
        raise ConfigError(f"the recogniser hears {hear.sample_rate_hz} Hz, the model speaks {pipe.sample_rate_hz} Hz")
    if pipe.codec.vocoder is None:
        raise ConfigError(f"'{model}' has no vocoder, which is to voice the text model's mels")
    check_vocabulary(hear, source.texts)
    transcripts: dict[str, list[str]] = {name: [] for name in ROWS}
    indices = torch.linspace(0, len(source) - 1, min(num_samples, len(source))).long().tolist()
    with progress_bars() as advance:
        for count, index in enumerate(indices):
            samples = prepared(pipe, source, index)
            sounds = [samples, copied(pipe, Sound(samples, pipe.sample_rate_hz)).samples]
            sounds += text_alone(pipe, samples, pipe.reader.front_end(source.texts[index]))
            for name, sound in zip(ROWS, sounds, strict=True):
                transcripts[name].append(hear(sound.float()))
            advance(count + 1, len(indices), "listening")
    texts = [source.texts[index] for index in indices]
    rates_by_name = {name: error_rates(texts, lines) for name, lines in transcripts.items()}
    print("| speech | WER | CER |\n| --- | --- | --- |")
    for name, rates in rates_by_name.items():
        print(f"| {name} | {rates.words.percent()} | {rates.characters.percent()} |")
    if json is not None:
        about = {"model": model, "data": source.name, "split": split, "transcriber": hear.name, "num": len(indices)}
        scores = {
            name: {"wer": rates.words.document(), "cer": rates.characters.document()}
            for name, rates in rates_by_name.items()
        }
        write_json(json, {**about, "scores": scores, "texts": texts, "heard": transcripts})


@torch.inference_mode()
def text_alone(pipe: SpeechPipeline, samples: Tensor, spoken: Spoken) -> list[Tensor]:
    """The text model's mels as sound: with the durations found in the recording, and with those it predicts."""
    model, mels = pipe.text_model, log_mel(samples[None], pipe.mel)
    frames, tokens = torch.tensor([mels.shape[2]]), token_ids(spoken.content)[None]
    real = torch.ones_like(tokens, dtype=torch.bool)
    hidden = model(tokens, real)
    aligned = model.match(hidden, real, model.normalise(mels, frames), frames)
    sounds = []
    for durations in (aligned, model.durations(hidden, real, speed=1.0)):
        means = model.to_mel(expand(hidden.float(), durations, int(durations.sum()))).transpose(1, 2)
        centre = mels.mean(dim=2, keepdim=True) if model.config.centre_mels else model.config.mel_shift
        sounds.append(pipe.codec.vocoder(means * model.config.mel_scale + centre)[0])
    return sounds


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
