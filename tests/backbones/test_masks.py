"""Mask sources: painting, the thresholds of automatic masks, files, and each model with small random weights."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lightning_modules.backbones.mask_files import PregeneratedMasks
from lightning_modules.backbones.mask_panoptic import PanopticModel
from lightning_modules.backbones.mask_points import PointGrid, PointMasks, mask_boxes, stability, without_small_regions
from lightning_modules.backbones.mask_sam import SegmentAnything
from lightning_modules.backbones.mask_sam2 import Sam2, Sam3
from lightning_modules.backbones.masks import Felzenszwalb, NoMasks, number_by_area, paint, painting_order, shrink


def picture(height=45, width=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def noisy(model, std=0.5, seed=1):
    """Weights far from the library's own start, which give the same masks for every point."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data = std * torch.randn(weight.shape, generator=generator)
        elif "norm" not in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def naive_paint(masks, reverse=False):
    ids = np.zeros(masks[0].shape, dtype=np.int64)
    for number, mask in enumerate(sorted(masks, key=lambda m: int(m.sum()), reverse=reverse), start=1):
        for y, x in zip(*np.nonzero(mask), strict=True):
            ids[y, x] = number
    return ids


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_painting_equals_a_loop(order):
    masks = (
        torch.rand(9, 12, 15, generator=torch.Generator().manual_seed(4)) > torch.linspace(0.3, 0.95, 9)[:, None, None]
    )
    masks[3] = masks[5]  # equal areas keep their order
    ordered = masks[painting_order(masks.sum((1, 2)), order)]
    expected = naive_paint(list(masks.numpy()), reverse=order == "descending")
    np.testing.assert_array_equal(paint(ordered, (12, 15)).numpy(), expected)
    assert paint([], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="known: ascending"):
        painting_order(torch.ones(2), "random")


def test_numbers_go_up_with_the_area():
    assert number_by_area(torch.tensor([[4, 4, 4, 2, 2, 8, 8]])).tolist() == [[3, 3, 3, 1, 1, 2, 2]]
    assert number_by_area(torch.tensor([[0, 0, 5]])).tolist() == [[0, 0, 1]]
    assert number_by_area(torch.zeros(1, 2, dtype=torch.long)).tolist() == [[0, 0]]


def test_no_masks():
    assert NoMasks().masks(picture()).eq(0).all()
    assert NoMasks().fingerprint() is None
    for bad in (picture().float(), picture()[:1], picture()[:, :0]):
        with pytest.raises(ValueError, match=r"\(3, H, W\) uint8"):
            NoMasks().masks(bad)


