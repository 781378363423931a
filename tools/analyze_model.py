#!/usr/bin/env python
"""Print a model's multiply-adds for an image, its parameters and, if asked for, its structure.

    tools/analyze_model.py --config-file configs/aggmask/coco_R_101_3x.yaml --size 800 1333 --cells 100
    tools/analyze_model.py --config-file configs/blendmask/coco_R_50_3x.yaml --weights blendmask_R_50_3x.pth

fvcore counts them, with this project's native ops. How much there is to do depends on what is found: SOLO, SOLOv2 and
AggMask are counted with the masks of a given number of cells, other models on an image of noise. Beside AggMask stands
its base, the same model without the aggregation, and both once more as the authors' code computes them.
"""

import argparse
import os
import textwrap

import torch
from fvcore.nn import parameter_count_table
from tabulate import tabulate

from projects.checkpoint import Checkpointer
from projects.config import setup_cfg, setup_run
from projects.flops import Counts, count_inference
from projects.methods import COUNT_FLOPS

from detectron2.config import CfgNode as CN
from detectron2.modeling import build_model

DEFAULT_CELLS = [100]


def build(cfg: CN, weights: str) -> torch.nn.Module:
    """The config's model for inference, with random weights where none are given."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if weights:
        Checkpointer(model, complete=True).load(weights)
    return model


def count(cfg: CN, model: torch.nn.Module, size: tuple[int, int], num_cells: list[int] | None) -> Counts:
    """Count the model of a config on an image of noise.

    Args:
        size: height and width, in pixels.
        num_cells: see ``--cells``.

    Raises:
        ValueError: a number of cells that the model can't have.
    """
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0)).float()
    if cfg.MODEL.META_ARCHITECTURE in COUNT_FLOPS:
        return COUNT_FLOPS[cfg.MODEL.META_ARCHITECTURE](cfg, model, image, num_cells or DEFAULT_CELLS)
    if num_cells:
        raise ValueError(
            f"--cells is for {' and '.join(COUNT_FLOPS)}, but the config's model is {cfg.MODEL.META_ARCHITECTURE}: "
            "leave it out."
        )
    return count_inference(model, image)


def flops_table(counts: Counts) -> str:
    """A row for every component, in 10⁹ multiply-adds, their sum, and what it is over the base's."""
    titles = list(counts.columns)
    components = list(dict.fromkeys(name for column in counts.columns.values() for name in column))
    rows = [[name, *(_billions(counts.columns[t].get(name)) for t in titles)] for name in components]
    rows.append(["total", *(_billions(counts.total(t)) for t in titles)])
    if counts.bases:
        rows.append(["over the base", *(f"{counts.overhead(t):+.2%}" if t in counts.bases else "" for t in titles)])
    align = ("left",) + ("right",) * len(titles)
    return tabulate(rows, ["10⁹ multiply-adds", *titles], disable_numparse=True, colalign=align)


def _billions(number: int | None) -> str:
    return "" if number is None else f"{number / 1e9:.3f}"


def _cells(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, or one for each level with commas between, not {text!r}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1333), metavar=("H", "W"), help="image, in pixels")
    parser.add_argument(
        "--cells",
        type=_cells,
        metavar="N[,N...]",
        help="of SOLO, SOLOv2 and AggMask: how many cells have masks, all levels together in proportion of their grids "
        f"(default {DEFAULT_CELLS[0]}), or a number for each level",
    )
    parser.add_argument("--weights", default="", metavar="PATH", help="checkpoint; random weights without it")
    parser.add_argument("--structure", action="store_true", help="print the model's modules, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config")
    args = parser.parse_args(arguments)
    if min(args.size) < 1:
        parser.error(f"--size takes a height and a width of 1 pixel at least, not {args.size[0]} and {args.size[1]}")
    if not os.path.isfile(args.config_file):
        parser.error(f"there is no config file {args.config_file}")
    try:
        cfg = setup_cfg(args.config_file, args.opts)
        setup_run(cfg)
        model = build(cfg, args.weights)
        counts = count(cfg, model, tuple(args.size), args.cells)
    except (FileNotFoundError, KeyError, ValueError) as error:
        # A KeyError's own text is quoted.
        parser.error(str(error.args[0] if isinstance(error, KeyError) else error))

    print(f"{args.config_file}, an image of {args.size[0]}×{args.size[1]} pixels\n\n{flops_table(counts)}\n")
    uncounted = ", ".join(f"{op} {number}" for op, number in counts.uncounted.most_common())
    print(textwrap.fill(f"Not counted, with the number of calls: {uncounted or 'none'}.", 120) + "\n")
    print(parameter_count_table(model, max_depth=2))
    if args.structure:
        print(f"\n{model}")


if __name__ == "__main__":
    main()
