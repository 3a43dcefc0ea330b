"""The report holds the run's own figures, is one file, and survives missing parts."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
import torch
from toy_run import ToyData, ToyModule

from callbacks import ProgressiveScale, Report, Results, RetrievalPanel, RunCSVLogger
from callbacks.charts import code_values_figure, read_curves, readable, summary_figure, training_figure
from callbacks.report import code_values, floor_of, table_of


@pytest.fixture(scope="module")
def run(make_trainer, make_module, picture_data, tmp_path_factory):
    """A finished run: Report stands before the callbacks whose files it reads."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("model: <b>Hash & co</b>\n")
    report = Report(commands={"Own <features>": "python cli.py fit --data.init_args.source features.npz"})
    callbacks = (report, RetrievalPanel(2, 3), ProgressiveScale(end=4.0), Results())
    trainer = make_trainer(folder, *callbacks, epochs=3, logger=RunCSVLogger(str(folder)))
    module = make_module()
    trainer.fit(module, datamodule=picture_data)
    assert not (folder / "report.html").exists()
    trainer.test(module, datamodule=picture_data, verbose=False)
    return folder, module, report


def test_the_page_shows_every_figure_with_interval_floor_n_and_convention(run) -> None:
    folder, module, _ = run
    page = (folder / "report.html").read_text()
    block = json.loads((folder / "results.json").read_text())["test"]
    for key in ("fused_i2t", "fused_t2i", "unimodal_i2t", "unimodal_t2i"):
        row = re.search(rf"<tr><td>{readable(key)}</td>(.*?)</tr>", page, re.DOTALL).group(1)
        for column in ("map", "map_at_50", "precision_at_50", "recall_at_50", "precision_radius_2"):
            assert f"{block['metrics'][f'test/{key}_{column}']:.4f}" in row
        low, high = (block["metrics"][f"test/{key}_map_{end}"] for end in ("low", "high"))
        assert f"<small>{low:.3f} to {high:.3f}</small>" in row
    floor_row = re.search(r'<tr class="floor">(.*?)</tr>', page, re.DOTALL).group(1)
    assert f"{float(module.results['fused_i2t']['random_map']):.4f}" in floor_row
    balls = max(float(figures["random_precision_radius_2"]) for figures in module.results.values())
    assert f"{balls:.4f}" in floor_row
    assert "<b>9</b> query" in page
    assert "<b>33</b> database" in page
    assert "ties=expected" in page
    assert "model: &lt;b&gt;Hash &amp; co&lt;/b&gt;" in page
    assert "Own &lt;features&gt;" in page
    shown = [
        html.unescape(re.sub("<[^>]*>", "", text)).split() for text in re.findall("<pre.*?</pre>", page, re.DOTALL)
    ]
    assert ["python", "cli.py", "fit", "--data.init_args.source", "features.npz"] in shown


def test_the_page_needs_no_network_and_holds_all_pictures(run) -> None:
    page = (run[0] / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 6  # mAP, training, precision-recall, code values; two panels
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"https?://", re.sub(r'"data:[^"]*"', "", page))


def test_code_values_are_shown_with_and_without_the_trained_scale(run, picture_data) -> None:
    _, module, report = run
    module.eval()
    split = picture_data.splits["query"]
    assert set(report._values) == {"tanh(x)", "tanh(4 \N{MULTIPLICATION SIGN} x)"}
    with torch.no_grad():
        inner = torch.cat(
            [
                torch.atanh(module.image_head(torch.from_numpy(split.image.astype(np.float32))).double()),
                torch.atanh(module.text_head(torch.from_numpy(split.text[:, 0].astype(np.float32))).double()),
            ],
            dim=1,
        )
    for title, factor in (("tanh(4 \N{MULTIPLICATION SIGN} x)", 1.0), ("tanh(x)", 0.25)):
        values = np.concatenate(report._values[title])
        np.testing.assert_allclose(values, torch.tanh(inner * factor), atol=1e-5)
    assert float(module.image_head.scale) == float(module.text_head.scale) == 4.0


