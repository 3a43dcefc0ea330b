"""The generated world: the same from the same seed, true to its masks, readable in the real layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from datamodules.scenes import BACKGROUNDS, CLASS_NAMES, SceneDataset, Scenes, render_scene, scene_captions, scene_tags
from datamodules.scenes.__main__ import main
from datamodules.scenes.captions import NOUNS
from datamodules.scenes.layouts import run_length_encoding, write_coco, write_mirflickr
from datamodules.scenes.render import MIN_VISIBLE


def scenes(count, **kwargs):
    return [render_scene(np.random.default_rng([5, i]), **kwargs) for i in range(count)]


def test_same_seed_same_scene():
    first, again = (render_scene(np.random.default_rng(3)) for _ in range(2))
    other = render_scene(np.random.default_rng(4))
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert not np.array_equal(first.image, other.image)


def test_boxes_labels_and_semantic_map_follow_from_the_instances():
    for scene in scenes(40, size=64):
        assert 1 <= len(scene.objects) <= 5
        assert scene.background in BACKGROUNDS
        expected = np.zeros_like(scene.semantic)
        for number, item in enumerate(scene.objects, 1):
            rows, columns = np.where(scene.instances == number)
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            expected[scene.instances == number] = item.category + 1
        assert np.array_equal(scene.semantic, expected)
        assert set(np.flatnonzero(scene.labels)) == {item.category for item in scene.objects}


def test_every_class_and_background_occurs_and_close_ups_fill_the_frame():
    ordinary, close = scenes(150, size=48), scenes(30, size=48, close_up=True)
    assert {item.name for scene in ordinary for item in scene.objects} == set(CLASS_NAMES)
    assert {scene.background for scene in ordinary} == set(BACKGROUNDS)
    assert all(len(scene.objects) == 1 for scene in close)
    share = [np.mean([(s.instances == 1).mean() for s in group]) for group in (ordinary, close)]
    assert share[1] > 3 * share[0]


def test_occlusion_occurs_and_keeps_half_of_each_object(monkeypatch):
    from datamodules.scenes import render

    solid = []
    original = render._transformed

    def spy(*args):
        patch = original(*args)
        solid.append(int((patch[..., 3] > 0.5).sum()))
        return patch

    monkeypatch.setattr(render, "_transformed", spy)
    shares = []
    for index in range(60):
        solid.clear()
        scene = render_scene(np.random.default_rng([9, index]))
        if len(solid) == len(scene.objects):  # none was left out for want of room
            counts = np.bincount(scene.instances.ravel(), minlength=len(solid) + 1)[1:]
            shares += [count / whole for count, whole in zip(counts, solid, strict=True)]
    assert min(shares) >= MIN_VISIBLE
    assert 0.1 < np.mean(np.array(shares) < 0.95) < 0.9


def test_captions_name_what_is_seen():
    for index, scene in enumerate(scenes(30)):
        captions = scene_captions(np.random.default_rng(index), scene)
        assert len(captions) == 5
        present = {item.name for item in scene.objects}
        for name in present:
            assert any(form in captions[0] for pair in NOUNS[name] for form in pair)
        tags = scene_tags(np.random.default_rng(index), scene)
        assert tags == sorted(set(tags))
        assert not (set(CLASS_NAMES) - present) & set(tags)
    varied = {c for scene in scenes(20) for c in scene_captions(np.random.default_rng(0), scene)}
    assert len(varied) > 90


def test_dataset_splits_share_no_scene_and_datamodule_names_its_concepts():
    data = Scenes(num_train=4, num_val=4, num_test=4, batch_size=2, size=32)
    images = [data.datasets[split][0]["image"].numpy() for split in ("train", "val", "test")]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[1], images[2])
    assert len(data.phrases) == len(CLASS_NAMES) + len(BACKGROUNDS) == 18
    item = SceneDataset(3, size=32, split="val")[1]
    assert item["concepts"][:12].tolist() == item["labels"].tolist()
    assert item["concepts"][12:].sum() == 1
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert len(batch["text"]) == 2


def decode(encoding):
    """An independent reading of COCO's uncompressed run lengths."""
    height, width = encoding["size"]
    values = np.concatenate([np.full(count, i % 2) for i, count in enumerate(encoding["counts"])])
    return values.reshape(width, height).T


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_decode_to_the_mask(seed):
    mask = np.random.default_rng(seed).random((5, 7)) < 0.4
    assert np.array_equal(decode(run_length_encoding(mask)), mask)


