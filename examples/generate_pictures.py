"""Generate images: one row per class, with and without guidance.

Shows `ImagePipeline.from_pretrained`, classes by name or number, sampling settings, and that an image depends on
its seed and number, not on its batch.

    python examples/generate_pictures.py --out out/generate
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from resgen import ImagePipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--model", default="fashion-mnist-small", help="a bundled name or a folder")
    parser.add_argument("--classes", nargs="+", default=["Bag", "Sneaker", "0"], help="names or numbers")
    parser.add_argument("--num-samples", type=int, default=6, help="images of each class")
    parser.add_argument("--steps", type=int, default=12, help="network evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = ImagePipeline.from_pretrained(args.model, dtype="float32")
    print("classes:", ", ".join(pipe.class_names))
    for name, scale in (("guided", pipe.sampling.guidance_scale), ("unguided", 0.0)):
        count = args.num_samples
        output = pipe(args.classes, num_samples=count, num_steps=args.steps, guidance_scale=scale, seed=0)
        output.sheet().save(args.out / f"{name}.png")
        codes = tuple(output.codes.shape)
        print(f"{name}: {len(output.images)} images in {len(output.steps)} steps, codes {codes}")

    # Image k draws from the stream (seed, k): one at a time gives the codes of the batch.
    alone = pipe(
        args.classes, num_samples=args.num_samples, num_steps=args.steps, guidance_scale=0.0, seed=0, batch_size=1
    )
    same = torch.equal(alone.codes, output.codes)
    print("the same codes one image at a time:", same)


if __name__ == "__main__":
    main()
