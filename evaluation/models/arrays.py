"""Arrays in files: mapped, or kept by an earlier run."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.schema import UserError


def map_array(path: Path) -> np.ndarray:
    """Returns the array in a .npy file, memory-mapped.

    Raises:
        UserError: it cannot be read, or does not hold one array of numbers.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); write it with numpy.save") from error
    except (ValueError, EOFError):  # numpy's words advise to trust the file
        found = None
    if not isinstance(found, np.ndarray):  # a file of numpy.savez holds several
        raise UserError(f"{path} is not an array of numbers in NumPy's format; write it with numpy.save")
    return found


def read_kept(path: Path, *, ndim: int, lengths: Collection[int], remedy: str) -> np.ndarray | None:
    """Returns the array that an earlier run kept at `path`; None where it is missing or, with a warning, damaged.

    Args:
        path: of a .npy file.
        ndim: of its dimensions.
        lengths: of the first one, those that are possible.
        remedy: what is done otherwise, such as "embedding again".
    """
    if not path.exists():
        return None
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
        if found.ndim != ndim:
            raise ValueError(f"{found.ndim} dimensions of {ndim}")
        if len(found) not in lengths:
            raise ValueError(f"{len(found)} rows of {max(lengths)}")
    except (OSError, ValueError, EOFError) as error:
        print(f"warning: {path} cannot be read ({error}); {remedy}", file=sys.stderr)
        return None
    return found
