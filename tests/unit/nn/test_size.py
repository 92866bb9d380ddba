"""Networks that are too large are refused before they take memory or time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resgen.errors import ConfigError
from resgen.modalities import load_recipe
from resgen.nn.size import build_within_memory, outlining
from resgen.tokenizers.image import ImageTokenizer

CONFIG = load_recipe("digits")[1].tokenizer


@pytest.mark.parametrize(
    "changes",
    [{"width": 10**9}, {"num_res_blocks": 10**9}, {"multipliers": (10**9,)}, {"code_dim": 10**15}, {"width": 1 << 60}],
)
def test_sizes_that_no_machine_holds(changes: dict) -> None:
    config, began = replace(CONFIG, **changes), time.monotonic()
    with pytest.raises(ConfigError, match="the tokenizer (is larger than it may be|cannot be built)"):
        build_within_memory(lambda: ImageTokenizer(config), "the tokenizer")
    assert time.monotonic() - began < 10


def test_an_outline_draws_no_random_numbers_and_counts_what_is_there() -> None:
    weights = []
    for make in (lambda: ImageTokenizer(CONFIG), lambda: build_within_memory(lambda: ImageTokenizer(CONFIG), "it")):
        torch.manual_seed(0)
        weights.append([parameter.detach().clone() for parameter in make().parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    count = sum(parameter.numel() for parameter in weights[0])
    with pytest.raises(ConfigError, match="larger than it may be"), outlining("it", values=count):
        ImageTokenizer(replace(CONFIG, width=2048))
    with outlining("it", values=count):
        assert next(ImageTokenizer(CONFIG).parameters()).is_meta


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.randn(2, 3, generator=torch.Generator()),
        lambda: torch.randn((2, 3), dtype=torch.float64),
        lambda: torch.arange(5),
        lambda: torch.arange(2, 9),
        lambda: torch.arange(9, 2, -2),
        lambda: torch.arange(5, 5),
        lambda: torch.arange(4, dtype=torch.float64),
        lambda: torch.arange(2.5),
        lambda: torch.hann_window(6),
        lambda: torch.hann_window(6, dtype=torch.float64),
        lambda: torch.outer(torch.empty(2), torch.empty(3, dtype=torch.float64)),
        lambda: torch.cat([torch.empty(2, 3), torch.empty(2, 4)], dim=1),
        lambda: torch.cat([torch.empty(2, 3), torch.empty(1, 3)]),
        lambda: torch.cat([torch.empty(2), torch.ones(3, dtype=torch.int64)]),
        lambda: F.normalize(torch.empty(2, 3), dim=-1),
        lambda: nn.init.normal_(torch.empty(2, 3), std=0.02),
        lambda: torch.empty(2, 3, dtype=torch.bfloat16).normal_(std=2.0),
        lambda: 3 - torch.arange(4),
        lambda: 0.5 - torch.arange(4),
        lambda: torch.arange(4) / 3,
        lambda: torch.arange(4).div(3, rounding_mode="floor"),
        lambda: torch.ones(2, dtype=torch.bfloat16) / torch.ones(2, 1),
        lambda: 10000.0 ** -(torch.arange(4).double() / 4),
        lambda: 2 ** torch.arange(3),
        lambda: torch.empty(2, 1) * torch.empty(3),
        lambda: torch.empty(2, 1).add(torch.empty(3), alpha=2),
        lambda: torch.arange(3).sin(),
        lambda: torch.empty(2, dtype=torch.float64).cos(),
        lambda: torch.empty(3).square(),
        lambda: torch.empty(3) - torch.ones((), dtype=torch.float64),
    ],
)
def test_an_outline_has_the_shapes_and_types_that_are_computed(compute: Callable[[], torch.Tensor]) -> None:
    with outlining("it"):
        outline = compute()
    real = compute()
    assert outline.is_meta and (outline.shape, outline.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.hann_window(8, device="cpu"),
        lambda: torch.arange(2, 9, device="cpu"),
        lambda: torch.randn(3, generator=torch.Generator().manual_seed(0), device="cpu"),
    ],
)
def test_numbers_that_are_asked_for_by_device_are_computed(compute: Callable[[], torch.Tensor]) -> None:
    """A window that is made once and kept must not be what its memory happened to hold."""
    with outlining("it"):
        outlined = compute()
    assert torch.equal(outlined, compute())


@pytest.mark.parametrize("compute", [lambda: torch.empty(2) * torch.empty(3), lambda: torch.randn(-1)])
def test_what_cannot_be_computed_is_an_error_in_an_outline_too(compute: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="it cannot be built as it is configured"), outlining("it"):
        compute()


def test_no_bundled_model_needs_the_compiler_to_be_loaded() -> None:
    """Its import takes more than a second, twice as long as one image of the largest of them."""
    code = """
import sys
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import list_bundled, resolve_model
from resgen.modalities import load

whole = [name for name in list_bundled() if "pipeline" in load_folder(resolve_model(name), verify=False).kind]
assert whole
for name in whole:
    load(name)
    assert not {"torch._dynamo", "sympy"} & set(sys.modules), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
