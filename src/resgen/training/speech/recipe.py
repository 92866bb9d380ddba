"""A speech recipe: the configurations of all stages and of sampling, as one object."""

from __future__ import annotations

from dataclasses import dataclass, field

from resgen.errors import ConfigError
from resgen.kinds import AnySampling, GeneratorLossConfig, ModelConfig
from resgen.models.resgen import ResGenConfig
from resgen.models.text import TextModelConfig
from resgen.ops.mel import MelConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.codec import CodecTokenizerConfig
from resgen.tokenizers.mel import MelTokenizerConfig
from resgen.tokenizers.vocoder import VocoderConfig
from resgen.tokenizers.waveform import WaveformTokenizerConfig
from resgen.training.speech.product import PromptConfig
from resgen.training.speech.text_task import TextLossConfig
from resgen.training.speech.tokenizer_task import SoundTokenizerLossConfig
from resgen.training.speech.vocoder_task import VocoderLossConfig
from resgen.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class SpeechDataConfig:
    """Source and preparation of the recordings.

    Attributes:
        path: data used when none is given on the command line; null where the user must give some.
        trim: cut silence off both ends.
        loudness_db: loudness that every recording is brought to, in LUFS; null leaves it.
        max_seconds: longer recordings are left out.
        skip_unreadable: leave out recordings that cannot be read, instead of refusing the data.
    """

    path: str | None = None
    trim: bool = True
    loudness_db: float | None = -23.0
    max_seconds: float = 20.0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not self.max_seconds > 0:
            raise ConfigError(f"max_seconds={self.max_seconds} must be above 0")


@dataclass(frozen=True, kw_only=True)
class SpeechRecipe:
    """Everything that `resgen train` needs for speech; each field may be overridden by `--config` and `--set`."""

    name: str
    data: SpeechDataConfig = field(default_factory=SpeechDataConfig)
    tokenizer: MelTokenizerConfig | WaveformTokenizerConfig = field(default_factory=MelTokenizerConfig)
    tokenizer_loss: SoundTokenizerLossConfig = field(default_factory=SoundTokenizerLossConfig)
    tokenizer_training: TrainerConfig = field(default_factory=TrainerConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    vocoder_loss: VocoderLossConfig = field(default_factory=VocoderLossConfig)
    vocoder_training: TrainerConfig = field(default_factory=TrainerConfig)
    text: TextModelConfig = field(default_factory=TextModelConfig)
    text_loss: TextLossConfig = field(default_factory=TextLossConfig)
    text_training: TrainerConfig = field(default_factory=TrainerConfig)
    generator: ModelConfig = field(default_factory=ResGenConfig)
    generator_loss: GeneratorLossConfig = field(default_factory=GeneratorLossConfig)
    generator_training: TrainerConfig = field(default_factory=TrainerConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sampling: AnySampling = field(default_factory=SamplingConfig)


def mel_of(
    recipe: SpeechRecipe, tokenizer: MelTokenizerConfig | WaveformTokenizerConfig | CodecTokenizerConfig | None = None
) -> MelConfig:
    """The mels of the alignment: the tokenizer's own or, for one of waveforms, the vocoder's.

    Args:
        recipe: all settings.
        tokenizer: in place of the recipe's own.

    Raises:
        ConfigError: positions that are not whole numbers of frames.
    """
    config = recipe.tokenizer if tokenizer is None else tokenizer
    if isinstance(config, MelTokenizerConfig):
        return config.mel
    mel, unit = recipe.vocoder.mel, config.samples_per_position
    if mel.sample_rate_hz != config.sample_rate_hz or unit % mel.hop_size:
        raise ConfigError(
            f"vocoder.mel has {mel.sample_rate_hz} Hz and hops of {mel.hop_size}; the tokenizer has "
            f"{config.sample_rate_hz} Hz and positions of {unit} samples, a multiple of which is needed"
        )
    return mel
