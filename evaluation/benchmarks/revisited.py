"""Revisited Oxford and Paris: retrieval of landmarks, at three grades of difficulty (Radenovic et al. 2018).

Protocol (version 1), after the benchmark's own script. Average precision is the area under the precision-recall curve
by trapezoids. Junk leaves the ranking. A query without positives leaves the mean. Precision at k divides by
min(rank of the last positive, k). Queries are cropped to their box before they are embedded. Distractors, where there
are any, follow the gallery. Equal similarities rank by position; those within 3e-6 of a positive's or of junk's are
compared again in float64.

    grade    positive      junk
    easy     easy          junk and hard
    medium   easy, hard    junk
    hard     hard          junk and easy
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from evaluation.metrics.blocks import NormalisedRows, Rows, Stacked, read_rows
from evaluation.metrics.landmarks import GRADES, revisited_metrics
from evaluation.metrics.nearest import nearest
from evaluation.models.arrays import map_array
from evaluation.options import Options, option
from evaluation.protocol import Context, EmbeddedSet, Provenance, Result, Unavailable, provenance, register
from evaluation.report import figures
from evaluation.sets.images import ImageSet, absent_images, folder_images
from evaluation.sets.listing import list_images
from evaluation.sets.revisited import WHERE, GroundTruth, read_ground_truth
from evaluation.sets.text import read_ids
from pipeline.schema import UserError
from pipeline.storage.fingerprints import sha256_of_file

_NUM_QUERIES_SHOWN, _NUM_SHOWN = 8, 10
_DISTRACTORS = "revisitop1m"  # the set of their embeddings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevisitedOptions(Options):
    """See `--help`."""

    distractors: str | None = option(
        None,
        help="their folder, such as revisitop1m/jpg; a .npy file of embeddings, with a file .ids beside it; or "
        "revisitop1m, when embeddings of that set are ready",
    )


@register("roxford", version=1, options=RevisitedOptions)
def roxford(context: Context, options: RevisitedOptions) -> Result:
    """Retrieval of Oxford's landmarks, revisited: easy, medium, hard; perhaps with a million distractors.

    Raises:
        Unavailable: ground truth, pictures or distractors are not there.
        UserError: they are not as published.
    """
    return _revisited(context, options, "roxford", "roxford5k", num_pictures=4_993, num_queries=70)


@register("rparis", version=1, options=RevisitedOptions)
def rparis(context: Context, options: RevisitedOptions) -> Result:
    """Retrieval of Paris's landmarks, revisited: easy, medium, hard; perhaps with a million distractors.

    Raises:
        Unavailable: ground truth, pictures or distractors are not there.
        UserError: they are not as published.
    """
    return _revisited(context, options, "rparis", "rparis6k", num_pictures=6_322, num_queries=70)


def _revisited(
    context: Context, options: RevisitedOptions, name: str, folder: str, *, num_pictures: int, num_queries: int
) -> Result:
    layout = (
        f"{folder}/gnd_{folder}.pkl and {folder}/jpg/<name>.jpg, {num_pictures:,} pictures and {num_queries} queries"
    )
    chosen = options.distractors
    root = context.folder(folder, get=WHERE, layout=layout)
    path = root / f"gnd_{folder}.pkl"
    if not path.exists():
        raise Unavailable(f"{path} is not there; get it from {WHERE}, laid out as {layout}")
    with open(path, "rb") as file:
        truth = read_ground_truth(file)
    if (len(truth.gallery_names), len(truth.queries)) != (num_pictures, num_queries):
        raise UserError(
            f"{path} has {len(truth.gallery_names)} pictures and {len(truth.queries)} queries, {num_pictures} and "
            f"{num_queries} are needed; it is of another version, get it from {WHERE}"
        )
    # Ready embeddings need no pictures.
    if context.model.known_ids(name) is None and not (root / "jpg").is_dir():
        raise Unavailable(
            f"{root / 'jpg'} is not there; get it from {WHERE}, laid out as {layout}; ready embeddings are {name} and "
            f"{name}_queries, .npy and .ids"
        )
    ready = context.model.known_ids(_DISTRACTORS) if chosen == _DISTRACTORS else None
    if chosen and ready is None and not (context.data_dir / chosen).exists():
        raise Unavailable(
            f"{context.data_dir / chosen} is not there; get the distractors from {WHERE}, and name revisitop1m/jpg, a "
            f".npy file of their embeddings [n, dim], or {_DISTRACTORS} where those of that set are ready"
        )
    pictures = folder_images(name, root, [f"jpg/{one}.jpg" for one in truth.gallery_names])
    boxes = [one.box for one in truth.queries]
    cropped = folder_images(f"{name}_queries", root, [f"jpg/{one}.jpg" for one in truth.query_names], boxes=boxes)
    gallery = _embed_all(context, pictures)
    queries = _embed_all(context, cropped, truth=repr(truth).encode())
    parts: list[Rows] = [gallery.vectors]
    data = [gallery.provenance, queries.provenance]
    num_unreadable = 0
    if ready is not None:
        ready_rows = context.embed(absent_images(_DISTRACTORS, sorted(ready)))
        parts.append(ready_rows.vectors)
        data.append(ready_rows.provenance)
    elif chosen:
        distractors, num_unreadable, known = _distractors(context, context.data_dir / chosen)
        parts.append(distractors)
        data.append(known)
    dims = {part.shape[1] for part in (queries.vectors, *parts)}
    if len(dims) > 1:
        raise UserError(
            f"the embeddings of queries, pictures and distractors have {', '.join(map(str, sorted(dims)))} dimensions; "
            "embed all with one model"
        )
    asked = read_rows(queries.vectors, 0, num_queries)
    values, items = revisited_metrics(asked, Stacked(parts), truth.queries)
    return Result(
        metrics=values,
        counts={
            "num_pictures": num_pictures,
            "num_queries": num_queries,
            "num_distractors": parts[1].shape[0] if chosen else 0,
            "num_unreadable_distractors": num_unreadable,
            **{f"{grade}.num_queries": len(items[f"{grade}.map"]) for grade in GRADES},
        },
        data=data,
        settings={"num_distractors": parts[1].shape[0] if chosen else 0},
        items=items,
        groups=tuple(GRADES),
        figures={"grid": _grid(cropped, pictures, asked, gallery.vectors, truth)},
    )


def _grid(
    cropped: ImageSet, pictures: ImageSet, queries: np.ndarray, gallery: Rows, truth: GroundTruth
) -> figures.Figure:
    chosen = np.linspace(0, len(queries) - 1, _NUM_QUERIES_SHOWN).astype(int).tolist()
    found = nearest(gallery, queries[chosen], _NUM_SHOWN).positions.tolist()
    rows = []
    for query, positions in zip(chosen, found, strict=True):
        one = truth.queries[query]
        right = {position: True for position in (*one.easy, *one.hard)} | dict.fromkeys(one.junk)
        rows.append(
            figures.GridRow(
                query=query,
                title=truth.query_names[query],
                hits=[(position, right.get(position, False)) for position in positions],
            )
        )
    return figures.Grid(
        title=f"queries and their first {_NUM_SHOWN} pictures, distractors left out; medium, junk in grey",
        images=cropped,
        hit_images=pictures,
        rows=rows,
    )


def _embed_all(context: Context, images: ImageSet, *, truth: bytes | None = None) -> EmbeddedSet:
    embedded = context.embed(images, truth=truth)
    if len(embedded.positions) != len(images):
        raise UserError(
            f"{images.name} has {len(embedded.positions)} pictures that can be read, all {len(images)} are needed; get "
            f"the others from {WHERE}"
        )
    return embedded


def _distractors(context: Context, path: Path) -> tuple[Rows, int, Provenance]:
    """Returns embeddings, of pictures in a folder or from a `.npy` file, how many could not be read, and what they are.

    A file's rows may have any length above 0. The ids of its pictures are in a file `.ids` beside it, one per line.
    Whether another model made them is not known.
    """
    if path.is_dir():
        names = list_images(path)
        if not names:
            raise UserError(f"{path} holds no pictures, at least 1 is needed; name the folder revisitop1m/jpg")
        embedded = context.embed(folder_images(_DISTRACTORS, path, names))
        return embedded.vectors, embedded.num_unreadable, embedded.provenance
    rows = map_array(path)
    if rows.ndim != 2 or len(rows) == 0 or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(f"{path} has shape {rows.shape} of {rows.dtype}; floats [n, dim] are needed, n at least 1")
    ids, ids_path = None, path.with_suffix(".ids")
    if ids_path.exists():
        ids = read_ids(ids_path)
        if len(ids) != len(rows):
            raise UserError(f"{ids_path} has {len(ids)} ids and {path.name} {len(rows)} rows; give one id a row")
    print(
        f"warning: nothing shows that {path} is of this model; naming the folder of the pictures would",
        file=sys.stderr,
    )
    files_hash = sha256_of_file(path)
    # Without ids, `compare` takes no two files for the same pictures.
    known = (
        Provenance(name=_DISTRACTORS, ids=None, embeddings=files_hash)
        if ids is None
        else provenance(_DISTRACTORS, ids, embeddings=files_hash)
    )
    return NormalisedRows(rows, str(path)), 0, known
