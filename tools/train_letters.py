"""Train the letter-to-sound network of the phoneme front end on its lexicon, and measure it on words held out.

    python tools/train_letters.py --num-steps 6000 --out src/resgen/data/lexicons/english-1.safetensors

Words are held out by their first five letters, so that no inflected form of a word measured was learned. The lexicon's
longer words and those with more phonemes than two for each letter are left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Annotated

import jiwer
import torch
import tyro
from judge_training import decay_matrices, fit, length_batches
from safetensors.torch import save
from torch.nn import functional as F

from resgen.data.phonemes import CONSONANTS, STRESS, VOWELS, lexicon
from resgen.files import atomic_path
from resgen.nn.letters import BLANK, FRAMES_PER_LETTER, LetterToSound
from resgen.ops.random import generator

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PHONEMES = STRESS + VOWELS + CONSONANTS
HELD_OUT = 50
"""One in so many groups of words is held out."""


def main(
    out: Path,
    lexicon_name: str = "english-1",
    num_steps: int = 6000,
    batch_letters: int = 2048,
    width: int = 192,
    num_layers: int = 4,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train, measure, write bfloat16 weights.

    Args:
        out: safetensors file.
        lexicon_name: its file in `resgen/data/lexicons`, without an ending.
        num_steps: batches to train on.
        batch_letters: letters per step, in words of similar length.
        width: channels of the transformer.
        num_layers: its blocks.
        learning_rate: peak.
        seed: of weights and batches.
        as_json: write one JSON document to standard output.
    """
    words = {word: forms[""] for word, forms in lexicon(lexicon_name).items()}
    fitting = {word: phonemes for word, phonemes in words.items() if fits(word, phonemes)}
    held_out = [word for word in fitting if is_held_out(word)]
    train = [word for word in fitting if not is_held_out(word)]
    torch.manual_seed(seed)
    model = LetterToSound(LETTERS, PHONEMES, width=width, num_layers=num_layers)
    targets = {
        word: torch.tensor([PHONEMES.index(sound) + 1 for sound in phonemes]) for word, phonemes in fitting.items()
    }
    batches = length_batches(torch.tensor([len(word) for word in train]), batch_letters, generator(seed))

    def next_loss(_: float) -> torch.Tensor:
        batch = [train[i] for i in next(batches)]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(model.encode(batch))
        sounds = [targets[word] for word in batch]
        return F.ctc_loss(
            logits.float().log_softmax(2).transpose(0, 1),
            torch.cat(sounds),
            torch.tensor([FRAMES_PER_LETTER * len(word) for word in batch]),
            torch.tensor([len(phonemes) for phonemes in sounds]),
            blank=BLANK,
        )

    def report(step: int, share: float, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step}  {share:4.0%}  loss {loss:.3f}", file=sys.stderr, flush=True)

    optimizer = torch.optim.AdamW(decay_matrices(model, 0.01), betas=(0.9, 0.98))
    settings = {"num_steps": num_steps, "max_minutes": None, "learning_rate": learning_rate, "max_gradient": 1.0}
    fit(model, optimizer, next_loss, report=report, **settings)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    model.load_state_dict(tensors)
    result = {"words": len(words), "learned": len(train), "held_out": len(held_out)}
    result |= {"parameters": sum(p.numel() for p in model.parameters()), "num_steps": num_steps, "seed": seed}
    result |= accuracy(model, held_out, words)
    facts = {"letters": LETTERS, "phonemes": PHONEMES, "width": str(width), "num_layers": str(num_layers)}
    with atomic_path(out) as temporary:
        temporary.write_bytes(save(tensors, facts))
    print(json.dumps(result) if as_json else "\n".join(f"{name}: {value}" for name, value in result.items()))


def fits(word: str, phonemes: str) -> bool:
    """Whether the network can say a word: with its letters, and a frame for each phoneme and between equal ones."""
    twice = sum(one == other for one, other in zip(phonemes, phonemes[1:], strict=False))
    return set(word) <= set(LETTERS) and len(phonemes) + twice <= FRAMES_PER_LETTER * len(word)


def is_held_out(word: str) -> bool:
    """The same for all words that begin with the same five letters."""
    return int.from_bytes(hashlib.sha256(word[:5].encode()).digest()[:4]) % HELD_OUT == 0


def accuracy(model: LetterToSound, held_out: list[str], words: dict[str, str]) -> dict[str, float]:
    """Shares of the words that are said as the lexicon has them, and of phonemes that are not."""
    phonemes = model.pronounce(held_out)
    pairs = [(ours, words[word]) for ours, word in zip(phonemes, held_out, strict=True)]
    without = [tuple(re.sub(f"[{STRESS}]", "", each) for each in pair) for pair in pairs]
    ours, theirs = map(list, zip(*without, strict=True))
    return {
        "word_accuracy": sum(ours == theirs for ours, theirs in pairs) / len(pairs),
        "word_accuracy_without_stress": sum(ours == theirs for ours, theirs in without) / len(pairs),
        "phoneme_error_rate": jiwer.process_characters(theirs, ours).cer,
    }


if __name__ == "__main__":
    tyro.cli(main)
