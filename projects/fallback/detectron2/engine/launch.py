import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)``, in one process per GPU if that makes more than one altogether.

    Args:
        main_func: importable by the new processes.
        num_gpus_per_machine: processes to start here; without GPUs they run on the CPU and talk by gloo.
        num_machines, machine_rank: every machine calls ``launch``, each with its own rank, from 0.
        dist_url: where the processes meet, such as ``tcp://127.0.0.1:8686``; ``"auto"`` on one machine.
        timeout: of the processes' collective operations.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(f"{num_gpus_per_machine} GPUs are asked for, there are {torch.cuda.device_count()}")
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError('dist_url="auto" works on one machine only; give the address of machine 0')
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    first_rank = machine_rank * num_gpus_per_machine
    group = {"init_method": dist_url, "world_size": world_size, "timeout": timeout}
    worker_args = (first_rank, num_gpus_per_machine, group, main_func, args)
    mp.start_processes(_worker, worker_args, nprocs=num_gpus_per_machine)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _worker(local_rank: int, first_rank: int, num_local: int, group: dict, main_func: Callable, args: tuple):
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if has_gpu else "gloo", rank=first_rank + local_rank, **group)
    comm.create_local_process_group(num_local)
    comm.synchronize()
    main_func(*args)
