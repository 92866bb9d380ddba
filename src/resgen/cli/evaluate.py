"""`resgen evaluate`: a generator or a tokenizer under a protocol."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resgen.cli.common import Json, check_out_dir, check_out_file, option, positive, report
from resgen.errors import ConfigError
from resgen.progress import progress_bars

if TYPE_CHECKING:
    from resgen.evaluation.image.extractors import Extractor
    from resgen.evaluation.image.reference import Reference
    from resgen.evaluation.protocol import EvaluationProtocol
    from resgen.evaluation.report import EvaluationReport

NUM_SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure generated pictures, or a tokenizer's reconstructions, under a protocol that is saved with the numbers.

    Generated pictures are always evaluated with and without guidance. Interrupted, the same command goes on where it
    stopped. For example:

        resgen evaluate --model fashion-mnist-small --data data/fashion_mnist --num-samples 2000 --out fashion.json
        resgen evaluate --model runs/a/model --data data/cifar10 --seed 0 1 2 --steps 16 --out a.json
        resgen evaluate --model runs/b/model --data data/cifar10 --protocol a.json --out b.json
        resgen evaluate --tokenizer runs/a-tokenizer/model --data data/cifar10 --out tokenizer.json
        resgen evaluate --model spoken-digits-small --data speech/digits --split test_unseen --task cross-sentence \\
            --out digits.json
    """

    model: Annotated[str | None, option("DIR_OR_NAME")] = None
    """Folder of a pipeline, or a bundled name: generated pictures are compared with the training split."""
    tokenizer: Annotated[str | None, option("DIR_OR_NAME")] = None
    """Folder of a tokenizer or pipeline, instead of --model: the test split is compared with its reconstruction."""
    data: Annotated[str, option("PATH")]
    """Folder of class folders, parquet file or folder, or 'digits'."""
    split: Annotated[str | None, option("NAME")] = None
    """Which split to compare with, instead of the one said above."""
    protocol: Annotated[Path | None, option("FILE")] = None
    """A protocol, or the report of another evaluation whose protocol is to be repeated."""
    extractor: Annotated[str | None, option("NAME_OR_FILE")] = None
    """Whose features are compared: a bundled classifier, the folder of one, 'inception', or the file of its weights;
    without it the bundled classifier of the same classes."""
    extractor_sha256: Annotated[str | None, option("HEX")] = None
    """Hash that the extractor's weights must have."""
    num_samples: Annotated[int | None, option("N")] = None
    """Pictures per seed and setting: 10,000 if left out, or all of the split for a tokenizer."""
    class_balance: Annotated[str | None, option("NAME")] = None
    """Classes of the samples: 'equal', or 'data' for the frequencies of the reference."""
    steps: Annotated[int | None, option("N")] = None
    """Network evaluations of the sampler, instead of the model's setting."""
    guidance_scale: Annotated[float | None, option("W")] = None
    """Guidance, instead of the model's setting."""
    prompt_guidance: Annotated[float | None, option("SHARE")] = None
    """Speech: share of the guidance that strengthens the prompt's voice alone, instead of the model's setting."""
    task: Annotated[str | None, option("NAME")] = None
    """Speech: cross-sentence (a prompt of another sentence) or continuation (the beginning of the recording)."""
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
    """float32 or bfloat16, of the generator; without it what the machine is fast in. It is part of the protocol."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; without it a GPU if there is one."""
    cache: Annotated[Path | None, option("DIR")] = None
    """Where features are kept; 'evaluation-cache' beside --out if left out. It may be deleted at any time."""
    out: Annotated[Path, option("FILE.json")]
    """Report to write; the same is written as FILE.md."""
    as_json: Json = False

    def run(self) -> None:
        self._check()
        if self.task is not None:
            return self._speech()
        with progress_bars() as advance:
            result = self._generation(advance) if self.model is not None else self._reconstruction(advance)
        from resgen.config import config_to_dict
        from resgen.evaluation.report import report_markdown, write_report

        write_report(result, self.out)
        markdown = self.out.with_suffix(".md")
        names = {"metric": result.protocol.metric_name, "protocol_id": result.protocol.protocol_id}
        document = {"files": [self.out, markdown], **names, **config_to_dict(result)}
        text = f"{report_markdown(result)}\nwritten to {self.out} and {markdown}"
        report(document, as_json=self.as_json, text=text)

    def _check(self) -> None:
        if (self.model is None) == (self.tokenizer is None):
            raise ConfigError("one of --model (generated pictures) and --tokenizer (reconstructions) must be given")
        check_out_file(self.out, (".json",))
        check_out_dir(self.cache_dir)
        positive("--batch-size", self.batch_size)
        if self.num_samples is not None:
            positive("--num-samples", self.num_samples)
        of_pictures = ("protocol", "extractor", "extractor_sha256", "class_balance", "dtype", "cache", "tokenizer")
        for name in of_pictures if self.task is not None else ():
            self._refuse(name, "is of pictures; leave it out with --task")
        for name in ("transcriber", "speaker_encoder", "prompt_guidance") if self.task is None else ():
            self._refuse(name, "is of speech, which needs --task cross-sentence or continuation")
        of_generation = ("class_balance", "steps", "guidance_scale", "seed", "dtype")
        of_protocol = ("split", "num_samples", *of_generation)
        for name in of_generation if self.tokenizer is not None else ():
            self._refuse(name, "is of generated pictures; leave it out with --tokenizer")
        for name in of_protocol if self.protocol is not None else ():
            self._refuse(name, f"is named by the protocol '{self.protocol}'; leave it out")

    def _refuse(self, name: str, why: str) -> None:
        value = getattr(self, name)
        if value is not None and value != ():
            raise ConfigError(f"--{name.replace('_', '-')} {value} {why}")

    def _speech(self) -> None:
        from resgen.cli.evaluate_speech import run_speech

        options = {
            "num_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "prompt_guidance": self.prompt_guidance,
        }
        with progress_bars() as advance:
            run_speech(
                model=str(self.model),
                data=self.data,
                split=self.split,
                task=str(self.task),
                transcriber=self.transcriber,
                speaker_encoder=self.speaker_encoder,
                num_trials=self.num_samples,
                seeds=self.seed or (0,),
                settings={name: value for name, value in options.items() if value is not None},
                device=self.device,
                out=self.out,
                as_json=self.as_json,
                command=_command(),
                advance=advance,
            )

    @property
    def cache_dir(self) -> Path:
        """Where features are kept."""
        return self.cache or self.out.parent / "evaluation-cache"

    def _generation(self, advance: Callable[[int, int, str], None]) -> EvaluationReport:
        from resgen.checkpoints.format import load_folder
        from resgen.checkpoints.locate import resolve_model
        from resgen.config import config_to_dict
        from resgen.evaluation.checks import generation_protocol
        from resgen.evaluation.image.evaluate import evaluate_generation, folder_sha256
        from resgen.experiments.judge import samples_of
        from resgen.pipelines.image.pipeline import ImagePipeline

        assert self.model is not None
        template = self._template("generation")
        dtype = template.sampling.get("dtype", "auto") if template else self.dtype or "auto"
        pipe = ImagePipeline.from_pretrained(self.model, device=self.device, dtype=dtype)
        settings = {"num_steps": self.steps, "guidance_scale": self.guidance_scale}
        if template:
            settings = {name: value for name, value in template.sampling.items() if name != "dtype"}
        sampling = pipe.sampling_with(**settings)
        shape = pipe.tokenizer.config.image_size, pipe.tokenizer.config.channels
        reference = self._reference(template, "train", *shape)
        reference.check_classes(pipe.class_names, pipe.num_classes)
        balance = (self.class_balance or "equal") if pipe.num_classes else "none"
        extractor = self._extractor(template, reference, str(pipe.device))
        protocol = generation_protocol(
            extractor,
            reference,
            num_samples=template.num_samples if template else self.num_samples or NUM_SAMPLES,
            sampling={**config_to_dict(sampling), "dtype": str(pipe.dtype).removeprefix("torch.")},
            class_balance=template.class_balance if template and pipe.num_classes else balance,
            seeds=template.seeds if template else self.seed or (0,),
            **_measures(template),
        )
        _same(template, protocol)
        return evaluate_generation(
            samples_of(pipe, sampling, self.batch_size),
            protocol,
            extractor,
            reference,
            model=self.model,
            model_sha256=folder_sha256(load_folder(resolve_model(self.model), verify=False)),
            cache_dir=self.cache_dir,
            report_progress=advance,
            command=_command(),
            environment={"device": str(pipe.device)},
        )

    def _reconstruction(self, advance: Callable[[int, int, str], None]) -> EvaluationReport:
        import torch

        from resgen.checkpoints.artefacts import load_tokenizer
        from resgen.devices import choose_device
        from resgen.evaluation.checks import reconstruction_protocol
        from resgen.evaluation.image.evaluate import evaluate_reconstruction, folder_sha256
        from resgen.ops.images import from_uint8, to_uint8

        assert self.tokenizer is not None
        template = self._template("reconstruction")
        tokenizer, folder = load_tokenizer(self.tokenizer)
        device = choose_device(self.device or "auto")
        tokenizer = tokenizer.to(device)
        reference = self._reference(template, "test", tokenizer.config.image_size, tokenizer.config.channels)
        extractor = self._extractor(template, reference, str(device))
        num_samples = template.num_samples if template else self.num_samples
        protocol = reconstruction_protocol(extractor, reference, num_samples=num_samples, **_measures(template))
        _same(template, protocol)

        @torch.inference_mode()
        def reconstruct(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            outputs, codes = [], []
            for part in pictures.split(self.batch_size):
                codes.append(tokenizer.encode(from_uint8(part.to(device))))
                outputs.append(to_uint8(tokenizer.decode(codes[-1])).cpu())
            return torch.cat(outputs), torch.cat(codes).cpu()

        return evaluate_reconstruction(
            reconstruct,
            protocol,
            extractor,
            reference,
            codebook_size=tokenizer.spec.codebook_size,
            model=self.tokenizer,
            model_sha256=folder_sha256(folder, "tokenizer"),
            cache_dir=self.cache_dir,
            report_progress=advance,
            command=_command(),
            environment={"device": str(device)},
        )

    def _template(self, purpose: str) -> EvaluationProtocol | None:
        """The protocol of `--protocol`."""
        from resgen.evaluation.protocol import load_protocol

        if self.protocol is None:
            return None
        protocol = load_protocol(self.protocol)
        if protocol.purpose != purpose:
            raise ConfigError(
                f"--protocol '{self.protocol}' is for {protocol.purpose}, and "
                f"--{'model' if self.model else 'tokenizer'} asks for {purpose}: their numbers cannot be compared"
            )
        return protocol

    def _reference(self, template: EvaluationProtocol | None, usual: str, size: int, channels: int) -> Reference:
        from resgen.evaluation.image.reference import choose_split, open_reference

        split = template.reference_split if template else self.split or choose_split(self.data, usual)
        resize = template.resize != "none" if template else self.resize
        return open_reference(self.data, split=split, image_size=size, channels=channels, resize=resize)

    def _extractor(self, template: EvaluationProtocol | None, reference: Reference, device: str) -> Extractor:
        from resgen.evaluation.image.extractors import default_extractor, load_extractor

        name = self.extractor or (template.extractor if template else None)
        shape = reference.image_size, reference.channels
        if name is None:
            name = default_extractor(reference.class_names, *shape)
        expected = self.extractor_sha256 or (template.extractor_sha256 if template else None)
        extractor = load_extractor(name, device, expected_sha256=expected)
        extractor.check_pictures(*shape)
        if template and extractor.sha256 == template.extractor_sha256:  # the same network in a folder of another name
            return replace(extractor, name=template.extractor)
        return extractor


def _measures(template: EvaluationProtocol | None) -> dict[str, Any]:
    """The definitions of the measures that a protocol names."""
    names = ("kid_subsets", "kid_subset_size", "is_splits", "pr_k", "manifold_size", "bootstrap")
    return {name: getattr(template, name) for name in names} if template else {}


def _same(template: EvaluationProtocol | None, protocol: EvaluationProtocol) -> None:
    from resgen.evaluation.protocol import check_comparable

    if template:
        check_comparable(template, protocol)


def _command() -> str:
    return shlex.join(["resgen", *sys.argv[1:]])
