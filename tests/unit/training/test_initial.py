"""Weights of saved models as a start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resgen.checkpoints.artefacts import save_pipeline
from resgen.checkpoints.tensors import module_tensors
from resgen.errors import CheckpointError
from resgen.kinds import ModelConfig, build, get_kind
from resgen.models.base import CodeModel
from resgen.models.resgen import ResGenConfig
from resgen.nn.seeding import seeded
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.training.initial import CLASSES, FEATURES, read_generator_init, start_from, start_generator_from

CONFIG = ResGenConfig(width=16, num_layers=1, num_heads=2, mlp_width=32, condition_width=16, num_classes=2)


def make_tokenizer(seed: int) -> ImageTokenizer:
    config = ImageTokenizerConfig(
        image_size=8,
        channels=1,
        width=8,
        multipliers=(1, 2),
        code_dim=4,
        quantizer=QuantizerConfig(depth=2, codebook_size=8),
    )
    with seeded("tokenizer", seed):
        tokenizer = ImageTokenizer(config)
        torch.nn.init.normal_(tokenizer.quantizer.codebooks)
    return tokenizer


def make_generator(tokenizer: ImageTokenizer, seed: int, **changes: int) -> CodeModel:
    with seeded("generator", seed):
        model = build(replace(CONFIG, **changes), tokenizer.spec)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer(0)
    generator = make_generator(tokenizer, 0)
    save_pipeline(
        tmp_path / "model", tokenizer, generator, sampling=SamplingConfig(num_steps=2), class_names=("a", "b")
    )
    return tmp_path / "model"


def start(
    generator: CodeModel, path: Path, tokenizer: ImageTokenizer, class_axes: dict[str, tuple[str, ...]] | None = None
) -> None:
    init = read_generator_init(path, generator.config, tokenizer)
    assert init is not None
    start_generator_from(generator, init, class_axes or {"": ("a", "b")})


def bfloat16(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.to(torch.bfloat16) for name, value in module_tensors(module).items()}


def test_every_weight_is_taken(saved: Path) -> None:
    tokenizer, generator = make_tokenizer(1), make_generator(make_tokenizer(1), 1)
    start_from(tokenizer, saved, "tokenizer")
    torch.testing.assert_close(bfloat16(tokenizer), bfloat16(make_tokenizer(0)), rtol=0, atol=0)
    start(generator, saved, tokenizer)
    torch.testing.assert_close(bfloat16(generator), bfloat16(make_generator(tokenizer, 0)), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_other_classes_start_anew_but_no_class_is_kept(saved: Path) -> None:
    tokenizer = make_tokenizer(0)
    generator, fresh, known = (
        make_generator(tokenizer, seed, num_classes=classes) for seed, classes in ((1, 5), (1, 5), (0, 2))
    )
    start(generator, saved, tokenizer, {"": tuple("cdefg")})
    vectors = generator.condition.embedding.weight
    torch.testing.assert_close(vectors[:5], fresh.condition.embedding.weight[:5])
    torch.testing.assert_close(vectors[5:].bfloat16(), known.condition.embedding.weight[2:].bfloat16())


def test_hidden_states_of_another_width_are_taken_in_anew(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(0)
    known, fresh, generator = (
        make_generator(tokenizer, seed, feature_width=width, feature_stride=2)
        for seed, width in ((0, 4), (1, 6), (1, 6))
    )
    save_pipeline(tmp_path / "model", tokenizer, known, sampling=SamplingConfig(num_steps=2), class_names=("a", "b"))
    start(generator, tmp_path / "model", tokenizer)
    expected = module_tensors(known) | {FEATURES: module_tensors(fresh)[FEATURES]}
    for name, value in module_tensors(generator).items():
        torch.testing.assert_close(value.bfloat16(), expected[name].bfloat16(), rtol=0, atol=0, msg=name)


def test_both_networks_of_valle_start_with_other_classes_and_hidden_states(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, kind = make_tokenizer(0), get_kind("valle")

    def make(seed: int, classes: int, width: int) -> CodeModel:
        with seeded("valle", seed):
            base = replace(CONFIG, num_classes=classes, feature_width=width, feature_stride=2)
            model = build(kind.sized(base, 1), tokenizer.spec)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
        return model

    known, fresh, generator = make(0, 2, 4), make(1, 5, 6), make(1, 5, 6)
    sampling = kind.settings(SamplingConfig(num_steps=2), tokenizer.spec)
    save_pipeline(tmp_path / "model", tokenizer, known, sampling=sampling, class_names=("a", "b"))
    start(generator, tmp_path / "model", tokenizer, {"": tuple("cdefg")})
    own, old, new = module_tensors(generator), module_tensors(known), module_tensors(fresh)
    for part in ("first", "rest"):
        classes, features = f"{part}.{CLASSES}", f"{part}.{FEATURES}"
        torch.testing.assert_close(own[classes][:5], new[classes][:5])
        torch.testing.assert_close(own[classes][5:].bfloat16(), old[classes][2:].bfloat16())
        torch.testing.assert_close(own[features].bfloat16(), new[features].bfloat16())
        for name in (name for name in own if name.startswith(part) and name not in (classes, features)):
            torch.testing.assert_close(own[name].bfloat16(), old[name].bfloat16(), msg=name)
    assert len(capsys.readouterr().err.splitlines()) == 2, "each is said once"


def test_what_does_not_fit_is_refused_and_leaves_the_module_alone(saved: Path) -> None:
    tokenizer = make_tokenizer(0)
    wider = make_generator(tokenizer, 1, mlp_width=48)
    before = {name: value.clone() for name, value in module_tensors(wider).items()}
    init = read_generator_init(saved, CONFIG, tokenizer)
    assert init is not None
    with pytest.raises(CheckpointError, match="has shape .* but the model needs"):
        start_generator_from(wider, init, {"": ("a", "b")})
    torch.testing.assert_close(module_tensors(wider), before)
    with pytest.raises(CheckpointError, match="vocoder"):
        start_from(tokenizer, saved, "vocoder")


@pytest.mark.parametrize(
    ("config", "seed", "says"),
    [
        (replace(CONFIG, head="residual"), 0, "kind 'resgen', the generator to train of kind 'residual'; give --kind"),
        (get_kind("maskgit").sized(CONFIG, 1), 0, "give --kind resgen, or --init with a model of kind 'maskgit'"),
        (replace(CONFIG, feature_width=4), 0, "generates images; --init needs a model that generates speech"),
        (CONFIG, 1, "do not belong together.*; give --tokenizer '.*/model', or another --init"),
        (replace(CONFIG, mlp_width=48, width=24), 0, "mlp_width=48; give --set generator.width=16 generator.mlp_width"),
    ],
)
def test_a_generator_that_another_cannot_start_from_is_refused_with_the_remedy(
    saved: Path, config: ModelConfig, seed: int, says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_generator_init(saved, config, make_tokenizer(seed))


def test_classes_axes_and_dropout_may_differ(saved: Path) -> None:
    config = replace(CONFIG, num_classes=7, other_axes=(3, 2), class_dropout=0.3)
    tokenizer = make_tokenizer(0)
    init, known = read_generator_init(saved, config, tokenizer), make_generator(tokenizer, 0)
    assert init is not None and init.class_axes == {"0": ("a", "b")}
    shapes = [{name: value.shape for name, value in one.items()} for one in (init.tensors, module_tensors(known))]
    assert shapes[0] == shapes[1]


def test_parts_of_another_type_or_shape_are_refused_with_the_remedy(saved: Path) -> None:
    own = make_tokenizer(0).config
    tokenizer = ImageTokenizer(replace(own, multipliers=(1, 3), quantizer=replace(own.quantizer, codebook_size=16)))
    with pytest.raises(CheckpointError, match=r"tokenizer.quantizer.codebook_size=8"):
        start_from(tokenizer, saved, "tokenizer")
    with pytest.raises(CheckpointError, match=r"--set tokenizer.multipliers='\[1,2\]'"):
        start_from(tokenizer, saved, "tokenizer")
    mels = MelTokenizer(MelTokenizerConfig(width=8, num_blocks=1, code_dim=4))
    with pytest.raises(CheckpointError, match="type image-tokenizer; --init needs one of type mel-tokenizer"):
        start_from(mels, saved, "tokenizer")


def class_rows(model: CodeModel) -> torch.Tensor:
    return model.condition.embedding.weight.detach()


def test_classes_are_known_by_their_names(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer(0)
    known = class_rows(make_generator(tokenizer, 0)).bfloat16().float()
    for names, sources in (("ab", (0, 1)), ("ba", (1, 0)), ("bca", (1, None, 0)), ("b", (1,)), ("xy", (None, None))):
        generator = make_generator(tokenizer, 1, num_classes=len(names))
        fresh = class_rows(generator).clone()
        start(generator, saved, tokenizer, {"": tuple(names)})
        for row, own, source in zip(class_rows(generator), fresh, (*sources, 2), strict=True):
            assert torch.equal(row, own if source is None else known[source]), names
        new = [name for name, source in zip(names, sources, strict=True) if source is None]
        line = f"{len(new)} of {len(names)} classes start from scratch: '{saved}' does not have {'; '.join(new)}\n"
        assert capsys.readouterr().err == (line if new else "")


def test_classes_without_names_are_known_by_number_which_is_said(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer(0)
    known = class_rows(make_generator(tokenizer, 0)).bfloat16().float()
    generator = make_generator(tokenizer, 1, num_classes=3)
    start(generator, saved, tokenizer, {"": ("0", "1", "2")})
    assert torch.equal(class_rows(generator)[[0, 1, 3]], known)
    assert capsys.readouterr().err.splitlines() == [
        f"classes start by number: '0' from 'a' of '{saved}', and so on",
        f"1 of 3 classes start from scratch: '{saved}' does not have 2",
    ]


def test_new_axes_start_from_scratch(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of one axis goes on as it was where nothing is said of the new ones; their classes differ at once."""
    tokenizer = make_tokenizer(0)
    known, generator = make_generator(tokenizer, 0), make_generator(tokenizer, 1, other_axes=(3, 1))
    fresh = class_rows(generator).clone()
    axes = {"style": ("a", "b"), "background": ("c", "d", "e"), "hat": ("f",)}
    start(generator, saved, tokenizer, axes)
    assert torch.equal(class_rows(generator)[:3], class_rows(known).to(torch.bfloat16).float())
    assert not class_rows(generator)[[3, 7]].any()
    assert torch.equal(class_rows(generator)[[4, 5, 6, 8]], fresh[[4, 5, 6, 8]])
    line = f"4 of 6 classes start from scratch: '{saved}' does not have background=c; background=d; background=e; hat=f"
    assert capsys.readouterr().err == f"{line}\n"
    ids = torch.arange(3)
    assert torch.equal(generator.condition(ids), known.condition(ids).to(torch.bfloat16).float())
    assert len(generator.condition(torch.arange(24)).unique(dim=0)) == 24


