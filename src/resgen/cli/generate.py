"""`resgen generate image`: new images of given classes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction

from resgen.cli.common import (
    check_out_dir,
    check_out_file,
    count_passes,
    flatten,
    option,
    positive,
    report,
    slug,
)
from resgen.cli.sampling import Drawing, PictureSampling
from resgen.errors import ConfigError

if TYPE_CHECKING:
    from resgen.pipelines.image.pipeline import ImagePipeline
    from resgen.pipelines.image.trace import SampleTrace

Classes = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, option("NAME_OR_ID ...", name="class")]


@dataclass(frozen=True, kw_only=True)
class GenerateImage(Drawing):
    """Generate images with a trained model.

    Omitted settings default to the model's own. For example:

        resgen generate image --model fashion-mnist-small --class bag 9 --num-samples 4 --out bags.png
        resgen generate image --model avatars64 --class lorelei --scale 4 --out face.png
        resgen generate image --model runs/faces/model --class lorelei,background=blue --out face.png
        resgen generate image --model runs/digits/model --num-samples 10 --steps 16 --guidance-scale 2 --out pictures/
        resgen generate image --model runs/large/model --dtype int8 --out pictures/
    """

    classes: Classes = ()
    """Classes by name or number; by default every class of the model. With several axes use AXIS=NAME, separated by
    commas; AXIS= may be omitted if only one axis has the name. The default is then every class of the first axis."""
    num_samples: Annotated[int, option("N")] = 1
    """Images per class; 1 by default."""
    sampling: Annotated[PictureSampling, OmitArgPrefixes] = PictureSampling()
    seed: int = 0
    """Image k depends only on (seed, k), not on the batch size."""
    scale: Annotated[int | None, option("N")] = None
    """Enlarge every pixel to a block of N x N; by default images keep the model's size, but small ones on a sheet are
    enlarged."""
    compile: bool = False
    """Compile the network first: takes a minute and a C++ compiler, then sampling is faster. Worthwhile for many
    images."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """An image file such as a.png (several images become a sheet), or a folder for one file per image."""

    def run(self) -> None:
        positive("--num-samples", self.num_samples)
        to_folder = self.out.is_dir() or not self.out.suffix
        check_out_dir(self.out) if to_folder else check_out_file(self.out)
        self.check_trace()
        settings = self.sampling.settings()
        from resgen.pipelines.image.output import check_scale
        from resgen.pipelines.image.pipeline import ImagePipeline

        check_scale(self.scale)
        pipe = ImagePipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype)
        if self.compile:
            pipe.compile()
        class_ids = self.class_ids(pipe)
        request: dict[str, Any] = {"class_ids": class_ids} if class_ids else {"num_samples": self.num_samples}
        begin = time.perf_counter()
        with self.watched("sampling", lambda: picture_trace(pipe)) as (callback, traced):
            result = pipe(seed=self.seed, callback=callback, **request, **settings)
            seconds = time.perf_counter() - begin
        names = [pipe.class_name(c) for c in class_ids] if class_ids else ["picture"] * len(result.images)
        files = self.write_folder(result.images, names) if to_folder else result.save(self.out, scale=self.scale)
        passes = count_passes(result.steps)
        document = {
            "files": files,
            "trace": traced,
            "class_ids": class_ids,
            "class_names": names,
            "seconds": seconds,
            "steps": result.steps,
            "passes": passes,
            "depth": result.codes.shape[-1],
        }
        number = f"{len(result.images)} image{'s' * (len(result.images) != 1)}"
        text = f"{number} in {seconds:.1f} s with {passes} network passes: {self.out}"
        report(document, as_json=self.as_json, text=text)

    def write_folder(self, images: list[Any], names: list[str]) -> list[Path]:
        """One file per image: class, number of the image, seed."""
        from resgen.data.pictures.grid import save_picture
        from resgen.pipelines.image.output import enlarged

        files = [self.out / f"{slug(name)}_{k:04d}_{self.seed}.png" for k, name in enumerate(names)]
        for image, file in zip(images, files, strict=True):
            save_picture(enlarged(image, self.scale), file)
        return files

    def class_ids(self, pipe: ImagePipeline) -> list[int] | None:
        """One class per image, or None for a model without classes."""
        if not all(self.classes):
            raise ConfigError("--class needs a class, by name or number; leave it out for every class of the model")
        names = flatten(self.classes)
        ids = [pipe.class_id(name) for name in names] if names else list(range(len(pipe.class_names)))
        return [c for c in ids for _ in range(self.num_samples)] or None


def picture_trace(pipe: ImagePipeline) -> SampleTrace:
    """A trace of images."""
    from resgen.pipelines.image.trace import SampleTrace

    return SampleTrace(pipe)
