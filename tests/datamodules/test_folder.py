"""A folder of images: what is found, in which order, with which text, and what is said when it cannot be used."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.folder import DEFAULT_CAPTION, ImageFolder, find_images, read_caption_table


def picture(path, colour=(200, 30, 30), size=(6, 4), **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **arguments)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for name in ("b.jpg", "a.PNG", "sub/deep/c.jpeg", "sub/a.webp", "z.bmp"):
        picture(root / name)
    (root / "notes.txt").write_text("no image")
    picture(root / ".hidden.jpg")
    picture(root / ".cache" / "d.jpg")
    return root


NAMES = ["a.PNG", "b.jpg", "sub/a.webp", "sub/deep/c.jpeg", "z.bmp"]


def table(path, *lines, heading="file,caption"):
    path.write_text("\n".join([heading, *lines]) + "\n", encoding="utf-8")
    return path


def test_images_of_all_depths_in_the_order_of_their_paths(folder, capsys):
    data = ImageFolder(folder)
    assert (len(data), data.ids) == (5, NAMES)
    item = data[3]
    assert {key: item[key] for key in ("text", "index", "id")} == {
        "text": "a photo.",
        "index": 3,
        "id": "sub/deep/c.jpeg",
    }
    assert (item["image"].mode, item["image"].size) == ("RGB", (6, 4))
    assert "5 images without captions; each gets the text 'a photo.'" in capsys.readouterr().out


def test_captions_by_file_in_any_order(folder, tmp_path, capsys):
    rows = [f'{name},"a thing, {i}"' for i, name in enumerate(NAMES)]
    path = table(tmp_path / "captions.csv", *reversed(rows), "elsewhere.jpg,a sheep")
    data = ImageFolder(str(folder), str(path))
    assert [data[i]["text"] for i in range(5)] == [f"a thing, {i}" for i in range(5)]
    printed = capsys.readouterr().out
    assert "1 caption(s) are of no image" in printed
    assert "without captions" not in printed


def test_tables_as_spreadsheets_write_them(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes("\ufefffile,caption,note\r\n.\\sub\\a.jpg,  ein Schäfer ,x\r\n./b.jpg,a dog,\r\n".encode())
    assert read_caption_table(path) == {"sub/a.jpg": "ein Schäfer", "b.jpg": "a dog"}


def test_transform_and_collation(folder):
    data = ImageFolder(folder, transform=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1))
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch["image"].shape == (3, 3, 4, 6)
    assert batch["index"].tolist() == [0, 1, 2]
    assert (batch["id"], batch["text"]) == (NAMES[:3], [DEFAULT_CAPTION] * 3)


def test_pixels_are_those_of_the_file_and_photos_stand_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned by a quarter
    picture(tmp_path / "b.jpg", exif=turned)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "c.png")
    data = ImageFolder(tmp_path)
    assert np.array_equal(np.array(data[0]["image"]), pixels)
    assert data[1]["image"].size == (4, 6)
    assert np.array_equal(np.array(data[2]["image"]), np.repeat(pixels[..., :1], 3, axis=2))


def test_nothing_to_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Image folder .*absent does not exist"):
        ImageFolder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*empty\. Files that end in \.jpg"):
        find_images(tmp_path / "empty")


def test_an_undecodable_image_is_named_when_it_is_read(folder):
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:100])
    (folder / "z.bmp").write_bytes(b"no image")
    data = ImageFolder(folder)
    for index, name in ((1, r"b\.jpg"), (4, r"z\.bmp")):
        with pytest.raises(ValueError, match=rf"Image .*{name} cannot be decoded .*take it out of the data"):
            data[index]
    assert data[0]["id"] == "a.PNG"
    with pytest.raises(ValueError, match=r"z\.bmp cannot be decoded \(it is no picture\)"):
        data[4]


def test_pictures_of_floating_point_numbers_are_refused(tmp_path):
    Image.new("F", (2, 2), 0.5).save(tmp_path / "heights.tif")
    with pytest.raises(ValueError, match=r"heights\.tif holds floating-point numbers\. Store it with 8 or 16 bits"):
        ImageFolder(tmp_path)[0]


def test_missing_rows_name_the_first_image(folder, tmp_path):
    path = table(tmp_path / "captions.csv", "a.PNG,one", "sub/a.webp,two")
    with pytest.raises(ValueError, match=r"no row for 3 of 5 images in .*, first b\.jpg\. Add the rows"):
        ImageFolder(folder, path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        ImageFolder(folder, tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("lines", "heading", "message"),
    [
        (["a.jpg,one"], "image,text", r"has the heading 'image,text'; it must be 'file,caption'"),
        (["a.jpg,one", "b.jpg,"], "file,caption", r"line 3: a file and a caption are needed"),
        (["a.jpg"], "file,caption", r"line 2: a file and a caption are needed"),
        (["a.jpg,one, two"], "file,caption", r"line 2: more than two cells.*double quotes"),
        (["a.jpg,one", "a.jpg,two"], "file,caption", r"line 3: a\.jpg has another caption above"),
    ],
)
def test_malformed_tables_name_the_line(tmp_path, lines, heading, message):
    with pytest.raises(ValueError, match=message):
        read_caption_table(table(tmp_path / "captions.csv", *lines, heading=heading))


def test_tables_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"file,caption\na.jpg,caf\xe9\n")
    with pytest.raises(ValueError, match="no CSV file in UTF-8"):
        read_caption_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="has the heading ''"):
        read_caption_table(tmp_path / "b.csv")
    assert read_caption_table(table(tmp_path / "c.csv", "a.jpg,one", "a.jpg,one")) == {"a.jpg": "one"}
