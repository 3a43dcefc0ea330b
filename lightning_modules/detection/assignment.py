"""Which cells of a detector's grids learn which object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

REACH = 8  # an object goes to the finest grid on which its longer side is at most so many cells
AROUND = (-1, 0, 1)  # cells about the one that holds an object's centre


def cell_centres(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Tensor:
    """Centres of all cells, grid after grid, row after row.

    Args:
        sizes: Rows and columns of each grid.
        strides: Side of its cells in pixels.
        device: Where the tensor goes.

    Returns:
        (P, 3): x and y in pixels, and the stride.

    >>> cell_centres([(1, 2)], [8], torch.device("cpu"))
    tensor([[ 4.,  4.,  8.],
            [12.,  4.,  8.]])
    """
    grids = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * stride
        grids.append(torch.cat([centres, torch.full((len(centres), 1), float(stride))], dim=1))
    return torch.cat(grids).to(device)


def assign_cells(
    boxes: Tensor, image: Tensor, num_images: int, sizes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give each object the cells about its centre, on the one grid that fits its size.

    An object's longer side decides the grid. It gets the cell that holds its centre and those of the eight cells around
    whose centre lies inside the box. A cell that several objects claim goes to the smallest of them (ties: the first).

    Args:
        boxes: (T, 4) xyxy in pixels, objects of all images.
        image: (T,) the image of each.
        num_images: Number of images B.
        sizes: Rows and columns of each grid, the finest first.
        strides: Side of its cells in pixels.

    Returns:
        ``(cells, owners)``, both (K,): flat cells of ``B * P``, ascending, and the row of the object that each learns.

    Reference:
        After the centre sampling of Tian et al., FCOS, TPAMI 2020.

    >>> box, image = torch.tensor([[0.0, 0.0, 9.0, 8.0]]), torch.tensor([0])
    >>> assign_cells(box, image, num_images=1, sizes=[(2, 2)], strides=[8])
    (tensor([0]), tensor([0]))
    """
    shapes = torch.tensor([*sizes], device=boxes.device)
    steps = torch.tensor([*strides], device=boxes.device)
    counts = shapes.prod(dim=1)
    starts = counts.cumsum(0) - counts
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    level = (longest[:, None] > REACH * steps[:-1]).sum(dim=1)  # (T,)
    stride, shape = steps[level], shapes[level]

    offsets = torch.tensor([(x, y) for y in AROUND for x in AROUND], device=boxes.device)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride[:, None]).floor().long()
    centre = torch.minimum(centre.clamp(min=0), shape.flip(1) - 1)  # (T, 2): column, row
    cell = centre[:, None] + offsets  # (T, 9, 2)
    point = (cell + 0.5) * stride[:, None, None]
    inside = ((point > boxes[:, None, :2]) & (point < boxes[:, None, 2:])).all(dim=-1)
    on_grid = ((cell >= 0) & (cell < shape.flip(1)[:, None])).all(dim=-1)
    wanted = on_grid & (inside | (offsets == 0).all(dim=-1))
    flat = (image * counts.sum() + starts[level])[:, None] + cell[..., 1] * shape[:, 1:] + cell[..., 0]

    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    order = area.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=boxes.device)
    total = num_images * int(counts.sum())
    best = torch.full((total,), len(boxes), device=boxes.device)
    best.scatter_reduce_(0, flat[wanted], rank[:, None].expand_as(flat)[wanted], "amin")
    cells = torch.nonzero(best < len(boxes)).flatten()
    return cells, order[best[cells]]


def covered_cells(boxes: Tensor, centres: Tensor) -> Tensor:
    """Cells whose centre lies inside one of the boxes.

    Args:
        boxes: (n, 4) xyxy in pixels.
        centres: (P, 3) of ``cell_centres``.

    Returns:
        (P,) bool.
    """
    points = centres[:, None, :2]
    return ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all(dim=-1).any(dim=1)
