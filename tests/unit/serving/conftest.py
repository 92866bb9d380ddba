"""Small models on disk, by the names that requests use."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from image_parts import save_model  # noqa: E402
from resgen.checkpoints.voices import Voice  # noqa: E402
from resgen.data.sound.decode import encode_sound  # noqa: E402
from resgen.pipelines.speech.pipeline import SpeechPipeline  # noqa: E402
from speech_parts import RATE, save_parts, voice  # noqa: E402


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`clothes`, images of three classes, and `voice`, speech in the letters a, b and c with the voice `ann`."""
    folder = tmp_path_factory.mktemp("served")
    clothes = save_model(folder / "clothes", class_names=("T-shirt/top", "Bag", "1"))
    ann = Voice(encode_sound(voice(0.95), RATE, ".flac"), "a cab", prepared=True)  # though quieter than others
    return {"clothes": str(clothes), "voice": str(save_parts(folder / "voice", voices={"ann": ann}))}


@pytest.fixture(scope="session")
def clothes(sources: dict[str, str]) -> dict[str, str]:
    return {"clothes": sources["clothes"]}


@pytest.fixture(scope="session")
def speaks(sources: dict[str, str]) -> dict[str, str]:
    return {"voice": sources["voice"]}


@pytest.fixture(scope="session")
def pipe(speaks: dict[str, str]) -> SpeechPipeline:
    """The pipeline that is served."""
    return SpeechPipeline.from_pretrained(speaks["voice"], device="cpu", dtype="float32")