def test_the_codes_of_an_unsharpened_head_are_shown_once(make_module) -> None:
    module = make_module(image_dim=3, text_dim=3).eval()
    assert set(code_values(module, torch.randn(2, 3), torch.randn(2, 3))) == {"tanh(x)"}
    assert code_values(ToyModule(), torch.randn(2, 3), torch.randn(2, 3)) == {}


def test_a_module_of_another_kind_gets_a_page_too(make_trainer, tmp_path) -> None:
    make_trainer(tmp_path, Report(), Results()).test(ToyModule(), datamodule=ToyData(), verbose=False)
    page = (tmp_path / "report.html").read_text()
    value = json.loads((tmp_path / "results.json").read_text())["test"]["metrics"]["test/error_map"]
    assert f"<td>test/error_map</td><td>{value:.4f}</td><td>2.0000</td>" in page


def test_a_page_without_results_says_so(make_trainer, tmp_path) -> None:
    make_trainer(tmp_path, Report()).test(ToyModule(), datamodule=ToyData(), verbose=False)
    assert "add the Results callback" in (tmp_path / "report.html").read_text()


def test_a_failed_test_leaves_the_earlier_page(make_trainer, tmp_path) -> None:
    class Broken(ToyModule):
        def on_test_epoch_end(self) -> None:
            raise ValueError("no relevant item")

    page = tmp_path / "report.html"
    page.write_text("earlier")
    with pytest.raises(ValueError, match="no relevant item"):
        make_trainer(tmp_path, Report()).test(Broken(), datamodule=ToyData(), verbose=False)
    assert page.read_text() == "earlier"
    assert [file.name for file in page.parent.iterdir()] == ["report.html"]


def test_curves_are_read_and_drawn_as_logged(run) -> None:
    curves = read_curves(run[0] / "metrics.csv")
    epochs, scale = curves["scale"]
    assert epochs.tolist() == [0, 1, 2]
    assert scale.tolist() == [1.0, 2.5, 4.0]
    figure = training_figure(curves)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Loss", "Validation mAP", "Sharpness of tanh(scale \N{MULTIPLICATION SIGN} x)"]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert set(lines) >= {"mean", "fused, image → text", "unimodal, text → image", "random"}
    np.testing.assert_allclose(lines["mean"].get_ydata(), curves["val/map"][1])
    assert read_curves(run[0] / "none.csv") == {}
    assert training_figure({}) is None


def test_metrics_become_rows_columns_and_the_rest() -> None:
    metrics = {f"test/a_b_map{end}": v for end, v in (("", 0.5), ("_low", 0.4), ("_high", 0.6), ("_at_5", 0.7))}
    one_query = dict.fromkeys(("test/a_b_map_low", "test/a_b_map_high"))  # its mean has no interval
    assert table_of({**metrics, **one_query})[0] == {"a_b": {"map": (0.5, None, None), "map_at_5": (0.7, None, None)}}
    rows, columns, others = table_of({**metrics, "test/random_map": 0.1, "test/loss": 2.0, "test/none": None})
    assert rows == {"a_b": {"map": (0.5, 0.4, 0.6), "map_at_5": (0.7, None, None)}}
    assert columns == ["map", "map_at_5"]
    assert others == {"test/loss": 2.0}
    assert floor_of("map", rows, {"test/a_b_map": 0.1}) == 0.1
    assert floor_of("map_at_5", rows, {"test/a_b_map": 0.1}) is None


def test_charts_show_the_values() -> None:
    axes = summary_figure({"a": (0.5, 0.4, 0.6)}, 0.1, "mAP").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.4, 0.6]
    assert "0.500" in [text.get_text() for text in axes.texts]
    figure = code_values_figure({"tanh(x)": np.array([-0.95, 0.01, 0.02, 0.99])})
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(1.0)
    assert "50%" in figure.axes[0].texts[0].get_text()
