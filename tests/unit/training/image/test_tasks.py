"""The two training stages as tasks of the trainer, on data small enough to be learned in seconds."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from processes import run_threads
from resgen.checkpoints.artefacts import fingerprint, load_pipeline, load_tokenizer
from resgen.data.codes.cache import CachePlan, CodeCache
from resgen.data.codes.encoding import write_codes
from resgen.data.pictures.sources import ImageSource
from resgen.data.pictures.store import PictureStore
from resgen.errors import ConfigError, DataError
from resgen.kinds import GeneratorLossConfig
from resgen.kinds.objective import VALIDATION_PROGRESS
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.ops.images import from_uint8
from resgen.ops.masking import num_masked, sample_visible
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig
from resgen.recipes.images import RECIPES
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training import generator_task as generator_module
from resgen.training.classes import ClassExamples, ClassProduct
from resgen.training.generator_task import GeneratorTask
from resgen.training.image import tokenizer_task as tokenizer_module
from resgen.training.image.product import save_sheet
from resgen.training.image.runs import train_generator
from resgen.training.image.tokenizer_task import TokenizerLossConfig, TokenizerTask
from resgen.training.interface import TrainerConfig
from resgen.training.stages import Run
from resgen.training.trainer import Trainer
from steps import losses

SIZE, CLASSES = 12, ("left", "right")


def store(count: int = 32) -> PictureStore:
    """Bright bars on the left (class 0) or right (class 1), with a little noise."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 60, (count, SIZE, SIZE, 1), dtype=np.uint8)
    labels = np.arange(count) % 2
    for picture, label in zip(pictures, labels, strict=True):
        picture[:, 0:4] += np.uint8(150 * (label == 0))
        picture[:, 8:12] += np.uint8(150 * (label == 1))
    source = ImageSource(
        name="bars",
        class_names=CLASSES,
        labels=labels.astype(np.int64),
        pictures=list(pictures[..., 0]),
        where=lambda index: f"image {index}",
        digest=lambda: "0" * 64,
    )
    return PictureStore(source, size=SIZE, channels=1)


def make_tokenizer(kind: str = "probabilistic", image_size: int = SIZE) -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind=kind, depth=2, codebook_size=8, momentum=0.9)
    config = ImageTokenizerConfig(
        image_size=image_size,
        channels=1,
        patch_size=2,
        width=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        code_dim=4,
        quantizer=quantizer,
    )
    return ImageTokenizer(config)


def tokenizer_task(kind: str = "probabilistic", **loss) -> TokenizerTask:
    pictures = store()
    config = TokenizerLossConfig(**({"perceptual_weight": 0.0, "adversarial_weight": 0.0, "flip": False} | loss))
    return TokenizerTask(make_tokenizer(kind), config, pictures, pictures.batch(torch.arange(8)), class_names=CLASSES)


def cache(tokenizer: ImageTokenizer, path: Path) -> CodeCache:
    pictures = store()
    with torch.no_grad():
        codes = tokenizer.encode(from_uint8(pictures.batch(torch.arange(32))))
    plan = CachePlan(
        spec=tokenizer.spec,
        num_samples=32,
        columns={"labels": "number"},
        class_names=CLASSES,
        made_from={"tokenizer": fingerprint(tokenizer), "data": "0" * 64},
        shard_samples=32,
    )
    return write_codes(path, plan, codes, {"labels": pictures.labels.tolist()})


@pytest.fixture
def generator_task(tmp_path: Path) -> GeneratorTask:
    tokenizer = make_tokenizer()
    with torch.no_grad():
        latents = tokenizer.latents(from_uint8(store().batch(torch.arange(32)))).flatten(0, 1)
        tokenizer.quantizer.codebooks.copy_(latents[torch.randperm(len(latents))[:16]].reshape(2, 8, 4))
        tokenizer.quantizer.codebooks[1] *= 0.3
    codes = cache(tokenizer, tmp_path / "codes")
    config = ResGenConfig(
        width=32, num_layers=2, num_heads=2, mlp_width=64, condition_width=32, num_components=8, num_classes=2
    )
    torch.manual_seed(0)
    return GeneratorTask(
        ResGen(config, tokenizer.spec),
        GeneratorLossConfig(validation_samples=20),
        ClassExamples(codes, 2),
        ClassExamples(codes, 2),
        quantizer=tokenizer.quantizer,
        product=ClassProduct(tokenizer, CLASSES, save_sheet),
        sampling=SamplingConfig(num_steps=3, choice_temperature=1.0, guidance_scale=1.0),
        history={"tokenizer": {"steps": 1}},
    )


