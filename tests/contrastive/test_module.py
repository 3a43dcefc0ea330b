"""The tower's two outputs, the scores, and a fit that learns."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from processes import launch

from datamodules.scenes import Scenes
from lightning_modules.backbones.tiny import build_tiny_clip, load_tiny_clip
from lightning_modules.contrastive.evaluation import (
    pixel_average_precision,
    presence_average_precision,
    recall_at_1,
)
from lightning_modules.contrastive.module import ContrastivePretraining
from lightning_modules.contrastive.networks import embeddings_and_values


def test_embedding_is_the_towers_own_and_values_are_the_value_path():
    torch.manual_seed(0)
    clip = build_tiny_clip().eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        embedding, values = embeddings_and_values(clip.visual, images)
        assert torch.allclose(embedding, clip.encode_image(images), atol=1e-5)
        last = clip.visual.transformer.resblocks[-1]
        seen = []
        last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        clip.encode_image(images)
        # attention restricted to the token itself leaves its own value
        tokens = last.ln_1(seen[0])
        alone = torch.full((145, 145), float("-inf")).fill_diagonal_(0)
        own = last.attn(tokens, tokens, tokens, attn_mask=alone, need_weights=False)[0]
        expected = clip.visual.ln_post(own)[:, 1:] @ clip.visual.proj
    assert values.shape == (2, 144, 128)
    assert torch.allclose(values, expected, atol=1e-5)


def test_pixel_average_precision_of_a_perfect_and_an_inverted_map():
    semantic = torch.zeros(1, 8, 8, dtype=torch.uint8)
    semantic[0, :4] = 2
    perfect = torch.zeros(1, 64, 3)
    perfect[0, :32, 1] = 1
    assert pixel_average_precision(perfect, semantic).tolist() == [[1, 1.0, 0.5]]
    inverted = pixel_average_precision(-perfect, semantic)[0, 1].item()
    assert inverted == pytest.approx(0.5)  # two score levels; the truth is the lower one, so all pixels tie into it


def test_presence_average_precision_of_a_class_that_no_image_holds_is_unknown():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert presence_average_precision(similarity, labels) == pytest.approx([1.0, math.nan, 0.5], nan_ok=True)


@pytest.mark.slow
def test_a_run_in_bfloat16_that_is_resumed_draws_the_phrases_of_an_undisturbed_one(tmp_path):
    drawn = []

    class Module(ContrastivePretraining):
        def _named_concepts(self, batch_idx):
            drawn.append(super()._named_concepts(batch_idx))
            return drawn[-1]

    class Save(Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    seed_everything(0)
    for checkpoint in (None, tmp_path / "a.ckpt"):
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            precision="bf16-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            callbacks=[Save()],
        )
        trainer.fit(Module(), Scenes(num_train=4, batch_size=2), ckpt_path=checkpoint)
    assert len({tuple(phrases) for phrases in drawn[:4]}) == 4
    assert drawn[4:] == drawn[2:4]


def test_recall_at_1_counts_own_captions():
    image = torch.eye(4)
    text = torch.eye(4)[[1, 0, 2, 3]]
    assert recall_at_1(image, text) == 0.5


@pytest.mark.slow
def test_fit_learns_writes_weights_and_they_load(tmp_path):
    seed_everything(0)
    path = str(tmp_path / "tiny.safetensors")
    module = ContrastivePretraining(lr=1e-3, export="tiny.safetensors")  # in the folder of the run
    data = Scenes(num_train=192, num_val=32, num_test=32, batch_size=16)
    trainer = Trainer(
        max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]
    assert set(after) == {
        f"val/{n}" for n in ("presence_ap", "presence_prior", "pixel_ap", "pixel_prior", "recall_at_1")
    }
    assert after["val/presence_ap"] > before["val/presence_ap"] - 0.05
    assert trainer.callback_metrics["val/presence_prior"] == pytest.approx(before["val/presence_prior"])
    loaded = load_tiny_clip(path)
    for name, value in module.clip.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, atol=2e-3, rtol=2e-3), name


DDP_RUN = """
import sys
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from datamodules.scenes import Scenes
from lightning_modules.backbones.tiny import load_tiny_clip
from lightning_modules.contrastive import ContrastivePretraining


class KeepGradients(Callback):
    def on_after_backward(self, trainer, module):
        if trainer.is_global_zero:
            torch.save({name: p.grad for name, p in module.named_parameters()}, sys.argv[1])


processes = int(sys.argv[2])
seed_everything(0, verbose=False)
module = ContrastivePretraining(patch_dropout=0.0)
trainer = Trainer(
    max_steps=1, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    callbacks=[KeepGradients()],
)
trainer.fit(module, Scenes(num_train=8, batch_size=8 // processes))
module.clip.load_state_dict(load_tiny_clip().state_dict())
scores = trainer.test(module, Scenes(num_test=9, batch_size=4), verbose=False)[0]
if trainer.is_global_zero:
    torch.save(scores, sys.argv[1] + ".scores")
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_batch_and_its_scores(tmp_path):
    for processes in (1, 2):
        launch(DDP_RUN, processes, tmp_path / f"{processes}.pt")
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert one["clip.visual.proj"].abs().max() > 1e-4
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5)
    # 9 scenes: the sampler gives two processes 5 each, one scene twice
    one, two = (torch.load(tmp_path / f"{processes}.pt.scores") for processes in (1, 2))
    assert two == pytest.approx(one, abs=1e-5)
