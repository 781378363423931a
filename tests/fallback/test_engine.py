import itertools
import json
import random

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage


@META_ARCH_REGISTRY.register()
class Regression(nn.Module):
    """Fits a line to numbers; in evaluation it returns the brightness of each image and its size."""

    def __init__(self, cfg=None):
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 0.5)
        nn.init.constant_(self.line.bias, 0.0)

    def forward(self, batch):
        if not self.training:
            return [{key: x[key] if key != "image" else x[key].mean((1, 2)) for key in x} for x in batch]
        error = self.line(batch) - 3 * batch
        return {"loss_square": (error**2).mean(), "loss_scale": 0.1 * self.line.weight.abs().sum()}


def batches():
    for number in itertools.count():
        yield torch.tensor([[number % 3 - 1.0], [number % 5 / 5]])


def simple_trainer(model=None, data=None, lr=0.1, **kwargs):
    model = model or Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return SimpleTrainer(model, batches() if data is None else data, optimizer, **kwargs)


class Recorder(HookBase):
    """Notes which events happened, and the latest metrics after each step."""

    def __init__(self):
        self.events, self.metrics = [], []

    def before_train(self):
        self.events.append("before_train")

    def before_step(self):
        self.events.append(("before_step", self.trainer.iter))

    def after_backward(self):
        self.events.append("after_backward")

    def after_step(self):
        self.events.append(("after_step", self.trainer.iter))
        self.metrics.append({name: value for name, (value, _) in self.trainer.storage.latest().items()})

    def after_train(self):
        self.events.append(("after_train", self.trainer.iter))


def train(trainer, *its_hooks, iterations=4, start=0):
    recorder = Recorder()
    trainer.register_hooks([*its_hooks, None, recorder])
    trainer.train(start, iterations)
    return recorder


def losses_of_a_plain_loop(iterations):
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for batch in itertools.islice(batches(), iterations):
        loss = model(batch)
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in loss.items()})
    return losses


@pytest.mark.parametrize("zero_grad_before_forward", [False, True])
def test_simple_trainer_is_a_plain_loop_that_logs(zero_grad_before_forward):
    recorder = train(simple_trainer(zero_grad_before_forward=zero_grad_before_forward))
    for metrics, losses in zip(recorder.metrics, losses_of_a_plain_loop(4), strict=True):
        assert metrics["loss_square"] == pytest.approx(losses["loss_square"])
        assert metrics["total_loss"] == pytest.approx(sum(losses.values()))
        assert metrics["data_time"] >= 0


def test_hooks_run_in_order():
    steps = [[("before_step", i), "after_backward", ("after_step", i)] for i in (2, 3)]
    recorder = train(simple_trainer(), start=2, iterations=4)
    assert recorder.events == ["before_train", *steps[0], *steps[1], ("after_train", 4)]


def test_a_single_loss_is_the_total():
    class OneLoss(Regression):
        def forward(self, batch):
            return super().forward(batch)["loss_square"]

    metrics = train(simple_trainer(OneLoss()), iterations=1).metrics[0]
    assert metrics["total_loss"] == pytest.approx(losses_of_a_plain_loop(1)[0]["loss_square"])
    assert "loss_square" not in metrics


def test_losses_are_gathered_every_period():
    recorder = train(simple_trainer(gather_metric_period=2))
    assert ["total_loss" in metrics for metrics in recorder.metrics] == [False, True, True, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training(bad):
    data = iter([torch.ones(1, 1), torch.full((1, 1), bad)])
    recorder = Recorder()
    trainer = simple_trainer(data=data)
    trainer.register_hooks([recorder])
    with pytest.raises(FloatingPointError, match="iteration=1"):
        trainer.train(0, 5)
    assert recorder.events[-1] == ("after_train", 1)


def test_a_model_in_evaluation_mode_is_not_trained():
    trainer = simple_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError):
        trainer.train(0, 1)


def test_data_loader_can_be_replaced():
    trainer = simple_trainer()
    trainer.train(0, 2)
    trainer.reset_data_loader(lambda: itertools.repeat(torch.zeros(1, 1)))
    assert train(trainer, iterations=3, start=2).metrics[0]["loss_square"] == pytest.approx(
        trainer.model.line.bias.item() ** 2, abs=1.0
    )


