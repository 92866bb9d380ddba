"""Image RVQ-VAE: square images of any size to a short grid of deep codes (App. A.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import ConfigError, DataError, check_range
from resgen.nn.conv2d import ConvDecoder, ConvEncoder
from resgen.quantizers import Quantization, QuantizerConfig, make_quantizer
from resgen.types import CodeSpec


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Shape of the image tokenizer; the defaults are the paper's for 256 x 256 images and 8 x 8 positions.

    Attributes:
        image_size: side of the square images in pixels. Sizes that `downsampling` does not divide are padded at
            the lower and right edges by repetition and cropped again after decoding.
        channels: 3 (RGB) or 1 (grey).
        patch_size: side of the pixel blocks folded into channels before the first convolution (1: none, as in the
            paper).
        width: channels of the first stage.
        multipliers: channels of each stage as a multiple of `width`; each stage after the first halves the resolution.
        num_res_blocks: residual blocks per stage (the decoder has one more).
        code_dim: H, width of the latents and codebook vectors.
        quantizer: the residual quantizer.
    """

    image_size: int = 256
    channels: int = 3
    patch_size: int = 1
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 2
    code_dim: int = 64
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels={self.channels} must be 1 (grey) or 3 (RGB)")
        check_range(self, 1, "image_size", "patch_size", "width", "num_res_blocks", "code_dim", "multipliers")
        if self.image_size < self.downsampling:
            raise ConfigError(
                f"image_size={self.image_size} is smaller than the downsampling {self.downsampling}; "
                f"use fewer multipliers than {len(self.multipliers)} or a smaller patch_size than {self.patch_size}"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per position on each side."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    @property
    def spec(self) -> CodeSpec:
        """The shape of the codes."""
        side = -(-self.image_size // self.downsampling)
        return self.quantizer.spec(self.code_dim, (side, side))


class Reconstruction(NamedTuple):
    """A training pass: `images` after decoding, and the quantization with its losses and statistics."""

    images: Float[Tensor, "B C S S"]
    quantization: Quantization


class ImageTokenizer(nn.Module):
    """Encoder, residual quantizer and decoder; images are float in [-1, 1]."""

    component = "image-tokenizer"
    config_class = ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config, self.spec = config, config.spec
        self.encoder = ConvEncoder(config.channels, config)
        self.quantizer = make_quantizer(config.quantizer, config.code_dim)
        self.decoder = ConvDecoder(config.channels, config)

    def forward(self, images: Float[Tensor, "B C S S"]) -> Reconstruction:
        """Encode, quantize with the straight-through gradient, decode."""
        quantization = self.quantizer.quantize(self.latents(images))
        return Reconstruction(self._decode_latents(quantization.quantized), quantization)

    def latents(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B L H"]:
        """Encoder outputs `h_0`, positions in row-major order.

        Raises:
            DataError: images of another size or number of channels than the tokenizer's.
        """
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise DataError(
                f"images of shape {tuple(images.shape[1:])} given, "
                f"the tokenizer takes {expected} (channels, height, width)"
            )
        side = self.spec.shape[0] * self.config.downsampling
        pad = side - self.config.image_size
        padded = F.pad(images, (0, pad, 0, pad), mode="replicate") if pad else images
        return self.encoder(padded.to(self.decoder.out.weight.dtype)).flatten(2).transpose(1, 2)

    def encode(self, images: Float[Tensor, "B C S S"]) -> Int[Tensor, "B L D"]:
        """Codes of the images."""
        return self.quantizer.encode(self.latents(images))

    def decode(
        self, codes: Int[Tensor, "B L D"], num_levels: int | None = None, *, visible: Int[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B C S S"]:
        """Images from the first `num_levels` levels of the codes (all by default), or from the first `visible` levels
        of each position; clamped to [-1, 1]."""
        latents = self.quantizer.decode(codes, num_levels if visible is None else visible)
        return self._decode_latents(latents).clamp(-1, 1)

    def _decode_latents(self, latents: Float[Tensor, "B L H"]) -> Float[Tensor, "B C S S"]:
        rows, columns = self.spec.shape
        grid = latents.transpose(1, 2).unflatten(2, (rows, columns))
        weight = self.decoder.out.weight
        images = self.decoder(grid.to(weight.dtype)).float()
        return images[..., : self.config.image_size, : self.config.image_size]
