#!/usr/bin/env python
"""Repeat a claim of a paper on data at hand: train what it compares, and print its table beside the published figures.

    tools/claims.py spatial_embeddings_ablation --seeds 1 2 3 --output output/claims/ablation
    tools/claims.py spatial_embeddings_ablation --seeds 1 --rows scalar_learnt --opts SOLVER.MAX_ITER 20

Every run is a ``train_net.py`` of its own in a folder of its own. Runs that are finished are not run again and an
interrupted one goes on, so the same command may be given until the table is there.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from projects.config import check_datasets, configs_dir, setup_cfg
from projects.files import drop_partial_line, write_whole
from tabulate import tabulate

from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parent.parent
LOG_TAIL = 30  # lines of a failed run's output that are shown


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        title: its name in the table.
        config: the file, in configs/.
        opts: what is changed in it, keys and values.
        published: the published figure, in words or digits.
        trained_as: the row whose training this one only evaluates, with its own ``opts``; itself where empty.
    """

    title: str
    config: str
    opts: tuple[str, ...]
    published: str
    trained_as: str = ""


def ablation_row(bandwidth: str, center: str, paper_ap: str) -> Row:
    keys = {"BANDWIDTH": bandwidth, "CENTER": center}
    opts = [x for key, value in keys.items() for x in (f"MODEL.SPATIAL_EMBEDDINGS.{key}", value)]
    title = f"{bandwidth} bandwidth, {center} centre"
    return Row(title, "spatial_embeddings/shapes_ablation.yaml", tuple(opts), paper_ap)


# Neven et al., CVPR 2019, Table 1: AP on Cityscapes val with ground-truth sampling.
ABLATION_ROWS = {
    "fixed_centroid": ablation_row("fixed", "centroid", "28.0"),
    "scalar_centroid": ablation_row("scalar", "centroid", "38.7"),
    "scalar_learnt": ablation_row("scalar", "learnt", "39.5"),
    "elliptical_centroid": ablation_row("elliptical", "centroid", "39.1"),
    "elliptical_learnt": ablation_row("elliptical", "learnt", "40.5"),
}


# AdelaiDet's README of BlendMask (configs/BlendMask): mask AP on COCO val of ResNet-50, 1x.
BLENDMASK_ROWS = {
    "mask_rcnn": Row("Mask R-CNN", "baselines/shapes_small_mask_rcnn.yaml", (), "35.2"),
    "blendmask": Row("BlendMask", "blendmask/shapes_small.yaml", (), "35.8"),
}


# Gao et al., ICCV 2019: Section 4, AP on Cityscapes val of the cascade against the finest level alone.
SSAP_CONFIG = "ssap/shapes_small.yaml"
FINEST = ("MODEL.SSAP.NUM_CASCADE_LEVELS", "1")
SEPARATE = ("MODEL.SSAP.JOINT", "False")
SSAP_ROWS = {
    "joint": Row("joint training, full cascade", SSAP_CONFIG, (), "9 % above the next"),
    "joint_finest": Row("joint training, finest level alone", SSAP_CONFIG, FINEST, "", trained_as="joint"),
    "separate": Row("separate training, full cascade", SSAP_CONFIG, SEPARATE, ""),
    "separate_finest": Row(
        "separate training, finest level alone", SSAP_CONFIG, SEPARATE + FINEST, "", trained_as="separate"
    ),
}


# The authors' README: mask AP on COCO minival of ResNet-101.
AGGMASK_ROWS = {
    "solo": Row("SOLO", "aggmask/shapes_small_solo.yaml", (), "2.0 below AggMask"),
    "aggmask": Row("AggMask", "aggmask/shapes_small_aggmask.yaml", (), "38.6"),
    "aggmask_half": Row("AggMask, half the mask grid", "aggmask/shapes_small_aggmask_half.yaml", (), "38.8"),
}


