"""Communication between the processes of a run. Without torch.distributed there is one: rank 0 of 1."""

import functools
from typing import Any, Dict, List

import numpy as np
import torch
import torch.distributed as dist

_local_group = None  # the processes on this machine; see create_local_process_group


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Rank of this process among all."""
    return dist.get_rank() if _distributed() else 0


def is_main_process() -> bool:
    """Whether this process has rank 0."""
    return get_rank() == 0


@functools.lru_cache()
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make the group of the processes on each machine. To be called once by every process; `launch` does."""
    global _local_group
    world_size = get_world_size()
    assert _local_group is None, "the local process group exists already"
    assert world_size % num_workers_per_machine == 0, (
        f"{world_size} processes can't be shared out to machines with {num_workers_per_machine} each"
    )
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)  # a collective: every process makes every group
        if get_rank() in ranks:
            _local_group = group


def get_local_process_group():
    """The group of the processes on this machine."""
    assert _local_group is not None, (
        "there is no local process group: call create_local_process_group() first, as launch() does"
    )
    return _local_group


def get_local_rank() -> int:
    """Rank of this process among those on its machine."""
    return dist.get_rank(get_local_process_group()) if _distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(get_local_process_group()) if _distributed() else 1


def synchronize() -> None:
    """Wait until every process has come here."""
    if get_world_size() == 1:
        return
    # NCCL warns unless told which device to use
    on_gpu = dist.get_backend() == dist.Backend.NCCL
    dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


@functools.lru_cache()
def _cpu_group():
    """All processes, over gloo, so that pickled objects don't pass through GPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def all_gather(data: Any, group=None) -> List[Any]:
    """Every process's (picklable) data, by rank, on every process."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group=None) -> List[Any]:
    """Every process's (picklable) data, by rank, on rank `dst`; an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group) if dist.get_rank(group) == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """Rank 0's draw from NumPy's generator. Every process must call this; each draws once."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: Dict[str, torch.Tensor], average: bool = True) -> Dict[str, torch.Tensor]:
    """Sum or average each scalar tensor over the processes; only rank 0's result is complete."""
    size = get_world_size()
    if size == 1:
        return input_dict
    names = sorted(input_dict)  # the same order everywhere
    with torch.no_grad():
        totals = torch.stack([input_dict[name] for name in names])
        dist.reduce(totals, dst=0)
        if average and is_main_process():
            totals /= size
    return dict(zip(names, totals))