def settings(**changes) -> TrainerConfig:
    values = {
        "num_steps": 40,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "ema_decay": 0.0,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "validate_every": 0,
        "sample_every": 0,
        "checkpoint_every": 0,
        "loggers": (),
    }
    return TrainerConfig(**(values | changes))


def train(task, out: Path, *, start_from_data: bool = True, **changes) -> list[dict]:
    Trainer(task, settings(**changes), out, start_from_data=start_from_data).run()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


# Tokenizer.


@pytest.mark.parametrize("kind", ["probabilistic", "ema"])
def test_the_tokenizer_learns(kind: str, tmp_path: Path) -> None:
    task = tokenizer_task(kind)
    lines = train(task, tmp_path / "run")
    losses = [line["loss"] for line in lines]
    assert len(losses) == 40 and all(math.isfinite(loss) for loss in losses)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert lines[-1]["mse"] < lines[0]["mse"] and lines[-1]["commitment"] > 0
    loaded, folder = load_tokenizer(tmp_path / "run")
    assert folder.extra["class_names"] == list(CLASSES)
    assert folder.extra["history"]["tokenizer"]["steps"] == 40
    assert torch.equal(loaded.quantizer.codebooks, task.tokenizer.quantizer.codebooks)


@pytest.mark.parametrize("kind", ["probabilistic", "ema", "rfsq"])
def test_the_decoder_alone(kind: str, tmp_path: Path) -> None:
    """Everything but the decoder is what it was, so are the codes, and the reconstruction gets better."""
    task = tokenizer_task(kind, decoder_only=True)
    before = copy.deepcopy(task.tokenizer)
    lines = train(task, tmp_path / "run", start_from_data=False)
    assert np.mean([line["mse"] for line in lines[-5:]]) < 0.9 * np.mean([line["mse"] for line in lines[:5]])
    changed = {
        name.split(".")[0]
        for name, value in task.tokenizer.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"decoder"}
    pictures = from_uint8(task.held_out)
    assert torch.equal(task.tokenizer.encode(pictures), before.encode(pictures))


def test_tokenizer_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tokenizer_task()
    metrics = task.validate(task.module)
    expected = {"val_loss"} | {f"{name}/{k}" for name in ("psnr_db", "usage", "perplexity", "variance") for k in (1, 2)}
    assert set(metrics) == expected and all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["usage/1"] <= 1 and 1 <= metrics["perplexity/1"] <= 8
    images = from_uint8(task.held_out)
    with torch.no_grad():
        output = task.tokenizer.decode(task.tokenizer.encode(images))
    assert metrics["val_loss"] == pytest.approx(float((output - images).square().mean()), rel=1e-5)
    monkeypatch.setattr(tokenizer_module, "VALIDATION_BATCH", 3)
    for shared in run_threads(2, lambda reduce: task.validate(task.module, reduce)):
        assert shared == pytest.approx(metrics, rel=1e-5)
    task.sample(tmp_path / "sample.png")
    assert (tmp_path / "sample.png").stat().st_size > 100


def test_accumulation_updates_the_codebooks_once_from_all_pictures() -> None:
    states = []
    for parts in (1, 2):
        task = tokenizer_task()
        for _ in losses(task, torch.arange(16), 0, generator(0), parts):
            pass
        task.after_step(0, generator(1))
        states.append(task.tokenizer.quantizer.codebooks.clone())
    assert torch.allclose(*states, atol=1e-5)
    assert not torch.allclose(states[0], make_tokenizer().quantizer.codebooks, atol=1e-4)


