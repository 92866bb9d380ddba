"""Watch the sampler: what is known after every step, and the images level by level.

Shows the sampler's callback, `SampleTrace`, and decoding with fewer levels.

    python examples/watch_steps.py --out out/watch
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from resgen import ImagePipeline
from resgen.pipelines.image.output import tile_grid
from resgen.pipelines.image.trace import SampleTrace
from resgen.samplers.records import StepRecord


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--model", default="fashion-mnist-small", help="a bundled name or a folder")
    parser.add_argument("--class", dest="class_name", default="Coat", help="name or number of the class")
    parser.add_argument("--num-samples", type=int, default=4, help="images")
    parser.add_argument("--steps", type=int, default=12, help="network evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pipe = ImagePipeline.from_pretrained(args.model)
    trace = SampleTrace(pipe, max_samples=args.num_samples)
    depth = pipe.tokenizer.spec.depth

    def show(record: StepRecord, codes: Tensor, visible: Tensor) -> None:
        """Called after every network evaluation; codes of masked levels are 0."""
        trace(record, codes, visible)
        known = visible.float().mean().item()
        print(f"step {record.step:2}/{record.num_steps}: {known:.1f} of {depth} levels known on average")

    output = pipe([args.class_name], num_samples=args.num_samples, num_steps=args.steps, seed=0, callback=show)
    trace.save(args.out / "steps.gif")
    levels = [image for count in range(1, depth + 1) for image in pipe.decode(output.codes, count)]
    tile_grid(levels, args.num_samples).save(args.out / "levels.png")  # one row per number of levels, 1 at the top
    print(f"wrote {args.out}/steps.gif and levels.png")


if __name__ == "__main__":
    main()
