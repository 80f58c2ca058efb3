"""The folder or store that images lie below, and which paths stay in it.

A remote root (gs://, s3://, memory://) is read as training reads it, by `images`.
"""

import errno
import os
import stat

from vtscale_jax.data.units import MALFORMED, Rejected, shown
from vtscale_jax.images import (
    REMOTE_PACKAGES,
    ImageError,
    ImageStoreError,
    read_remote,
)
from vtscale_jax.records import is_address

OUTSIDE = "image path leaves the root"
UNREADABLE = "image file cannot be read"
TOO_LARGE = "image file too large"
MAX_BYTES = 1 << 30  # no photograph is; it would be held in memory
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


class ImageRootError(ValueError):
    """A root that is not there or cannot be reached."""


def check_path(path: object) -> str:
    """The path of an image below a root. Raises Rejected for what is no path, is
    absolute or has ".." in it."""
    if not isinstance(path, str) or not path.strip():
        raise Rejected(MALFORMED, f"image is {shown(path)}, expected a path")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise Rejected(MALFORMED, f"image: broken Unicode ({error})") from error
    if "\0" in path:
        raise Rejected(MALFORMED, f"image {shown(path)} has a zero byte in it")
    if os.path.isabs(path) or ".." in path.split("/"):
        raise Rejected(OUTSIDE, f"{shown(path)}; expected a path below the root")
    return path


class ImageRoot:
    """Reads the files below a root; may be sent to worker processes.

    Raises ImageRootError when it is not there, or when a store's package is missing.
    """

    def __init__(self, root: str):
        self.root = root
        self._is_remote = is_address(root)
        self._real = root if self._is_remote else os.path.realpath(root)
        there = _is_there(root) if self._is_remote else os.path.isdir(root)
        if not there:
            raise ImageRootError(
                f"--images {root}: no such folder; expected the one that the images' "
                "paths are relative to."
            )

    def read(self, path: str) -> bytes | None:
        """The bytes of a file, None where there is none.

        Raises Rejected for a path or a link that leaves the root, for what is no file,
        and for one that the disk does not give; an error of a remote store, which may
        pass, is ImageRootError.
        """
        check_path(path)
        return self._fetched(path) if self._is_remote else self._local(path)

    def _local(self, path: str) -> bytes | None:
        full = os.path.join(self._real, path)
        real = os.path.realpath(full)
        if os.path.commonpath([self._real, real]) != self._real:
            raise Rejected(
                OUTSIDE,
                f"{shown(path)} is a link to {real}; copy the file, or give a root that"
                " has both below it",
            )
        try:
            status = os.stat(real)
            if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
                raise Rejected(UNREADABLE, f"{shown(path)} is no file")
            if status.st_size > MAX_BYTES:
                raise Rejected(TOO_LARGE, f"{shown(path)}: {status.st_size:,} bytes")
            with open(real, "rb") as file:
                return file.read()
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise Rejected(UNREADABLE, f"{shown(path)}: {error.strerror}") from error

    def _fetched(self, path: str) -> bytes | None:
        try:
            return read_remote(f"{self._real.rstrip('/')}/{path}")
        except ImageError:  # there is no such file; other errors are of the store
            return None
        except ImageStoreError as error:
            raise ImageRootError(
                f"--images {self.root}: {error} The same command goes on."
            ) from error


def _is_there(root: str) -> bool:
    """Whether a remote root has anything below it."""
    import fsspec  # local folders do without

    scheme, _, path = root.partition("://")
    if scheme not in REMOTE_PACKAGES:
        known = ", ".join(f"{one}://" for one in REMOTE_PACKAGES)
        raise ImageRootError(
            f"--images {root}: expected a local folder or one of {known}."
        )
    try:
        return fsspec.filesystem(scheme).exists(path)
    except ImportError as error:
        package = REMOTE_PACKAGES[scheme]
        raise ImageRootError(
            f"--images {root} needs the package {package}: pip install {package}"
        ) from error
    except Exception as error:  # each store has errors of its own
        raise ImageRootError(
            f"--images {root} cannot be reached ({type(error).__name__}: {error})."
        ) from error
