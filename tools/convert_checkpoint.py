#!/usr/bin/env python
"""Write a published checkpoint as one of Detectron2's, with this project's names.

    tools/convert_checkpoint.py cars_pretrained_model.pth cityscapes_car.pth --method spatial_embeddings

MODEL.WEIGHTS and projects.model_zoo.load_published take a published file as it is.
"""

import argparse
import os

import torch

from projects.files import write_whole
from projects.model_zoo import convert, read_checkpoint


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="path or URL of the published checkpoint")
    parser.add_argument("output", help="path of the file to write")
    parser.add_argument("--method", required=True, help="package of the method, spatial_embeddings say")
    args = parser.parse_args(arguments)
    if os.path.exists(args.output) and os.path.exists(args.input) and os.path.samefile(args.input, args.output):
        parser.error(f"{args.output} is the input, which is not overwritten. Give another path for the output.")
    try:
        weights = convert(read_checkpoint(args.input), args.method)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    with write_whole(args.output) as file:
        torch.save({"model": weights}, file)
    print(f"{len(weights)} weights are in {os.path.abspath(args.output)}")


if __name__ == "__main__":
    main()
