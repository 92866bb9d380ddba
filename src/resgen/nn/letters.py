"""Letters to sounds: a small network that pronounces words that are in no lexicon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.nn.positions import rotary_angles
from resgen.nn.transformer import Transformer

FRAMES_PER_LETTER = 2
BLANK = 0


class LetterToSound(nn.Module):
    """Each letter becomes two frames, and each frame a phoneme or nothing (connectionist temporal classification).

    Args:
        letters: that words may hold; others make `pronounce` fail with KeyError.
        phonemes: that are said.
        width: channels of the transformer; its heads have 32, its MLP four times as many.
        num_layers: its blocks.
    """

    def __init__(self, letters: str, phonemes: str, *, width: int = 192, num_layers: int = 4) -> None:
        super().__init__()
        self.letters, self.phonemes = letters, phonemes
        self.ids = {letter: index for index, letter in enumerate(letters, 1)}
        self.num_heads = width // 32
        self.embedding = nn.Embedding(len(letters) + 1, FRAMES_PER_LETTER * width)
        self.transformer = Transformer(
            width=width, num_layers=num_layers, num_heads=self.num_heads, mlp_width=4 * width
        )
        for block in self.transformer.blocks:
            nn.init.ones_(cast(Tensor, block.bias)[2::3])  # both gates: there is no condition to open them
        self.out = nn.Linear(width, len(phonemes) + 1)

    def forward(self, words: Int[Tensor, "B N"]) -> Float[Tensor, "B 2*N P"]:
        """Logits of blank and phonemes, two frames a letter.

        Args:
            words: what `encode` returned.
        """
        x = self.embedding(words).view(len(words), -1, self.out.in_features)
        valid = (words > 0).repeat_interleave(FRAMES_PER_LETTER, dim=1)
        angles = rotary_angles(x.shape[1], x.shape[2] // self.num_heads).to(x.device)
        return self.out(self.transformer(x, x.new_zeros(len(x), 8, x.shape[2]), angles, valid))

    def encode(self, words: Sequence[str]) -> Int[Tensor, "B N"]:
        """Numbers of the letters, from 1; 0 is padding.

        Raises:
            KeyError: a letter that is not among `letters`.
        """
        rows = [torch.tensor([self.ids[letter] for letter in word]) for word in words]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    @torch.inference_mode()
    def pronounce(self, words: Sequence[str]) -> list[str]:
        """The likeliest phoneme of every frame, repetitions and blanks left out.

        Words are said one by one, so that none depends on its neighbours' length.

        Raises:
            KeyError: see `encode`.
        """
        pronunciations = []
        for word in words:
            path = torch.unique_consecutive(self(self.encode([word]))[0].argmax(1)).tolist()
            pronunciations.append("".join(self.phonemes[index - 1] for index in path if index != BLANK))
        return pronunciations
