"""`resgen compare` and `resgen sweep`: kinds of generator, and sampling settings, measured against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    ask,
    check_out_dir,
    command_line,
    flatten,
    load_recipe,
    message,
    option,
    positive,
    report,
    terminable,
    with_data_options,
)
from resgen.cli.train import EXIT_INTERRUPTED
from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train kinds of generator on the same codes, for the same time and for the same steps, and evaluate all alike.

    After an interruption repeat the command with --resume; finished work is not repeated. The report is in report.md,
    with report.csv, report.json and plots. For example:

        resgen compare --recipe fashion_mnist --tokenizer fashion-mnist-small --data data/fashion_mnist \\
            --kinds resgen residual maskgit rq_transformer --seeds 3 --max-minutes-per-model 10 --out runs/kinds
        resgen compare --recipe spoken_digits --tokenizer runs/mel/model --text runs/text/model \\
            --vocoder runs/vocoder/model --data speech/digits --kinds residual clam_tts valle --out runs/voices
    """

    recipe: str
    """Recipe name; the other kinds get as many parameters as its generator."""
    tokenizer: Annotated[str, option("DIR")]
    """Tokenizer folder or bundled model name; all kinds share its codes."""
    data: Annotated[str, option("PATH")]
    """Images: class folders, parquet, or 'digits'. Speech: parquet, or a folder with metadata.csv."""
    text: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the shared text model."""
    vocoder: Annotated[str | None, option("DIR")] = None
    """Speech: folder of the shared vocoder."""
    kinds: Annotated[tuple[str, ...], option("NAME ...")] = ()
    """resgen, residual, direct, maskgit, rq_transformer, ar_resgen, valle; all by default. Speech: also clam_tts;
    by default resgen, residual, clam_tts and valle."""
    seeds: Annotated[int, option("N")] = 3
    """Training runs per kind, with seeds 0 to N - 1."""
    max_minutes_per_model: Annotated[float, option("M")] = 10.0
    """Minutes per training run."""
    num_samples: Annotated[int, option("N")] = 5000
    """Images (with and without guidance) or utterances per evaluation."""
    search_samples: Annotated[int, option("N")] = 1000
    """Images or utterances per trial when tuning sampling settings, and images per point of the curves."""
    depths: Annotated[tuple[int, ...], option("N ...")] = ()
    """Also train the recipe's own kind on the first N levels, for each N given."""
    equal_steps_seeds: Annotated[int, option("N")] = 1
    """Number of seeds for which every kind is also trained for as many steps as the slowest kind took."""
    extractor: Annotated[str | None, option("NAME_OR_FILE")] = None
    """Extractor of the features to compare; by default the bundled classifier of the same classes."""
    transcriber: Annotated[str | None, option("NAME_OR_DIR")] = None
    """Speech: the recogniser, as for `evaluate`."""
    speaker_encoder: Annotated[str | None, option("NAME_OR_DIR")] = None
    """Speech: the speaker encoder, as for `evaluate`."""
    resize: bool = False
    """Images: crop, resize and convert those of another size or mode instead of rejecting them."""
    jobs: Annotated[int, option("N")] = 1
    """Training runs in parallel, each on its share of the CPU cores."""
    config: ConfigFile = None
    overrides: Overrides = ()
    out: Annotated[Path, option("DIR")]
    """Folder of the comparison."""
    resume: bool = False
    """Continue the comparison in --out."""
    as_json: Json = False

    def run(self) -> int:
        check_out_dir(self.out)
        positive("--seeds", self.seeds)
        modality, recipe = load_recipe(self.recipe, self.config, self.overrides)
        recipe = with_data_options(recipe, self, f"recipe '{self.recipe}' is for {modality.noun}")
        from resgen.training import Interrupted

        settings = ask(
            modality,
            "comparison",
            self,
            f"recipe '{self.recipe}'",
            handled=("recipe", "config", "overrides", "resize", "out", "resume", "max_minutes_per_model"),
            seeds=tuple(range(self.seeds)),
            max_minutes=self.max_minutes_per_model,
            equal_steps_seeds=min(self.equal_steps_seeds, self.seeds),
        )
        try:
            with terminable():
                files = modality.has("compare")(
                    recipe, settings, self.out, resume=self.resume, say=message, command=command_line()
                )
        except (Interrupted, KeyboardInterrupt):
            message("interrupted; what is finished is kept, continue with --resume")
            return EXIT_INTERRUPTED
        report({"files": files}, as_json=self.as_json, text=files[0].read_text(encoding="utf-8"))
        return 0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Evaluate a model under every combination of sampling settings; writes a table, best first, and a heat map.

    After an interruption the table has the combinations measured so far. For example:

        resgen sweep --model runs/digits/model --data digits --extractor runs/judge --grid steps=4,8 --out sweep
        resgen sweep --model fashion-mnist-small --data data/fashion --grid steps=8,16 top_p=0.9,1 --out sweep
        resgen sweep --model runs/a/model --data data/ --grid top_p=0.9,1 choice_temperature=1,4 --store --out sweep
    """

    model: Annotated[str, option("DIR_OR_NAME")]
    """Pipeline folder or bundled model name."""
    data: Annotated[str, option("PATH")]
    """Reference images (the training split)."""
    grid: Annotated[tuple[tuple[str, ...], ...], UseAppendAction, option("SETTING=VALUES ...")] = ()
    """Settings with comma-separated values: steps=8,16,32 schedule=circle,power."""
    num_samples: Annotated[int, option("N")] = 1000
    """Images per combination."""
    seed: int = 1000
    """Seed of the samples; use another one for the final evaluation."""
    extractor: Annotated[str | None, option("NAME_OR_FILE")] = None
    """Extractor of the features to compare; by default the bundled classifier of the same classes."""
    store: bool = False
    """Store the best settings as the model's defaults."""
    resize: bool = False
    """Crop and resize images of another size instead of rejecting them."""
    out: Annotated[Path, option("DIR")]
    """Folder for sweep.md and sweep.png."""
    as_json: Json = False

    def run(self) -> int:
        check_out_dir(self.out)
        if self.num_samples < 2:
            raise ConfigError(f"--num-samples {self.num_samples} must be at least 2; a distance needs as many")
        from resgen.experiments.image.judge import Judge
        from resgen.experiments.image.sweep import (
            SweepRow,
            own_folder,
            parse_grid,
            store_settings,
            sweep,
            sweep_markdown,
            write_sweep,
            write_table,
        )
        from resgen.kinds import sampling_with
        from resgen.pipelines.image.pipeline import ImagePipeline

        folder = own_folder(self.model) if self.store else None
        if folder is not None:  # which a new one will replace
            check_out_dir(folder.absolute().parent, name="--store")
        pipe = ImagePipeline.from_pretrained(self.model)
        grid = parse_grid(flatten(self.grid), pipe.sampling)
        judge = Judge(
            self.data,
            image_size=pipe.tokenizer.config.image_size,
            channels=pipe.tokenizer.config.channels,
            extractor=self.extractor,
            cache_dir=self.out / "evaluation-cache",
            resize=self.resize,
            device=str(pipe.device),
        )
        done: list[SweepRow] = []

        def say(number: int, total: int, row: SweepRow) -> None:
            done.append(row)
            settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
            score, left = row.score, row.score.seconds * (total - number)
            recall = "" if score.recall is None else f"  recall {score.recall:.3f}"
            message(f"{number}/{total}  {settings}  {judge.metric} {score.distance:.3f}{recall}, about {left:.0f} s")

        about: dict[str, Any] = {
            "metric": judge.metric,
            "model": self.model,
            "num_samples": self.num_samples,
            "seed": self.seed,
        }
        try:
            with terminable():
                rows = sweep(pipe, judge, grid, num_samples=self.num_samples, seed=self.seed, report=say)
        except KeyboardInterrupt:
            if not done:
                raise
            path = write_table(self.out, done, **about)
            message(f"interrupted; the {len(done)} combinations measured so far are in '{path}'")
            return EXIT_INTERRUPTED
        write_sweep(self.out, rows, grid, **about)
        if folder is not None:
            store_settings(folder, sampling_with(pipe.sampling, dict(rows[0].settings)))
        document: dict[str, Any] = {"metric": judge.metric, "rows": rows, "stored": self.store, "out": self.out}
        report(document, as_json=self.as_json, text=sweep_markdown(rows, **about))
        return 0
