"""`resgen evaluate --task`: generated speech before a recogniser and a speaker encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from resgen.cli.common import report
from resgen.errors import ConfigError, unknown

DIGIT_RECOGNIZER, SPEAKER_ENCODER = "digit-recognizer", "speaker-encoder"


def run_speech(
    *,
    model: str,
    data: str,
    split: str | None,
    task: str,
    transcriber: str | None,
    speaker_encoder: str | None,
    num_trials: int | None,
    seeds: tuple[int, ...],
    settings: dict[str, Any],
    device: str | None,
    out: Path,
    as_json: bool,
    command: str,
    advance: Callable[[int, int, str], None],
) -> None:
    """Evaluate a speech pipeline and write the report; the options are those of `resgen evaluate`."""
    from resgen.data.sound.sources import available_splits
    from resgen.evaluation.speech.evaluate import speech_document, speech_markdown, write_speech_report
    from resgen.evaluation.speech.speakers import open_speaker_encoder
    from resgen.evaluation.speech.transcribers import open_transcriber
    from resgen.experiments.speech_judge import judge_speech
    from resgen.pipelines.speech.pipeline import TASKS, SpeechPipeline

    if task not in TASKS:
        raise ConfigError(unknown("task", task, TASKS))
    splits = available_splits(data)
    if split is None:
        split = next((name for name in splits if name.startswith("test_unseen")), splits[-1])
    elif split not in splits:
        raise ConfigError(unknown("split", split, splits))
    pipe = SpeechPipeline.from_pretrained(model, device=device)
    result = judge_speech(
        pipe,
        data,
        split,
        model=model,
        task=task,
        transcriber=open_transcriber(transcriber or DIGIT_RECOGNIZER),
        encoder=open_speaker_encoder(speaker_encoder or SPEAKER_ENCODER),
        num_trials=num_trials,
        seeds=seeds,
        settings=settings,
        command=command,
        advance=advance,
    )
    write_speech_report(result, out)
    markdown = out.with_suffix(".md")
    document = {"files": [out, markdown], **speech_document(result)}
    report(document, as_json=as_json, text=f"{speech_markdown(result)}\nwritten to {out} and {markdown}")
