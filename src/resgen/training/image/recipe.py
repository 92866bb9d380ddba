"""A recipe: the configurations of both stages and of sampling, as one object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from resgen.errors import ConfigError
from resgen.kinds import BY_HEAD, AnySampling, ModelConfig, get_kind, kind_of, matched_config
from resgen.models.resgen import ResGenConfig
from resgen.samplers.depthwise import DepthwiseConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizerConfig
from resgen.training.generator_task import GeneratorLossConfig
from resgen.training.image.tokenizer_task import TokenizerLossConfig
from resgen.training.trainer import TrainerConfig
from resgen.types import CodeSpec


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
        ConfigError: there is no such kind, or the recipe's generator has another network than ResGen's.
    """
    generator, loss, sampling = of_kind(
        recipe.generator, recipe.generator_loss, recipe.sampling, recipe.tokenizer.spec, kind
    )
    return replace(recipe, generator=generator, generator_loss=loss, sampling=sampling)


def of_kind(
    generator: ModelConfig, loss: GeneratorLossConfig, sampling: AnySampling, spec: CodeSpec, kind: str
) -> tuple[ModelConfig, GeneratorLossConfig, AnySampling]:
    """What a recipe has for another kind of generator; see `with_kind`.

    Args:
        generator: of the recipe.
        loss: of the recipe.
        sampling: of the recipe.
        spec: shape of the codes.
        kind: name of the kind.
    """
    if get_kind(kind).name == kind_of(generator).name:
        return generator, loss, sampling
    if not isinstance(generator, ResGenConfig) or not isinstance(sampling, SamplingConfig):
        raise ConfigError(
            f"the recipe is already of kind '{kind_of(generator).name}'; --kind goes with recipes of "
            f"{', '.join(BY_HEAD.values())}"
        )
    chosen: AnySampling = get_kind(kind).sampling(guidance_scale=sampling.guidance_scale)
    if isinstance(chosen, DepthwiseConfig):  # four steps per level, as in the paper (63 at depth 16)
        chosen = replace(chosen, num_steps=4 * spec.depth)
    if kind == "resgen":  # its confidences are sums of squares, its temperature scales Gaussian noise
        chosen = replace(sampling, temperature=0.6, choice_temperature=40.0)
    elif kind in ("direct", "residual"):  # confidences are log-probabilities, the temperature divides logits
        chosen = replace(sampling, temperature=1.0, choice_temperature=1.0)
    decay = loss.level_decay if kind == "residual" else 1.0  # Eq. 2 weighs all tokens alike
    return matched_config(generator, spec, kind), replace(loss, level_decay=decay), chosen
