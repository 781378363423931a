"""Trainings in processes of their own that start at once: forked from a server that has imported what they need."""

import multiprocessing
import os
import sys
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train_net", "torch.utils.tensorboard"])


def start(function, log: Path, *arguments) -> multiprocessing.Process:
    """Start ``function(*arguments)``, importable, with its output appended to a file."""
    process = context.Process(target=_call, args=(function, log, dict(os.environ), arguments))
    process.start()
    return process


def run(function, log: Path, *arguments) -> None:
    """The same, waiting for its end, which must be a good one."""
    process = start(function, log, *arguments)
    process.join(300)
    assert process.exitcode == 0, log.read_text()[-3000:]


def train(arguments: list) -> None:
    """What train_net.py does in one process."""
    import train_net

    train_net.main(train_net.argument_parser().parse_args([str(x) for x in arguments]))


def _call(function, log, environment, arguments) -> None:
    os.environ.update(environment)  # the server has that of its own start
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    import torch

    torch.set_num_threads(1)
    function(*arguments)
