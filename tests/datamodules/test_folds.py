import json
import re

import numpy as np
import pytest

from datamodules import folds as f
from datamodules.splits import order_by_hash


def make_labels(count=300, classes=6, seed=0):
    """Labels from common to rare, and some rows without any."""
    chance = np.geomspace(0.5, 0.12, classes)
    return (np.random.default_rng(seed).random((count, classes)) < chance).astype(np.uint8)


def names(count):
    return [f"item{i}" for i in range(count)]


@pytest.mark.parametrize("stratified", [True, False])
def test_every_item_is_in_one_fold_and_the_seed_decides(stratified):
    labels = make_labels()
    folds = f.make_folds(labels, 5, seed=3, stratified=stratified)
    assert folds.dtype == np.int64
    assert set(folds) == {0, 1, 2, 3, 4}
    assert np.array_equal(folds, f.make_folds(labels, 5, seed=3, stratified=stratified))
    assert not np.array_equal(folds, f.make_folds(labels, 5, seed=4, stratified=stratified))


def test_plain_folds_are_those_of_sklearn():
    from sklearn.model_selection import KFold

    folds = f.make_folds(make_labels(50), 4, seed=42, stratified=False)
    for number, (_, rows) in enumerate(KFold(4, shuffle=True, random_state=42).split(np.zeros(50))):
        assert np.array_equal(np.flatnonzero(folds == number), rows)


def test_stratified_folds_are_those_of_the_library():
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    labels = make_labels()
    folds = f.make_folds(labels, 5, seed=42)
    splitter = MultilabelStratifiedKFold(5, shuffle=True, random_state=42)
    for number, (_, rows) in enumerate(splitter.split(labels, labels)):
        assert np.array_equal(np.flatnonzero(folds == number), rows)


def test_stratified_folds_share_positives_evenly():
    labels = make_labels(600)
    even, plain = (f.make_folds(labels, 5, seed=1, stratified=s) for s in (True, False))
    counts = np.stack([labels[even == k].sum(axis=0) for k in range(5)])
    assert (np.ptp(counts, axis=0) <= 2).all()
    assert f.label_deviation(labels, even).mean() < 0.3 * f.label_deviation(labels, plain).mean()


def test_one_class_and_float_labels_are_stratified_too():
    labels = np.zeros((20, 1), np.float32)
    labels[:8] = 1
    folds = f.make_folds(labels, 4)
    assert [labels[folds == k].sum() for k in range(4)] == [2, 2, 2, 2]
    assert np.bincount(folds).tolist() == [5, 5, 5, 5]


def test_deviation_and_missing_classes_equal_a_loop():
    labels = make_labels(80, 5, seed=2)
    labels[:, 4] = 0
    folds = f.make_folds(labels, 3, stratified=False)
    deviation, missing = f.label_deviation(labels, folds), []
    assert deviation.shape == (3, 5)
    assert np.isnan(deviation[:, 4]).all()
    for fold in range(3):
        for column in range(5):
            inside = [labels[i, column] for i in range(80) if folds[i] == fold]
            if not sum(inside):
                missing.append((fold, column))
            if column < 4:
                frequency, pool = sum(map(int, inside)) / len(inside), sum(map(int, labels[:, column])) / 80
                assert deviation[fold, column] == pytest.approx(abs(frequency - pool) / pool, abs=1e-12)
    assert f.missing_classes(labels, folds) == missing
    assert {(0, 4), (1, 4), (2, 4)} <= set(missing)


@pytest.mark.parametrize(("num_folds", "stratified"), [(1, True), (0, False), (9, True), (9, False)])
def test_too_few_or_too_many_folds(num_folds, stratified):
    with pytest.raises(ValueError, match=rf"num_folds is {num_folds}; with 8 items .* at least 2 and at most 8"):
        f.make_folds(make_labels(8), num_folds, stratified=stratified)


def test_nothing_to_stratify_by_and_an_empty_fold(monkeypatch):
    with pytest.raises(ValueError, match="stratified: false"):
        f.make_folds(np.zeros((8, 0)), 2)
    assert len(f.make_folds(np.zeros((8, 0)), 2, stratified=False)) == 8

    from iterstrat import ml_stratifiers

    monkeypatch.setattr(ml_stratifiers, "IterativeStratification", lambda labels, r, random_state: np.zeros(8, int))
    with pytest.raises(ValueError, match="leaves fold 1 empty"):
        f.make_folds(make_labels(8), 2)


def test_selection_is_the_head_of_the_hashed_order():
    ids, rows = names(40), np.arange(3, 37)
    train, select = f.select_rows(ids, rows, 0.25, seed=7)
    order = order_by_hash([ids[row] for row in rows], 7)
    assert [ids[row] for row in select] == [ids[row] for row in sorted(ids.index(name) for name in order[:8])]
    assert sorted([*train, *select]) == rows.tolist()
    # whatever else is in the pool, two items keep their order
    fewer, kept = f.select_rows(ids, rows[:20], 0.25, seed=7)
    assert len(kept) == 5
    assert not set(fewer) & set(kept)
    everything, none = f.select_rows(ids, rows, 0.0, seed=7)
    assert (len(everything), len(none)) == (34, 0)


@pytest.mark.parametrize("fraction", [0.001, 1.0, 0.999, -0.5])
def test_selection_leaves_both_parts_something(fraction):
    with pytest.raises(ValueError, match="both need at least one"):
        f.select_rows(names(10), np.arange(10), fraction, seed=0)


