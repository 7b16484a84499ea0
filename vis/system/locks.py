"""Lock files, between processes and machines."""

import fcntl
from typing import IO, Any

from vis.errors import UserError


def lock(file: IO[Any], how: int) -> None:
    """Lock an open file (`fcntl.flock`). Raises BlockingIOError if another process has it, UserError if there are no locks."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:  # Lustre without the mount option flock, NFS without a lock daemon
        raise UserError(
            f"cannot lock {file.name} ({error.strerror}): give outputs= on a file system with locks"
        ) from error
