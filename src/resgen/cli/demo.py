"""`resgen demo`: an image grid of all classes from a bundled model, and two spoken texts from another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resgen.cli.common import (
    Json,
    bundled_models,
    check_out_file,
    count_passes,
    message,
    progress_bar,
    report,
)
from resgen.errors import CheckpointError
from resgen.extras import MissingExtraError

if TYPE_CHECKING:
    from resgen.checkpoints.format import Folder

DEFAULT = "avatars"  # the first bundled pipeline whose name begins so
PER_CLASS = 8
TEXTS = ("three seven one", "nine zero two five")  # of a model that brings none of its own
NUM_SOUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Write a grid of generated images, one row per class, and two spoken texts, using the bundled models.

    For example:

        resgen demo --out out
    """

    out: Path = Path("out")
    """Folder for demo.png, demo_1.wav, demo_2.wav and their spectrograms, demo_speech.png."""
    seed: int = 0
    """Image k of the grid depends only on (seed, k); text k uses seed + k."""
    as_json: Json = False

    def run(self) -> None:
        path = self.out / "demo.png"
        check_out_file(path)
        models = bundled_models()
        document, text = self.show_pictures(default_model(models), path)
        spoken = next((model["name"] for model in models if model["kind"] == "speech-pipeline"), None)
        if spoken is not None:
            try:
                document["speech"], more = self.speak(spoken)
                text += more
            except MissingExtraError as error:
                message(f"there is no speech in this demo: {error}")
        report(document, as_json=self.as_json, text=text)

    def show_pictures(self, name: str, path: Path) -> tuple[dict[str, Any], str]:
        """The grid of a bundled pipeline of images; what there is to report, as data and as text."""
        from resgen.pipelines.image.pipeline import ImagePipeline

        message(f"generating {PER_CLASS} images of every class with '{name}'")
        pipe = ImagePipeline.from_pretrained(name)
        class_ids = [c for c in range(len(pipe.class_names)) for _ in range(PER_CLASS)]
        begin = time.perf_counter()
        with progress_bar("sampling") as step_done:
            result = pipe(class_ids=class_ids, seed=self.seed, batch_size=len(class_ids), callback=step_done)
        seconds = time.perf_counter() - begin
        result.save(path, scale=2)
        document = {
            "file": path,
            "model": name,
            "pictures": len(result.images),
            "seconds": seconds,
            "steps": len({step.step for step in result.steps}),
            "passes": count_passes(result.steps),
            "depth": result.codes.shape[-1],
        }
        text = (
            "{pictures} images in {seconds:.1f} s: {steps} steps, {passes} network passes, depth {depth}"
            "\nthe grid is in {file}"
        )
        return document, text.format(**document)

    def speak(self, name: str) -> tuple[dict[str, Any], str]:
        """Two texts in two voices: those of recordings that come with the model, else the model's own choice."""
        from resgen.data.pictures.grid import save_picture
        from resgen.data.sound.decode import write_sound
        from resgen.data.sound.spectrogram import spectrogram_sheet
        from resgen.ops.mel import log_mel
        from resgen.pipelines.speech.pipeline import SpeechPipeline

        pipe = SpeechPipeline.from_pretrained(name)
        texts, voices = demo_texts(pipe.parts.folder), list(pipe.voices)
        message(f"speaking {NUM_SOUNDS} texts with '{name}'{voices_of(voices[:NUM_SOUNDS])}")
        files, mels, labels, duration, seconds = [], [], [], 0.0, 0.0
        for number in range(NUM_SOUNDS):
            text = texts[number % len(texts)]
            voice = voices[number] if number < len(voices) else None
            named: dict[str, Any] = {} if voice is None else {"voice": voice}
            begin = time.perf_counter()
            with progress_bar("speaking") as step_done:
                result = pipe(text, seed=self.seed + number, callback=step_done, **named)
            seconds += time.perf_counter() - begin
            duration += result.duration_s
            files.append(self.out / f"demo_{number + 1}.wav")
            write_sound(result.audio, result.sample_rate_hz, files[-1])
            mels.append([log_mel(result.audio[None], pipe.mel)[0]])
            labels.append(f"{text} ({f'seed {self.seed + number}' if voice is None else f'voice {voice}'})")
        picture = save_picture(spectrogram_sheet(mels, row_labels=labels), self.out / "demo_speech.png")
        document = {
            "model": name,
            "files": files,
            "picture": picture,
            "spoken": labels,
            "seconds": seconds,
            "duration_s": duration,
            "real_time_factor": seconds / duration,
        }
        more = (
            f"\n{duration:.1f} s of speech in {seconds:.1f} s (real-time factor {seconds / duration:.2f}): "
            f"{'; '.join(labels)}\nthe sounds are in {', '.join(map(str, files))}, their spectrograms in {picture}"
        )
        return document, more


def default_model(bundled: Sequence[dict[str, Any]]) -> str:
    """The bundled pipeline that the demo shows.

    Raises:
        CheckpointError: no pipeline is bundled with this installation.
    """
    names: list[str] = [model["name"] for model in bundled if model["kind"] == "pipeline"]
    if not names:
        raise CheckpointError("no model is bundled with this installation; install it again, from a complete clone")
    return next((name for name in names if name.startswith(DEFAULT)), names[0])


def voices_of(names: Sequence[str]) -> str:
    """What the named voices of a model are, for the message of the demo; nothing for a model without any."""
    if not names:
        return ""
    which = " and ".join(f"'{name}'" for name in names)
    return f", in the voices {which}: short recordings beside the model, which `--voice NAME` chooses"


def demo_texts(folder: Folder) -> list[str]:
    """What a speech pipeline says in the demo: `demo_texts` of its `config.json`, a list of text.

    Raises:
        CheckpointError: it is anything else, or empty.
    """
    texts = folder.extra.get("demo_texts", list(TEXTS))
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"'{folder.path}': demo_texts={texts!r} must be a list of texts")
    return texts
