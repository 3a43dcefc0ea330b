"""MIRFlickr-25K (tags and labels) and Flickr30k / Flickr8k (captions), in their real layouts."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotation_files import read_json, read_text
from datamodules.image_text import ImageTextData, Records
from datamodules.splits import Splits, order_by_hash

ANNOTATION_FOLDERS = ("annotations", "mirflickr25k_annotations_v080", ".")
CAPTION_FILES = (
    "dataset_flickr30k.json",
    "dataset_flickr8k.json",
    "results_20130124.token",
    "Flickr8k.token.txt",
    "captions.txt",
)
IMAGE_FOLDERS = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")


def frequent_tags(tags: list[list[str]], min_count: int) -> set[str]:
    """The tags that occur often enough.

    Args:
        tags: For each image its tags.
        min_count: Least number of images.

    Returns:
        The tags of at least ``min_count`` images.

    Example:
        >>> sorted(frequent_tags([["sky", "sky"], ["sky", "sea"], ["dog"]], 2))
        ['sky']
    """
    counts = Counter(tag for image in tags for tag in set(image))
    return {tag for tag, count in counts.items() if count >= min_count}


def read_image_numbers(path: Path) -> list[int]:
    """The image numbers in a MIRFlickr label file, one a line.

    Raises:
        ValueError: A line is not a number.
    """
    try:
        return [int(line) for line in read_text(path).split()]
    except ValueError as error:
        raise ValueError(f"Label file {path} must hold one image number a line ({error}).") from error


class MIRFlickr(ImageTextData):
    """MIRFlickr-25K: tags, joined by commas, as the one text; the 24 potential labels.

    Layout: ``root/im1.jpg ...`` or ``root/mirflickr/im1.jpg ...``; ``meta/tags/tags1.txt ...`` beside the images;
    label files ``<label>.txt`` with image numbers in ``root/annotations``, ``root/mirflickr25k_annotations_v080`` or
    ``root``. The stricter ``<label>_r1.txt`` files are not read.

    Images without one of the frequent tags are left out; the text keeps all tags. Protocol ``retrieval`` leaves out
    images without a label too. With ``min_tag_count=20`` (1386 tags) 20,015 images stay: 2000 queries, 5000 for
    training, 18,015 database, as in the unsupervised literature, which however picks the parts class by class; here
    they are random, from a fixed seed. ``min_tag_count=0`` keeps all 24,581 labelled images, as the supervised
    literature does (there with 5000 queries and 10,000 for training), some with an empty text.

    Protocol ``holdout`` keeps images without a label and draws ``num_query`` images as its test part.

    Args:
        root: Folder of the dataset.
        num_query: Size of the query part, or of the test part of protocol ``holdout``.
        num_train: Size of the training part, in protocol ``retrieval``.
        min_tag_count: A tag is frequent if that many images carry it; lower it for a small set.
        split_seed: Seed of parts and folds.
        split_dir: Where parts and folds are saved.
        skip_corrupt: Leave out images that cannot be decoded instead of stopping at the first.
        **kwargs: ``protocol``, ``num_folds``, ``fold`` and ``stratified`` of ``ImageTextData``; ``batch_size``,
            ``num_workers`` and the other arguments of ``BaseDataModule``.

    Reference:
        Huiskes and Lew, The MIR Flickr Retrieval Evaluation, MIR 2008.
    """

    def __init__(
        self,
        root: str,
        num_query: int = 2000,
        num_train: int = 5000,
        min_tag_count: int = 20,
        split_seed: int = 0,
        split_dir: str = "cache/splits",
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, num_query, num_train, split_seed, split_dir, skip_corrupt, **kwargs)
        self.min_tag_count = min_tag_count

    def read(self) -> Records:
        """Images with a frequent tag, and with a label where the protocol asks for one, by number."""
        folder = self.root / "mirflickr" if (self.root / "mirflickr").is_dir() else self.root
        found = (re.fullmatch(r"im(\d+)\.jpg", path.name) for path in folder.iterdir())
        numbers = sorted(int(match[1]) for match in found if match)
        if not numbers:
            raise FileNotFoundError(f"There are no images im1.jpg, im2.jpg, ... in {folder}. Unpack mirflickr25k.zip.")
        class_names, labels = self._read_labels(numbers)
        tags = []
        for number in numbers:
            path = folder / "meta" / "tags" / f"tags{number}.txt"
            if not path.is_file():
                raise FileNotFoundError(f"Tag file {path} of im{number}.jpg does not exist. Unpack the meta folder.")
            tags.append(path.read_text(encoding="utf-8", errors="replace").split())
        frequent = frequent_tags(tags, self.min_tag_count)
        tagged = [self.min_tag_count < 1 or not frequent.isdisjoint(image) for image in tags]
        unlabelled = self.protocol == "holdout"
        rows = [row for row, keep in enumerate(tagged) if keep and (unlabelled or labels[row].any())]
        if not rows:
            raise ValueError(
                f"No image in {folder} has {'' if unlabelled else 'both a label and '}a tag that occurs "
                f"{self.min_tag_count} times. For a small set lower min_tag_count."
            )
        return Records(
            ids=[f"im{numbers[row]}" for row in rows],
            paths=[folder / f"im{numbers[row]}.jpg" for row in rows],
            captions=[[", ".join(tags[row])] for row in rows],
            labels=labels[rows],
            class_names=class_names,
        )

    def _read_labels(self, numbers: list[int]) -> tuple[list[str], np.ndarray]:
        """Names of the labels in alphabetical order, and the 0/1 matrix of the images with these numbers."""
        row = {number: i for i, number in enumerate(numbers)}
        for folder in (self.root / name for name in ANNOTATION_FOLDERS):
            listed = folder.glob("*.txt") if folder.is_dir() else ()
            files = sorted(f for f in listed if not f.stem.endswith("_r1") and f.stem.lower() != "readme")
            if files:
                break
        else:
            raise FileNotFoundError(
                f"There are no label files (<label>.txt) in {self.root / ANNOTATION_FOLDERS[0]}. Unpack "
                "mirflickr25k_annotations_v080.zip there."
            )
        labels = np.zeros((len(numbers), len(files)), np.uint8)
        for column, file in enumerate(files):
            labels[[row[number] for number in read_image_numbers(file) if number in row], column] = 1
        return [file.stem for file in files], labels


def read_captions(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    r"""Captions by image name, from any of the formats in use.

    Args:
        path: Karpathy's ``dataset_flickr*.json``; a ``.token`` file (``name.jpg#0<tab>caption``), or a
            ``captions.txt`` with the heading ``image,caption``.

    Returns:
        Captions by file name, and the part (``train``, ``val``, ``test``) by file name where the format tells it.

    Raises:
        ValueError: A line is of another format; names file and line.
    """
    captions: dict[str, list[str]] = defaultdict(list)
    if path.suffix == ".json":
        try:
            images = read_json(path, ("images",))["images"]
            captions = {image["filename"]: [s["raw"].strip() for s in image["sentences"]] for image in images}
            return captions, {image["filename"]: image["split"] for image in images}
        except (KeyError, TypeError) as error:
            raise ValueError(f"Caption file {path}: an image lacks {error}; is it Karpathy's file?") from error
    text = read_text(path)
    if "\t" not in text.partition("\n")[0]:
        rows = enumerate(csv.reader(io.StringIO(text)), start=1)
        pairs = [(line, row[0], ",".join(row[1:])) for line, row in rows if row and row != ["image", "caption"]]
    else:
        cells = ((line, row.partition("\t")) for line, row in enumerate(text.splitlines(), start=1) if row.strip())
        pairs = [(line, name.rpartition("#")[0] or name, caption) for line, (name, _, caption) in cells]
    for line, name, caption in pairs:
        if not name or not caption.strip():
            raise ValueError(f"Caption file {path}, line {line}: an image name and a caption are needed.")
        captions[name].append(caption.strip())
    return dict(captions), {}


class FlickrCaptions(ImageTextData):
    """Flickr30k or Flickr8k: five captions an image and no labels.

    Layout: one of ``dataset_flickr30k.json``, ``dataset_flickr8k.json`` (Karpathy), ``results_20130124.token``,
    ``Flickr8k.token.txt``, ``captions.txt`` in ``root``, and the images in ``flickr30k-images``, ``Flicker8k_Dataset``,
    ``Images``, ``images`` or ``root`` itself.

    Without labels there is only instance retrieval: the one relevant item of a query is the item with the same id. So
    ``query`` and ``database`` are the same test images (one modality of an item looks for the other), and ``labels``
    have shape ``(0,)``. With Karpathy's file the parts are his (his validation part is left out); otherwise
    ``num_query`` test images are drawn and the rest trains.

    Protocol ``holdout`` has the same test part; all other images, Karpathy's validation part too, are the development
    pool. Its folds are random, because there is nothing to stratify by.

    Args:
        root: Folder of the dataset.
        num_query: Size of the test part, where the caption file does not tell it.
        split_seed: Seed of the parts, likewise, and of folds.
        split_dir: Where parts and folds are saved.
        skip_corrupt: Leave out images that cannot be decoded instead of stopping at the first.
        **kwargs: ``protocol``, ``num_folds`` and ``fold`` of ``ImageTextData``; ``batch_size``, ``num_workers`` and
            the other arguments of ``BaseDataModule``.

    Reference:
        Young et al., From Image Descriptions to Visual Denotations, TACL 2014; Karpathy and Fei-Fei, Deep
        Visual-Semantic Alignments, CVPR 2015 (parts).
    """

    def __init__(
        self,
        root: str,
        num_query: int = 1000,
        split_seed: int = 0,
        split_dir: str = "cache/splits",
        skip_corrupt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, num_query, 0, split_seed, split_dir, skip_corrupt, stratified=False, **kwargs)
        self._parts: dict[str, str] = {}

    def read(self) -> Records:
        """All captioned images, in the order of the caption file."""
        file = next((self.root / name for name in CAPTION_FILES if (self.root / name).is_file()), None)
        if file is None:
            raise FileNotFoundError(
                f"There is no caption file in {self.root}. Put one of {', '.join(CAPTION_FILES)} there."
            )
        captions, self._parts = read_captions(file)
        folder = next((self.root / name for name in IMAGE_FOLDERS if (self.root / name).is_dir()), self.root)
        return Records(
            ids=list(captions),
            paths=[folder / name for name in captions],
            captions=list(captions.values()),
            labels=np.zeros((len(captions), 0), np.uint8),
            class_names=[],
        )

    @property
    def parts_name(self) -> str:
        """With Karpathy's parts their hash too, so that they replace a drawn part that was saved before."""
        if not self._parts:
            return super().parts_name
        digest = hashlib.sha256(json.dumps(self._parts, sort_keys=True).encode()).hexdigest()
        return f"{super().parts_name}-karpathy-{digest[:12]}"

    def draw(self, records: Records) -> Splits:
        """Karpathy's parts, or a drawn test part."""
        if self._parts:
            test = [name for name in records.ids if self._parts[name] == "test"]
            train = [name for name in records.ids if self._parts[name] in ("train", "restval")]
        else:
            if not 1 <= self.num_query < len(records):
                raise ValueError(
                    f"num_query is {self.num_query}, but there are {len(records)} images, and some must train. For a "
                    f"small set pass a smaller number, e.g. num_query: {max(1, len(records) // 5)}."
                )
            order = order_by_hash(records.ids, self.split_seed)
            test, train = order[: self.num_query], order[self.num_query :]
        if not test or not train:
            raise ValueError(f"The caption file in {self.root} has {len(train)} training and {len(test)} test images.")
        return {"train": train, "query": test, "database": test}

    def draw_holdout(self, records: Records) -> Splits:
        """Karpathy's test part and everything else, or a drawn test part."""
        if not self._parts:
            return super().draw_holdout(records)
        held = [self._parts[name] == "test" for name in records.ids]
        return {
            "development": [name for name, test in zip(records.ids, held, strict=True) if not test],
            "test": [name for name, test in zip(records.ids, held, strict=True) if test],
        }