def test_felzenszwalb_equals_scikit_image():
    from skimage.segmentation import felzenszwalb

    image = picture()
    image[:, :, 35:] //= 4
    expected = felzenszwalb(image.permute(1, 2, 0).numpy(), scale=300, sigma=1.0, min_size=20, channel_axis=-1)
    ids = Felzenszwalb(300, 1.0, 20).masks(image).numpy()
    pairs = np.unique(np.stack([expected.ravel(), ids.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected)) == ids.max() > 2  # one to one
    areas = np.bincount(ids.ravel())
    assert areas[0] == 0
    assert (np.diff(areas[1:]) >= 0).all()
    assert Felzenszwalb().masks(picture(1, 1)).tolist() == [[1]]


def test_felzenszwalb_resizes_large_pictures_and_brings_the_regions_back():
    image = torch.full((3, 30, 60), 200, dtype=torch.uint8)
    image[:, :, :20] = 0
    halved = Felzenszwalb(300, 0.0, 40, longest=30).masks(image)
    assert (halved[:, :17] == 1).all()  # the smaller one; the edge is smoothed
    assert (halved[:, 23:] == 2).all()
    noisy = picture(61, 90)
    small = shrink(noisy, 40)
    assert small.shape == (3, 27, 40)
    ids = Felzenszwalb(longest=40).masks(noisy)
    rows, columns = (torch.floor((torch.arange(n) + 0.5) * m / n).long() for n, m in ((61, 27), (90, 40)))
    assert torch.equal(ids, Felzenszwalb().masks(small)[rows][:, columns])
    cityscapes = torch.zeros(3, 1024, 2048, dtype=torch.uint8)
    assert shrink(cityscapes, Felzenszwalb().longest) is cityscapes
    assert Felzenszwalb(longest=1).masks(picture(3, 9)).eq(1).all()
    with pytest.raises(ValueError, match="longest is 0"):
        Felzenszwalb(longest=0)


def test_fingerprints_follow_the_settings():
    prints = [Felzenszwalb(), Felzenszwalb(scale=50), Felzenszwalb(sigma=0.5), Felzenszwalb(min_size=9)]
    prints.append(Felzenszwalb(longest=9))
    assert len({source.fingerprint() for source in prints}) == 5
    assert Felzenszwalb().fingerprint() == Felzenszwalb().fingerprint()
    with pytest.raises(ValueError, match="must not be negative"):
        Felzenszwalb(sigma=-1)


# Automatic masks of points


class Discs(PointMasks):
    """A disc around each point, in a picture padded to a square; its quality grows with the radius."""

    name = "discs"

    def __init__(self, points, order="ascending", low=64):
        super().__init__(points, order)
        self.low = low

    def settings(self):
        return self.point_settings()

    def embed(self, image):
        return image.shape[1:]

    def decode(self, embedding, points):
        height, width = embedding
        center = points.float() * torch.tensor([width, height]) * self.low / max(height, width)  # (P, 2) in low pixels
        place = torch.arange(self.low) + 0.5
        distance = torch.hypot(place[None, :] - center[:, :1, None], place[:, None] - center[:, 1:, None])
        radii = self.low * (0.06 + 0.1 * torch.rand(len(points), generator=torch.Generator().manual_seed(len(points))))
        return (radii[:, None, None] - distance)[:, None], radii[:, None] / self.low * 5

    def inside(self, size, grid):
        return -(-size[0] * self.low // max(size)), -(-size[1] * self.low // max(size))

    def enlarge(self, logits, size):
        side = max(size)
        return F.interpolate(logits[:, None], (side, side), mode="bilinear")[:, 0, : size[0], : size[1]]


@pytest.mark.parametrize("box_nms_thresh", [0.2, 0.35, 0.5])
def test_low_resolution_keeps_the_masks_that_full_resolution_keeps(box_nms_thresh):
    settings = {"points_per_side": 6, "points_per_batch": 36, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.5}
    low, full = (
        Discs(PointGrid(**settings, box_nms_thresh=box_nms_thresh, full_resolution=full)) for full in (False, True)
    )
    found = full._candidates(picture(192, 256))
    assert 10 < len(found) < 30  # of 36
    assert torch.equal(low._candidates(picture(192, 256)), found)
    assert torch.equal(low.masks(picture(192, 256)), full.masks(picture(192, 256)))


def test_how_far_low_resolution_scores_are_off():
    source = Discs(PointGrid())
    logits, _ = source.decode((192, 256), torch.rand(40, 2, generator=torch.Generator().manual_seed(0)))
    logits, size = logits[:, 0], (192, 256)
    rows, columns = source.inside(size, (64, 64))
    low, full = logits[:, :rows, :columns], source.enlarge(logits, size)
    rim = ((low > -1.0) & (low <= 0)).sum((1, 2)) / (low > -1.0).sum((1, 2))
    assert ((stability(low, 1.0) - stability(full, 1.0)).abs() < 0.25 * rim).all()
    boxes = mask_boxes(low > 0) + torch.tensor([0, 0, 1, 1])
    assert (boxes * 4 - (mask_boxes(full > 0) + torch.tensor([0, 0, 1, 1]))).abs().max() <= 4


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_chunks_and_batches_leave_the_masks(order, monkeypatch):
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.3}
    whole = Discs(PointGrid(**settings), order).masks(picture(30, 40))
    monkeypatch.setattr("lightning_modules.backbones.mask_points.CHUNK_PIXELS", 1)
    assert torch.equal(Discs(PointGrid(**settings), order).masks(picture(30, 40)), whole)
    assert len(whole.unique()) > 5
    prints = {Discs(PointGrid(points_per_batch=n, **settings), order).fingerprint() for n in (1, 64)}
    assert len(prints) == 1


def test_small_regions_are_filled_and_cut_off():
    mask = np.zeros((8, 9), dtype=bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False  # a hole of one pixel
    mask[7, 8] = True  # an island of one pixel
    after = without_small_regions(mask, 2)
    expected = np.zeros_like(mask)
    expected[1:6, 1:6] = True
    np.testing.assert_array_equal(after, expected)
    assert without_small_regions(mask, 1) is mask
    specks = np.array([[1, 0, 0, 1, 1]], dtype=bool)
    assert without_small_regions(specks, 9).all()  # the gap is a small hole, and then nothing is small
    assert without_small_regions(np.array([[1, 0, 0, 1, 1]] + [[0] * 5] * 3, dtype=bool), 4)[0].tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]
    cleaned = Discs(PointGrid(4, pred_iou_thresh=0, stability_score_thresh=0, min_mask_region_area=30)).masks(picture())
    assert cleaned.max() > 3


@pytest.fixture(scope="module")
def sam_checkpoint(tmp_path_factory):
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(
        img_size=64,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        out_chans=16,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    decoder = MaskDecoder(
        transformer_dim=16, transformer=TwoWayTransformer(2, 16, 8, 32), iou_head_depth=2, iou_head_hidden_dim=24
    )
    sam = noisy(Sam(encoder, PromptEncoder(16, (8, 8), (64, 64), 4), decoder))
    path = tmp_path_factory.mktemp("sam") / "tiny.pth"
    torch.save(sam.state_dict(), path)
    return path, sam


@pytest.mark.parametrize("settings", [{}, {"box_nms_thresh": 0.999}, {"pred_iou_thresh": 1.0}])
def test_sam_equals_the_generator_of_segment_anything(sam_checkpoint, settings):
    from segment_anything import SamAutomaticMaskGenerator

    path, sam = sam_checkpoint
    settings = {
        "points_per_side": 5,
        "points_per_batch": 7,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.3,
        "stability_score_offset": 0.05,
        "box_nms_thresh": 1.0,
        **settings,
    }
    records = SamAutomaticMaskGenerator(sam, **settings).generate(picture().permute(1, 2, 0).numpy())
    expected = naive_paint([record["segmentation"] for record in records])
    assert len(records) > 5 or settings["box_nms_thresh"] < 1  # all these boxes are nearly the same
    source = SegmentAnything(str(path), PointGrid(**settings, full_resolution=True), device="cpu")
    np.testing.assert_array_equal(source.masks(picture()).numpy(), expected)


def test_sam_alone_judges_at_its_own_resolution(sam_checkpoint):
    path, _ = sam_checkpoint
    points = PointGrid(4, pred_iou_thresh=0.0, stability_score_thresh=0.2, stability_score_offset=0.05, multimask=False)
    source = SegmentAnything(str(path), points, device="cpu")
    assert source.inside((45, 70), (32, 32)) == (21, 32)  # 45 x 70 is scaled to 41 x 64, of 32 / 64 each
    assert source.masks(picture()).shape == (45, 70)
    assert source.name == "sam tiny 4"
    assert SegmentAnything(str(path), points, precision="bf16-mixed", device="cpu").masks(picture()).shape == (45, 70)
    assert source.fingerprint() == SegmentAnything(str(path), points).fingerprint()
    assert source.fingerprint() != SegmentAnything(str(path), points, "descending").fingerprint()
    nothing = SegmentAnything(str(path), PointGrid(2, pred_iou_thresh=1e6), device="cpu")
    assert nothing.masks(picture(1, 1)).tolist() == [[0]]


def test_sam_files_that_will_not_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(FileNotFoundError, match=r"sam_vit_b_01ec64.pth .*dl.fbaipublicfiles.com.*checkpoint: /path/to"):
        SegmentAnything("vit_b").fingerprint()
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        SegmentAnything(str(tmp_path / "none.pth")).masks(picture())
    with pytest.raises(ValueError, match="Nearest: vit_"):
        SegmentAnything("vit_x").masks(picture())
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no SAM"):
        SegmentAnything(str(tmp_path / "other.pth")).masks(picture())
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="damaged"):
        SegmentAnything(str(tmp_path / "cut.pth")).masks(picture())
    with pytest.raises(ValueError, match="precision is '8'"):
        SegmentAnything(precision="8")
    with pytest.raises(ValueError, match="at least 1"):
        PointGrid(points_per_side=0)


DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
PROMPTS = {"hidden_size": 16, "mask_input_channels": 4}
NECK = {"fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}


def tiny_sam2():
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [3],
    }
    vision = {"model_type": "sam2_vision_model", "backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8]}
    config = Sam2Config(
        vision_config={**vision, **NECK},
        prompt_encoder_config={**PROMPTS, "image_size": 64, "patch_size": 16},
        mask_decoder_config=DECODER,
    )
    return Sam2, Sam2Model(config), Sam2ImageProcessor, 64


def tiny_sam3():
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel

    vit = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "pretrain_image_size": 56,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    config = Sam3TrackerConfig(
        vision_config={"model_type": "sam3_vision_model", "backbone_config": vit, **NECK},
        prompt_encoder_config={**PROMPTS, "image_size": 56, "patch_size": 14},
        mask_decoder_config=DECODER,
    )
    return Sam3, Sam3TrackerModel(config), Sam3ImageProcessor, 56


@pytest.mark.parametrize("build", [tiny_sam2, tiny_sam3])
def test_sam2_and_sam3_equal_one_point_after_the_other(build, tmp_path):
    from torchvision.ops import nms

    kind, model, processor, side = build()
    noisy(model).save_pretrained(tmp_path)
    image = picture()
    pixels = processor(size={"height": side, "width": side})(images=image, return_tensors="pt")["pixel_values"]
    kept = []
    for row in range(3):
        for column in range(3):
            point = torch.tensor([[[[(column + 0.5) / 3 * side, (row + 0.5) / 3 * side]]]])
            with torch.no_grad():
                found = model(
                    pixel_values=pixels, input_points=point, input_labels=torch.ones(1, 1, 1, dtype=torch.int)
                )
            for low, quality in zip(found.pred_masks[0, 0], found.iou_scores[0, 0], strict=True):
                logits = F.interpolate(low[None, None], (45, 70), mode="bilinear")[0, 0]
                inner, outer = int((logits > 0.05).sum()), int((logits > -0.05).sum())
                mask = logits > 0
                if quality > -1.0 and outer and inner / outer >= 0.3 and mask.any():
                    ys, xs = mask.nonzero().unbind(1)
                    kept.append((mask.numpy(), [xs.min(), ys.min(), xs.max(), ys.max()], quality))
    boxes, scores = torch.tensor([box for _, box, _ in kept]).float(), torch.stack([q for *_, q in kept])
    survivors = [kept[i][0] for i in nms(boxes, scores, 1.0).tolist()]
    assert len(survivors) > 1
    points = PointGrid(3, 4, 0.0, 0.3, 0.05, 1.0, multimask=True, full_resolution=True)
    source = kind(str(tmp_path), points, device="cpu")
    source.model.mask_decoder.iou_prediction_head.proj_out.bias.data += 1.0  # quality > -1 above is quality > 0 here
    np.testing.assert_array_equal(source.masks(image).numpy(), naive_paint(survivors))
    assert kind(str(tmp_path), device="cpu").masks(image).shape == (45, 70)
    assert source.fingerprint() == kind(str(tmp_path), points).fingerprint() != kind(str(tmp_path)).fingerprint()


def test_checkpoints_of_transformers_that_are_missing_or_wrong(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"config.json, model.safetensors from https://huggingface.co/facebook/sam2"
    ):
        Sam2().fingerprint()
    with pytest.raises(FileNotFoundError, match=r"path: /path/to/sam3 \(its licence"):
        Sam3().masks(picture())
    with pytest.raises(FileNotFoundError, match=r"get config.json, preprocessor_config.json, model.safetensors"):
        PanopticModel().masks(picture())
    with pytest.raises(FileNotFoundError, match=r"incomplete: config\.json, model\.safetensors missing"):
        Sam2(str(tmp_path)).masks(picture())
    _, model, _, _ = tiny_sam3()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="kind 'sam3_tracker'; masks are made with mask2former, eomt"):
        PanopticModel(str(tmp_path)).masks(picture())
    (tmp_path / "model.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="damaged"):
        Sam3(str(tmp_path), device="cpu").masks(picture())


def tiny_mask2former(folder):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    swin = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=8,
        num_labels=3,
    )
    noisy(Mask2FormerForUniversalSegmentation(config), 0.3).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def tiny_eomt(folder):
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=6,
        num_upscale_blocks=1,
        num_register_tokens=1,
        num_labels=3,
    )
    noisy(EomtForUniversalSegmentation(config), 0.3).save_pretrained(folder)
    EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True).save_pretrained(folder)


