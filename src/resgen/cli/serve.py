"""`resgen serve`: models over HTTP, with a page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import option
from resgen.errors import ConfigError
from resgen.extras import MissingExtraError
from resgen.serving.config import ServerConfig

KEY_VARIABLE = "RESGEN_API_KEY"
MEGABYTE = 1 << 20
MAX_UPLOAD_MB = 1_000_000
MAX_KEY, MAX_THREADS = 10_000, 1024


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve images and speech over HTTP, with a web page.

    Requests with the same settings share batches. The page is at /, the API description at /openapi.json. For example:

        resgen serve --model fashion-mnist-small english-small
        resgen serve --model runs/digits/model --host 0.0.0.0 --port 80 --api-key-file key.txt
    """

    model: Annotated[tuple[str, ...], option("DIR_OR_NAME ...")]
    """Pipeline folders or bundled model names (see `resgen models`)."""
    host: Annotated[str, option("ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every address of this machine."""
    port: Annotated[int, option("N")] = 8000
    """Port; 0 chooses a free one."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; by default a GPU if there is one."""
    dtype: str = "auto"
    """float32, bfloat16, int8 (on CPUs: faster, rounds the network's weights), or auto: bfloat16 if the
    hardware supports it."""
    threads: Annotated[int | None, option("N")] = None
    """Threads for the model; all cores by default."""
    max_batch: int = ServerConfig.max_batch
    """Maximum samples per batch."""
    max_wait_ms: float = ServerConfig.max_wait_ms
    """How long a request may wait for others to share its batch."""
    max_queue: int = ServerConfig.max_queue
    """Maximum waiting requests; further ones are rejected."""
    timeout_s: float = ServerConfig.timeout_s
    """Maximum seconds from request to response."""
    max_steps: int = ServerConfig.max_steps
    """Maximum sampling steps per request."""
    max_samples: int = ServerConfig.max_samples
    """Maximum images per request."""
    max_text: int = ServerConfig.max_text
    """Maximum characters per text."""
    max_upload_mb: float = ServerConfig.max_upload_bytes / MEGABYTE
    """Maximum megabytes (1,048,576 bytes) per request with files."""
    max_sound_s: float = ServerConfig.max_sound_s
    """Maximum seconds per uploaded sound."""
    api_key_file: Annotated[Path | None, option("FILE")] = None
    """File with the API key that clients must send; or set RESGEN_API_KEY. Without a key access is open."""

    def run(self) -> None:
        if not self.model:
            raise ConfigError("--model needs at least one folder or name")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"--threads {self.threads} must lie in 1..{MAX_THREADS}")
        key = self.api_key()
        try:
            from resgen.serving.server import serve
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            if package == "resgen":
                raise
            raise MissingExtraError(package, "serve") from error
        if not 0 < self.max_upload_mb < MAX_UPLOAD_MB:
            raise ConfigError(f"--max-upload-mb {self.max_upload_mb:g} must be above 0 and below {MAX_UPLOAD_MB:,}")
        config = ServerConfig(
            max_batch=self.max_batch,
            max_wait_ms=self.max_wait_ms,
            max_queue=self.max_queue,
            timeout_s=self.timeout_s,
            max_steps=self.max_steps,
            max_samples=self.max_samples,
            max_text=self.max_text,
            max_upload_bytes=int(self.max_upload_mb * MEGABYTE),
            max_sound_s=self.max_sound_s,
            api_key=key,
        )
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        serve(self.model, config, host=self.host, port=self.port, device=self.device, dtype=self.dtype)

    def api_key(self) -> str | None:
        """The key that clients must show, without spaces around it; None for a server without one.

        Raises:
            ConfigError: the file cannot be read, or file or variable hold nothing.
        """
        if self.api_key_file is None:
            where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
        else:
            where = f"--api-key-file '{self.api_key_file}'"
            try:
                with self.api_key_file.open(encoding="utf-8") as file:
                    key = file.read(MAX_KEY + 1)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
                raise ConfigError(f"{where} cannot be read: {reason}") from error
            if len(key) > MAX_KEY:
                raise ConfigError(f"{where} holds more than the {MAX_KEY:,} characters of a key")
        if key is not None and not key.strip():
            raise ConfigError(f"{where} is empty; put a key there")
        return None if key is None else key.strip()
