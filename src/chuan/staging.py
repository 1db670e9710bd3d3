"""Writing that is whole or not there: a temporary name, a flush to disk, a rename.

In: where something shall be. Out: a folder to write into, moved to its place when the block ends well. A write that was
killed leaves only the temporary folder (`.NAME.partial`), which nothing opens and the next write clears.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chuan.errors import ChuanError, first_line
from chuan.units import format_size

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def staged_folder(target: Path, beside_others: bool = False) -> Iterator[Path]:
    """A folder that becomes `target`; with `beside_others` its files move into the folder that is there.

    Raises ChuanError where `target` is there and not empty, where another process is writing it, or where the disk
    refuses; then nothing of the attempt is left.
    """
    with _staged(target) as temporary:
        yield temporary
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors makes files for their owner alone
            flush(path)
        flush(temporary)
        if beside_others and target.is_dir():
            # Last the configuration: without it nothing opens what a cut would leave.
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(target / path.name)
            flush(target)
        else:
            temporary.rename(target)  # replaces an empty folder


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A file that becomes `target`; errors as for `staged_folder`."""
    with _staged(target) as temporary:
        path = temporary / target.name
        yield path
        path.chmod(0o644)
        flush(path)
        path.rename(target)


def is_partial(path: Path) -> bool:
    """Whether a path is, or lies in, the temporary folder of a write."""
    return any(re.fullmatch(r"\..+\.partial", name) for name in (path.name, path.absolute().parent.name))


def check_free(target: Path) -> None:
    """Refuses a place that is taken; an empty folder is free."""
    if not os.path.lexists(target):
        return
    if not os.path.exists(target):
        raise ChuanError(f"{target} is there already, a link that leads nowhere; choose another place or remove it")
    if not target.is_dir():
        raise ChuanError(f"{target} is there already, and no folder; choose another place or remove it")
    try:
        taken = any(target.iterdir())
    except OSError as error:
        raise ChuanError(f"{target} cannot be read: {error.strerror}; choose another place") from None
    if taken:
        raise ChuanError(f"{target} is there already and not empty; choose another folder or remove it")


def check_name(path: Path) -> None:
    """Refuses a name that is no text, which the libraries that read and write weights do not take."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ChuanError(f"{path} has a name that is not UTF-8; rename it, or choose another") from None


def check_space(target: Path, size: int) -> None:
    """Refuses a write of `size` bytes that the disk cannot hold, before it begins; the folder around it is there."""
    free = shutil.disk_usage(Path(os.path.abspath(target)).parent).free
    if free < size:
        raise ChuanError(
            f"{target} needs {format_size(size)}, and {format_size(free)} are free there; free some space or choose "
            "another disk"
        )


def flush(path: Path) -> None:
    """Forces a file or folder to disk; some file systems cannot flush folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    target = Path(os.path.abspath(target))
    temporary = target.parent / f".{target.name}.partial"
    check_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(temporary, target)
    except OSError as error:
        reason = error.strerror or first_line(error)
        if isinstance(error, FileExistsError):
            reason = "a file or a dangling link stands where a folder is needed"
        raise ChuanError(f"{target} cannot be written: {reason}; choose another place") from None
    try:
        yield temporary
        flush(target.parent)
    except OSError as error:
        remedy = "free some space" if error.errno in _FULL else "put that right or choose another place"
        raise ChuanError(
            f"{target} was not written: {error.strerror or first_line(error)}; nothing is left of it, {remedy} and try "
            "again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _lock(temporary: Path, target: Path) -> int:
    """Makes the temporary folder, locks it against other processes, and clears what a killed one left in it."""
    while True:
        try:
            temporary.mkdir(mode=0o700, exist_ok=True)
            # A link would have what it leads to emptied, and moved to the target's name.
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
                raise ChuanError(f"{temporary} is a link or a file, where a folder is needed; remove it") from None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.isdir(temporary) and os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
                break
            os.close(descriptor)  # the process that held it has just finished and taken the folder away
        except BlockingIOError:
            os.close(descriptor)
            raise ChuanError(f"another process is writing {target}; wait for it, or choose another place") from None
    for path in temporary.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return descriptor
