"""Thin models on a ResNet-18, and what they train on."""

import torch
from detectron2.modeling import build_model

from projects.config import configs_dir, setup_cfg

SHAPES = str(configs_dir() / "panoptic_affinity/shapes_small.yaml")
THIN = [
    "MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.ROI_HEADS.NUM_CLASSES", 2,
    "MODEL.PANOPTIC_AFFINITY.THING_CLASSES", [3, 1],
]  # fmt: skip
MASK_CUES = ["MODEL.MASK_ON", True, "MODEL.PANOPTIC_AFFINITY.MASK_CUES", True]
WITHOUT_AFFINITY = ["MODEL.PANOPTIC_AFFINITY.AFFINITY.ENABLED", False]
COARSE = ["MODEL.PANOPTIC_AFFINITY.AFFINITY.STRIDE", 8]
ALL_DETECTIONS = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]


def model_of(*opts):
    """Four classes, of which 3 and 1 are things, the detector's 0 and 1."""
    torch.manual_seed(0)
    return build_model(setup_cfg(SHAPES, [*THIN, *opts]))


def scene(height=64, width=96, seed=0):
    """Two adjacent rectangles of one class and one of the other, on two kinds of stuff, as the dataset mapper
    "panoptic" gives them."""
    image = torch.randint(0, 60, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()
    numbers = torch.zeros(height, width, dtype=torch.int32)
    sem_seg = torch.where(torch.arange(height)[:, None] < height // 2, 0, 2).expand(height, width).clone()
    image[2, height // 2 :] += 120
    middle = width // 2
    for number, (top, left, right, category) in enumerate(
        [(8, 8, middle, 3), (8, middle, width - 8, 3), (40, 20, width - 20, 1)], start=1
    ):
        rows = slice(top, top + 28 if category == 3 else height - 4)
        numbers[rows, left:right], sem_seg[rows, left:right] = number, category
        image[category // 2, rows, left:right] += 100 + 40 * number
    class_map = torch.where(numbers > 0, sem_seg, -1).short()
    return {"image": image, "instance_map": numbers, "class_map": class_map, "sem_seg": sem_seg}
