"""SAM of the segment-anything package as a mask source."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.backbones.encoder import AUTOCAST, Precision
from lightning_modules.backbones.mask_points import PointGrid, PointMasks
from lightning_modules.backbones.mask_weights import check_precision, files_hash, resolve_device, sam_file
from lightning_modules.backbones.masks import Order
from lightning_modules.backbones.weights import tensor_shapes

SAM_POINTS = PointGrid()


def build_sam(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A SAM of the size that its weights tell, with random weights.

    Args:
        shapes: Shape of each tensor of a checkpoint of the segment-anything package.

    Returns:
        segment-anything's ``Sam``: ViT-B, L, H, or any other width, depth, resolution and window.

    Raises:
        KeyError: These are no weights of a SAM.
    """
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})

    width, _, _, patch = shapes["image_encoder.patch_embed.proj.weight"]
    grid, depth = shapes["image_encoder.pos_embed"][1], count("image_encoder.blocks.")
    # A block's relative positions reach over its window, or over the whole grid.
    reach = [(shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"][0] + 1) // 2 for i in range(depth)]
    channels = shapes["image_encoder.neck.0.weight"][0]
    encoder = ImageEncoderViT(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // shapes["image_encoder.blocks.0.attn.rel_pos_h"][1],
        mlp_ratio=shapes["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        out_chans=channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=min(reach),
        global_attn_indexes=tuple(i for i, each in enumerate(reach) if each == grid),
    )
    decoder = MaskDecoder(
        transformer_dim=channels,
        transformer=TwoWayTransformer(
            depth=count("mask_decoder.transformer.layers."),
            embedding_dim=channels,
            num_heads=8,
            mlp_dim=shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        ),
        num_multimask_outputs=shapes["mask_decoder.mask_tokens.weight"][0] - 1,
        iou_head_depth=count("mask_decoder.iou_prediction_head.layers."),
        iou_head_hidden_dim=shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    )
    prompts = PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(grid * patch, grid * patch),
        mask_in_chans=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
    )
    return Sam(encoder, prompts, decoder)


def load_sam(path: Path) -> nn.Module:
    """A SAM with its weights, in evaluation mode.

    Args:
        path: A checkpoint of the segment-anything package.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds another model.
    """
    shapes = tensor_shapes(path)
    try:
        sam = build_sam(shapes)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            sam.load_state_dict(load_file(path))
        else:
            sam.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (KeyError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ValueError(
            f"Weight file {path} holds no SAM of the segment-anything package ({detail}). Take one of its published "
            "checkpoints, vit_b, vit_l or vit_h; those of SAM 2 and 3 go through the sources Sam2 and Sam3."
        ) from error
    return sam.eval().requires_grad_(False)


class SegmentAnything(PointMasks):
    """Automatic masks of SAM, as segment-anything's own generator makes them without crops.

    Args:
        checkpoint: ``vit_b``, ``vit_l`` or ``vit_h`` (downloaded once), or the path of a checkpoint of any size.
        points: The grid of points and all thresholds.
        order: Painting order by area; ``ascending`` lets large masks cover small ones, as CorrCLIP does.
        precision: ``32-true``, or autocast to ``16-mixed`` or ``bf16-mixed``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Kirillov et al., Segment Anything, ICCV 2023.
    """

    def __init__(
        self,
        checkpoint: str = "vit_h",
        points: PointGrid = SAM_POINTS,
        order: Order = "ascending",
        precision: Precision = "32-true",
        device: str = "auto",
    ) -> None:
        super().__init__(points, order)
        check_precision(precision)
        self.checkpoint, self.precision, self.device_name = checkpoint, precision, device

    @property
    def name(self) -> str:
        """``sam``, its weights and the points along a side."""
        return f"sam {Path(self.checkpoint).stem} {self.points.points_per_side}"

    @cached_property
    def path(self) -> Path:
        """The weight file."""
        return sam_file(self.checkpoint)

    @cached_property
    def predictor(self) -> Any:
        """segment-anything's ``SamPredictor``, loaded at first use."""
        from segment_anything import SamPredictor

        return SamPredictor(load_sam(self.path).to(resolve_device(self.device_name)))

    @cached_property
    def _hash(self) -> str:
        return files_hash([self.path])

    def settings(self) -> dict[str, Any]:
        """Thresholds, painting order, precision and the hash of the weight file."""
        return {**self.point_settings(), "precision": self.precision, "weights": self._hash}

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.precision]
        return torch.autocast(self.predictor.device.type, dtype=dtype, enabled=dtype is not None)

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features of a picture ``(3, H, W)`` uint8, and the size it was scaled to."""
        with self._autocast():
            self.predictor.set_image(image.permute(1, 2, 0).cpu().numpy())
        return self.predictor.features, self.predictor.input_size

    def decode(self, embedding: tuple[Tensor, tuple[int, int]], points: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of points, see :class:`PointMasks`."""
        sam, (features, (height, width)) = self.predictor.model, embedding
        place = (points * torch.tensor([width, height])).to(features.device, torch.float32)[:, None]  # (P, 1, 2)
        with self._autocast():
            sparse, dense = sam.prompt_encoder(
                points=(place, torch.ones(place.shape[:2], dtype=torch.int, device=place.device)),
                boxes=None,
                masks=None,
            )
            logits, quality = sam.mask_decoder(
                image_embeddings=features,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=self.points.multimask,
            )
        return logits.float(), quality.float()

    def inside(self, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """SAM pads the shorter side at its end."""
        rows, columns = self.predictor.transform.get_preprocess_shape(*size, self._side)
        return -(-rows * grid[0] // self._side), -(-columns * grid[1] // self._side)

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits at the picture's size, by way of the encoder's size, as SAM does."""
        scaled = self.predictor.transform.get_preprocess_shape(*size, self._side)
        return self.predictor.model.postprocess_masks(logits[:, None], scaled, size)[:, 0]

    @property
    def _side(self) -> int:
        return self.predictor.model.image_encoder.img_size
