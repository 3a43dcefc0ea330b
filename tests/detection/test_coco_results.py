"""Reading COCO results: values and order, what is allowed, and what is refused with file, entry, picture and cure."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from datamodules.coco_results import read_coco_results

IMAGES = [("b.jpg", 7), ("sub/a.jpg", 3), ("c.jpg", 20)]
CATEGORIES = [(18, "dog"), (2, "storage tank")]


@pytest.fixture
def files(tmp_path):
    """``files(entries, **truth)`` writes both files and reads them; ids are neither sorted nor without gaps."""

    def read(entries, folder=None, **changed):
        truth = {
            "images": [{"id": key, "file_name": name, "height": 40, "width": 60} for name, key in IMAGES],
            "categories": [{"id": key, "name": name} for key, name in CATEGORIES],
            "annotations": [
                {"id": 1, "image_id": 3, "category_id": 2, "bbox": [10, 5, 20, 30], "iscrowd": 0},
                {"id": 2, "image_id": 7, "category_id": 18, "bbox": [0, 0, 6, 4], "iscrowd": 1},
            ],
        }
        (tmp_path / "truth.json").write_text(json.dumps({**truth, **changed}))
        text = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / "found.json").write_text(text)
        return read_coco_results(tmp_path / "found.json", tmp_path / "truth.json", folder)

    return read


def entry(image_id=3, category_id=2, bbox=(1, 2, 3, 4), score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def pictures(folder, size=(60, 40)):
    for name, _ in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "navy").save(folder / name)
    return folder


def test_predictions_and_truths_stand_in_the_order_of_the_file(files) -> None:
    results = files([entry(20, 18, score=1), entry(3, 2, (0.5, 1, 2, 0), 0.25), entry(20, 2, (-1, 0, 9, 9), 0.75)])
    assert results.image_ids == [7, 3, 20]
    assert results.file_names == ["b.jpg", "sub/a.jpg", "c.jpg"]
    assert results.class_names == ["dog", "storage tank"]
    found = [{name: column.tolist() for name, column in one.items()} for one in results.predictions]
    assert found == [
        {"boxes": [], "scores": [], "labels": []},
        {"boxes": [[0.5, 1, 2.5, 1]], "scores": [0.25], "labels": [1]},
        {"boxes": [[1, 2, 4, 6], [-1, 0, 8, 9]], "scores": [1, 0.75], "labels": [0, 1]},
    ]
    assert [one["boxes"].shape for one in results.predictions] == [(0, 4), (1, 4), (2, 4)]
    assert [one["boxes"].tolist() for one in results.truths] == [[[0, 0, 6, 4]], [[10, 5, 30, 35]], []]
    assert [one["labels"].tolist() for one in results.truths] == [[0], [1], []]
    assert [one["ignore"].tolist() for one in results.truths] == [[True], [False], []]
    assert [one["index"] for one in results.truths] == [0, 1, 2]


def test_ids_that_stand_for_others_are_refused(files, tmp_path) -> None:
    files([])  # truth.json
    (tmp_path / "results.json").write_text("[]")
    paths = tmp_path / "results.json", tmp_path / "truth.json"
    kinds = [{"id": 18, "name": "dog"}, {"id": 2, "name": "storage-tank"}]

    def beside(name, categories=kinds):
        images = [{"id": 3, "file_name": name}, {"id": 99, "file_name": "elsewhere.jpg"}]
        (tmp_path / "boxes.json").write_text(json.dumps({"images": images, "categories": categories}))
        return read_coco_results(*paths)

    for name in ("sub/a.jpg", "val2017/sub/a.jpg", "a"):  # from another folder, or without the ending
        assert beside(name).image_ids == [7, 3, 20]
    for name in ("b.jpg", "other/a.jpg", "sub/a_x0_y0"):  # the last one is a tile
        with pytest.raises(ValueError, match=rf"image_id 3 is {name}, but in .*truth.json it is sub/a.jpg. Give"):
            beside(name)
    with pytest.raises(ValueError, match=r"category_id 18 is storage tank, but in .*truth.json it is dog"):
        beside("a", [{"id": 18, "name": "storage tank"}])


def test_no_prediction_is_allowed_and_said(files, capsys) -> None:
    results = files([])
    assert [len(one["scores"]) for one in results.predictions] == [0, 0, 0]
    assert "found.json: no predictions, so every truth counts as missed." in capsys.readouterr().out


def test_scores_that_are_no_probabilities_are_said(files, capsys) -> None:
    files([entry(score=26.5), entry(score=0.5), entry(score=-1)])
    assert "2 of 3 scores lie outside 0 to 1." in capsys.readouterr().out


def test_pictures_are_opened_from_their_folder_and_without_one_refused(files, tmp_path) -> None:
    results = files([entry()], pictures(tmp_path / "images"))
    assert np.asarray(results.picture(1)).shape == (40, 60, 3)
    with pytest.raises(ValueError, match="have no pictures"):
        files([entry()]).picture(1)


def test_pictures_that_do_not_belong_to_the_annotations_are_refused(files, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"truth.json, image b.jpg: the boxes are of a picture of 60 x 40 .* has 8 x 9"
    ):
        files([entry()], pictures(tmp_path / "small", (8, 9)))
    (tmp_path / "small" / "c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .* first .*c.jpg"):
        files([entry()], tmp_path / "small")
    with pytest.raises(FileNotFoundError, match=r"Folder of images .*nowhere does not exist. Leave it out"):
        files([entry()], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry(image_id=1), r"found.json, entry 2: image_id 1 is not in the annotations, whose 3 ids begin 7, 3, 20"),
        (entry(image_id="3"), r"entry 2: image_id '3' is not in the annotations.* counts images from 1"),
        (entry(image_id=[3]), r"entry 2: image_id \[3\] is not in the annotations"),
        (entry(category_id=1), r"entry 2 \(image sub/a.jpg\): category_id 1 is not .* 2 ids begin 18, 2.* label \+ 1"),
        (entry(score=math.nan), r"entry 2 \(image sub/a.jpg\): score nan is no finite number. Write the file again"),
        (entry(score=-math.inf), r"entry 2 \(image sub/a.jpg\): score -inf is no finite number"),
        (entry(score=10**400), r"is no finite number"),
        (entry(score="0.9"), r"entry 2 \(image sub/a.jpg\): score '0.9' is no finite number"),
        (entry(score=None), r"score None is no finite number"),
        (entry(score=True), r"score True is no finite number"),
        (
            entry(bbox=(1, 2, -3, 4)),
            r"entry 2 \(image sub/a.jpg\): bbox \[1, 2, -3, 4\] has a negative width or height",
        ),
        (entry(bbox=(1, 2, 3, -0.5)), r"negative width or height.* convert boxes that were written as corners"),
        (entry(bbox=(1, 2, 3)), r"bbox \[1, 2, 3\] is not four finite numbers x, y, width, height"),
        (entry(bbox=(1, 2, math.inf, 3)), r"is not four finite numbers"),
        ({"image_id": 3, "score": 1}, r"found.json, entry 2 lacks category_id, bbox; it needs image_id"),
        ([1], r"entry 2 is a list; it needs image_id"),
    ],
)
def test_an_entry_that_cannot_be_scored_is_refused(files, wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        files([entry(), wrong])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Predictions file .*found.json is empty. Write it again; no prediction at all is the list \[\]"),
        (json.dumps([entry(), entry()])[:90], r"found.json is not whole JSON .* cut off or damaged"),
        (" 7", r"found.json holds a number; COCO's results are a list of entries with image_id, category_id"),
        ('{"images": []}', r"holds an object; .* boxes.json is a data set; the list stands in results.json"),
    ],
)
def test_a_file_that_is_no_list_of_results_is_refused(files, text, message) -> None:
    with pytest.raises(ValueError, match=message):
        files(text)


def test_files_that_are_not_there_or_no_text_are_refused(files, tmp_path) -> None:
    files([])
    (tmp_path / "found.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"found.json is not text .* Write it again"):
        read_coco_results(tmp_path / "found.json", tmp_path / "truth.json")
    with pytest.raises(FileNotFoundError, match=r"Predictions file .*nowhere.json does not exist"):
        read_coco_results(tmp_path / "nowhere.json", tmp_path / "truth.json")
    with pytest.raises(FileNotFoundError, match=r"Annotation file .*nowhere.json does not exist"):
        read_coco_results(tmp_path / "found.json", tmp_path / "nowhere.json")


def test_annotations_without_truths_are_refused(files, tmp_path) -> None:
    crowd = {"id": 1, "image_id": 7, "category_id": 18, "bbox": [0, 0, 6, 4], "iscrowd": 1}
    for annotations in ([], [crowd]):
        with pytest.raises(ValueError, match=r"truth.json holds no object that counts in its 3 images"):
            files([entry()], annotations=annotations)
    (tmp_path / "truth.json").write_text('{"images": [], "categories": []}')
    with pytest.raises(ValueError, match=r"truth.json has no annotations"):
        read_coco_results(tmp_path / "found.json", tmp_path / "truth.json")


def test_a_truth_that_cannot_be_right_is_named_with_its_picture(files) -> None:
    inverted = {"id": 1, "image_id": 3, "category_id": 2, "bbox": [30, 5, -20, 30]}
    with pytest.raises(ValueError, match=r"truth.json, image sub/a.jpg, object 1 \(storage tank\): .* inverted"):
        files([entry()], annotations=[inverted])


def test_damaged_annotations_are_refused(files) -> None:
    short = {"id": 8, "image_id": 3, "category_id": 2, "bbox": [30, 5, 20]}
    with pytest.raises(
        ValueError, match=r"truth.json: annotation 8 \(image sub/a.jpg\) has bbox \[30, 5, 20\]; it must"
    ):
        files([entry()], annotations=[short])
    twice = [{"id": 3, "file_name": name, "height": 40, "width": 60} for name in ("a.jpg", "b.jpg")]
    with pytest.raises(ValueError, match=r"truth.json: two of its images have the same id. Export the file again"):
        files([entry()], images=twice)
