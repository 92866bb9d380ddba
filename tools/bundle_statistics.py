"""Put the features of a classifier's data into the package, so that evaluations on these data need not compute them.

For example, with the data that each bundled classifier was trained on:

    python tools/bundle_statistics.py --extractor fashion-mnist-classifier --data data/fashion_mnist
    python tools/bundle_statistics.py --extractor cifar10-classifier --data data/cifar10
    python tools/bundle_statistics.py --extractor avatars64-classifier --data data/avatars64
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from resgen.checkpoints.locate import resolve_model
from resgen.evaluation.image.extractors import load_extractor
from resgen.evaluation.image.protocol import MANIFOLD_SIZE
from resgen.evaluation.image.reference import choose_split, open_reference, pixels_sha256, reference_features
from resgen.evaluation.image.shipped import Shipped, write_shipped
from resgen.progress import progress_bars


@dataclass(frozen=True, kw_only=True)
class BundleStatistics:
    """Write `statistics-<split>.json` and `.safetensors` into the folder of a bundled classifier."""

    extractor: str
    """Bundled classifier, or the folder of one."""
    data: Path
    """Its data."""
    split: str | None = None
    """Which part; without it the one that generated images are compared with."""
    cache: Path | None = None
    """Cache of `resgen evaluate`, where the features may be already."""

    def run(self) -> None:
        extractor = load_extractor(self.extractor)
        if extractor.image_size is None or extractor.channels is None:
            raise SystemExit(f"{self.extractor} takes images of any size; only features of classifiers are bundled")
        split = self.split or choose_split(self.data, "train")
        reference = open_reference(self.data, split=split, image_size=extractor.image_size, channels=extractor.channels)
        if extractor.class_names != reference.class_names:
            raise SystemExit(f"{self.extractor} has other classes than {self.data}")
        with progress_bars() as advance:
            features = reference_features(
                reference,
                extractor,
                manifold_size=MANIFOLD_SIZE,
                cache_dir=self.cache,
                use_shipped=False,
                advance=advance,
            )
        path = resolve_model(self.extractor) / f"statistics-{split}.json"
        record = Shipped(
            data=reference.name,
            pixels_sha256=pixels_sha256(reference),
            files_sha256=reference.sha256,
            resize=reference.resize,
            count=len(reference),
            image_size=reference.image_size,
            channels=reference.channels,
            class_names=reference.class_names,
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
            manifold_size=MANIFOLD_SIZE,
            halves_distance=features.halves_distance,
            num_recognised=features.num_recognised,
        )
        write_shipped(path, record, features)
        size = sum(file.stat().st_size for file in (path, path.with_suffix(".safetensors")))
        print(f"{path.parent.name}/{path.stem}: {len(reference):,} images, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    tyro.cli(BundleStatistics).run()
