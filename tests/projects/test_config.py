import pytest
import torch
import yaml

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model

from projects.config import add_projects_config, check_datasets, configs_dir, setup_cfg, setup_run
from projects.evaluation import build_evaluator

CONFIGS = sorted(configs_dir().rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path):
    cfg = setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


def test_the_second_stage_takes_every_weight_of_the_first():
    first, second = (
        setup_cfg(str(configs_dir() / f"spatial_embeddings/cityscapes_stage{k}.yaml"), ["MODEL.DEVICE", "cpu"])
        for k in (1, 2)
    )
    assert second.MODEL.WEIGHTS == f"{first.OUTPUT_DIR}/model_final.pth"
    build_model(second).load_state_dict(build_model(first).state_dict(), strict=True)


def test_a_dumped_config_is_read_back_the_same(tmp_path):
    cfg = setup_cfg(str(configs_dir() / "spatial_embeddings/shapes_demo.yaml"))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert yaml.safe_load(setup_cfg(str(tmp_path / "config.yaml")).dump()) == yaml.safe_load(cfg.dump())


def test_keys_are_added_to_a_users_own_config():
    cfg = get_cfg()
    add_projects_config(cfg)
    assert cfg.MODEL.SPATIAL_EMBEDDINGS.CENTER == "learnt" and cfg.SOLVER.OPTIMIZER == "SGD"


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = setup_cfg(opts=["MODEL.DEVICE", "cuda"])
    setup_run(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.fixture
def dataset(tmp_path):
    """A registered dataset of two classes whose files exist."""
    (tmp_path / "annotations.json").write_text("{}")
    DatasetCatalog.register("made", lambda: [])
    MetadataCatalog.get("made").set(
        json_file=str(tmp_path / "annotations.json"),
        image_root=str(tmp_path),
        evaluator_type="coco",
        thing_classes=["a", "b"],
    )
    yield "made"
    DatasetCatalog.remove("made")
    MetadataCatalog.remove("made")


def spatial_embeddings(classes):
    return setup_cfg(
        opts=["MODEL.META_ARCHITECTURE", "SpatialEmbeddings", "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES", classes]
    )


def test_datasets_that_fit_pass(dataset):
    check_datasets(spatial_embeddings(2), [dataset])


def test_classes_that_do_not_fit_are_an_error(dataset):
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 3, but dataset 'made' has 2 thing classes \(a, b\)"):
        check_datasets(spatial_embeddings(3), [dataset])


@pytest.mark.parametrize(
    "classes, counts", [(["b", "a"], "2 and 2, first 'a' and 'b'"), (["a"], "2 and 1, first 'b' and None")]
)
def test_datasets_trained_on_and_evaluated_have_the_same_classes(dataset, classes, counts):
    """Their number alone does not show that they are in another order."""
    DatasetCatalog.register("other", lambda: [])
    MetadataCatalog.get("other").set(evaluator_type="coco", thing_classes=classes)
    try:
        with pytest.raises(ValueError, match=f"'made' and 'other' have different thing classes: {counts}"):
            check_datasets(spatial_embeddings(2), [dataset, "other"])
    finally:
        DatasetCatalog.remove("other")
        MetadataCatalog.remove("other")


def test_files_that_are_missing_are_named(dataset, tmp_path):
    (tmp_path / "annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match="annotations.json.*DETECTRON2_DATASETS"):
        check_datasets(spatial_embeddings(2), [dataset])


def test_unknown_names_are_an_error(dataset):
    with pytest.raises(KeyError, match="'mode'.*Did you mean made"):
        check_datasets(spatial_embeddings(2), ["mode"])


def test_evaluators_follow_the_metadata(dataset, tmp_path):
    metadata = MetadataCatalog.get(dataset)
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert isinstance(build_evaluator(dataset, str(tmp_path)), COCOEvaluator)
    for kind, name in [
        ("cityscapes_instance", "CityscapesThingsEvaluator"),
        ("cityscapes_sem_seg", "CityscapesSemSegEvaluator"),
    ]:
        del metadata.evaluator_type
        metadata.evaluator_type = kind
        assert type(build_evaluator(dataset, str(tmp_path))).__name__ == name


def test_metadata_without_an_evaluator_is_an_error(dataset, tmp_path):
    del MetadataCatalog.get(dataset).evaluator_type
    with pytest.raises(NotImplementedError, match="'made' has evaluator_type None.*coco, sem_seg"):
        build_evaluator(dataset, str(tmp_path))
