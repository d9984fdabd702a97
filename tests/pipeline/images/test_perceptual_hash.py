"""Hashes of what pictures show."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from pipeline.images.perceptual_hash import perceptual_hash


def photo(side_px: int = 96) -> Image.Image:
    """Returns some soft shapes, none of them symmetrical."""
    y, x = np.mgrid[0:side_px, 0:side_px] / side_px
    waves = np.sin(7 * x + 3 * y**2) + np.cos(11 * x * y - 2) + 0.7 * np.sin(17 * y - 5 * x**2)
    grey = np.clip(127 + 42 * waves, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def bits(picture: Image.Image) -> int:
    return int(perceptual_hash(picture), 16)


def num_different(first: Image.Image, second: Image.Image) -> int:
    return (bits(first) ^ bits(second)).bit_count()


def naive_hash(picture: Image.Image) -> str:
    """Returns the hash by the definition of the cosine transform, of a grey picture of 32 x 32 pixels."""
    pixels = np.asarray(picture, np.float64)
    wave = [[math.cos(math.pi * frequency * (2 * place + 1) / 64) for place in range(32)] for frequency in range(8)]
    lowest = [
        math.fsum(wave[row][y] * wave[column][x] * float(pixels[y, x]) for y in range(32) for x in range(32))
        for row in range(8)
        for column in range(8)
    ]
    middle = sum(sorted(lowest)[31:33]) / 2
    return f"{int(''.join('01'[value > middle] for value in lowest), 2):016x}"


def test_bits_say_which_of_the_lowest_frequencies_are_above_their_median() -> None:
    grey = photo(32).convert("L")
    assert perceptual_hash(grey) == naive_hash(grey)


def test_what_looks_alike_differs_in_few_bits_and_what_does_not_in_many() -> None:
    picture = photo()
    assert num_different(picture, picture.resize((60, 60))) <= 4
    assert num_different(picture, picture.point(lambda value: value * 0.9 + 10)) <= 4
    assert num_different(picture, picture.transpose(Image.Transpose.ROTATE_90)) >= 16


def test_large_pictures_are_reduced_before_and_keep_their_hash_but_for_few_bits() -> None:
    assert num_different(photo(), photo(96 * 8)) <= 4


def test_what_is_transparent_is_white() -> None:
    white, hidden = photo(), photo().convert("RGBA")
    mask = Image.new("L", white.size, 255)
    mask.paste(0, (0, 0, 48, 96))
    hidden.putalpha(mask)
    white.paste((255, 255, 255), (0, 0, 48, 96))
    assert perceptual_hash(hidden) == perceptual_hash(white)
    assert num_different(hidden, photo()) >= 8