def test_holdout_must_not_meet_the_pool():
    f.check_holdout(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"2 item\(s\) are in the development pool and in the hold-out part, first b"):
        f.check_holdout(["a", "b", "c"], ["c", "b"])
    with pytest.raises(ValueError, match="Item a is twice in the development pool"):
        f.check_holdout(["a", "b", "a"], ["c"])
    with pytest.raises(ValueError, match="Item c is twice in the hold-out part"):
        f.check_holdout(["a"], ["c", "c"])


@pytest.mark.parametrize("num_test", [0, 5, 9])
def test_drawn_holdout_leaves_both_parts_something(num_test):
    with pytest.raises(ValueError, match=rf"num_query is {num_test}, but there are 5 items.*num_query: 1"):
        f.draw_holdout(names(5), num_test, seed=0)


def test_folds_are_written_once_and_read_again(tmp_path, monkeypatch):
    ids, labels = names(60), make_labels(60, 3)
    folds = f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, ["x", "y"])
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    assert file.name.startswith("folds-stratified-k4-seed42-")
    assert [saved[key] for key in ("num_folds", "seed", "method")] == [4, 42, "stratified"]
    assert saved["holdout"]["count"] == 2
    assert saved["sha256"] == f.fold_hash(ids, folds)
    assert saved["folds"] == [[name for name, k in zip(ids, folds, strict=True) if k == fold] for fold in range(4)]
    monkeypatch.setattr(f, "make_folds", None)  # a second call must not make them
    assert np.array_equal(f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, ["y", "x"]), folds)


def test_each_setting_has_its_own_file(tmp_path):
    ids, labels = names(60), make_labels(60, 3)
    other = labels.copy()
    other[0] = 1 - other[0]
    for arguments in ((labels, 4, 42, True), (labels, 3, 42, True), (labels, 4, 1, True), (labels, 4, 42, False)):
        f.read_or_make_folds(tmp_path, ids, *arguments, [])
    f.read_or_make_folds(tmp_path, ids, other, 4, 42, True, [])
    f.read_or_make_folds(tmp_path, [*ids[1:], "new"], labels, 4, 42, True, [])
    assert len(list(tmp_path.iterdir())) == 6


def rehashed(saved):
    saved["sha256"] = f._hash_of(saved["folds"])


def swap(saved):
    a, b = saved["folds"][:2]
    a[0], b[0] = b[0], a[0]


def foreign(saved):
    saved["folds"][0][0] = "stranger"
    rehashed(saved)


def twice(saved):
    saved["folds"][0].append(saved["folds"][1][0])
    rehashed(saved)


def fewer(saved):
    saved["folds"] = [saved["folds"][0] + saved["folds"][1], *saved["folds"][2:]]
    rehashed(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "do not match their hash"),
        (foreign, "not those of the 60 items"),
        (twice, "not those of the 60 items"),
        (fewer, "do not match their hash"),
        (lambda saved: saved.pop("folds"), "do not match their hash"),
        (lambda saved: saved["folds"][0].append(["a"]), "do not match their hash"),
        (lambda saved: saved.update(seed=5), "seed is 5 there and 42 here"),
        (lambda saved: saved.update(method="kfold"), "method is kfold there"),
    ],
)
def test_a_changed_file_is_refused_by_name(tmp_path, change, message):
    ids, labels = names(60), make_labels(60, 3)
    f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, [])
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    change(saved)
    file.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"{re.escape(file.name)}.*{message}.*Delete the file"):
        f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, [])


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "null"])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    ids, labels = names(60), make_labels(60, 3)
    f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, [])
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(file.name)):
        f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, [])


def test_another_holdout_beside_the_same_folds_is_refused(tmp_path):
    ids, labels = names(60), make_labels(60, 3)
    f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, ["x"])
    with pytest.raises(ValueError, match=r"holdout is .*'count': 1.* there and .*'count': 2"):
        f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, ["x", "y"])
    with pytest.raises(ValueError, match=r"first item3;"):
        f.read_or_make_folds(tmp_path, ids, labels, 4, 42, True, ["item3"])


def test_a_class_that_a_fold_lacks_is_named_once(tmp_path, recwarn):
    labels = make_labels(60, 4)
    labels[:, 1:3] = 0
    labels[:2, 1] = 1
    arguments = (tmp_path, names(60), labels, 3, 42, True, [], ["cat", "dog", "emu", "fox"])
    folds = f.read_or_make_folds(*arguments)
    (lacking,) = set(range(3)) - set(folds[:2])
    assert len(recwarn) == 1
    message = str(recwarn.pop(UserWarning).message)
    assert f"2 class(es) have no positive in some folds: dog (fold {lacking}); emu (all folds)." in message
    f.read_or_make_folds(*arguments)
    assert not len(recwarn)
    with pytest.warns(UserWarning, match=rf"class 1 \(fold {lacking}\)"):
        f.warn_missing(labels, folds)


def test_a_long_list_of_classes_is_cut():
    labels = np.zeros((4, 30), np.uint8)
    labels[0] = 1
    with pytest.warns(UserWarning, match=r"30 class\(es\).*class 19 \(fold 1\) and 10 more"):
        f.warn_missing(labels, np.array([0, 0, 1, 1]))
