"""Does an edited recording say what it was asked to? One word of each recording is replaced by another and a recogniser
hears the result.

    python benchmarks/speech_edit.py --model spoken-digits-small --data speech/digits --splits test_seen test_unseen \
        --json J --picture P.png

Beside what is heard in the edited recordings stands what is heard in the recordings themselves and in the tokenizer's
copies of them, so that a weak recogniser is not mistaken for a weak edit. The table goes to standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from resgen.cli.main import guard
from resgen.data import save_picture
from resgen.data.sound.sources import open_speech
from resgen.data.sound.spectrogram import HIGHEST, spectrogram_sheet
from resgen.errors import ConfigError, DataError
from resgen.evaluation.image.metrics import wilson_interval
from resgen.evaluation.speech.metrics import normalise_transcript
from resgen.evaluation.speech.recognizer import DIGITS
from resgen.evaluation.speech.transcribers import Transcriber, open_transcriber
from resgen.files import write_json
from resgen.ops.mel import log_mel
from resgen.ops.random import generator
from resgen.pipelines.speech.edit import SpeechEdit, SpeechEditPlan
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.pipelines.speech.reconstruct import spectrogram_of

COLUMNS = ("recording", "copy", "edited", "blended")


def main(
    model: str,
    data: str,
    splits: tuple[str, ...],
    transcriber: str = "digit-recognizer",
    num_samples: int = 40,
    jitter: float = 0.0,
    vocabulary: tuple[str, ...] = DIGITS,
    seed: int = 0,
    json: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Edit recordings, spread evenly over each split, and listen.

    Args:
        model: folder of a speech pipeline, or a bundled name.
        data: recordings with texts.
        splits: of the data.
        transcriber: recogniser, by name or folder.
        num_samples: edits per split.
        jitter: seconds by which the two ends of the stretch are moved at random, at most, from where the alignment
            finds the word.
        vocabulary: the words; each is replaced by another.
        seed: of words and codes.
        json: file for all numbers.
        picture: file for spectrograms before and after, of the last edit of the first split.
    """
    if num_samples < 1 or not jitter >= 0:
        raise ConfigError(f"num_samples={num_samples} must be at least 1, jitter={jitter} at least 0")
    pipe, hear = SpeechPipeline.from_pretrained(model, dtype="float32"), open_transcriber(transcriber)
    if hear.sample_rate_hz != pipe.sample_rate_hz:
        raise ConfigError(f"the recogniser hears {hear.sample_rate_hz} Hz, the model speaks {pipe.sample_rate_hz} Hz")
    results: dict[str, Any] = {}
    for number, split in enumerate(splits):
        rows, last = edits(
            pipe, hear, data, split, num_samples=num_samples, jitter=jitter, vocabulary=vocabulary, seed=seed
        )
        results[split] = {"summary": summary(rows), "edits": rows}
        if picture is not None and number == 0:
            save_picture(sheet(pipe, last), picture)
    print(table(results))
    if json is not None:
        about = {"model": model, "transcriber": hear.name, "transcriber_sha256": hear.sha256}
        write_json(json, {**about, "num": num_samples, "jitter_s": jitter, "seed": seed, "splits": results})


def edits(
    pipe: SpeechPipeline,
    hear: Transcriber,
    data: str,
    split: str,
    *,
    num_samples: int,
    jitter: float,
    vocabulary: tuple[str, ...],
    seed: int,
) -> tuple[list[dict[str, Any]], SpeechEdit]:
    """What was heard, one row per edit, and the last result."""
    source, rate = open_speech(data, split), pipe.sample_rate_hz
    stream, rows = generator("speech edits", seed), []
    for index in torch.linspace(0, len(source) - 1, min(num_samples, len(source))).long().tolist():
        samples, transcript = source.read(index, rate), normalise_transcript(source.texts[index])
        words = pipe.words(samples, transcript)
        place, other = (int(torch.randint(count, (), generator=stream)) for count in (len(words), len(vocabulary) - 1))
        new = [word for word in vocabulary if word != words[place].text][other]
        shifts = (jitter * (2 * torch.rand(2, generator=stream) - 1)).tolist()
        begin_s = max(0.0, words[place].begin_s + shifts[0])
        end_s = min(len(samples) / rate, words[place].end_s + shifts[1])
        begin = time.perf_counter()
        (result,) = pipe.edit(samples, input_text=transcript, text=new, begin_s=begin_s, end_s=end_s, seed=seed + index)
        seconds = time.perf_counter() - begin
        plan, expected = result.plan, [word.text for word in words]
        expected[place] = new
        if plan.text != " ".join(expected):
            raise DataError(
                f"'{source.ids[index]}': {plan.text!r} was made of {transcript!r}, not {' '.join(expected)!r}"
            )
        blended = plan.audio(pipe.codec.decode(result.codes[None])[0].float(), blend=True)
        check_given(result, blended)
        copied = pipe.codec.decode(plan.codes[None])[0].float()
        transcripts = [normalise_transcript(hear(sound)) for sound in (samples, copied, result.audio, blended)]
        rows.append(
            {
                "id": source.ids[index],
                "speaker": source.speakers[index],
                "text": transcript,
                "new_text": plan.text,
                "place": place,
                "stretch_s": plan.cut_s,
                "heard": dict(zip(COLUMNS, transcripts, strict=True)),
                "seconds": seconds,
            }
        )
    return rows, result


