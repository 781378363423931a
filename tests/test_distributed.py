"""Two processes that train together, against one."""

import signal

import pytest
import torch

from tests import processes
from tests.conftest import ROOT


@pytest.fixture
def arguments(small_root, tmp_path, monkeypatch):
    """arguments(output, KEY=value) of a few steps without anything random but the weights and the order of images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_root))

    def make(output, **more):
        pairs = {
            "OUTPUT_DIR": output,
            "MODEL.DEVICE": "cpu",
            "MODEL.ERFNET.DROPOUT": [0.0, 0.0],
            "MODEL.ERFNET.NORM": "FrozenBN",
            "MODEL.SPATIAL_EMBEDDINGS.NUM_CLASSES": 3,
            "MODEL.SPATIAL_EMBEDDINGS.GRID_SIZE": (64, 64),
            "DATASETS.TRAIN": ("small_train",),
            "DATASETS.TEST": (),
            "INPUT.RANDOM_FLIP": "none",
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.OPTIMIZER": "SGD",
            "SOLVER.BASE_LR": 0.01,
            "SOLVER.MAX_ITER": 5,
            "DATALOADER.NUM_WORKERS": 0,
            "SEED": 1,
            **more,
        }
        config = ["--config-file", ROOT / "configs/spatial_embeddings/shapes.yaml"]
        return [str(x) for x in [*config, *(x for pair in pairs.items() for x in pair)]]

    return make


def train_rank(rank, ranks, meeting, arguments, results, poison=None):
    """Train as one of ``ranks`` processes; write the weights before and after and the images of each step.

    poison: (rank, iteration) whose loss becomes NaN.
    """
    import train_net
    from projects.devices import distributed_on
    from detectron2.utils import comm

    if ranks > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
        comm.create_local_process_group(ranks)
    cfg = train_net.setup(train_net.argument_parser().parse_args(arguments))
    with distributed_on(cfg.MODEL.DEVICE):
        trainer = train_net.Trainer(cfg)
    trainer.resume_or_load(resume=False)
    model = getattr(trainer.model, "module", trainer.model)
    seen = {"start": {name: x.clone() for name, x in model.state_dict().items()}, "images": []}

    def remember(module, inputs, losses):
        seen["images"].append([x["file_name"] for x in inputs[0]])
        seen["weights"] = {name: x.clone() for name, x in model.state_dict().items()}
        if poison == (rank, trainer.iter):
            return {**losses, "loss_seed": losses["loss_seed"] * float("nan")}

    model.register_forward_hook(remember)
    try:
        trainer.train()
    finally:
        torch.save({**seen, "end": model.state_dict()}, results / f"rank{rank}.pth")


def run_ranks(ranks, folder, arguments, *more):
    """Run a training in some processes; returns their exit codes, what each wrote, and what each said."""
    folder.mkdir()
    common = (ranks, folder / "meeting", arguments(folder / "run"), folder, *more)
    workers = [processes.start(train_rank, folder / f"log{rank}.txt", rank, *common) for rank in range(ranks)]
    for worker in workers:
        worker.join(120)
        worker.kill()
        worker.join()
    assert -signal.SIGKILL not in [worker.exitcode for worker in workers], "a process hung"
    logs = [(folder / f"log{rank}.txt").read_text() for rank in range(ranks)]
    return (
        [worker.exitcode for worker in workers],
        [torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in range(ranks)],
        logs,
    )


def test_two_processes_train_to_the_weights_of_one(arguments, tmp_path):
    codes, (first, second), _ = run_ranks(2, tmp_path / "two", arguments)
    assert codes == [0, 0]
    codes, (alone,), _ = run_ranks(1, tmp_path / "one", arguments)
    assert codes == [0]

    for one, a, b in zip(alone["images"], first["images"], second["images"], strict=True):
        assert len(a) == len(b) == 2 and sorted(a + b) == sorted(one)
    moved = 0.0
    for name, expected in alone["end"].items():
        assert first["end"][name].equal(second["end"][name]), name
        torch.testing.assert_close(first["end"][name], expected, rtol=1e-4, atol=1e-4, msg=name)
        moved = max(moved, (expected - alone["start"][name]).abs().max().item())
    assert moved > 1e-2  # a hundred times what is allowed to differ


def test_a_loss_that_is_not_finite_in_one_process_stops_all(arguments, tmp_path):
    codes, results, logs = run_ranks(2, tmp_path / "two", arguments, (1, 2))
    assert codes == [1, 1]
    images = results[1]["images"][2]
    for log in logs:
        assert "The loss is not finite at iteration 2: loss_seed is nan for the images " + ", ".join(images) in log
    for name, weight in results[0]["end"].items():
        assert weight.equal(results[1]["end"][name]) and weight.isfinite().all()
        assert weight.equal(results[0]["weights"][name])  # of the forward pass that gave it
    assert not list((tmp_path / "two/run").glob("*.pth"))