# Li, Qi, Torr, CVPR 2020: the full system's figures, of a ResNet-50. Panoptic FPN's is Detectron2's model zoo's.
AFFINITY_CONFIG = "panoptic_affinity/shapes_small{}.yaml"
AFFINITY_ROWS = {
    "panoptic_fpn": Row("Panoptic FPN", "baselines/shapes_small_panoptic_fpn.yaml", (), "COCO 41.5 (3x)"),
    "potentials": Row("potentials alone", AFFINITY_CONFIG.format("_potentials"), (), ""),
    "affinity": Row("potentials and affinity", AFFINITY_CONFIG.format(""), (), ""),
    "mask_cues": Row(
        "potentials with mask cues, and affinity",
        AFFINITY_CONFIG.format("_masks"),
        (),
        "COCO 43.4, Cityscapes 61.4",
    ),
}


MASK_COLUMNS = {"mask AP": "segm/AP", "mask AP50": "segm/AP50"}
PANOPTIC_COLUMNS = {name: f"panoptic_seg/{name}" for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")}


@dataclass(frozen=True)
class Claim:
    """Rows to be trained on the same data and compared.

    Attributes:
        rows: by name.
        published_column: what the published figures are.
        columns: what is compared: a column's title, and an evaluation's name for it.
    """

    rows: dict[str, Row]
    published_column: str
    columns: dict[str, str]


CLAIMS = {
    "spatial_embeddings_ablation": Claim(ABLATION_ROWS, "paper's AP (Cityscapes val)", MASK_COLUMNS),
    "blendmask_mask_rcnn": Claim(BLENDMASK_ROWS, "AdelaiDet's AP (COCO val)", MASK_COLUMNS),
    "aggmask_solo": Claim(AGGMASK_ROWS, "authors' AP (COCO minival)", MASK_COLUMNS),
    "ssap_cascade": Claim(
        SSAP_ROWS, "paper's AP (Cityscapes val)", MASK_COLUMNS | {"PQ": "panoptic_seg/PQ", "mIoU": "sem_seg/mIoU"}
    ),
    "panoptic_affinity": Claim(AFFINITY_ROWS, "published PQ (val)", PANOPTIC_COLUMNS),
}


def finished_evaluation(folder: Path, measures: Sequence[str]) -> dict | None:
    """What an evaluation that is nothing else wrote, as ``finished_training``."""
    evaluation = folder / "evaluation.json"
    results = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    return results if results.keys() >= set(measures) else None


def finished_training(folder: Path, measures: Sequence[str]) -> dict | None:
    """What a training's last evaluation wrote, by name, ``measures`` among it; None before there is one."""
    metrics, weights = folder / "metrics.json", folder / "model_final.pth"
    if not (metrics.is_file() and weights.is_file()):
        return None
    drop_partial_line(str(metrics))  # of a run that was killed
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return next((line for line in reversed(lines) if line.keys() >= set(measures)), None)


def run_row(folder: Path, config_file: Path, opts: Sequence[str], measures: Sequence[str], evaluates: bool) -> dict:
    """Train and evaluate in ``folder``, or go on there, unless that is done.

    Args:
        measures: what the evaluation must give, by name ("segm/AP", ...).
        evaluates: only evaluate, weights that ``opts`` name.

    Returns:
        the last evaluation's results by name, and "minutes" of all the processes it took.

    Raises:
        SystemExit: the run failed, or the folder holds one with other options.
    """
    record, finished = folder / "run.json", finished_evaluation if evaluates else finished_training
    run = {"config": config_file.name, "opts": list(opts), "minutes": 0.0}
    if record.is_file():
        earlier = json.loads(record.read_text())
        if any(earlier[key] != run[key] for key in ("config", "opts")):
            raise SystemExit(
                f"{folder} holds a run of {earlier['config']} with {' '.join(earlier['opts'])}, not of {run['config']} "
                f"with {' '.join(opts)}. Give another --output, or remove the folder."
            )
        run = earlier
    if finished(folder, measures) is None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(record, run)
        start = time.monotonic()
        try:
            _train_net(folder, config_file, ["--eval-only" if evaluates else "--resume", *opts])
        finally:
            run["minutes"] += (time.monotonic() - start) / 60
            _write(record, run)
    results = finished(folder, measures)
    if results is None:
        raise SystemExit(f"The run in {folder} has ended without {', '.join(measures)}: its evaluation gives others.")
    return {**results, "minutes": run["minutes"]}


def trained_weights(folder: Path, name: str, measures: Sequence[str]) -> Path:
    """The weights of a row's finished training. Raises SystemExit where there are none."""
    if finished_training(folder, measures) is None:
        raise SystemExit(f"There is no finished training in {folder}: add {name} to --rows, before what evaluates it.")
    return folder / "model_final.pth"


def _write(path: Path, content: dict) -> None:
    with write_whole(str(path)) as file:
        file.write(json.dumps(content).encode())


def _train_net(folder: Path, config_file: Path, arguments: Sequence[str]) -> None:
    """Run ``train_net.py`` on ``folder``; its output goes to output.txt there."""
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config_file)]
    output = folder / "output.txt"
    with output.open("w") as file:
        failed = subprocess.run([*command, *arguments, "OUTPUT_DIR", str(folder)], stdout=file, stderr=subprocess.STDOUT)
    if failed.returncode:
        tail = "\n".join(output.read_text().splitlines()[-LOG_TAIL:])
        raise SystemExit(f"{tail}\n\nThe run in {folder} failed with exit status {failed.returncode}; see {output}.")


