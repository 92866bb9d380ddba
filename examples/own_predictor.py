"""Sample with a model of your own: the sampler knows codes and which of them are visible, and nothing else.

Shows the contract between model and sampler, `resgen.types.Predictor`, with the simplest model there is: how
often each code occurs at each position and level. Its images (`frequencies.png`), beside those of the bundled
model from which the frequencies were counted (`counted.png`), show why a generator is needed.

    python examples/own_predictor.py --out out/predictor
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgen import ImagePipeline
from resgen.ops.sampling import nucleus_choice
from resgen.pipelines.image.output import tile_grid
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.types import LevelWalk, NoiseSize, ProposalNoise


class Frequencies:
    """A `Predictor`, and the `Distribution` it answers with: the same for every input."""

    def __init__(self, codes: Tensor, codebook_size: int) -> None:
        counts = F.one_hot(codes, codebook_size).sum(0) + 0.01
        self.log_probs = (counts / counts.sum(-1, keepdim=True)).log()  # [L, D, V]

    def __call__(self, codes: Tensor, visible: Tensor, guidance_scale: float) -> Frequencies:
        """One network evaluation: codes [B, L, D] and visible [B, L] in, a distribution of what is masked out."""
        self.visible = visible.flatten()
        return self

    def propose(
        self, rows: Tensor, noise: ProposalNoise, walk: LevelWalk, *, top_p: float, temperature: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Codes and log-probabilities [N, D] at the flattened positions `rows`; 0 at visible levels.

        `walk` knows which levels this step can reveal; drawing all, as here, gives the same samples. Settings
        without a meaning here, such as `by_component`, are left aside.
        """
        logits, uniform = self.log_probs[rows % len(self.log_probs)], noise.uniform
        codes = nucleus_choice(logits.flatten(0, 1) / temperature, uniform.flatten(), top_p).view(uniform.shape)
        log_prob = logits.gather(-1, codes[..., None]).squeeze(-1)
        masked = torch.arange(uniform.shape[1]) >= self.visible[rows, None]
        return codes * masked, log_prob * masked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--model", default="fashion-mnist-small", help="a bundled name or a folder")
    parser.add_argument("--class", dest="class_name", default="Trouser", help="name or number of the class")
    parser.add_argument("--num-samples", type=int, default=32, help="images to count on")
    parser.add_argument("--steps", type=int, default=8, help="network evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = ImagePipeline.from_pretrained(args.model, device="cpu")
    samples = pipe([args.class_name], num_samples=args.num_samples, num_steps=args.steps, seed=0)
    spec = pipe.generator.spec
    predict = Frequencies(samples.codes, spec.codebook_size)
    sampling = SamplingConfig(num_steps=args.steps, guidance_scale=0.0, choice_temperature=1.0)
    noise = draw_noise(0, range(8), sampling.num_steps, spec, NoiseSize(uniform=spec.depth, normal=0))
    codes = sample_codes(predict, noise, sampling)
    tile_grid(samples.images[:8], 8).save(args.out / "counted.png")
    tile_grid(pipe.decode(codes), 8).save(args.out / "frequencies.png")
    print(f"8 samples of {spec.num_tokens} codes in {sampling.num_steps} steps: {args.out / 'frequencies.png'}")


if __name__ == "__main__":
    main()
