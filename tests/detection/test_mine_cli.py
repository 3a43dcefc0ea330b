"""The command ``mine``: its files and what it prints, and that mistakes change nothing on disk."""

import csv
import json

import pytest
from PIL import Image

A, B, FAR = [0, 0, 10, 10], [40, 0, 10, 10], [80, 80, 10, 10]  # x, y, width, height


def entry(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


RESULTS = [entry(5, 10, A, 0.9), entry(5, 10, FAR, 0.8), entry(9, 30, B, 0.2)]


@pytest.fixture
def mine(run_cli, tmp_path):
    """``mine(results, *options)``: three images of two classes, of which the first has a false alarm."""
    (tmp_path / "pictures").mkdir()
    images = [{"id": key, "file_name": f"{key}.png", "height": 100, "width": 100} for key in (5, 9, 2)]
    for image in images:
        Image.new("RGB", (100, 100), "gray").save(tmp_path / "pictures" / image["file_name"])
    boxes = [(5, 10, A), (9, 30, B), (2, 10, A)]
    annotations = [{"id": i, "image_id": of, "category_id": c, "bbox": box} for i, (of, c, box) in enumerate(boxes)]
    categories = [{"id": 10, "name": "ship"}, {"id": 30, "name": "tank"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))

    def run(results, *options):
        (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
        run_cli("mine", "--predictions", "results.json", "--annotations", "truth.json", *options)

    return run


def test_mining_a_file_of_predictions(mine, tmp_path, capsys) -> None:
    mine(RESULTS, "--images", "pictures", "--confidence_threshold", "[0.5, 0.1]")
    folder = tmp_path / "runs/mine"
    report = json.loads((folder / "report.json").read_text())
    statistics = report["statistics"]
    assert (statistics["true_positives"], statistics["false_positives"], statistics["false_negatives"]) == (2, 1, 1)
    assert statistics["types"]["background"] == statistics["types"]["missed"] == 1
    assert report["settings"]["confidence_threshold"] == [0.5, 0.1]
    assert sorted(path.name for path in (folder / "crops").iterdir()) == [
        "0001_background_ship_5.png",
        "0002_missed_ship_2.png",
    ]
    with (folder / "weights.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["index"], row["image_id"], row["file_name"]) for row in rows] == [
        ("0", "5", "5.png"),
        ("1", "9", "9.png"),
        ("2", "2", "2.png"),
    ]
    assert [float(row["hardness"]) for row in rows] == [0.8, 0, 1]
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(1)
    printed = capsys.readouterr().out
    for text in (
        "precision",
        "0.6667",
        "dAP",
        "3 images, 3 true boxes",
        "written to runs/mine",
        "2 of 3 images have hard negatives; weights.csv lifts 0",
    ):
        assert text in printed


def test_no_predictions_and_no_pictures(mine, tmp_path, capsys) -> None:
    mine([], "--out", "elsewhere", "--strategy", "tide")
    assert "results.json: no predictions, so every truth counts as missed." in capsys.readouterr().out
    statistics = json.loads((tmp_path / "elsewhere/report.json").read_text())["statistics"]
    assert (statistics["false_negatives"], statistics["total_predictions"]) == (3, 0)
    assert not (tmp_path / "elsewhere/crops").exists()
    mine(RESULTS, "--confidence_threshold", "0.95")
    printed = capsys.readouterr().out
    assert "No prediction reaches its confidence_threshold. Set it below the highest confidence, 0.9." in printed
    assert "nan" not in printed


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        (RESULTS, ["--strategy", "loss_based"], "strategy is loss_based, which needs the loss of each image"),
        (RESULTS, ["--strategy", "hardest"], "strategy is 'hardest'; it must be one of"),
        (RESULTS, ["--confidence_threshold", "[0.5]"], "confidence_threshold lists 1 values and truth.json 2 categor"),
        (RESULTS, ["--iou_threshold", "1.5"], "iou_threshold is 1.5; give an IoU between 0 and 1"),
        (RESULTS, ["--crops", "-1"], "crops is -1; it must be at least 0."),
        (RESULTS, ["--images", "nowhere"], "Folder of images nowhere does not exist."),
        ([*RESULTS, entry(4, 10, A, 1)], [], "Predictions file results.json, entry 4: image_id 4 is not in the annot"),
        (json.dumps(RESULTS)[:-20], [], "Predictions file results.json is not whole JSON"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(mine, tmp_path, capsys, results, options, message) -> None:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/report.json").write_text("kept")
    with pytest.raises(SystemExit) as ended:
        mine(results, *options)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith(f"error: {message}")
    assert "Traceback" not in printed
    assert [path.name for path in (tmp_path / "runs/mine").iterdir()] == ["report.json"]
    assert (tmp_path / "runs/mine/report.json").read_text() == "kept"


def test_what_is_missing_is_named(run_cli, capsys) -> None:
    with pytest.raises(SystemExit):
        run_cli("mine", "--predictions", "results.json")
    assert capsys.readouterr().err.startswith("error: mine: --annotations must be given")
