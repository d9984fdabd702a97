"""The pictures below a folder, as people mean it: no hidden files, links followed once, nothing left out unsaid."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping

from PIL import features

from evaluation.sets.text import check_unique, nfc
from pipeline.schema import UserError

_HAS_AVIF = features.check("avif")  # a part of Pillow that some builds lack
SUFFIXES = (
    *((".avif",) if _HAS_AVIF else ()),
    ".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
# Pillow's names of what they hold; JPEG includes MPO.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF", *(("AVIF",) if _HAS_AVIF else ()))
# Of files that look like pictures and are not read: formats of cameras, vector graphics, layers, science and the like.
_UNREAD_SUFFIXES = frozenset(
    ".arw .avif .cr2 .cr3 .dcm .dds .dng .eps .exr .fit .fits .hdr .heic .heif .icns .ico .j2c .j2k .jp2 .jpc .jpf "
    ".jpx .jxl .jxr .nef .orf .pam .pcx .pfm .psb .psd .qoi .raf .raw .rw2 .svg .svgz .tga .wdp .wmf .xbm .xcf "
    ".xpm".split()
).difference(SUFFIXES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The files below a folder."""

    paths: tuple[str, ...]  # of pictures, sorted, relative, with "/" between folders
    unread: Mapping[str, int]  # files that look like pictures and are not read, by suffix
    folders: frozenset[str]  # that were read, without links


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is not data: of notebooks, of version control, or added by macOS."""
    return name.startswith(".") or name == "__MACOSX"


def list_files(root: str | os.PathLike[str]) -> Listing:
    """Returns the files below `root`.

    Hidden files and folders below `root` do not count. Links to folders are followed; a folder that several paths lead
    to is read once, by the path without links if there is one, or else by the first in sorted order.

    Raises:
        UserError: a folder cannot be read.
    """
    root = os.fspath(root)
    paths: list[str] = []
    unread: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    waiting, links = [""], list[str]()
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
            waiting.append(links.pop())
        folder = waiting.pop()
        real = os.path.realpath(os.path.join(root, folder))
        if real in seen:
            continue
        seen.add(real)
        with _entries(os.path.join(root, folder)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(path)
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in SUFFIXES:
                    paths.append(path)
                elif suffix in _UNREAD_SUFFIXES:
                    unread[suffix] += 1
    return Listing(paths=tuple(sorted(paths, key=nfc)), unread=dict(sorted(unread.items())), folders=frozenset(seen))


def list_images(root: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of all pictures below `root`; see `list_files`. A warning counts pictures that are not read."""
    found = list_files(root)
    warn_of_unread(root, found.unread)
    return list(found.paths)


def warn_of_unread(root: str | os.PathLike[str], unread: Mapping[str, int]) -> None:
    """Prints how many files below `root` look like pictures and are not read, by suffix, if there are any."""
    if unread:
        by_suffix = ", ".join(f"{suffix}: {count:,}" for suffix, count in unread.items())
        print(
            f"warning: {sum(unread.values()):,} files below {os.fspath(root)} look like pictures and are not read "
            f"({by_suffix}); convert them to PNG or JPEG, or remove them",
            file=sys.stderr,
        )


def list_classes(root: str | os.PathLike[str]) -> tuple[dict[str, Listing], dict[str, int]]:
    """Returns the files of each class folder in `root`, sorted by class, and those that are not read, by suffix.

    Raises:
        UserError: two classes lead to one folder, or their names are equal after Unicode normalisation.
    """
    root = os.fspath(root)
    with _entries(root) as entries:
        names = sorted((entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)), key=nfc)
    check_unique(names, root)
    listings: dict[str, Listing] = {}
    unread: collections.Counter[str] = collections.Counter()
    owner: dict[str, str] = {}
    for name in names:
        found = list_files(os.path.join(root, name))
        for folder in found.folders:
            other = owner.setdefault(folder, name)
            if other != name:
                raise UserError(
                    f"the classes {other!r} and {name!r} of {root} both hold the folder {folder}, one of them by a "
                    "link; remove one"
                )
        listings[name] = found
        unread.update(found.unread)
    return listings, dict(sorted(unread.items()))


@contextlib.contextmanager
def _entries(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); look at its permissions") from error
