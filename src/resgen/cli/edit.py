"""`resgen edit image`: regenerate part of an image."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes

from resgen.cli.common import check_out_dir, check_out_file, count_passes, option, positive, report, slug
from resgen.cli.generate import picture_trace
from resgen.cli.sampling import Drawing, PictureSampling
from resgen.errors import ConfigError

if TYPE_CHECKING:
    from resgen.pipelines.image.edit import EditOutput


@dataclass(frozen=True, kw_only=True)
class EditImage(Drawing):
    """Regenerate part of an image, or its finer levels, with a trained model.

    The image is encoded, the kept codes stay unchanged, and the model samples the rest. For example:

        resgen generate image --model fashion-mnist-small --class bag --out bag.png
        resgen edit image --model fashion-mnist-small --input bag.png --mask 0,0,28,14 --class bag --out edited.png
        resgen edit image --model fashion-mnist-small --input bag.png --keep-levels 2 --class dress --out dresses/
        resgen edit image --model m --input a.png --mask mask.png --class 3 --blend --num-samples 5 --out edited.png
    """

    input: Annotated[Path, option("IMAGE")]
    """The image to edit."""
    mask: Annotated[str | None, option("IMAGE|BOX")] = None
    """What to regenerate: the white area of an image, or a box LEFT,TOP,RIGHT,BOTTOM in pixels at the model's size."""
    keep: Annotated[str | None, option("BOX")] = None
    """Regenerate everything outside this box instead."""
    keep_levels: Annotated[int | None, option("N")] = None
    """Keep the N coarsest levels of the regenerated part (without --mask and --keep: of all); only details vary."""
    class_name: Annotated[str | None, option("NAME_OR_ID", name="class")] = None
    """Class to generate, the image's own or another. Required if the model has classes."""
    blend: bool = False
    """Copy the pixels outside the mask from the input instead of decoding them."""
    resize: bool = False
    """Crop, resize and convert an image of another size or mode instead of rejecting it."""
    num_samples: Annotated[int, option("N")] = 1
    """Number of results; 1 by default."""
    sampling: Annotated[PictureSampling, OmitArgPrefixes] = PictureSampling()
    seed: int = 0
    """Result k depends only on (seed, k), not on the batch size."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """An image file for a sheet of input, mask and results, or a folder for this sheet and one file per result."""

    def run(self) -> None:
        positive("--num-samples", self.num_samples)
        to_folder = self.out.is_dir() or not self.out.suffix
        inputs = (self.input, Path(self.mask) if self.mask else None)
        check_out_dir(self.out) if to_folder else check_out_file(self.out, sources=inputs)
        self.check_trace()
        settings = self.sampling.settings()
        from resgen.pipelines.image.pipeline import ImagePipeline

        what = self.what()
        pipe = ImagePipeline.from_pretrained(self.model, device=self.device, dtype=self.dtype)
        begin = time.perf_counter()
        with self.watched("sampling", lambda: picture_trace(pipe)) as (callback, traced):
            result = pipe.edit(
                self.input,
                **what,
                keep_levels=self.keep_levels,
                class_id=self.class_name,
                num_samples=self.num_samples,
                seed=self.seed,
                blend=self.blend,
                resize=self.resize,
                callback=callback,
                **settings,
            )
            seconds = time.perf_counter() - begin
        name = pipe.class_name(result.class_ids[0]) if pipe.num_classes else "picture"
        files = self.write(result, name, to_folder=to_folder)
        passes, visible = count_passes(result.steps), result.plan.visible
        num_new = int((visible < result.codes.shape[-1]).sum())
        document = {
            "files": files,
            "trace": traced,
            "class_name": name if pipe.num_classes else None,
            "positions": len(visible),
            "new_positions": num_new,
            "given_codes": int(visible.sum()),
            "seconds": seconds,
            "steps": result.steps,
            "passes": passes,
            "depth": result.codes.shape[-1],
        }
        number = f"{len(result.images)} image{'s' * (len(result.images) != 1)}"
        side = pipe.tokenizer.config.downsampling
        text = (
            f"{number} with {num_new} of {len(visible)} positions ({side}x{side} pixels each) regenerated in "
            f"{seconds:.1f} s with {passes} network passes: {self.out}"
        )
        report(document, as_json=self.as_json, text=text)

    def what(self) -> dict[str, Any]:
        """`mask` and `keep` as the pipeline takes them.

        Raises:
            ConfigError: --keep is no box, or --mask neither a box nor a file.
        """
        from resgen.pipelines.image.edit import Box

        keep = None if self.keep is None else Box.parse(self.keep)
        if self.keep is not None and keep is None:
            raise ConfigError(f"--keep '{self.keep}' must be a box, LEFT,TOP,RIGHT,BOTTOM")
        if self.mask is None:
            return {"mask": None, "keep": keep}
        box = Box.parse(self.mask)
        if box is None and not Path(self.mask).exists():
            raise ConfigError(f"--mask '{self.mask}' is neither a file nor a box, LEFT,TOP,RIGHT,BOTTOM")
        return {"mask": box or Path(self.mask), "keep": keep}

    def write(self, result: EditOutput, name: str, *, to_folder: bool) -> list[Path]:
        """The sheet, or one file per result (class, number, seed) and the sheet last."""
        from resgen.data.pictures.grid import save_picture

        if not to_folder:
            return [save_picture(result.sheet(), self.out)]
        files = [self.out / f"{slug(name)}_{k:04d}_{self.seed}.png" for k in range(len(result.images))]
        for image, file in zip(result.images, files, strict=True):
            save_picture(image, file)
        return [*files, save_picture(result.sheet(), self.out / "sheet.png")]
