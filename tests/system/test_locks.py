"""File systems without locks."""

import errno
import fcntl
import os

import pytest

from vis.errors import UserError
from vis.store.run_folder import RunFolder
from vis.system import shards


@pytest.mark.parametrize("locked", [lambda folder: RunFolder(folder).locked().__enter__(), shards.lead])
def test_a_file_system_without_locks_is_one_line(locked, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot lock .* \(Function not implemented\): give outputs="):
        locked(tmp_path)
