import json

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog

from projects.config import check_datasets, setup_cfg
from projects.data.dataset_mapper import build_dataset_mapper
from projects.data.training_data import load_training_data
from projects.num_classes import predicts_panoptic, predicts_semantics, thing_class_counts

BLENDMASK = ["MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.MASK_ON", True, "MODEL.BASIS_MODULE.LOSS_ON", True]
KEYS = {
    "SpatialEmbeddings": ["MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES"],
    "BlendMask": ["MODEL.FCOS.NUM_CLASSES", "MODEL.BASIS_MODULE.NUM_CLASSES"],
    "OneStageDetector": ["MODEL.FCOS.NUM_CLASSES"],
    "GeneralizedRCNN": ["MODEL.ROI_HEADS.NUM_CLASSES"],
    "PanopticFPN": ["MODEL.ROI_HEADS.NUM_CLASSES"],
    "RetinaNet": ["MODEL.RETINANET.NUM_CLASSES"],
    "SemanticSegmentor": [],
}


@pytest.fixture
def register():
    """register(name, **metadata) -> name of a dataset whose records are never read."""
    added = []

    def make(name, load=lambda: [], **metadata):
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)
        added.append(name)
        return name

    yield make
    for name in added:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def own_data(tmp_path):
    """The flag of a dataset with three classes of odd ids, and annotations that are boxes alone."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "1.png")
    boxes = [{"id": k, "image_id": 9, "category_id": c, "bbox": [2, 2, 9, 9]} for k, c in enumerate([-4, 77, 500])]
    content = {
        "images": [{"id": 9, "file_name": "1.png", "height": 32, "width": 32}],
        "annotations": [{**box, "area": 81, "iscrowd": 0} for box in boxes],
        "categories": [{"id": k, "name": str(k)} for k in (500, -4, 77)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[2, 2, 11, 2, 11, 11, 2, 11]]
    (tmp_path / "masks.json").write_text(json.dumps(content))
    yield lambda kind: f"{kind}={tmp_path / kind}.json:{tmp_path}"
    for name in {"boxes", "masks"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", KEYS)
def test_all_keys_of_a_model_follow_a_users_dataset(own_data, name):
    opts = ["MODEL.META_ARCHITECTURE", name, "MODEL.BASIS_MODULE.LOSS_ON", True, "MODEL.MASK_ON", True]
    cfg = setup_cfg(opts=opts, datasets=[own_data("masks")])
    assert thing_class_counts(cfg) == dict.fromkeys(KEYS[name], 3)
    check_datasets(cfg, ["masks"])


def test_a_key_without_effect_need_not_fit(own_data):
    opts = ["MODEL.META_ARCHITECTURE", "BlendMask", "MODEL.BASIS_MODULE.LOSS_ON", False]
    cfg = setup_cfg(opts=opts, datasets=[own_data("masks")])
    assert thing_class_counts(cfg) == {"MODEL.FCOS.NUM_CLASSES": 3} and cfg.MODEL.BASIS_MODULE.NUM_CLASSES == 80
    check_datasets(cfg, ["masks"])


@pytest.mark.parametrize("name", ["GeneralizedRCNN", "PanopticFPN", "ProposalNetwork", "RetinaNet"])
def test_classes_of_the_proposals_follow_too_where_there_are_proposals(own_data, name):
    opts = ["MODEL.META_ARCHITECTURE", name, "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS"]
    cfg = setup_cfg(opts=opts, datasets=[own_data("masks")])
    proposals = [] if name == "RetinaNet" else ["MODEL.FCOS.NUM_CLASSES"]
    assert thing_class_counts(cfg) == dict.fromkeys(KEYS.get(name, []) + proposals, 3)
    assert cfg.MODEL.FCOS.NUM_CLASSES == (3 if proposals else 80)


def test_a_key_of_the_command_line_stays(own_data):
    cfg = setup_cfg(opts=[*BLENDMASK, "MODEL.BASIS_MODULE.NUM_CLASSES", "7"], datasets=[own_data("masks")])
    assert thing_class_counts(cfg) == {"MODEL.FCOS.NUM_CLASSES": 3, "MODEL.BASIS_MODULE.NUM_CLASSES": 7}
    with pytest.raises(ValueError, match=r"^MODEL.BASIS_MODULE.NUM_CLASSES is 7, but dataset 'masks' has 3 thing"):
        check_datasets(cfg, ["masks"])


def test_all_keys_that_do_not_fit_are_named_with_what_to_add(register):
    register("made", evaluator_type="coco", thing_classes=["a", "b"])
    with pytest.raises(ValueError) as error:
        check_datasets(setup_cfg(opts=BLENDMASK), ["made"])
    assert str(error.value).startswith("MODEL.FCOS.NUM_CLASSES is 80 and MODEL.BASIS_MODULE.NUM_CLASSES is 80, but")
    assert "Add 'MODEL.FCOS.NUM_CLASSES 2 MODEL.BASIS_MODULE.NUM_CLASSES 2' to the command line" in str(error.value)


def test_an_object_beyond_any_of_the_keys_is_an_error(register):
    objects = [{"category_id": 5, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2]]}]
    register("made", lambda: [{"file_name": "x.jpg", "annotations": objects}])
    cfg = setup_cfg(opts=[*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False, "DATASETS.TRAIN", "('made',)",
                          "MODEL.FCOS.NUM_CLASSES", 6, "MODEL.BASIS_MODULE.NUM_CLASSES", 5])  # fmt: skip
    with pytest.raises(ValueError, match="object of class 5.*in x.jpg, but MODEL.BASIS_MODULE.NUM_CLASSES is 5. Add"):
        load_training_data(cfg)


@pytest.mark.parametrize(
    "options, expected",
    [
        ([*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True], True),
        ([*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False], False),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], True),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], False),
        (["MODEL.META_ARCHITECTURE", "SpatialEmbeddings"], False),
    ],
)
def test_which_models_predict_semantics(options, expected):
    assert predicts_semantics(setup_cfg(opts=options)) == expected


@pytest.mark.parametrize(
    "options, expected",
    [
        ([*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True], True),
        ([*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False], False),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True], True),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False], False),
        (["MODEL.META_ARCHITECTURE", "SemanticSegmentor"], False),
        (["MODEL.META_ARCHITECTURE", "SpatialEmbeddings"], False),
    ],
)
def test_which_models_put_things_and_stuff_together(options, expected):
    assert predicts_panoptic(setup_cfg(opts=options)) == expected


PANOPTIC_FPN = ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True]


def test_things_and_stuff_of_panoptic_fpn_must_fit(register):
    classes = {"thing_classes": ["a", "b"], "stuff_classes": ["things", "sky", "sea"]}
    register("made", evaluator_type="coco_panoptic_seg", **classes)
    things, stuff = ["MODEL.ROI_HEADS.NUM_CLASSES", 2], ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    check_datasets(setup_cfg(opts=[*PANOPTIC_FPN, *things, *stuff]), ["made"])
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.NUM_CLASSES is 80, but dataset 'made' has 2 thing classes"):
        check_datasets(setup_cfg(opts=PANOPTIC_FPN + stuff), ["made"])
    with pytest.raises(ValueError, match="MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54, but dataset 'made' has 3 stuff"):
        check_datasets(setup_cfg(opts=PANOPTIC_FPN + things), ["made"])


def test_a_dataset_of_the_other_numbering_is_named_with_its_twin(register):
    kind = {"evaluator_type": "coco_panoptic_seg", "thing_classes": ["a", "b"]}
    register("made", stuff_classes=["a", "b", "sky", "sea"], **kind)
    register("made_separated", stuff_classes=["things", "sky", "sea"], **kind)
    with pytest.raises(ValueError, match="'made' numbers things and stuff together, but PanopticFPN .* 'made_separat"):
        check_datasets(setup_cfg(opts=PANOPTIC_FPN), ["made"])
    for model in (["PanopticAffinity"], ["SSAP", "MODEL.SSAP.SEMANTICS", "joint"]):
        cfg = setup_cfg(opts=["MODEL.META_ARCHITECTURE", *model])
        with pytest.raises(ValueError, match=f"'made_separated' numbers its stuff by itself, but {model[0]}.*'made'"):
            check_datasets(cfg, ["made_separated"])


def test_panoptic_fpn_needs_masks():
    with pytest.raises(ValueError, match="MODEL.MASK_ON is False, but PanopticFPN .*: set it to True"):
        check_datasets(setup_cfg(opts=[*PANOPTIC_FPN, "MODEL.MASK_ON", False]), [])


@pytest.mark.parametrize("kind", ["sem_seg", "coco_panoptic_seg"])
def test_semantic_classes_must_fit_a_semantic_branch(register, kind):
    things = {"thing_classes": [str(k) for k in range(80)]} if kind == "coco_panoptic_seg" else {}
    register("made", evaluator_type=kind, stuff_classes=["things", "sky", "sea"], **things)
    check_datasets(setup_cfg(opts=[*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False]), ["made"])
    with_branch = [*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True]
    check_datasets(setup_cfg(opts=[*with_branch, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]), ["made"])
    with pytest.raises(ValueError, match=r"MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54, but .* 3 stuff classes \(things, sky"):
        check_datasets(setup_cfg(opts=with_branch), ["made"])


@pytest.mark.parametrize("opts", [[*BLENDMASK, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True], PANOPTIC_FPN])
def test_a_semantic_branch_needs_semantic_labels(own_data, opts):
    with pytest.raises(ValueError, match="masks has no semantic labels .* for .*1.png.*_panoptic_separated"):
        load_training_data(setup_cfg(opts=opts, datasets=[own_data("masks")]))


@pytest.mark.parametrize(
    "name, mask_on", [("OneStageDetector", False), ("OneStageDetector", True), ("RetinaNet", False)]
)
def test_boxes_are_enough_where_no_masks_are_learnt(own_data, name, mask_on):
    cfg = setup_cfg(opts=["MODEL.META_ARCHITECTURE", name, "MODEL.MASK_ON", mask_on], datasets=[own_data("boxes")])
    (record,) = load_training_data(cfg)
    assert [x["category_id"] for x in record["annotations"]] == [0, 1, 2]
    instances = build_dataset_mapper(cfg, is_train=True)(record)["instances"]
    assert len(instances) == 3 and not instances.has("gt_masks")


@pytest.mark.parametrize(
    "name, mask_on", [("BlendMask", False), ("SpatialEmbeddings", False), ("GeneralizedRCNN", True)]
)
def test_boxes_are_not_enough_where_masks_are_learnt(own_data, name, mask_on):
    with pytest.raises(ValueError, match="none of its 3 annotations has a mask"):
        setup_cfg(opts=["MODEL.META_ARCHITECTURE", name, "MODEL.MASK_ON", mask_on], datasets=[own_data("boxes")])


def test_the_things_of_one_numbering_must_be_the_datasets(register):
    stuff = ["road", "car", "sky", "person"]
    register(
        "made",
        evaluator_type="cityscapes_panoptic_seg",
        stuff_classes=stuff,
        thing_dataset_id_to_contiguous_id={26: 1, 24: 3},
    )
    joint = ["MODEL.META_ARCHITECTURE", "SSAP", "MODEL.SSAP.SEMANTICS", "joint", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4]
    check_datasets(setup_cfg(opts=[*joint, "MODEL.SSAP.THING_CLASSES", [3, 1]]), ["made"])
    with pytest.raises(ValueError, match=r"THING_CLASSES is \[1, 2\], but .*'made' has the things \[1, 3\]"):
        check_datasets(setup_cfg(opts=[*joint, "MODEL.SSAP.THING_CLASSES", [1, 2]]), ["made"])


@pytest.mark.parametrize("kind", ["coco", "cityscapes_instance"])
@pytest.mark.parametrize(
    "model", [["PanopticAffinity"], ["SSAP", "MODEL.SSAP.SEMANTICS", "joint"]], ids=["PanopticAffinity", "SSAP"]
)
def test_things_after_stuff_are_not_those_of_an_instance_dataset(register, model, kind):
    register("made", evaluator_type=kind, thing_classes=["car", "person"])
    opts = ["MODEL.META_ARCHITECTURE", *model, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4]
    opts += ["INPUT.DATASET_MAPPER_NAME", "panoptic"]
    key = f"MODEL.{'SSAP' if 'SSAP' in model else 'PANOPTIC_AFFINITY'}.THING_CLASSES"
    check_datasets(setup_cfg(opts=[*opts, key, [1, 0]]), ["made"])
    with pytest.raises(ValueError, match=r"'made' numbers its 2 things from 0, but .* as \[2, 3\] .*THING_CLASSES"):
        check_datasets(setup_cfg(opts=[*opts, key, [2, 3]]), ["made"])


def test_files_of_panoptic_and_semantic_labels_are_looked_for(register, tmp_path):
    missing = str(tmp_path / "nowhere")
    classes = {"evaluator_type": "coco_panoptic_seg", "stuff_classes": ["things", "sky"], "thing_classes": ["a", "b"]}
    register("without_labels", **classes, sem_seg_root=missing)
    register("without_panoptic", **classes, panoptic_json=missing)
    opts = ["MODEL.META_ARCHITECTURE", "SSAP", "MODEL.SSAP.SEMANTICS", "separated", "MODEL.SSAP.NUM_CLASSES", 2]
    opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2]
    with pytest.raises(FileNotFoundError, match="'without_labels' needs .*nowhere"):
        check_datasets(setup_cfg(opts=opts), ["without_labels"])
    check_datasets(setup_cfg(opts=opts), ["without_panoptic"])  # to train on
    with pytest.raises(FileNotFoundError, match="'without_panoptic' needs .*nowhere"):
        check_datasets(setup_cfg(opts=[*opts, "DATASETS.TEST", ("without_panoptic",)]), ["without_panoptic"])
