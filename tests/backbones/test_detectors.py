import copy
import json
import logging
import shutil

import pytest
import torch
import toy_detectors
from toy_detectors import FAMILIES, SIZE, save_detector

from lightning_modules.backbones.detector_files import pixel_rule
from lightning_modules.backbones.detectors import TransformerDetector, decode, loss_labels
from lightning_modules.detection.module import DetectionTransformer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("detectors")
    return {family: save_detector(root / family, family) for family in FAMILIES}


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders["yolos"], tmp_path / "toy")


def pictures(count=2, seed=0):
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed)).byte()


def target(boxes, labels, ignore=None):
    count = len(labels)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(count, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "ignore": torch.tensor(ignore or [False] * count),
    }


TWO = target([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 0.9]], [0, 2])
ONE = target([[0.3, 0.3, 0.9, 0.8]], [1])
NONE = target([], [])


def test_targets_become_centres_without_the_ignored():
    found = loss_labels([target([[0.0, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]], [1, 0], [False, True]), NONE], 2)
    assert found[0]["boxes"].tolist() == [[0.25, 0.625, 0.5, 0.25]]
    assert found[0]["class_labels"].tolist() == [1]
    assert found[1]["boxes"].shape == (0, 4)
    assert found[1]["class_labels"].dtype == torch.int64
    with pytest.raises(ValueError, match=r"labels \[0, 2\], but the detector has 2 classes"):
        loss_labels([TWO], 2)
    assert loss_labels([target([[0, 0, 1, 1]], [7], [True])], 2)[0]["class_labels"].tolist() == []


def test_sigmoid_logits_give_a_detection_for_each_query_and_class():
    logits = torch.tensor([[[0.0, 2.0], [1.0, -3.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4]]])
    (found,) = decode(logits, boxes, torch.tensor([[100, 50]]), 2, max_detections=3)
    assert found["labels"].tolist() == [1, 0, 0]
    assert found["scores"].tolist() == pytest.approx([0.880797, 0.731059, 0.5], abs=1e-6)
    expected = [20, 30, 30, 70, 0, 70, 15, 100, 20, 30, 30, 70]  # the second box would begin at -5 and end at 110
    assert found["boxes"].flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_softmax_logits_give_the_best_class_of_a_query_beside_no_object():
    logits = torch.tensor([[[0.2, 0.1, 0.7], [0.5, 0.3, 0.2]]]).log()  # probabilities themselves
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]])
    (found,) = decode(logits, boxes, torch.tensor([[8, 16]]), 2, max_detections=5)
    assert found["labels"].tolist() == [0, 0]
    assert found["scores"].tolist() == pytest.approx([0.5, 0.2])
    assert found["boxes"].tolist() == [[4, 2, 12, 6], [0, 0, 16, 8]]


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_are_those_of_the_library(folders, family):
    import transformers

    processors = {"yolos": transformers.YolosImageProcessor, "lw_detr": transformers.DeformableDetrImageProcessor}
    processor = processors.get(family, transformers.RTDetrImageProcessor)(do_resize=False, do_pad=False)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folders[family]).eval()
    images, sizes = pictures(), torch.tensor([[48, 80], [100, 30]])
    with torch.no_grad():
        output = model(pixel_values=processor(images=list(images), return_tensors="pt")["pixel_values"])
        expected = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        detector = TransformerDetector(str(folders[family]), 3).eval()
        found = detector.detect(images, sizes)
        fewer = TransformerDetector(str(folders[family]), 3, max_detections=4).eval().detect(images, sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        count = len(expected[i]["scores"])
        order = expected[i]["scores"].argsort(descending=True, stable=True)
        limits = torch.tensor([width, height, width, height])
        assert torch.allclose(found[i]["scores"][:count], expected[i]["scores"][order], atol=1e-6)
        assert torch.equal(found[i]["labels"][:count], expected[i]["labels"][order])
        clipped = torch.minimum(expected[i]["boxes"][order].clamp(min=0), limits)
        assert torch.allclose(found[i]["boxes"][:count], clipped, atol=1e-3)
        assert len(fewer[i]["scores"]) == 4
        assert torch.equal(fewer[i]["boxes"], found[i]["boxes"][:4])


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_networks_own_and_finite_without_objects(folders, family):
    from transformers import AutoModelForObjectDetection

    detector, images = TransformerDetector(str(folders[family]), 3), pictures()
    model = AutoModelForObjectDetection.from_pretrained(folders[family]).train()
    assert detector.training
    assert detector.model.training
    pixels = (images - detector.mean) / detector.std
    torch.manual_seed(0)
    expected = model(pixel_values=pixels, labels=loss_labels([TWO, ONE], 3)).loss
    torch.manual_seed(0)
    loss = detector.loss(images, [TWO, ONE])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for targets in ([TWO, NONE], [NONE, NONE]):
        detector.zero_grad()
        loss = detector.loss(images, targets)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.requires_grad)  # none without
    assert torch.isfinite(detector.eval().image_losses(images, [NONE, NONE])).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_of_an_image_does_not_depend_on_its_neighbours(folders, family):
    detector, images = TransformerDetector(str(folders[family]), 3).eval(), pictures(3)
    with torch.no_grad():
        losses = detector.image_losses(images, [TWO, NONE, ONE])
        swapped = detector.image_losses(images[[2, 0]], [ONE, TWO])
        together = detector.loss(images, [TWO, NONE, ONE])
        alone = detector.loss(images[:1], [TWO])
    assert losses.shape == (3,)
    assert torch.allclose(swapped, losses[[2, 0]], rtol=1e-4)
    assert losses[0].item() == pytest.approx(alone.item(), rel=1e-5)
    assert abs(together.item() - losses.mean().item()) > 1e-3 * together.item()


