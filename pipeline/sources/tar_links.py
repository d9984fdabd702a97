"""Hard and symbolic links inside a tar -> the bytes of the members that they point to."""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO

from pipeline.sources.tar_members import EndMark, Tar

_HOPS_MAX = 8  # links to links


class LinkTargets:
    """Finds what links point to. The headers of the whole tar are read at the first link; most tars have none.

    GNU tar stores a file whose name was given twice, or that has two names on the disk, as a hard link the second time.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._members: dict[str, tarfile.TarInfo] | None = None

    def find(self, link: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """Returns the file that `link` leads to; None if it leads out of the tar, or to itself, or to no file."""
        if self._members is None:
            self._members = self._read_members()
        member: tarfile.TarInfo | None = link
        for _ in range(_HOPS_MAX):
            if member is None or member.isreg():
                return member
            if not (member.islnk() or member.issym()):
                return None
            folder = posixpath.dirname(member.name) if member.issym() else ""
            member = self._members.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        return None

    def _read_members(self) -> dict[str, tarfile.TarInfo]:
        members: dict[str, tarfile.TarInfo] = {}
        try:
            for member in Tar(self._file):
                if isinstance(member, EndMark):
                    break
                if member.isreg() or member.issym():
                    members.setdefault(posixpath.normpath(member.name), member)
        except tarfile.TarError:
            pass  # what lies behind the damage is reported when rows are read there
        return members
