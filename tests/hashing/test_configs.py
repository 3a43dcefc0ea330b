"""Every hashing config, with every method file, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

CONFIGS = Path(__file__).parents[2] / "configs" / "hashing"
METHODS = sorted(CONFIGS.glob("method/*.yaml"))


@pytest.fixture
def source(tmp_path):
    g = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 80), ("query", 10), ("database", 40)):
        label = np.arange(count) % 2
        arrays[f"{split}_labels"] = np.eye(2)[label]
        arrays[f"{split}_image"] = g.standard_normal((count, 6)) + 3 * label[:, None]
        arrays[f"{split}_text"] = g.standard_normal((count, 4)) - 3 * label[:, None]
    np.savez(tmp_path / "tiny.npz", **arrays)
    return tmp_path / "tiny.npz"


def overrides(source):
    return [
        *("--data.init_args.source", source, "--data.init_args.batch_size", "16", "--trainer.max_epochs", "2"),
        *("--trainer.default_root_dir", "runs/tiny", "--trainer.accelerator", "cpu", "--model.init_args.hidden", "16"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_each_method_fits_and_tests(method, source, run_cli):
    config = ["-c", CONFIGS / "wikipedia.yaml", "-c", method, *overrides(source)]
    run_cli("fit", *config)
    run_cli("test", *config, "--ckpt_path", "best")
    block = json.loads(Path("runs/tiny/results.json").read_text())["test"]
    assert block["floors"]["test/unimodal_i2t_map"] == pytest.approx(block["metrics"]["test/random_map"])
    assert block["n"] == {"query": 10, "database": 40, "empty": 0}


def test_the_supervised_config_without_validation(source, run_cli):
    config = [
        "-c",
        CONFIGS / "wikipedia_supervised.yaml",
        "-c",
        CONFIGS / "method" / "all_pairs.yaml",
        *overrides(source),
    ]
    run_cli("fit", *config)
    run_cli("test", *config, "--ckpt_path", "last")
    metrics = json.loads(Path("runs/tiny/results.json").read_text())["test"]["metrics"]
    assert metrics["test/unimodal_i2t_map"] > metrics["test/random_map"]


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
@pytest.mark.parametrize("dataset", ["flickr", "coco"])
def test_each_dataset_config_is_understood_with_each_method(dataset, method, run_cli, capsys):
    with pytest.raises(SystemExit) as stop:
        run_cli("fit", "-c", CONFIGS / f"{dataset}.yaml", "-c", method, "--print_config")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "FeatureCache" in shown
    assert ("ProgressiveScale" in shown) == (method.stem in ("progressive", "both"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.init_args.source", "nowhere.mat"], "nowhere.mat: no such feature file"),
        (["--model.init_args.bits", "0"], "bits is 0"),
        (["--model.init_args.image_dim", "9"], "image_dim is 9, but the data has 6"),
    ],
)
def test_mistakes_end_with_code_2_and_leave_results(arguments, message, source, run_cli, capsys):
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/results.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        run_cli("fit", "-c", CONFIGS / "wikipedia.yaml", *overrides(source), *arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert Path("runs/tiny/results.json").read_text() == "{}"
