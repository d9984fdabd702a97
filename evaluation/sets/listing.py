"""The pictures below a folder, as people mean it: no hidden files, links followed once, nothing left out unsaid."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Iterator, Mapping

from PIL import features

from evaluation.sets.text import check_unique, nfc, utf8
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
    linked: Mapping[str, str]  # of `paths` that are links to a file that is there: the path without links


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is not data: of notebooks, of version control, or added by macOS."""
    return name.startswith(".") or name == "__MACOSX"


def list_files(root: str | os.PathLike[str]) -> Listing:
    """Returns the files below `root`.

    Hidden files and folders below `root` do not count. Links to folders are followed; a folder that several paths lead
    to is read once, by the path without links if there is one, or else by the first in sorted order. A link to a
    picture that is below `root` itself does not count. Two links to one file elsewhere both count: stores that keep
    one copy of equal files link so.

    Raises:
        UserError: a folder cannot be read, a link leads to itself, a link that is not a picture by its name leads to
            nothing, or a name is not UTF-8.
    """
    root = os.fspath(root)
    paths: list[str] = []
    linked: dict[str, str] = {}
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
                if _is_folder(entry):
                    utf8(entry.path, "the name of the folder")
                    (links if entry.is_symlink() else waiting).append(path)
                    continue
                suffix = _suffix(entry.name)
                if suffix in SUFFIXES:
                    utf8(entry.path, "the name of the picture")
                    paths.append(path)
                    if entry.is_symlink() and entry.is_file():
                        linked[path] = os.path.realpath(entry.path)
                elif suffix in _UNREAD_SUFFIXES:
                    unread[suffix] += 1
                else:
                    _check_leads_somewhere(entry)
    again = {path for path, target in linked.items() if _folder_of_picture(target) in seen}
    return Listing(
        paths=tuple(sorted((path for path in paths if path not in again), key=nfc)),
        unread=dict(sorted(unread.items())),
        folders=frozenset(seen),
        linked={path: target for path, target in linked.items() if path not in again},
    )


def list_images(root: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of all pictures below `root`; see `list_files`. A warning counts pictures that are not read."""
    found = list_files(root)
    warn_of_unread(root, found.unread)
    return list(found.paths)


def warn_of_unread(root: str | os.PathLike[str], unread: Mapping[str, int]) -> None:
    """Prints how many files below `root` look like pictures and are not read, by suffix, if there are any."""
    if unread:
        by_suffix = ", ".join(f"{suffix}: {count:,}" for suffix, count in unread.items())
        count = sum(unread.values())
        files = "1 file" if count == 1 else f"{count:,} files"
        look, them = ("looks like a picture and is", "it") if count == 1 else ("look like pictures and are", "them")
        print(
            f"warning: {files} below {os.fspath(root)} {look} not read ({by_suffix}); convert {them} to PNG or JPEG, "
            f"or remove {them}",
            file=sys.stderr,
        )


def list_classes(root: str | os.PathLike[str]) -> tuple[dict[str, Listing], dict[str, int]]:
    """Returns the files of each class folder in `root`, sorted by class, and those that are not read, by suffix.

    Raises:
        UserError: two classes lead to one folder or picture, their names are equal after Unicode normalisation or not
            UTF-8, or a link leads to nothing.
    """
    root = os.fspath(root)
    names: list[str] = []
    with _entries(root) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                utf8(entry.path, "the name of the folder")
                names.append(entry.name)
            else:
                _check_leads_somewhere(entry)
    names.sort(key=nfc)
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
    for name, found in listings.items():
        for path, target in found.linked.items():
            holder = owner.get(_folder_of_picture(target))
            if holder is not None:
                raise UserError(
                    f"{os.path.join(root, name, path)} is a link to a picture of the class {holder!r}, so the classes "
                    f"{name!r} and {holder!r} of {root} both hold it; remove one"
                )
    return listings, dict(sorted(unread.items()))


def count_beside(root: str | os.PathLike[str]) -> int:
    """Returns how many files beside the class folders in `root` look like pictures; a warning states it."""
    root = os.fspath(root)
    with _entries(root) as entries:
        count = sum(
            not is_hidden(entry.name)
            and not _is_folder(entry)
            and (_suffix(entry.name) in SUFFIXES or _suffix(entry.name) in _UNREAD_SUFFIXES)
            for entry in entries
        )
    if count:
        print(
            f"warning: {root} has {count:,} pictures beside the class folders, which are not read; move each into the "
            "folder of its class, or remove it",
            file=sys.stderr,
        )
    return count


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _folder_of_picture(path: str) -> str:
    """Returns the folder in which listing finds the file at `path`; "" if its name is not that of a picture."""
    folder, name = os.path.split(path)
    return folder if _suffix(name) in SUFFIXES and not is_hidden(name) else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{entry.path} is a link that leads to itself; remove it or link to the data") from error
        raise UserError(f"{entry.path} cannot be read ({error.strerror}); look at its permissions") from error


def _check_leads_somewhere(entry: os.DirEntry[str]) -> None:
    """Checks that `entry` is not a link to what is not there: a class or picture would be missing unnoticed."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise UserError(
            f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there; restore that, or remove the link"
        )


@contextlib.contextmanager
def _entries(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); look at its permissions") from error
