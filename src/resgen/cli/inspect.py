"""`resgen inspect`: what is inside a model folder, a run or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional

from resgen.cli.common import ConfigFile, Json, Overrides, load_recipe, option, report
from resgen.errors import CheckpointError, ConfigError
from resgen.progress import format_seconds

SETTINGS = ("num_steps", "guidance_scale", "top_p", "temperature", "choice_temperature")
"""Of the sampler, that a summary names."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what a model is and how it was trained, or all settings of a recipe.

    A recipe's parameters are counted without allocating memory for them. For example:

        resgen inspect avatars64
        resgen inspect runs/digits/model --full
        resgen inspect --recipe imagenet256 --json
        resgen inspect --recipe melvae
    """

    model: Annotated[Positional[str | None], option("[DIR_OR_NAME]")] = None
    """Folder of a tokenizer, vocoder, text model or pipeline, or a bundled model name."""
    recipe: Annotated[str | None, option("NAME")] = None
    """Describe a recipe instead."""
    config: ConfigFile = None
    overrides: Overrides = ()
    full: bool = False
    """Show everything about a model: configuration, parameters per component, hashes and history."""
    as_json: Json = False

    def run(self) -> None:
        if (self.model is None) == (self.recipe is None):
            raise ConfigError("inspect takes either DIR_OR_NAME or --recipe NAME")
        text = None
        if self.recipe is not None:
            modality, recipe = load_recipe(self.recipe, self.config, self.overrides)
            document = modality.describe(recipe)
        elif self.config or self.overrides:
            raise ConfigError("--config and --set change a recipe; a saved model is shown as it is")
        else:
            from resgen.pipelines.describe import describe_artefact

            assert self.model is not None
            document = describe_artefact(self.model)
            text = None if self.full or self.as_json else self.short(document)
        report(document, as_json=self.as_json, text=text)

    def short(self, document: dict[str, Any]) -> str:
        """The summary.

        Raises:
            CheckpointError: what the model says of itself is of another form than `save_folder` gives it.
        """
        try:
            return summary(document)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"'{self.model}' has no valid description; --full shows the record") from error


def summary(document: dict[str, Any]) -> str:
    """A described model on one screen."""
    from resgen.checkpoints.quality import quality

    components: dict[str, Any] = document["components"]
    size = sum(part["bytes"] for part in components.values()) / 1e6
    shared = {part["shared_with"] for part in components.values() if "shared_with" in part}
    own = sum(part["bytes"] for part in components.values() if "shared_with" not in part) / 1e6
    rest = f"{size - own:.1f} MB shared with {', '.join(sorted(shared))}"
    also = f": {own:.1f} MB of its own, {rest}" if shared else ""
    lines = [f"{document['path']}: {document['kind']}, {size:.1f} MB{also}"]
    if document.get("description"):
        lines.append(document["description"])
    lines += [f"{name}: {part['type']}, {part['parameters']:,} parameters" for name, part in components.items()]
    spec = components.get("generator", {}).get("config", {}).get("spec")
    if spec:
        shape = "x".join(map(str, spec["shape"]))
        lines.append(f"codes: {shape} positions x {spec['depth']} levels of {spec['codebook_size']} codes")
    axes = document.get("class_axes") or {"classes": document.get("class_names")}
    for axis, names in axes.items():
        if names:
            lines.append(f"{axis}: {len(names)} ({', '.join(names[:12])}{', ...' * (len(names) > 12)})")
    sampling = document.get("sampling", {})
    settings = [f"{name} {sampling[name]}" for name in SETTINGS if name in sampling]
    lines += [f"sampling: {', '.join(settings)}"] if settings else []
    history = document.get("history", {})
    trainings = {stage: record for stage, record in history.items() if isinstance(record, dict) and "steps" in record}
    for stage, record in trainings.items():
        recipe = record.get("config", {}).get("recipe")
        time = format_seconds(record["seconds"]) if "seconds" in record else ""
        parts = (recipe and f"recipe {recipe}", f"{record['steps']:,} steps", time, quality(record.get("metrics", {})))
        lines.append(f"{stage} trained: {', '.join(part for part in parts if part)}")
    if not trainings and (measured := quality(history)):
        lines.append(f"measured: {measured}")
    return "\n".join([*lines, "everything: --full"])
