"""What most trainings and demos do alike: the command line, the set-up, a predictor and a trainer."""

import argparse
import logging
import os
import sys
import weakref

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch.nn.parallel import DistributedDataParallel

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from . import hooks
from .train_loop import AMPTrainer, SimpleTrainer, TrainerBase


def create_ddp_model(model, *, fp16_compression=False, **kwargs):
    """``model`` wrapped in DistributedDataParallel(**kwargs) where there is more than one process.

    ``fp16_compression``: send gradients as float16.
    """
    if comm.get_world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of a training; ``epilog`` replaces the examples at the end of its help."""
    program = sys.argv[0]
    examples = f"""
Examples:
    one machine:       {program} --num-gpus 8 --config-file cfg.yaml
    changed options:   {program} --config-file cfg.yaml MODEL.WEIGHTS weights.pth SOLVER.BASE_LR 0.001
    several machines:  {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [further flags]
                       {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [further flags]
"""
    # The port is the user's own, so that one taken by orphans of an earlier training shows.
    user = os.getuid() if hasattr(os, "getuid") else 1
    dist_url = f"tcp://127.0.0.1:{3 * 2**14 + hash(user) % 2**14}"

    parser = argparse.ArgumentParser(
        epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="the config")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one")
    add("--eval-only", action="store_true", help="evaluate, don't train")
    add("--num-gpus", type=int, default=1, help="GPUs, that is processes, on each machine")
    add("--num-machines", type=int, default=1, help="machines in all")
    add("--machine-rank", type=int, default=0, help="which of the machines this is, from 0")
    add("--dist-url", default=dist_url, help="where the processes meet, see torch.distributed")
    add("opts", nargs=argparse.REMAINDER, help="changed config options, as pairs: KEY VALUE KEY VALUE ...")
    return parser


def default_setup(cfg, args) -> None:
    """What comes before everything else in a program.

    Logs to stdout and ``OUTPUT_DIR/log.txt``, writes ``OUTPUT_DIR/config.yaml``, and seeds the random numbers
    with ``SEED`` plus the process' rank (or at random, if SEED is negative).
    """
    output_dir, rank = cfg.OUTPUT_DIR, comm.get_rank()
    writes = comm.is_main_process() and output_dir
    if writes:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file) as f:
            logger.info("Contents of args.config_file=%s:\n%s", config_file, f.read())
    if writes:
        path = os.path.join(output_dir, "config.yaml")
        logger.info("Running with full config:\n%s", cfg.dump())
        with PathManager.open(path, "w") as f:
            f.write(cfg.dump())
        logger.info("Full config saved to %s", path)

    seed_all_rng(cfg.SEED + rank if cfg.SEED >= 0 else None)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
        logger.info("Precision of float32 products: %s", cfg.FLOAT32_PRECISION)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers of metrics to the log, and to ``output_dir``: to ``metrics.json`` and for tensorboard."""
    PathManager.mkdirs(output_dir)
    json_writer = JSONWriter(os.path.join(output_dir, "metrics.json"))
    return [CommonMetricPrinter(max_iter), json_writer, TensorboardXWriter(output_dir)]


class DefaultPredictor:
    """The model of a config, with MODEL.WEIGHTS, for one image at a time.

    ``metadata`` is that of the first of DATASETS.TEST.
    """

    def __init__(self, cfg):
        self.cfg = cfg.clone()
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), f"INPUT.FORMAT is {self.input_format}, not RGB or BGR"
        self.model = build_model(self.cfg)
        self.model.eval()
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        short_edge = [cfg.INPUT.MIN_SIZE_TEST] * 2
        self.aug = T.ResizeShortestEdge(short_edge, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """The model's output for an image [H, W, 3] in BGR order."""
        if self.input_format == "RGB":
            original_image = original_image[:, :, ::-1]
        height, width = original_image.shape[:2]
        resized = self.aug.get_transform(original_image).apply_image(original_image)
        image = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": image, "height": height, "width": width}])[0]


class DefaultTrainer(TrainerBase):
    """Training and evaluation of what a config describes; override the ``build_*`` methods to change a part.

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()

    Attributes: ``cfg``, ``model``, ``optimizer``, ``data_loader``, ``scheduler``, ``checkpointer``.
    """

    def __init__(self, cfg):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.max_iter = cfg.SOLVER.MAX_ITER

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        step_trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        # Both the model and the loader draw random numbers, in this order.
        loader = self.build_train_loader(cfg)
        self._trainer = step_trainer(create_ddp_model(model, broadcast_buffers=False), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """With ``resume``, go on from the last checkpoint in OUTPUT_DIR; without (or without one), start from
        iteration 0 with the weights MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # the checkpoint has the iteration that was done

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Hooks for timing, schedule, precise BatchNorm, checkpoints, evaluation and logs, in this order:
        checkpoints have the precise statistics, evaluations can be repeated from them, and logs have it all.
        """
        cfg = self.cfg
        checkpoints, writers = [], []
        if comm.is_main_process():
            checkpoints = [hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)]
            writers = [hooks.PeriodicWriter(self.build_writers(), period=20)]
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._precise_bn() if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model) else None,
            *checkpoints,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test_and_keep_results),
            *writers,
        ]

    def _precise_bn(self) -> hooks.PreciseBN:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)  # the training's own would lose data
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def _test_and_keep_results(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict | None:
        """Train up to SOLVER.MAX_ITER. With TEST.EXPECTED_RESULTS, verify and return the final results."""
        super().train(self.start_iter, self.max_iter)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            assert hasattr(self, "_last_eval_results"), "nothing was evaluated, EXPECTED_RESULTS has no match"
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict:
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg) -> torch.nn.Module:
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name) -> DatasetEvaluator:
        raise NotImplementedError("To evaluate, a DefaultTrainer needs a build_evaluator(cfg, dataset_name)")

    @classmethod
    def test(cls, cfg, model, evaluators=None) -> dict:
        """Evaluate ``model`` on each of DATASETS.TEST.

        ``evaluators``: one for each of them, or None for those of ``build_evaluator``. Returns the results by
        dataset, or those of the only one.
        """
        logger = logging.getLogger(__name__)
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(evaluators) == len(names), f"{len(evaluators)} evaluators for DATASETS.TEST {names}"
        results = {}
        for index, name in enumerate(names):
            loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            except NotImplementedError as error:
                logger.warning("No evaluation on %s: %s", name, error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                assert isinstance(results[name], dict), f"evaluators must return a dict, got {results[name]}"
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return results[names[0]] if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """The config for ``num_workers`` processes, if it was made for another SOLVER.REFERENCE_WORLD_SIZE.

        The batch and the learning rate grow with the processes, and the iterations become fewer. The config
        itself if the reference is 0.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        batch = cfg.SOLVER.IMS_PER_BATCH
        assert batch % reference == 0, f"IMS_PER_BATCH {batch} is not a multiple of {reference}"
        frozen, cfg = cfg.is_frozen(), cfg.clone()
        cfg.defrost()
        scale = num_workers / reference

        def fewer(iterations: int) -> int:
            return int(round(iterations / scale))

        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = int(round(batch * scale))
        solver.BASE_LR *= scale
        solver.STEPS = tuple(fewer(step) for step in solver.STEPS)
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = fewer(solver[key])
        cfg.TEST.EVAL_PERIOD = fewer(cfg.TEST.EVAL_PERIOD)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logging.getLogger(__name__).info(
            "Scaled the config to %d processes: batch size %d, learning rate %g, %d iterations",
            num_workers, solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER,
        )  # fmt: skip
        if frozen:
            cfg.freeze()
        return cfg


def _attribute_of_trainer(name: str) -> property:
    def set_value(self, value):
        setattr(self._trainer, name, value)

    return property(lambda self: getattr(self._trainer, name), set_value)


for _name in ("model", "data_loader", "optimizer"):
    setattr(DefaultTrainer, _name, _attribute_of_trainer(_name))
