"""A recipe: the configurations of both stages and of sampling, as one object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from resgen.errors import ConfigError
from resgen.kinds import AnySampling, ModelConfig, get_kind, kind_of, matched_config
from resgen.models.resgen import ResGenConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizerConfig
from resgen.training.generator_task import GeneratorLossConfig
from resgen.training.tokenizer_task import TokenizerLossConfig
from resgen.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where pictures come from and how they are prepared.

    Attributes:
        path: data used when none is given on the command line; null where the user must give one.
        resize: cut out, resize and convert pictures of another size or mode, instead of refusing them.
        flip: encode every training picture mirrored as well, for the generator.
    """

    path: str | None = None
    resize: bool = False
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that `resgen train` needs; each field may be overridden by `--config` and `--set`."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    tokenizer_loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)
    tokenizer_training: TrainerConfig = field(default_factory=TrainerConfig)
    generator: ModelConfig = field(default_factory=ResGenConfig)
    generator_loss: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)
    generator_training: TrainerConfig = field(default_factory=TrainerConfig)
    sampling: AnySampling = field(default_factory=SamplingConfig)


def with_kind(recipe: Recipe, kind: str) -> Recipe:
    """The recipe for another kind of generator: as many parameters, the same training, the kind's own sampling.

    Raises:
        ConfigError: there is no such kind, or the recipe's generator is not a ResGen.
    """
    if get_kind(kind).name == kind_of(recipe.generator).name:
        return recipe
    if not isinstance(recipe.generator, ResGenConfig) or not isinstance(recipe.sampling, SamplingConfig):
        raise ConfigError(f"recipe '{recipe.name}' is already of another kind; give --kind to one of ResGen")
    generator = matched_config(recipe.generator, recipe.tokenizer.spec, kind)
    guidance = recipe.sampling.guidance_scale
    sampling: AnySampling = get_kind(kind).sampling(guidance_scale=guidance)
    if isinstance(sampling, DepthwiseConfig):  # four steps per level, as in the paper (63 at depth 16)
        sampling = replace(sampling, num_steps=4 * recipe.tokenizer.spec.depth)
    if kind == "mixture":  # its confidences are sums of squares, its temperature scales Gaussian noise
        sampling = replace(recipe.sampling, temperature=0.6, choice_temperature=40.0)
    elif kind in ("direct", "resgen"):  # confidences are log-probabilities, the temperature divides logits
        sampling = replace(recipe.sampling, temperature=1.0, choice_temperature=1.0)
    decay = recipe.generator_loss.level_decay if kind == "resgen" else 1.0  # Eq. 2 weighs all tokens alike
    loss = replace(recipe.generator_loss, level_decay=decay)
    return replace(recipe, generator=generator, generator_loss=loss, sampling=sampling)
