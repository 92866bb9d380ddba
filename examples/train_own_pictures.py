"""Train on images of your own from Python: a recipe with changes, both stages, and new images.

Shows recipes as frozen dataclasses, `train_tokenizer`, `train_generator` and the folders they leave. With
`--data FOLDER` (class folders of images) give a recipe of about their size, for example `--recipe cifar10`. The
default trains on scikit-learn's digits, as long as the recipe says (some minutes); `--steps` makes it shorter.

    python examples/train_own_pictures.py --out runs/mine
    python examples/train_own_pictures.py --data photos --recipe cifar10 --minutes 5 --out runs/photos
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from resgen import ImagePipeline
from resgen.modalities import load_recipe
from resgen.pipelines.image.output import tile_grid
from resgen.training import Run
from resgen.training.image.runs import train_generator, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs")
    parser.add_argument("--data", help="folder of class folders, or parquet; the recipe's own if left out")
    parser.add_argument("--recipe", default="digits", help="the recipe nearest in size")
    parser.add_argument("--steps", type=int, help="steps of each training, in place of the recipe's")
    parser.add_argument("--minutes", type=float, help="the most minutes of each training")
    args = parser.parse_args()

    recipe = load_recipe(args.recipe)[1]
    recipe = replace(recipe, data=replace(recipe.data, resize=args.data is not None))
    if args.steps:
        recipe = replace(
            recipe,
            tokenizer_training=replace(recipe.tokenizer_training, num_steps=args.steps),
            generator_training=replace(recipe.generator_training, num_steps=args.steps),
        )
    tokenizer, generator = args.out / "tokenizer", args.out / "generator"
    metrics = train_tokenizer(recipe, Run(data=args.data, out=tokenizer, max_minutes=args.minutes))
    print(f"reconstruction: {metrics[f'psnr_db/{recipe.tokenizer.quantizer.depth}']:.1f} dB")
    models = {"tokenizer": tokenizer / "model"}
    run = Run(data=args.data, out=generator, max_minutes=args.minutes, models=models)
    metrics = train_generator(recipe, run)
    print(f"held-out loss of the generator: {metrics['val_loss']:.2f} nats per token")

    pipe = ImagePipeline.from_pretrained(generator / "model")
    tile_grid(pipe(num_samples=4, seed=0).images, 4).save(args.out / "samples.png")
    print(f"one row per class ({', '.join(pipe.class_names)}): {args.out / 'samples.png'}")


if __name__ == "__main__":
    main()
