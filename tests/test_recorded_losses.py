"""The first losses and predictions from a seed, recorded with Detectron2 0.6 (main branch of June 2026) and torch 2.15:
initial weights, data order, augmentation and arithmetic are Detectron2's wherever the suite runs."""

import numpy as np
import pytest
import torch

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
    "baselines/shapes_small_panoptic_fpn": {
        "loss_cls": 1.9472338, "loss_box_reg": 0.0344321, "loss_mask": 0.6934537,
        "loss_rpn_cls": 0.6943178, "loss_rpn_loc": 0.0107280, "loss_sem_seg": 1.9884064,
    },  # fmt: skip
}
# Of Panoptic FPN's batch: the mean logit of each semantic class, and the pixels of all things and of stuff 1 to 3.
RECORDED_LOGITS = [0.2096086, 3.7641144, 0.6549560, 9.4393644]
RECORDED_PIXELS = [5749, 1838, 199, 12892]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight images of noise with a few bright rectangles, which no change to a generator touches; behind them, in
    stripes, three kinds of stuff, which are to be learnt from their places."""
    folder = tmp_path_factory.mktemp("recorded")
    rng = np.random.RandomState(3)
    records = []
    for k in range(8):
        pixels = rng.randint(0, 120, size=(64, 96, 3)).astype(np.uint8)
        annotations = []
        labels = np.tile(np.arange(96, dtype=np.uint8) // 32 + 1, (64, 1))
        for number in range(1 + k % 3):
            x, y, w, h = rng.randint(0, 60), rng.randint(0, 36), rng.randint(12, 30), rng.randint(10, 26)
            pixels[y : y + h, x : x + w] += 100
            labels[y : y + h, x : x + w] = 0
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": (k + number) % 6,
                 "segmentation": [[float(c) for c in corners]], "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{k}.png")
        Image.fromarray(labels).save(folder / f"{k}_labels.png")
        records.append(
            {"file_name": str(folder / f"{k}.png"), "sem_seg_file_name": str(folder / f"{k}_labels.png"),
             "height": 64, "width": 96, "image_id": k, "annotations": annotations}
        )  # fmt: skip
    DatasetCatalog.register("recorded", lambda: records)
    yield "recorded"
    DatasetCatalog.remove("recorded")


def first_model_and_batch(name, dataset):
    cfg = setup_cfg(
        str(configs_dir() / f"{name}.yaml"),
        ["DATASETS.TRAIN", (dataset,), "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu",
         "MODEL.ERFNET.DROPOUT", [0.0, 0.0], "INPUT.MIN_SIZE_TRAIN", (56, 72), "INPUT.RANDOM_FLIP", "horizontal",
         # Every proposal is trained on, so that rounding can't change which ones are.
         "MODEL.ROI_HEADS.NUM_CLASSES", 6, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10000,
         "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 10000,
         "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10000,
         # The initial weights are sure of nothing.
         "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0],
    )  # fmt: skip
    seed_all_rng(11)
    model = Trainer.build_model(cfg)
    return model, next(iter(Trainer.build_train_loader(cfg)))


@pytest.mark.parametrize("name", RECORDED)
def test_first_losses_equal_those_of_detectron2(dataset, name):
    model, batch = first_model_and_batch(name, dataset)
    with EventStorage():
        losses = {key: value.item() for key, value in model(batch).items()}
    assert losses == pytest.approx(RECORDED[name], abs=1e-4)


def test_first_predictions_equal_those_of_detectron2(dataset):
    model, batch = first_model_and_batch("baselines/shapes_small_panoptic_fpn", dataset)
    with torch.no_grad():
        results = model.eval()(batch)
    logits, pixels = torch.zeros(4), torch.zeros(4)
    for result in results:
        logits += result["sem_seg"].mean(dim=(1, 2)) / len(results)
        segments, info = result["panoptic_seg"]
        for segment in info:
            pixels[0 if segment["isthing"] else segment["category_id"]] += (segments == segment["id"]).sum()
    assert logits.tolist() == pytest.approx(RECORDED_LOGITS, rel=1e-4)
    assert pixels.tolist() == pytest.approx(RECORDED_PIXELS, rel=0.01, abs=10)
