"""Pictures as a caller has them, files and PIL images, as one kind of picture: upright and in sRGB."""

from __future__ import annotations

import os
from typing import TypeAlias

from PIL import Image, ImageOps

from pipeline.images.decode import WEB_FORMATS, open_picture, pillow_is_quiet, to_8_bits, to_srgb

Picture: TypeAlias = str | os.PathLike[str] | Image.Image


def read_picture(picture: Picture, position: int) -> Image.Image:
    """Returns the picture turned upright, as its EXIF orientation says, and in sRGB, as in the sets that are mined.

    Args:
        picture: the path of a file of a format of the web, or a PIL image, which stays as it is.
        position: of the picture in the caller's list, for messages.

    Raises:
        TypeError: it is neither.
        ValueError: the file is missing or broken, or a deep greyscale picture states no range; the message names it.
    """
    if not isinstance(picture, str | os.PathLike | Image.Image):
        raise TypeError(
            f"picture {position} is a {type(picture).__name__}; give the path of a file or a PIL image (PIL.Image."
            "fromarray turns an array into one)"
        )
    name = "a PIL image" if isinstance(picture, Image.Image) else os.fspath(picture)
    try:
        with pillow_is_quiet():
            if isinstance(picture, Image.Image):
                opened = picture
            else:
                with open(picture, "rb") as file:
                    opened = open_picture(file.read(), WEB_FORMATS)
            opened.load()
            shallow = to_8_bits(opened)
            if shallow is not opened:  # a new picture, without the remarks of the deep one
                shallow.info["exif"] = opened.info.get("exif")
            return to_srgb(ImageOps.exif_transpose(shallow))
    except OSError as error:
        raise ValueError(f"picture {position} ({name}) cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"picture {position} ({name}) cannot be read: {error}") from error