def test_axes_are_kept_by_a_model_of_the_same_and_not_by_others(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer(0)
    known = make_generator(tokenizer, 0, other_axes=(3, 1))
    axes = {"style": ("a", "b"), "background": ("c", "d", "e"), "hat": ("f",)}
    settings = {"sampling": SamplingConfig(num_steps=2), "class_names": ("a", "b"), "class_axes": axes}
    save_pipeline(tmp_path / "axes", tokenizer, known, **settings)
    old = class_rows(known).to(torch.bfloat16).float()
    same = make_generator(tokenizer, 1, other_axes=(3, 1))
    start(same, tmp_path / "axes", tokenizer, axes)
    assert torch.equal(class_rows(same), old) and not capsys.readouterr().err
    more = make_generator(tokenizer, 1, other_axes=(1, 2, 3))
    start(
        more,
        tmp_path / "axes",
        tokenizer,
        {"kind": ("b", "a"), "hat": ("f",), "mood": ("x", "y"), "background": ("d", "z", "c")},
    )
    fresh = class_rows(make_generator(tokenizer, 1, other_axes=(1, 2, 3)))
    assert torch.equal(class_rows(more)[[0, 1, 2, 3, 4, 8, 9, 11]], old[[1, 0, 2, 7, 8, 3, 5, 4]])
    assert torch.equal(class_rows(more)[[6, 7, 10]], fresh[[6, 7, 10]]) and not class_rows(more)[5].any()
    assert "3 of 8 classes start from scratch" in capsys.readouterr().err
    fewer = make_generator(tokenizer, 1, other_axes=(1,))
    start(fewer, tmp_path / "axes", tokenizer, {"style": ("a", "b"), "hat": ("f",)})
    torch.testing.assert_close(
        fewer.condition(torch.arange(6)),
        torch.stack([same.condition(torch.tensor([i]))[0] for i in (0, 1, 2, 12, 13, 14)]),
    )
