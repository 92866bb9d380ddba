"""`resgen plan`: memory and time of a training run, estimated before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from resgen.cli.common import (
    ConfigFile,
    Json,
    Overrides,
    load_recipe,
    option,
    positive,
    report,
    table,
)
from resgen.errors import ConfigError

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SPANS = ((365 * 86_400.0, "years"), (86_400.0, "days"), (3600.0, "h"), (60.0, "min"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimate the memory, operations and time of training a recipe, and reject what does not fit.

    No model is built and no data is read. Memory is per device: full weights, gradients, optimizer state and averaged
    weights (--shard divides the generator's), plus the activations of one micro-batch of batch_size / (devices x
    accumulate) samples, from one training step on tensors without memory. Time is operations divided by the total
    rate, without waiting for data or other devices. If the devices have too little memory, the error says what to
    lower. For example:

        resgen plan --recipe imagenet256 --devices 4 --device-memory 80 --rate 150
        resgen plan --recipe imagenet256 --devices 8 --device-memory 16 --shard --stage generator
        resgen plan --recipe rvqvae --devices 2 --device-memory 24 --set tokenizer_training.accumulate=8 --json
        resgen plan --recipe digits --devices 1 --device-memory 8
    """

    recipe: str
    """Images: digits, fashion_mnist, cifar10, cifar10_8x8, avatars64, imagenette64, imagenet256; speech:
    spoken_digits, spoken_digits_small, spoken_digits_waveform, sentences, sentences_small, melvae, rvqvae."""
    devices: Annotated[int, option("N")]
    """Number of devices that share every step, one process each."""
    device_memory: Annotated[float, option("GB")]
    """Usable memory per device in GB (10^9 bytes)."""
    stage: Annotated[str | None, option("tokenizer|vocoder|text|generator")] = None
    """One stage; all by default."""
    rate: Annotated[float | None, option("TFLOPS")] = None
    """Throughput that training achieves on each device, in 10^12 operations per second. By default one transformer
    block of the generator is timed on this machine for about two seconds."""
    shard: bool = False
    """Shard the generator's weights, gradients, averaged weights and optimizer state over all devices, like
    generator_training.shard=true."""
    config: ConfigFile = None
    overrides: Overrides = ()
    as_json: Json = False

    def run(self) -> None:
        positive("--devices", self.devices)
        for name, value in (("--device-memory", self.device_memory), ("--rate", self.rate)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} {value:g} must be greater than 0")
        modality, recipe = load_recipe(self.recipe, self.config, self.overrides)
        from resgen.training import plan

        every = list(modality.has("plan")(recipe))
        stages = plan.choose_stages(every, self.stage)
        figures = {
            stage.name: plan.plan_stage(
                stage, devices=self.devices, device_bytes=self.device_memory * plan.GB, shard=self.shard
            )
            for stage in stages
        }
        if self.rate is None:
            batch = recipe.generator_training.batch_size // recipe.generator_training.accumulate // self.devices
            rate = plan.measure_rate(recipe, samples=max(batch, 1), positions=every[-1].positions)
        else:
            rate = {"operations_per_second": self.rate * 1e12, "source": "given"}
        together = rate["operations_per_second"] * self.devices
        for values in figures.values():
            values["seconds_per_step"] = values["operations_per_step"] / together
            values["seconds"] = values["operations"] / together
        document = {
            "recipe": recipe.name,
            "devices": self.devices,
            "device_memory_gb": self.device_memory,
            "rate": rate,
            "stages": figures,
        }
        report(document, as_json=self.as_json, text=plan_text(document))


def plan_text(document: Mapping[str, Any]) -> str:
    """The report as two tables, one column per stage: what a training takes, and its memory by item."""
    stages, rate = document["stages"], document["rate"]
    rows: list[list[object]] = [
        ["", *stages],
        ["parameters", *(count(s["parameters"]) for s in stages.values())],
        ["samples per step", *(s["batch_size"] for s in stages.values())],
        ["  at a time per device", *(s["samples_per_micro_batch"] for s in stages.values())],
        ["positions per step", *(count(s["positions_per_step"]) for s in stages.values())],
        ["codes per step", *(count(s["codes_per_step"]) if s["codes_per_step"] else "-" for s in stages.values())],
        ["operations per step", *(count(s["operations_per_step"]) for s in stages.values())],
        ["time per step", *(span(s["seconds_per_step"]) for s in stages.values())],
        ["steps", *(count(s["steps"]) for s in stages.values())],
        ["samples seen", *(count(s["samples_seen"]) for s in stages.values())],
        ["time of the training", *(span(s["seconds"]) for s in stages.values())],
    ]
    items = dict.fromkeys(name for s in stages.values() for name in s["memory_bytes"] if name != "total")
    memory: list[list[object]] = [["bytes per device", *stages]]
    for name in (*items, "total"):
        values = [s["memory_bytes"].get(name, 0) for s in stages.values()]
        if any(values):
            memory.append([name, *(count(value) if value else "-" for value in values)])
    if rate["source"] == "given":
        source = "as given with --rate"
    else:
        source = (
            f"measured on this machine's {rate['device']} in {rate['precision']}, "
            f"one transformer block of width {rate['width']}"
        )
    shards = max(s["shards"] for s in stages.values())
    largest = max(s["memory_bytes"]["total"] for s in stages.values())
    about = (
        f"{document['recipe']} on {document['devices']} x {document['device_memory_gb']:g} GB"
        f"{f', the generator divided over {shards}' if shards > 1 else ''}\n"
        f"rate per device: {count(rate['operations_per_second'])} operations/s, {source}"
    )
    fits = f"fits: at most {count(largest)} of {document['device_memory_gb']:g}G per device"
    return f"{about}\n{fits}\n\n{table(rows)}\n\n{table(memory)}"


def count(value: int | float) -> str:
    """A number in at most three digits and a unit: 572M."""
    for size, unit in UNITS:
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def span(seconds: float) -> str:
    """A time in its natural unit."""
    for size, unit in SPANS:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"
