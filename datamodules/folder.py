"""A folder of images to predict on, with captions or without."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from datamodules.pictures import read_picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
DEFAULT_CAPTION = "a photo."


def find_images(root: Path) -> list[Path]:
    """All images of a folder and of the folders in it, in the order of their paths; hidden files are left out.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"Image folder {root} does not exist. Check the path.")
    found = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts))
    if not names:
        raise FileNotFoundError(f"There is no image in {root}. Files that end in {', '.join(SUFFIXES)} are looked for.")
    return [root / name for name in names]


def read_caption_table(path: Path) -> dict[str, str]:
    """Captions by file name, from a CSV file with the heading ``file,caption``.

    Args:
        path: The CSV file, UTF-8.

    Returns:
        Caption by the path in ``file``, with ``/`` between folders.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another heading, an empty cell, or a file with two captions; names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Caption file {path} does not exist. Check the path.")
    captions: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets put a mark in front
            reader = csv.DictReader(file)
            if not {"file", "caption"} <= set(reader.fieldnames or ()):
                heading = ",".join(reader.fieldnames or ())
                raise ValueError(f"Caption file {path} has the heading '{heading}'; it must be 'file,caption'.")
            for row in reader:
                name, caption = (row["file"] or "").strip(), (row["caption"] or "").strip()
                name = name.replace("\\", "/").removeprefix("./")
                if not name or not caption:
                    raise ValueError(f"Caption file {path}, line {reader.line_num}: a file and a caption are needed.")
                if None in row:
                    raise ValueError(
                        f"Caption file {path}, line {reader.line_num}: more than two cells. Put a caption with a comma "
                        "in double quotes."
                    )
                if captions.setdefault(name, caption) != caption:
                    raise ValueError(
                        f"Caption file {path}, line {reader.line_num}: {name} has another caption above. Keep one."
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Caption file {path} is no CSV file in UTF-8 ({error}). Save it as such.") from error
    return captions


class ImageFolder(Dataset[dict[str, Any]]):
    """All images of a folder, without labels.

    An item is a dict: ``image`` (RGB PIL image, or what ``transform`` makes of it), ``text`` (str), ``index``
    (position here) and ``id`` (path in the folder, with ``/``).

    Args:
        root: Folder with files that end in one of ``SUFFIXES``, in folders of any depth.
        captions: CSV file with the columns ``file`` (path in the folder) and ``caption``, one row an image; None = the
            text ``a photo.`` for every image, which a printed line says.
        transform: PIL image to anything; runs in the loader's workers.

    Raises:
        FileNotFoundError: The folder or the caption file does not exist, or there is no image.
        ValueError: A malformed caption file, or images without a caption.
    """

    def __init__(
        self,
        root: str | Path,
        captions: str | Path | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.transform = transform
        self.paths = find_images(self.root)
        self.ids = [path.relative_to(self.root).as_posix() for path in self.paths]
        if captions is None:
            print(
                f"{self.root}: {len(self.ids)} images without captions; each gets the text '{DEFAULT_CAPTION}'. A "
                "model that was trained with real captions does better with them: give a CSV file with file,caption."
            )
            self.texts = [DEFAULT_CAPTION] * len(self.ids)
        else:
            self.texts = self._match(Path(captions).expanduser())

    def _match(self, path: Path) -> list[str]:
        captions = read_caption_table(path)
        if missing := [name for name in self.ids if name not in captions]:
            raise ValueError(
                f"Caption file {path} has no row for {len(missing)} of {len(self.ids)} images in {self.root}, first "
                f"{missing[0]}. Add the rows; the column 'file' holds the path in the folder."
            )
        if unused := len(captions) - len(set(self.ids)):
            print(f"{path}: {unused} caption(s) are of no image in {self.root} and are not used.")
        return [captions[name] for name in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # Phones store a picture as the sensor saw it and note how to turn it; data sets have them turned.
        image = read_picture(self.paths[index], upright=True).image
        return {
            "image": image if self.transform is None else self.transform(image),
            "text": self.texts[index],
            "index": index,
            "id": self.ids[index],
        }
