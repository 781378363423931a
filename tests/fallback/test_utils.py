"""Registry, logging, events, communication, files, seeds and the like."""

import io
import json
import logging
import os
import random
import re
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.env import TORCH_VERSION, seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry


def test_registry():
    registry = Registry("THINGS")

    @registry.register()
    class Thing:
        pass

    assert registry.get("Thing") is Thing and "Thing" in registry
    with pytest.raises(KeyError, match="THINGS"):
        registry.get("Other")


class TestLogger:
    @pytest.fixture(autouse=True)
    def forget(self):
        yield
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("tested")]:
            logging.getLogger(name).handlers.clear()

    def lines(self, path):
        time = r"^\[\d\d/\d\d \d\d:\d\d:\d\d\]"
        return [re.sub(time, "[T]", line) for line in path.read_text().splitlines()]

    def test_files_by_rank(self, tmp_path):
        for rank in (0, 2):
            logger = setup_logger(str(tmp_path), rank, name=f"tested{rank}", configure_stdout=False)
            logger.info("hello")
            logger.getChild("part").warning("careful")
            assert not logger.propagate and logger.level == logging.DEBUG
        lines = ["[T] tested0 INFO: hello", "[T] tested0.part WARNING: careful"]
        assert self.lines(tmp_path / "log.txt") == lines
        assert self.lines(tmp_path / "log.txt.rank2")[0] == "[T] tested2 INFO: hello"

    def test_same_call_adds_nothing(self, tmp_path):
        for _ in range(3):
            logger = setup_logger(str(tmp_path / "own.log"), name="tested_once", configure_stdout=False)
        logger.info("x")
        assert self.lines(tmp_path / "own.log") == ["[T] tested_once INFO: x"]

    def test_console(self, monkeypatch, tmp_path):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        logger = setup_logger(name="tested_long", abbrev_name="t")
        logger.getChild("part").info("fine")
        logger.error("bad")
        lines = re.sub(r"\x1b\[\d+m", "", stream.getvalue()).splitlines()
        assert re.fullmatch(r"\[\d\d/\d\d \d\d:\d\d:\d\d t\.part\]: fine", lines[0])
        assert re.fullmatch(r"ERROR \[.* tested_long\]: bad", lines[1])

    def test_console_is_the_main_processs(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        setup_logger(name="tested_rank", distributed_rank=1).info("x")
        assert sys.stdout.getvalue() == ""

    def test_rare_messages(self, caplog):
        caplog.set_level(logging.INFO, logger=__name__)
        for i in range(5):
            log_first_n(logging.INFO, f"first {i}", 2)
            log_first_n(logging.INFO, "same", key="message")
            log_first_n(logging.INFO, f"parity {i % 2}", key=("caller", "message"))
            log_every_n(logging.INFO, f"every {i}", 3)
            log_every_n_seconds(logging.INFO, f"second {i}", 1000)
        log_first_n(logging.INFO, "same", key="message")
        messages = [record.getMessage() for record in caplog.records]
        assert sorted(messages) == sorted(
            ["first 0", "first 1", "same", "parity 0", "parity 1", "every 0", "every 3", "second 0"]
        )
        assert {record.name for record in caplog.records} == {__name__}

    def test_small_table(self):
        header, _, values = create_small_table({"AP": 1.23456, "n": 7}).splitlines()
        assert [cell.strip() for cell in header.split("|")] == ["", "AP", "n", ""]
        assert [cell.strip() for cell in values.split("|")] == ["", "1.235", "7", ""]


class TestEvents:
    def test_storage(self):
        assert not has_event_storage()
        with EventStorage(10) as storage:
            assert get_event_storage() is storage and storage.iter == 10
            for value in (1, 5, 3):
                storage.put_scalar("a", value)
                storage.put_scalar("exact", value, smoothing_hint=False)
                storage.step()
            storage.put_scalars(b=torch.tensor(2.5), cur_iter=4)
            with storage.name_scope("scope/"):
                storage.put_scalar("c", 1)
            assert storage.iter == storage.iteration == 13
            assert storage.latest() == {"a": (3, 12), "exact": (3, 12), "b": (2.5, 4), "scope/c": (1, 13)}
            assert storage.latest_with_smoothing_hint(20)["a"] == (3, 12)
            assert storage.latest_with_smoothing_hint(2)["a"] == (4, 12)
            assert storage.latest_with_smoothing_hint(2)["exact"] == (3, 12)
            assert storage.count_samples("a") == 3 and storage.count_samples("a", 2) == 2
            assert storage.history("a").avg(2) == 4 and set(storage.histories()) == set(storage.latest())
            assert storage.smoothing_hints()["a"] and not storage.smoothing_hints()["exact"]
            with pytest.raises(AssertionError):
                storage.put_scalar("a", 1, smoothing_hint=False)
            with pytest.raises(KeyError):
                storage.history("absent")
        with pytest.raises(AssertionError):
            get_event_storage()

    def test_json_has_a_line_an_iteration_and_resumes(self, tmp_path):
        path = tmp_path / "metrics.json"
        for start in (0, 4):
            writer = JSONWriter(str(path), window_size=3)
            with EventStorage(start) as storage:
                for i in range(start, start + 4):
                    storage.iter = i
                    storage.put_scalar("loss", i)
                    storage.put_scalar("lr", i / 2, smoothing_hint=False)
                    if i % 2:
                        if i == 3:
                            storage.put_scalar("late", 9, cur_iter=2)
                        writer.write()
                        writer.write()
            writer.close()
        lines = path.read_text().splitlines()
        assert lines[0] == '{"iteration": 1, "loss": 0.5, "lr": 0.5}'
        assert [json.loads(line) for line in lines[1:]] == [
            {"iteration": 3, "loss": 2.0, "lr": 1.5},
            {"iteration": 2, "late": 9.0},
            {"iteration": 5, "loss": 4.5, "lr": 2.5},
            {"iteration": 7, "loss": 6.0, "lr": 3.5},
        ]

    def test_printed_line(self, caplog):
        caplog.set_level(logging.INFO, logger="detectron2.utils.events")
        logging.getLogger("detectron2").propagate = True
        printer = CommonMetricPrinter(max_iter=100)
        with EventStorage(9) as storage:
            storage.put_scalars(total_loss=1.23456, loss_b=20)
            storage.put_scalar("[metric]x", 7)
            storage.put_scalars(time=0.5, data_time=0.25)
            storage.put_scalar("lr", 1e-4 / 3, smoothing_hint=False)
            printer.write()
            assert storage.latest()["eta_seconds"] == (45.0, 9)
            storage.iter = 100
            printer.write()
        (message,) = {record.getMessage() for record in caplog.records}  # once a handler
        expected = (
            " eta: 0:00:45  iter: 9  total_loss: 1.235  loss_b: 20  [metric]x: 7  time: 0.5000  "
            "last_time: 0.5000  data_time: 0.2500  last_data_time: 0.2500   lr: 3.3333e-05  "
        )
        assert re.sub(r"max_mem: \d+M$", "", message) == expected

    def test_printed_line_without_times(self, caplog):
        caplog.set_level(logging.INFO, logger="detectron2.utils.events")
        logging.getLogger("detectron2").propagate = True
        with EventStorage(3) as storage:
            storage.put_scalar("loss", 2)
            CommonMetricPrinter().write()
        assert re.sub(r"max_mem: \d+M$", "", caplog.messages[0]) == " iter: 3  loss: 2     lr: N/A  "

    def test_tensorboard(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        writer = TensorboardXWriter(str(tmp_path))
        with EventStorage() as storage:
            for i in range(4):
                storage.put_scalar("loss", i)
                storage.put_image("picture", np.zeros((3, 5, 6), np.uint8))
                storage.put_histogram("values", torch.arange(10.0), bins=5)
                writer.write()
                storage.step()
        writer.close()
        events = EventAccumulator(str(tmp_path)).Reload()
        assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]
        assert {(e.width, e.height) for e in events.Images("picture")} == {(6, 5)}
        values = events.Histograms("values")[-1].histogram_value
        assert values.num == 10 and values.sum == 45 and sum(values.bucket) == 10 and values.max == 9


def _in_two_processes(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    np.random.seed(rank)
    # an odd split of one batch, whose statistics both processes must see
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5)
    part = x[:1] if rank == 0 else x[1:]
    norms = {mode: NaiveSyncBatchNorm(4, stats_mode=mode) for mode in ("", "N")}
    outputs = {mode: norm(part).detach() for mode, norm in norms.items()}
    comm.synchronize()
    result = {
        "ranks": (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()),
        "main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "local": comm.all_gather(rank, comm.get_local_process_group()),
        "gather": comm.gather("ab"[rank], dst=1),
        "seed": comm.shared_random_seed(),
        "mean": comm.reduce_dict({"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)})["a"].item(),
        "sum": comm.reduce_dict({"a": torch.tensor(1.0 + rank)}, average=False)["a"].item(),
        "outputs": outputs,
        "running_mean": norms["N"].running_mean,
    }
    torch.save(result, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_communication(tmp_path):
    mp.start_processes(_in_two_processes, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in range(2))
    assert first["ranks"] == (2, 0, 0, 2) and second["ranks"] == (2, 1, 1, 2)
    assert first["main"] and not second["main"]
    assert first["all_gather"] == second["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert first["local"] == [0, 1] and first["gather"] == [] and second["gather"] == ["a", "b"]
    assert first["seed"] == second["seed"] == np.random.RandomState(0).randint(2**31)
    assert first["mean"] == 5 and first["sum"] == 3

    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5)
    whole = nn.BatchNorm2d(4)
    together = torch.cat([first["outputs"]["N"], second["outputs"]["N"]])
    assert torch.allclose(together, whole(x), atol=1e-5)
    assert torch.allclose(first["running_mean"], whole.running_mean, atol=1e-6)
    # with equal weights, the lone image counts as much as the other two
    mean = (x[:1].mean((0, 2, 3)) + x[1:].mean((0, 2, 3))) / 2
    square = (x[:1].square().mean((0, 2, 3)) + x[1:].square().mean((0, 2, 3))) / 2
    std = (square - mean.square() + 1e-5).sqrt()
    expected = (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    assert torch.allclose(torch.cat([first["outputs"][""], second["outputs"][""]]), expected, atol=1e-5)


def test_communication_alone():
    assert comm.get_world_size() == comm.get_local_size() == 1
    assert comm.get_rank() == comm.get_local_rank() == 0
    assert comm.is_main_process() and comm.synchronize() is None
    assert comm.all_gather("x") == ["x"] and comm.gather("x") == ["x"]
    np.random.seed(3)
    assert comm.shared_random_seed() == np.random.RandomState(3).randint(2**31)
    values = {"a": torch.tensor(2.0)}
    assert comm.reduce_dict(values) == values
    with pytest.raises(AssertionError, match="create_local_process_group"):
        comm.get_local_process_group()


def test_seeds():
    draws = []
    for _ in range(2):
        seed_all_rng(5)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1] and os.environ["PYTHONHASHSEED"] == "5"
    assert draws[0] == (random.Random(5).random(), np.random.RandomState(5).rand(), draws[0][2])
    seed_all_rng()
    assert random.random() != draws[0][0]
    assert TORCH_VERSION == tuple(map(int, torch.__version__.split(".")[:2]))


def test_published_files_come_from_their_server(monkeypatch):
    asked, original = [], PathManager.get_local_path

    def get_local_path(path, *args, **kwargs):
        if not path.startswith("https://"):
            return original(path, *args, **kwargs)
        asked.append(path)
        return "/cached"

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    assert PathManager.get_local_path("detectron2://a/b.pkl") == "/cached"
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/a/b.pkl"]


def test_memory_retries():
    calls = []

    @retry_if_cuda_oom
    def fails_twice(x, *, y):
        calls.append((x, y))
        if len(calls) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return x + y

    assert fails_twice(1, y=2) == 3 and len(calls) == 3

    @retry_if_cuda_oom
    def broken():
        calls.append(None)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        broken()
    assert len(calls) == 4


def test_colors():
    colors = colormap(rgb=True, maximum=1)
    assert colors.dtype == np.float32 and colors.shape[1:] == (3,) and 0 <= colors.min() and colors.max() <= 1
    assert np.allclose(colormap(), colors[:, ::-1] * 255)
    with pytest.raises(AssertionError):
        colormap(maximum=100)
    np.random.seed(0)
    first = random_color(rgb=True, maximum=1)
    np.random.seed(0)
    assert np.allclose(random_color(), first[::-1] * 255) and (colors == first).all(axis=1).any()
    several = random_colors(20, rgb=True, maximum=1)
    assert len(several) == 20 and all((colors == color).all(axis=1).any() for color in several)
    assert len(np.unique(several, axis=0)) > 10


def test_environment():
    info = collect_env_info()
    for name in "detectron2", "PyTorch", "torchvision", "Pillow", "fvcore", "iopath", "cv2", "GPU available":
        assert re.search(rf"^{name}\s", info, re.MULTILINE), name
    assert torch.__version__ in info
