"""Whole models to folders and back."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resgen.checkpoints.artefacts import (
    check_belongs,
    fingerprint,
    load_pipeline,
    load_tokenizer,
    save_pipeline,
    save_tokenizer,
)
from resgen.checkpoints.format import sha256_file
from resgen.errors import CheckpointError, ResGenError
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

SAMPLING = SamplingConfig(num_steps=5, mask_schedule="power", top_p=0.8, temperature=0.5, guidance_scale=1.5)
NAMES = ("zero", "one", "two")


def make_tokenizer(seed: int = 0, kind: str = "probabilistic") -> ImageTokenizer:
    torch.manual_seed(seed)
    quantizer = QuantizerConfig(kind=kind, depth=3, codebook_size=10)
    config = ImageTokenizerConfig(
        image_size=8, channels=1, width=8, multipliers=(1, 2), num_res_blocks=1, code_dim=4, quantizer=quantizer
    )
    tokenizer = ImageTokenizer(config)
    with torch.no_grad():
        tokenizer.quantizer.codebooks.copy_(torch.randn(3, 10, 4))
        tokenizer.quantizer.variances.copy_(torch.rand(3))
    return tokenizer


def make_generator(tokenizer: ImageTokenizer, num_classes: int = 3) -> ResGen:
    config = ResGenConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=32, condition_width=16, num_components=5, num_classes=num_classes
    )
    generator = ResGen(config, tokenizer.spec)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    codes = torch.randint(10, (50, 16, 3))
    generator.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
    return generator


def rounded(module: torch.nn.Module) -> torch.nn.Module:
    """Parameters to values that bfloat16 holds, so that publishing loses nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    return module


@pytest.fixture
def parts() -> tuple[ImageTokenizer, ResGen]:
    tokenizer = make_tokenizer()
    return rounded(tokenizer), rounded(make_generator(tokenizer))


@pytest.fixture
def saved(parts: tuple[ImageTokenizer, ResGen], tmp_path: Path) -> Path:
    save_pipeline(tmp_path / "model", *parts, sampling=SAMPLING, class_names=NAMES, history={"generator": {"steps": 7}})
    return tmp_path / "model"


@pytest.fixture
def edit(saved: Path) -> Callable[[Callable[[dict], None]], None]:
    def run(change: Callable[[dict], None]) -> None:
        document = json.loads((saved / "config.json").read_text())
        change(document)
        (saved / "config.json").write_text(json.dumps(document))

    return run


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change tensors of a saved model and mend the hash, as an attacker or a careless person would."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    config = path.parent / "config.json"
    document = json.loads(config.read_text())
    document["components"][path.stem]["sha256"] = sha256_file(path)
    config.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", ["probabilistic", "ema"])
def test_tokenizer_round_trip(kind: str, tmp_path: Path) -> None:
    tokenizer = rounded(make_tokenizer(kind=kind))
    save_tokenizer(tmp_path / "t", tokenizer, class_names=NAMES, history={"steps": 3})
    loaded, folder = load_tokenizer(tmp_path / "t")
    assert loaded.config == tokenizer.config and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    codes = tokenizer.encode(images)
    assert torch.equal(loaded.encode(images), codes) and torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert fingerprint(loaded) == fingerprint(tokenizer) != fingerprint(make_tokenizer(1))
    assert folder.extra == {"class_names": list(NAMES), "history": {"tokenizer": {"steps": 3}}}
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in tokenizer.state_dict().items())


def test_pipeline_round_trip(saved: Path, parts: tuple[ImageTokenizer, ResGen]) -> None:
    tokenizer, generator = parts
    loaded = load_pipeline(saved)
    assert loaded.sampling == SAMPLING and loaded.class_names == NAMES
    assert loaded.generator.config == generator.config and loaded.generator.spec == generator.spec
    assert loaded.folder.extra["history"] == {"generator": {"steps": 7}}
    assert not loaded.generator.training and not loaded.tokenizer.training
    codes, visible = torch.randint(10, (2, 16, 3)), torch.randint(4, (2, 16))
    class_ids = torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(loaded.generator(codes, visible, class_ids), generator(codes, visible, class_ids))
    for name in ("codebooks", "level_std", "latent_scale"):
        assert torch.equal(getattr(loaded.generator, name), getattr(generator, name))
    assert torch.equal(loaded.tokenizer.decode(codes), tokenizer.decode(codes))


def test_a_pipeline_is_also_its_tokenizer(saved: Path, parts: tuple[ImageTokenizer, ResGen]) -> None:
    loaded, folder = load_tokenizer(saved)
    assert fingerprint(loaded) == fingerprint(parts[0]) and folder.kind == "pipeline"


def test_a_generator_of_another_tokenizer_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="other codebooks"):
        save_pipeline(
            tmp_path / "m", make_tokenizer(1), make_generator(make_tokenizer()), sampling=SAMPLING, class_names=NAMES
        )
    assert not (tmp_path / "m").exists()


