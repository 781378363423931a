"""The first losses from a seed, recorded with Detectron2 0.6 (main branch of June 2026) and torch 2.15: initial weights,
data order, augmentation and arithmetic are Detectron2's wherever the suite runs."""

import numpy as np
import pytest

from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from PIL import Image

from projects.config import configs_dir, setup_cfg
from train_net import Trainer

RECORDED = {
    "spatial_embeddings/shapes": {"loss_instance": 1.8008417, "loss_variance": 0.0, "loss_seed": 1.3629376},
    "spatial_embeddings/shapes_R_18_FPN": {"loss_instance": 1.8008417, "loss_variance": 0.0, "loss_seed": 1.4037285},
    "baselines/shapes_small_mask_rcnn": {
        "loss_cls": 1.9472339, "loss_box_reg": 0.0344321, "loss_mask": 0.6934537,
        "loss_rpn_cls": 0.6945434, "loss_rpn_loc": 0.0107280,
    },  # fmt: skip
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight images of noise with a few bright rectangles, which no change to a generator touches."""
    folder = tmp_path_factory.mktemp("recorded")
    rng = np.random.RandomState(3)
    records = []
    for k in range(8):
        pixels = rng.randint(0, 120, size=(64, 96, 3)).astype(np.uint8)
        annotations = []
        for number in range(1 + k % 3):
            x, y, w, h = rng.randint(0, 60), rng.randint(0, 36), rng.randint(12, 30), rng.randint(10, 26)
            pixels[y : y + h, x : x + w] += 100
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": (k + number) % 6,
                 "segmentation": [[float(c) for c in corners]], "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{k}.png")
        records.append(
            {"file_name": str(folder / f"{k}.png"), "height": 64, "width": 96, "image_id": k, "annotations": annotations}
        )
    DatasetCatalog.register("recorded", lambda: records)
    yield "recorded"
    DatasetCatalog.remove("recorded")


@pytest.mark.parametrize("name", RECORDED)
def test_first_losses_equal_those_of_detectron2(dataset, name):
    cfg = setup_cfg(
        str(configs_dir() / f"{name}.yaml"),
        ["DATASETS.TRAIN", (dataset,), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu",
         "MODEL.ERFNET.DROPOUT", [0.0, 0.0], "INPUT.MIN_SIZE_TRAIN", (56, 72), "INPUT.RANDOM_FLIP", "horizontal",
         # Every proposal is trained on, so that rounding can't change which ones are.
         "MODEL.ROI_HEADS.NUM_CLASSES", 6, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10000,
         "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 10000,
         "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10000],
    )  # fmt: skip
    seed_all_rng(11)
    model = Trainer.build_model(cfg)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    with EventStorage():
        losses = {key: value.item() for key, value in model(batch).items()}
    assert losses == pytest.approx(RECORDED[name], abs=1e-4)
