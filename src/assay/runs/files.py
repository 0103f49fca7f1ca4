"""Writing files that are either whole or absent, and keeping a folder to one process."""

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from assay.errors import BadInput

LOCK = ".lock"
TEMPORARY = ".tmp"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the whole new one.

    A full disk or a folder that cannot be written is `BadInput`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    with explained(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process was writing; call it only while holding the folder's lock."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Generator[None]:
    """Turn the system's refusal to read or write ``path`` into a message for the user.

    Raises:
        BadInput: when the system refuses.
    """
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"cannot use {path}: {error.strerror or error}. Choose a folder that can be written, on a disk "
            "that has space left."
        ) from error


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep a folder to this process. The system lets go of the lock when the process ends, however it ends.

    Raises:
        BadInput: when another process holds the folder; the message says which.
    """
    with explained(folder):
        file = (folder / LOCK).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BadInput(
                f"{folder} is in use by {file.read().strip() or 'another process'}. Wait for it, or stop it "
                "and issue the command again: it continues where the other ended."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def is_locked(folder: Path) -> bool:
    """Tell whether a living process holds the folder."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
