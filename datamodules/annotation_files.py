"""Reading annotation files, with refusals that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The text of an annotation file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Annotation file {path} does not exist. Unpack the annotations there.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Annotation file {path} is not text in UTF-8 ({error.reason}). Save it so, or unpack it again."
        ) from error


def read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that has certain keys.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or a key is missing.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"Annotation file {path} is not JSON ({error}). Unpack it again.") from error
    if not isinstance(content, dict) or (lost := [k for k in keys if k not in content]):
        lost = list(keys) if not isinstance(content, dict) else lost
        raise ValueError(f"Annotation file {path} has no {' and no '.join(lost)}; is it a COCO file?")
    return content
