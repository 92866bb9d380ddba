"""`resgen inspect`: what is inside a model folder, a run or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from resgen.cli.common import ConfigFile, Json, Overrides, load_recipe, option, report
from resgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show the configuration, the parameters by part, hashes and the training history of a model.

    A recipe's parameters are counted without allocating memory for them. For example:

        resgen inspect runs/digits/model
        resgen inspect --recipe imagenet256 --json
        resgen inspect --recipe melvae
    """

    model: Annotated[Positional[str | None], option("[DIR_OR_NAME]")] = None
    """Folder of a tokenizer, vocoder, text model or pipeline, or a bundled name."""
    recipe: Annotated[str | None, option("NAME")] = None
    """Describe a recipe instead."""
    config: ConfigFile = None
    overrides: Overrides = ()
    as_json: Json = False

    def run(self) -> None:
        if (self.model is None) == (self.recipe is None):
            raise ConfigError("inspect takes either DIR_OR_NAME or --recipe NAME")
        if self.recipe is not None:
            modality, recipe = load_recipe(self.recipe, self.config, self.overrides)
            document = modality.describe(recipe)
        elif self.config or self.overrides:
            raise ConfigError("--config and --set change a recipe; a saved model is shown as it is")
        else:
            from resgen.pipelines.describe import describe_artefact

            assert self.model is not None
            document = describe_artefact(self.model)
        report(document, as_json=self.as_json)
