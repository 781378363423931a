"""Trainings that are killed, and go on as if they had not been."""

import errno
import io
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import time

import pytest
import torch

from projects.checkpoint import Checkpointer
from projects.files import drop_partial_line, write_whole
from tests import processes
from tests.conftest import ROOT

MAX_ITER = 30


@pytest.fixture(scope="module")
def arguments(small_root, tmp_path_factory):
    """arguments(output, KEY=value) of a training without anything random but its first weights, of one image: the order
    in which images come can't matter."""
    content = json.loads((small_root / "small/annotations/instances_train.json").read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    file = tmp_path_factory.mktemp("data") / "one.json"
    file.write_text(json.dumps(content))
    flag = f"one={file}:{small_root / 'small/train'}"

    def make(output, **more):
        pairs = {
            "OUTPUT_DIR": output,
            "MODEL.DEVICE": "cpu",
            "MODEL.ERFNET.DROPOUT": [0.0, 0.0],
            "MODEL.SPATIAL_EMBEDDINGS.GRID_SIZE": (64, 64),
            "DATASETS.TEST": (),
            "INPUT.RANDOM_FLIP": "none",
            "SOLVER.IMS_PER_BATCH": 1,
            "SOLVER.MAX_ITER": MAX_ITER,
            "SOLVER.CHECKPOINT_PERIOD": 1,
            "DATALOADER.NUM_WORKERS": 0,
            "SEED": 1,
            **more,
        }
        config = ["--config-file", ROOT / "configs/spatial_embeddings/shapes.yaml", "--resume", "--dataset", flag]
        return [*config, *(x for pair in pairs.items() for x in pair)]

    return make


SELDOM = {"SOLVER.CHECKPOINT_PERIOD": MAX_ITER}


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """What an uninterrupted training ends with."""
    folder = tmp_path_factory.mktemp("whole")
    processes.run(processes.train, folder / "log.txt", arguments(folder, **SELDOM))
    return load(folder / "model_final.pth")


@pytest.fixture(autouse=True)
def no_large_files(tmp_path):
    yield
    for path in tmp_path.rglob("*.pth"):
        path.unlink()


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(found, expected, where="checkpoint"):
    """Equal tensors, numbers and names, to the last digits that are not sums' order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text: f"{where}: {text}")
    else:
        assert found == (pytest.approx(expected) if isinstance(expected, float) else expected), where


def assert_all_files_whole(output):
    for path in output.glob("*.pth"):
        assert "iteration" in load(path), path
    if (output / "last_checkpoint").exists():
        assert (output / (output / "last_checkpoint").read_text()).is_file()


def iterations(output):
    """Those of the lines of metrics.json, each of which must be whole."""
    return [json.loads(line)["iteration"] for line in (output / "metrics.json").read_text().splitlines()]


def test_a_training_killed_at_random_moments_ends_as_one_that_was_not(arguments, whole, tmp_path):
    output, log, generator = tmp_path / "killed", tmp_path / "killed.txt", random.Random(0)
    reached = -1
    for kill in range(7):
        process = processes.start(processes.train, log, arguments(output))
        if kill:  # else anywhere before the first checkpoint
            wait_for(lambda: last_iteration(output) > reached, process)
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()[-3000:]
        assert_all_files_whole(output)
        assert last_iteration(output) >= reached
        reached = last_iteration(output)
    assert 5 <= reached < MAX_ITER - 1

    processes.run(processes.train, log, arguments(output, **SELDOM))
    assert_same(load(output / "model_final.pth"), whole)
    assert iterations(output)[-1] == MAX_ITER - 1
    assert not list(output.glob("*.unfinished"))


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.005)


def last_iteration(output):
    """The iteration of the newest checkpoint by name, −1 for none."""
    return max((int(path.stem[6:]) for path in output.glob("model_0*.pth")), default=-1)


def test_a_training_killed_while_it_writes_goes_on_from_the_checkpoint_before(arguments, whole, tmp_path):
    output, log = tmp_path / "killed", tmp_path / "killed.txt"
    process = processes.start(train_and_die_in_a_write, log, arguments(output), 4)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    (left,) = output.glob("*.unfinished")
    with pytest.raises(Exception):
        load(left)
    assert (output / "last_checkpoint").read_text() == "model_0000002.pth"
    assert_all_files_whole(output)

    with open(output / "metrics.json", "a") as file:
        file.write('{"iteration": 2, "total_l')  # as if killed in this line
    processes.run(processes.train, log, arguments(output, **SELDOM))
    assert f"Removed {left}" in log.read_text()
    assert "Starting training from iteration 3" in log.read_text()
    assert not left.exists()
    assert_same(load(output / "model_final.pth"), whole)
    assert iterations(output)[-1] == MAX_ITER - 1


def train_and_die_in_a_write(arguments, number):
    """Train, and be killed half way through writing the checkpoint of a number, from 1."""
    save, count = torch.save, itertools.count(1)

    def save_half(content, file):
        if next(count) < number:
            return save(content, file)
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half
    processes.train(arguments)


def damage_nothing(output):
    pass


def empty_the_tag(output):
    (output / "last_checkpoint").write_text("")


def remove_the_tag(output):
    (output / "last_checkpoint").unlink()


def garble_the_tag(output):
    (output / "last_checkpoint").write_bytes(b"\0\xff" * 8)


def remove_the_last(output):
    (output / "model_0000003.pth").unlink()


def truncate_the_last(output):
    os.truncate(output / "model_0000003.pth", 1_000_000)


def empty_the_last(output):
    os.truncate(output / "model_0000003.pth", 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three checkpoints of a module of one weight, whose value is the iteration, and one file that is no training's."""
    output = tmp_path_factory.mktemp("trained")
    for iteration in (1, 2, 3):
        counter(output, iteration)[1].save(f"model_{iteration:07d}", iteration=iteration)
    torch.save({"model": {"weight": torch.full((1, 1), 9.0)}}, output / "pretrained.pth")
    return output


def counter(output, value, **options):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model, Checkpointer(model, str(output), **options)


@pytest.mark.parametrize(
    "damage, expected",
    [
        (damage_nothing, 3), (empty_the_tag, 3), (remove_the_tag, 3), (garble_the_tag, 3),
        (remove_the_last, 2), (truncate_the_last, 2), (empty_the_last, 2),
    ],
)  # fmt: skip
def test_resuming_goes_back_to_the_newest_whole_checkpoint(trained, tmp_path, caplog, damage, expected):
    output = tmp_path / "damaged"
    shutil.copytree(trained, output)
    os.utime(output / "model_0000001.pth")  # dates don't count: folders are copied
    damage(output)
    model, checkpointer = counter(output, -1)
    with caplog.at_level("WARNING"):
        checkpointer.resume_or_load("")
    assert model.weight.item() == expected
    assert checkpointer.has_checkpoint()
    assert ("going on from" in caplog.text) == (damage is not damage_nothing)
    if damage is not damage_nothing:
        assert f"model_000000{expected}.pth" in caplog.text


def test_an_evaluation_leaves_what_a_training_is_writing(tmp_path):
    counter(tmp_path, 5)[1].save("model_0000005", iteration=5)
    (tmp_path / "model_0000006.pth.unfinished").write_bytes(b"PK")
    model, checkpointer = counter(tmp_path, -1, complete=True)
    checkpointer.resume_or_load("")
    assert model.weight.item() == 5 and (tmp_path / "model_0000006.pth.unfinished").exists()


def test_resuming_where_nothing_is_whole_starts_anew(tmp_path, caplog):
    (tmp_path / "model_0000001.pth").write_bytes(b"PK")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    model, checkpointer = counter(tmp_path, -1)
    checkpointer.resume_or_load("")
    assert model.weight.item() == -1 and not checkpointer.has_checkpoint()
    assert "starting anew" in caplog.text
    empty = tmp_path / "empty"
    empty.mkdir()
    caplog.clear()
    counter(empty, -1)[1].resume_or_load("")
    assert "starting anew" not in caplog.text  # which is no surprise in a new folder


def test_a_file_keeps_its_content_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError):
        with write_whole(str(path)) as file:
            file.write(b"new")
            file.flush()
            assert path.read_text() == "old"
            raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with write_whole(str(path)) as file:
        file.write(b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("before, after", [("a\nb\n", "a\nb\n"), ("a\nb", "a\n"), ("a", ""), ("", "")])
def test_a_line_half_written_is_cut(tmp_path, before, after):
    path = tmp_path / "lines"
    path.write_text(before)
    drop_partial_line(str(path))
    assert path.read_text() == after
    drop_partial_line(str(tmp_path / "absent"))
    assert os.listdir(tmp_path) == ["lines"]


# A full disk, as the device that is one.


def test_a_checkpoint_that_finds_the_disk_full_leaves_those_before(tmp_path):
    model, checkpointer = counter(tmp_path, 1)
    checkpointer.save("model_0000001", iteration=1)
    os.symlink("/dev/full", tmp_path / "model_0000002.pth.unfinished")
    with pytest.raises(OSError, match=r"model_0000002.pth can't be written: No space left") as error:
        checkpointer.save("model_0000002", iteration=2)
    assert error.value.errno == errno.ENOSPC
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def save_with_a_limit(folder):
    """Save a checkpoint of 40 MB where files may have 1 MB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    Checkpointer(torch.nn.Linear(10_000, 1_000), str(folder)).save("model", iteration=1)


def test_an_error_in_the_middle_of_a_checkpoint_names_the_file_and_the_reason(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log.txt"
    folder.mkdir()
    process = processes.start(save_with_a_limit, log, folder)
    process.join(120)
    assert process.exitcode == 1
    assert "model.pth can't be written: File too large" in log.read_text()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("file", ["metrics.json", "inference/coco_instances_results.json"])
def test_a_full_disk_is_told_with_its_folder_and_what_to_do(arguments, tmp_path, file):
    output, log = tmp_path / "run", tmp_path / "log.txt"
    (output / file).parent.mkdir(parents=True)
    os.symlink("/dev/full", output / file)
    more = {"SOLVER.MAX_ITER": 2, "DATASETS.TEST": ("one",), "MODEL.SPATIAL_EMBEDDINGS.SEED_THRESHOLD": 0.9999}
    process = processes.start(processes.train, log, arguments(output, **more))
    process.join(300)
    assert process.exitcode == 1
    assert re.search(rf"OSError: .*No space left.*The disk of {output} is full.*--resume", log.read_text())
    assert_all_files_whole(output)
    assert (output / "model_0000001.pth").is_file()


# A loss that is not finite.


def test_an_absurd_learning_rate_ends_the_training_before_the_weights_are_spoilt(arguments, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log.txt"
    process = processes.start(processes.train, log, arguments(output, **{"SOLVER.BASE_LR": 1e30}))
    process.join(300)
    assert process.exitcode == 1
    message = r"The loss is not finite at iteration 1: loss_instance is nan.* for the images \S+\.(jpg|png)\."
    assert re.search(message, log.read_text()) and "a lower SOLVER.BASE_LR" in log.read_text()
    # That of iteration 0, whose loss was finite; nothing after it.
    assert [path.name for path in output.glob("*.pth")] == ["model_0000000.pth"]
    assert all(x.isfinite().all() for x in load(output / "model_0000000.pth")["model"].values())


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model, checkpointer = counter(tmp_path, float("nan"))
    with pytest.raises(FloatingPointError, match="weight"):
        checkpointer.save("model_final")
    assert os.listdir(tmp_path) == []