def check_given(result: SpeechEdit, blended: Float[Tensor, " A"]) -> None:
    """Compare what was given with what came back.

    Raises:
        RuntimeError: a code or a sample outside the stretch has changed.
    """
    plan = result.plan
    rest = torch.cat([result.codes[: plan.begin], result.codes[plan.begin + plan.num_new :]])
    (begin, end), length = plan.cut, len(plan.recording)
    same = torch.equal(blended[:begin], plan.recording[:begin])
    if end < length:
        same &= torch.equal(blended[end - length :], plan.recording[end:])
    if not same or not torch.equal(rest, torch.cat([plan.codes[: plan.begin], plan.codes[plan.end :]]).cpu()):
        raise RuntimeError("something outside the stretch has changed")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often exactly the right words were heard, and how often the new word stood in its place."""
    right = {
        name: [row["heard"][name] == row["text" if name in ("recording", "copy") else "new_text"] for row in rows]
        for name in COLUMNS
    }
    known = right["recording"]
    return {
        "num": len(rows),
        **{name: sum(values) for name, values in right.items()},
        "recording_heard_right": sum(known),
        **{f"{name}_of_those": sum(a and b for a, b in zip(right[name], known, strict=True)) for name in COLUMNS[2:]},
        "new_word_in_place": sum(_stands_in_place(row) for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
    }


def table(results: dict[str, Any]) -> str:
    """Counts per split in Markdown, with Wilson's intervals."""
    lines = [
        "| split | edits | recording | tokenizer's copy | edited | edited, `--blend` | edited, where the recording is "
        "heard right | new word heard in its place |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split, result in results.items():
        counts, num_samples = result["summary"], result["summary"]["num"]
        known = counts["recording_heard_right"]
        cells = [_share(counts[name], num_samples) for name in COLUMNS]
        cells += [_share(counts["edited_of_those"], known), _share(counts["new_word_in_place"], num_samples)]
        lines.append(f"| `{split}` | {num_samples} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sheet(pipe: SpeechPipeline, result: SpeechEdit) -> Any:
    """Spectrograms before and after, with light lines at both ends of the stretch."""
    plan, mel = result.plan, spectrogram_of(pipe.codec)
    blended = plan.audio(pipe.codec.decode(result.codes[None])[0].float(), blend=True)
    begin, end = plan.cut
    ends = begin + plan.num_new * plan.samples_per_position
    rows = []
    for sound, marks in ((plan.recording, (begin, end)), (result.audio, (begin, ends)), (blended, (begin, ends))):
        picture = log_mel(_whole(sound, mel.hop_size)[None], mel)[0]
        for mark in marks:
            picture[:, min(mark // mel.hop_size, picture.shape[1] - 1)] = HIGHEST
        rows.append([picture])
    labels = [_old_text(plan), plan.text, f"{plan.text}, blended"]
    return spectrogram_sheet(rows, row_labels=labels, scale=2)


def _old_text(plan: SpeechEditPlan) -> str:
    return " ".join(word.text for word in plan.words)


def _whole(samples: Float[Tensor, " S"], unit: int) -> Float[Tensor, " R"]:
    return torch.nn.functional.pad(samples, (0, -len(samples) % unit))


def _stands_in_place(row: dict[str, Any]) -> bool:
    actual, expected = row["heard"]["edited"].split(), row["new_text"].split()
    return len(actual) == len(expected) and actual[row["place"]] == expected[row["place"]]


def _share(count: int, total: int) -> str:
    if not total:
        return "-"
    low, high = wilson_interval(count, total)
    return f"{count}/{total}, {100 * count / total:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
