"""PairedFeatures: every layout gives the arrays that were written, every bad file a readable refusal."""

import pickle
import re

import numpy as np
import pytest
import torch

from datamodules.feature_batches import BatchSampler, FeatureBatches
from datamodules.feature_files import FeatureSplit
from datamodules.paired_features import PairedFeatures

SIZES = {"train": 30, "query": 8, "database": 40}


def make_split(count, seed, classes=4):
    g = np.random.default_rng(seed)
    labels = (g.random((count, classes)) < 0.5).astype(np.int64)
    labels[0] = 1
    return {
        "image": g.standard_normal((count, 6)).astype(np.float32),
        "text": g.standard_normal((count, 3)).astype(np.float32),
        "labels": labels,
    }


@pytest.fixture
def parts():
    return {name: make_split(count, seed) for seed, (name, count) in enumerate(SIZES.items())}


def write_pickles(folder, parts, **replaced):
    for name, file in (("train", "train"), ("query", "query"), ("database", "retrieval")):
        part = parts[name]
        content = {"image": part["image"], "text": part["text"], "label": part["labels"]}
        (folder / f"{file}.pkl").write_bytes(pickle.dumps(replaced.get(file, content)))
    return folder


def matlab_keys(parts):
    short = {"image": "I", "text": "T", "labels": "L"}
    ends = {"train": "tr", "query": "te", "database": "db"}
    return {f"{short[key]}_{ends[name]}": array for name, part in parts.items() for key, array in part.items()}


def write_source(kind, folder, parts):
    if kind == "pkl":
        return write_pickles(folder, parts)
    flat = {f"{name}_{key}": array for name, part in parts.items() for key, array in part.items()}
    if kind == "npz":
        np.savez(folder / "f.npz", **flat)
    elif kind in ("mat", "sparse mat"):
        import scipy.io

        arrays = matlab_keys(parts)
        if kind == "sparse mat":
            arrays |= {key: scipy.sparse.csc_matrix(array) for key, array in arrays.items() if key[0] in "TL"}
        scipy.io.savemat(folder / "f.mat", arrays)
    else:
        import h5py

        mat73 = kind == "mat73"
        file = folder / ("f.mat" if mat73 else "f.h5")
        with h5py.File(file, "w", userblock_size=512 if mat73 else 0) as h5:
            for key, array in (matlab_keys(parts) if mat73 else flat).items():
                # MATLAB writes its axes in reverse order; the .h5 has a group for each split
                h5[key if mat73 else key.replace("_", "/")] = array.T if mat73 else array
        if mat73:
            with file.open("r+b") as raw:
                raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128))
    return next(folder.glob("f.*"))


def opened(source, **arguments):
    data = PairedFeatures(str(source), batch_size=8, **arguments)
    data.setup("fit")
    return data


@pytest.mark.parametrize("kind", ["pkl", "npz", "h5", "mat", "sparse mat", "mat73"])
def test_every_layout_gives_the_arrays_that_were_written(kind, tmp_path, parts):
    data = opened(write_source(kind, tmp_path, parts))
    assert (data.image_dim, data.text_dim, data.num_classes) == (6, 3, 4)
    assert data.class_names == ["0", "1", "2", "3"]
    for name, part in parts.items():
        split = data.splits[name]
        np.testing.assert_array_equal(split.image, part["image"])
        np.testing.assert_array_equal(split.text[:, 0], part["text"])
        np.testing.assert_array_equal(split.labels, part["labels"])
        assert len(set(split.ids)) == len(split) == SIZES[name]


def test_without_a_database_the_training_part_is_the_database_and_indices_become_columns(tmp_path, parts):
    import scipy.io

    classes = {name: np.arange(SIZES[name])[:, None] % 5 + 1 for name in ("train", "query")}
    arrays = matlab_keys({name: {**parts[name], "labels": classes[name]} for name in classes})
    scipy.io.savemat(tmp_path / "wiki.mat", arrays)
    data = opened(tmp_path / "wiki.mat")
    assert data.splits["database"] is data.splits["train"]
    assert data.num_classes == 5
    np.testing.assert_array_equal(data.splits["query"].labels.argmax(1) + 1, classes["query"][:, 0])
    assert (data.splits["query"].labels.sum(1) == 1).all()