class Counter(HookBase):
    def __init__(self):
        self.count = 0

    def after_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_trainer_state_has_iteration_hooks_and_optimizer():
    trainer = simple_trainer()
    train(trainer, Counter(), iterations=3)
    state = trainer.state_dict()
    assert state.keys() == {"iteration", "hooks", "optimizer"}
    assert state["hooks"] == {"Counter": {"count": 3}}

    other, counter = simple_trainer(), Counter()
    other.register_hooks([counter])
    other.load_state_dict(state)
    assert (other.iter, counter.count) == (state["iteration"], 3)
    assert other.optimizer.state_dict()["state"].keys() == {0, 1}


def test_a_trainer_needs_a_step():
    with pytest.raises(NotImplementedError):
        TrainerBase().train(0, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mixed precision is tested on a GPU")
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_trains(precision):
    class OnGPU(Regression):
        def forward(self, batch):
            assert self.line(batch.cuda()).dtype == precision
            return super().forward(batch.cuda())

    model = OnGPU().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AMPTrainer(model, batches(), optimizer, precision=precision, log_grad_scaler=True)
    recorder = train(trainer, iterations=30)
    assert recorder.metrics[-1]["total_loss"] < recorder.metrics[0]["total_loss"]
    assert recorder.metrics[0]["[metric]grad_scaler"] > 0
    assert "scale" in trainer.state_dict()["grad_scaler"]


def test_callbacks_get_the_trainer():
    seen = []
    names = ("before_train", "before_step", "after_step", "after_train")
    callbacks = {name: lambda trainer, name=name: seen.append((name, trainer.iter)) for name in names}
    train(simple_trainer(), hooks.CallbackHook(**callbacks), hooks.CallbackHook(), iterations=1)
    assert seen == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


def test_iterations_are_timed_after_the_warmup():
    recorder = train(simple_trainer(), hooks.IterationTimer(warmup_iter=3), iterations=4)
    assert ["time" in metrics for metrics in recorder.metrics] == [False, False, True, True]


def test_evaluation_is_periodic_and_final():
    evaluated = []

    def evaluate():
        evaluated.append(len(evaluated))
        return {"box": {"AP": 10.0 * len(evaluated)}, "time": 1}

    recorder = train(simple_trainer(), hooks.EvalHook(2, evaluate), iterations=6)
    assert evaluated == [0, 1, 2]
    assert [metrics.get("box/AP") for metrics in recorder.metrics] == [None, 10, 10, 20, 20, 20]
    with pytest.raises(ValueError):
        train(simple_trainer(), hooks.EvalHook(1, lambda: {"AP": "high"}))


@pytest.mark.parametrize("mode, best", [("max", 3), ("min", 2)])
def test_best_checkpoint(tmp_path, mode, best):
    scores = iter([float("nan"), 5.0, 2.0, 9.0, 4.0])
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    hook = hooks.BestCheckpointer(1, checkpointer, "AP", mode)
    train(simple_trainer(), hooks.EvalHook(1, lambda: {"AP": next(scores)}), hook, iterations=5)
    assert hook.best_iter == best
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == best


def test_best_checkpoint_needs_its_metric(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    train(simple_trainer(), hooks.BestCheckpointer(1, checkpointer, "AP"))
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_periodic_and_final(tmp_path):
    trainer = simple_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
    train(trainer, hooks.PeriodicCheckpointer(checkpointer, 2), iterations=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000001.pth",
        "model_final.pth",
    ]


def test_learning_rate_is_scheduled_and_logged():
    trainer = simple_trainer(lr=0.2)
    hook = hooks.LRScheduler(scheduler=CosineParamScheduler(1, 0))
    recorder = train(trainer, hook, iterations=4)
    expected = [0.2 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)]
    assert [metrics["lr"] for metrics in recorder.metrics] == pytest.approx(expected)
    assert hook.state_dict() == {"base_lrs": [0.2], "last_epoch": 4}


def test_logged_learning_rate_is_that_of_most_parameters():
    def groups(*sizes_and_rates):
        tensors = [([nn.Parameter(torch.zeros(1)) for _ in range(n)], lr) for n, lr in sizes_and_rates]
        return torch.optim.SGD([{"params": params, "lr": lr} for params, lr in tensors])

    best = hooks.LRScheduler.get_best_param_group_id
    assert best(groups((1, 0.1), (3, 0.2), (2, 0.3))) == 1
    assert best(groups((1, 0.1), (1, 0.2), (1, 0.2))) == 1


def test_precise_batch_norm_averages_over_the_batches():
    class Normed(Regression):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, batch):
            return super().forward(self.norm(batch))

    model = Normed()
    data = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]]), torch.tensor([[100.0], [0.0]])]
    train(simple_trainer(model), hooks.PreciseBN(0, model, data, num_iter=2), iterations=2)
    assert model.norm.running_mean.item() == pytest.approx(4.0)
    assert model.norm.momentum == 0.1


