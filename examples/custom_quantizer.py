"""Use a quantizer of your own: train a tokenizer with it and compare it with the paper's.

Shows the contract of `Quantizer`: everything but `update` is inherited. Codebooks learn by `update`, never by
gradients, and statistics go through `reduce`, so that several processes learn what one would. The saved tokenizer
loads without this class, because encoding and decoding need codebooks only.

    python examples/custom_quantizer.py --out out/quantizer
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from resgen.data import open_images
from resgen.data.pictures.store import PictureStore
from resgen.modalities import load_recipe
from resgen.nn.seeding import seeded
from resgen.quantizers import Quantization, Quantizer, QuantizerConfig
from resgen.quantizers.base import track_variances
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.image.tokenizer_task import TokenizerTask
from resgen.training.trainer import Trainer
from resgen.types import LOCAL, Reduce


class CountingQuantizer(Quantizer):
    """Mini-batch k-means: a code moves to the mean of all latents that ever chose it, by less and less."""

    counts: Tensor

    def __init__(self, config: QuantizerConfig, code_dim: int) -> None:
        super().__init__(config, code_dim)
        self.register_buffer("counts", torch.ones(config.depth, config.codebook_size), persistent=False)

    @torch.no_grad()
    def update(self, result: Quantization, generator: torch.Generator, reduce: Reduce = LOCAL) -> dict[str, Tensor]:
        """Move the codebooks; see `Quantizer.update`."""
        variance = track_variances(self, result, reduce)
        for level, codebook in enumerate(self.codebooks):
            latents = result.residuals[level]  # h_{j-1}, what this level was to express
            hits = F.one_hot(result.valid_codes[:, level], len(codebook)).to(latents)
            sums = reduce.sum(torch.cat([hits.T @ latents, hits.sum(0)[:, None]], dim=1))
            weights = sums[:, -1:]
            self.counts[level] += weights[:, 0]
            codebook += (sums[:, :-1] - weights * codebook) / self.counts[level][:, None]
        return {"variance": variance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training")
    args = parser.parse_args()

    recipe = load_recipe("digits")[1]
    training = replace(recipe.tokenizer_training, num_steps=args.steps)
    size, channels = recipe.tokenizer.image_size, recipe.tokenizer.channels
    train, test = (
        PictureStore(open_images("digits", split=name), size=size, channels=channels) for name in ("train", "test")
    )
    held_out = test.batch(torch.arange(len(test)))
    for name, make in (("paper", None), ("counting", CountingQuantizer)):
        with seeded(0, "example"):  # the same first weights for both
            tokenizer = ImageTokenizer(recipe.tokenizer)
            if make is not None:
                tokenizer.quantizer = make(recipe.tokenizer.quantizer, recipe.tokenizer.code_dim)
            task = TokenizerTask(tokenizer, recipe.tokenizer_loss, train, held_out)
            metrics = Trainer(task, training, args.out / name).run()
        print(f"{name:9} {metrics[f'psnr_db/{recipe.tokenizer.quantizer.depth}']:.2f} dB")


if __name__ == "__main__":
    main()
