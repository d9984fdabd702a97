"""Rows of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import UserError


def read_table(path: str | os.PathLike[str], columns: Sequence[str], *, remedy: str) -> pa.Table:
    """Returns `columns` of a Parquet file, or of all `*.parquet` in a directory, in the order of the file names.

    Raises:
        UserError: there is none, a file is not Parquet, or a column is missing; the message ends with `remedy`.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".parquet"))
    else:
        files = [path] if os.path.exists(path) else []
    if not files:
        raise UserError(f"{path} is missing; {remedy}")
    tables = []
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{file} is not a Parquet file ({error}); {remedy}") from error
        with parquet:
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise UserError(f"{file} has no column {missing[0]!r}; {remedy}")
            tables.append(parquet.read(columns=list(columns)))
    # Shards whose lists are all empty may have another inner type.
    return pa.concat_tables(tables, promote_options="permissive")
