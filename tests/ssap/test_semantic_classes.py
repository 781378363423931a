import pytest
import torch

from projects.config import setup_cfg
from ssap.semantic_classes import SemanticClasses


def classes_of(*opts):
    return SemanticClasses.from_config(setup_cfg("", ["MODEL.META_ARCHITECTURE", "SSAP", *opts]))


def test_instances_alone():
    classes = classes_of("MODEL.SSAP.NUM_CLASSES", 3)
    assert (classes.num_channels, classes.things, classes.stuff, classes.categories) == (4, (1, 2, 3), (), (0, 1, 2))
    class_maps = torch.tensor([[[-1, 0, 2, -2]]])
    assert classes.targets(class_maps, None).tolist() == [[[0, 1, 3, 255]]]


def test_separated_things_and_stuff():
    opts = ["MODEL.SSAP.SEMANTICS", "separated", "MODEL.SSAP.NUM_CLASSES", 2, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    classes = classes_of(*opts)
    assert (classes.num_channels, classes.things, classes.stuff, classes.categories) == (5, (3, 4), (1, 2), (0, 1))
    class_maps = torch.tensor([[[-1, -1, -1, -1, 0, 1, -2]]])
    sem_seg = torch.tensor([[[1, 2, 0, 255, 0, 1, 1]]])
    # A thing without an annotation is unknown; a thing's class is taken from its annotation.
    assert classes.targets(class_maps, sem_seg).tolist() == [[[1, 2, 255, 255, 3, 4, 255]]]
    probabilities = torch.tensor([0.05, 0.2, 0.3, 0.35, 0.1]).view(5, 1, 1)
    assert classes.sem_seg(probabilities).flatten().tolist() == pytest.approx([0.5, 0.2, 0.3])


def test_more_classes_than_targets_can_number_are_refused():
    assert classes_of("MODEL.SSAP.NUM_CLASSES", 254).num_channels == 255
    with pytest.raises(ValueError, match="1 classes of stuff and 255 of things are 256"):
        classes_of("MODEL.SSAP.NUM_CLASSES", 255)


def test_one_numbering_of_things_and_stuff():
    opts = ["MODEL.SSAP.SEMANTICS", "joint", "MODEL.SSAP.THING_CLASSES", [1, 3], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4]
    classes = classes_of(*opts)
    assert (classes.num_channels, classes.things, classes.stuff, classes.categories) == (4, (1, 3), (0, 2), (1, 3))
    sem_seg = torch.tensor([[[0, 1, 255]]])
    assert torch.equal(classes.targets(torch.tensor([[[-1, 1, -2]]]), sem_seg), sem_seg)
    probabilities = torch.rand(4, 2, 2)
    assert torch.equal(classes.sem_seg(probabilities), probabilities)


@pytest.mark.parametrize("things", [[], [19], [-1], [1, 1]])
def test_things_must_be_among_the_classes(things):
    opts = ["MODEL.SSAP.SEMANTICS", "joint", "MODEL.SSAP.THING_CLASSES", things, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19]
    with pytest.raises(ValueError, match="MODEL.SSAP.THING_CLASSES is .* 19 classes"):
        classes_of(*opts)


def test_unknown_kind_of_numbering():
    with pytest.raises(ValueError, match="'both'; it must be one of none, separated, joint"):
        classes_of("MODEL.SSAP.SEMANTICS", "both")
