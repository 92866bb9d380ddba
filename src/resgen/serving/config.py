"""The limits of a server: what it accepts, and how much of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resgen.errors import ConfigError, check_range


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits and waiting times of a server; all of them bound what one client can cost.

    Attributes:
        max_batch: most samples in one sampling call.
        max_wait_ms: how long a request may wait for others to share its batch, in milliseconds.
        max_queue: most requests that wait; more are turned away (429).
        timeout_s: seconds from a request's arrival to its answer, or the last sentence of one, at most (504).
        max_steps: most network evaluations that a request may ask for.
        max_samples: most images of one request.
        max_text: most characters of a text.
        max_upload_bytes: most bytes of a request with files.
        max_pixels: most pixels of an uploaded image, counted before it is decoded.
        max_sound_s: most seconds of an uploaded sound.
        api_key: what clients must show; None lets everybody in.
    """

    max_batch: int = 32
    max_wait_ms: float = 10.0
    max_queue: int = 128
    timeout_s: float = 60.0
    max_steps: int = 128
    max_samples: int = 32
    max_text: int = 500
    max_upload_bytes: int = 8 << 20
    max_pixels: int = 1 << 24
    max_sound_s: float = 30.0
    api_key: str | None = None

    def __post_init__(self) -> None:
        check_range(self, 1, "max_batch", "max_queue", "max_steps", "max_samples", "max_text", "max_upload_bytes")
        if self.max_samples > self.max_batch:
            raise ConfigError(
                f"max_samples={self.max_samples} must not exceed max_batch={self.max_batch}: the images of a request "
                "are drawn in one batch"
            )
        if not 0 <= self.max_wait_ms < math.inf:
            raise ConfigError(f"max_wait_ms={self.max_wait_ms} must be a number of at least 0")
        for name in ("timeout_s", "max_sound_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be a number above 0")
        check_range(self, 1, "max_pixels")
        if self.api_key is not None and (len(self.api_key) < 8 or not self.api_key.isascii()):
            raise ConfigError("the API key must have at least 8 characters, all of them ASCII")
