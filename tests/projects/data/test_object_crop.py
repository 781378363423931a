import numpy as np
import pytest

from detectron2.data import transforms as T

from projects.data.object_crop import RandomObjectCrop

IMAGE = np.arange(60 * 80).reshape(60, 80).astype(np.int32)


def crop(size, boxes):
    augmented = T.AugInput(IMAGE, boxes=None if boxes is None else np.array(boxes, dtype=float).reshape(-1, 4))
    transform = T.AugmentationList([RandomObjectCrop(size)])(augmented)
    return augmented.image, transform


def test_the_crop_is_centred_on_the_object():
    image, _ = crop((20, 30), [[30, 20, 50, 40]])
    assert (image == IMAGE[20:40, 25:55]).all()


def test_at_the_border_it_stays_inside():
    assert (crop((20, 30), [[70, 50, 80, 60]])[0] == IMAGE[40:, 50:]).all()
    assert (crop((20, 30), [[0, 0, 4, 4]])[0] == IMAGE[:20, :30]).all()


def test_every_object_has_its_turn():
    np.random.seed(0)
    seen = {int(crop((10, 10), [[0, 0, 10, 10], [30, 30, 40, 40], [70, 0, 80, 10]])[0][0, 0]) for _ in range(40)}
    assert seen == {0, 30 * 80 + 30, 70}


@pytest.mark.parametrize("boxes", [None, []])
def test_without_objects_it_lies_anywhere(boxes):
    np.random.seed(0)
    images = [crop((20, 30), boxes)[0] for _ in range(30)]
    assert all(image.shape == (20, 30) for image in images) and len({int(image[0, 0]) for image in images}) > 10


def test_a_crop_larger_than_the_image_is_the_image():
    assert (crop((100, 40), [[30, 20, 50, 40]])[0] == IMAGE[:, 20:60]).all()
