import pytest
import torch
from torch import nn

from detectron2.engine import SimpleTrainer
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model

from projects.config import setup_cfg

NORMS = ("running_mean", "running_var", "num_batches_tracked")


def training_image(seed):
    instances = torch.zeros(32, 32, dtype=torch.int32)
    instances[8:20, 4:24] = 1
    image = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "instance_map": instances, "class_map": (instances - 1).to(torch.int16), "image_id": seed}


BATCH = [training_image(0), training_image(1)]


def model_with(frozen):
    key = "MODEL.SPATIAL_EMBEDDINGS."
    opts = [f"{key}FREEZE_BN_STATISTICS", frozen, f"{key}NUM_CLASSES", 2, f"{key}SEED_THRESHOLD", 0.9999]
    base = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SpatialEmbeddings"]
    torch.manual_seed(0)
    return build_model(setup_cfg(opts=[*base, "MODEL.BACKBONE.NAME", "build_erfnet_backbone", *opts]))


def changed(model, before):
    """Names of the parameters and buffers that are no longer as they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def train_two_iterations(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SimpleTrainer(model, [BATCH, BATCH], optimizer).train(0, 2)
    return changed(model, before)


@pytest.mark.parametrize("evaluated", [False, True])
def test_statistics_stay_while_scale_and_bias_learn(evaluated):
    model = model_with(True)
    if evaluated:
        model.train()
        inference_on_dataset(model, [[{"image": BATCH[0]["image"]}]], DatasetEvaluators([]))
        assert model.training
    names = train_two_iterations(model)
    assert not [name for name in names if name.endswith(NORMS)]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    learning = {f"{norm}.{parameter}" for norm in norms for parameter in ("weight", "bias")}
    # The embedding head starts with weights of 0, through which nothing flows back at first.
    assert {name for name in learning if not name.startswith("embedding_head")} <= names


def test_a_training_batch_is_normalised_by_the_running_statistics():
    model = model_with(True).train()
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout2d)]
    assert dropouts and all(module.training for module in dropouts)
    for module in dropouts:
        module.p = 0.0
    images = model.preprocess(BATCH).tensor
    with torch.no_grad():
        training = model.predict(images)
        inference = model.eval().predict(images)
    assert all(torch.equal(x, y) for x, y in zip(training, inference))


def test_statistics_move_by_default():
    names = train_two_iterations(model_with(False))
    assert "backbone.layers.0.norm.running_mean" in names and "seed_head.decoder.0.norm.running_var" in names