def test_flip_mirrors_half_of_the_pictures() -> None:
    task = tokenizer_task(flip=True)
    seen = []
    forward = task.tokenizer.forward
    task.tokenizer.forward = lambda images: seen.append(images) or forward(images)  # type: ignore[method-assign]
    for _ in losses(task, torch.arange(32), 0, generator(3)):
        pass
    original = from_uint8(task.train.batch(torch.arange(32)))
    same = (seen[0] == original).flatten(1).all(1)
    mirrored = (seen[0] == original.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 6 <= int(mirrored.sum()) <= 26


def adversarial_task(**loss) -> TokenizerTask:
    return tokenizer_task(adversarial_weight=0.5, **loss)


def test_losses_of_tokenizer_and_discriminator_stay_apart(tmp_path: Path) -> None:
    """Under the trainer each loss leaves gradients in its own group only."""
    task = adversarial_task()
    groups = task.optimizer_groups()
    assert list(groups) == ["tokenizer", "discriminator"]
    trainer = Trainer(task, settings(num_steps=1), tmp_path)
    trainer._prepare()
    for group, loss, _ in losses(task, torch.arange(8), 0, generator(0)):
        trainer._optimizers.zero_grad()
        trainer._backward(group, loss)
        for name, parameters in groups.items():
            given = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters]
            assert any(given) if name == group else not any(given), (group, name)
    trainer._log.close()


def test_adversarial_training(tmp_path: Path) -> None:
    task = adversarial_task(adversarial_start=5)
    before = {name: value.clone() for name, value in task.module["discriminator"].state_dict().items()}
    lines = train(task, tmp_path / "run", num_steps=10)
    assert [("discriminator" in line, "adversarial" in line) for line in lines] == [(k >= 5, k >= 5) for k in range(10)]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(line["adaptive_weight"] > 0 for line in lines[5:])
    after = task.module["discriminator"].state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    load_tokenizer(tmp_path / "run")  # the discriminator is in no published model


def test_the_adversarial_loss_moves_the_tokenizer() -> None:
    gradients = []
    for weight in (0.5, 5.0):
        task = tokenizer_task(adversarial_weight=weight)
        torch.manual_seed(1)
        for parameter in task.module["discriminator"].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        _, loss, _ = next(losses(task, torch.arange(8), 0, generator(0)))
        loss.backward(inputs=list(task.tokenizer.decoder.out.parameters()))
        gradients.append(task.tokenizer.decoder.out.weight.grad)
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_perceptual_loss_counts() -> None:
    values = {}
    for weight in (0.0, 2.0):
        task = tokenizer_task(perceptual_weight=weight)
        task.perceptual = lambda images, targets: (images - targets).abs().mean()
        _, loss, metrics = next(losses(task, torch.arange(8), 0, generator(0)))
        values[weight] = float(loss.detach()), metrics
    assert "perceptual" not in values[0.0][1]
    assert values[2.0][0] - values[0.0][0] == pytest.approx(2 * float(values[2.0][1]["perceptual"]), rel=1e-4)


def test_pictures_too_small_for_the_discriminator() -> None:
    pictures = store()
    with pytest.raises(ConfigError, match="image_size=8.*adversarial_weight=0"):
        TokenizerTask(make_tokenizer(image_size=8), TokenizerLossConfig(), pictures, pictures.batch(torch.arange(2)))


@pytest.mark.parametrize("name", ["commitment_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"])
def test_tokenizer_loss_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=-1"):
        TokenizerLossConfig(**{name: -1 if name == "adversarial_start" else -1.0})


# Generator.


def test_the_generator_learns(generator_task: GeneratorTask, tmp_path: Path) -> None:
    before = generator_task.validate(generator_task.module)["val_loss"]
    lines = train(generator_task, tmp_path / "run", num_steps=60, ema_decay=0.8)
    values = [line["loss"] for line in lines]
    assert all(math.isfinite(value) for value in values)
    assert np.mean(values[-10:]) < np.mean(values[:5]) - 0.1
    for line in lines:
        assert line["loss"] == pytest.approx(line["regression"] + line["classification"], abs=1e-4)
    pipeline = load_pipeline(tmp_path / "run")
    assert pipeline.class_names == CLASSES and pipeline.sampling == generator_task.sampling
    history = pipeline.folder.extra["history"]
    assert history["tokenizer"] == {"steps": 1} and history["generator"]["steps"] == 60
    assert history["generator"]["metrics"]["val_loss"] < before
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_generator_validation(generator_task: GeneratorTask, monkeypatch: pytest.MonkeyPatch) -> None:
    generator_task.before_start(generator(0))
    metrics = generator_task.validate(generator_task.module)
    names = {f"nll_progress/{p:.2f}" for p in VALIDATION_PROGRESS} | {"nll_visible/0", "nll_visible/1", "val_loss"}
    assert set(metrics) == names and all(math.isfinite(value) for value in metrics.values())
    progress = [metrics[f"nll_progress/{p:.2f}"] for p in VALIDATION_PROGRESS]
    assert metrics["val_loss"] == pytest.approx(np.mean(progress))
    assert generator_task.validate(generator_task.module) == metrics, "the same masks at every validation"
    monkeypatch.setattr(generator_module, "VALIDATION_BATCH", 5)
    parts = generator_task.validate(generator_task.module)
    for shared in run_threads(2, lambda reduce: generator_task.validate(generator_task.module, reduce)):
        assert shared == pytest.approx(parts, rel=1e-6)