def test_an_ignored_object_is_left_out_of_the_loss(folders):
    detector, images = TransformerDetector(str(folders["yolos"]), 3).eval(), pictures(1)
    both = target([[0.3, 0.3, 0.9, 0.8], [0.0, 0.0, 0.5, 0.5]], [1, 2], [False, True])
    with torch.no_grad():
        assert detector.loss(images, [both]) == detector.loss(images, [ONE])


def test_loss_of_lw_detr_in_eval_gives_an_object_to_one_query(folders):
    """The same network, built without groups: its first group is what eval uses."""
    grouped = TransformerDetector(str(folders["lw_detr"]), 3).eval()
    single = TransformerDetector(str(folders["lw_detr"]), 3, pretrained=False, config={"group_detr": 1}).eval()
    weights = grouped.state_dict()
    single.load_state_dict({k: weights[k][: len(v)] if v.ndim else weights[k] for k, v in single.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(single(pictures()).logits, grouped(pictures()).logits)
        expected = single(pictures(), loss_labels([TWO, ONE], 3)).loss
        assert grouped.loss(pictures(), [TWO, ONE]).item() == pytest.approx(expected.item(), rel=1e-5)
        plain = grouped(pictures(), loss_labels([TWO, ONE], 3)).loss
    assert plain.item() > 1.02 * expected.item()
    assert grouped.model.config.group_detr == 3


def test_loss_of_an_image_waits_for_no_other_process(folders, monkeypatch):
    import torch.distributed as dist

    detector = TransformerDetector(str(folders["lw_detr"]), 3).eval()
    with torch.no_grad():
        expected = detector.image_losses(pictures(), [TWO, ONE])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("asked the other processes"))
        with torch.no_grad():
            assert torch.equal(detector.image_losses(pictures(), [TWO, ONE]), expected)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_in_half_precision_is_that_of_full_precision(folders, family):
    detector = TransformerDetector(str(folders[family]), 3).eval()
    for name, parameter in detector.named_parameters():
        if "class_embed" in name and name.endswith("bias"):
            parameter.data.fill_(12.0)  # sure of everything: the probability is 1 in bfloat16
    with torch.no_grad():
        expected = detector.loss(pictures(), [TWO, ONE])
        with torch.autocast("cpu", torch.bfloat16):
            loss = detector.loss(pictures(), [TWO, ONE])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)


