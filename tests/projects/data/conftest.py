import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog

from projects.data.shapes import ShapesConfig
from projects.data.shapes_catalog import register_shapes
from projects.data.shapes_dataset import write_dataset

TINY = ShapesConfig(height=96, width=128, num_train=6, num_val=3, num_things=8, max_objects=9, seed=2)


@pytest.fixture(scope="session")
def tiny_config():
    return TINY


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A datasets' folder with a small Shapes dataset called "tiny"; read only."""
    root = tmp_path_factory.mktemp("data.sets")  # a dot, as folders may have
    write_dataset(TINY, str(root), "tiny", workers=1)
    return root


@pytest.fixture(scope="module")
def tiny_panoptic(tiny_root):
    """The training images' records with instances, some in polygons and some in RLE, and semantic labels."""
    names = register_shapes(str(tiny_root))
    yield DatasetCatalog.get("tiny_train_panoptic_separated")
    for name in names:
        if name.startswith("tiny"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    register_shapes()