def test_the_exact_likelihood_never_exceeds_the_bound(generator_task: GeneratorTask) -> None:
    generator_task.before_start(generator(0))
    model = generator_task.model
    codes, labels, _ = generator_task.train.batch(torch.arange(32))
    for progress in (0.0, 0.5, 0.9):
        masked = num_masked("circle", torch.full((32,), progress), model.spec.num_positions * model.spec.depth)
        visible = sample_visible(masked, model.spec.num_positions, model.spec.depth, generator(1))
        with torch.no_grad():
            hidden, true, start = generator_task.objective.masked_rows((codes, labels, None), visible)
            target = model.target(true, start)
            assert len(target) == int((visible < 2).sum())
            bound = model.head(hidden, target, start, 0.01).total
            exact = -model.head.log_prob(hidden, target, start)
        assert (exact <= bound + 1e-4).all() and (exact < bound - 1e-3).any()


def test_the_training_loss_is_the_bound_per_masked_token(generator_task: GeneratorTask) -> None:
    generator_task.before_start(generator(0))
    model, stream = generator_task.model, generator(4)
    name, loss, _ = next(losses(generator_task, torch.arange(8), 0, generator(4)))
    assert name == "generator"
    codes, labels, _ = generator_task.train.batch(torch.arange(8))
    kept = torch.rand(8, generator=stream) >= 0.1
    class_ids = torch.where(kept, labels, model.condition.null_id)
    progress = torch.rand(8, generator=stream, dtype=torch.float64)
    masked = num_masked("circle", progress, 18)
    visible = sample_visible(masked, 9, 2, stream)
    with torch.no_grad():
        hidden, true, start = generator_task.objective.masked_rows((codes, class_ids, None), visible)
        expected = model.head(hidden, model.target(true, start), start, 0.01).total.sum() / masked.sum()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_the_start_from_data_fits_fully_masked_positions(generator_task: GeneratorTask) -> None:
    random = generator_task.validate(generator_task.module)["nll_visible/0"]
    generator_task.before_start(generator(0))
    assert generator_task.validate(generator_task.module)["nll_visible/0"] < random - 0.5


def test_recomputed_blocks_keep_less_and_learn_the_same(generator_task: GeneratorTask) -> None:
    model, kept = generator_task.model, {}

    def gradients() -> list[torch.Tensor]:
        saved: set[tuple[int, int]] = set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ((_, loss, _),) = losses(generator_task, torch.arange(8), 0, generator(1))
            kept[len(kept)] = sum(size for _, size in saved)
            loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before = gradients()
    generator_task.recompute()
    after = gradients()
    assert len(before) == len(after)
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)
    assert kept[1] < 0.7 * kept[0]


def test_a_generator_task_takes_over_the_codebooks(generator_task: GeneratorTask) -> None:
    model = generator_task.model
    codes = generator_task.train.codes(torch.arange(32))
    assert model.target(codes, torch.zeros(32, 9, dtype=torch.int64)).std() == pytest.approx(1, rel=1e-3)
    expected = generator_task.product.tokenizer.quantizer.codebooks * model.latent_scale
    assert torch.allclose(model.codebooks, expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mask_schedule": "circl"}, "did you mean 'circle'"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"level_decay": 0.0}, "level_decay=0.0"),
        ({"validation_samples": 0}, "validation_samples=0"),
    ],
)
def test_generator_loss_settings(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GeneratorLossConfig(**changes)


def test_the_recipe_of_a_tokenizer_for_other_pictures_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(out=tmp_path / "run", models={"tokenizer": "fashion-mnist-small"})
    with pytest.raises(DataError, match="8x8 pixels, but 28x28 is expected"):
        train_generator(RECIPES["digits"](), run)
    said = "tokenizer 'fashion-mnist-small' was made by recipe 'fashion_mnist' for images of 28x28 with 1 channel(s); "
    assert f"{said}those of recipe 'digits' have 8x8 with 1" in capsys.readouterr().err
