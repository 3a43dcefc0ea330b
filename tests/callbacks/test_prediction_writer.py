"""The codes that predict writes are the signs of the module's outputs, and the search over them is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from processes import launch
from toy_run import ToyData, ToyModule

from callbacks import run_files
from callbacks.prediction_writer import CodeWriter
from lightning_modules.backbones.encoder import open_image
from lightning_modules.hashing.search import CodeSearch


def signs_by_hand(packed, bits):
    """Bit b of an item is bit b % 8 of its byte b // 8."""
    return [[1 if row[b // 8] >> (b % 8) & 1 else -1 for b in range(bits)] for row in packed.tolist()]


def test_the_files_hold_the_signs_of_the_outputs_with_ids(make_trainer, make_module, picture_data, tmp_path) -> None:
    module, data, trainer = make_module(), picture_data, make_trainer(tmp_path / "run", CodeWriter())
    trainer.fit(module, datamodule=data)
    trainer.predict(module, datamodule=data, return_predictions=False)
    for role, count in (("query", 9), ("database", 33)):
        split = data.splits[role]
        with np.load(tmp_path / "run" / "codes" / f"{role}.npz") as file:
            assert file["ids"].tolist() == split.ids
            assert file["bits"] == 12
            for modality, features in (("image", split.image), ("text", split.text[:, 0])):
                with torch.no_grad():
                    head = module.eval().image_head if modality == "image" else module.text_head
                    relaxed = head(torch.from_numpy(features.astype(np.float32)))
                packed = file[f"{modality}_codes"]
                assert packed.dtype == np.uint8
                assert packed.shape == (count, 2)
                assert signs_by_hand(packed, 12) == torch.where(relaxed >= 0, 1, -1).tolist()


def test_a_failing_write_leaves_the_earlier_file(
    make_trainer, make_module, feature_data, tmp_path, monkeypatch
) -> None:
    module, folder = make_module(image_dim=6, text_dim=6), tmp_path / "codes"
    make_trainer(tmp_path / "run", CodeWriter(str(folder))).predict(module, datamodule=feature_data)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {"query.npz", "database.npz"}

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_files.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_trainer(tmp_path / "run", CodeWriter(str(folder))).predict(
            make_module(image_dim=6, text_dim=6), datamodule=feature_data
        )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_predictions_that_are_no_codes_are_refused(make_trainer, tmp_path) -> None:
    with pytest.raises(ValueError, match="predict_step of ToyModule must return a dict with 'index'"):
        make_trainer(tmp_path / "run", CodeWriter()).predict(ToyModule(), datamodule=ToyData())
    assert not (tmp_path / "run" / "codes").exists()


def test_a_single_loader_is_the_query(make_trainer, make_module, feature_data, tmp_path) -> None:
    feature_data.setup("predict")
    make_trainer(tmp_path / "run", CodeWriter()).predict(
        make_module(image_dim=6, text_dim=6), feature_data.predict_dataloader()[0]
    )
    with np.load(tmp_path / "run" / "codes" / "query.npz") as file:
        assert file["ids"].tolist() == [str(i) for i in range(11)]
    assert not (tmp_path / "codes" / "database.npz").exists()


@pytest.fixture
def searched(make_trainer, make_module, picture_data, tmp_path):
    module, trainer = make_module(), make_trainer(tmp_path / "run", CodeWriter())
    trainer.fit(module, datamodule=picture_data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.predict(module, datamodule=picture_data, ckpt_path=tmp_path / "a.ckpt")
    search = CodeSearch(tmp_path / "run" / "codes", picture_data.source.encoder)
    return module.eval(), picture_data, search


def nearest_by_hand(query, database, ids, k):
    distances = [int((query != code).sum()) for code in database]
    order = sorted(range(len(ids)), key=lambda i: (distances[i], i))[:k]
    return [(ids[i], distances[i]) for i in order]


def test_search_finds_the_nearest_for_a_text_and_for_an_image(searched, world) -> None:
    module, data, search = searched
    split = data.splits["database"]
    encoder = data.source.encoder
    with torch.no_grad():
        images = module.image_head(torch.from_numpy(split.image.astype(np.float32))) >= 0
        texts = module.text_head(torch.from_numpy(split.text[:, 0].astype(np.float32))) >= 0
        text = "two red ships on water"
        by_text = module.text_head(encoder.encode_text([text]))[0] >= 0
        file = next((world / "images").rglob("*.jpg"))
        by_image = module.image_head(encoder.encode_image(encoder.preprocess(Image.open(file))[None]))[0] >= 0
    assert search.images(text, k=7) == nearest_by_hand(by_text, images, split.ids, 7)
    assert search.texts(open_image(file), k=500) == nearest_by_hand(by_image, texts, split.ids, 33)


def test_search_names_what_is_wrong(searched, tmp_path) -> None:
    encoder = searched[1].source.encoder
    codes = tmp_path / "run" / "codes"
    with pytest.raises(FileNotFoundError, match=r"Checkpoint .*no\.ckpt does not exist"):
        CodeSearch(codes, encoder, tmp_path / "no.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        CodeSearch(codes, encoder, tmp_path / "bad.ckpt")
    with pytest.raises(FileNotFoundError, match=r"Codes .* do not exist"):
        CodeSearch(tmp_path, encoder)
    (tmp_path / "database.npz").write_bytes(b"no codes")
    with pytest.raises(ValueError, match="holds no codes"):
        CodeSearch(tmp_path, encoder)
    torch.save({"state_dict": {"layer.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no text hash head"):
        CodeSearch(codes, encoder, tmp_path / "other.ckpt").images("a")
    wide = type("Wide", (type(encoder),), {"embed_dim": 30})()
    with pytest.raises(ValueError, match=r"width 27, but toy gives 30"):
        CodeSearch(codes, wide).images("a b")
    with pytest.raises(ValueError, match="text to search for is empty"):
        CodeSearch(codes, encoder).images(" ")
    with pytest.raises(FileNotFoundError, match=r"no\.jpg does not exist"):
        open_image(tmp_path / "no.jpg")
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_image(tmp_path / "bad.ckpt")


def test_codes_of_weights_without_a_file_need_a_checkpoint(
    make_trainer, make_module, feature_data, picture_data, tmp_path
) -> None:
    make_trainer(tmp_path, CodeWriter()).predict(make_module(image_dim=6, text_dim=6), datamodule=feature_data)
    with pytest.raises(FileNotFoundError, match=r"none is named in the codes"):
        CodeSearch(tmp_path / "codes", picture_data.source.encoder)


DDP_RUN = """
import sys, torch
from lightning.pytorch import Trainer
from callbacks.prediction_writer import CodeWriter
from datamodules.paired_features import PairedFeatures
from lightning_modules.hashing import CrossModalHashing

source, weights, target, processes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
module = CrossModalHashing(12, 6, 6, hidden=16)
module.load_state_dict(torch.load(weights))
Trainer(
    accelerator="cpu", devices=processes, strategy="ddp", logger=False, callbacks=[CodeWriter(target)],
    enable_progress_bar=False, enable_checkpointing=False,
).predict(module, datamodule=PairedFeatures(source, batch_size=4), return_predictions=False)
"""


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(make_trainer, make_module, feature_file, feature_data, tmp_path) -> None:
    module = make_module(image_dim=6, text_dim=6)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    make_trainer(tmp_path / "run", CodeWriter(str(tmp_path / "one"))).predict(module, datamodule=feature_data)
    launch(DDP_RUN, 2, feature_file, tmp_path / "weights.pt", tmp_path / "two")
    for name in ("query.npz", "database.npz"):
        with np.load(tmp_path / "one" / name) as one, np.load(tmp_path / "two" / name) as two:
            for key in ("image_codes", "text_codes", "ids", "bits"):
                np.testing.assert_array_equal(two[key], one[key])


def test_the_search_command_prints_the_nearest(searched, tmp_path, monkeypatch, capsys) -> None:
    from lightning_modules.hashing import search as command

    _, data, search = searched
    monkeypatch.setattr(command.backbones, "TinyClip", lambda **_: data.source.encoder)
    given = ["--codes", str(tmp_path / "run" / "codes")]
    command.main([*given, "--text", "a ship", "-k", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split()) for line in lines[1:]] == [
        (str(rank), str(distance), name) for rank, (name, distance) in enumerate(search.images("a ship", 3), 1)
    ]
    with pytest.raises(SystemExit, match="2"):
        command.main([*given, "--image", "no.jpg"])
    assert "no.jpg does not exist" in capsys.readouterr().err