def test_a_detector_can_be_copied(folders):
    detector = TransformerDetector(str(folders["lw_detr"]), 3).eval()
    other = copy.deepcopy(detector)
    with torch.no_grad():
        assert torch.equal(other.loss(pictures(), [TWO, ONE]), detector.loss(pictures(), [TWO, ONE]))


@pytest.mark.parametrize(("family", "steps"), [("yolos", 40), ("rt_detr_v2", 15)])
def test_training_lowers_the_loss(folders, family, steps):
    torch.manual_seed(0)
    detector, images = TransformerDetector(str(folders[family]), 3), pictures()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    before = detector.eval().image_losses(images, [TWO, ONE]).mean().item()
    detector.train()
    for _ in range(steps):
        optimiser.zero_grad()
        detector.loss(images, [TWO, ONE]).backward()
        optimiser.step()
    assert detector.eval().image_losses(images, [TWO, ONE]).mean().item() < 0.7 * before


def test_pixels_of_a_kind_are_those_of_its_processor(folders, copied):
    import transformers

    for kind, processor in (
        ("yolos", transformers.YolosImageProcessor()),
        ("lw_detr", transformers.DeformableDetrImageProcessor()),
        ("rt_detr_v2", transformers.RTDetrImageProcessor()),
        ("rf_detr", transformers.RfDetrImageProcessor()),
    ):
        mean, std = pixel_rule(str(folders["yolos"]), kind)  # no file there
        expected = processor(images=pictures(1), return_tensors="pt", do_resize=False, do_pad=False)["pixel_values"]
        found = (pictures(1) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert torch.allclose(found, expected, atol=1e-5)
    transformers.YolosImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1]).save_pretrained(copied)
    mean, std = pixel_rule(str(copied), "rt_detr")
    assert mean == pytest.approx([127.5, 102.0, 76.5])
    assert std == pytest.approx([127.5, 51.0, 25.5])
    file = copied / "preprocessor_config.json"
    file.write_text('{"do_rescale": false, "do_normalize": false}')
    assert pixel_rule(str(copied), "yolos") == ([0.0] * 3, [1.0] * 3)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json in .*toy is damaged"):
        TransformerDetector(str(copied), 3)


