"""Stage 1: an image tokenizer learns to reconstruct images (App. A.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from resgen.checkpoints.artefacts import save_tokenizer
from resgen.data.pictures.grid import picture_grid, save_picture
from resgen.data.pictures.store import PictureStore
from resgen.errors import ConfigError
from resgen.losses.adversarial import PatchDiscriminator, adaptive_weight, discriminator_hinge, generator_hinge
from resgen.losses.perceptual import PerceptualLoss
from resgen.ops.code_usage import code_histogram, usage_and_perplexity
from resgen.ops.images import at_once, from_uint8, psnr_db, to_uint8
from resgen.quantizers import Quantization
from resgen.quantizers.micro_batches import concatenate
from resgen.tokenizers.base import level_counts
from resgen.tokenizers.image import ImageTokenizer
from resgen.training.interface import LossOf
from resgen.types import LOCAL, Reduce

VALIDATION_BATCH = 256
START_PICTURES = 512


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the tokenizer's losses; the defaults are RQ-VAE's (App. A.1).

    Attributes:
        commitment_weight: weight of the commitment loss.
        perceptual_weight: weight of the perceptual loss, which needs `perceptual_file`.
        perceptual_file: safetensors with VGG-16 weights, or the folder of a classifier of such images; null switches
            the perceptual loss off.
        adversarial_weight: weight of the adversarial loss before the adaptive factor; 0 trains without a discriminator.
        adversarial_start: step at which the adversarial loss sets in.
        flip: mirror half of the training images.
        decoder_only: encoder and codebooks stay as they are, and with them all codes and generators of these codes.
    """

    commitment_weight: float = 0.25
    perceptual_weight: float = 1.0
    perceptual_file: str | None = None
    adversarial_weight: float = 0.75
    adversarial_start: int = 0
    flip: bool = True
    decoder_only: bool = False

    def __post_init__(self) -> None:
        for name in ("commitment_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class _Pass:
    """A part of a batch on its way through the tokenizer; losses are shares of the batch's.

    Attributes:
        share: the share of the batch's images.
        fooled: the adversarial loss, where there is a discriminator.
    """

    share: float
    images: Tensor
    output: Tensor
    quantization: Quantization
    reconstruction: Tensor
    fooled: Tensor | None
    metrics: dict[str, Tensor]


class TokenizerTask:
    """Training task of an `ImageTokenizer`; see `training.interface.Task`."""

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        config: TokenizerLossConfig,
        train: PictureStore,
        held_out: UInt8[Tensor, "N C S S"],
        *,
        class_names: tuple[str, ...] = (),
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        if config.decoder_only:
            tokenizer.requires_grad_(False)
            tokenizer.decoder.requires_grad_(True)
        self.module = nn.ModuleDict({"tokenizer": tokenizer})
        if config.adversarial_weight > 0:
            discriminator = PatchDiscriminator(tokenizer.config.channels)
            if tokenizer.config.image_size < discriminator.min_size:
                raise ConfigError(
                    f"image_size={tokenizer.config.image_size} is too small for the discriminator, which needs "
                    f"{discriminator.min_size}; set tokenizer_loss.adversarial_weight=0"
                )
            self.module["discriminator"] = discriminator
        self.train, self.held_out = train, held_out
        self.class_names = class_names
        self.perceptual = perceptual
        self._pending: list[Quantization] = []

    @property
    def num_samples(self) -> int:
        """Size of the training set."""
        return len(self.train)

    @property
    def blocks(self) -> Int[Tensor, " K"] | None:
        """Stretches of images that are read as one, where there are such."""
        blocks = self.train.source.blocks
        return None if blocks is None or self.train.in_memory else torch.from_numpy(blocks)

    def prefetch(self, indices: Int[Tensor, " B"]) -> None:
        """Decode the images of the next step while this one is computed."""
        self.train.prefetch(indices)

    @property
    def ema_module(self) -> None:
        """No average: codebooks follow the encoder as it is, not its average."""

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """The tokenizer's parameters, or its decoder's, and the discriminator's where there is one."""
        return {name: [p for p in part.parameters() if p.requires_grad] for name, part in self.module.items()}

    def to(self, device: torch.device) -> None:
        """Move all modules; convolutions run channels-last."""
        self.module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(self.perceptual, nn.Module):
            self.perceptual.to(device)

    def compile(self) -> None:
        """Compile encoder and decoder, but for the output layer, at which the adaptive weight differentiates."""
        self.tokenizer.encoder.layers.compile()
        self.tokenizer.decoder.layers.compile()

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        return self.tokenizer.quantizer.codebooks.device

    @torch.no_grad()
    def before_start(self, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """Start the codebooks from encoder outputs, where the quantizer does so."""
        index = torch.randint(
            len(self.train), (min(len(self.train), START_PICTURES),), generator=generator, device=generator.device
        ).cpu()
        index = index.tensor_split(reduce.world_size)[reduce.rank]
        parts = index.split(at_once(self.tokenizer.config.image_size, START_PICTURES))
        latents = torch.cat([self.tokenizer.latents(self._pictures(part)) for part in parts])
        self.tokenizer.quantizer.initialize(latents.flatten(0, 1), generator, reduce)

    def losses(
        self,
        indices: Int[Tensor, " B"],
        parts: Sequence[slice],
        step: int,
        generator: torch.Generator,
        reduce: Reduce = LOCAL,
    ) -> list[LossOf]:
        """Of every part reconstruction, commitment, perceptual and adversarial loss, then the discriminator's own."""
        config, count = self.config, len(indices)
        mirrored = torch.rand(count, generator=generator, device=generator.device) < 0.5 * config.flip
        adversarial = config.adversarial_weight > 0 and step >= config.adversarial_start

        def forward(rows: slice) -> _Pass:
            images = self._pictures(indices[rows])
            flipped = torch.where(mirrored[rows].to(images.device)[:, None, None, None], images.flip(-1), images)
            return self._forward(flipped, len(images) / count, adversarial)

        passes: list[Callable[[], _Pass]] = [functools.partial(forward, rows) for rows in parts]
        if not adversarial:
            return [("tokenizer", functools.partial(self._tokenizer_loss, run, None, [])) for run in passes]
        if len(passes) == 1:
            passes = [functools.cache(passes[0])]  # the pass that is weighed is the one to learn from
        weight = functools.cache(functools.partial(self._adaptive_weight, passes, reduce))
        losses: list[LossOf] = []
        for run in passes:
            outputs: list[_Pass] = []
            losses.append(("tokenizer", functools.partial(self._tokenizer_loss, run, weight, outputs)))
            losses.append(("discriminator", functools.partial(self._discriminator_loss, outputs)))
        return losses

    def _forward(self, images: Float[Tensor, "B C S S"], share: float, adversarial: bool) -> _Pass:
        images = images.contiguous(memory_format=torch.channels_last)
        output, quantization = self.tokenizer(images)
        reconstruction = share * (output - images).square().mean()
        metrics = {"mse": reconstruction.detach(), "commitment": share * quantization.commitment.detach()}
        if self.perceptual is not None and self.config.perceptual_weight > 0:
            distance = share * self.perceptual(output, images)
            metrics["perceptual"] = distance.detach()
            reconstruction = reconstruction + self.config.perceptual_weight * distance
        fooled = share * generator_hinge(self.module["discriminator"](output)) if adversarial else None
        return _Pass(share, images, output, quantization, reconstruction, fooled, metrics)

    def _tokenizer_loss(
        self, run: Callable[[], _Pass], weight_of_batch: Callable[[], Tensor] | None, outputs: list[_Pass]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a pass, which is then kept for the discriminator, without its graph."""
        weight = None if weight_of_batch is None else weight_of_batch()
        one, config = run(), self.config
        self._pending.append(one.quantization)
        loss = one.reconstruction + config.commitment_weight * one.share * one.quantization.commitment
        metrics = dict(one.metrics)
        if weight is not None and one.fooled is not None:
            loss = loss + config.adversarial_weight * weight * one.fooled
            metrics |= {"adversarial": one.fooled.detach(), "adaptive_weight": one.share * weight}
            outputs.append(replace(one, output=one.output.detach()))
        return loss, metrics

    def _discriminator_loss(self, outputs: list[_Pass]) -> tuple[Tensor, dict[str, Tensor]]:
        one, discriminator = outputs.pop(), self.module["discriminator"]
        loss = one.share * discriminator_hinge(discriminator(one.images), discriminator(one.output))
        return loss, {"discriminator": loss.detach()}

    def _adaptive_weight(self, passes: Sequence[Callable[[], _Pass]], reduce: Reduce) -> Tensor:
        """VQGAN's weight for the whole batch: a ratio of gradients, which the parts of a batch cannot have alone."""
        layer = self.tokenizer.decoder.out.weight
        sums = layer.new_zeros(2, *layer.shape)
        for run in passes:
            one = run()
            assert one.fooled is not None
            for row, loss in enumerate((one.reconstruction, one.fooled)):
                sums[row] += torch.autograd.grad(loss, layer, retain_graph=True)[0]
        return adaptive_weight(*reduce.sum(sums))

    def after_step(self, step: int, generator: torch.Generator, reduce: Reduce = LOCAL) -> None:
        """One codebook update from all micro-batches of the step together."""
        if not self.config.decoder_only:
            self.tokenizer.quantizer.update(concatenate(self._pending), generator, reduce)
        self._pending.clear()

    @torch.no_grad()
    def validate(self, module: nn.Module, reduce: Reduce = LOCAL) -> dict[str, float]:
        """PSNR by number of decoded levels, usage, perplexity and residual variance per level on held-out images."""
        tokenizer = self.tokenizer
        depth = tokenizer.spec.depth
        psnr = torch.zeros(depth, dtype=torch.float64)
        histogram = torch.zeros(depth, tokenizer.spec.codebook_size, dtype=torch.int64)
        error = torch.zeros((), dtype=torch.float64)
        size = at_once(tokenizer.config.image_size, VALIDATION_BATCH)
        for part in self.held_out.split(size)[reduce.rank :: reduce.world_size]:
            images = from_uint8(part.to(self.device))
            codes = tokenizer.encode(images)
            histogram += code_histogram(codes, tokenizer.spec.codebook_size).cpu()
            for level in range(depth):
                output = tokenizer.decode(codes, level + 1)
                psnr[level] += psnr_db(to_uint8(output), part.to(self.device)).sum().cpu()
            error += float((output - images).square().mean()) * len(part)
        count = len(self.held_out)
        psnr, error = reduce.sum(psnr), reduce.sum(error)
        usage, perplexity = usage_and_perplexity(reduce.sum(histogram))
        metrics = {"val_loss": float(error) / count}
        for level in range(depth):
            metrics[f"psnr_db/{level + 1}"] = float(psnr[level]) / count
            metrics[f"usage/{level + 1}"] = float(usage[level])
            metrics[f"perplexity/{level + 1}"] = float(perplexity[level])
            metrics[f"variance/{level + 1}"] = float(tokenizer.quantizer.variances[level])
        return metrics

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Eight held-out images (rows), decoded from 1, 2, 4, ... levels, the original last."""
        pictures = self.held_out[:8]
        codes = self.tokenizer.encode(from_uint8(pictures.to(self.device)))
        counts = level_counts(self.tokenizer.spec.depth)
        columns = [to_uint8(self.tokenizer.decode(codes, count)).cpu() for count in counts] + [pictures]
        grid = torch.stack(columns, dim=1).flatten(0, 1)
        labels = [str(count) for count in counts] + ["original"]
        save_picture(
            picture_grid(grid, columns=len(columns), scale=max(1, 64 // pictures.shape[-1]), labels=labels), path
        )

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the tokenizer folder."""
        save_tokenizer(folder, self.tokenizer, class_names=self.class_names, history=history)

    def _pictures(self, indices: Int[Tensor, " B"]) -> Tensor:
        return from_uint8(self.train.batch(indices).to(self.device))
