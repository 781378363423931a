#!/usr/bin/env python
"""Show that two environments, one with Detectron2 and one on the fallback, compute the same.

    python tools/parity.py --pythons .venv/bin/python /path/with/detectron2/bin/python \\
        --config-file configs/spatial_embeddings/shapes_demo.yaml \\
        MODEL.WEIGHTS output/spatial_embeddings_demo/model_final.pth

In each: the config's keys and values, the first batch and its losses from one seed; then each loads the other's
checkpoint, without a missing or unexpected key, and predicts. Prints one line a comparison and exits with 1 where one
fails.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOSS_TOLERANCE = 1e-4
NUM_PREDICTED = 4


def probe(config_file: str, opts: list[str], folder: Path, checkpoint: str | None) -> dict:
    """What this environment computes; with ``checkpoint`` its predictions, else the first batch and losses."""
    import torch

    from projects.config import setup_cfg
    from train_net import Trainer

    import detectron2
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import EventStorage

    cfg = setup_cfg(config_file, [*opts, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"])
    seed_all_rng(7)
    model = Trainer.build_model(cfg)
    if checkpoint:
        problems = model.load_state_dict(torch.load(checkpoint, weights_only=False)["model"], strict=False)
        DetectionCheckpointer(model).load(checkpoint)
        model.eval()
        batches = iter(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))
        with torch.no_grad():
            predictions = [arrays(model(next(batches))[0]) for _ in range(NUM_PREDICTED)]
        return {"keys": [*problems.missing_keys, *problems.unexpected_keys], "predictions": predictions}
    batch = next(iter(Trainer.build_train_loader(cfg)))
    DetectionCheckpointer(model, str(folder)).load(cfg.MODEL.WEIGHTS)
    DetectionCheckpointer(model, str(folder)).save("model")
    with EventStorage():
        losses = model(batch)
    return {
        "detectron2": f"{detectron2.__version__} in {os.path.dirname(detectron2.__file__)}",
        "config": cfg.dump(),
        "batch": [{k: v.numpy() for k, v in x.items() if isinstance(v, torch.Tensor)} for x in batch],
        "losses": {k: v.item() for k, v in losses.items()},
    }


def arrays(prediction: dict) -> dict:
    """What a model predicts of an image, by name: its instances' fields, its semantics and its panoptic segments."""
    found = {name: getattr(value, "tensor", value) for name, value in prediction["instances"].get_fields().items()}
    if "sem_seg" in prediction:
        found["sem_seg"] = prediction["sem_seg"]
    if "panoptic_seg" in prediction:
        found["panoptic_seg"] = prediction["panoptic_seg"][0]
    return {name: value.float().numpy() for name, value in found.items()}


def run_probe(python: str, folder: Path, arguments: list[str]) -> dict:
    """``probe`` in the environment of another interpreter."""
    folder.mkdir(exist_ok=True)
    result = folder / "probe.pkl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [python, "-W", "ignore", str(Path(__file__).resolve()), "--probe", str(result), *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return pickle.loads(result.read_bytes())


def compare(pythons: list[str], arguments: list[str], folder: Path) -> bool:
    """Print every comparison; whether all hold."""
    import numpy as np

    def report(name: str, holds: bool, detail: str = "") -> bool:
        print(f"{'same' if holds else 'DIFFERENT':10}{name}{': ' if detail else ''}{detail}")
        return holds

    folders = [folder / str(k) for k in range(2)]
    one, two = (run_probe(python, f, arguments) for python, f in zip(pythons, folders))
    print(f"Detectron2 {one['detectron2']}\n      and  {two['detectron2']}")
    equal_batches = len(one["batch"]) == len(two["batch"]) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(one["batch"], two["batch"])
    )
    gap = max(abs(value - two["losses"][name]) for name, value in one["losses"].items())
    holds = [
        report("config", one["config"] == two["config"], f"{len(one['config'].splitlines())} lines"),
        report("first batch", equal_batches, f"{len(one['batch'])} images"),
        report("first losses", gap <= LOSS_TOLERANCE, f"largest difference {gap:.1e}"),
    ]
    for maker in range(2):
        checkpoint = ["--checkpoint", str(folders[maker] / "model.pth")]
        mine, other = (run_probe(pythons[k], folders[k], [*checkpoint, *arguments]) for k in (maker, 1 - maker))
        holds.append(report(f"keys of {maker}'s checkpoint in {1 - maker}", not other["keys"], str(other["keys"])))
        equal = all(
            x.keys() == y.keys() and all(x[k].shape == y[k].shape and np.allclose(x[k], y[k], atol=1e-4) for k in x)
            for x, y in zip(mine["predictions"], other["predictions"])
        )
        count = sum(len(p["scores"]) for p in mine["predictions"])
        holds.append(report(f"predictions from {maker}'s checkpoint", equal, f"{count} instances"))
    return all(holds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs=2, metavar="PYTHON", help="the interpreters of the two environments")
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config")
    args = parser.parse_args()
    if args.probe:
        path = Path(args.probe)
        path.write_bytes(pickle.dumps(probe(args.config_file, args.opts, path.parent, args.checkpoint)))
        return 0
    if not args.pythons:
        parser.error("--pythons PYTHON PYTHON is needed")
    with tempfile.TemporaryDirectory() as folder:
        return 0 if compare(args.pythons, ["--config-file", args.config_file, *args.opts], Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
