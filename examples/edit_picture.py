"""Edit an image: regenerate a part, the rest stays code for code; or keep the shape and vary the details.

Shows `ImagePipeline.edit` with a box, with `keep_levels`, and what is guaranteed of the codes.

    python examples/edit_picture.py --out out/edit
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
    parser.add_argument("--input", type=Path, help="an image of the model's size; one is generated if left out")
    parser.add_argument("--class", dest="class_name", default="Bag", help="name or number of the class")
    parser.add_argument("--num-samples", type=int, default=4, help="results of each edit")
    parser.add_argument("--steps", type=int, default=12, help="network evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = ImagePipeline.from_pretrained(args.model)
    picture = args.input or pipe([args.class_name], num_steps=args.steps, seed=1).images[0]
    size = pipe.tokenizer.config.image_size
    common = {"class_id": args.class_name, "num_samples": args.num_samples, "num_steps": args.steps, "seed": 0}

    upper_half = pipe.edit(picture, mask=(0, 0, size, size // 2), **common)
    upper_half.sheet().save(args.out / "upper-half.png")
    details = pipe.edit(picture, keep_levels=2, **common)
    details.sheet().save(args.out / "details.png")

    for name, result in (("upper half", upper_half), ("details", details)):
        fixed = torch.arange(result.codes.shape[-1]) < result.plan.visible[:, None]
        unchanged = (result.codes == result.plan.codes)[:, fixed].all().item()
        print(f"{name}: {fixed.float().mean():.0%} of the codes were given, unchanged: {unchanged}")


if __name__ == "__main__":
    main()
