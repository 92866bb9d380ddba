"""Shared by all pipelines: device and type, sampling settings, saving, and a one-line description."""

from __future__ import annotations

import inspect
import numbers
import operator
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

import torch
from torch import nn

from resgen.checkpoints.card import CARD_NAME
from resgen.checkpoints.hub import push_saved
from resgen.devices import cast_parameters, choose_device
from resgen.errors import ConfigError, WrongTypeError, unknown
from resgen.kinds import AnySampling, kind_of, sampling_with
from resgen.kinds.settings import OTHER_NAMES
from resgen.models.base import CodeModel
from resgen.nn.int8 import check_floating, choose_type, floating_type, is_int8, to_int8

P = TypeVar("P", bound="BasePipeline")
_LOADING = ("device", "dtype")
_SHOWN = 3
_TYPE_NAME = re.compile(r"(float|bfloat|fp|bf|int)[0-9]+|half|double")


class NoOthers(TypedDict):
    """No further keyword arguments; at run time they are refused with a hint."""


class BasePipeline(ABC):
    """A generator with the components it needs to produce images or sounds.

    Attributes:
        tag: the hub's pipeline tag for such models; empty if there is none.
        usage: a line of Python that uses the model as `pipe`, for model cards.
        path: of the folder that it was loaded from.
        device: device of its networks.
        dtype: number type of its networks; codebooks and distribution arithmetic are always float32. int8 applies to
            the weight matrices of the generator's transformer blocks; the rest is as with `auto`.
        generator: generator of codes.
        sampling: default sampling settings.
    """

    tag: ClassVar[str] = ""
    usage: ClassVar[str] = ""
    path: Path
    device: torch.device
    dtype: torch.dtype
    generator: CodeModel
    sampling: AnySampling

    def to(
        self: P, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> P:
        """Move to a device or change the number type, which may also stand alone; omitted arguments leave it
        unchanged. Returns the pipeline.

        Raises:
            ConfigError: the device does not exist, the type is not `float32`, `bfloat16` or `int8`, the device cannot
                compute with int8, or another type is requested after int8.
        """
        if isinstance(device, torch.dtype) or _TYPE_NAME.fullmatch(str(device)):
            device, dtype = None, device
        device = self.device if device is None else choose_device(device)
        chosen = choose_type(self.dtype if dtype is None else dtype, device)
        if chosen != torch.int8:
            check_floating(self.generator, f"dtype={dtype}")
        self.device, self.dtype = device, chosen
        if is_int8(self.generator):
            return self
        for module in self._cast():
            cast_parameters(module, floating_type(chosen, device))
        for module in self._modules():
            module.to(self.device)
        if chosen == torch.int8:
            to_int8(self.generator)
        return self

    @property
    def name(self) -> str:
        """Name of the folder that it was loaded from."""
        return self.path.name

    @abstractmethod
    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder with these weights and sampling settings."""

    def push_to_hub(
        self, repository: str, *, private: bool = False, license: str = "", datasets: Sequence[str] = ()
    ) -> str:
        """Upload to `owner/model` on the Hugging Face Hub, with a model card; returns the URL of the commit.

        The card includes the results that `resgen evaluate --store` stored with these weights.

        Args:
            repository: created if it does not exist.
            private: whether a new repository is private.
            license: for the card, a licence identifier of the hub, such as `mit` or `cc-by-4.0`; by default that of the
                card of the model that was opened, if it has one.
            datasets: for the card, the training data sets, by their names on the hub; by default likewise.

        Raises:
            CheckpointError: the hub rejects the upload.
            MissingExtraError: huggingface_hub is not installed (extra `hub`).
        """
        origin = self.path / CARD_NAME
        about = {"tag": self.tag, "usage": self.usage, "license": license, "datasets": datasets, "origin": origin}
        return push_saved(self.save_pretrained, repository, private=private, **about)

    def __repr__(self) -> str:
        parameters = sum(one.numel() for module in self._modules() for one in module.parameters())
        facts = (
            f"kind {kind_of(self.generator.config).name}",
            *self._facts(),
            f"{parameters / 1e6:.1f}M parameters",
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
        )
        return f"{type(self).__name__}('{self.name}': {', '.join(facts)})"

    @abstractmethod
    def _cast(self) -> Sequence[nn.Module]:
        """The networks that compute in `dtype`."""

    @abstractmethod
    def _modules(self) -> Sequence[nn.Module]:
        """All networks."""

    @abstractmethod
    def _facts(self) -> Sequence[str]:
        """What it makes, for `repr`."""

    def _check_parts(self, parts: Any) -> None:
        """Reject a name or path in place of loaded parts, with the call that takes one."""
        if isinstance(parts, str | Path):
            name = type(self).__name__
            raise WrongTypeError(f"{name} takes loaded parts; use {name}.from_pretrained({str(parts)!r})")

    def _settings(self, call: Callable[..., Any], settings: Mapping[str, Any]) -> AnySampling:
        """The sampling of a call with these settings.

        Raises:
            ConfigError: a setting that the model's kind does not have, with what `call` may take in its place, or a
                value out of range.
        """
        own = {name: name for name in inspect.signature(call).parameters}
        synonyms = {other: name for other, name in OTHER_NAMES.items() if name in own or hasattr(self.sampling, name)}
        classes = "class_id" if "class_id" in own else "class_ids"
        prompt = {"prompt": classes} if classes in own and "prompt" not in own else {}
        calls = inspect.signature(type(self).__call__).parameters.keys() - own.keys() - synonyms.keys()
        if (others := sorted(calls & settings.keys())) and not hasattr(self.sampling, others[0]):
            raise ConfigError(f"{call.__name__} takes no {others[0]}; a call of the pipeline, pipe(...), does")
        return sampling_with(self.sampling, settings, others=prompt | own | synonyms)


def refuse_others(others: Mapping[str, Any]) -> None:
    """Reject keyword arguments of `from_pretrained` that it does not have.

    Raises:
        ConfigError: there is one.
    """
    synonyms = {other: name for other, name in OTHER_NAMES.items() if name in _LOADING}
    for name in others:
        raise ConfigError(unknown("argument", name, _LOADING, others=synonyms))


def seed_of(seed: Any) -> int:
    """The seed of a call; a fresh one for None.

    Raises:
        ConfigError: it is not a whole number, or negative.
    """
    if seed is None:
        return secrets.randbits(31)
    check_whole(0, seed=seed)
    return operator.index(seed)


def check_whole(least: int, **arguments: Any) -> None:
    """Reject arguments that are not whole numbers of at least `least`.

    Raises:
        ConfigError: naming the first such argument.
    """
    for name, value in arguments.items():
        whole = isinstance(value, numbers.Integral)
        if not whole or value < least:
            error = ConfigError if whole else WrongTypeError
            raise error(f"{name}={value!r} must be a whole number of at least {least}")


def check_callback(callback: object) -> None:
    """Reject a callback that cannot be called.

    Raises:
        WrongTypeError: naming it.
    """
    if callback is not None and not callable(callback):
        raise WrongTypeError(f"callback={callback!r} must be a function of (record, codes, visible), or None")


def some_of(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
