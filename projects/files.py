"""Files that are whole or not there, whatever stops the process that writes them, and full disks."""

import contextlib
import errno
import glob
import os
from typing import BinaryIO, Iterator

UNFINISHED = ".unfinished"  # ends the name of a file that is being written


@contextlib.contextmanager
def write_whole(path: str) -> Iterator[BinaryIO]:
    """Open ``path`` for writing bytes; it gets its name only when all of it is on the disk.

    What was there before stays until then, and where writing fails.

    Raises:
        OSError: it can't be written (a full disk, say); names ``path`` and the reason.
    """
    unfinished = path + UNFINISHED
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(os.path.dirname(path) or ".")
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        cause = _os_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, f"{os.path.abspath(path)} can't be written: {cause.strerror}") from error


@contextlib.contextmanager
def explaining_full_disk(folder: str) -> Iterator[None]:
    """Say what to do where anything that is written to ``folder`` within it finds the disk full."""
    try:
        yield
    except Exception as error:
        cause = _os_error(error)
        if cause is None or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            cause.errno,
            f"{cause.strerror}. The disk of {os.path.abspath(folder)} is full. What was written before is whole: free "
            "space and go on, a training with --resume",
        ) from error


def remove_unfinished(folder: str) -> list[str]:
    """Remove what stopped processes left half written in a folder; returns the files' paths."""
    left = sorted(glob.glob(os.path.join(glob.escape(folder), "*" + UNFINISHED)))
    for path in left:
        os.remove(path)
    return left


def drop_partial_line(path: str) -> None:
    """Cut the end of a text file after its last newline: the line that a stopped process left half written."""
    if not os.path.isfile(path):
        return
    with open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _sync_folder(folder: str) -> None:
    """Let a new name in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that an error is or came from: others happen while that of a full disk is dealt with."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
