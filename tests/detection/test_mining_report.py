"""The report of a round of mining: its numbers against a world worked out by hand, its files, its pictures."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from pyarrow import parquet

from callbacks.mining_report import MiningRound, log_mining, write_mining_report
from callbacks.mining_report.analysis import analyse
from callbacks.mining_report.crops import PREDICTED, TRUE
from callbacks.mining_report.figures import Picture
from callbacks.mining_report.mined import COLUMNS
from lightning_modules.detection.mining import HardNegativeMiner
from lightning_modules.metrics.detection_matching import flatten_detections

A, B, C, FAR = [0.0, 0, 10, 10], [40.0, 0, 50, 10], [60.0, 60, 80, 80], [80.0, 80, 90, 90]
THIRD = [0.0, 0, 10, 3]  # IoU 0.3 with A
SHIP, TANK = 0, 1
# below the threshold: the last; the first image also has the suspected label error and the wrong class
PREDICTIONS = [
    {"boxes": [A, FAR, B], "scores": [0.9, 0.95, 0.8], "labels": [SHIP, SHIP, SHIP]},
    {"boxes": [THIRD, FAR], "scores": [0.7, 0.3], "labels": [SHIP, TANK]},
]
TRUTHS = [{"boxes": [A, B], "labels": [SHIP, TANK]}, {"boxes": [A, C], "labels": [SHIP, TANK]}]
HALF = 51 / 101  # AP when the first half of the recall points has precision 1


def mined(predictions=PREDICTIONS, truths=TRUTHS, picture=True, **settings):
    settings = {"confidence_threshold": 0.5, "iou_threshold": 0.5, "strategy": "confidence_based", **settings}
    predictions = [{name: np.array(values) for name, values in one.items()} for one in predictions]  # float64
    miner = HardNegativeMiner(**settings)
    records = miner.find_hard_negatives(predictions, truths, [f"id{i}" for i in range(len(truths))])
    names = [f"part {i}/photo {i}.jpg" for i in range(len(truths))]
    return MiningRound(
        miner.generate_report(),
        records,
        flatten_detections(predictions, truths),
        ["ship", "storage tank"],
        names,
        (lambda index: Image.new("RGB", (100, 100), ["#224466", "#446622"][index])) if picture else None,
        "Mined $by$ hand",
        {**settings, "hard_negative_ratio": 0.3},
    )


@pytest.fixture
def one_dot(monkeypatch) -> None:
    """A dot in place of every figure, for tests of other files."""
    target = io.BytesIO()
    Image.new("RGB", (10, 10)).save(target, "PNG")
    names = ("confidence_iou", "confidence_histogram", "iou_histogram", "types", "tide")
    pictures = dict.fromkeys(names, Picture(target.getvalue(), "a dot", ""))
    monkeypatch.setattr("callbacks.mining_report.write.draw_figures", lambda *_: pictures)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined")
    return folder, write_mining_report(folder, mined())


def read_csv(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_numbers_are_those_of_the_hand(written) -> None:
    report = json.loads((written[0] / "report.json").read_text())
    assert report["statistics"] == {
        "total_predictions": 5,
        "hard_negatives": 4,
        "false_positives": 3,
        "false_negatives": 3,
        "true_positives": 1,
        "below_threshold": 1,
        "ignored": 0,
        "suspected_label_errors": 1,
        "types": {"localisation": 1, "class": 1, "both": 0, "duplicate": 0, "background": 1, "missed": 1},
    }
    rates = {"precision": 1 / 4, "recall": 1 / 4, "f1_score": 1 / 4, "hard_negative_rate": 4 / 5}
    assert report["metrics"] == pytest.approx(rates)
    # images drawn twice: (1 of 3, 1 of 2) or (0 of 1, 0 of 2); the ends are those of the draws of one image alone
    assert report["metrics_interval"]["precision"] == pytest.approx([0, 1 / 3])
    assert report["metrics_interval"]["recall"] == pytest.approx([0, 1 / 2])
    assert report["n"] == {
        "images": 2,
        "truths": 4,
        "ignored_truths": 0,
        "predictions": 5,
        "classes_with_truths": 2,
        "classes": 2,
    }
    # ships by confidence: false, true, false, false of 2 truths; tanks: false of 2
    assert report["ap_50"] == pytest.approx(HALF / 2 / 2)
    assert report["tide"]["ap"] == report["ap_50"]
    gains = {name: kind["gain"] for name, kind in report["tide"]["types"].items()}
    assert gains == pytest.approx(
        {
            "localisation": (0.5 - HALF / 2) / 2,  # a second hit at rank 4
            "class": HALF / 2,  # the first tank is found; that of ships stays
            "both": 0,
            "duplicate": 0,
            "background": HALF / 2 / 2,  # the hit leads
            "missed": 0,
        }
    )
    errors = {name: kind["errors"] for name, kind in report["tide"]["types"].items()}
    assert errors == {"localisation": 1, "class": 1, "both": 0, "duplicate": 0, "background": 2, "missed": 1}
    assert report["tide"]["false_positive"]["gain"] == pytest.approx(HALF / 2 / 2)
    assert report["tide"]["false_negative"]["gain"] == pytest.approx((0.5 - HALF / 2) / 2)
    assert written[1]["dap_class"] == pytest.approx(gains["class"])
    assert (written[1]["ap_50"], written[1]["num_background"]) == (report["ap_50"], 2)


def test_the_numbers_by_class(written) -> None:
    ship, tank = json.loads((written[0] / "report.json").read_text())["classes"]
    assert (ship["name"], ship["truths"], ship["predictions"], ship["ap_50"]) == ("ship", 2, 4, pytest.approx(HALF / 2))
    assert {name: kind["hard_negatives"] for name, kind in ship["types"].items() if kind["hard_negatives"]} == {
        "localisation": 1,
        "class": 1,
        "background": 1,
    }
    assert ship["types"]["background"]["gain"] == pytest.approx(HALF / 2)
    assert (tank["name"], tank["ap_50"], tank["hard_negatives"], tank["types"]["missed"]["hard_negatives"]) == (
        "storage tank",
        0,
        1,
        1,
    )
    assert tank["types"]["class"]["gain"] == pytest.approx(HALF)
    assert (ship["suspected_label_errors"], tank["suspected_label_errors"]) == (1, 0)


def test_the_table_of_hard_negatives(written) -> None:
    rows = parquet.read_table(written[0] / "hard_negatives.parquet").to_pylist()
    assert [list(row) for row in rows] == [list(COLUMNS)] * 4
    by_type = {row["type"]: row for row in rows}
    wrong = by_type["class"]
    assert (wrong["image_index"], wrong["image_id"], wrong["file_name"]) == (0, "id0", "part 0/photo 0.jpg")
    assert (wrong["prediction_index"], wrong["truth_index"], wrong["class_name"]) == (2, 1, "ship")
    assert (wrong["truth_class_name"], wrong["iou"], wrong["confidence"]) == ("storage tank", 1, 0.8)
    corners = [
        [by_type[name][f"{of}_{c}"] for c in ("x1", "y1", "x2", "y2")]
        for name, of in (
            ("localisation", "prediction"),
            ("localisation", "truth"),
            ("missed", "truth"),
            ("background", "prediction"),
        )
    ]
    assert corners == [THIRD, A, C, FAR]
    assert by_type["missed"]["prediction_x1"] is None is by_type["missed"]["prediction_index"]
    assert by_type["background"]["truth_class_name"] is None is by_type["background"]["truth_y2"]
    # types take turns; what may be right comes last
    assert {name: row["rank"] for name, row in by_type.items()} == {
        "localisation": 1,
        "class": 2,
        "missed": 3,
        "background": 4,
    }


def test_csv_and_parquet_say_the_same(written) -> None:
    rows = parquet.read_table(written[0] / "hard_negatives.parquet").to_pylist()
    as_text = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    assert as_text == read_csv(written[0] / "hard_negatives.csv")


def test_suspected_label_errors_stand_apart_highest_first(tmp_path, one_dot) -> None:
    near = [0.0, 0, 10, 0.5]  # IoU 0.05 with A
    found = {"boxes": [FAR, near, C], "scores": [0.93, 0.99, 0.91], "labels": [SHIP, TANK, SHIP]}
    write_mining_report(tmp_path, mined([found], [{"boxes": [A], "labels": [SHIP]}]))
    rows = read_csv(tmp_path / "label_errors.csv")
    assert [float(row["overlooked_score"]) for row in rows] == pytest.approx([0.99 * 0.95, 0.93, 0.91])
    assert [row["class_name"] for row in rows] == ["storage tank", "ship", "ship"]
    listed = json.loads((tmp_path / "report.json").read_text())["label_error_candidates"]
    assert [row["confidence"] for row in listed] == [0.99, 0.93, 0.91]
    assert (tmp_path / "label_errors.png").is_file()


def test_crops_show_both_boxes_and_are_named(written) -> None:
    folder = written[0] / "crops"
    assert sorted(path.name for path in folder.iterdir()) == [
        "0001_localisation_ship_photo_1.png",
        "0002_class_ship_photo_0.png",
        "0003_missed_storage_tank_photo_1.png",
    ]
    for name, colours, ground in (
        ("0001_localisation_ship_photo_1", {PREDICTED, TRUE}, "#446622"),
        ("0003_missed_storage_tank_photo_1", {TRUE}, "#446622"),
    ):
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))[:256]
        there = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels.reshape(-1, 3), axis=0)}
        assert there & {PREDICTED, TRUE} == colours
        assert ground in there
    assert Image.open(written[0] / "hardest.png").width > 3 * 256


def test_crops_of_an_earlier_report_go_and_other_files_stay(tmp_path, one_dot) -> None:
    write_mining_report(tmp_path, mined())
    (tmp_path / "crops" / "notes.png").write_bytes(b"mine")
    write_mining_report(tmp_path, mined(), crops=1)
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == [
        "0001_localisation_ship_photo_1.png",
        "notes.png",
    ]
    write_mining_report(tmp_path, mined(picture=False))
    assert [path.name for path in (tmp_path / "crops").iterdir()] == ["notes.png"]
    assert not (tmp_path / "hardest.png").exists()
    assert "no pictures were given" in (tmp_path / "report.html").read_text()


def test_a_picture_that_cannot_be_read_leaves_the_folder_as_it_was(tmp_path, one_dot) -> None:
    write_mining_report(tmp_path, mined())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def broken(index):
        raise ValueError("cannot be decoded")

    one = mined(truths=TRUTHS[::-1])
    with pytest.raises(ValueError, match="cannot be decoded"):
        write_mining_report(tmp_path, MiningRound(**{**vars(one), "picture": broken}))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_page_holds_everything_and_needs_no_network(written) -> None:
    page = (written[0] / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 5 + 2  # figures, and the sheets of crops and of label errors
    assert page.count("Mined $by$ hand") == 2
    assert f"{100 * HALF / 2:.2f}" in page  # the gain of class errors
    for name in ("ship", "storage tank", "part 0/photo 0.jpg", "Precision", "bootstrap over 2 images"):
        assert name in page
    figures = sorted(path.name for path in (written[0] / "figures").iterdir())
    names = ["confidence_histogram", "confidence_iou", "iou_histogram", "tide", "types"]
    assert figures == [f"{name}.png" for name in names]
    assert Image.open(written[0] / "figures" / "tide.png").width == 6.3 * 200


def test_nothing_predicted_and_nothing_wrong_are_reported_too(tmp_path) -> None:
    nothing = {"boxes": [], "scores": [], "labels": []}
    write_mining_report(tmp_path / "none", mined([nothing] * 2))
    report = json.loads((tmp_path / "none" / "report.json").read_text())
    assert (report["metrics"]["precision"], report["metrics_interval"]["precision"]) == (None, [None, None])
    assert (report["metrics"]["recall"], report["ap_50"], report["statistics"]["types"]["missed"]) == (0, 0, 4)
    perfect = [{**truth, "scores": [0.9, 0.9]} for truth in TRUTHS]
    summary = write_mining_report(tmp_path / "all", mined(perfect))
    assert (summary["ap_50"], summary["hard_negatives"], summary["dap_missed"]) == (1, 0, 0)
    assert read_csv(tmp_path / "all" / "hard_negatives.csv") == []
    assert parquet.read_table(tmp_path / "all" / "hard_negatives.parquet").num_rows == 0
    assert not (tmp_path / "all" / "hardest.png").exists()


def test_thresholds_of_each_class_and_scores_beyond_1(tmp_path) -> None:
    scaled = [{**one, "scores": [30 * score for score in one["scores"]]} for one in PREDICTIONS]
    write_mining_report(tmp_path, mined(scaled, confidence_threshold=[15.0, 5.0]))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["statistics"]["below_threshold"] == 0  # that of tanks is 5, and the last tank has 9
    assert report["settings"]["confidence_threshold"] == [15.0, 5.0]
    assert "5 to 15 by class (2 values)" in (tmp_path / "report.html").read_text()


def test_an_offline_wandb_run_holds_tables_and_pictures(written, tmp_path) -> None:
    import wandb

    logger = WandbLogger(project="test", save_dir=tmp_path)
    log_mining([CSVLogger(tmp_path), logger], mined(), written[0], step=3)
    files = Path(logger.experiment.dir)
    wandb.finish()
    (table,) = files.glob("media/table/mining/hard_negatives_*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == list(COLUMNS)
    assert [row[0] for row in content["data"]] == [1, 2, 3, 4]
    sent = {path.name.rsplit("_", 2)[0] for path in files.glob("media/images/mining/*.png")}
    names = {"confidence_histogram", "confidence_iou", "iou_histogram", "tide", "types", "hardest", "label_errors"}
    assert sent == names


def test_the_rates_of_a_crowded_picture_have_no_limit() -> None:
    crowd = [[20.0 * k, 0, 20 * k + 10, 10] for k in range(150)]
    found = {"boxes": crowd, "scores": [0.9] * 150, "labels": [SHIP] * 150}
    crowded = mined([found] * 2, [{"boxes": crowd, "labels": [SHIP] * 150}] * 2)
    assert crowded.report["metrics"]["recall"] == 1
    assert analyse(crowded).rates["recall"] == (1, 1)
