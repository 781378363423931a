"""Training: which cell learns which object, the masks at the maps' resolution, and the losses.

SOLO (Wang et al., ECCV 2020, arXiv 1912.04488), Section 3.3.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from detectron2.structures import BitMasks, Instances, PolygonMasks

from .cells import CellNumbering

NOBODY = -1
MASKS_AT_A_TIME = 16


@dataclass(frozen=True)
class GroundTruth:
    """The K objects of a batch, image after image.

    Attributes:
        masks: bool [K, H, W], padded as the images are.
        boxes: float [K, 4], XYXY in pixels.
        classes: int64 [K].
        image: int64 [K], which image of the batch.
    """

    masks: Tensor
    boxes: Tensor
    classes: Tensor
    image: Tensor

    @classmethod
    def of(cls, instances: Sequence[Instances], size: tuple[int, int], device: torch.device) -> "GroundTruth":
        """From each image's gt_masks (bitmaps or polygons), gt_boxes and gt_classes; padded to ``size``."""
        counts = [len(objects) for objects in instances]
        masks = torch.zeros(sum(counts), *size, dtype=torch.bool, device=device)
        for padded, objects in zip(masks.split(counts), instances):
            if len(objects):
                height, width = objects.image_size
                padded[:, :height, :width] = bitmaps(objects).to(device)
        some = [x for x in instances if len(x)]
        return cls(
            masks=masks,
            boxes=torch.cat([torch.zeros(0, 4, device=device), *(x.gt_boxes.tensor.to(device) for x in some)]),
            classes=torch.cat([masks.new_zeros(0, dtype=torch.int64), *(x.gt_classes.to(device) for x in some)]),
            image=torch.tensor([k for k, count in enumerate(counts) for _ in range(count)], device=device).long(),
        )


def bitmaps(objects: Instances) -> Tensor:
    """The objects' masks, bool [K, height, width].

    Raises:
        ValueError: they have none.
    """
    if not objects.has("gt_masks"):
        raise ValueError(
            "SOLO and AggMask learn masks, but an image's instances have no gt_masks: all its annotations need a "
            "segmentation."
        )
    masks = objects.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *objects.image_size)
    return masks.tensor


def assign_cells(
    truth: GroundTruth,
    numbering: CellNumbering,
    scale_ranges: Sequence[tuple[float, float]],
    center_size: float = 0.2,
    min_pixels: int = 10,
) -> Tensor:
    """The object that each cell learns.

    A level learns the objects whose scale, the square root of the box's area, is in its range. Their cells are those
    within ``center_size`` times the box around the mask's centre of mass, at most the 3 × 3 around it. Where a cell is
    several objects', it learns the last of them, its class and its mask.

    Args:
        truth: the batch's objects.
        numbering: of the category grids, which divide the padded images.
        scale_ranges: least and largest scale in pixels of each level, both included.
        center_size: see above.
        min_pixels: masks of fewer pixels are learnt by no cell.

    Returns:
        int64 [numbering.total], the object, or −1 for background.
    """
    device = truth.masks.device
    columns, rows = _profiles(truth.masks)
    pixels = rows.sum(dim=1)
    lows, highs = torch.tensor(scale_ranges, dtype=torch.float32, device=device).T
    widths, heights = (truth.boxes[:, 2:] - truth.boxes[:, :2]).T
    scale = (widths * heights).sqrt()[:, None]
    learnt = (scale >= lows) & (scale <= highs) & (pixels >= min_pixels)[:, None]  # [K, levels]

    columns, in_columns = _cells_around_center(columns, pixels, widths * center_size, numbering.side)
    rows, in_rows = _cells_around_center(rows, pixels, heights * center_size, numbering.side)
    inside = in_rows[..., :, None] & in_columns[..., None, :] & learnt[..., None, None]  # [K, levels, 3, 3]
    level = torch.arange(len(numbering.sides), device=device)[:, None, None]
    cell = rows[..., :, None] * numbering.side[:, None, None] + columns[..., None, :]
    number = numbering.number(level, truth.image[:, None, None, None], cell)

    index = torch.arange(len(pixels), device=device)[:, None, None, None]
    # Without waiting for how many are inside: the others leave the first cell as it is.
    number, index = number.where(inside, 0), index.where(inside, NOBODY)
    owner = torch.full((numbering.total,), NOBODY, device=device)
    return owner.scatter_reduce(0, number.flatten(), index.flatten(), "amax")


def _profiles(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each mask bool [K, H, W] the pixels in every column, int64 [K, W], and in every row, [K, H]."""
    # In pieces: what sums them widens them to whole numbers first.
    pieces = masks.split(MASKS_AT_A_TIME)
    return torch.cat([x.sum(dim=1) for x in pieces]), torch.cat([x.sum(dim=2) for x in pieces])


def _cells_around_center(profile: Tensor, pixels: Tensor, extent: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis the three cells around each object's centre, and which of them are its.

    Args:
        profile: of each mask, its pixels at every position, int64 [K, length].
        pixels: of each mask, int64 [K].
        extent: in pixels, of what lies around the centre [K].
        sides: cells of each level, int64 [levels].

    Returns:
        int64 [K, levels, 3] and bool of that shape.
    """
    length = profile.shape[1]
    position = torch.arange(length, device=profile.device)
    center = ((profile * position).sum(dim=1).double() / pixels.clamp(min=1))[:, None]
    half = extent[:, None].double() / 2
    middle, first, last = (
        (x * sides / length).floor().long()[..., None] for x in (center, center - half, center + half)
    )
    cells = middle + torch.arange(-1, 2, device=profile.device)
    inside = (cells >= first.clamp(min=0)) & (cells <= last) & (cells < sides[:, None])
    return cells, inside


def downsample_masks(masks: Tensor, stride: int) -> Tensor:
    """Masks bool [K, H, W] at a stride that divides H and W: set where half of the pixels at the cell's centre are, at
    least. As in the authors' bilinear resize without antialiasing."""
    near, far = slice((stride - 1) // 2, None, stride), slice(stride // 2, None, stride)
    around = [masks[:, rows, columns] for rows in (near, far) for columns in (near, far)]
    return torch.stack(around).sum(dim=0, dtype=torch.uint8) >= 2


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − 2 Σ p q / (Σ p² + Σ q²) of masks, [P] (Equation 2 and 3).

    Args:
        logits: [P, H, W].
        targets: bool [P, H, W].
    """
    p, q = logits.float().sigmoid().flatten(1), targets.flatten(1).float()
    # The authors' constants, each for one of the sums.
    return 1 - 2 * (p * q).sum(dim=1) / (p.square().sum(dim=1) + q.square().sum(dim=1) + 2e-3)


def category_loss(logits: Tensor, classes: Tensor, num_positives: int, alpha: float, gamma: float) -> Tensor:
    """Focal loss of all cells, summed, over the positive ones and one more.

    Args:
        logits: [T, C].
        classes: int64 [T], C for background.
        num_positives: cells that learn an object.
        alpha, gamma: of the focal loss.
    """
    targets = F.one_hot(classes, logits.shape[1] + 1)[:, :-1].float()
    return sigmoid_focal_loss(logits.float(), targets, alpha, gamma, reduction="sum") / (num_positives + 1)
