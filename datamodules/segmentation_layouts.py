"""Where the segmentation benchmarks lie on disk, and how their label maps are numbered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.annotation_files import read_text
from datamodules.segmentation_files import Ints, label_table, load_indices, mapped_table

# ids of COCO's 80 object classes among 1..90; a pixel map holds the id less 1
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = [number for number in range(1, 91) if number not in COCO_GAPS]
STUFF_IDS = range(92, 183)
# ids of Cityscapes' 19 evaluated classes among 0..33
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class LabelMaps:
    """One form in which a benchmark's label maps are published or converted.

    Args:
        folder: Below the benchmark's folder.
        suffix: What takes the place of the image's suffix.
        table: What the numbers stand for.
    """

    folder: str
    suffix: str
    table: Ints


@dataclass(frozen=True)
class Layout:
    """A benchmark on disk.

    Args:
        folders: Its folder in common collections of data sets.
        images: Folders of images below it, the first that is there counts.
        image_suffix: End of an image's name; what stands before it names the image.
        label_maps: Forms of the label maps; the one that most images have counts.
        listed: File that names the images; None = all in the folder.
        threshold: Probability below which CorrCLIP's reference makes a pixel background, class 0.
        short: Shorter side in pixels to which the reference resizes an image.
        crop: Side of the windows that it cuts from it.
    """

    folders: tuple[str, ...]
    images: tuple[str, ...]
    image_suffix: str
    label_maps: tuple[LabelMaps, ...]
    listed: str | None = None
    threshold: float = 0.0
    short: int = 336
    crop: int = 336


@dataclass(frozen=True)
class SegmentationFiles:
    """The images of a set and their label maps.

    Args:
        ids: Name of each image.
        images: Its file.
        labels: Its label map's file; None = there are none.
        table: What the numbers in label maps stand for; None = there are none.
        decode: Reads the numbers of a label map's file.
    """

    ids: list[str]
    images: list[Path]
    labels: list[Path] | None = None
    table: Ints | None = None
    decode: Callable[[Path], NDArray[np.integer]] = load_indices


def _coco(suffix: str, converted: Ints, raw: Ints) -> tuple[LabelMaps, ...]:
    folders = ("annotations", "stuffthingmaps", "stuff_anno164")
    forms = ((suffix, converted), (".png", raw))
    return tuple(LabelMaps(f"{folder}/val2017", end, table) for end, table in forms for folder in folders)


def _pascal(year: int, folder: str, lists: str, table: Ints, threshold: float = 0.0) -> Layout:
    return Layout(
        folders=(f"VOC{year}", f"VOCdevkit/VOC{year}"),
        images=("JPEGImages",),
        image_suffix=".jpg",
        label_maps=(LabelMaps(folder, ".png", table),),
        listed=f"ImageSets/{lists}/val.txt",
        threshold=threshold,
    )


_COCO_FOLDERS = ("coco", "coco_stuff164k", "coco2017")
_COCO_IMAGES = ("images/val2017", "val2017")
_STUFF = {number - 1: label for label, number in enumerate([*COCO_IDS, *STUFF_IDS])}
_OBJECT = {number - 1: label for label, number in enumerate(COCO_IDS, 1)}

LAYOUTS = {
    "voc21": _pascal(2012, "SegmentationClass", "Segmentation", label_table(21), 0.2),
    "voc20": _pascal(2012, "SegmentationClass", "Segmentation", label_table(20, reduce_zero_label=True)),
    "context60": _pascal(2010, "SegmentationClassContext", "SegmentationContext", label_table(60), 0.15),
    "context59": _pascal(
        2010, "SegmentationClassContext", "SegmentationContext", label_table(59, reduce_zero_label=True)
    ),
    "coco_stuff": Layout(
        _COCO_FOLDERS, _COCO_IMAGES, ".jpg", _coco("_labelTrainIds.png", label_table(171), mapped_table(_STUFF))
    ),
    # All that is no object is background, pixels without a label too: the published conversion has no ignored label.
    "coco_object": Layout(
        (*_COCO_FOLDERS, "coco_stuff164k/coco_object"),
        _COCO_IMAGES,
        ".jpg",
        _coco("_instanceTrainIds.png", label_table(81), mapped_table(_OBJECT | {255: 0}, default=0)),
        threshold=0.25,
    ),
    "ade20k": Layout(
        ("ade/ADEChallengeData2016", "ADEChallengeData2016"),
        ("images/validation",),
        ".jpg",
        (LabelMaps("annotations/validation", ".png", label_table(150, reduce_zero_label=True)),),
        short=448,
    ),
    "cityscapes": Layout(
        ("cityscapes", "CityScapes", "Cityscapes"),
        ("leftImg8bit/val",),
        "_leftImg8bit.png",
        (
            LabelMaps("gtFine/val", "_gtFine_labelTrainIds.png", label_table(19)),
            LabelMaps(
                "gtFine/val",
                "_gtFine_labelIds.png",
                mapped_table({number: label for label, number in enumerate(CITYSCAPES_IDS)}, default=255),
            ),
        ),
        short=448,
        crop=224,
    ),
    "world": Layout(
        ("world",),
        ("JPEGImages",),
        ".jpg",
        (LabelMaps("SegmentationClass", ".png", label_table(13)),),
        listed="ImageSets/Segmentation/val.txt",
        short=96,
        crop=96,
    ),
}


def read_list(path: Path, whole_lines: bool = False) -> list[str]:
    """The names in a list of images.

    Args:
        path: The file.
        whole_lines: A name is a line, blanks and all; else its first word, as lists of Pascal VOC have a number after.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not text, or names nothing, or one image twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Image list {path} does not exist. Unpack the lists of the set there.")
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    names = lines if whole_lines else [line.split()[0] for line in lines]
    if not names:
        raise ValueError(f"Image list {path} names no image. Unpack it again.")
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"Image list {path} names {twice} twice. Name each image once.")
    return names


