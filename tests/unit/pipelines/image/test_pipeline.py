"""`ImagePipeline`: classes in, images out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from resgen import kinds
from resgen.errors import CheckpointError, ConfigError
from resgen.kinds.presets import RQ_TRANSFORMER
from resgen.ops.images import to_uint8
from resgen.pipelines.image.pipeline import ImagePipeline


@pytest.fixture
def pipe(model: Path) -> ImagePipeline:
    return ImagePipeline.from_pretrained(model, device="cpu", dtype="float32")


def test_names_and_numbers_of_classes(pipe: ImagePipeline) -> None:
    assert pipe.num_classes == 3
    assert [pipe.class_id(name) for name in ("T-shirt/top", "bag", "BAG", 0, 2, "0")] == [0, 1, 1, 0, 2, 0]
    assert pipe.class_id("1") == 2, "a name goes before a number"
    assert pipe.class_id(1) == 1
    for wrong in ("bags", 3, -1, "-1", "", "1.0", "9" * 5000):
        with pytest.raises(ConfigError, match="unknown class"):
            pipe.class_id(wrong)
    with pytest.raises(ConfigError, match="did you mean 'Bag'"):
        pipe.class_id("Bags")
    with pytest.raises(ConfigError, match=r"0\.\.2"):
        pipe(["9"])


@pytest.mark.parametrize(
    ("classes", "ids"),
    [
        ("Bag", [1]),
        (2, [2]),
        (np.int64(2), [2]),
        (torch.tensor(2), [2]),
        (("bag", 0), [1, 0]),
        (range(2), [0, 1]),
        (np.array([2, 0]), [2, 0]),
        (np.array(["Bag", "1"]), [1, 2]),
        ([np.int64(1), torch.tensor(0), "bag"], [1, 0, 1]),
        (torch.tensor([2, 0]), [2, 0]),
    ],
)
def test_classes_as_callers_have_them(pipe: ImagePipeline, classes, ids: list[int]) -> None:
    result = pipe(classes, num_steps=1)
    assert result.class_ids == ids
    assert result.class_names == [("T-shirt/top", "Bag", "1")[number] for number in ids]


def test_a_fresh_seed_is_recorded(pipe: ImagePipeline) -> None:
    first, second = (pipe("Bag", seed=None) for _ in range(2))
    assert first.seed != second.seed and not torch.equal(first.codes, second.codes)
    assert torch.equal(pipe("Bag", seed=first.seed).codes, first.codes)
    assert pipe("Bag").seed == 0 and pipe("Bag", seed=7).seed == 7
    edited = pipe.edit(first.images[0], keep_levels=1, class_id="Bag", seed=None)
    again = pipe.edit(first.images[0], keep_levels=1, class_id="Bag", seed=edited.seed)
    assert torch.equal(again.codes, edited.codes)


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("num", "num_samples"),
        ("num_sample", "num_samples"),
        ("num_inference_steps", "num_steps"),
        ("cfg_scale", "guidance_scale"),
        ("generator", "seed"),
        ("num_results", "num_samples"),
        ("prompt", "class_ids"),
    ],
)
def test_names_of_other_libraries_get_a_hint(pipe: ImagePipeline, setting: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown sampling setting '{setting}' .did you mean '{meant}'.*top_p"):
        pipe("Bag", **{setting: 2})


def test_conditions_and_types_get_a_hint_of_their_own() -> None:
    pipe = ImagePipeline.from_pretrained("avatars64", device="cpu")
    told = r"hair='pink' is asked for with the class: style, background, .* such as \{'hair': 'pink'\} or 'hair=pink'$"
    with pytest.raises(ConfigError, match=told):
        pipe("lorelei", hair="pink")
    with pytest.raises(ConfigError, match=told):
        pipe.edit(np.zeros((64, 64, 3)), keep_levels=1, hair="pink")
    for name in ("bf16", "fp16", "half"):
        with pytest.raises(ConfigError, match=f"unknown argument '{name}' .did you mean 'dtype'"):
            ImagePipeline.from_pretrained("avatars64", **{name: True})
    with pytest.raises(ConfigError, match="unknown argument 'prompt'; allowed: device, dtype"):
        ImagePipeline.from_pretrained("avatars64", prompt="x")


def test_settings_name_those_of_every_kind() -> None:
    every = {field.name for kind in kinds.KINDS.values() for field in fields(kind.sampling)}
    assert set(kinds.Settings.__annotations__) == every


def test_another_device_and_type(model: Path) -> None:
    pipe = ImagePipeline.from_pretrained(model, device="cpu", dtype=None)
    assert pipe.dtype == ImagePipeline.from_pretrained(model, device="cpu").dtype
    pipe = ImagePipeline.from_pretrained(model, device=torch.device("cpu"), dtype="bf16")
    assert pipe.dtype == torch.bfloat16 and pipe.to("cpu") is pipe and pipe.dtype == torch.bfloat16
    pipe.to("cpu", "float32")
    assert {one.dtype for part in (pipe.generator, pipe.tokenizer) for one in part.parameters()} == {torch.float32}
    expected = ImagePipeline.from_pretrained(model, device="cpu", dtype="float32")(seed=3).codes
    assert torch.equal(pipe(seed=3).codes, expected)
    assert next(pipe.to(torch.bfloat16).generator.parameters()).dtype == torch.bfloat16
    for wrong in ({"device": "gpu"}, {"dtype": "float16"}):
        with pytest.raises(ConfigError, match="unknown d"):
            pipe.to(**wrong)
    assert pipe.dtype == torch.bfloat16 and pipe.device.type == "cpu", "a refusal changes nothing"


def test_one_line_about_a_pipeline(pipe: ImagePipeline, make_pipeline, tmp_path: Path) -> None:
    line = "ImagePipeline('model': kind resgen, 8x8 grey, 3 classes (T-shirt/top, Bag, 1), 0.0M parameters, "
    assert repr(pipe) == line + "float32 on cpu)"
    plain = ImagePipeline.from_pretrained(make_pipeline(tmp_path / "m", num_classes=0, channels=3), device="cpu")
    assert "'m': kind resgen, 8x8 RGB, no classes, 0.0M" in repr(plain)


def test_output(pipe: ImagePipeline) -> None:
    result = pipe(["bag", 0], num_samples=3, seed=1)
    assert result.class_ids == [1, 1, 1, 0, 0, 0]
    assert result.codes.shape == (6, 16, 3) and result.codes.dtype == torch.int64
    assert len(result.images) == 6 and {(image.size, image.mode) for image in result.images} == {((8, 8), "L")}
    expected = to_uint8(pipe.tokenizer.decode(result.codes))
    for image, pixels in zip(result.images, expected, strict=True):
        assert np.array_equal(np.asarray(image), pixels[0].numpy())
    assert [record.step for record in result.steps] == [1, 2, 3, 4]
    assert result.steps[0].guidance_scale == 0 and result.steps[-1].guidance_scale == 1
    assert pipe().class_ids == [0, 1, 2]
    prefix = pipe.decode(result.codes, 1)
    assert len(prefix) == 6 and np.asarray(prefix[0]).tolist() != np.asarray(result.images[0]).tolist()


@pytest.mark.parametrize("unmasking", ["confidence", "random"])
def test_batches_change_nothing(pipe: ImagePipeline, unmasking: str) -> None:
    whole = pipe([0, 1, 2], num_samples=3, seed=5, unmasking=unmasking)
    for size in (1, 3, 8):
        other = pipe([0, 1, 2], num_samples=3, seed=5, batch_size=size, unmasking=unmasking)
        assert torch.equal(other.codes, whole.codes)
        assert [np.asarray(i).tolist() for i in other.images] == [np.asarray(i).tolist() for i in whole.images]
        assert len(other.steps) == 4 * -(-9 // size)
    assert not torch.equal(pipe([0, 1, 2], num_samples=3, seed=6).codes, whole.codes)


def test_a_picture_keeps_its_stream(pipe: ImagePipeline) -> None:
    """Image k depends on (seed, k) and its class, not on how many follow or on the other classes."""
    first = pipe([0, 1, 2], seed=2).codes
    assert torch.equal(pipe([0, 1], seed=2).codes, first[:2])
    assert torch.equal(pipe([2, 1, 0], seed=2).codes[1], first[1])
    assert not torch.equal(pipe([2, 1, 0], seed=2).codes[0], first[0])


def test_settings_are_the_model_s_unless_given(pipe: ImagePipeline) -> None:
    assert len(pipe().steps) == 4
    assert len(pipe(num_steps=2).steps) == 2
    plain = pipe(guidance_scale=0.0)
    assert [record.guidance_scale for record in plain.steps] == [0.0] * 4
    base = pipe(num_samples=4).codes
    for changes in (
        {"guidance_scale": 4.0},
        {"top_p": 0.1},
        {"temperature": 0.2},
        {"choice_temperature": 30.0},
        {"mask_schedule": "linear"},
        {"unmasking": "random"},
    ):
        assert not torch.equal(pipe(num_samples=4, **changes).codes, base), changes
    assert torch.equal(pipe(num_samples=4).codes, base)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"mask_schedule": "none"}, "none"),
        ({"unmasking": "none"}, "none"),
        ({"class_ids": []}, "class_ids"),
    ],
)
def test_settings_out_of_range(pipe: ImagePipeline, changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        pipe(**changes)


def test_given_codes_are_kept(pipe: ImagePipeline) -> None:
    codes = torch.randint(10, (3, 16, 3), generator=torch.Generator().manual_seed(0))
    visible = torch.randint(4, (3, 16), generator=torch.Generator().manual_seed(1))
    result = pipe(codes=codes, visible=visible, batch_size=2)
    kept = torch.arange(3) < visible[..., None]
    assert torch.equal(result.codes[kept], codes[kept]) and not torch.equal(result.codes, codes)
    everything = pipe(codes=codes, visible=torch.full((3, 16), 3))
    assert torch.equal(everything.codes, codes) and everything.steps == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"visible": None}, "together"),
        ({"codes": None}, "together"),
        ({"codes": torch.zeros(3, 16, 2, dtype=torch.int64)}, r"\(3, 16, 3\)"),
        ({"codes": torch.full((3, 16, 3), 10)}, r"0\.\.9"),
        ({"codes": torch.full((3, 16, 3), -1)}, r"0\.\.9"),
        ({"visible": torch.full((3, 16), 4)}, r"0\.\.3"),
        ({"visible": torch.full((3, 16), -1)}, r"0\.\.3"),
        ({"class_ids": [0]}, r"\(1, 16, 3\)"),
    ],
)
def test_given_codes_that_do_not_fit(pipe: ImagePipeline, changes: dict, named: str) -> None:
    given = {"codes": torch.zeros(3, 16, 3, dtype=torch.int64), "visible": torch.zeros(3, 16, dtype=torch.int64)}
    with pytest.raises(ConfigError, match=named):
        pipe(**(given | changes))


def test_callback(pipe: ImagePipeline) -> None:
    seen = []
    result = pipe(batch_size=2, callback=lambda record, codes, visible: seen.append((record, codes, visible)))
    assert [record for record, *_ in seen] == result.steps
    assert torch.equal(torch.cat([seen[3][1], seen[7][1]]), result.codes)
    assert (seen[-1][2] == 3).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_load(model: Path, tmp_path: Path, dtype: str) -> None:
    pipe = ImagePipeline.from_pretrained(model, device="cpu", dtype=dtype)
    pipe.save_pretrained(tmp_path / "copy")
    for name in ("tokenizer.safetensors", "generator.safetensors", "config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (model / name).read_bytes()
    other = ImagePipeline.from_pretrained(tmp_path / "copy", device="cpu", dtype=dtype)
    assert other.class_names == pipe.class_names and other.sampling == pipe.sampling
    assert torch.equal(other(seed=3).codes, pipe(seed=3).codes)


def test_bfloat16_networks(model: Path) -> None:
    pipe = ImagePipeline.from_pretrained(model, device="cpu", dtype="bfloat16")
    assert next(pipe.generator.parameters()).dtype == torch.bfloat16
    assert pipe.generator.codebooks.dtype == pipe.tokenizer.quantizer.codebooks.dtype == torch.float32
    result = pipe([0, 1], num_samples=2)
    assert len(result.images) == 4
    images = torch.rand(2, 1, 8, 8)
    assert pipe.tokenizer.encode(images).shape == (2, 16, 3)


def test_a_model_without_classes(make_pipeline, tmp_path: Path) -> None:
    path = make_pipeline(tmp_path / "m", num_classes=0, channels=3)
    pipe = ImagePipeline.from_pretrained(path, device="cpu", dtype="float32")
    result = pipe(num_samples=3)
    assert len(result.images) == 3 and result.images[0].mode == "RGB"
    assert [record.guidance_scale for record in result.steps] == [0.0] * 4, "both passes would be the same"
    with pytest.raises(ConfigError, match="no classes"):
        pipe([0])


def test_classes_without_names(make_pipeline, tmp_path: Path) -> None:
    pipe = ImagePipeline.from_pretrained(make_pipeline(tmp_path / "m"), device="cpu")
    assert pipe.class_id("2") == 2 and len(pipe().images) == 3


def test_what_cannot_be_loaded(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        ImagePipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="device"):
        ImagePipeline.from_pretrained(model, device="gpu")
    with pytest.raises(ConfigError, match="dtype"):
        ImagePipeline.from_pretrained(model, dtype="float16")
    with pytest.raises(ConfigError, match="unknown argument 'torch_dtype' .did you mean 'dtype'.*device, dtype"):
        ImagePipeline.from_pretrained(model, torch_dtype=torch.float32)


COMPILED = """
import sys, torch
from resgen.pipelines.image.pipeline import ImagePipeline
pipe = ImagePipeline.from_pretrained(sys.argv[1], device="cpu", dtype="float32")
settings = {"num_samples": 2, "seed": 3, "guidance_scale": 2.0}
plain = pipe(["bag", 0, 2], **settings)
pipe.compile()
compiling = []
pipe.generator.transformer.blocks[0].register_forward_pre_hook(
    lambda *_: compiling.append(torch.compiler.is_compiling())
)
result = pipe(["bag", 0, 2], **settings)
assert torch.equal(result.codes, plain.codes)
assert [image.tobytes() for image in result.images] == [image.tobytes() for image in plain.images]
assert compiling and all(compiling), "the transformer ran outside the compiler"
pipe.save_pretrained(sys.argv[2])
again = ImagePipeline.from_pretrained(sys.argv[2], device="cpu", dtype="float32")
assert torch.equal(again(["bag", 0, 2], **settings).codes, plain.codes)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_pipelines_draw_the_same_codes(model: Path, tmp_path: Path) -> None:
    """In a process of its own: the suite's checks of types cannot be compiled."""
    run = [sys.executable, "-c", COMPILED, str(model), str(tmp_path / "saved")]
    process = subprocess.run(run, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_kinds_with_a_cache_are_not_compiled(pipe: ImagePipeline) -> None:
    with torch.device("meta"):
        pipe.generator = kinds.build(RQ_TRANSFORMER["tiny"], pipe.generator.spec)
    with pytest.raises(ConfigError, match="rq_transformer cannot be compiled"):
        pipe.compile()