@pytest.mark.parametrize("keys", [("XAll", "YAll", "LAll"), ("IAll", "YAll", "LAll"), ("image", "text", "label")])
def test_a_pool_is_cut_into_disjoint_query_and_database_by_seed(keys, tmp_path, parts):
    pool = parts["database"]
    np.savez(tmp_path / "pool.npz", **dict(zip(keys, pool.values(), strict=True)))
    sizes = {"query_size": 10, "train_size": 20}
    data, again, other = (opened(tmp_path / "pool.npz", split_seed=s, **sizes) for s in (0, 0, 1))
    ids = {name: split.ids for name, split in data.splits.items()}
    assert sorted([*ids["query"], *ids["database"]], key=int) == [str(i) for i in range(40)]
    assert set(ids["train"]) <= set(ids["database"])
    assert len(ids["train"]) == 20
    assert ids == {name: split.ids for name, split in again.splits.items()}
    assert ids["query"] != other.splits["query"].ids
    rows = [int(i) for i in ids["query"]]
    np.testing.assert_array_equal(data.splits["query"].image, pool["image"][rows])
    with pytest.raises(ValueError, match="Lower query_size or train_size"):
        opened(tmp_path / "pool.npz")


def test_images_h5_beside_texts_h5_is_a_pool(tmp_path, parts):
    import h5py

    pool = parts["database"]
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["features"], file["labels"] = pool["image"], pool["labels"]
    with h5py.File(tmp_path / "texts.h5", "w") as file:
        file["tags"] = pool["text"]
    with pytest.raises(ValueError, match=r"no text; .*found tags"):
        opened(tmp_path)
    with h5py.File(tmp_path / "texts.h5", "a") as file:
        file["features"] = pool["text"]
    assert len(opened(tmp_path, query_size=10, train_size=20).splits["database"]) == 30


def test_loaders_keep_the_test_part_out_of_selection(tmp_path, parts):
    data = opened(write_pickles(tmp_path, parts), val_fraction=0.2)

    def rows(loader):
        return [i for batch in loader for i in batch["index"].tolist()]

    query, database = (rows(loader) for loader in data.val_dataloader())
    assert len(query) == 6
    assert sorted(query + database) == list(range(30))
    assert set(rows(data.train_dataloader())) <= set(database)
    assert [len(b["image"]) for b in data.train_dataloader()] == [8, 8, 8]  # 24 rows, full batches only
    assert [rows(loader) for loader in data.test_dataloader()] == [list(range(8)), list(range(40))]
    assert [rows(loader) for loader in data.predict_dataloader()] == [list(range(8)), list(range(40))]
    batch = next(iter(data.test_dataloader()[1]))
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        "image": (torch.float32, (8, 6)),
        "text": (torch.float32, (8, 3)),
        "labels": (torch.float32, (8, 4)),
        "index": (torch.int64, (8,)),
    }
    torch.testing.assert_close(batch["text"], torch.from_numpy(parts["database"]["text"][:8]))


def test_a_training_part_smaller_than_a_batch_still_trains(tmp_path, parts):
    data = PairedFeatures(str(write_pickles(tmp_path, parts)), batch_size=100)
    data.setup("fit")
    assert [len(batch["index"]) for batch in data.train_dataloader()] == [27]


def three_texts(count=6):
    text = np.arange(count * 6, dtype=np.float16).reshape(count, 3, 2)
    return FeatureSplit(np.zeros((count, 4), np.float16), text, np.ones((count, 1)), [str(i) for i in range(count)])


def test_training_draws_a_text_each_epoch_and_scoring_takes_the_first():
    dataset = FeatureBatches(three_texts())
    sampler = BatchSampler(dataset, texts=3, batch_size=4, shuffle=True)
    drawn = {}
    for epoch in range(40):
        sampler.set_epoch(epoch)
        for positions, texts in sampler:
            assert dataset[positions, texts]["text"][:, 0].tolist() == (6 * positions + 2 * texts).tolist()
            for position, text in zip(positions.tolist(), texts.tolist(), strict=True):
                drawn.setdefault(position, set()).add(text)
    assert drawn == {position: {0, 1, 2} for position in range(6)}
    batches = [dataset[picked] for picked in BatchSampler(dataset, texts=3, batch_size=4)]
    assert [value for batch in batches for value in batch["text"][:, 0].tolist()] == [6.0 * i for i in range(6)]


