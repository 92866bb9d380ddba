"""The published format: round trips, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resgen.checkpoints import (
    Component,
    list_bundled,
    load_folder,
    load_state,
    load_tensors,
    locate,
    module_tensors,
    resolve_model,
    save_folder,
    sha256_file,
    sha256_tensor,
)
from resgen.checkpoints import format as checkpoint_format
from resgen.errors import CheckpointError, WriteError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def save(path, **changes):
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(4)}
    arguments = {
        "kind": "toy",
        "components": {"model": Component(type="Toy", config={"width": 3}, tensors=tensors)},
        "extra": {"class_names": ["a", "b"]},
    }
    save_folder(path, **(arguments | changes))


def edit(path, **changes):
    data = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(data | changes))


def edit_component(path, **changes):
    data = json.loads((path / "config.json").read_text())
    data["components"]["model"] |= changes
    (path / "config.json").write_text(json.dumps(data))


@st.composite
def tensor(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 50
    value = values.abs().to(dtype)
    return value.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else value


@settings(max_examples=40, deadline=None)
@given(
    tensors=st.dictionaries(st.text("abc.", min_size=1, max_size=6), tensor(), max_size=4),
    config=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    note=JSON,
)
def test_everything_saved_comes_back(tensors, config, note):
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "model"
        component = Component(type="Toy", config=config, tensors=tensors)
        save_folder(path, kind="parts", components={"a": component, "b-2": component}, extra={"note": note})
        folder = load_folder(path)
        assert (folder.kind, sorted(folder.components), folder.extra) == ("parts", ["a", "b-2"], {"note": note})
        assert folder.component("a").config == config
        loaded = load_tensors(folder.component("b-2"))
        assert loaded.keys() == tensors.keys()
        for name, value in tensors.items():
            assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
            assert sha256_tensor(loaded[name]) == sha256_tensor(value)
        assert os.listdir(parent) == ["model"]


def test_tensors_that_share_memory_are_all_saved(tmp_path):
    base = torch.arange(12.0)
    tensors = {"whole": base, "again": base, "part": base[3:5], "view": base.view(3, 4)}
    save_folder(
        tmp_path / "m", kind="k", components={"model": Component(type="T", config={}, tensors=tensors)}, extra={}
    )
    loaded = load_tensors(load_folder(tmp_path / "m").component("model"))
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value)


def test_saving_replaces_an_artefact_as_a_whole_but_nothing_else(tmp_path):
    save(tmp_path / "m")
    (tmp_path / "m" / "old.txt").write_text("x")
    save(tmp_path / "m", extra={"class_names": ["c"]})
    assert load_folder(tmp_path / "m").extra["class_names"] == ["c"]
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["m"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="home.*not empty"):
        save(tmp_path / "home")
    (tmp_path / "home" / "config.json").write_text('{"model_type": "of another library"}')
    with pytest.raises(CheckpointError, match="home.*holds no saved model"):
        save(tmp_path / "home")
    assert sorted(os.listdir(tmp_path / "home")) == ["config.json", "letter.txt"]
    with pytest.raises(CheckpointError, match="m' holds a saved toy, not a voice; choose another folder"):
        save(tmp_path / "m", kind="voice")
    assert load_folder(tmp_path / "m").kind == "toy"
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a folder"):
        save(tmp_path / "file")


def test_failure_while_saving_keeps_the_old_artefact(tmp_path, monkeypatch):
    save(tmp_path / "m")
    before = sha256_file(tmp_path / "m" / "config.json")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_format, "write_tensors", full)
    with pytest.raises(WriteError, match="/m': No space left on device") as error:
        save(tmp_path / "m", extra={"class_names": ["c"]})
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["m"] and sha256_file(tmp_path / "m" / "config.json") == before


def test_failure_of_the_last_rename_puts_the_old_artefact_back(tmp_path, monkeypatch):
    save(tmp_path / "m")
    rename = os.rename

    def fail_for_temporary(source, target):
        if source.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_temporary)
    with pytest.raises(WriteError, match="Input/output error"):
        save(tmp_path / "m", extra={"class_names": ["c"]})
    assert os.listdir(tmp_path) == ["m"] and load_folder(tmp_path / "m").extra["class_names"] == ["a", "b"]


def test_a_file_system_that_refuses_to_write_gives_one_line(tmp_path):
    code = (
        "import resource, sys, torch\n"
        "from resgen.checkpoints import Component, save_folder\n"
        "from resgen.errors import WriteError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    big = Component(type='T', config={}, tensors={'w': torch.zeros(100_000)})\n"
        f"    save_folder({str(tmp_path / 'm')!r}, kind='k', components={{'model': big}})\n"
        "except WriteError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.startswith(f"cannot write '{tmp_path / 'm'}'") and process.stdout.count("\n") == 1, (
        process.stderr
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../model", "a/b", "", ".hidden", "a.b", "x" * 65, "a\n"])
def test_component_names_are_bare(tmp_path, name):
    with pytest.raises(CheckpointError, match="component name"):
        save(tmp_path / "m", components={name: Component(type="T", config={}, tensors={})})


def test_what_cannot_be_json_is_refused(tmp_path):
    with pytest.raises(WriteError, match="not plain JSON"):
        save(tmp_path / "m", extra={"path": Path("x")})
    with pytest.raises(CheckpointError, match="reserved"):
        save(tmp_path / "m", extra={"format": "other"})
    with pytest.raises(CheckpointError, match="larger or deeper"):
        save(tmp_path / "m", extra={"text": "x" * (1 << 20)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "model.bin", ".safetensors", 3, None,
     "..\\model.safetensors", "model.safetensors\n", "m\x00.safetensors"],
)  # fmt: skip
def test_paths_in_the_configuration_are_refused(tmp_path, file):
    save(tmp_path / "inner" / "m")
    os.rename(tmp_path / "inner" / "m" / "model.safetensors", tmp_path / "inner" / "model.safetensors")
    edit_component(tmp_path / "inner" / "m", file=file)
    with pytest.raises(CheckpointError, match="bare name"):
        load_folder(tmp_path / "inner" / "m")


@pytest.mark.parametrize("beside", ["..", "../m", "/etc", "a/b", "", ".", "..\\m", "m\n", 3])
def test_a_part_is_taken_from_a_folder_beside_the_model_or_refused(tmp_path, beside):
    save(tmp_path / "one")
    save(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").unlink()
    edit_component(tmp_path / "two", **{"from": "one"})
    path = load_folder(tmp_path / "two").component("model").path
    assert path == tmp_path / "one" / "model.safetensors"
    edit_component(tmp_path / "two", **{"from": beside})
    with pytest.raises(CheckpointError, match="name of a folder beside it"):
        load_folder(tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format='other'"),
        ({"format_version": 2}, r"format version 2.*written by resgen.*reads up to version 1: upgrade resgen"),
        ({"format_version": "1"}, "format_version='1'"),
        ({"format_version": True}, "format_version=True"),
        ({"format_version": 0}, "format_version=0"),
        ({"kind": 3}, "kind=3"),
        ({"components": []}, "'components' must be a mapping"),
        ({"components": {f"c{i}": {} for i in range(65)}}, "at most 64"),
        ({"components": {"model": 1}}, "component 'model' must be a mapping"),
        ({"components": {"model": {"type": "T"}}}, "needs a 'type'"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, changes, message):
    save(tmp_path / "m")
    edit(tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load_folder(tmp_path / "m")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "JSON object, not list"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * ((1 << 20) + 1), "1048577 bytes"),
    ],
)
def test_hostile_json_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_folder(tmp_path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_folder(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.*is not a folder"):
        load_folder(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="config.json' is missing"):
        load_folder(tmp_path)
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors' is missing"):
        load_folder(tmp_path / "m")
    with pytest.raises(CheckpointError, match="without a modell; it holds: model"):
        save(tmp_path / "n")
        load_folder(tmp_path / "n").component("modell")


def test_one_flipped_bit_is_noticed_before_use(tmp_path):
    save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors' is damaged"):
        load_folder(tmp_path / "m")
    assert load_folder(tmp_path / "m", verify=False).kind == "toy"
    edit_component(tmp_path / "m", sha256="0" * 63)
    with pytest.raises(CheckpointError, match="64 hexadecimal digits"):
        load_folder(tmp_path / "m", verify=False)


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_truncated_tensors_are_refused_even_with_a_matching_hash(tmp_path, size):
    save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    edit_component(tmp_path / "m", sha256=sha256_file(file))
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as error:
        load_tensors(load_folder(tmp_path / "m").component("model"))
    assert "\n" not in str(error.value)


def test_state_must_fit_exactly():
    module = nn.Linear(3, 2)
    kept = {name: value.clone() for name, value in module_tensors(module).items()}
    good = {"weight": torch.ones(2, 3, dtype=torch.float64), "bias": torch.ones(2)}
    for wrong, message in [
        (good | {"weight": torch.ones(2, 4)}, r"here: tensor 'weight' has shape \[2, 4\] but the model needs \[2, 3\]"),
        ({"weight": good["weight"]}, r"tensor 'bias' of shape \[2\] is missing"),
        (good | {"extra": torch.ones(1)}, "tensor 'extra' .* is not part of the model"),
        (good | {"bias": torch.ones(2, dtype=torch.int64)}, "'bias' is torch.int64 but the model needs torch.float32"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load_state(module, wrong, "here")
        for name, value in module_tensors(module).items():
            assert torch.equal(value, kept[name])
    load_state(module, good, "here")
    assert module.weight.dtype == torch.float32 and torch.equal(module.weight, torch.ones(2, 3))


def test_names_carry_no_wrappers():
    inner = nn.Linear(2, 2)
    wrapped = nn.ModuleDict({"_orig_mod": nn.ModuleDict({"layer": inner})})
    assert sorted(module_tensors(wrapped)) == ["layer.bias", "layer.weight"]
    assert sorted(module_tensors(nn.ModuleDict({"module": inner}))) == ["bias", "weight"]
    load_state(wrapped, {"layer.weight": torch.zeros(2, 2), "layer.bias": torch.zeros(2)}, "x")
    assert not inner.weight.any()


def test_tensor_hash_depends_on_type_shape_and_values_only():
    value = torch.arange(6.0).reshape(2, 3)
    assert sha256_tensor(value) == sha256_tensor(value.t().contiguous().t())
    others = [value.double(), value.reshape(3, 2), value + 1, torch.zeros(0), torch.zeros(()), value.bfloat16()]
    assert len({sha256_tensor(v) for v in [value, *others]}) == 7


def test_models_are_found_by_path_run_folder_or_bundled_name(tmp_path, monkeypatch):
    save(tmp_path / "run" / "model")
    tensors = {"weight": torch.zeros(2)}
    save(tmp_path / "assets" / "digits", components={"generator": Component(type="Toy", config={}, tensors=tensors)})
    monkeypatch.setattr(locate, "ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "assets" / "judge")
    assert list_bundled() == ["digits", "judge"]
    assert resolve_model("run") == Path("run/model")
    assert resolve_model(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    assert resolve_model("digits") == tmp_path / "assets" / "digits"
    with pytest.raises(CheckpointError, match=r"'digit' \(did you mean 'digits'\?\); allowed: digits, or"):
        resolve_model("digit")
    with pytest.raises(CheckpointError, match=r"\(did you mean 'judge'\?\); allowed: digits, or"):
        resolve_model("jugde")
    with pytest.raises(CheckpointError, match="unknown model"):
        resolve_model("../assets/digit")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "train.parquet").touch()
    assert resolve_model("digits") == tmp_path / "assets" / "digits", "a folder of data is no model"
    (tmp_path / "digits" / "model.safetensors").touch()
    assert resolve_model("digits") == Path("digits"), "a damaged one is"


def test_a_run_without_a_model_is_said_to_be_unfinished(tmp_path):
    for name in ("config.yaml", "env.json"):
        (tmp_path / name).write_text("{}")
    for path in (tmp_path, tmp_path / "model"):
        with pytest.raises(CheckpointError, match=r"has not finished.*--resume") as caught:
            resolve_model(path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    save(tmp_path / "model")
    assert resolve_model(tmp_path) == resolve_model(tmp_path / "model") == tmp_path / "model"
