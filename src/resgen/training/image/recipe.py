"""A recipe: the configurations of both stages and of sampling, as one object."""

from __future__ import annotations

from dataclasses import dataclass, field

from resgen.kinds import AnySampling, GeneratorLossConfig, ModelConfig
from resgen.models.resgen import ResGenConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizerConfig
from resgen.training.image.tokenizer_task import TokenizerLossConfig
from resgen.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source and preparation of the images.

    Attributes:
        path: data used when none is given on the command line; null where the user must give one.
        resize: cut out, resize and convert images of another size or mode, instead of refusing them.
        skip_unreadable: leave out images that cannot be read, instead of refusing the data.
        flip: encode every training image mirrored as well, for the generator.
        class_columns: of parquet files, the columns that the generator takes as conditions, each by itself or with
            others: `column`, or `name=column`, the most telling first. Values may be missing. Empty for the one column
            of labels.
    """

    path: str | None = None
    resize: bool = False
    skip_unreadable: bool = False
    flip: bool = False
    class_columns: tuple[str, ...] = ()


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
