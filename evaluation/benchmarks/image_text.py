"""Image-text retrieval: does a picture find its captions among all, and a caption its picture?

Protocol (version 1), of COCO and Flickr30k with Karpathy's splits. The pictures of the test split and the first five
captions of each (COCO has six or seven of some; see the option captions). Both ways the ranking is of the whole split.
A picture counts as found at k when any of its captions is among the first k; a caption when its picture is. Equal
similarities rank by position in the file. A caption is read with single spaces between its words. Of a caption that two
pictures share, each picture's own copy is the hit. A picture without a caption is a miss for
image-to-text and a distractor for text-to-image, as CLIP_benchmark counts; `num_images_without_caption` states how many
there are.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from evaluation.metrics.retrieval import PLACES, found_at, retrieval_ranks
from evaluation.options import Options, option
from evaluation.protocol import Context, Provenance, Result, Unavailable, register
from evaluation.sets.images import UnreadableImage, as_on_disk, folder_images
from evaluation.sets.text import read_json
from pipeline.schema import UserError

PROTOCOL_VERSION = 1
FILES = ("coco/dataset_coco.json", "flickr30k/dataset_flickr30k.json")
SOURCE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_PICTURE_FOLDERS = (".", "images", "flickr30k-images")  # beside the JSON file; the first that has a picture counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """One split of a Karpathy file."""

    paths: tuple[str, ...]  # of the pictures, below their folder
    captions: tuple[str, ...]
    image_of: np.ndarray  # int64 [captions], into paths, rising

    @property
    def truth(self) -> bytes:
        """Which captions are whose, in the order of the pictures; for `Context.embed`."""
        return json.dumps([self.captions, self.image_of.tolist()]).encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextOptions(Options):
    """See `--help`."""

    data: str | None = option(None, help="one Karpathy file instead of both sets")
    split: str = option("test", help="the part that is scored")
    captions: int | None = option(5, at_least=1, none="all", help="the first captions of each picture that count")


@register("image_text", version=PROTOCOL_VERSION, options=ImageTextOptions)
def run(context: Context, options: ImageTextOptions) -> Result:
    """Image-text retrieval both ways on COCO and Flickr30k, Karpathy's splits; several captions per picture.

    Raises:
        Unavailable: neither set is there.
        UserError: a file is not as it must be, or some pictures are missing.
    """
    metrics: dict[str, float] = {}
    counts: dict[str, Any] = {}
    items: dict[str, np.ndarray] = {}
    chance: dict[str, float] = {}
    data: list[Provenance] = []
    paths, not_measured = _find_files(context.data_dir, options.data)
    # All files are read before the first hour of work.
    read = {path: read_karpathy(path, split=options.split, max_captions=options.captions) for path in paths}
    for path, captioned in read.items():
        name = path.stem.removeprefix("dataset_")
        try:
            found, counted, of_set = _measure(context, name, path.parent, captioned)
        except Unavailable as error:
            not_measured.append(f"{name}: {error}")
            continue
        data += of_set
        items |= {f"{name}.{key}": values for key, values in found.items()}
        metrics |= {f"{name}.{key}": float(values.mean(dtype=np.float64)) for key, values in found.items()}
        counts |= {f"{name}.{key}": value for key, value in counted.items()}
        chance |= {f"{name}.text_to_image.recall_at_{k}": min(1.0, k / counted["num_images"]) for k in PLACES}
    if not metrics:
        raise Unavailable("; ".join(not_measured))
    return Result(
        metrics=metrics,
        counts=counts,
        data=data,
        settings={"split": options.split, "max_captions": options.captions},
        items=items,
        chance=chance,
        groups=[path.stem.removeprefix("dataset_") for path in read],
        not_measured=not_measured,
    )


def read_karpathy(path: Path, *, split: str = "test", max_captions: int | None = 5) -> CaptionedImages:
    """Returns one split of a Karpathy file such as dataset_coco.json.

    Args:
        path: JSON, {"images": [{"filename", perhaps "filepath", "split", "sentences": [{"raw"}, ...]}, ...]}.
        split: "train", "val" or "test"; COCO also has "restval".
        max_captions: of a picture, the first ones; None: all.

    Raises:
        UserError: the file has another layout, the split is not in it, or it has no captions or an empty one.
    """
    content: Any = read_json(path, remedy=f"get it again from {SOURCE}")
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(f'{path} lacks the list "images"; Karpathy\'s layout is needed, get it from {SOURCE}')
    paths: list[str] = []
    captions: list[str] = []
    image_of: list[int] = []
    for number, image in enumerate(images):
        try:
            # Pure string work: the file names are not looked up here.
            image_path = str(PurePosixPath(image.get("filepath", ""), image["filename"]))
            of_split = image["split"] == split
            raw = [" ".join(sentence["raw"].split()) for sentence in image["sentences"]]
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, picture {number} of the list is not in Karpathy's layout ({type(error).__name__}: {error}); "
                f"get the file from {SOURCE}"
            ) from error
        if not of_split:
            continue
        if not all(raw):
            raise UserError(
                f"{path}: {image_path} has {len(raw)} captions, {sum(map(bool, raw))} of them with words; none may be "
                "empty, remove those"
            )
        kept = raw[:max_captions]
        captions += kept
        image_of += [len(paths)] * len(kept)
        paths.append(image_path)
    if not paths:
        there = ", ".join(f"{name} ({count})" for name, count in Counter(image["split"] for image in images).items())
        raise UserError(f"{path} has no split {split!r}; it has {there}")
    if not captions:
        raise UserError(f"{path}: the {len(paths)} pictures of split {split!r} have no captions; name another split")
    return CaptionedImages(paths=tuple(paths), captions=tuple(captions), image_of=np.array(image_of, np.int64))


def _measure(
    context: Context, name: str, folder: Path, data: CaptionedImages
) -> tuple[dict[str, np.ndarray], dict[str, int], list[Provenance]]:
    """Returns what each query found, counts, and what was embedded."""
    # Equal captions are embedded once, so that their rows are the same to the last bit.
    unique = list(dict.fromkeys(data.captions))
    place = {caption: position for position, caption in enumerate(unique)}
    embedded_texts = context.embed_texts(f"{name}_captions", unique, part=name)
    texts = embedded_texts.vectors[[place[caption] for caption in data.captions]]
    places = [folder / one for one in _PICTURE_FOLDERS]
    root = next((one for one in places if _missing(one, data.paths) != list(data.paths)), folder)
    try:
        embedded = context.embed(folder_images(name, root, data.paths), truth=data.truth, part=name)
    except UnreadableImage as error:
        raise _missing_pictures(root, data.paths) or error from None
    if embedded.vectors.shape[1] != texts.shape[1]:
        raise UserError(
            f"embeddings of the pictures of {name} have {embedded.vectors.shape[1]} dimensions, those of the captions "
            f"{texts.shape[1]}; embed both with one model"
        )
    # The captions of a picture that may be missing are left out with it.
    kept = np.isin(data.image_of, embedded.positions)
    image_of = np.searchsorted(embedded.positions, data.image_of[kept])
    found = found_at(*retrieval_ranks(embedded.vectors, texts[kept], image_of))
    counted = {"num_images": len(embedded.positions), "num_captions": int(kept.sum())}
    counted |= {"num_images_without_caption": len(embedded.positions) - len(np.unique(image_of))}
    counted |= {"num_unreadable": embedded.num_unreadable}
    return found, counted, [embedded.provenance, embedded_texts.provenance]


def _missing(root: Path, paths: Sequence[str]) -> list[str]:
    on_disk = as_on_disk(str(root), paths)
    return [path for path, found in zip(paths, on_disk, strict=True) if not (root / found).exists()]


def _missing_pictures(root: Path, paths: Sequence[str]) -> UserError | None:
    missing = _missing(root, paths)
    if len(missing) == len(paths):
        places = " or ".join(str(root / one) for one in _PICTURE_FOLDERS)
        return Unavailable(f"none of the {len(paths)} pictures is there; put {paths[0]} and the others into {places}")
    if missing:
        return UserError(
            f"{len(missing)} of {len(paths)} pictures are missing in {root}, {missing[0]} first; "
            "get them again, or allow some with --max-unreadable"
        )
    return None


def _find_files(data_dir: Path, named: str | None) -> tuple[list[Path], list[str]]:
    """Returns the files that are there, and a line for each other one, unless the user names one."""
    if named is not None:
        if not (data_dir / named).exists():
            raise UserError(f"{data_dir / named} is not there; name a Karpathy file with --option image_text.data=")
        return [data_dir / named], []
    paths = [data_dir / one for one in FILES]
    missing = [
        f"{path} is not there; get it from {SOURCE}, and put the pictures beside it "
        "(coco/val2014/..., flickr30k/images/...)"
        for path in paths
        if not path.exists()
    ]
    return [path for path in paths if path.exists()], missing
