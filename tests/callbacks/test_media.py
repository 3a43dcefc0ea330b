"""The pictures show what was really retrieved, and W&B gets them with the curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from matplotlib.colors import to_hex
from PIL import Image
from toy_run import ToyData, ToyModule
from wandb_files import records

from callbacks import media
from callbacks.charts import curves_of, precision_recall_figure, readable
from callbacks.code_rows import gather_rows, join_rows
from callbacks.media import RetrievalPanel, spread_queries
from callbacks.panels import HIT, MISS, Example, Found, images_figure, texts_figure
from lightning_modules.metrics.retrieval import HammingRetrieval


def signs(head, features):
    with torch.no_grad():
        return (head.eval()(torch.from_numpy(np.asarray(features, dtype=np.float32))) >= 0).tolist()


def test_what_is_shown_equals_a_plain_search(make_trainer, make_module, picture_data, monkeypatch, tmp_path) -> None:
    drawn = {}
    for name in ("images_figure", "texts_figure"):
        original = getattr(media, name)
        monkeypatch.setattr(media, name, lambda a, t, n=name, o=original: drawn.update({n: a}) or o(a, t))
    module, panel = make_module(), RetrievalPanel(num_queries=4, top_k=5)
    trainer = make_trainer(tmp_path, panel)
    trainer.fit(module, datamodule=picture_data)
    trainer.test(module, datamodule=picture_data, verbose=False)

    query, database = picture_data.splits["query"], picture_data.splits["database"]
    codes = {
        "images_figure": (signs(module.text_head, query.text[:, 0]), signs(module.image_head, database.image)),
        "texts_figure": (signs(module.image_head, query.image), signs(module.text_head, database.text[:, 0])),
    }
    labelled = [i for i in range(9) if query.labels[i].any()]
    chosen = [labelled[round(i * (len(labelled) - 1) / 3)] for i in range(4)]
    queries, items = (picture_data.source.data.dataset(role) for role in ("query", "database"))
    assert set(drawn) == set(codes)
    for name, (query_codes, item_codes) in codes.items():
        assert len(drawn[name]) == 4
        for row, (example, found) in zip(chosen, drawn[name], strict=True):
            assert example.text == queries[row]["captions"][0]
            distances = [sum(a != b for a, b in zip(query_codes[row], code, strict=True)) for code in item_codes]
            nearest = sorted(range(33), key=lambda i: (distances[i], i))[:5]
            assert [entry.distance for entry in found] == [distances[i] for i in nearest]
            assert [entry.hit for entry in found] == [bool(query.labels[row] @ database.labels[i] > 0) for i in nearest]
            for i, entry in zip(nearest, found, strict=True):
                assert entry.example.text == items[i]["captions"][0]
                assert entry.example.picture.tobytes() == items[i]["image"].tobytes()
    for name in ("text_to_image", "image_to_text", "precision_recall"):
        assert panel.pictures[name] == tmp_path / "pictures" / f"{name}.png"
        with Image.open(panel.pictures[name]) as image:
            assert min(image.size) > 400


def some_answers(picture):
    hits = [[True, False, True], [False, False, True]]
    query = Example(picture, "costs $5 and $6")
    return hits, [(query, [Found(Example(picture, "a ship"), 3, hit) for hit in row]) for row in hits]


def frames(figure):
    return [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes]


@pytest.mark.parametrize("picture", [Image.new("RGB", (40, 20), "blue"), None])
def test_hits_are_framed_green_and_misses_red(picture, tmp_path) -> None:
    hits, answers = some_answers(picture)
    expected = [HIT if hit else MISS for row in hits for hit in row]
    figure = images_figure(answers, "title")
    assert frames(figure) == expected
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["✓" if c == HIT else "✗" for c in expected]
    figure.savefig(tmp_path / "a.png")
    figure = texts_figure(answers, "title")
    assert [colour for colour in frames(figure) if colour in (HIT, MISS)] == expected
    figure.savefig(tmp_path / "b.png")


def test_a_feature_file_without_pictures_gives_text_cells(make_trainer, make_module, feature_data, tmp_path) -> None:
    make_trainer(tmp_path, RetrievalPanel(2, 50)).test(make_module(image_dim=6, text_dim=6), datamodule=feature_data)
    assert (tmp_path / "pictures" / "text_to_image.png").is_file()
    assert feature_data.examples("query", [4, 1]) == [(None, "query-4 (label 1)"), (None, "query-1 (label 1)")]


def test_a_module_without_codes_is_told_so(make_trainer, tmp_path) -> None:
    with pytest.warns(UserWarning, match="test_step of ToyModule returned no 'index'"):
        make_trainer(tmp_path, RetrievalPanel()).test(ToyModule(), datamodule=ToyData(), verbose=False)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(("queries", "top_k"), [(0, 10), (6, 0)])
def test_bad_sizes_are_refused(queries, top_k) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        RetrievalPanel(queries, top_k)


def test_queries_are_spread_and_never_more_than_there_are() -> None:
    labels = np.ones((10, 2), dtype=bool)
    assert spread_queries(labels, 4).tolist() == [0, 3, 6, 9]
    assert spread_queries(labels[:2], 6).tolist() == [0, 1, 1, 1, 1, 1][:2]
    labels[3:7] = False
    assert spread_queries(labels, 100).tolist() == [0, 1, 2, 7, 8, 9]


def test_rows_are_joined_once_each_in_order() -> None:
    a = {"index": np.array([5, 2]), "bits": np.array([4, 4]), "image_codes": np.array([[1], [2]], dtype=np.uint8)}
    b = {"index": np.array([2, 0]), "bits": np.array([4, 4]), "image_codes": np.array([[2], [9]], dtype=np.uint8)}
    joined = join_rows([a, b])
    assert joined["index"].tolist() == [0, 2, 5]
    assert joined["image_codes"].ravel().tolist() == [9, 2, 1]
    assert set(gather_rows({"query": [a], "database": []})) == {"query"}


def test_curves_are_those_of_the_metric() -> None:
    metric = HammingRetrieval(bits=2)
    codes, labels = torch.tensor([[1, 1], [1, -1], [-1, -1]]), torch.tensor([[1], [0], [1]])
    metric.update(codes, labels, torch.arange(3), role="database")
    metric.update(codes[:1], labels[:1], torch.arange(1), role="query")
    curves = curves_of({"unimodal_i2t": metric.compute(), "other": {"map": torch.tensor(1.0)}})
    assert list(curves) == ["unimodal_i2t"]
    curve = curves["unimodal_i2t"]
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert curve.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert curve.floor == pytest.approx(2 / 3)
    line = precision_recall_figure(curves).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), curve.recall)
    np.testing.assert_allclose(line.get_ydata(), curve.precision)
    assert line.get_label() == readable("unimodal_i2t") == "unimodal, image → text"


def test_an_offline_wandb_run_holds_config_curves_panel_and_table(
    make_trainer, make_module, picture_data, tmp_path
) -> None:
    import wandb

    logger = WandbLogger(project="test", save_dir=tmp_path)
    module, trainer = make_module(), make_trainer(tmp_path, RetrievalPanel(2, 3), logger=logger)
    trainer.fit(module, datamodule=picture_data)
    trainer.test(module, datamodule=picture_data, verbose=False)
    run = logger.experiment
    assert run.config["bits"] == 12
    summary = dict(run.summary)
    assert summary["test/unimodal_t2i_map"] == pytest.approx(float(module.results["unimodal_t2i"]["map"]))
    assert {"val/map", "train/loss", "test/fused_i2t_map", "test/precision_recall_curve_table"} <= set(summary)
    files = Path(run.dir)
    assert files.parent.name.startswith("offline-run-")
    wandb.finish()
    record = records(files.parent, b"unimodal_weight", b"val/map")
    assert b"unimodal_weight" in record
    assert b"val/map" in record
    for name in ("text_to_image", "image_to_text", "precision_recall"):
        (file,) = files.glob(f"media/images/test/{name}_*.png")
        assert file.read_bytes() == (tmp_path / "pictures" / f"{name}.png").read_bytes()
    (file,) = files.glob("media/table/test/precision_recall_by_radius_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["protocol and direction", "radius", "precision", "recall", "answered"]
    last = [row for row in table["data"] if row[0] == "fused_t2i"][-1]
    assert last[1:] == [12, pytest.approx(float(module.results["fused_t2i"]["random_precision"])), 1.0, 1.0]
    (file,) = files.glob("media/table/test/figures_*.table.json")
    assert [row[0] for row in json.loads(file.read_text())["data"]] == list(module.results)
    assert list(files.glob("media/table/test/precision_recall_curve_table_*.table.json"))