def test_order_and_texts_follow_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = BatchSampler(three_texts(), texts=3, batch_size=6, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(epoch + 1)  # the global generator has no say
        return tuple(map(tuple, next(iter(sampler))))

    assert order(0, 3) == order(0, 3)
    assert len({order(seed, epoch) for seed in (0, 7) for epoch in range(3)}) == 6


class Exploit:
    def __reduce__(self):
        return (open, ("exploited", "w"))


@pytest.mark.parametrize("payload", [Exploit(), [Exploit()], {"image": np.array([Exploit()], dtype=object)}])
def test_a_pickle_that_could_run_code_is_refused_and_not_run(payload, tmp_path, parts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pickles(tmp_path, parts, query=payload)
    with pytest.raises(ValueError, match=r"query\.pkl: not read, because a pickle can run code .*(io|builtins)\.open"):
        opened(tmp_path)
    assert not (tmp_path / "exploited").exists()


def changed(parts, name, key, value):
    return {**parts, name: {**parts[name], key: value}}


def with_value(array, value):
    array = array.astype(np.float32)
    array[5, 1] = value
    return array


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("image", lambda a: a[:-1], "(query): unequal rows (image 7, text 8, labels 8"),
        ("text", lambda a: with_value(a, np.nan), "(query): text holds NaN or infinite values, first in row 5"),
        ("image", lambda a: with_value(a, np.inf), "(query): image holds NaN or infinite values, first in row 5"),
        ("labels", lambda a: with_value(a, 2.0), "(query): labels must be 0 or 1, found 2 in row 5, column 1"),
        ("image", lambda a: a[:, :5], "image width is 5 in query and 6 in train"),
        ("text", lambda a: a[:, :2], "text width is 2 in query and 3 in train"),
        ("labels", lambda a: a[:, :3], "label width is 3 in query and 4 in train"),
        ("labels", lambda a: a * 0, "no query has a relevant item"),
        ("image", lambda a: np.zeros((8, 3, 2, 2), np.float32), "features, not pixels"),
    ],
)
def test_bad_arrays_are_named(key, change, message, tmp_path, parts):
    bad = changed(parts, "query", key, change(parts["query"][key]))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        opened(write_pickles(tmp_path, bad))
    assert str(tmp_path) in str(error.value)


def test_an_empty_split_is_named(tmp_path, parts):
    empty = {key: array[:0] for key, array in parts["query"].items()}
    with pytest.raises(ValueError, match=r"\(query\): the split is empty"):
        opened(write_pickles(tmp_path, {**parts, "query": empty}))


def test_missing_and_unreadable_files_are_named(tmp_path, parts):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mat: no such feature file"):
        opened(tmp_path / "nowhere.mat")
    with pytest.raises(FileNotFoundError, match=r"train\.pkl: missing"):
        opened(tmp_path)
    for name in ("a.mat", "a.npz", "a.h5"):
        (tmp_path / name).write_bytes(b"not a feature file")
        with pytest.raises(ValueError, match=rf"{re.escape(name)}: cannot be read"):
            opened(tmp_path / name)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"unknown suffix '\.csv'; known are \.pkl, \.mat"):
        opened(tmp_path / "a.csv")
    np.savez(tmp_path / "b.npz", pictures=np.ones(3))
    with pytest.raises(ValueError, match=r"b\.npz: unknown keys pictures\. Expected I_tr, T_tr"):
        opened(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", **{key: np.ones(3) for key in ("I_tr", "T_tr", "L_tr", "I_te", "T_te", "note")})
    with pytest.raises(ValueError, match=r"b\.npz: L_te missing beside I_tr, T_tr, L_tr, I_te, T_te, note\. Expected"):
        opened(tmp_path / "b.npz")
    write_pickles(tmp_path, parts, train={"image": parts["train"]["image"]})
    with pytest.raises(ValueError, match=r"train\.pkl: no key 'text'; found image"):
        opened(tmp_path)
    write_pickles(tmp_path, parts, train=[1, 2])
    with pytest.raises(ValueError, match="holds a list"):
        opened(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(parts["train"])[:40])
    with pytest.raises(ValueError, match=r"train\.pkl"):
        opened(tmp_path)


@pytest.mark.parametrize("fraction", [-0.1, 0.001, 1.0])
def test_a_useless_validation_part_is_refused(fraction, tmp_path, parts):
    with pytest.raises(ValueError, match="val_fraction"):
        opened(write_pickles(tmp_path, parts), val_fraction=fraction)


def test_without_validation_every_training_item_trains(tmp_path, parts):
    data = opened(write_pickles(tmp_path, parts), val_fraction=0.0)
    assert len(data.train_rows) == 30
    assert data.val_dataloader() == []


def test_folds_of_the_training_items_validate_instead_of_a_fraction(tmp_path, parts):
    from datamodules.folds import make_folds

    source = write_source("npz", tmp_path, parts)
    folds = make_folds(parts["train"]["labels"], 3, seed=5)
    for fold in range(3):
        data = opened(source, num_folds=3, fold=fold, split_seed=5)
        assert data.val_rows.tolist() == np.flatnonzero(folds == fold).tolist()
        assert data.train_rows.tolist() == np.flatnonzero(folds != fold).tolist()
        query, database = data.val_dataloader()
        assert [int(i) for batch in query for i in batch["index"]] == data.val_rows.tolist()
        assert [int(i) for batch in database for i in batch["index"]] == data.train_rows.tolist()
    counts = np.stack([parts["train"]["labels"][folds == k].sum(axis=0) for k in range(3)])
    assert (np.ptp(counts, axis=0) <= 2).all()
    for arguments, message in (
        ({"num_folds": 1}, "at least 2"),
        ({"num_folds": 3, "fold": 3}, "fold is 3; with num_folds 3 it must be 0 to 2"),
        ({"num_folds": 31}, "num_folds is 31; with 30 items"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(source, **arguments)
