"""Networks that are too large are refused before they take memory or time."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

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
