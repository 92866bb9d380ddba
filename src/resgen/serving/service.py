"""The models of a server, its queue, and whether it is ready."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from resgen.errors import ConfigError, ResGenError, unknown
from resgen.modalities import modalities, of_model
from resgen.serving.batching import Batcher, Ticket
from resgen.serving.config import ServerConfig
from resgen.serving.metrics import Metrics

LOADING, READY, CLOSING = "loading", "ready", "shutting down"


class Served(Protocol):
    """A model that answers requests: made as `(name, source, config, *, device, dtype)`, by the worker.

    Attributes:
        modality: name of its modality.
        name: in requests.
        description: description of the model.
    """

    modality: str
    name: str
    description: str

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` says of it besides."""
        ...


S = TypeVar("S", bound=Served)


class UnknownModelError(ResGenError):
    """A request names a model that is not served."""


class Service:
    """What answers requests, without any HTTP.

    Attributes:
        routes: class of the routes of every modality that can be served, by its name.

    Args:
        sources: folder, bundled name or `owner/model` of each model, by its name in requests.
        config: limits.
        device: see the pipelines.
        dtype: see the pipelines.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: a model of a modality that is not served.
    """

    def __init__(
        self, sources: Mapping[str, str], config: ServerConfig, *, device: str | None = None, dtype: str = "auto"
    ) -> None:
        self.config = config
        self.state = LOADING
        self.models: dict[str, Served] = {}
        self.busy = 0  # requests between their first byte and their answer
        self.batcher = Batcher(
            lambda tickets: tickets[0].payload.compute(tickets),  # of the model that the batch is for
            max_batch=config.max_batch,
            max_wait_s=config.max_wait_ms / 1000,
            max_queue=config.max_queue,
            observe=lambda samples, seconds: self.metrics.computed(samples, seconds),
        )
        self.metrics = Metrics(lambda: len(self.batcher), lambda: self.busy)
        self.routes: dict[str, Any] = {m.name: pkgutil.resolve_name(m.served) for m in modalities() if m.served}
        self._load = []
        for name, source in sources.items():
            modality = of_model(source)
            if modality.name not in self.routes:
                raise ConfigError(f"model '{name}' is for {modality.noun}, which is not served")
            make = self.routes[modality.name].served
            self._load.append(functools.partial(make, name, source, config, device=device, dtype=dtype))

    async def start(self) -> None:
        """Load the models in the worker thread; then the service is ready.

        Raises:
            ResGenError: a model cannot be loaded.
        """
        self.batcher.start()
        for load in self._load:
            model = await self.batcher.in_worker(load)
            self.models[model.name] = model
        if self.state == LOADING:
            self.state = READY

    async def close(self) -> None:
        """Take nothing new and finish what was accepted."""
        self.state = CLOSING
        await self.batcher.close()

    def find(self, name: str | None, model_class: type[S]) -> S:
        """The model of a class that a request means: the one it names, or the only one there is.

        Raises:
            UnknownModelError: there is none of this name and class.
            ConfigError: several could be meant.
        """
        models = {own: model for own, model in self.models.items() if isinstance(model, model_class)}
        if name is None and len(models) > 1:
            raise ConfigError(f"model is missing; allowed: {', '.join(models)}")
        if name is None and models:
            return next(iter(models.values()))
        if name not in models:
            raise UnknownModelError(unknown(f"{model_class.modality} model", name or "", models))
        return models[name]

    def describe(self) -> dict[str, Any]:
        """The body of `GET /v1/models`; `object` and `data` are what OpenAI's clients read."""
        config = self.config
        limits = {name: getattr(config, name) for name in ("max_steps", "max_samples", "max_text", "max_upload_bytes")}
        answers = []
        for name, model in self.models.items():
            about = {"name": name, "modality": model.modality, "description": model.description}
            answers.append({**about, **model.describe(), "limits": limits})
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "resgen"} for name in self.models]
        return {"models": answers, "object": "list", "data": listed}

    async def result(self, ticket: Ticket) -> Any:
        """Wait for a ticket's result within the time that a request may take."""
        return await self.batcher.result(ticket, self.config.timeout_s)


def served_names(sources: Sequence[str]) -> dict[str, str]:
    """Sources by the names that requests use: those of folders, without where they lie.

    Raises:
        ConfigError: two models would have the same name.
    """
    names: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        name = source
        if path.is_dir():
            path = path.resolve()
            name = path.parent.name if path.name == "model" else path.name
        if name in names:
            raise ConfigError(f"two models would both be called '{name}'; rename one of their folders")
        names[name] = source
    return names
