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
from resgen.tokenizers.mel import MelTokenizer
from resgen.training import encoding
from resgen.training.image import runs
from resgen.training.speech import runs as speech_runs

BATCH = 3
"""Images or recordings, so that a shard is several batches."""


def die_at(batch: int) -> None:
    """Let the `batch`-th call of the encoder be the last thing that this process does."""
    count = 0

    def counted(encode: Any) -> Any:
        def call(*inputs: Any) -> Any:
            nonlocal count
            count += 1
            if count == batch:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(*inputs)

        return call

    for tokenizer in (ImageTokenizer, MelTokenizer):
        tokenizer.encode = counted(tokenizer.encode)  # type: ignore[method-assign]


if __name__ == "__main__":
    runs.ENCODE_BATCH = speech_runs.ENCODE_BATCH = BATCH
    encoding.COUNT_EVERY = 2
    if int(sys.argv[1]) and os.environ["RANK"] == "0":
        die_at(int(sys.argv[1]))
    sys.exit(main(["encode", *sys.argv[2:]]))
