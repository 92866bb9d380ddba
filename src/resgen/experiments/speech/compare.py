"""Kinds of generator on the same speech codes, for the same time, judged by the same networks (Table 3).

Apart from `compare`: of images the steps, the depth and the time of sampling are varied too, in processes of their
own; of speech only the guidance is searched, and every evaluation needs both judges in memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, cast

from resgen.checkpoints.format import read_json
from resgen.checkpoints.speech import load_sound_tokenizer, load_text_model
from resgen.data.sound.sources import available_splits
from resgen.data.splits import HELD_OUT_SPLITS, held_out_split
from resgen.errors import ConfigError, DataError, unknown
from resgen.evaluation.speech.evaluate import SpeechReport
from resgen.experiments.claim import claim
from resgen.experiments.speech.judge import DIGIT_RECOGNIZER, SPEAKER_ENCODER, SpeechJudge
from resgen.files import write_json, write_text
from resgen.kinds import SPEECH_KINDS
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.progress import Advance, no_progress
from resgen.training.speech.recipe import SpeechRecipe
from resgen.training.speech.runs import encode_speech, train_speech_generator
from resgen.training.stages import Run, with_kind

KINDS = ("resgen", "residual", "clam_tts", "valle")


@dataclass(frozen=True, kw_only=True)
class SpeechComparison:
    """What is compared.

    Attributes:
        tokenizer: folder of the sound tokenizer that all share.
        text: folder of the text model that all share.
        vocoder: folder of the vocoder; None for Griffin-Lim.
        data: recordings with the splits to evaluate on.
        kinds: names in `KINDS`, or any other kinds of generators.
        seeds: trainings of each kind.
        max_minutes: time of each training.
        splits: to evaluate on; those that begin with `test_unseen` if left out.
        task: `cross-sentence` or `continuation`.
        num_samples: utterances of each evaluation, or all that there are.
        search_samples: utterances of each try of the search for the guidance.
        guidance_scales: what is tried, on the split that validates training.
        transcriber: understands the speech.
        speaker_encoder: compares voices.
    """

    tokenizer: str
    text: str | None = None
    vocoder: str | None = None
    data: str
    kinds: tuple[str, ...] = KINDS
    seeds: tuple[int, ...] = (0,)
    max_minutes: float = 10.0
    splits: tuple[str, ...] = ()
    task: str = "cross-sentence"
    num_samples: int = 5000
    search_samples: int = 1000
    guidance_scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    transcriber: str = DIGIT_RECOGNIZER
    speaker_encoder: str = SPEAKER_ENCODER

    def __post_init__(self) -> None:
        if self.text is None:
            raise ConfigError("--text is missing: speech is compared with one text model, give its folder")
        for name in ("kinds", "seeds", "guidance_scales"):
            if not getattr(self, name):
                raise ConfigError(f"{name}=() must hold at least one")
        for kind in self.kinds:
            if kind not in SPEECH_KINDS:
                raise ConfigError(unknown("kind", kind, SPEECH_KINDS))
        for name in ("num_samples", "search_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.max_minutes > 0:
            raise ConfigError(f"max_minutes={self.max_minutes} must be above 0")


def compare_speech(
    recipe: SpeechRecipe,
    settings: SpeechComparison,
    out: Path,
    *,
    resume: bool,
    say: Callable[[str], None],
    command: str = "",
    advance: Advance = no_progress,
) -> list[Path]:
    """Train, search, evaluate and report; what is finished in `out` is not done again.

    Returns:
        The files of the report.

    Raises:
        ConfigError: `out` holds another comparison, or one and `resume` is not set; a split that is not there; words
            that the recogniser does not know. Nothing is written then.
    """
    splits = settings.splits or tuple(
        name for name in available_splits(settings.data) if name.startswith("test_unseen")
    )
    if not splits:
        raise DataError(f"'{settings.data}' has no split whose name begins with test_unseen; name one in splits")
    for name in splits:
        if name not in available_splits(settings.data):
            raise ConfigError(unknown("split", name, available_splits(settings.data)))
    judge = SpeechJudge(
        settings.data,
        task=settings.task,
        transcriber=settings.transcriber,
        speaker_encoder=settings.speaker_encoder,
    )
    for name in {*splits, _search_split(settings.data)}:
        judge.open(name)
    tokenizer, _ = load_sound_tokenizer(settings.tokenizer)
    text_model, _, _ = load_text_model(str(settings.text))
    with claim(out, recipe, asdict(settings), resume=resume):
        encode_speech(tokenizer, text_model, settings.data, out / "codes", recipe=recipe)
        for kind in settings.kinds:
            for seed in settings.seeds:
                _train(replace(recipe, tokenizer=cast(Any, tokenizer.config)), settings, kind, seed, out, say)
        measure = partial(judge.report, command=command, advance=advance)
        rows: list[dict[str, Any]] = []
        for kind in settings.kinds:
            for seed in settings.seeds:
                rows += _evaluate(settings, measure, kind, seed, splits, out, say)
        return _report(recipe, settings, rows, out, command)


def _train(
    recipe: SpeechRecipe, settings: SpeechComparison, kind: str, seed: int, out: Path, say: Callable[[str], None]
) -> None:
    folder = out / "runs" / f"{kind}-{seed}"
    if (folder / "model").is_dir():
        return
    say(f"training {kind}, seed {seed}, for {settings.max_minutes:g} minutes")
    variant = with_kind(recipe, kind, SPEECH_KINDS)
    training = replace(variant.generator_training, seed=seed)
    models = {"tokenizer": settings.tokenizer, "text": str(settings.text)}
    if settings.vocoder is not None:
        models["vocoder"] = settings.vocoder
    train_speech_generator(
        replace(variant, generator_training=training),
        Run(
            out=folder,
            data=str(out / "codes"),
            max_minutes=settings.max_minutes,
            resume=folder.is_dir(),
            models=models,
        ),
    )


def _evaluate(
    settings: SpeechComparison,
    report: Callable[..., SpeechReport],
    kind: str,
    seed: int,
    splits: Sequence[str],
    out: Path,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    pipe: SpeechPipeline | None = None

    def measure(name: str, split: str, trials: int, sampling: dict[str, Any]) -> dict[str, Any]:
        nonlocal pipe
        path = out / "evaluations" / f"{kind}-{seed}-{name}.json"
        if path.exists():
            return read_json(path)
        say(f"evaluating {kind}, seed {seed}: {name}")
        folder = out / "runs" / f"{kind}-{seed}" / "model"
        pipe = pipe or SpeechPipeline.from_pretrained(folder)
        result = report(pipe, split, model=f"{kind}-{seed}", num_trials=trials, settings=sampling)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result.document())
        return read_json(path)

    search = _search_split(settings.data)
    tries = {
        scale: measure(f"search-{scale:g}", search, settings.search_samples, {"guidance_scale": scale})
        for scale in settings.guidance_scales
    }
    best = min(tries, key=lambda scale: (_of(tries[scale], "generated")["wer"]["value"], -_sim(tries[scale])))
    rows = []
    for split in splits:
        result = measure(split, split, settings.num_samples, {"guidance_scale": best})
        scores = _of(result, "generated")
        rows.append(
            {
                "kind": kind,
                "seed": seed,
                "split": split,
                "guidance_scale": best,
                "wer": scores["wer"]["value"],
                "cer": scores["cer"]["value"],
                "sim_o": scores["sim_o"]["value"],
                "sim_r": scores["sim_r"]["value"],
                "nearest": scores["nearest"]["value"],
                "wer_recordings": _of(result, "recordings")["wer"]["value"],
                "wer_tokenizer": _of(result, "tokenizer")["wer"]["value"],
                "passes": result["passes"],
                "real_time_factor": result["real_time_factor"],
            }
        )
    return rows


def _search_split(data: str) -> str:
    """Whose recordings the guidance is searched."""
    there = available_splits(data)
    if name := held_out_split(there):
        return name
    raise DataError(
        f"'{data}' has the splits {', '.join(there)}; a comparison needs one of {', '.join(HELD_OUT_SPLITS)}"
    )


def _of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["scores"] if row["name"] == name)


def _sim(result: dict[str, Any]) -> float:
    return float(_of(result, "generated")["sim_o"]["value"])


def _report(
    recipe: SpeechRecipe, settings: SpeechComparison, rows: list[dict[str, Any]], out: Path, command: str
) -> list[Path]:
    files = [out / "report.md", out / "report.csv", out / "report.json"]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(files[0], _markdown(recipe, settings, rows, command))
    write_text(files[1], table.getvalue())
    write_json(files[2], {"comparison": asdict(settings), "rows": rows})
    return files


def _markdown(recipe: SpeechRecipe, settings: SpeechComparison, rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        f"# Comparison of kinds of generator on the same speech codes: {recipe.name}, {settings.task}",
        "",
        f"{settings.max_minutes:g} minutes of training per kind, seeds {', '.join(map(str, settings.seeds))}; "
        f"{settings.num_samples} utterances per split. The guidance scale is the one with the fewest word errors "
        f"on a held-out split. Recogniser: `{settings.transcriber}`; speaker encoder: `{settings.speaker_encoder}`.",
        "",
    ]
    for split in dict.fromkeys(row["split"] for row in rows):
        lines += [
            f"## {split}",
            "",
            "| kind | WER | CER | SIM-o | SIM-r | nearest speaker is the prompt's | passes | real-time factor |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for kind in settings.kinds:
            members = [row for row in rows if row["kind"] == kind and row["split"] == split]
            cells = [
                *(_spread(members, name, "{:.1%}") for name in ("wer", "cer")),
                *(_spread(members, name, "{:.3f}") for name in ("sim_o", "sim_r")),
                _spread(members, "nearest", "{:.1%}"),
                _spread(members, "passes", "{:.0f}"),
                _spread(members, "real_time_factor", "{:.2f}"),
            ]
            lines.append("| " + " | ".join([kind, *cells]) + " |")
        first = next(row for row in rows if row["split"] == split)
        lines += [
            "",
            f"The recogniser's own errors: {first['wer_recordings']:.1%} on the recordings, "
            f"{first['wer_tokenizer']:.1%} on the tokenizer's reconstructions.",
            "",
        ]
    lines += ["```", command, "```", ""]
    return "\n".join(lines)


def _spread(rows: Sequence[dict[str, Any]], name: str, form: str) -> str:
    values = [float(row[name]) for row in rows]
    text = form.format(mean(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"