def test_parameters_are_published_in_bfloat16_and_buffers_as_they_are(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    generator = make_generator(tokenizer)
    save_pipeline(tmp_path / "m", tokenizer, generator, sampling=SAMPLING, class_names=NAMES)
    for module, name in ((tokenizer, "tokenizer"), (generator, "generator")):
        tensors = load_file(tmp_path / "m" / f"{name}.safetensors")
        parameters = {key for key, _ in module.named_parameters()}
        for key, value in tensors.items():
            assert value.dtype == (torch.bfloat16 if key in parameters else torch.float32), key
    assert all(parameter.dtype == torch.float32 for parameter in generator.parameters()), "the model itself stays"
    loaded = load_pipeline(tmp_path / "m")
    for key, parameter in loaded.generator.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, generator.state_dict()[key].bfloat16().float())


def test_no_pickle_is_written(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "generator.safetensors",
        "tokenizer.safetensors",
    ]
    json.loads((saved / "config.json").read_text())


def test_a_tokenizer_of_other_codebooks_is_refused(saved: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "other", make_tokenizer(1))
    shutil.copy(tmp_path / "other" / "tokenizer.safetensors", saved)
    rewrite(saved / "tokenizer.safetensors", lambda tensors: None)
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_pipeline(saved)


def test_a_generator_for_other_codes_is_refused(saved: Path, edit) -> None:
    def change(document: dict) -> None:
        document["components"]["generator"]["config"]["spec"]["shape"] = [2, 8]

    edit(change)
    with pytest.raises(CheckpointError, match=r"shape=\(2, 8\).*shape=\(4, 4\)"):
        load_pipeline(saved)


def test_check_belongs() -> None:
    tokenizer = make_tokenizer()
    check_belongs(tokenizer, tokenizer.spec, fingerprint(tokenizer), "here")
    for wrong in ("0" * 64, None, 7):
        with pytest.raises(CheckpointError, match="here"):
            check_belongs(tokenizer, tokenizer.spec, wrong, "here")


def test_a_changed_file_is_refused(saved: Path) -> None:
    path = saved / "generator.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="generator.safetensors"):
        load_pipeline(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update({"head.affine.bias": torch.zeros(3)}), r"head\.affine\.bias.*\[3\].*\[10\]"),
        (lambda t: t.pop("input.weight"), r"input\.weight.*missing"),
        (lambda t: t.update({"surprise": torch.zeros(2)}), "surprise"),
        (lambda t: t.update({"codebooks": torch.zeros(3, 10, 4, dtype=torch.int32)}), "codebooks.*int32"),
    ],
)
def test_tensors_that_do_not_fit(saved: Path, change: Callable, named: str) -> None:
    rewrite(saved / "generator.safetensors", change)
    with pytest.raises(CheckpointError, match=named):
        load_pipeline(saved)


def put(*keys: str, value: object) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("components", "generator", "type", value="gan"), "gan"),
        (put("components", "generator", "type", value="residual"), "of type 'residual', its configuration of 'resgen'"),
        (put("components", "tokenizer", "type", value="speech"), "speech"),
        (put("components", "generator", "config", "model", value=3), "model"),
        (put("components", "generator", "config", "spec", value=None), "spec"),
        (put("components", "generator", "config", "model", "width", value="wide"), "wide"),
        (put("components", "generator", "config", "model", "depth", value=1), "depth"),
        (put("components", "tokenizer", "config", value={"image_size": "big"}), "big"),
        (put("components", "generator", "config", "codebooks_sha256", value=None), "belong"),
        (put("class_names", value=["a", "b"]), "3 classes"),
        (put("class_names", value="abc"), "abc"),
        (put("sampling", value={"top_p": 3.0}), "top_p"),
        (put("sampling", value={"nucleus": 3.0}), "nucleus"),
        (put("sampling", value=[1]), "sampling"),
        (put("sampling", value=None), "sampling"),
        (put("class_names", value=["a", "b", "\ud800"]), "ud800.*is no name of a class"),
        (put("history", value=[5]), "history=.5. must be a mapping"),
        (put("components", "extra", value={"type": "x"}), "component of a pipeline 'extra'.*allowed: tokenizer, gen"),
        (lambda document: document["components"].pop("generator"), "generator"),
        (lambda document: document["components"].pop("tokenizer"), "tokenizer"),
    ],
)
def test_hostile_configurations(saved: Path, edit, change: Callable, named: str) -> None:
    edit(change)
    with pytest.raises(ResGenError, match=named) as error:
        load_pipeline(saved)
    assert "\n" not in str(error.value)


def test_a_tokenizer_is_no_pipeline(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "t", make_tokenizer())
    with pytest.raises(CheckpointError, match="generator"):
        load_pipeline(tmp_path / "t")


def test_a_run_folder_stands_for_its_model(saved: Path) -> None:
    assert load_pipeline(saved.parent).folder.path == saved


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_weights_that_are_not_finite_are_refused(saved: Path, part: str, value: float) -> None:
    """Of a training that diverged, which would otherwise fail somewhere in sampling."""
    file = saved / f"{part}.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file)
    config = json.loads((saved / "config.json").read_text())
    config["components"][part]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{part}.safetensors: tensor '{name}' holds numbers that are not finite"):
        load_pipeline(saved)