def test_profiles_are_written(tmp_path):
    hook = hooks.TorchProfiler(lambda trainer: trainer.iter == 1, str(tmp_path), save_tensorboard=False)
    train(simple_trainer(), hook, iterations=3)
    trace = json.loads((tmp_path / "profiler-trace-iter1.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["profiler-trace-iter1.json"]
    assert trace["traceEvents"]


def test_memory_statistics_need_no_gpu():
    assert len(train(simple_trainer(), hooks.TorchMemoryStats(period=1)).metrics) == 4


class MeanOfSizes(DatasetEvaluator):
    def reset(self):
        self.heights = []

    def process(self, inputs, outputs):
        self.heights += [output["height"] for output in outputs]

    def evaluate(self):
        return {"size": {"height": float(np.mean(self.heights))}}


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return batches()

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        images = [{"image": torch.zeros(3, 2, 2), "height": height} for height in (2, 4)]
        return torch.utils.data.DataLoader(images, batch_size=1, collate_fn=list)


class Evaluating(Trainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return MeanOfSizes()


def config(output_dir, iterations=4):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "cpu", "Regression", ""
    cfg.DATASETS.TEST = ("sizes",)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = iterations, (), 0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.CHECKPOINT_PERIOD = 0.1, 0.0, 2
    return cfg


def test_default_trainer_trains_evaluates_and_writes(tmp_path):
    trainer = Evaluating(config(tmp_path))
    trainer.resume_or_load(resume=False)
    recorder = train_default(trainer)
    expected = [sum(losses.values()) for losses in losses_of_a_plain_loop(4)]
    assert [metrics["total_loss"] for metrics in recorder.metrics] == pytest.approx(expected)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"model_0000001.pth", "model_final.pth", "last_checkpoint", "metrics.json"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    last = {key: value for line in lines for key, value in line.items()}
    assert last["size/height"] == 3.0 and last["lr"] == 0.1
    assert {"loss_square", "total_loss", "data_time"} <= last.keys()

    checkpoint = torch.load(tmp_path / "model_final.pth")
    assert checkpoint.keys() == {"model", "trainer", "iteration"}
    assert checkpoint["trainer"].keys() == {"iteration", "hooks", "_trainer"}
    assert checkpoint["trainer"]["hooks"] == {"LRScheduler": {"base_lrs": [0.1], "last_epoch": 4}}
    assert checkpoint["trainer"]["_trainer"].keys() == {"iteration", "optimizer"}


def train_default(trainer):
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.train()
    return recorder


def test_a_resumed_training_goes_on_as_if_never_interrupted(tmp_path):
    class Shifted(Trainer):
        """After two iterations the data goes on with the third batch."""

        start = 0

        @classmethod
        def build_train_loader(cls, cfg):
            return itertools.islice(batches(), cls.start, None)

    def run(folder, iterations, start=0):
        Shifted.start = start
        cfg = config(tmp_path / folder, iterations)
        trainer = Shifted(cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == start
        train_default(trainer)
        return trainer.model.line.weight.item()

    whole = run("whole", 5)
    run("parts", 2)
    assert run("parts", 5, start=2) == whole


def test_weights_without_resume(tmp_path):
    Trainer(config(tmp_path)).train()
    cfg = config(tmp_path)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000001.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trained = torch.load(cfg.MODEL.WEIGHTS)["model"]["line.weight"]
    assert trainer.start_iter == 0
    assert torch.equal(trainer.model.line.weight, trained)
    assert not trainer.optimizer.state_dict()["state"]


def test_evaluation_of_a_trainer(tmp_path):
    cfg, model = config(tmp_path), Regression().eval()
    assert Evaluating.test(cfg, model) == {"size": {"height": 3.0}}
    assert Trainer.test(cfg, model, [MeanOfSizes()]) == {"size": {"height": 3.0}}
    assert Trainer.test(cfg, model) == {}
    cfg.DATASETS.TEST = ("sizes", "others")
    assert Trainer.test(cfg, model) == {"sizes": {}, "others": {}}
    with pytest.raises(AssertionError):
        Trainer.test(cfg, model, MeanOfSizes())


def test_config_scales_with_the_workers():
    cfg = get_cfg()
    cfg.SOLVER.update({"REFERENCE_WORLD_SIZE": 8, "IMS_PER_BATCH": 16, "BASE_LR": 0.1, "MAX_ITER": 5000})
    cfg.SOLVER.update({"STEPS": (4000,), "WARMUP_ITERS": 100, "CHECKPOINT_PERIOD": 1000})
    cfg.TEST.EVAL_PERIOD = 500
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    expected = {"REFERENCE_WORLD_SIZE": 16, "IMS_PER_BATCH": 32, "BASE_LR": 0.2, "MAX_ITER": 2500}
    expected |= {"STEPS": (2000,), "WARMUP_ITERS": 50, "CHECKPOINT_PERIOD": 500}
    assert {key: scaled.SOLVER[key] for key in expected} == expected
    assert scaled.TEST.EVAL_PERIOD == 250 and scaled.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg


def test_command_line():
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.resume, args.eval_only, args.opts) == ("", False, False, [])
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert 2**15 + 2**14 <= int(args.dist_url.removeprefix("tcp://127.0.0.1:")) < 2**16
    args = parser.parse_args("--resume --num-gpus 2 --config-file a.yaml SOLVER.MAX_ITER 3".split())
    assert (args.resume, args.num_gpus, args.config_file) == (True, 2, "a.yaml")
    assert args.opts == ["SOLVER.MAX_ITER", "3"]


def test_setup_writes_the_config_and_seeds(tmp_path):
    cfg = config(tmp_path / "out")
    cfg.SEED = 5
    args = default_argument_parser().parse_args([])

    def drawn():
        default_setup(cfg, args)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert drawn() == drawn()
    assert "MAX_ITER" in (tmp_path / "out" / "log.txt").read_text()
    assert (tmp_path / "out" / "config.yaml").read_text() == cfg.dump()


def test_predictor_prepares_an_image(tmp_path):
    cfg = config(tmp_path)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 8, 100
    image = np.zeros((4, 6, 3), np.uint8)
    image[:] = (10, 20, 30)  # blue, green, red
    for channels, expected in (("BGR", [10, 20, 30]), ("RGB", [30, 20, 10])):
        cfg.INPUT.FORMAT = channels
        prediction = DefaultPredictor(cfg)(image)
        assert prediction["image"].tolist() == expected
        assert (prediction["height"], prediction["width"]) == (4, 6)
    shape = []
    predictor = DefaultPredictor(cfg)
    predictor.model.forward = lambda batch: shape.append(tuple(batch[0]["image"].shape)) or [{}]
    predictor(image)
    assert shape == [(3, 8, 12)]


def in_two_processes(folder):
    assert comm.get_world_size() == 2
    model = create_ddp_model(Regression(), device_ids=None)
    # Each process has one of the two numbers of every batch, of which the plain loop has both.
    data = (batch[comm.get_rank() :: 2] for batch in batches())
    recorder = train(simple_trainer(model, data))
    with open(f"{folder}/{comm.get_rank()}.json", "w") as f:
        json.dump([[m.get("total_loss") for m in recorder.metrics], model.module.line.weight.item()], f)


def test_launched_processes_train_together(tmp_path):
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        pytest.skip("one GPU is one process")
    launch(in_two_processes, 2, dist_url="auto", args=(str(tmp_path),))
    (losses, weight), (_, other_weight) = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    expected = [sum(loss.values()) for loss in losses_of_a_plain_loop(4)]
    assert losses == pytest.approx(expected)
    assert weight == other_weight


def test_one_process_is_not_launched():
    seen = []
    launch(lambda *args: seen.append((*args, comm.get_world_size())), 1, args=(1, 2))
    assert seen == [(1, 2, 1)]
    model = Regression()
    assert create_ddp_model(model) is model


def test_storage_is_open_while_training_only():
    trainer = simple_trainer()
    hook = hooks.CallbackHook(after_step=lambda trainer: get_event_storage().put_scalar("mine", trainer.iter))
    assert train(trainer, hook, iterations=2).metrics[-1]["mine"] == 1
    with pytest.raises(AssertionError):
        get_event_storage()


@pytest.mark.parametrize("function", [model_zoo.get_config_file, model_zoo.get_checkpoint_url, model_zoo.get])
def test_unknown_names_are_not_in_the_model_zoo(function):
    with pytest.raises(RuntimeError, match="not available"):
        function("Nothing/of_this_name.yaml")
