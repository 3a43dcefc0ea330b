"""SigLIP2 through transformers: fixed-resolution checkpoints, from the hub or a local folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from lightning_modules.backbones.encoder import FrozenEncoder, Precision, Towers
from lightning_modules.backbones.weights import quick_hub

FILES = "config.json, model.safetensors, preprocessor_config.json, tokenizer.json and tokenizer_config.json"


class _Transform:
    """A transformers image processor as a function of one image; a class, so that loader workers can receive it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels ``(3, H, W)`` of an RGB image."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def _pooled(output: Any) -> Tensor:
    """The embedding: transformers 5 wraps it in an output object, 4 returned it bare."""
    return output if isinstance(output, Tensor) else output.pooler_output


class Siglip2(FrozenEncoder):
    """A SigLIP or SigLIP2 model, frozen.

    Texts are lower-cased and padded on the right to the tower's full length (64 tokens), without an attention mask,
    as in training; embeddings of texts padded otherwise are wrong.

    Args:
        path: Hub id of a fixed-resolution checkpoint, or a local folder with its files.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``.
        compile: Run both towers through ``torch.compile``.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Reference:
        Tschannen et al., SigLIP 2: Multilingual Vision-Language Encoders, arXiv:2502.14786.
    """

    def __init__(
        self,
        path: str = "google/siglip2-base-patch16-256",
        precision: Precision = "32-true",
        compile: bool = False,
        device: str = "auto",
    ) -> None:
        super().__init__(precision, compile, device)
        self.path = path

    @property
    def label(self) -> str:
        """The checkpoint's name."""
        return Path(self.path).name

    @property
    def embed_dim(self) -> int:
        """Length of the embeddings."""
        # The vision tower has no projection of its own: its width is the embedding's length.
        return int(self.towers.model.config.vision_config.hidden_size)

    def load(self) -> Towers:
        """Build the model and its two preprocessors.

        Raises:
            FileNotFoundError: The checkpoint is not here and cannot be downloaded.
            ValueError: Damaged or missing weights, or a checkpoint of another kind.
        """
        with quick_hub():
            model, tokenizer, processor = self._read()
        tokenizer.padding_side = "right"
        length = model.config.text_config.max_position_embeddings

        def tokenize(texts: list[str]) -> Tensor:
            lowered = [text.lower() for text in texts]
            return tokenizer(lowered, padding="max_length", truncation=True, max_length=length, return_tensors="pt")[
                "input_ids"
            ]

        vision, text = model.vision_model, model.text_model
        settings = {k: v for k, v in processor.to_dict().items() if isinstance(v, (int, float, str, list, dict))}
        return Towers(
            model=model,
            image=lambda pixels: _pooled(model.get_image_features(pixel_values=pixels)),
            text=lambda tokens: _pooled(model.get_text_features(input_ids=tokens)),
            tokenize=tokenize,
            transform=_Transform(processor),
            preprocessing=json.dumps({**settings, "text": f"lower, {length} tokens"}, sort_keys=True, default=str),
            image_blocks=tuple(vision.encoder.layers),
            text_blocks=tuple(text.encoder.layers),
            image_head=tuple(
                part for part in (vision.post_layernorm, getattr(vision, "head", None)) if part is not None
            ),
            text_head=(text.final_layer_norm, text.head),
            visual=vision,
            mean=processor.image_mean,
            std=processor.image_std,
        )

    def _read(self) -> tuple[Any, Any, Any]:
        """Model, tokenizer and image processor, complete and of the right kind."""
        self._check_folder()
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        try:
            kind = AutoConfig.from_pretrained(self.path).model_type
            if kind != "siglip":
                hint = "a variable-resolution (NaFlex) checkpoint" if kind == "siglip2" else f"of the kind '{kind}'"
                raise ValueError(
                    f"{self.path} is {hint}; a fixed-resolution SigLIP or SigLIP2 checkpoint is needed, such as "
                    "google/siglip2-base-patch16-256."
                )
            model, info = AutoModel.from_pretrained(self.path, output_loading_info=True)
            # One by one: the joint processor's class differs between checkpoint and library version and may fail.
            tokenizer = AutoTokenizer.from_pretrained(self.path)
            processor = AutoImageProcessor.from_pretrained(self.path)
        except SafetensorError as error:
            raise ValueError(f"The weights in {self.path} are damaged ({error}). Download them again.") from error
        except OSError as error:
            raise FileNotFoundError(self._missing(error)) from error
        # transformers gives missing weights random values and only warns.
        if lost := sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", ())):
            raise ValueError(
                f"The weights in {self.path} do not fit their config.json: missing or misshapen {lost[:3]}."
            )
        return model, tokenizer, processor

    def _check_folder(self) -> None:
        """Refuse a local folder that lacks files; transformers would look for them on the hub or guess."""
        folder = Path(self.path)
        if not folder.is_dir():
            return
        needed = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
        lost = [name for name in needed if not (folder / name).is_file()]
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "spiece.model")):
            lost.append("tokenizer.json")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            lost.append("model.safetensors")
        if lost:
            raise FileNotFoundError(f"The folder {folder} is incomplete: {', '.join(lost)} missing. It needs {FILES}.")

    def _missing(self, error: OSError) -> str:
        """Which files to put where."""
        if Path(self.path).is_dir():
            return f"The folder {self.path} cannot be read ({str(error).splitlines()[0]}). It needs {FILES}."
        return (
            f"SigLIP checkpoint '{self.path}' is no folder here and could not be downloaded. On a machine with network "
            f"get {FILES} from https://huggingface.co/{self.path}, copy them into one folder, and set "
            f"path: /path/to/{Path(self.path).name}"
        )