def summary(values: Sequence[float]) -> str:
    """Mean and, of more than one, sample standard deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def table(claim: Claim, results: dict[str, list[dict]]) -> str:
    """The claim's table in markdown; ``results`` has the runs of every row that was trained."""
    headers = ["", claim.published_column, *claim.columns, "minutes a run"]
    lines = [
        [claim.rows[name].title, claim.rows[name].published]
        + [summary([run[key] for run in runs]) for key in (*claim.columns.values(), "minutes")]
        for name, runs in results.items()
    ]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def conditions(titles: Sequence[str], cfgs: Sequence[CfgNode]) -> str:
    """What rows are evaluated on, and after how many iterations: once, or row by row where they differ."""
    texts = [f"{', '.join(cfg.DATASETS.TEST)}, {cfg.SOLVER.MAX_ITER} iterations" for cfg in cfgs]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"{title}: {text}" for title, text in zip(titles, texts))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS, help="which claim")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="one run a row for each")
    parser.add_argument("--rows", nargs="+", help="only these rows, by name")
    parser.add_argument("--output", type=Path, help="folder of the runs, output/claims/CLAIM if not given")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over every run's config")
    args = parser.parse_args(arguments)
    claim = CLAIMS[args.claim]
    names = args.rows or list(claim.rows)
    if unknown := set(names) - set(claim.rows):
        parser.error(f"no row of {args.claim} is called {', '.join(sorted(unknown))}; rows: {', '.join(claim.rows)}")

    rows = [claim.rows[name] for name in names]
    cfgs = [setup_cfg(str(configs_dir() / row.config), [*row.opts, *args.opts]) for row in rows]
    for cfg in cfgs:
        check_datasets(cfg, cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
    output = args.output or Path("output/claims", args.claim)
    results: dict[str, list[dict]] = {name: [] for name in names}
    title, measures = next(iter(claim.columns)), list(claim.columns.values())
    # Seed by seed, so that an interrupted command has compared all rows as far as it came.
    for seed in args.seeds:
        for name, row in zip(names, rows):
            opts = [*row.opts, *args.opts, "SEED", str(seed)]
            if row.trained_as:
                weights = trained_weights(output / f"{row.trained_as}_seed{seed}", row.trained_as, measures)
                opts += ["MODEL.WEIGHTS", str(weights)]
            folder = output / f"{name}_seed{seed}"
            run = run_row(folder, configs_dir() / row.config, opts, measures, evaluates=bool(row.trained_as))
            results[name].append(run)
            print(f"{name}, seed {seed}: {title} {run[measures[0]]:.1f}, {run['minutes']:.1f} min", file=sys.stderr)
    print(f"\n{conditions([row.title for row in rows], cfgs)}; seeds {args.seeds}\n")
    print(table(claim, results))


if __name__ == "__main__":
    # Terminated like this it ends its run too, which would otherwise go on and meet the one that resumes it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    main()