def require_files(paths: Sequence[Path], kind: str) -> None:
    """Refuse a set of which files are missing.

    Args:
        paths: Files that must be there.
        kind: What they are, in the plural.

    Raises:
        FileNotFoundError: Some are missing; counts them and names the first.
    """
    present = {folder: {file.name for file in folder.glob("*")} for folder in {path.parent for path in paths}}
    if missing := [path for path in paths if path.name not in present[path.parent]]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} {kind} are missing, first {missing[0]}. Unpack the {kind} again."
        )


def find_benchmark(root: Path, benchmark: str) -> SegmentationFiles:
    """Find the images and label maps of a benchmark.

    Args:
        root: Its folder, or a folder that holds it under one of its common names.
        benchmark: A key of ``LAYOUTS``.

    Returns:
        The files, in the order of the list, or of the names.

    Raises:
        FileNotFoundError: The folder, its images, its list or label maps are missing; says where they were looked for.
        ValueError: A malformed list.
    """
    layout = LAYOUTS[benchmark]
    bases = (root, *(root / folder for folder in layout.folders))
    tried = [(base, base / images) for base in bases for images in layout.images]
    base, folder = next((pair for pair in tried if pair[1].is_dir()), (None, None))
    if base is None or folder is None:
        raise FileNotFoundError(
            f"Benchmark {benchmark} is not in {root}: none of {', '.join(str(pair[1]) for pair in tried)} exists. Set "
            "root to the folder of the set, or to the folder that holds it, and unpack the images there."
        )
    if layout.listed is None:
        found = [path for path in folder.rglob(f"*{layout.image_suffix}") if not path.name.startswith(".")]
        names = sorted(path.relative_to(folder).as_posix().removesuffix(layout.image_suffix) for path in found)
        if not names:
            raise FileNotFoundError(f"There is no image *{layout.image_suffix} in {folder}. Unpack the images there.")
    else:
        names = read_list(base / layout.listed)
    images = [folder / f"{name}{layout.image_suffix}" for name in names]
    require_files(images, "images")
    maps, labels = _label_files(base, layout, names)
    return SegmentationFiles([path.stem for path in images], images, labels, maps.table)


def _label_files(base: Path, layout: Layout, names: Sequence[str]) -> tuple[LabelMaps, list[Path]]:
    """The form of label maps that most images have, and their files."""
    forms = [[base / maps.folder / f"{name}{maps.suffix}" for name in names] for maps in layout.label_maps]
    present: dict[Path, set[str]] = {}
    counts = []
    for files in forms:
        for parent in {file.parent for file in files} - set(present):
            present[parent] = {file.name for file in parent.glob("*")}
        counts.append(sum(file.name in present[file.parent] for file in files))
    best = counts.index(max(counts))
    if not counts[best]:
        looked = ", ".join(f"{base / maps.folder}/*{maps.suffix}" for maps in layout.label_maps)
        raise FileNotFoundError(
            f"No image in {base} has a label map; looked for {looked}. Unpack the label maps there."
        )
    require_files(forms[best], "label maps")
    return layout.label_maps[best], forms[best]
