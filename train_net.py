#!/usr/bin/env python
"""Train and evaluate any model of this project, with Detectron2's command line.

    train_net.py --config-file configs/spatial_embeddings/shapes.yaml --num-gpus 1
    train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    train_net.py --config-file ... --dataset parts_train=train.json:images --dataset parts_val=val.json:images
"""

import functools
import os

from projects.config import check_datasets, setup_cfg, setup_run
from projects.data.dataset_mapper import build_dataset_mapper
from projects.evaluation import build_evaluator
from projects.solver import build_lr_scheduler, build_optimizer

import detectron2.engine.defaults
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm


class Trainer(DefaultTrainer):
    """Detectron2's trainer; mapper, evaluator, optimizer and schedule are chosen by the config."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=build_dataset_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=build_dataset_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return build_evaluator(dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)


def setup(args):
    """The config of this process, checked, with logs and output folder in place."""
    cfg = setup_cfg(args.config_file, args.opts, args.dataset)
    check_datasets(cfg, cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
    setup_run(cfg, comm.get_rank(), cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def evaluate(cfg, resume):
    """Evaluate the weights of MODEL.WEIGHTS or, with ``resume``, of the output folder's last checkpoint."""
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(cfg, resume):
    """Train, from the output folder's last checkpoint with ``resume``, and evaluate."""
    if cfg.MODEL.DEVICE == "cpu":
        # Detectron2 names a GPU to DistributedDataParallel, which takes none for a model on the CPU.
        create_ddp_model = functools.partial(detectron2.engine.defaults.create_ddp_model, device_ids=None)
        detectron2.engine.defaults.create_ddp_model = create_ddp_model
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def main(args):
    cfg = setup(args)
    return evaluate(cfg, args.resume) if args.eval_only else train(cfg, args.resume)


def argument_parser():
    """Detectron2's arguments, and ``--dataset``."""
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_dir",
        help="your own data in COCO's format, registered as NAME; may be given several times. The first one trains and "
        "the last one evaluates, unless DATASETS.TRAIN and DATASETS.TEST are given.",
    )
    return parser


if __name__ == "__main__":
    args = argument_parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
