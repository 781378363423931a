#!/usr/bin/env python
"""Train and evaluate any model of this project, with Detectron2's command line.

    train_net.py --config-file configs/spatial_embeddings/shapes.yaml --num-gpus 1
    train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    train_net.py --config-file ... --dataset parts_train=train.json:images --dataset parts_val=val.json:images
"""

import json
import os
import weakref

from projects.checkpoint import Checkpointer
from projects.config import check_datasets, setup_cfg, setup_run
from projects.data.dataset_mapper import build_dataset_mapper, learns_masks
from projects.data.naming_mapper import NamingMapper
from projects.data.training_data import load_training_data
from projects.devices import choose_devices, distributed_on
from projects.evaluation import build_evaluator
from projects.files import drop_partial_line, explaining_full_disk, write_whole
from projects.finite_loss import FiniteLoss
from projects.num_classes import predicts_panoptic, predicts_semantics
from projects.solver import build_lr_scheduler, build_optimizer

from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm


class Trainer(DefaultTrainer):
    """Detectron2's trainer; mapper, evaluator, optimizer and schedule are chosen by the config.

    It may be stopped at any moment and resumed, and stops by itself where the loss is not finite.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self._trainer.register_hooks([FiniteLoss(self._trainer.model)])

    def build_hooks(self):
        self.checkpointer = Checkpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return super().build_hooks()

    def resume_or_load(self, resume=True):
        self.checkpointer.remove_unfinished()
        super().resume_or_load(resume)

    def build_writers(self):
        drop_partial_line(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
        return super().build_writers()

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = NamingMapper(build_dataset_mapper(cfg, is_train=True))
        return build_detection_train_loader(cfg, mapper=mapper, dataset=load_training_data(cfg))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = NamingMapper(build_dataset_mapper(cfg, is_train=False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        semantics, panoptic = predicts_semantics(cfg), predicts_panoptic(cfg)
        return build_evaluator(dataset_name, folder, masks=learns_masks(cfg), semantics=semantics, panoptic=panoptic)

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
    """Evaluate the weights of MODEL.WEIGHTS or, with ``resume``, of the output folder's last checkpoint.

    What metrics.json has of an evaluation in training, evaluation.json has of this one.
    """
    model = Trainer.build_model(cfg)
    Checkpointer(model, save_dir=cfg.OUTPUT_DIR, complete=True).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        with write_whole(os.path.join(cfg.OUTPUT_DIR, "evaluation.json")) as file:
            file.write(json.dumps(flatten_results_dict(results)).encode())
        verify_results(cfg, results)
    return results


def train(cfg, resume):
    """Train, from the output folder's last checkpoint with ``resume``, and evaluate."""
    with distributed_on(cfg.MODEL.DEVICE):
        trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train()


def main(args):
    cfg = setup(args)
    with explaining_full_disk(cfg.OUTPUT_DIR):
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
    choose_devices(setup_cfg(args.config_file, args.opts, args.dataset).MODEL.DEVICE)
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
