#!/usr/bin/env python
"""Draw a trained model's predictions on a dataset: image, ground truth, prediction and, where the method shows them,
its internal maps side by side, one picture an image.

    tools/visualize_predictions.py --config-file configs/spatial_embeddings/shapes.yaml --output pictures \\
        MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import os

import torch
from tqdm import tqdm

from projects.checkpoint import Checkpointer
from projects.config import check_datasets, setup_cfg, setup_run
from projects.data.dataset_mapper import build_dataset_mapper
from projects.visualization import draw_ground_truth, draw_prediction, heat_map, label_colors, panel_row
from projects.visualization.results import result_paths, write_picture

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model


def internal_panels(internals: dict[str, torch.Tensor]) -> dict:
    """Every channel of a method's internal maps ([C, H, W], by name) as a picture: integers as labels, probabilities
    from 0 to 1, other numbers over their range."""
    panels = {}
    for name, maps in internals.items():
        if not maps.is_floating_point():
            panels |= {name: label_colors(labels) for labels in maps.cpu().numpy()}
            continue
        for channel, values in enumerate(maps.float().cpu().numpy()):
            low, high = (0.0, 1.0) if 0 <= values.min() and values.max() <= 1 else (values.min(), values.max())
            title = name if len(maps) == 1 else f"{name} {channel}"
            panels[f"{title} [{low:.3g}, {high:.3g}]"] = heat_map(values, low, high)
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME=annotations.json:image_dir")
    parser.add_argument("--output", required=True, help="folder of the pictures")
    parser.add_argument("--num-images", type=int, default=12, help="how many of the evaluation dataset's images")
    parser.add_argument("--height", type=int, default=256, help="of a picture, in pixels")
    parser.add_argument("--threshold", type=float, default=0.0, help="lowest score of an instance that is drawn")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config")
    args = parser.parse_args()

    cfg = setup_cfg(args.config_file, args.opts, args.dataset)
    check_datasets(cfg, cfg.DATASETS.TEST)
    setup_run(cfg)
    model = build_model(cfg).eval()
    model.keep_internals = True
    Checkpointer(model, complete=True).load(cfg.MODEL.WEIGHTS)
    mapper = build_dataset_mapper(cfg, is_train=False)
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)

    os.makedirs(args.output, exist_ok=True)
    records = DatasetCatalog.get(name)[: args.num_images]
    paths = result_paths([record["file_name"] for record in records], args.output, ".png")
    for record, path in zip(tqdm(records, desc="pictures", unit="image"), paths):
        image = read_image(record["file_name"], format="RGB")
        with torch.no_grad():
            (prediction,) = model([mapper(record)])
        # Drawn at the picture's size, so that outlines and names are sharp.
        scale = args.height / image.shape[0]
        panels = {
            "image": image,
            "ground truth": draw_ground_truth(image, record, metadata, scale),
            "prediction": draw_prediction(image, prediction, metadata, args.threshold, scale),
            **internal_panels(prediction.get("internals", {})),
        }
        write_picture(path, panel_row(panels, args.height))
    print(f"Pictures are in {os.path.abspath(args.output)}")


if __name__ == "__main__":
    main()