@pytest.mark.parametrize("write", [tiny_mask2former, tiny_eomt])
def test_panoptic_segments(write, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    write(tmp_path)
    source = PanopticModel(str(tmp_path), threshold=0.0, overlap_threshold=0.0, device="cpu")
    ids = source.masks(picture())
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        outputs = model(pixel_values=processor(images=picture(), return_tensors="pt")["pixel_values"])
    segments = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.0, overlap_mask_area_threshold=0.0, target_sizes=[(45, 70)]
    )[0]["segmentation"]
    none = 0 if write is tiny_mask2former else -1
    assert torch.equal(ids == 0, segments == none)
    pairs = torch.stack([ids.flatten(), segments.long().flatten()]).unique(dim=1)
    assert pairs.shape[1] == len(segments.unique()) > 2
    assert (ids.flatten().bincount()[1:].diff() >= 0).all()
    assert PanopticModel(str(tmp_path), threshold=2.0, device="cpu").masks(picture()).eq(0).all()
    assert source.fingerprint() != PanopticModel(str(tmp_path)).fingerprint()


# Files


def test_files_are_read_as_they_are(tmp_path):
    ids = np.arange(6).reshape(2, 3) * 1000
    image = picture(2, 3)
    np.savez(tmp_path / "a.npz", instance_mask=ids.astype(np.float32))
    np.savez(tmp_path / "b.npz", mine=ids.astype(np.int32))
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "c.png")
    palette = Image.fromarray((ids // 1000).astype(np.uint8), mode="P")
    palette.putpalette(list(range(255, 255 - 18, -1)))
    palette.save(tmp_path / "d.png")
    source = PregeneratedMasks(str(tmp_path))
    assert source.masks(image, "a").tolist() == ids.tolist()
    assert PregeneratedMasks(str(tmp_path), key="mine").masks(image, "b").tolist() == ids.tolist()
    assert source.masks(image, "c").tolist() == ids.tolist()
    assert source.masks(image, "d").tolist() == (ids // 1000).tolist()
    assert source.fingerprint() is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3)), r"shape \(3, 3\), the picture \(2, 3\)"),
        (np.zeros((3, 2)), "EXIF"),
        (np.zeros((1, 2, 3)), r"shape \(1, 2, 3\)"),
        (np.full((2, 3), -1), "id -1; write 0"),
        (np.full((2, 3), 65535), "65535; the largest is 65534"),  # which pads windows
        (np.full((2, 3), 0.5), "no whole numbers"),
        (np.full((2, 3), np.nan), "no whole numbers"),
        (np.full((2, 3), "a"), "no whole numbers"),
    ],
)
def test_bad_id_maps(array, message, tmp_path):
    np.savez(tmp_path / "a.npz", instance_mask=array)
    with pytest.raises(ValueError, match=message):
        PregeneratedMasks(str(tmp_path)).masks(picture(2, 3), "a")


def test_bad_files(tmp_path):
    source = PregeneratedMasks(str(tmp_path))
    np.savez(tmp_path / "key.npz", masks=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"no array .instance_mask.; it holds masks\. Set key"):
        source.masks(picture(2, 3), "key")
    whole = (tmp_path / "key.npz").read_bytes()
    for name, data in (("cut.npz", whole[:-30]), ("text.npz", b"hello"), ("empty.npz", b""), ("no.png", b"hello")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            source.masks(picture(2, 3), name.split(".")[0])
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="mode RGB"):
        source.masks(picture(2, 3), "colour")
    with pytest.raises(FileNotFoundError, match=r"neither nothing\.npz nor nothing\.png"):
        source.masks(picture(2, 3), "nothing")
    with pytest.raises(ValueError, match="by the picture's file name"):
        source.masks(picture(2, 3))
    with pytest.raises(FileNotFoundError, match="dk258/CorrCLIP"):
        PregeneratedMasks(str(tmp_path / "none"))
