"""Folders of tiny random transformers detectors, as save_pretrained writes them, the quickest family first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FAMILIES = ("yolos", "lw_detr", "rt_detr_v2", "d_fine")
SIZE = 64  # pixels of the square pictures that all of them take


def _config(family: str, num_classes: int) -> Any:
    import transformers

    if family == "yolos":
        return transformers.YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=[SIZE, SIZE],
            patch_size=16,
            num_detection_tokens=12,
            num_labels=num_classes,
        )
    if family == "lw_detr":
        backbone = transformers.LwDetrViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIZE,
            pretrain_image_size=SIZE,
            patch_size=16,
            num_windows=4,
            window_block_indices=[0],
            out_features=["stage1", "stage2"],
        )
        return transformers.LwDetrConfig(
            backbone_config=backbone,
            projector_scale_factors=[1.0],
            c2f_num_blocks=1,
            d_model=32,
            decoder_ffn_dim=64,
            decoder_layers=2,
            decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2,
            num_queries=12,
            group_detr=3,
            num_labels=num_classes,
        )
    shared = {
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [32, 48, 64],
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "hidden_expansion": 0.5,
        "d_model": 32,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "num_queries": 12,
        "num_denoising": 4,
        "num_labels": num_classes,
    }
    if family == "rt_detr_v2":
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        return transformers.RTDetrV2Config(backbone_config=backbone, **shared)
    if family == "d_fine":
        backbone = transformers.HGNetV2Config(
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            stem_channels=[3, 8, 16],
            stage_in_channels=[16, 16, 32, 48],
            stage_mid_channels=[8, 8, 16, 16],
            stage_out_channels=[16, 32, 48, 64],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        )
        return transformers.DFineConfig(backbone_config=backbone, depth_mult=0.34, max_num_bins=8, **shared)
    raise ValueError(f"family is {family!r}; known: {', '.join(FAMILIES)}.")


def save_detector(folder: Path, family: str = "yolos", num_classes: int = 3, seed: int = 0) -> Path:
    """Write config.json and model.safetensors of one of FAMILIES into ``folder``, without an image processor."""
    from transformers import AutoModelForObjectDetection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForObjectDetection.from_config(_config(family, num_classes))
    model.save_pretrained(folder)
    return folder
