"""Device and floating type by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resgen import devices
from resgen.devices import cast_parameters, choose_device, choose_dtype, has_bfloat16
from resgen.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_device_without_gpu(no_gpu: None) -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=f"device={name} but this machine has 0 usable GPUs"):
            choose_device(name)


def test_device_with_gpus(two_gpus: None) -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == CPU
    assert choose_device(torch.device("cuda", 1)) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="device=cuda:2 but this machine has 2"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    "name", ["", "gpu", "CPU", "cpu:", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:\u0661", "cuda:0\n", "meta"]
)
def test_unknown_device(two_gpus: None, name: str) -> None:
    with pytest.raises(ConfigError, match="(?s)unknown device .*allowed: auto, cpu, cuda, cuda:N"):
        choose_device(name)


def test_dtype_by_name() -> None:
    assert choose_dtype("float32", CPU) == choose_dtype(torch.float32, CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == choose_dtype(torch.bfloat16, CPU) == torch.bfloat16
    assert [choose_dtype(name, CPU) for name in ("bf16", "torch.bfloat16", "fp32")] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    ]


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half", torch.float16])
def test_float16_is_answered_with_what_takes_its_place(dtype: str | torch.dtype) -> None:
    with pytest.raises(ConfigError, match="unknown dtype .*did you mean 'bfloat16'"):
        choose_dtype(dtype, CPU)


@pytest.mark.parametrize(("there", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, there: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: there)
    assert choose_dtype("auto", CPU) == expected


@pytest.mark.parametrize("name", ["float16", "bf8", "", torch.float16, torch.int64])
def test_unknown_dtype(name: str | torch.dtype) -> None:
    with pytest.raises(ConfigError, match="unknown dtype .*allowed: auto, float32, bfloat16"):
        choose_dtype(name, CPU)


@pytest.mark.parametrize("check", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_bfloat16_of_cpus(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    def broken() -> bool:
        raise RuntimeError("no such instruction")

    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert has_bfloat16(CPU) is False
    monkeypatch.setattr(torch.cpu, check, lambda: True, raising=False)
    assert has_bfloat16(CPU) is True
    monkeypatch.setattr(torch.cpu, check, broken, raising=False)
    assert has_bfloat16(CPU) is False


def test_cast_parameters_leaves_buffers() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    parameter = module[0].weight
    assert cast_parameters(module, torch.bfloat16) is module
    assert module[0].weight is parameter
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module[1].running_mean.dtype == torch.float32
    assert module[1].num_batches_tracked.dtype == torch.int64