def test_coco_layout_is_read_by_the_ordinary_reader(tmp_path):
    from datamodules import COCO

    write_coco(str(tmp_path / "world"), 14, 6, size=32, seed=1)
    content = json.loads((tmp_path / "world/annotations/instances_train2017.json").read_text())
    assert [c["name"] for c in content["categories"]] == list(CLASS_NAMES)
    assert len(content["images"]) == 14
    for item in content["annotations"]:
        mask = decode(item["segmentation"])
        assert mask.sum() == item["area"]
        rows, columns = np.where(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert item["bbox"] == box
    data = COCO(str(tmp_path / "world"), num_query=5, num_train=8, split_dir=str(tmp_path / "splits"))
    data.prepare_data()
    data.setup("fit")
    assert list(data.class_names) == list(CLASS_NAMES)
    item = data.dataset("query")[0]
    assert len(item["captions"]) == 5
    assert item["labels"].sum() >= 1
    assert item["image"].size == (32, 32)


def test_mirflickr_layout_is_read_by_the_ordinary_reader(tmp_path):
    from datamodules import MIRFlickr

    root = tmp_path / "mir"
    write_mirflickr(str(root), 24, size=32, seed=1)
    data = MIRFlickr(str(root), num_query=5, num_train=8, min_tag_count=1, split_dir=str(tmp_path / "splits"))
    data.prepare_data()
    data.setup("fit")
    assert sorted(data.class_names) == sorted(CLASS_NAMES)
    item = data.dataset("database")[0]
    number = int(item["id"].removeprefix("im"))
    held = {n for n in CLASS_NAMES if str(number) in (root / "annotations" / f"{n}.txt").read_text().split()}
    names = np.array(data.class_names)[item["labels"].numpy() > 0]
    assert set(names) == held
    assert Image.open(root / f"im{number}.jpg").size == (32, 32)


def test_the_command_mixes_no_world_with_another_or_with_real_files(tmp_path, monkeypatch, capsys):
    def write(folder, *options):
        monkeypatch.setattr("sys.argv", ["scenes", "voc", str(tmp_path / folder), "--num", "4", *options])
        main()

    write("world")
    first = {file: file.read_bytes() for file in (tmp_path / "world").rglob("*") if file.is_file()}
    write("world")  # as after an interruption
    assert {file: file.read_bytes() for file in (tmp_path / "world").rglob("*") if file.is_file()} == first
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "photo.jpg").write_bytes(b"")
    for folder, options, said in (
        ("world", ["--seed", "1"], "holds the world {'layout': 'voc', 'num': 4, 'size': 96, 'seed': 0}"),
        ("real", [], "holds files, and none of a generated world"),
    ):
        with pytest.raises(SystemExit):
            write(folder, *options)
        assert said in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "real").iterdir()] == ["photo.jpg"]


def test_folds_cut_a_fixed_pool_of_scenes():
    held = []
    for fold in range(3):
        data = Scenes(num_train=12, num_test=4, batch_size=2, size=32, num_folds=3, fold=fold)
        train, val = (
            [int(i) for b in loader for i in b["index"]] for loader in (data.train_dataloader(), data.val_dataloader())
        )
        assert sorted(train + val) == list(range(12))
        assert len(val) == 4
        held += val
        pool = SceneDataset(12, size=32)
        assert np.array_equal(data.datasets["val"][0]["image"], pool[val[0]]["image"])
        assert len(data.datasets["test"]) == 4
    assert sorted(held) == list(range(12))
    for arguments, message in (
        ({"num_folds": 1}, "at least 2"),
        ({"num_folds": 3, "fold": 3}, "fold is 3; with num_folds 3 it must be 0 to 2"),
        ({"num_folds": 13}, "with 12 items it must be at least 2 and at most 12"),
    ):
        with pytest.raises(ValueError, match=message):
            Scenes(num_train=12, size=32, **arguments)
