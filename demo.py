#!/usr/bin/env python
"""Run a trained model on images, folders, globs or videos.

    demo.py --config-file configs/spatial_embeddings/shapes.yaml --input photos/ "more/*.jpg" clip.mp4 --output results \\
        --opts MODEL.WEIGHTS output/model_final.pth

Writes a picture for every image and a video for every video to the output folder; without ``--output`` shows a window.
"""

import argparse
import glob
import logging
import os
import sys
from typing import Iterator

import cv2
import numpy as np
from tqdm import tqdm

from projects.checkpoint import Checkpointer
from projects.config import setup_cfg, setup_run
from projects.visualization.draw import confident, draw_prediction
from projects.visualization.results import result_paths, write_picture

from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.utils.video_visualizer import VideoVisualizer

logger = logging.getLogger("projects.demo")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
WINDOW = "demo (any key: next, q or Escape: quit)"


class QuitError(Exception):
    """The user closed the window."""


class InputError(Exception):
    """A file is not the image or video that its name says, or is broken."""


def find_inputs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Images and videos among files, folders and globs; both sorted within an argument, in the arguments' order.

    Raises:
        FileNotFoundError: an argument matches nothing, or holds no image or video.
        ValueError: a file is of no known kind.
    """
    images, videos = [], []
    for argument in arguments:
        paths = [argument] if os.path.exists(argument) else sorted(glob.glob(os.path.expanduser(argument)))
        if not paths:
            raise FileNotFoundError(f"--input {argument!r} is no file or folder, and as a glob matches none.")
        for path in paths:
            found_images, found_videos = _expand(path)
            images += found_images
            videos += found_videos
    return images, videos


def _expand(path: str) -> tuple[list[str], list[str]]:
    """The images and videos that one file or folder stands for."""
    paths = sorted(os.path.join(path, name) for name in os.listdir(path)) if os.path.isdir(path) else [path]
    images = [x for x in paths if x.lower().endswith(IMAGE_SUFFIXES)]
    videos = [x for x in paths if x.lower().endswith(VIDEO_SUFFIXES)]
    if images or videos:
        return images, videos
    known = " ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
    if os.path.isdir(path):
        raise FileNotFoundError(f"The folder {path!r} has no image or video ({known}).")
    raise ValueError(f"{path!r} is neither an image nor a video ({known}).")


def show(picture: np.ndarray, delay: int) -> None:
    """Show an RGB picture in a window for ``delay`` milliseconds, 0 until a key is pressed."""
    try:
        cv2.imshow(WINDOW, picture[:, :, ::-1])
    except cv2.error as error:
        raise RuntimeError(
            "This OpenCV has no windows (opencv-python-headless, or no display). Give --output to write files, or "
            "install opencv-python."
        ) from error
    if cv2.waitKey(delay) & 0xFF in (ord("q"), 27):
        raise QuitError


def build_predictor(cfg) -> DefaultPredictor:
    """Detectron2's predictor; ValueError where MODEL.WEIGHTS lacks a weight of the model, which would be random."""
    without_weights = cfg.clone()
    without_weights.MODEL.WEIGHTS = ""
    predictor = DefaultPredictor(without_weights)
    Checkpointer(predictor.model, complete=True).load(cfg.MODEL.WEIGHTS)
    return predictor


def read_picture(path: str) -> np.ndarray:
    """An image file as uint8 [H, W, 3], BGR. Raises InputError."""
    try:
        return read_image(path, format="BGR")
    except Exception as error:  # Pillow has many, depending on where the file is broken
        raise InputError(str(error)) from error


def run_image(predictor: DefaultPredictor, path: str, metadata, threshold: float, output: str | None) -> None:
    """Draw the predictions of an image into the file ``output``, or a window."""
    image = read_picture(path)
    picture = draw_prediction(image[:, :, ::-1], predictor(image), metadata, threshold)
    if output:
        write_picture(output, picture)
    else:
        show(picture, 0)


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 [H, W, 3], BGR."""
    while True:
        more, frame = video.read()
        if not more:
            return
        yield frame


def run_video(predictor: DefaultPredictor, path: str, metadata, threshold: float, output: str | None) -> None:
    """Draw the predictions of every frame into the video file ``output``, or a window; an object keeps its colour."""
    video = cv2.VideoCapture(path)
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if not video.isOpened() or min(size) <= 0:
        raise InputError("it is no video that OpenCV can read")
    rate = video.get(cv2.CAP_PROP_FPS) or 25
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    writer = cv2.VideoWriter(output, cv2.VideoWriter_fourcc(*"mp4v"), rate, size) if output else None
    if writer and not writer.isOpened():
        raise OSError(f"{output} can't be written")
    visualizer = VideoVisualizer(metadata)
    try:
        for frame in tqdm(read_frames(video), desc=os.path.basename(path), total=count if count > 0 else None):
            picture = draw_frame(visualizer, frame[:, :, ::-1], predictor(frame), threshold)
            if writer:
                writer.write(cv2.resize(picture, size)[:, :, ::-1])
            else:
                show(picture, max(1, round(1000 / rate)))
    finally:
        video.release()
        if writer:
            writer.release()


def draw_frame(visualizer: VideoVisualizer, frame: np.ndarray, prediction: dict, threshold: float) -> np.ndarray:
    """Draw a model's output over a frame (uint8 [H, W, 3], RGB)."""
    if "panoptic_seg" in prediction:
        segments, info = prediction["panoptic_seg"]
        return visualizer.draw_panoptic_seg_predictions(frame, segments.cpu(), info).get_image()
    if "instances" in prediction:
        instances = confident(prediction["instances"], threshold).to("cpu")
        return visualizer.draw_instance_predictions(frame, instances).get_image()
    return visualizer.draw_sem_seg(frame, prediction["sem_seg"].argmax(dim=0).cpu()).get_image()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, globs, videos")
    parser.add_argument("--output", help="folder of the results; without it they are shown in a window")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score of an instance that is drawn")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_dir",
        help="your own dataset that the model was trained on, for its class names",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config")
    args = parser.parse_args()

    images, videos = find_inputs(args.input)
    folders = {os.path.realpath(os.path.dirname(path)) for path in images + videos}
    if args.output and os.path.realpath(args.output) in folders:
        parser.error(f"--output {args.output} holds inputs, which results of the same name would replace")
    cfg = setup_cfg(args.config_file, args.opts, args.dataset)
    setup_run(cfg)
    predictor = build_predictor(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "no dataset")

    jobs = [(run_image, images, ""), (run_video, videos, ".mp4")]
    failed = 0
    for run, paths, suffix in jobs:
        if args.output:
            os.makedirs(args.output, exist_ok=True)
        results = result_paths(paths, args.output, suffix) if args.output else [None] * len(paths)
        progress = tqdm(paths, desc="images", unit="image", disable=run is run_video or not args.output)
        for path, result in zip(progress, results):
            try:
                run(predictor, path, metadata, args.threshold, result)
            except InputError as error:
                logger.error("%s is left out: %s", path, error)
                failed += 1
            except QuitError:
                return 0
    if args.output:
        print(f"{len(images) + len(videos) - failed} results are in {os.path.abspath(args.output)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
