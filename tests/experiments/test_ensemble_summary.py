"""Singles and ensembles on the hold-out part, from hand-made predictions, against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score
from toy_predictions import BITS, N, made_folds

from callbacks.experiments.ensemble_summary import ensemble_block


def saved(folder: Path, folds: list[dict[str, np.ndarray]]) -> dict[int, Path]:
    files = {}
    for fold, arrays in enumerate(folds):
        files[fold] = folder / f"fold_{fold}" / "predictions.npz"
        files[fold].parent.mkdir(exist_ok=True)
        np.savez_compressed(files[fold], **arrays)
    return files


def rows_of(folder: Path, folds: list[dict[str, np.ndarray]]) -> dict[str, dict]:
    block = ensemble_block(saved(folder, folds))
    assert block is not None
    return {row["name"]: row for row in block["rows"]}


def test_rows_against_sklearn(tmp_path) -> None:
    folds = made_folds()
    labels = folds[0]["test_labels"]
    rows = rows_of(tmp_path, folds)
    for kind in ("soft", "binary"):
        singles = []
        for fold, arrays in enumerate(folds):
            row = rows[f"fold {fold}, {kind}" + (" (best by selection)" if fold == 1 else "")]
            wanted = average_precision_score(labels, arrays[f"test_{kind}"], average="macro")
            assert row["map_macro"] == pytest.approx(wanted, abs=1e-6)
            f1 = f1_score(labels, arrays[f"test_{kind}"] >= arrays[f"{kind}_thresholds"], average="macro")
            assert row["f1_macro_fitted"] == pytest.approx(f1, abs=1e-6)
            assert row["low"] < row["map_macro"] < row["high"]
            assert row["difference"] is None
            singles.append(wanted)
        assert rows[f"mean of the 3 models, {kind}"]["map_macro"] == pytest.approx(np.mean(singles), abs=1e-6)

        mean = np.mean([arrays[f"test_{kind}"] for arrays in folds], axis=0)
        row = rows[f"probability mean, {kind}"]
        wanted = average_precision_score(labels, mean, average="macro")
        assert row["map_macro"] == pytest.approx(wanted, abs=1e-6)
        assert row["difference"] == pytest.approx(wanted - singles[1], abs=1e-6)
        assert row["difference_low"] < row["difference"] < row["difference_high"]
        f1 = f1_score(labels, mean >= 0.4, average="macro")  # the mean of the thresholds
        assert row["f1_macro_fitted"] == pytest.approx(f1, abs=1e-6)

        votes = np.mean([arrays[f"test_{kind}"] >= arrays[f"{kind}_thresholds"] for arrays in folds], axis=0)
        row = rows[f"label vote, {kind}"]
        assert row["map_macro"] == pytest.approx(average_precision_score(labels, votes, average="macro"), abs=1e-6)
        assert row["f1_macro_fitted"] == pytest.approx(f1_score(labels, votes > 0.5, average="macro"), abs=1e-6)


def test_the_vote_of_the_bits_undoes_their_order_and_sign(tmp_path) -> None:
    folds = made_folds()
    rows = rows_of(tmp_path, folds)
    # undone by hand: match each bit to the column of the first classifier that it equals up to its sign
    first = folds[0]["classifier_weight"]
    votes = np.zeros((N, BITS))
    for arrays in folds:
        codes = np.unpackbits(arrays["test_codes"], axis=1, count=BITS) * 2.0 - 1
        for bit in range(BITS):
            match = np.abs(first[:, bit] @ arrays["classifier_weight"]) / np.linalg.norm(
                arrays["classifier_weight"], axis=0
            )
            column = int(match.argmax())
            votes[:, bit] += codes[:, column] * np.sign(first[:, bit] @ arrays["classifier_weight"][:, column])
    wanted = average_precision_score(folds[0]["test_labels"], np.sign(votes) @ first.T, average="macro")
    row = rows[f"code vote, {BITS} bits"]
    assert row["map_macro"] == pytest.approx(wanted, abs=1e-6)
    assert row["difference"] == pytest.approx(
        wanted - rows["fold 1, binary (best by selection)"]["map_macro"], abs=1e-6
    )
    assert row["map_macro"] > rows["mean of the 3 models, binary"]["map_macro"]


def test_the_order_of_the_items_does_not_matter(tmp_path) -> None:
    folds = made_folds()
    before = rows_of(tmp_path, folds)
    order = np.random.default_rng(1).permutation(N)
    folds[1] = {name: value[order] if name.startswith("test_") else value for name, value in folds[1].items()}
    after = rows_of(tmp_path, folds)
    assert after.keys() == before.keys()
    assert after["probability mean, soft"]["map_macro"] == before["probability mean, soft"]["map_macro"]
    assert after[f"code vote, {BITS} bits"]["map_macro"] == before[f"code vote, {BITS} bits"]["map_macro"]


def test_without_codes_or_one_scoring_the_rest_is_there(tmp_path) -> None:
    folds = made_folds()
    for arrays in folds:
        del arrays["test_binary"], arrays["test_codes"], arrays["score"]
    block = ensemble_block(saved(tmp_path, folds))
    assert block is not None
    names = [row["name"] for row in block["rows"]]
    assert names[3:] == ["mean of the 3 models, soft", "probability mean, soft", "label vote, soft"]
    assert not any("best" in name for name in names)
    assert block["rows"][-1]["difference"] is None
    assert "no model has a selection score, so no best single was chosen" in block["notes"]


def test_an_unknown_selection_score_is_not_chosen(tmp_path) -> None:
    folds = made_folds()
    folds[1]["score"] = np.array(np.nan)
    block = ensemble_block(saved(tmp_path, folds))
    assert block is not None
    assert block["best"] == 2
    assert block["notes"][-1] == "no selection score is known of fold 1, so the best single is one of the others"
    for arrays in folds:
        arrays["score"] = np.array(np.nan)
    block = ensemble_block(saved(tmp_path, folds))
    assert block is not None
    assert block["best"] is None
    assert block["notes"][-1] == "no model has a selection score, so no best single was chosen"
    assert all(row["difference"] is None for row in block["rows"])


def test_votes_of_neighbours_have_no_code_vote(tmp_path) -> None:
    folds = made_folds()
    for arrays in folds:  # as a KNN head leaves them: its thresholds are those of the votes, not of the classifier
        del arrays["test_soft"], arrays["soft_thresholds"]
    block = ensemble_block(saved(tmp_path, folds))
    assert block is not None
    names = [row["name"] for row in block["rows"]]
    assert names[3:] == ["mean of the 3 models, binary", "probability mean, binary", "label vote, binary"]
    assert block["notes"][-1].startswith("no code vote")


def test_one_fold_is_no_ensemble(tmp_path) -> None:
    assert ensemble_block(saved(tmp_path, made_folds()[:1])) is None


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        ("test_ids", lambda ids: np.array(["other", *ids[1:]]), "hold-out items (2 are in one of them only)"),
        ("test_ids", lambda ids: ids[:-1], "hold-out items (1 are in one of them only)"),
        ("test_labels", lambda labels: 1 - labels, "labels of the same hold-out items"),
        ("class_names", lambda names: names[::-1], "classes"),
    ],
)
def test_models_of_different_data_are_refused(name, change, wanted, tmp_path) -> None:
    folds = made_folds()
    folds[2][name] = change(folds[2][name])
    with pytest.raises(ValueError, match="different") as caught:
        ensemble_block(saved(tmp_path, folds))
    assert wanted in str(caught.value)
    assert "fold_2/predictions.npz" in str(caught.value)


def test_a_damaged_file_is_named_with_its_cure(tmp_path) -> None:
    files = saved(tmp_path, made_folds())
    files[1].write_bytes(files[1].read_bytes()[:200])
    with pytest.raises(ValueError, match=r"fold_1/predictions.npz is damaged.*--ckpt_path best` writes it again"):
        ensemble_block(files)


def test_damaged_predictions_leave_earlier_results_as_they_were(fails, run_cli, fold_config, started, tmp_path) -> None:
    run_cli("crossval", "-c", fold_config, "--num_folds", "3")
    folder = tmp_path / "runs/toy"
    for fold, arrays in enumerate(made_folds()):
        np.savez_compressed(folder / f"fold_{fold}/predictions.npz", **arrays)
    run_cli("crossval", "-c", fold_config, "--num_folds", "3")
    before = {name: (folder / name).read_bytes() for name in ("crossval.json", "report.html")}
    assert b'"probability mean, soft"' in before["crossval.json"]
    file = folder / "fold_1/predictions.npz"
    file.write_bytes(file.read_bytes()[:500])
    shown = fails(2, "crossval", "-c", fold_config, "--num_folds", "3")
    assert "fold_1/predictions.npz is damaged" in shown
    assert {name: (folder / name).read_bytes() for name in before} == before
