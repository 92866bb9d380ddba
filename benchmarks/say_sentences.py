"""How well are a model's own voices understood? Every sentence of a list is said, the voices taking turns, and heard.

    python benchmarks/say_sentences.py --model runs/voice/model --transcriber moonshine --json J

A line of the list is `kind|text`; the table, which goes to standard output, has a row for each kind and each voice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import tyro

from resgen.cli.main import guard
from resgen.config import config_to_dict, parse_overrides, replace_nested
from resgen.errors import ConfigError, DataError
from resgen.evaluation.speech.metrics import ErrorRates, error_rates
from resgen.evaluation.speech.transcribers import check_vocabulary, open_transcriber
from resgen.files import write_json
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.progress import progress_bars

SENTENCES = Path(__file__).parents[1] / "tools" / "speech_test_sentences.txt"


def main(
    model: str,
    transcriber: str,
    sentences: Path = SENTENCES,
    voices: tuple[str, ...] = (),
    num_samples: int | None = None,
    sampling: tuple[str, ...] = (),
    silence: float = 0.0,
    seed: int = 0,
    dtype: str = "auto",
    json: Path | None = None,
) -> None:
    """Say sentences in the model's voices and count the words that are misheard.

    Args:
        model: folder of a speech pipeline, or a bundled name.
        transcriber: recogniser, by name or folder.
        sentences: file of lines `kind|text`.
        voices: names; all of the model if left out, the model's choice if it has none.
        num_samples: sentences, spread evenly over the list; all if left out.
        sampling: settings in place of the model's, such as num_steps=25 temperature=0.5.
        silence: seconds put before each sentence for the recogniser.
        seed: of every sentence.
        dtype: of the generator: auto, float32, bfloat16 or int8.
        json: file for all numbers.
    """
    pipe, hear = SpeechPipeline.from_pretrained(model, dtype=dtype), open_transcriber(transcriber)
    if hear.sample_rate_hz != pipe.sample_rate_hz:
        raise ConfigError(f"the recogniser hears {hear.sample_rate_hz} Hz, the model speaks {pipe.sample_rate_hz} Hz")
    pipe.sampling = replace_nested(pipe.sampling, parse_overrides(sampling))
    names = list(voices) or sorted(pipe.voices) or ["default"]
    lines = choose(read_sentences(sentences), num_samples)
    check_vocabulary(hear, [text for _, text in lines])
    rows, seconds, made = [], 0.0, 0.0
    with progress_bars() as advance:
        for index, (kind, text) in enumerate(lines):
            voice = names[index % len(names)]
            begin = time.perf_counter()
            speech = pipe(text, voice=voice, seed=seed)
            made += time.perf_counter() - begin
            seconds += speech.duration_s
            spoken = " ".join(speech.texts)
            before = torch.zeros(round(silence * speech.sample_rate_hz))
            heard = hear(torch.cat([before, speech.audio]))
            rows.append({"kind": kind, "voice": voice, "text": spoken, "heard": heard})
            advance(index + 1, len(lines), "speaking")
    groups = {"all": rows}
    for key in ("kind", "voice"):
        groups |= {f"{key} {name}": [row for row in rows if row[key] == name] for name in unique(rows, key)}
    rates = {name: rates_of(group) for name, group in groups.items()}
    print("| sentences | WER | CER | without an error |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        words, characters = rate.words.percent(), rate.characters.percent()
        print(f"| {name} ({len(groups[name])}) | {words} | {characters} | {rate.exact:.0%} |")
    factor = made / seconds
    print(
        f"\n{seconds:.1f} s of speech in {made:.1f} s on {torch.get_num_threads()} threads: {factor:.2f} of real time"
    )
    if json is not None:
        about = {
            "model": model,
            "transcriber": hear.name,
            "seed": seed,
            "silence": silence,
            "sampling": config_to_dict(pipe.sampling),
        }
        scores = {
            name: {"wer": rate.words.document(), "cer": rate.characters.document(), "exact": rate.exact}
            for name, rate in rates.items()
        }
        write_json(json, {**about, "scores": scores, "real_time_factor": factor, "rows": rows})


def read_sentences(file: Path) -> list[tuple[str, str]]:
    """Kind and text of every line."""
    pairs = [line.partition("|")[::2] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not pairs or not all(kind and text for kind, text in pairs):
        raise DataError(f"'{file}' must hold lines of a kind, a bar and a text")
    return pairs


def choose(lines: Sequence[tuple[str, str]], num_samples: int | None) -> list[tuple[str, str]]:
    """`num_samples` of the lines, spread evenly."""
    if num_samples is not None and not 1 <= num_samples <= len(lines):
        raise ConfigError(f"num_samples={num_samples} must be 1 to {len(lines)}")
    return [lines[int(place)] for place in torch.linspace(0, len(lines) - 1, num_samples or len(lines)).long()]


def unique(rows: Sequence[Mapping[str, str]], key: str) -> list[str]:
    """Values of a column, each once, in their order."""
    return list(dict.fromkeys(row[key] for row in rows))


def rates_of(rows: Sequence[Mapping[str, str]]) -> ErrorRates:
    """Errors of what was heard."""
    return error_rates([row["text"] for row in rows], [row["heard"] for row in rows])


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
