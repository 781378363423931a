import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog

from projects.data.shapes_catalog import register_shapes


@pytest.fixture(scope="module")
def registered_small(small_root):
    """Registers the Shapes dataset "small"."""
    names = register_shapes(str(small_root))
    yield
    for name in names:
        if name.startswith("small"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    register_shapes()


@pytest.fixture
def true_panoptic():
    """true_panoptic(record of a panoptic dataset) -> its segments as a model would predict them, "panoptic_seg"."""

    def read(record):
        ids = np.array(Image.open(record["pan_seg_file_name"]), dtype=np.int32) @ np.array([1, 256, 65536], np.int32)
        segments = [{key: x[key] for key in ("id", "category_id")} for x in record["segments_info"]]
        for segment, x in zip(segments, record["segments_info"]):
            segment["isthing"] = x.get("isthing", x["category_id"] >= 11)  # Cityscapes' don't have it
        return torch.from_numpy(ids), segments

    return read
