"""MaskGIT, depth by depth: a bidirectional transformer that predicts one residual level at a time, masked over
positions, given all coarser levels (Sec. 5.2.1, Table 1; a counterpart of ResGen on the same tokens)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.models.base import CodeModel
from resgen.models.conditions import ClassCondition
from resgen.models.token_head import LevelHead
from resgen.nn.positions import positions_of
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.ops.guidance import guide
from resgen.ops.masking import num_masked, sample_visible
from resgen.types import CodeSpec

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """Shape of the generator; the defaults are `xl`, the paper's 580M.

    Attributes:
        width: O.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_width: hidden width of each block's MLP.
        condition_width: hidden width of the shared modulation MLP.
        num_classes: classes of the condition; 0 for none.
        class_dropout: share of training samples without their class, for guidance.
    """

    width: int = 1152
    num_layers: int = 32
    num_heads: int = 16
    mlp_width: int = 4608
    condition_width: int = 4608
    num_classes: int = 0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_width", "condition_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % self.num_heads:
            raise ConfigError(f"width={self.width} must be a multiple of num_heads={self.num_heads}")
        if self.num_classes < 0:
            raise ConfigError(f"num_classes={self.num_classes} must not be negative")
        if not 0 <= self.class_dropout < 1:
            raise ConfigError(f"class_dropout={self.class_dropout} must lie in [0, 1)")


def _preset(width: int, num_layers: int, num_heads: int) -> MaskGITConfig:
    return MaskGITConfig(
        width=width, num_layers=num_layers, num_heads=num_heads, mlp_width=4 * width, condition_width=4 * width
    )


# The paper gives MaskGIT's size at its image shape (16 levels of 1024, 1000 classes), 580M, and no widths. Default: the
# width and heads of ResGen and as many layers as fill the budget: 32 of width 1152 are 578M. The smaller ones match
# ResGen's presets of the same name at that shape; at `tiny` the 16 output matrices weigh most, hence the smaller width.
PRESETS: dict[str, MaskGITConfig] = {
    "tiny": _preset(128, 6, 4),
    "small": _preset(384, 8, 6),
    "base": _preset(768, 17, 12),
    "xl": _preset(1152, 32, 16),
}


@final
class MaskGIT(CodeModel):
    """The generator. While level d is decoded every position has d or d+1 visible levels; `visible` is the whole state.

    The condition is the class plus the current level, both learned vectors, through the modulation that all blocks
    share (**Default**: the paper does not say how the level enters).
    """

    positions: Tensor

    def __init__(self, config: MaskGITConfig, spec: CodeSpec) -> None:
        super().__init__(spec)
        self.config = config
        self.is_grid = len(spec.shape) == 2
        positions = positions_of(spec.shape, config.width, config.num_heads)
        self.register_buffer("positions", positions, persistent=False)
        self.input = nn.Linear(spec.code_dim, config.width)
        self.visible_embedding = nn.Embedding(spec.depth + 1, config.width)
        self.level_embedding = nn.Embedding(spec.depth, config.width)
        self.condition = ClassCondition(config.num_classes, config.width)
        self.modulation = SharedModulation(config.width, config.condition_width)
        self.transformer = Transformer(
            width=config.width, num_layers=config.num_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        self.head = LevelHead(config.width, spec.depth, spec.codebook_size)
        nn.init.normal_(self.visible_embedding.weight, std=INIT_STD)
        nn.init.normal_(self.level_embedding.weight, std=INIT_STD)

    def embed(self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"]) -> Float[Tensor, "B L O"]:
        """Network input: the projected sum of the visible embeddings, how many are visible, and where."""
        x = self.input(self.known(codes, visible).to(self.input.weight.dtype)) + self.visible_embedding(visible)
        return x + self.positions.to(x.dtype) if self.is_grid else x

    def forward(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        level: Int[Tensor, " B"],
        class_ids: Int[Tensor, " B"],
    ) -> Float[Tensor, "B L V"]:
        """Logits of each sample's own level at all its positions; codes of masked levels are never looked at."""
        modulation = self.modulation(self.condition(class_ids) + self.level_embedding(level))
        return self.head(self.hidden(self.embed(codes, visible), modulation), level)

    def hidden(self, x: Float[Tensor, "B L O"], modulation: Float[Tensor, "B 8 O"]) -> Float[Tensor, "B L O"]:
        """The transformer alone, for callers that keep the modulation over many steps."""
        return self.transformer(x, modulation, None if self.is_grid else self.positions[: x.shape[1]])

    def predictor(self, class_ids: Int[Tensor, " B"]) -> MaskGITPredictor:
        """This model under a condition, as the callable that `samplers.depthwise` takes."""
        return MaskGITPredictor(self, class_ids)


class MaskGITPredictor:
    """`samplers.depthwise.LevelPredictor` of a `MaskGIT`.

    Classes are embedded once and the modulation is computed once per level; both guidance branches run as one batch.
    """

    def __init__(self, model: MaskGIT, class_ids: Int[Tensor, " B"]) -> None:
        self.model = model
        null_ids = torch.full_like(class_ids[:1], model.condition.null_id)
        self.condition = model.condition(torch.cat([class_ids, null_ids]))
        self.level = -1
        self.modulation = self.condition[:0]

    def __call__(
        self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], level: int, guidance_scale: float
    ) -> Float[Tensor, "B L V"]:
        """Logits of `level` from one evaluation; a scale of 0 runs the conditional branch only."""
        model = self.model
        if level != self.level:
            self.modulation = model.modulation(self.condition + model.level_embedding.weight[level])
            self.level = level
        conditional = self.modulation[:-1]
        x = model.embed(codes, visible)
        if guidance_scale == 0:
            return model.head.at_level(model.hidden(x, conditional), level)
        unconditional = self.modulation[-1:].expand_as(conditional)
        with_class, without = model.hidden(torch.cat([x, x]), torch.cat([conditional, unconditional])).chunk(2)
        return model.head.at_level(guide(with_class, without, guidance_scale), level)


def sample_state(
    batch: int, spec: CodeSpec, mask_schedule: str, generator: torch.Generator, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, " B"], Int[Tensor, "B L"]]:
    """Draw a state to train on for each sample: `level`, uniform over 0..D-1 (**Default**), and `visible`.

    With r uniform, n = ceil(gamma(r) L) positions chosen at random have `level` visible levels, the rest `level` + 1.
    The loss counts where `visible == level`.

    Args:
        batch: B.
        spec: shape of the codes.
        mask_schedule: gamma, one of `ops.masking.SCHEDULES`.
        generator: source of the noise; its device may differ from `device`.
        device: of the result.
    """
    level = torch.randint(spec.depth, (batch,), generator=generator, device=generator.device).to(device)
    progress = torch.rand(batch, generator=generator, dtype=torch.float64, device=generator.device)
    masked = num_masked(mask_schedule, progress, spec.num_positions).to(device)
    return level, level[:, None] + sample_visible(masked, spec.num_positions, 1, generator)
