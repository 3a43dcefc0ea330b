"""Readers of the feature files that cross-modal hashing papers publish: .pkl, .mat, .npz, .h5."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.feature_files import FeatureSplit, check_split, one_hot_labels

Arrays = dict[str, np.ndarray]

# Names that numpy arrays need to come out of a pickle; numpy 1 and 2 write different module paths.
SAFE_NAMES = {
    *((f"{core}.multiarray", name) for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how bytes were written by pickle protocols before 3
}
# One row a layout: image, text and label key of a split, with the split's own part as {}.
SPLIT_KEYS = (
    (("I_{}", "T_{}", "L_{}"), {"train": "tr", "query": "te", "database": "db"}),
    (("{}_image", "{}_text", "{}_labels"), {"train": "train", "query": "query", "database": "database"}),
    (("{}_image", "{}_text", "{}_label"), {"train": "train", "query": "query", "database": "retrieval"}),
)
# Layouts that hold all items together.
POOL_KEYS = (
    ("XAll", "YAll", "LAll"),
    ("IAll", "YAll", "LAll"),
    ("image", "text", "labels"),
    ("image", "text", "label"),
)
EXPECTED_KEYS = (
    "I_tr, T_tr, L_tr, I_te, T_te, L_te and, where the database is not the training part, I_db, T_db, L_db; "
    "or train_image, train_text, train_labels, query_..., database_...; "
    "or one pool of items: XAll (or IAll), YAll, LAll; or image, text, labels"
)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers; refuses every other name, so that no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        """The object behind an allowed name."""
        if (module, name) in SAFE_NAMES or (module == "numpy.dtypes" and name.endswith("DType")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_pickle(path: Path) -> Arrays:
    """The arrays of a pickled dict, without running what a pickle may carry.

    Args:
        path: File with a dict of numpy arrays or lists of numbers.

    Returns:
        The dict.

    Raises:
        ValueError: The pickle holds anything else than numpy arrays and plain containers, or is damaged.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except (EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, EOFError) or "truncated" in str(error):
            raise ValueError(f"{path}: the file is damaged ({error}). Download it again.") from error
        raise ValueError(
            f"{path}: not read, because a pickle can run code and this one holds more than numpy arrays ({error}). "
            "If you trust it, load it yourself and save the arrays with numpy.savez."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; a dict of image, text and label is needed.")
    return {str(key): np.asarray(value) for key, value in content.items()}


def read_hdf5(path: Path, matlab: bool = False) -> Arrays:
    """The numeric datasets of an HDF5 file, groups joined to their members by ``_``.

    Args:
        path: The file.
        matlab: Written by MATLAB (.mat of version 7.3), which stores the axes in reverse order.

    Returns:
        Name -> array.
    """
    import h5py

    arrays: Arrays = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "fiub" and not name.startswith("#"):
            arrays[name.replace("/", "_")] = node[()].T if matlab else node[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays


def read_mat(path: Path) -> Arrays:
    """The numeric arrays of a MATLAB file of any version; sparse ones, before version 7.3, as full ones."""
    import scipy.io

    with path.open("rb") as file:
        is_hdf5 = b"MATLAB 7.3" in file.read(128)
    if is_hdf5:
        return read_hdf5(path, matlab=True)
    content = scipy.io.loadmat(str(path))
    arrays = {key: value for key, value in content.items() if not key.startswith("__")}
    return {key: value.toarray() if hasattr(value, "toarray") else value for key, value in arrays.items()}


def read_npz(path: Path) -> Arrays:
    """The arrays of a .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".pkl": read_pickle,
    ".mat": read_mat,
    ".npz": read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}


def read_arrays(path: Path) -> Arrays:
    """The arrays of one feature file, by its suffix.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unknown suffix, or a file that cannot be read.
    """
    if not path.is_file():
        shown = str(path) if len(str(path)) <= 200 and "\n" not in str(path) else f"{str(path)[:60]!r}..."
        raise FileNotFoundError(
            f"{shown}: no such feature file. Check the path given as source; if what is shown is the content of that "
            "file, the file is text (a failed download, say) and holds no features."
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(READERS)}.")
    try:
        return reader(path)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: cannot be read ({error}). Copy or download it again.") from error
    except Exception as error:  # each library has its own errors for a damaged file
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error}). Get the file again.") from error


def read_folder(folder: Path) -> Arrays:
    """The arrays of a folder: {train,query,retrieval}.pkl, or images.h5 with texts.h5."""
    if (folder / "images.h5").is_file():
        images, texts = read_arrays(folder / "images.h5"), read_arrays(folder / "texts.h5")
        found = {"image": images.get("features"), "text": texts.get("features"), "labels": images.get("labels")}
        missing = [name for name, array in found.items() if array is None]
        if missing:
            raise ValueError(
                f"{folder}: no {' and no '.join(missing)}; images.h5 needs the keys features and labels (found "
                f"{', '.join(images) or 'none'}), texts.h5 the key features (found {', '.join(texts) or 'none'})."
            )
        return {name: array for name, array in found.items() if array is not None}
    arrays: Arrays = {}
    for part in ("train", "query", "retrieval"):
        file = folder / f"{part}.pkl"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing. A folder needs train.pkl, query.pkl and retrieval.pkl.")
        content = read_pickle(file)
        for key in ("image", "text", "label"):
            if key not in content:
                raise ValueError(f"{file}: no key {key!r}; found {', '.join(content) or 'none'}.")
            arrays[f"{part}_{key}"] = content[key]
    return arrays


def pool_rows(count: int, query_size: int, train_size: int, seed: int) -> dict[str, np.ndarray]:
    """Seeded rows of the splits of a pool: query, and the rest as database, of which the first part trains.

    Example:
        >>> rows = pool_rows(10, query_size=3, train_size=4, seed=0)
        >>> sorted([*rows["query"], *rows["database"]]) == list(range(10)), set(rows["train"]) <= set(rows["database"])
        (True, True)
    """
    if not (query_size > 0 and 0 < train_size <= count - query_size):
        raise ValueError(
            f"{count} items cannot give {query_size} queries and {train_size} training items out of the rest. "
            "Lower query_size or train_size."
        )
    order = np.random.default_rng(seed).permutation(count)
    database = order[query_size:]
    return {"query": order[:query_size], "train": database[:train_size], "database": database}


def _make_split(where: str, image: np.ndarray, text: np.ndarray, labels: np.ndarray, ids: list[str]) -> FeatureSplit:
    split = FeatureSplit(
        image=image.astype(np.float32),
        text=(text[:, None, :] if text.ndim == 2 else text).astype(np.float32),
        labels=labels,
        ids=ids,
    )
    check_split(split, where)
    return split


def splits_from_arrays(arrays: Mapping[str, np.ndarray], where: str, **pool: int) -> dict[str, FeatureSplit]:
    """Train, query and database splits from the keys of any known layout.

    Args:
        arrays: Name -> array.
        where: Name of the file, for messages.
        pool: ``query_size``, ``train_size`` and ``seed`` of :func:`pool_rows`, for files without own splits.

    Returns:
        ``{"train", "query", "database"}``. Where a file has a train and a test part only (the Wikipedia features),
        the test part is the query and the training part the database.

    Raises:
        ValueError: Unknown keys, or arrays that :func:`check_split` refuses.
    """
    for (image, text, label), parts in SPLIT_KEYS:
        keys = {name: tuple(k.format(part) for k in (image, text, label)) for name, part in parts.items()}
        present = [name for name, triple in keys.items() if all(key in arrays for key in triple)]
        if not {"train", "query"} <= set(present):
            continue
        labels = dict(zip(present, one_hot_labels([arrays[keys[name][2]] for name in present]), strict=True))
        splits = {}
        for name in present:
            image_key, text_key, _ = keys[name]
            ids = [f"{parts[name]}-{i}" for i in range(len(arrays[image_key]))]
            splits[name] = _make_split(f"{where} ({name})", arrays[image_key], arrays[text_key], labels[name], ids)
        return {"database": splits["train"], **splits}
    for image, text, label in POOL_KEYS:
        if all(key in arrays for key in (image, text, label)):
            labels_all = one_hot_labels([arrays[label]])[0]
            ids = [str(i) for i in range(len(arrays[image]))]
            whole = _make_split(where, arrays[image], arrays[text], labels_all, ids)
            return {
                name: FeatureSplit(whole.image[rows], whole.text[rows], whole.labels[rows], [ids[i] for i in rows])
                for name, rows in pool_rows(len(whole), **pool).items()
            }
    raise ValueError(f"{where}: {_what_is_wrong(arrays)}. Expected {EXPECTED_KEYS}.")


def _what_is_wrong(arrays: Mapping[str, np.ndarray]) -> str:
    """The keys that the layout lacks of which most are there; unknown keys where none is."""
    needed = [
        {key.format(parts[name]) for name in ("train", "query") for key in keys} for keys, parts in SPLIT_KEYS
    ] + [set(keys) for keys in POOL_KEYS]
    closest = max(needed, key=lambda keys: len(keys & arrays.keys()) / len(keys))
    if closest & arrays.keys():
        return f"{', '.join(sorted(closest - arrays.keys()))} missing beside {', '.join(arrays)}"
    return f"unknown keys {', '.join(arrays) or '(none)'}"
