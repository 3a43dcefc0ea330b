"""The segmentation benchmarks in tiny copies of their layouts: files, label rules, class lists, refusals."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import SegmentationBenchmark, SegmentationFolder
from datamodules.pictures import read_picture
from datamodules.scenes import CLASS_NAMES, __main__
from datamodules.scenes.datamodule import make_scene
from datamodules.scenes.voc_layout import save_indices, voc_palette, write_voc
from datamodules.segmentation_classes import PLAIN, class_lines, read_class_lines
from datamodules.segmentation_files import label_table
from datamodules.segmentation_layouts import COCO_IDS, LAYOUTS
from lightning_modules.backbones.mask_files import PregeneratedMasks

SIZE = (6, 8)  # height, width
PASCAL = {
    "voc21": (2012, "SegmentationClass", "Segmentation"),
    "voc20": (2012, "SegmentationClass", "Segmentation"),
    "context60": (2010, "SegmentationClassContext", "SegmentationContext"),
    "context59": (2010, "SegmentationClassContext", "SegmentationContext"),
}


def label_map(*values):
    """A label map with each value in a pixel of its own, the first one elsewhere."""
    labels = np.full(SIZE, values[0], np.uint8)
    labels.flat[: len(values)] = values
    return labels


def write_picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (200, 100, 50)).save(path)


def write_map(path, labels, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_indices(path, labels) if palette else Image.fromarray(labels).save(path)


def write_pascal(base, folder, lists, maps):
    for name, labels in maps.items():
        write_picture(base / "JPEGImages" / f"{name}.jpg")
        write_map(base / folder / f"{name}.png", labels, palette=True)
    write_picture(base / "JPEGImages" / "of_no_list.jpg")
    (base / "ImageSets" / lists).mkdir(parents=True)
    (base / "ImageSets" / lists / "val.txt").write_text("".join(f"{name}\r\n" for name in maps))


def write_coco(base, images, folder, suffix, labels):
    write_picture(base / images / "000000000139.jpg")
    write_map(base / folder / f"000000000139{suffix}", labels)


def first_labels(data, count):
    """The first labels of the only image."""
    (batch,) = data.test_dataloader()
    return batch["target"][0].flatten()[:count].tolist()


@pytest.mark.parametrize("nested", ["VOC{}", "VOCdevkit/VOC{}", None])
@pytest.mark.parametrize(
    ("benchmark", "values", "wanted"),
    [
        ("voc21", (0, 1, 20, 255), (0, 1, 20, 255)),
        ("voc20", (0, 1, 20, 255), (255, 0, 19, 255)),
        ("context60", (0, 1, 59, 255), (0, 1, 59, 255)),
        ("context59", (0, 1, 59, 255), (255, 0, 58, 255)),
    ],
)
def test_pascal_sets(tmp_path, benchmark, values, wanted, nested):
    year, folder, lists = PASCAL[benchmark]
    base = tmp_path / nested.format(year) if nested else tmp_path
    write_pascal(base, folder, lists, {"2007_02": label_map(*values), "2007_01": label_map(1)})
    data = SegmentationBenchmark(str(tmp_path), benchmark)
    (batch,) = data.test_dataloader()
    assert batch["id"] == ["2007_02", "2007_01"]  # as listed
    assert batch["index"].tolist() == [0, 1]
    assert batch["size"].tolist() == [[6, 8]] * 2
    assert batch["image"][0].dtype == torch.uint8
    assert batch["image"][0].shape == (3, 6, 8)
    assert np.abs(batch["image"][0][:, 3, 3].numpy() - np.array([200.0, 100, 50])).max() < 5
    assert batch["target"][0].dtype == torch.int64
    assert batch["target"][0].flatten()[:4].tolist() == list(wanted)
    assert data.num_classes == len(data.class_names) == int(benchmark[-2:])


@pytest.mark.parametrize("values", [range(256)])
def test_reduced_labels_are_those_of_8_bit_arithmetic(values):
    indices = np.array(values, np.uint8)
    indices[indices == 0] = 255
    indices -= 1
    indices[indices == 254] = 255
    table = label_table(254, reduce_zero_label=True)[:256]
    assert table.tolist() == indices.tolist()
    assert label_table(3)[[0, 2, 3, 254, 255, 256]].tolist() == [0, 2, -1, -1, 255, -1]


@pytest.mark.parametrize("images", ["images/val2017", "val2017"])
@pytest.mark.parametrize("root", ["coco", "coco_stuff164k", "."])
@pytest.mark.parametrize(
    ("folder", "suffix", "values", "wanted"),
    [
        ("annotations/val2017", "_labelTrainIds.png", (0, 79, 80, 170, 255), (0, 79, 80, 170, 255)),
        ("stuffthingmaps/val2017", ".png", (0, 12, 89, 91, 181, 255), (0, 11, 79, 80, 170, 255)),
        ("annotations/val2017", ".png", (0, 12, 89, 91, 181, 255), (0, 11, 79, 80, 170, 255)),
    ],
)
def test_coco_stuff(tmp_path, images, root, folder, suffix, values, wanted):
    write_coco(tmp_path / root, images, folder, suffix, label_map(*values))
    data = SegmentationBenchmark(str(tmp_path), "coco_stuff")
    assert first_labels(data, len(wanted)) == list(wanted)
    assert data.dataset()[0]["id"] == "000000000139"


@pytest.mark.parametrize(
    ("folder", "suffix", "values", "wanted"),
    [
        ("annotations/val2017", "_instanceTrainIds.png", (0, 1, 80), (0, 1, 80)),
        # the published conversion makes pixels without a label background too
        ("stuffthingmaps/val2017", ".png", (0, 12, 89, 91, 181, 255), (1, 12, 80, 0, 0, 0)),
    ],
)
def test_coco_object(tmp_path, folder, suffix, values, wanted):
    write_coco(tmp_path / "coco", "images/val2017", folder, suffix, label_map(*values))
    assert first_labels(SegmentationBenchmark(str(tmp_path), "coco_object"), len(wanted)) == list(wanted)


def test_both_coco_sets_read_the_same_files(tmp_path):
    base = tmp_path / "coco"
    write_coco(base, "images/val2017", "stuffthingmaps/val2017", ".png", label_map(12, 91))
    assert first_labels(SegmentationBenchmark(str(tmp_path), "coco_stuff"), 2) == [11, 80]
    assert first_labels(SegmentationBenchmark(str(tmp_path), "coco_object"), 2) == [12, 0]
    # ids of COCO's categories: 80 up to 90
    assert (len(COCO_IDS), COCO_IDS[0], COCO_IDS[11], COCO_IDS[-1]) == (80, 1, 13, 90)
    write_coco(base, "images/val2017", "annotations/val2017", "_labelTrainIds.png", label_map(5))
    assert first_labels(SegmentationBenchmark(str(tmp_path), "coco_stuff"), 1) == [5]
    write_coco(base, "images/val2017", "stuffthingmaps/val2017", ".png", label_map(11))  # a gap in the ids
    (base / "annotations/val2017/000000000139_labelTrainIds.png").unlink()
    with pytest.raises(ValueError, match=r"000000000139.png holds 11 in 48 pixels"):
        SegmentationBenchmark(str(tmp_path), "coco_stuff").dataset()[0]


@pytest.mark.parametrize("nested", ["ade/ADEChallengeData2016", "ADEChallengeData2016", "."])
def test_ade(tmp_path, nested):
    base = tmp_path / nested
    for name in ("ADE_val_00000002", "ADE_val_00000001"):
        write_picture(base / f"images/validation/{name}.jpg")
        write_map(base / f"annotations/validation/{name}.png", label_map(0, 1, 150))
    data = SegmentationBenchmark(str(tmp_path), "ade20k", batch_size=1)
    assert [batch["id"][0] for batch in data.val_dataloader()] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert data.dataset()[0]["target"].flatten()[:3].tolist() == [255, 0, 149]


@pytest.mark.parametrize(
    ("suffix", "values", "wanted"),
    [
        ("labelTrainIds", (0, 18, 255), (0, 18, 255)),
        ("labelIds", (7, 33, 11, 0, 9, 29, 255), (0, 18, 2, 255, 255, 255, 255)),
    ],
)
def test_cityscapes(tmp_path, suffix, values, wanted):
    for city, frame in (("munster", "munster_000001_000019"), ("frankfurt", "frankfurt_000000_000294")):
        write_picture(tmp_path / f"cityscapes/leftImg8bit/val/{city}/{frame}_leftImg8bit.png")
        write_map(tmp_path / f"cityscapes/gtFine/val/{city}/{frame}_gtFine_{suffix}.png", label_map(*values))
        write_map(tmp_path / f"cityscapes/gtFine/val/{city}/{frame}_gtFine_instanceIds.png", label_map(1))
    data = SegmentationBenchmark(str(tmp_path), "cityscapes")
    assert [data.dataset()[i]["id"] for i in range(2)] == [
        "frankfurt_000000_000294_leftImg8bit",
        "munster_000001_000019_leftImg8bit",
    ]
    assert data.dataset()[0]["target"].flatten()[: len(wanted)].tolist() == list(wanted)


def test_class_lists():
    sizes = {name: len(names) for name, names in PLAIN.items()}
    assert sizes == {
        "voc21": 21,
        "voc20": 20,
        "context60": 60,
        "context59": 59,
        "coco_stuff": 171,
        "coco_object": 81,
        "ade20k": 150,
        "cityscapes": 19,
        "world": 13,
    }
    assert {name: sum(line.count("; ") + 1 for line in class_lines(name)) for name in sizes} == {
        **sizes,
        "voc21": 46,
        "coco_object": 96,
        "world": 18,
    }
    assert all(len(set(names)) == len(names) for names in PLAIN.values())
    voc = dict(zip(class_lines("voc20", "plain"), class_lines("voc20"), strict=True))
    assert {plain: line for plain, line in voc.items() if plain != line} == {
        "boat": "ship",
        "dining table": "table",
        "person": "people",
        "potted plant": "pottedplant",
        "tv monitor": "tvmonitor",
    }
    assert class_lines("voc21")[0].startswith("sky; wall; tree; ")
    assert class_lines("context60")[:2] == ["background", "aeroplane"]
    assert class_lines("coco_object")[10] == "traffic light"
    joined = {name: sum(" " in plain for plain in PLAIN[name]) for name in ("coco_stuff", "ade20k", "cityscapes")}
    assert joined == {"coco_stuff": 15, "ade20k": 15, "cityscapes": 2}
    for name in joined:
        assert not [line for line in class_lines(name) if " " in line or line == "person"]
    assert class_lines("world")[:2] == ["grass; sand; water; forest; concrete; farmland", "airplane"]
    thresholds = {name: layout.threshold for name, layout in LAYOUTS.items() if layout.threshold}
    assert thresholds == {"voc21": 0.2, "context60": 0.15, "coco_object": 0.25}
    assert set(LAYOUTS) == set(PLAIN)


def test_names_and_class_files_change_prompts_but_not_tables(tmp_path):
    plain, reference = (SegmentationBenchmark(str(tmp_path), "voc20", names=n) for n in ("plain", "reference"))
    assert plain.class_lines[14] == "person"
    assert reference.class_lines[14] == "people"
    assert plain.class_names == reference.class_names == plain.class_lines
    own = tmp_path / "own.txt"
    own.write_text("\n".join(["plane; jet", *plain.class_lines[1:]]) + "\n\n")
    data = SegmentationBenchmark(str(tmp_path), "voc20", classes=str(own))
    assert data.class_lines[:2] == ["plane; jet", "bicycle"]
    assert data.class_names[0] == "aeroplane"
    with pytest.raises(ValueError, match="has 20 lines, but voc21 has 21 classes"):
        SegmentationBenchmark(str(tmp_path), "voc21", classes=str(own))
    with pytest.raises(ValueError, match="benchmark is 'voc22'; known: voc21"):
        SegmentationBenchmark(str(tmp_path), "voc22")
    with pytest.raises(ValueError, match="names is 'mine'"):
        SegmentationBenchmark(str(tmp_path), names="mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", "line 2: '' must be"),
        ("cat;\n", "line 1: 'cat;' must be"),
        ("cat; ;kitten\n", "line 1"),
        ("cat;kitten\ndog\ncat; tom\n", "line 3: 'cat' is already class 0"),
        ("\n", "is empty"),
    ],
)
def test_malformed_class_files(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_lines(tmp_path / "classes.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_class_lines(tmp_path / "none.txt")


@pytest.fixture
def voc(tmp_path):
    write_pascal(tmp_path / "VOC2012", "SegmentationClass", "Segmentation", {n: label_map(0, 5) for n in "abc"})
    return tmp_path / "VOC2012"


def test_missing_files_are_named(voc, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none does not exist. Set root"):
        _ = SegmentationBenchmark(str(tmp_path / "none")).files
    with pytest.raises(FileNotFoundError, match=r"Benchmark ade20k is not in .*ADEChallengeData2016/images/validation"):
        _ = SegmentationBenchmark(str(tmp_path), "ade20k").files
    (voc / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 label maps are missing, first .*SegmentationClass.b.png"):
        _ = SegmentationBenchmark(str(tmp_path)).files
    for name in "ac":
        (voc / "SegmentationClass" / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"No image in .* looked for .*SegmentationClass/\*\.png"):
        _ = SegmentationBenchmark(str(tmp_path)).files
    (voc / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing, first .*JPEGImages.c.jpg"):
        _ = SegmentationBenchmark(str(tmp_path)).files
    listed = voc / "ImageSets" / "Segmentation" / "val.txt"
    for text, message in (("\n", "names no image"), ("a 1\nb -1\na -1\n", "names a twice")):
        listed.write_text(text)
        with pytest.raises(ValueError, match=message):
            _ = SegmentationBenchmark(str(tmp_path)).files
    listed.unlink()
    with pytest.raises(FileNotFoundError, match=r"Image list .*val.txt does not exist"):
        _ = SegmentationBenchmark(str(tmp_path)).files


def test_wrong_label_maps_are_named(voc):
    data, file = SegmentationBenchmark(str(voc)), voc / "SegmentationClass" / "a.png"
    write_map(file, label_map(0, 21, 21, 40))
    with pytest.raises(ValueError, match=r"a.png holds 21 in 2 pixels and 1 other unknown labels, which is none"):
        data.dataset()[0]
    write_map(file, np.zeros((8, 6), np.uint8))
    with pytest.raises(ValueError, match=r"a.png has 6 x 8 pixels, but its picture has 8 x 6"):
        data.dataset()[0]
    Image.new("RGB", (8, 6)).save(file)
    with pytest.raises(ValueError, match=r"a.png is a picture of colours \(RGB\)"):
        data.dataset()[0]
    for numbers, message in (
        (np.full((6, 8), 0.6, np.float32), "a.png holds floating-point numbers"),
        (np.full((6, 8), 65537, np.int32), "a.png holds 65537; labels are 0 to 65535"),
        (np.full((6, 8), -1, np.int32), "a.png holds -1; labels are 0 to 65535"),
    ):
        Image.fromarray(numbers).save(file, "TIFF")
        with pytest.raises(ValueError, match=message):
            data.dataset()[0]
    Image.fromarray(np.full((6, 8), 20, np.int32)).save(file, "TIFF")
    assert data.dataset()[0]["target"].unique().tolist() == [20]
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"Label map .*a.png cannot be decoded"):
        data.dataset()[0]
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"Label map .*a.png does not exist"):
        data.dataset()[0]
    (voc / "JPEGImages" / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"Image .*b.jpg cannot be decoded"):
        data.dataset()[1]


def test_pictures_with_labels_stay_as_stored_and_others_are_turned(voc, tmp_path):
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: white on top
    Image.fromarray(pixels).save(voc / "JPEGImages" / "a.jpg", exif=exif, quality=95)
    image = SegmentationBenchmark(str(voc)).dataset()[0]["image"]
    assert image.shape == (3, 6, 8)
    assert image[:, :, 0].min() > 200
    data = SegmentationBenchmark(str(voc), predict_images=str(voc / "JPEGImages"), batch_size=2)
    batches = list(data.predict_dataloader())
    assert [name for batch in batches for name in batch["id"]] == ["a.jpg", "b.jpg", "c.jpg", "of_no_list.jpg"]
    assert "target" not in batches[0]
    turned = batches[0]["image"][0]
    assert turned.shape == (3, 8, 6)
    assert batches[0]["size"].tolist() == [[8, 6], [6, 8]]
    assert turned[:, 0].min() > 200
    assert turned[:, -1].max() < 50
    assert "target" in next(iter(SegmentationBenchmark(str(voc)).predict_dataloader()))


def rgb(path, upright=False):
    return read_picture(path, upright).pixels.permute(1, 2, 0).numpy()


def test_pictures_of_any_depth_become_rgb(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert rgb(tmp_path / "deep.png")[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]
    Image.fromarray(np.array([[7, 250]], np.uint8)).save(tmp_path / "grey.png")
    assert rgb(tmp_path / "grey.png")[0].tolist() == [[7] * 3, [250] * 3]
    Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(rgb(tmp_path / "print.jpg").astype(int)[8, 8] - [250, 10, 10]).max() < 12
    Image.new("RGBA", (2, 1), (9, 8, 7, 100)).save(tmp_path / "alpha.png")
    save_indices(tmp_path / "palette.png", np.array([[15]], np.uint8))
    assert rgb(tmp_path / "alpha.png")[0, 0].tolist() == [9, 8, 7]
    assert rgb(tmp_path / "palette.png")[0, 0].tolist() == [192, 128, 128]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(levels).save(tmp_path / "turned.png", exif=exif)
    assert rgb(tmp_path / "turned.png", upright=True)[:, 0, 0].tolist() == [0, 1, 128, 255]
    assert rgb(tmp_path / "turned.png")[0, :, 0].tolist() == [0, 1, 128, 255]
    with pytest.raises(FileNotFoundError, match=r"none.png does not exist"):
        read_picture(tmp_path / "none.png")
    whole = (tmp_path / "print.jpg").read_bytes()
    for bad in (b"", b"hello", whole[:300]):
        (tmp_path / "bad.jpg").write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad.jpg cannot be decoded"):
            read_picture(tmp_path / "bad.jpg")


@pytest.fixture
def folder(tmp_path):
    for name, labels in (("b", label_map(0, 3, 9)), ("sub/a", label_map(1, 2))):
        write_picture(tmp_path / "images" / f"{name}.jpg")
        write_map(tmp_path / "labels" / f"{name}_mask.png", labels)
    (tmp_path / "classes.txt").write_text("pond; lake\nduck\nswan\nreed\n")
    return tmp_path


def test_a_folder_of_images_and_label_maps(folder):
    data = SegmentationFolder(str(folder), label_suffix="_mask.png", ignore_index=9, probability_threshold=0.1)
    assert data.class_names == ["pond", "duck", "swan", "reed"]
    assert data.class_lines[0] == "pond; lake"
    (batch,) = data.test_dataloader()
    assert batch["id"] == ["b", "sub/a"]
    assert batch["target"][0].flatten()[:3].tolist() == [0, 3, 9]
    assert batch["target"][1].flatten()[:3].tolist() == [1, 2, 1]
    assert (data.ignore_index, data.probability_threshold) == (9, 0.1)
    (folder / "listed.txt").write_text("sub/a\n")
    part = SegmentationFolder(str(folder), label_suffix="_mask.png", listed="listed.txt")
    assert [part.dataset()[i]["id"] for i in range(len(part.dataset()))] == ["sub/a"]
    (folder / "listed.txt").write_text("sub/a\na\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images that .*listed.txt names are not in .*images, first a"):
        _ = SegmentationFolder(str(folder), label_suffix="_mask.png", listed="listed.txt").files
    with pytest.raises(FileNotFoundError, match=r"2 of 2 label maps are missing, first .*labels.b\.png"):
        _ = SegmentationFolder(str(folder)).files
    write_picture(folder / "images" / "b too.jpg")
    write_map(folder / "labels" / "b too_mask.png", label_map(2))
    (folder / "listed.txt").write_text("b too \n")
    part = SegmentationFolder(str(folder), label_suffix="_mask.png", listed="listed.txt")
    assert part.files.ids == ["b too"]
    assert part.dataset()[0]["target"].unique().tolist() == [2]
    with pytest.raises(FileNotFoundError, match=r"Class file .*other.txt does not exist"):
        _ = SegmentationFolder(str(folder), classes="other.txt").files
    write_picture(folder / "images" / "b.png")
    with pytest.raises(ValueError, match=r"b\.jpg and .*b\.png would share one label map"):
        _ = SegmentationFolder(str(folder), label_suffix="_mask.png").files


def test_pictures_that_would_share_a_mask_file_are_refused(folder):
    (folder / "masks").mkdir()
    for name in "ab":
        write_map(folder / "masks" / f"{name}.png", label_map(7))
    masks = PregeneratedMasks(str(folder / "masks"))
    settings = {"label_suffix": "_mask.png", "masks": masks, "predict_images": str(folder / "images")}
    assert SegmentationFolder(str(folder), **settings).dataset()[1]["instance_mask"].unique().tolist() == [7]
    write_picture(folder / "images" / "a.jpg")
    write_map(folder / "labels" / "a_mask.png", label_map(0))
    for stage in ("test", "predict"):
        with pytest.raises(ValueError, match=r"images.a\.jpg and .*sub.a\.jpg would share one file of masks, a in"):
            SegmentationFolder(str(folder), **settings).setup(stage)
    SegmentationFolder(str(folder), **{**settings, "masks": Halves()}).setup("test")


def test_a_folder_with_many_classes_in_16_bits(folder):
    (folder / "classes.txt").write_text("\n".join(f"thing {i}" for i in range(5000)))
    labels = np.zeros(SIZE, np.uint16)
    labels[0, :3] = 1, 5000, 65535
    for name in ("b", "sub/a"):
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    data = SegmentationFolder(str(folder), ignore_index=65535, reduce_zero_label=True)
    assert data.dataset()[0]["target"][0, :4].tolist() == [0, 4999, 65535, 65535]
    with pytest.raises(ValueError, match="ignore_index is 255, but labels 0 to 4999 are classes"):
        _ = SegmentationFolder(str(folder)).files
    with pytest.raises(ValueError, match="There are 70000 classes"):
        label_table(70000)


def test_batches_come_in_shares_of_processes(voc, monkeypatch):
    from datamodules import samplers

    data, seen = SegmentationBenchmark(str(voc), batch_size=2), []
    for rank in range(2):
        monkeypatch.setattr(samplers, "rank_and_world", lambda rank=rank: (rank, 2))
        seen.append([int(i) for batch in data.test_dataloader() for i in batch["index"]])
    assert seen == [[0, 1], [2]]


class Halves:
    """The upper half of the pixels it gets is region 1; only the process that made it may use it."""

    name, in_processes, by_name = "halves", False, False

    def __init__(self):
        self.process, self.made = os.getpid(), []

    def fingerprint(self):
        return "halves"

    def masks(self, image, stem=None):
        assert os.getpid() == self.process, "a GPU cannot be used here"
        self.made.append(stem)
        ids = torch.zeros(image.shape[1:], dtype=torch.long)
        ids[: image.shape[1] // 2] = 1
        return ids


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_are_made_before_the_loaders_start(voc, tmp_path, workers):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(voc / "JPEGImages" / "b.jpg", exif=exif)
    settings = {"masks": Halves(), "mask_cache": str(tmp_path / "cache"), "num_workers": workers}
    data = SegmentationBenchmark(str(voc), predict_images=str(voc / "JPEGImages"), batch_size=3, **settings)
    (batch,) = data.test_dataloader()
    assert data.masks.made == ["a", "b"]  # c has the bytes of a
    for image, ids, target in zip(batch["image"], batch["instance_mask"], batch["target"], strict=True):
        assert image.shape[1:] == ids.shape == target.shape == (6, 8)  # as stored, where labels are
        assert ids[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    data.batch_size = 1
    data.trainer = SimpleNamespace(limit_predict_batches=2)
    loader = data.predict_dataloader()
    assert data.masks.made == ["a", "b", "b"]  # upright, where no labels are; a is known, the others are not asked for
    found = [batch["instance_mask"][0] for batch, _ in zip(loader, range(2), strict=False)]
    assert found[1].tolist() == [[1] * 6] * 4 + [[0] * 6] * 4
    assert len(data.masks.made) == 3
    fresh = SegmentationBenchmark(str(voc), batch_size=3, **{**settings, "masks": Halves()})
    assert len(list(fresh.test_dataloader())) == 1
    assert fresh.masks.made == []


def test_what_a_limit_of_batches_leaves(monkeypatch):
    from datamodules import samplers

    assert samplers.first_of_shares(7, 1.0, 2) == [0, 1, 2, 3, 4, 5, 6]
    assert samplers.first_of_shares(7, 0.5, 2) == [0, 1, 2, 3]
    assert samplers.first_of_shares(7, 0, 2) == []
    monkeypatch.setattr(samplers, "rank_and_world", lambda: (1, 2))
    assert samplers.first_of_shares(7, 1, 2) == [0, 1, 4, 5]
    assert samplers.first_of_shares(7, 1.0, 2) == [0, 1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_voc(str(root), 12, size=48, seed=3)
    return root


def test_the_generated_world_in_the_layout_of_voc(world):
    data = SegmentationBenchmark(str(world), "world")
    assert data.class_names[:4] == ["background", "airplane", "ship", "storage tank"]
    assert len(data.class_names) == 1 + len(CLASS_NAMES)
    (batch,) = data.test_dataloader()
    assert batch["id"] == ["000011", "000012"]
    for name, image, target in zip(batch["id"], batch["image"], batch["target"], strict=True):
        scene, _ = make_scene(3, "world", int(name), 48)
        assert np.array_equal(target, scene.semantic)
        assert np.abs(image.permute(1, 2, 0).numpy().astype(float) - scene.image).mean() < 8  # JPEG
        objects = Image.open(world / "SegmentationObject" / f"{name}.png")
        assert objects.mode == "P"
        assert np.array_equal(objects, scene.instances)
        with np.load(world / "RegionMasks" / f"{name}.npz") as masks:
            assert np.array_equal(masks["instance_mask"], scene.instances)
    lists = {part: (world / f"ImageSets/Segmentation/{part}.txt").read_text().split() for part in ("train", "trainval")}
    assert lists["trainval"] == [f"{n:06d}" for n in range(1, 13)] == [*lists["train"], *batch["id"]]
    file = Image.open(world / "SegmentationClass" / "000001.png")
    assert file.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert voc_palette()[20].tolist() == [0, 64, 128]  # tv monitor


def test_the_command_writes_the_layout_of_voc(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scenes", "voc", str(tmp_path), "--num", "2", "--size", "32"])
    __main__.main()
    assert "2 scenes are in" in capsys.readouterr().out
    assert len(SegmentationBenchmark(str(tmp_path), "world").dataset()) == 1
    with pytest.raises(ValueError, match="train and val need one each"):
        write_voc(str(tmp_path), 1)
