"""An image tokenizer trained on tar shards that are never in memory as a whole: `tokenizer_worker.py OUT DATA SETTING`.

SETTING is `KEY=VALUE`; `1:KEY=VALUE` is for the process number 1 only; `resume` continues.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from resgen.cli.main import guard
from resgen.config import parse_overrides, replace_nested
from resgen.data.pictures.store import PictureStore
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.image import ImageTokenizerConfig
from resgen.training import Run
from resgen.training.image import runs
from resgen.training.image.recipe import Recipe
from resgen.training.image.tokenizer_task import TokenizerLossConfig, TokenizerTask
from resgen.training.interface import TrainerConfig
from resgen.training.parallel import finalise

RECIPE = Recipe(
    name="tiny",
    tokenizer=ImageTokenizerConfig(
        image_size=8,
        channels=1,
        patch_size=2,
        width=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        code_dim=4,
        quantizer=QuantizerConfig(depth=2, codebook_size=8, dead_threshold=0.1),
    ),
    tokenizer_loss=TokenizerLossConfig(adversarial_weight=0.0, perceptual_weight=0.0),
    tokenizer_training=TrainerConfig(
        num_steps=12,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=2,
        precision="fp32",
        device="cpu",
        log_every=1,
        validate_every=4,
        sample_every=0,
        checkpoint_every=2,
    ),
)
SLOW_S = 0.05


def streamed(*args: Any, **options: Any) -> PictureStore:
    """A store that decodes every image when it is asked for."""
    return PictureStore(*args, **options | {"max_bytes": 0})


def train(out: Path, data: Path, *settings: str, slow: bool = False) -> int:
    """Train, and return the exit status of the command."""
    rank = os.environ.get("RANK", "0")
    own = [setting.removeprefix(f"{rank}:") for setting in settings if setting[:2] not in {"0:", "1:"} - {f"{rank}:"}]
    resume = "resume" in own
    recipe = replace_nested(RECIPE, parse_overrides([setting for setting in own if setting != "resume"]))
    runs.PictureStore = streamed  # type: ignore[assignment, misc]
    if slow:
        after_step = TokenizerTask.after_step

        def later(*args: Any) -> None:
            time.sleep(SLOW_S)
            after_step(*args)

        TokenizerTask.after_step = later  # type: ignore[method-assign]

    def run() -> None:
        runs.train_tokenizer(recipe, Run(data=str(data), out=out, resume=resume))

    return guard(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    status = train(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:], slow=True)
    finalise()
    sys.exit(status)