@pytest.mark.parametrize(("family", "heads"), [("yolos", 2), ("rt_detr_v2", 7), ("lw_detr", 8)])
def test_another_number_of_classes_renews_the_heads_alone(folders, family, heads, caplog):
    with caplog.at_level(logging.WARNING):
        detector = TransformerDetector(str(folders[family]), 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"was trained on 3 classes, not 5: {heads} of its" in line
    caplog.clear()
    stored = TransformerDetector(str(folders[family]), 3)
    assert not caplog.records
    own = dict(detector.named_parameters())
    assert f"of its {len(own)} weight arrays" in line
    renewed = [key for key, value in stored.named_parameters() if not torch.equal(value, own[key])]
    assert all(map(torch.equal, stored.buffers(), detector.buffers()))
    assert len(renewed) == heads
    assert all("class" in key or "score" in key for key in renewed)
    assert {own[key].shape[0] for key in renewed} <= {5, 6}


def test_random_weights_of_any_number_of_classes(folders):
    detectors = [TransformerDetector(str(folders["yolos"]), count, pretrained=False) for count in (3, 5)]
    trained = TransformerDetector(str(folders["yolos"]), 3).state_dict()
    assert not any(torch.equal(trained[k], v) for k, v in detectors[0].state_dict().items() if v.std() > 0)
    assert detectors[1](pictures()).logits.shape == (2, 12, 6)
    assert all(key.startswith("model.") for key in trained)


def test_a_module_knows_whether_its_heads_are_of_the_checkpoint(copied):
    for classes, pretrained, random in ((3, True, False), (4, True, True), (3, False, True)):
        module = DetectionTransformer(str(copied), pretrained, class_names=[f"class {i}" for i in range(classes)])
        module.configure_model()
        assert module.random_weights() is random
        module.load_state_dict(module.state_dict())
        assert not module.random_weights()


def test_half_precision_weights_become_full(copied):
    from transformers import AutoModelForObjectDetection

    half = AutoModelForObjectDetection.from_pretrained(copied).half()
    half.save_pretrained(copied)
    for pretrained in (True, False):
        detector = TransformerDetector(str(copied), 3, pretrained)
        assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
        assert torch.isfinite(detector.loss(pictures(), [TWO, ONE]))


def test_values_of_the_configuration_are_replaced(folders):
    name = str(folders["rt_detr_v2"])
    assert TransformerDetector(name, 3, config={"num_queries": 7}).eval()(pictures()).logits.shape == (2, 7, 3)
    with pytest.raises(ValueError, match="config sets queries, which a rt_detr_v2 does not have"):
        TransformerDetector(name, 3, config={"queries": 7})
    with pytest.raises(ValueError, match=r"with \{'num_queries': 'x'\} is not valid: .*num_queries"):
        TransformerDetector(name, 3, config={"num_queries": "x"})
    with pytest.raises(ValueError, match=r"do not fit their config\.json: 43 are missing .* such as bbox_embed\.2"):
        TransformerDetector(name, 3, config={"decoder_layers": 3})
    with pytest.raises(ValueError, match="do not fit"):
        TransformerDetector(name, 5, config={"decoder_ffn_dim": 48})


def test_weights_that_are_missing_or_damaged(copied):
    from safetensors.torch import load_file, save_file

    file = copied / "model.safetensors"
    stored = load_file(file)
    lost = next(key for key in stored if "bbox_predictor" in key)
    save_file({key: value for key, value in stored.items() if key != lost}, file, metadata={"format": "pt"})
    for classes in (3, 5):
        with pytest.raises(ValueError, match=f"1 are missing or misshapen, such as {lost}"):
            TransformerDetector(str(copied), classes)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged"):
        TransformerDetector(str(copied), 3)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="pretrained: false"):
        TransformerDetector(str(copied), 3)
    TransformerDetector(str(copied), 3, pretrained=False)


def test_folders_without_a_detector(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty cannot be read \(it has no config\.json\)"):
        TransformerDetector(str(tmp_path / "empty"), 3)
    config = copied / "config.json"
    for text, error, message in (
        (json.dumps({"model_type": "vit"}), ValueError, "holds a model of the kind 'vit', which is no detector"),
        (json.dumps({"model_type": "owlv2"}), ValueError, "kind 'owlv2'"),
        (json.dumps({"model_type": "zork"}), ValueError, "zork.*Give a detector of one of the kinds yolos"),
        ("{", FileNotFoundError, "cannot be read"),
    ):
        config.write_text(text)
        with pytest.raises(error, match=message):
            TransformerDetector(str(copied), 3)


def test_offline_says_which_files_to_put_where(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="name: /path/to/rtdetr_r18vd") as caught:
        TransformerDetector("PekingU/rtdetr_r18vd", 3)
    assert "https://huggingface.co/PekingU/rtdetr_r18vd" in str(caught.value)


def test_counts_below_one():
    for counts in ({"num_classes": 0}, {"num_classes": 2, "max_detections": 0}):
        with pytest.raises(ValueError, match="must be above 0"):
            TransformerDetector("anything", **counts)


def test_toy_folder_of_an_unknown_family(tmp_path):
    with pytest.raises(ValueError, match="yolos, lw_detr"):
        toy_detectors.save_detector(tmp_path, "yolo")
