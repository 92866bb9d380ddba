"""`resgen evaluate`: measure a generator or a tokenizer under a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import Json, ask, check_out_dir, check_out_file, command_line, option, positive, report
from resgen.errors import ConfigError
from resgen.progress import progress_bars


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate generated images or speech, or a tokenizer's reconstructions, and save the protocol with the results.

    Generated images are always evaluated with and without guidance. After an interruption the same command continues
    where it stopped. For example:

        python tools/train_classifier.py --data digits --image-size 8 --channels 1 --max-minutes 1 --out runs/judge
        resgen evaluate --model runs/digits/model --data digits --extractor runs/judge --num-samples 500 --out d.json
        resgen evaluate --model fashion-mnist-small --data data/fashion_mnist --num-samples 2000 --out fashion.json
        resgen evaluate --model runs/a/model --data data/cifar10 --seed 0 1 2 --steps 16 --out a.json
        resgen evaluate --model runs/b/model --data data/cifar10 --protocol a.json --out b.json
        resgen evaluate --tokenizer runs/a-tokenizer/model --data data/cifar10 --out tokenizer.json
        resgen evaluate --model spoken-digits-small --data speech/digits --split test_unseen --out digits.json
        resgen evaluate --model runs/a/model --data data/cifar10 --store --out a.json
    """

    model: Annotated[str | None, option("DIR_OR_NAME")] = None
    """Pipeline folder or bundled model name. Generated images are compared with the training split; speech is
    evaluated on a split whose name begins with test_unseen, or on the last one."""
    tokenizer: Annotated[str | None, option("DIR_OR_NAME")] = None
    """Tokenizer or pipeline folder, instead of --model: the test split is compared with its reconstruction."""
    data: Annotated[str, option("PATH")]
    """Folder of class folders, parquet file or folder, or 'digits'; for speech, a folder of recordings."""
    split: Annotated[str | None, option("NAME")] = None
    """Split to use instead of the default one."""
    protocol: Annotated[Path | None, option("FILE")] = None
    """A protocol, or the report of another evaluation whose protocol to repeat."""
    extractor: Annotated[str | None, option("NAME_OR_FILE")] = None
    """Feature extractor: a bundled classifier, the folder of a classifier, 'inception', or the file of its weights; by
    default the bundled classifier of the same classes."""
    extractor_sha256: Annotated[str | None, option("HEX")] = None
    """Required hash of the extractor's weights."""
    num_samples: Annotated[int | None, option("N")] = None
    """Samples per seed and setting. Default: 10,000 images; for speech or a tokenizer, the whole split."""
    class_balance: Annotated[str | None, option("NAME")] = None
    """Class frequencies of the samples: 'equal', or 'data' for those of the reference."""
    steps: Annotated[int | None, option("N")] = None
    """Number of sampling steps, instead of the model's setting."""
    guidance_scale: Annotated[float | None, option("W")] = None
    """Classifier-free guidance scale, instead of the model's setting."""
    prompt_guidance: Annotated[float | None, option("SHARE")] = None
    """Speech: fraction of the guidance that applies to the prompt's voice alone, instead of the model's setting."""
    task: Annotated[str | None, option("NAME")] = None
    """Speech: cross-sentence (default; the prompt is another sentence) or continuation (the prompt is the beginning of
    the recording)."""
    transcriber: Annotated[str | None, option("NAME_OR_DIR")] = None
    """Speech: the recogniser: a bundled one (digits), moonshine or pocketsphinx (English), pocketsphinx-digits, or a
    local folder of Whisper, HuBERT or Wav2Vec2."""
    speaker_encoder: Annotated[str | None, option("NAME_OR_DIR")] = None
    """Speech: the speaker encoder: a bundled one, resemblyzer, or a local folder of WavLM."""
    seed: Annotated[tuple[int, ...], option("N ...")] = ()
    """One or more seeds; several give a mean and a spread."""
    batch_size: Annotated[int, option("N")] = 100
    """Images per batch."""
    resize: bool = False
    """Crop and resize images of another size instead of rejecting them."""
    dtype: Annotated[str | None, option("NAME")] = None
    """Number type of the generator: float32, bfloat16 or int8; by default the machine's fastest. Part of the
    protocol."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; by default a GPU if there is one."""
    cache: Annotated[Path | None, option("DIR")] = None
    """Cache for features, at most 4 GiB; by default 'evaluation-cache' beside --out. It may be deleted at any time."""
    store: bool = False
    """Also store the results with the model, for its model card on the hub."""
    out: Annotated[Path, option("FILE.json")]
    """Report to write; also written as FILE.md."""
    as_json: Json = False

    def run(self) -> None:
        if (self.model is None) == (self.tokenizer is None):
            raise ConfigError("one of --model (generated images) and --tokenizer (reconstructions) must be given")
        check_out_file(self.out, (".json",))
        if self.cache is not None:
            check_out_dir(self.cache, name="--cache")
        positive("--batch-size", self.batch_size)
        if self.num_samples is not None:
            positive("--num-samples", self.num_samples)
        from resgen.checkpoints.format import load_folder
        from resgen.checkpoints.locate import resolve_model
        from resgen.checkpoints.measured import keep
        from resgen.evaluation.report import write_report
        from resgen.modalities import of_model

        which = "tokenizer" if self.model is None else "model"
        name = str(getattr(self, which))
        if self.store and not Path(name).is_dir():
            raise ConfigError(f"--store: '{name}' is no folder of yours; copy or save the model to one first")
        saved = load_folder(resolve_model(name)) if self.store else None
        evaluation = ask(
            of_model(name),
            "evaluate",
            self,
            f"{which} '{name}'",
            handled=("out", "store"),
            out=self.out,
            command=command_line(),
        )
        with progress_bars() as advance:
            result = evaluation.run(advance)
        write_report(result, self.out)
        if saved is not None:
            keep(saved, result.document())
        markdown = self.out.with_suffix(".md")
        text = f"{result.markdown()}\nwritten to {self.out} and {markdown}"
        report({"files": [self.out, markdown], **result.document()}, as_json=self.as_json, text=text)
