"""Reading back what the Parquet sink wrote, record by record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outstation.errors import InvalidInputError, MissingExtraError, StorageError, mapped_os_errors
from outstation.types import STREAM_NAME, Record, checked_name

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as exc:
    raise MissingExtraError("parquet", "Reading Parquet files") from exc

_COLUMNS = ["station", "epoch", "sequence", "time", "content_type", "attributes", "payload"]
# Rows that are in memory at once: of captures, some megabytes each.
_BATCH_ROWS = 16


def read_stream(folder: Path, stream: str) -> Iterator[tuple[str, Record]]:
    """Every record of *stream* in the sink's *folder*, file by file: (station and number, record).

    InvalidInputError when the folder holds no such stream, StorageError for a file that is no Parquet file of ours.
    """
    checked_name(STREAM_NAME, stream, "stream")
    place = folder / f"stream={stream}"
    with mapped_os_errors(doing="list the files of the stream", path=place):
        paths = sorted(place.glob("day=*/*.parquet"))
    if not paths:
        raise InvalidInputError(f"There is no stream {stream!r} in {folder}.", hint="Name the folder of the sink.")
    for path in paths:
        yield from _records(path)


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    with _readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=_COLUMNS):
            times = batch.column("time").cast(pa.int64()).to_pylist()
            rows = batch.drop_columns("time").to_pylist()
            for row, time_unix_nano in zip(rows, times, strict=True):
                record = Record(
                    row["sequence"], time_unix_nano, row["payload"], row["content_type"], dict(row["attributes"])
                )
                yield f"{row['station']}.{row['epoch']:016x}.{row['sequence']}", record


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError) as exc:
        raise StorageError(f"{path} cannot be read: {exc}.") from exc
