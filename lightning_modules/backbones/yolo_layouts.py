"""What exports of YOLOX and of Ultralytics' YOLOs take and give: letter-boxed pictures, rows of boxes and scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_convert

PADDING = 114.0  # grey of the border, in 0..255
STRIDES = (8, 16, 32)  # pixels between the places of each level

Size = tuple[int, int]  # height and width
Decoded = tuple[Tensor, Tensor]  # boxes (N, 4) xyxy in pixels of the letter-boxed picture, scores (N, C)


@dataclass(frozen=True)
class Letterbox:
    """A picture in the network's frame: shrunk or enlarged in proportion, the rest grey.

    Args:
        pixels: (3, h, w) float32 RGB in 0..255.
        scale: Width and height of a pixel of the picture in the frame.
        start: Left and top edge of the picture in the frame.
    """

    pixels: Tensor
    scale: tuple[float, float]
    start: tuple[int, int]

    def to_picture(self, boxes: Tensor) -> Tensor:
        """Boxes of the frame in pixels of the picture, not clipped.

        Args:
            boxes: (n, 4) xyxy.

        Returns:
            (n, 4) xyxy.
        """
        return (boxes - boxes.new_tensor(self.start * 2)) / boxes.new_tensor(self.scale * 2)


def letterbox(picture: Tensor, frame: Size, centred: bool) -> Letterbox:
    """Fit a picture into a frame.

    Args:
        picture: (3, H, W) uint8 RGB.
        frame: Height and width of the network's input.
        centred: Same border on both sides, sides rounded to the nearest pixel (Ultralytics), or all of it at the
            right and the bottom, sides rounded down (YOLOX).

    Returns:
        The picture and where it lies.

    >>> fitted = letterbox(torch.full((3, 10, 20), 7, dtype=torch.uint8), (8, 8), centred=True)
    >>> fitted.start, fitted.scale, fitted.pixels[0, :, 0].tolist()
    ((0, 2), (0.4, 0.4), [114.0, 114.0, 7.0, 7.0, 7.0, 7.0, 114.0, 114.0])
    """
    height, width = picture.shape[1:]
    ratio = min(frame[0] / height, frame[1] / width)
    rounded = round if centred else int
    inner = max(1, rounded(height * ratio)), max(1, rounded(width * ratio))
    pixels = picture.float()
    if inner != (height, width):
        # Without antialias, as both were trained; to whole values, as their pictures are of eight bits.
        pixels = interpolate(pixels[None], size=inner, mode="bilinear")[0].round()
    top, left = ((frame[0] - inner[0]) // 2, (frame[1] - inner[1]) // 2) if centred else (0, 0)
    full = pixels.new_full((3, *frame), PADDING)
    full[:, top : top + inner[0], left : left + inner[1]] = pixels
    return Letterbox(full, (inner[1] / width, inner[0] / height), (left, top))


def yolox_rows(frame: Size, num_classes: int) -> Size:
    """Shape of what a YOLOX export gives for a picture.

    Args:
        frame: Height and width of the input.
        num_classes: C.

    Returns:
        Number N of places, and 5 + C.

    >>> yolox_rows((416, 416), 80)
    (3549, 85)
    """
    return sum((frame[0] // stride) * (frame[1] // stride) for stride in STRIDES), 5 + num_classes


def decode_yolox(output: Tensor, frame: Size) -> Decoded:
    """Boxes and scores of YOLOX's output, as its export leaves it: offsets in places, logarithms of sides in places.

    Args:
        output: (N, 5 + C) float32: centre, sides, objectness and classes; the places of each level row by row.
        frame: Height and width of the input.

    Returns:
        Boxes and scores; a score is objectness times class.

    Reference:
        Ge et al., YOLOX: Exceeding YOLO Series in 2021, arXiv:2107.08430.

    >>> row = torch.tensor([[0.5, 0.25, 0.0, 0.0, 0.5, 0.5]])
    >>> output = torch.cat([torch.zeros(16 + 4, 6), row])  # the only place of the coarsest level
    >>> boxes, scores = decode_yolox(output, (32, 32))
    >>> boxes[-1].tolist(), scores[-1].tolist()
    ([0.0, -8.0, 32.0, 24.0], [0.25])
    """
    corners, steps = [], []
    for stride in STRIDES:
        rows, columns = torch.arange(frame[0] // stride), torch.arange(frame[1] // stride)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corners.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        steps.append(torch.full((y.numel(), 1), float(stride)))
    place, step = torch.cat(corners), torch.cat(steps)  # (N, 2), (N, 1)
    centres, sides = (output[:, :2] + place) * step, output[:, 2:4].exp() * step
    boxes = box_convert(torch.cat([centres, sides], dim=1), "cxcywh", "xyxy")
    return boxes, output[:, 4:5] * output[:, 5:]


def yolov8_rows(frame: Size, num_classes: int) -> Size:
    """Shape of what an Ultralytics export gives for a picture.

    Args:
        frame: Height and width of the input.
        num_classes: C.

    Returns:
        4 + C, and number N of places.

    >>> yolov8_rows((640, 640), 80)
    (84, 8400)
    """
    return 4 + num_classes, yolox_rows(frame, num_classes)[0]


def decode_yolov8(output: Tensor, frame: Size) -> Decoded:
    """Boxes and scores of the output of Ultralytics' YOLOv8 and YOLO11 exports.

    Args:
        output: (4 + C, N) float32: centre and sides in pixels of the frame, then classes in 0..1.
        frame: Not needed: the boxes are in pixels already.

    Returns:
        Boxes and scores.

    >>> boxes, scores = decode_yolov8(torch.tensor([[5.0], [4.0], [2.0], [8.0], [0.7]]), (32, 32))
    >>> boxes.tolist(), scores.shape
    ([[4.0, 0.0, 6.0, 8.0]], torch.Size([1, 1]))
    """
    return box_convert(output[:4].T, "cxcywh", "xyxy"), output[4:].T


@dataclass(frozen=True)
class Layout:
    """How one kind of export is fed and read.

    Args:
        centred: See ``letterbox``.
        prepare: (3, h, w) RGB in 0..255 to what the network takes.
        rows: Frame and number of classes to the shape of its output for one picture.
        decode: That output and the frame to boxes and scores.
    """

    centred: bool
    prepare: Callable[[Tensor], Tensor]
    rows: Callable[[Size, int], Size]
    decode: Callable[[Tensor, Size], Decoded]


LAYOUTS = {
    "yolox": Layout(False, lambda pixels: pixels.flip(0), yolox_rows, decode_yolox),  # BGR
    "yolov8": Layout(True, lambda pixels: pixels / 255, yolov8_rows, decode_yolov8),
}
