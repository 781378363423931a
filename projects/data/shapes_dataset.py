"""Write a Shapes dataset to disk, whole or not at all:

    python -m projects.data.shapes --preset shapes_demo --output datasets
"""

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from typing import Optional

import cv2
from tqdm import tqdm

from projects.data.shapes import PRESETS, SPLITS, ShapesConfig
from projects.data.shapes_formats import make_folders, write_annotations, write_image

MARKER = "shapes.json"
FORMAT_VERSION = 2  # of the generator and the files: one more whenever equal parameters give other data


def read_config(folder: str) -> Optional[ShapesConfig]:
    """The parameters of the complete dataset in ``folder``; None where there is none. Raises ValueError for
    one that another version of the generator wrote."""
    path = os.path.join(folder, MARKER)
    if not os.path.isfile(path):
        return None
    with open(path) as file:
        content = json.load(file)
    if content.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} was written by version {content.get('version')} of the Shapes generator, this is "
            f"version {FORMAT_VERSION}; write it anew with --overwrite"
        )
    return ShapesConfig(**content["config"])


def write_dataset(
    config: ShapesConfig, root: str, name: str, *, overwrite: bool = False, workers: Optional[int] = None
) -> str:
    """Write the dataset to <root>/<name> and return that folder; one there with the same parameters is kept.

    Everything is written to a temporary folder beside it and renamed at the end, so an interrupted run leaves
    no dataset. ``workers`` processes, by default one a core; with 1, this process does the work. Raises
    FileExistsError where <root>/<name> holds other data, unless it is a Shapes dataset and ``overwrite``.
    """
    if not name or name.startswith(".") or os.path.basename(name) != name:
        raise ValueError(f"a dataset's name is the name of its folder, which {name!r} cannot be")
    folder = os.path.join(root, name)
    if not overwrite and _is_there(folder, config):
        return folder
    if os.path.exists(folder) and os.listdir(folder) and not os.path.isfile(os.path.join(folder, MARKER)):
        raise FileExistsError(f"{folder} is there and no Shapes dataset; choose another --name or --output")

    os.makedirs(root, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=root)
    try:
        _write_files(config, temporary, workers or _num_cores())
        os.chmod(temporary, 0o777 & ~_umask())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_there(folder: str, config: ShapesConfig) -> bool:
    found = read_config(folder)
    if found is None or found == config:
        return found == config
    there, wanted = asdict(found), asdict(config)
    differing = [key for key in there if there[key] != wanted[key]]
    differences = "; ".join(f"{key} is {there[key]}, asked for {wanted[key]}" for key in differing)
    raise FileExistsError(
        f"{folder} holds a Shapes dataset of other parameters ({differences}); "
        "write it anew with --overwrite, or choose another --name"
    )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_files(config: ShapesConfig, folder: str, workers: int) -> None:
    jobs = [(split, index) for split in SPLITS for index in range(config.num_images(split))]
    entries: dict[str, list] = {split: [] for split in SPLITS}
    for split in SPLITS:
        make_folders(folder, split)
    results = _run(functools.partial(_write_job, config, folder), jobs, workers)
    for entry, (split, _) in zip(tqdm(results, total=len(jobs), desc="Shapes", unit="image"), jobs):
        entries[split].append(entry)
    for split in SPLITS:
        write_annotations(config, folder, split, entries[split])
    with open(os.path.join(folder, MARKER), "w") as file:
        json.dump({"version": FORMAT_VERSION, "config": asdict(config)}, file, indent=1)


def _write_job(config: ShapesConfig, folder: str, job: tuple[str, int]) -> dict:
    return write_image(config, folder, *job)


def _run(work, jobs: list, workers: int):
    """The results of ``work`` on the jobs, in order."""
    if workers == 1:
        yield from map(work, jobs)
        return
    # Fresh processes: a fork of one whose threads hold locks may hang.
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(work, jobs, chunksize=8)


def _arguments(argv: Optional[list[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m projects.data.shapes",
        description="Write a synthetic dataset in COCO's and Cityscapes' formats.",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="shapes", help="where to start from")
    parser.add_argument("--output", default="datasets", help="folder of the datasets (DETECTRON2_DATASETS)")
    parser.add_argument("--name", help="the dataset's folder in it, and its name; by default the preset's")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="height and width in px")
    parser.add_argument("--train", type=int, metavar="N", help="number of training images")
    parser.add_argument("--val", type=int, metavar="N", help="number of validation images")
    parser.add_argument("--things", type=int, metavar="N", help="number of thing classes")
    parser.add_argument("--stuff", type=int, metavar="N", help="number of stuff classes")
    parser.add_argument("--min-objects", type=int, metavar="N", help="fewest objects an image")
    parser.add_argument("--max-objects", type=int, metavar="N", help="most objects an image")
    parser.add_argument("--min-size", type=int, metavar="PX", help="smallest object's longer side")
    parser.add_argument("--max-size", type=int, metavar="PX", help="largest; by default half the image")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default one a core")
    parser.add_argument("--overwrite", action="store_true", help="replace a Shapes dataset of that name")
    return parser.parse_args(argv)


def main(argv: Optional[list[str]] = None) -> None:
    args = _arguments(argv)
    height, width = args.image_size or (None, None)
    given = {
        "height": height, "width": width, "num_train": args.train, "num_val": args.val,
        "num_things": args.things, "num_stuff": args.stuff,
        "min_objects": args.min_objects, "max_objects": args.max_objects,
        "min_size": args.min_size, "max_size": args.max_size, "seed": args.seed,
    }
    given = {key: value for key, value in given.items() if value is not None}
    try:
        config = replace(PRESETS[args.preset], **given)
        folder = write_dataset(
            config, args.output, args.name or args.preset, overwrite=args.overwrite, workers=args.workers
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{folder}: {config.num_train} training and {config.num_val} validation images")
