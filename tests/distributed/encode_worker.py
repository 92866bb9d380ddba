"""`resgen encode` for the tests of several processes: `encode_worker.py KILL_AT ARGUMENT ...`.

With KILL_AT=N the first process kills itself without notice at its N-th batch; 0 lets it live.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from resgen.cli.main import main
from resgen.tokenizers.image import ImageTokenizer
from resgen.training import runs

BATCH = 3
"""Pictures, so that a shard is several batches."""


def die_at(batch: int) -> None:
    """Let the `batch`-th call of the encoder be the last thing that this process does."""
    encode, count = ImageTokenizer.encode, 0

    def counted(self: ImageTokenizer, images: Any) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, images)

    ImageTokenizer.encode = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    runs.ENCODE_BATCH, runs.COUNT_EVERY = BATCH, 2
    if int(sys.argv[1]) and os.environ["RANK"] == "0":
        die_at(int(sys.argv[1]))
    sys.exit(main(["encode", *sys.argv[2:]]))
