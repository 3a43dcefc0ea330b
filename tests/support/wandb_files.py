"""What an offline W&B run has written, to look for words in it."""

from __future__ import annotations

import time
from pathlib import Path

BLOCK, HEADER = 32768, 7  # a file's records go over blocks, each of which begins with a header


def records(run: Path, *words: bytes, seconds: float = 20.0) -> bytes:
    """The records of a run's ``.wandb`` file, once they hold the words; whatever there is when the time is over.

    W&B's own process makes and fills the file a moment later. The headers of blocks, which may cut a word in two, are
    left out.
    """
    end = time.monotonic() + seconds
    while True:
        files = [file.read_bytes() for file in sorted(run.glob("*.wandb"))]
        first = b"".join(content[:BLOCK] for content in files)
        blocks = [content[i + HEADER : i + BLOCK] for content in files for i in range(BLOCK, len(content), BLOCK)]
        found = first + b"".join(blocks)
        if all(word in found for word in words) or time.monotonic() > end:
            return found
        time.sleep(0.1)
