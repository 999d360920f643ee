"""Arrays of a store on disk, written shard by shard by any number of processes.

Chunks and codec are the measured optimum for whole-group reads (blosc lz4 with shuffle, inner chunk 16 Ki elements, or
64 KiB of whole rows when dense; sharded). Bytes depend on the values alone. Light imports: workers use this.
"""

import pathlib

import numpy as np
import tensorstore as ts

CHUNK = 16_384  # elements decoded at once
DENSE_CHUNK = 65_536  # the same for dense rows
SHARD = 8 * 1024 * 1024  # elements in a file, at most: what one process holds while it writes
CODECS = {"lz4": 5, "zstd": 1}  # level of blosc's codec


def shard_length(length: int, width: int | None = None) -> int:
    """Elements (rows when the array has a width) of a file: whole chunks, not more than the array needs."""
    chunk = _chunk(width)
    most = max(chunk, SHARD // (width or 1) // chunk * chunk)
    return min(most, max(1, -(-length // chunk)) * chunk)


def _chunk(width: int | None) -> int:
    return CHUNK if width is None else max(1, DENSE_CHUNK // width)


def create_array(
    folder: pathlib.Path,
    name: str,
    length: int,
    dtype: np.dtype | type,
    *,
    width: int | None = None,
    codec: str = "lz4",
) -> None:
    """Makes the zarr v3 array [length] or [length, width], with nothing in it, as anndata marks its arrays."""
    tail = [] if width is None else [width]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    packing = {"cname": codec, "clevel": CODECS[codec], "shuffle": "shuffle"}
    codecs = [little, {"name": "blosc", "configuration": packing}]
    inner = {"chunk_shape": [_chunk(width), *tail], "codecs": codecs}
    shard = [shard_length(length, width), *tail]
    metadata = {
        "shape": [length, *tail],
        "data_type": np.dtype(dtype).name,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        "attributes": {"encoding-type": "array", "encoding-version": "0.2.0"},
    }
    ts.open({**_spec(folder, name), "metadata": metadata, "create": True}).result()


def write_ranges(folder: pathlib.Path, first: int, arrays: dict[str, np.ndarray]) -> None:
    """Writes values from position `first` on into each of the named arrays, at once.

    Ranges that several processes write at a time must begin and end at borders of shards.
    """
    opened = [ts.open(_spec(folder, name)) for name in arrays]
    writes = [
        array.result()[first : first + len(values)].write(values, can_reference_source_data_indefinitely=True)
        for array, values in zip(opened, arrays.values(), strict=True)
    ]
    for write in writes:
        write.result()


def write_whole(
    folder: pathlib.Path, name: str, values: np.ndarray, *, codec: str = "lz4", width: int | None = None
) -> None:
    """Makes an array and fills it, a shard at a time."""
    create_array(folder, name, len(values), values.dtype, width=width, codec=codec)
    step = shard_length(len(values), width)
    for first in range(0, len(values), step):
        write_ranges(folder, first, {name: values[first : first + step]})


def _spec(folder: pathlib.Path, name: str) -> dict:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}
