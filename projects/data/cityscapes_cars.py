"""Registers Cityscapes with cars as its one class when imported: ``cityscapes_fine_car_train`` and ``_val``.

Records and metadata are those of Detectron2's ``cityscapes_fine_instance_seg_{split}``, without the other classes.
"""

import functools

from detectron2.data import DatasetCatalog, MetadataCatalog

CAR = "car"


def load_cars(source: str) -> list[dict]:
    """The records of one of Detectron2's Cityscapes datasets with cars alone, as class 0."""
    car = MetadataCatalog.get(source).thing_classes.index(CAR)
    return [
        {**record, "annotations": [{**x, "category_id": 0} for x in record["annotations"] if x["category_id"] == car]}
        for record in DatasetCatalog.get(source)
    ]


for _split in ("train", "val"):
    _source, _name = f"cityscapes_fine_instance_seg_{_split}", f"cityscapes_fine_car_{_split}"
    _metadata = MetadataCatalog.get(_source)
    DatasetCatalog.register(_name, functools.partial(load_cars, _source))
    MetadataCatalog.get(_name).set(
        image_dir=_metadata.image_dir,
        gt_dir=_metadata.gt_dir,
        evaluator_type=_metadata.evaluator_type,
        thing_classes=[CAR],
    )
