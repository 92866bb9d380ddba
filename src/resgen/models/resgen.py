"""ResGen: a bidirectional transformer that predicts, for every position at once, the sum of the embeddings of all
masked levels as a mixture of Gaussians (Sec. 3, App. A.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError, unknown
from resgen.models.base import INIT_STD, CodeModel, check_config
from resgen.models.conditions import ClassCondition
from resgen.models.guided import GuidedEvaluation
from resgen.models.heads import Head, MixtureHead
from resgen.nn.positions import Positions
from resgen.nn.transformer import SharedModulation, Transformer
from resgen.ops.residual import Codebooks, residual_decode
from resgen.types import CodeSpec, LevelWalk, ProposalNoise, SequenceCondition

HEADS = ("mixture", "residual", "tokens")
METRICS = ("none", "scale", "diagonal", "triangular")


@dataclass(frozen=True, kw_only=True)
class ResGenConfig:
    """Shape of the generator; the defaults are the paper's image model (`xl`).

    Attributes:
        width: O.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_width: hidden width of each block's MLP.
        condition_width: hidden width of the shared modulation MLP.
        num_components: K, components of the mixture.
        mean_rank: h, rank of the component means; None for full rank (images), 64 for speech.
        num_classes: classes of the condition; 0 for none.
        other_axes: classes of each other axis of the condition, such as backgrounds beside styles.
        class_dropout: fraction of training samples without their class, features and prompt, for guidance.
        feature_width: width of the features of each position, such as expanded text; 0 for none.
        feature_stride: rows of features per position.
        prompt_summary: add mean and standard deviation of the prompt's latents to the condition (a deviation from the
            paper): a shortcut for what all of a prompt shares, such as a voice.
        head: what is predicted: `mixture`, the sum of the masked embeddings (Eq. 1); `residual`, the codes, each given
            the sum of those above it (see `TokenHead`); `tokens`, the codes, each level on its own (Eq. 2).
            `num_components`, `mean_rank`, `metric` and `fixed_means` apply to `mixture` only.
        metric: metric of the mixture's targets for each number of visible levels, `scale`, `diagonal` or `triangular`,
            see `models.metric.TargetMetric`; `none` is the paper's.
        fixed_means: with a metric: means learned for each number of visible levels; the paper predicts them.
    """

    tag: ClassVar[str] = "unmasking"  # of the network; which kind it is, its head says
    width: int = 1152
    num_layers: int = 28
    num_heads: int = 16
    mlp_width: int = 4608
    condition_width: int = 4608
    num_components: int = 1024
    mean_rank: int | None = None
    num_classes: int = 0
    other_axes: tuple[int, ...] = ()
    class_dropout: float = 0.1
    feature_width: int = 0
    feature_stride: int = 1
    prompt_summary: bool = False
    head: str = "mixture"
    metric: str = "none"
    fixed_means: bool = False

    def __post_init__(self) -> None:
        check_config(self, "width num_layers num_heads mlp_width condition_width num_components".split())
        check_head(self)


def check_head(config: Any) -> None:
    """Validate what a configuration with ResGen's fields says of its head.

    Raises:
        ConfigError: an unknown head or metric, a rank below 1, a metric without mixture, fixed means without metric.
    """
    if config.mean_rank is not None and config.mean_rank < 1:
        raise ConfigError(f"mean_rank={config.mean_rank} must be at least 1, or null for full rank")
    if config.head not in HEADS:
        raise ConfigError(unknown("head", config.head, HEADS))
    if config.metric not in METRICS:
        raise ConfigError(unknown("metric", config.metric, METRICS))
    if config.metric != "none" and config.head != "mixture":
        raise ConfigError(f"metric='{config.metric}' is of head='mixture', not of '{config.head}'; set it to 'none'")
    if config.fixed_means and config.metric == "none":
        raise ConfigError(f"fixed_means=true needs a metric, one of {', '.join(METRICS[1:])}; set it, or false")


class ResGen(CodeModel):
    """The generator: a bidirectional transformer over the visible sums of all positions (App. A.1).

    Args:
        config: shape of the network.
        spec: shape of the codes.
        head: the head that `config.head` names, see `models.head_choice.make_head`; the paper's mixture by default.

    Raises:
        ConfigError: no head is given, and the configuration names another than the paper's.
    """

    head: Head

    def __init__(self, config: ResGenConfig, spec: CodeSpec, head: Head | None = None) -> None:
        if head is None and (config.head, config.metric) != ("mixture", "none"):
            raise ConfigError(
                f"head='{config.head}' with metric='{config.metric}' must be given to ResGen; kinds.build makes it"
            )
        super().__init__(config, spec)
        self.positions = Positions(spec.shape, config.width, config.num_heads)
        self.input = nn.Linear(spec.code_dim, config.width)
        self.visible_embedding = nn.Embedding(spec.depth + 1, config.width)
        self.condition = ClassCondition(config.num_classes, config.width, config.other_axes)
        self.modulation = SharedModulation(config.width, config.condition_width)
        self.transformer = Transformer(
            width=config.width, num_layers=config.num_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        nn.init.normal_(self.visible_embedding.weight, std=INIT_STD)
        self.summary = nn.Linear(2 * spec.code_dim, config.width) if config.prompt_summary else None
        self.head = MixtureHead.of(config, spec) if head is None else head

    def forward(
        self,
        codes: Int[Tensor, "B L D"],
        visible: Int[Tensor, "B L"],
        class_ids: Int[Tensor, " B"],
        sequence: SequenceCondition | None = None,
    ) -> Float[Tensor, "B L O"]:
        """Hidden states that `head` turns into mixtures or logits. Sequences may be shorter than the most positions."""
        x = self.embed(codes, visible)  # [B, L, O]  what is visible, and where
        features = self.feature_vectors(sequence)  # [B, L, O]  of speech: the expanded text
        x = x if features is None else x + features  # [B, L, O]
        c = self.condition(class_ids) + self.summarise(codes, sequence)  # [B, O]  class; of speech: the prompt
        m = self.modulation(c)  # [B, 8, O]  shared by all blocks
        valid = None if sequence is None else sequence.attended  # [B, L]
        return self.transformer(x, m, self.positions.angles(x.shape[1]), valid)  # [B, L, O]

    def embed(self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"]) -> Float[Tensor, "B L O"]:
        """Network input; codes of masked levels are never looked at."""
        known = self.known(codes, visible)  # [B, L, H]  the sum of the visible embeddings
        x = self.input(known.to(self.input.weight.dtype))  # [B, L, O]
        return self.positions.add(x + self.visible_embedding(visible))  # [B, L, O]  how many they are, and where

    def summarise(
        self, codes: Int[Tensor, "B L D"], sequence: SequenceCondition | None
    ) -> Float[Tensor, "B O"] | float:
        """The addition to the condition for the prompts of a batch: 0 where there is none, or none is kept."""
        if self.summary is None or sequence is None:
            return 0.0
        prompt = sequence.prompt if sequence.keep is None else sequence.prompt & sequence.keep[:, None]
        weight = prompt[..., None].float() / prompt.sum(1).clamp(min=1)[:, None, None]
        latents = residual_decode(codes, self.codebooks)
        mean = (latents * weight).sum(1)
        deviation = ((latents - mean[:, None]).square() * weight).sum(1).add(1e-6).sqrt()
        vectors = self.summary(torch.cat([mean, deviation], dim=1).to(self.summary.weight.dtype))
        return vectors * prompt.any(1, keepdim=True)

    def predictor(
        self, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None = None, *, prompt_guidance: float = 0.0
    ) -> ResGenPredictor:
        """This model under a condition, as the callable that samplers call; the setting is that of `SamplingConfig`."""
        return ResGenPredictor(self, class_ids, sequence, prompt_guidance)


class ResGenPredictor:
    """`types.Predictor` of a `ResGen`; the condition is embedded once, all guidance branches run as one batch."""

    def __init__(
        self, model: ResGen, class_ids: Int[Tensor, " B"], sequence: SequenceCondition | None, prompt_guidance: float
    ) -> None:
        self.model, self.class_ids, self.sequence = model, class_ids, sequence
        self.evaluate = GuidedEvaluation(model, model.embed, sequence, prompt_guidance)
        null_ids = torch.full_like(class_ids, model.condition.null_id)
        self.away = [null_ids[:1]] if prompt_guidance < 1 else []
        if prompt_guidance and sequence is not None:
            self.away.append(torch.where(sequence.prompt.any(1), class_ids, null_ids))
        self.modulations: list[Float[Tensor, "_ 8 O"]] = []
        self.codebooks = Codebooks.of(model.codebooks, model.level_std)

    def __call__(
        self, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"], guidance_scale: float
    ) -> HeadPrediction:
        """One evaluation; a scale of 0 runs the conditional branch only."""
        model = self.model
        if not self.modulations:  # the prompt's codes are given, and the same in every evaluation
            condition = model.condition(self.class_ids) + model.summarise(codes, self.sequence)
            self.modulations = [model.modulation(c) for c in (condition, *map(model.condition, self.away))]
        hidden = self.evaluate(codes, visible, self.modulations, guidance_scale).flatten(0, 1)
        return HeadPrediction(head=model.head, hidden=hidden, visible=visible.flatten(), codebooks=self.codebooks)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadPrediction:
    """`types.Distribution`: hidden states of N positions under a head, and what is visible of them."""

    head: Head
    hidden: Float[Tensor, "N O"]
    visible: Int[Tensor, " N"]
    codebooks: Codebooks

    def propose(
        self, rows: Int[Tensor, " M"], noise: ProposalNoise, walk: LevelWalk, **settings: Any
    ) -> tuple[Int[Tensor, "M D"], Float[Tensor, "M D"]]:
        """Draw the masked codes at `rows`, and their scores."""
        return self.head.propose(self.hidden[rows], self.visible[rows], self.codebooks, noise, walk, **settings)
