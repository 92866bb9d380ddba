"""`resgen evaluate`: a generator or a tokenizer under a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import Json, ask, check_out_dir, check_out_file, command_line, option, positive, report
from resgen.errors import ConfigError
from resgen.progress import progress_bars


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure generated pictures or speech, or a tokenizer's reconstructions, under a protocol saved with the numbers.

    Generated pictures are always evaluated with and without guidance. Interrupted, the same command goes on where it
    stopped. For example:

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
    """Folder of a pipeline, or a bundled name: generated pictures are compared with the training split; speech is
    judged on a split that begins with test_unseen, or on the last one."""
    tokenizer: Annotated[str | None, option("DIR_OR_NAME")] = None
    """Folder of a tokenizer or pipeline, instead of --model: the test split is compared with its reconstruction."""
    data: Annotated[str, option("PATH")]
    """Folder of class folders, parquet file or folder, or 'digits'; for speech, a folder of recordings."""
    split: Annotated[str | None, option("NAME")] = None
    """Another split than the one named above."""
    protocol: Annotated[Path | None, option("FILE")] = None
    """A protocol, or the report of another evaluation whose protocol is to be repeated."""
    extractor: Annotated[str | None, option("NAME_OR_FILE")] = None
    """Whose features are compared: a bundled classifier, the folder of one, 'inception', or the file of its weights;
    without it the bundled classifier of the same classes."""
    extractor_sha256: Annotated[str | None, option("HEX")] = None
    """Hash that the extractor's weights must have."""
    num_samples: Annotated[int | None, option("N")] = None
    """Samples per seed and setting. If left out: 10,000 pictures; of speech, or for a tokenizer, all of the split."""
    class_balance: Annotated[str | None, option("NAME")] = None
    """Classes of the samples: 'equal', or 'data' for the frequencies of the reference."""
    steps: Annotated[int | None, option("N")] = None
    """Network evaluations of the sampler, instead of the model's setting."""
    guidance_scale: Annotated[float | None, option("W")] = None
    """Guidance, instead of the model's setting."""
    prompt_guidance: Annotated[float | None, option("SHARE")] = None
    """Speech: share of the guidance that strengthens the prompt's voice alone, instead of the model's setting."""
    task: Annotated[str | None, option("NAME")] = None
    """Speech: cross-sentence (a prompt of another sentence; so if left out) or continuation (the beginning of the
    recording)."""
    transcriber: Annotated[str | None, option("NAME_OR_DIR")] = None
    """Speech: what understands it: a bundled recogniser (of digits), moonshine or pocketsphinx (of English),
    pocketsphinx-digits, or a local folder of Whisper, HuBERT or Wav2Vec2."""
    speaker_encoder: Annotated[str | None, option("NAME_OR_DIR")] = None
    """Speech: what compares voices: a bundled encoder, resemblyzer, or a local folder of WavLM."""
    seed: Annotated[tuple[int, ...], option("N ...")] = ()
    """One or more; several give a mean and a spread."""
    batch_size: Annotated[int, option("N")] = 100
    """Pictures per network evaluation."""
    resize: bool = False
    """Cut out and resize pictures of another size, instead of refusing them."""
    dtype: Annotated[str | None, option("NAME")] = None
    """float32, bfloat16 or int8, of the generator; without it what the machine is fast in. Part of the protocol."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; without it a GPU if there is one."""
    cache: Annotated[Path | None, option("DIR")] = None
    """Where features are kept, at most 4 GiB of them; 'evaluation-cache' beside --out if left out. It may be deleted at
    any time."""
    store: bool = False
    """Keep the numbers with the model too: they stand on its card when it is pushed to the hub."""
    out: Annotated[Path, option("FILE.json")]
    """Report to write; the same is written as FILE.md."""
    as_json: Json = False

    def run(self) -> None:
        if (self.model is None) == (self.tokenizer is None):
            raise ConfigError("one of --model (generated pictures) and --tokenizer (reconstructions) must be given")
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
