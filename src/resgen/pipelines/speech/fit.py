"""Does the text of a prompt or recording fit its sound? A wrong text spoils the result without any error, so doubts
are reported.

A text of less than a letter per `SLOWEST_S` of speech leaves something out. Of longer ones, the right text explains the
mels better than its own words in another order do. Where several other orders fit better, the text is likely another
one than what is said. Of 40 prompts with the text of another sentence 16 are found so in clear voices and 29 in voices
with an accent; of 40 with the right text none and 5 (`benchmarks/wrong_texts.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from resgen.data.sound.decode import trim_silence
from resgen.data.spoken import Spoken
from resgen.data.text import pad_texts, token_ids
from resgen.models.text import TextModel
from resgen.ops.alignment import expand
from resgen.ops.mel import MelConfig, log_mel

MAX_ORDERS = 12
DOUBTFUL = 2
"""Other orders that fit better, from which on a text is doubted."""
SLOWEST_S = 0.3
"""Seconds per letter or phoneme, above which too little is written down. The slowest of 934 recordings with the right
text, single words among them, has 0.29; with only the first quarter of the words written down, 635 of 739 sentences
are found."""


def other_orders(content: bytes, most: int = MAX_ORDERS) -> list[bytes]:
    """The words of a text begun elsewhere, forwards and backwards, each order once; at most `most`, spread evenly."""
    words = content.split(b" ")
    rotated = [line[k:] + line[:k] for line in (words, words[::-1]) for k in range(len(words))]
    orders = list(dict.fromkeys(b" ".join(line) for line in rotated if line != words))
    return orders if len(orders) <= most else [orders[index * len(orders) // most] for index in range(most)]


@torch.inference_mode()
def better_orders(model: TextModel, samples: Float[Tensor, " S"], spoken: Spoken, mel: MelConfig) -> tuple[int, int]:
    """How many other orders of a text's words come nearer to a recording than the text, and of how many.

    Args:
        model: text model.
        samples: prepared like a prompt, at least as many frames as the text has tokens.
        spoken: the text.
        mel: frames and bands of the model.
    """
    frames = torch.tensor([len(samples) // mel.hop_size], device=samples.device)
    mels = log_mel(samples[None, : int(frames) * mel.hop_size], mel)
    orders = other_orders(spoken.content)
    tokens, real = pad_texts([token_ids(content) for content in (spoken.content, *orders)])
    tokens, real = tokens.to(mels.device), real.to(mels.device)
    hidden = model(tokens, real)
    target, count = model.normalise(mels, frames).expand(len(tokens), -1, -1), frames.expand(len(tokens))
    durations = model.match(hidden, real, target, count)
    means = model.to_mel(expand(hidden.float(), durations, int(frames))).transpose(1, 2)
    errors = (target - means).square().sum(dim=(1, 2))
    return int((errors[1:] < errors[0]).sum()), len(orders)


def tell_doubt(
    model: TextModel,
    samples: Float[Tensor, " S"],
    spoken: Spoken,
    mel: MelConfig,
    *,
    where: str,
    doubt: Callable[[str], object],
) -> None:
    """Call `doubt` with a line that names the text if it seems wrong; arguments as in `better_orders`.

    Args:
        where: what to call the recording.
        doubt: takes the line.
    """
    samples = trim_silence(samples, mel.sample_rate_hz)
    seconds = len(samples) / mel.sample_rate_hz
    if seconds > SLOWEST_S * len(spoken.content):
        doubt(
            f"{where} has {seconds:.1f} s of speech, more than its text {spoken.text!r} accounts for; give the full "
            "transcript, because a wrong one spoils the result"
        )
        return
    if len(samples) // mel.hop_size < len(spoken.content) + 2:
        doubt(f"{where} has {seconds:.2f} s of speech, too little for its text {spoken.text!r}")
        return
    better, orders = better_orders(model, samples, spoken, mel)
    if better >= DOUBTFUL:
        doubt(
            f"{where} may say something else than its text {spoken.text!r}: {better} of {orders} other orders of the "
            "words fit it better; a wrong text spoils the result"
        )
