"""Every method on a device as strict as a GPU, and on a GPU where there is one: the figures are those of the CPU."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from processes import launch

from datamodules.scenes.dior_layout import write_dior
from datamodules.scenes.layouts import write_coco
from datamodules.scenes.voc_layout import write_voc

RUN = """
import json, shutil, sys
from pathlib import Path
import strict_device
import cli
folder, other, commands = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
more = {"cpu": [], "strict": ["--trainer.strategy", "strict"], "gpu": ["--trainer.devices", "1"]}
if other == "strict":
    strict_device.register()

def run(command, device, place):
    cli.main([*command, "--trainer.accelerator", device, *more[device], "--trainer.default_root_dir", str(place)])

for command in commands:
    run(command, "cpu", folder / "cpu")
for command in commands:
    if other == "gpu" and command[0] == "fit":  # its random numbers are others, so the CPU's weights are what is tested
        run(command, other, folder / "trained")
        shutil.copytree(folder / "cpu" / "checkpoints", folder / other / "checkpoints")
    else:
        run(command, other, folder / other)
(folder / "operations").write_text(str(sum(strict_device.operations.values())))
"""
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
QUIET += ["--trainer.log_every_n_steps", "1"]


MIXED = """
import torch
import strict_device
strict_device.register()
DEVICE = strict_device.DEVICE

def refused(call):
    try:
        call()
    except (RuntimeError, TypeError):
        return True

here, there = torch.arange(4.0), torch.arange(4.0, device=DEVICE)
assert refused(lambda: here + there) and refused(lambda: torch.cat([here, there]))
assert refused(lambda: here[there.long()]) and refused(lambda: there.numpy())
assert refused(lambda: there.long()[None] @ there.long()[:, None])
assert refused(lambda: torch.randperm(4, device=DEVICE, generator=torch.Generator()))
assert there[here.long()].tolist() == (there + torch.tensor(0.0)).cpu().tolist() == [0, 1, 2, 3]
weight = torch.nn.Parameter(there)
(weight * weight).sum().backward()
assert weight.grad.device == DEVICE and weight.grad.tolist() == [0, 2, 4, 6]
"""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    write_coco(folder / "coco", 60, 20)
    write_dior(folder / "dior", 40)
    write_voc(folder / "voc", 30)
    return folder


@pytest.fixture(params=["strict", pytest.param("gpu", marks=pytest.mark.gpu)])
def compare(request, tmp_path):
    """``compare(*commands)`` runs the commands on the CPU and on another device, and compares the metrics of the tests.

    A GPU rounds in another order, which may turn a box or a neighbour.
    """
    device = request.param
    near = {"rel": 1e-5, "abs": 1e-6} if device == "strict" else {"rel": 0.02, "abs": 0.02}

    def run(*commands):
        words = json.dumps([[str(word) for word in chain(command, QUIET)] for command in commands])
        launch(RUN, 1, tmp_path, device, words)
        here, there = (
            json.loads((tmp_path / name / "results.json").read_text())["test"]["metrics"] for name in ("cpu", device)
        )
        assert there == pytest.approx(here, **near, nan_ok=True)
        assert device == "gpu" or int((tmp_path / "operations").read_text()) > 1000

    return run


def options(prefix, **values):
    """``--prefix.key value`` for each."""
    return list(chain.from_iterable((f"--{prefix}.{key}", value) for key, value in values.items()))


def cached(worlds, tmp_path, **images):
    """The generated images in COCO's layout through the feature cache."""
    source = "data.init_args.source.init_args"
    images |= {"root": worlds / "coco", "split_dir": tmp_path / "splits", "num_workers": 0}
    return options(source, root=tmp_path / "cache") + options(f"{source}.data.init_args", **images)


def boxes(worlds, tmp_path):
    return options("data.init_args", root=worlds / "dior", split_dir=tmp_path / "splits", batch_size=8)


def test_the_strict_device_is_strict():
    launch(MIXED, 1)


def test_hashing(worlds, tmp_path, compare):
    data = [*cached(worlds, tmp_path, num_query=10, num_train=40), *options("data.init_args", batch_size=16)]
    tiny = options("data.init_args.source.init_args", encoder="lightning_modules.backbones.TinyClip")
    model = options("model.init_args", hidden=128)
    run = ["-c", "configs/hashing/coco.yaml", "-c", "configs/hashing/method/hashnet.yaml", *tiny, *data, *model]
    fit = ["fit", *run, "--trainer.max_epochs", 1]
    predict = ["predict", *run, "--ckpt_path", "last", "--trainer.callbacks+=CodeWriter"]
    compare(fit, ["test", *run, "--ckpt_path", "last"], predict)


def test_multilabel(worlds, tmp_path, compare):
    data = [*cached(worlds, tmp_path), *options("data.init_args", batch_size=16, num_folds=2)]
    run = ["-c", "configs/multilabel/world.yaml", "-c", "configs/multilabel/method/knn.yaml", *data]
    fit = ["fit", *run, "--trainer.max_epochs", 1]
    compare(fit, ["test", *run, "--ckpt_path", "best"], ["predict", *run, "--ckpt_path", "best"])


def test_heatmap_adapter(worlds, tmp_path, compare):
    run = ["-c", "configs/heatmap/world.yaml", "-c", "configs/heatmap/method/lora.yaml", *boxes(worlds, tmp_path)]
    fit = ["fit", *run, "--trainer.max_epochs", 1]
    compare(fit, ["test", *run, "--ckpt_path", "last"])


def test_detection(worlds, tmp_path, compare):
    mining = options("trainer.callbacks.init_args", every_n_epochs=1, start_epoch=1, strategy="tide")
    run = ["-c", "configs/detection/world.yaml", *boxes(worlds, tmp_path)]
    compare(["fit", *run, *mining, "--trainer.max_epochs", 2], ["test", *run, "--ckpt_path", "last"])


def test_corrclip(worlds, tmp_path, compare):
    data = options("data.init_args", root=worlds / "voc", mask_cache=tmp_path / "masks", batch_size=4)
    run = ["-c", "configs/corrclip/world.yaml", *data]
    compare(["test", *run], ["predict", *run])


def test_pretraining(tmp_path, compare):
    model = options("model.init_args", export=tmp_path / "tiny.safetensors")
    data = options("data.init_args", num_train=16, num_val=16, num_test=16, batch_size=8)
    limits = options("trainer", val_check_interval=2)
    run = ["-c", "configs/contrastive/tiny_clip.yaml", *model, *data, *limits]
    compare(["fit", *run], ["test", *run, "--ckpt_path", "last"])
