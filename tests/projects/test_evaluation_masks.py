from pycocotools.coco import COCO

from projects.evaluation.coco import _keep_masks

SQUARE = [4, 4, 8, 4, 8, 8, 4, 8]


def test_polygons_too_short_are_dropped_and_annotations_without_another_mask_left_out():
    coco = COCO()
    rle = {"size": [9, 9], "counts": [81]}
    masks = [[SQUARE], [SQUARE, [1, 2, 3, 4]], [[1, 2, 3, 4]], [], None, rle]
    coco.dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": 1}],
        "annotations": [{"id": k, "image_id": 1, "category_id": 1, "segmentation": m} for k, m in enumerate(masks)],
    }
    coco.createIndex()
    assert _keep_masks(coco) == 3
    assert {k: x["segmentation"] for k, x in coco.anns.items()} == {0: [SQUARE], 1: [SQUARE], 5: rle}
    assert _keep_masks(coco) == 0
