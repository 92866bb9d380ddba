"""AR-ResGen, the autoregressive variant of ResGen (Sec. 5.2.1): a causal transformer over positions, and for the levels
of each an MLP with a head, which predicts the sum of the embeddings of the masked ones (the mixture) or those codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.models.base import INIT_STD, check_config
from resgen.models.causal import CausalModel, CausalSteps
from resgen.models.head_choice import make_head
from resgen.models.resgen import HeadPrediction, check_head
from resgen.nn.transformer import modulate
from resgen.ops.guidance import Weight
from resgen.ops.residual import Codebooks
from resgen.types import CodeSpec, SequenceCondition


@dataclass(frozen=True, kw_only=True)
class ARResGenConfig:
    """Shape of the generator; the defaults are the paper's size (`xl`, 625M).

    Attributes:
        width: O.
        num_layers: blocks of the transformer over positions.
        num_heads: attention heads.
        mlp_width: hidden width of each block's MLP.
        condition_width: hidden width of the shared modulation MLP.
        head_layers: residual MLP blocks between the transformer and the mixture head.
        head_width: their hidden width.
        num_components: K, components of the mixture.
        mean_rank: h, rank of the component means; None for full rank (images).
        num_classes: classes of the condition; 0 for none.
        other_axes: classes of each other axis of the condition.
        class_dropout: share of training samples without their class and features, for guidance.
        feature_width: width of the features of each position, such as expanded text; 0 for none.
        feature_stride: rows of features per position.
        head: `mixture` (the paper's), `residual` or `tokens`, as for ResGen.
        metric: metric of the mixture's targets, as for ResGen; `none` is the paper's.
        fixed_means: as for ResGen.
    """

    tag: ClassVar[str] = "ar_resgen"
    width: int = 1152
    num_layers: int = 28
    num_heads: int = 16
    mlp_width: int = 4608
    condition_width: int = 4608
    head_layers: int = 5
    head_width: int = 4608
    num_components: int = 1024
    mean_rank: int | None = None
    num_classes: int = 0
    other_axes: tuple[int, ...] = ()
    class_dropout: float = 0.1
    feature_width: int = 0
    feature_stride: int = 1
    head: str = "mixture"
    metric: str = "none"
    fixed_means: bool = False

    def __post_init__(self) -> None:
        sizes = "num_layers num_heads mlp_width condition_width head_layers head_width num_components".split()
        check_config(self, ("width", *sizes))
        check_head(self)


class ResidualMLP(nn.Module):
    """Blocks `x + gate * mlp(modulate(x))` and the modulated output norm: `Transformer` without its attention.

    The modulation is the MLP's part of the shared one, plus biases of the block.
    """

    def __init__(self, *, width: int, num_layers: int, mlp_width: int) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.zeros(num_layers, 3, width))
        self.out_bias = nn.Parameter(torch.zeros(2, width))
        self.up = nn.ModuleList(nn.Linear(width, mlp_width) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(mlp_width, width) for _ in range(num_layers))
        for module in (*self.up, *self.down):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B L O"], modulation: Float[Tensor, "B 8 O"]) -> Float[Tensor, "B L O"]:
        for bias, up, down in zip(self.biases, self.up, self.down, strict=True):
            shift, scale, gate = (modulation[:, 3:6] + bias).unbind(1)
            x = x + gate[:, None] * down(F.gelu(up(modulate(x, shift, scale)), approximate="tanh"))
        shift, scale = (modulation[:, 6:] + self.out_bias).unbind(1)
        return modulate(x, shift, scale)


@final
class ARResGen(CausalModel):
    """The generator. `CausalModel` describes the transformer over positions and the condition.

    The MLP takes the place of RQ-Transformer's transformer over levels. Its input is the transformer's output, plus the
    projected sum of the embeddings of the position's visible levels, plus a learned embedding of how many they are.

    The paper states 625M parameters, neither width nor layers. `xl` is ResGen's `xl` (width 1152, 28 blocks, K = 1024)
    with 5 residual MLP blocks of hidden width 4608.
    """

    config: ARResGenConfig

    def __init__(self, config: ARResGenConfig, spec: CodeSpec) -> None:
        super().__init__(config, spec)
        self.known_input = nn.Linear(spec.code_dim, config.width)
        self.visible_embedding = nn.Embedding(spec.depth + 1, config.width)
        self.mlp = ResidualMLP(width=config.width, num_layers=config.head_layers, mlp_width=config.head_width)
        self.head = make_head(config, spec)
        nn.init.normal_(self.visible_embedding.weight, std=INIT_STD)

    def forward(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None = None,
    ) -> Float[Tensor, "B L O"]:
        """Hidden states that `head` turns into mixtures over the sum of each position's masked levels.

        All levels of earlier positions are seen (teacher forcing), of its own only the visible ones. The first
        positions of a grid or sequence may be given alone.
        """
        condition = self.condition(class_ids)
        modulation = self.modulation(condition)
        context = self.context(
            self.latents(codes[:, :-1]), condition, modulation, features=self.feature_vectors(sequence)
        )
        return self.refine(context, self.known(codes, visible), visible, modulation)

    def refine(
        self,
        context: Float[Tensor, "B L O"],
        known: Float[Tensor, "B L H"],
        visible: Int[Tensor, "B L"],
        modulation: Float[Tensor, "B 8 O"],
    ) -> Float[Tensor, "B L O"]:
        """The MLP alone: from the context of positions and what is known of them to the head's input."""
        x = context + self.known_input(known.to(self.known_input.weight.dtype)) + self.visible_embedding(visible)
        return self.mlp(x, modulation)

    def decoder(self, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None) -> ARResGenDecoder:
        """This model under a condition, as the `LatentDecoder` that the autoregressive sampler takes.

        Args:
            class_ids: the condition.
            sequence: the condition of sequences.
        """
        return ARResGenDecoder(self, class_ids, sequence)


class ARResGenDecoder:
    """`samplers.autoregressive.LatentDecoder` of an `ARResGen`."""

    def __init__(self, model: ARResGen, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None) -> None:
        self.model = model
        self.steps = CausalSteps(model, class_ids, sequence)
        self.codebooks = Codebooks.of(model.codebooks, model.level_std)

    @property
    def device(self) -> torch.device:
        """Where codes are expected."""
        return self.model.codebooks.device

    def begin(self, guided: bool) -> None:
        """Start at the first position, with the unconditional branch if `guided`."""
        self.steps.begin(guided)

    def next_position(self, codes: Int[Tensor, "B S D"]) -> None:
        """Go on to the position after `codes`, which are the S positions finished since the last call."""
        self.context = self.steps.next_position(codes)

    def predict(self, codes: Int[Tensor, "B D"], visible: Int[Tensor, " B"], guidance_scale: Weight) -> HeadPrediction:
        """The masked levels of this position; runs the MLP only."""
        known = self.model.known(codes[:, None], visible[:, None])
        hidden = self.model.refine(
            self.context,
            self.steps.branches(known),
            self.steps.branches(visible[:, None]),
            self.steps.modulation,
        )
        guided = self.steps.guide(hidden[:, 0], guidance_scale)
        return HeadPrediction(head=self.model.head, hidden=guided, visible=visible, codebooks=self.codebooks)
