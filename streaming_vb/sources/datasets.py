"""Data sets by name, and a user's own table, each with a held-out part."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streaming_vb.errors import MissingExtra, SourceError
from streaming_vb.seeding import numpy_generator
from streaming_vb.sources.files import (
    Table,
    read_idx,
    read_table,
    require_scorable,
    scorable_rows,
    takes_whole_numbers,
)
from streaming_vb.types import Array

HELD_OUT = 0.1
"""Part held out where a data set has no test split."""

_FILES = {
    "train": "train-images-idx3-ubyte",
    "test": "t10k-images-idx3-ubyte",
    "labels": "t10k-labels-idx1-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
}
_DOWNLOADS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "test": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "train_labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        },
    ),
    "fashion-mnist": (
        "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "test": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "train_labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        },
    ),
}
"""Where the original files are, and their SHA-256."""


class Dataset(NamedTuple):
    """A table to stream and one to hold out.

    Attributes:
        name: as the user typed it.
        train: [n, D], as stored.
        test: [m, D], as stored.
        test_labels: [m] for colouring pictures, or none.
        scale: stored value times scale is x; 0 means as it is.
        shape: of one record.
    """

    name: str
    train: Array
    test: Array
    test_labels: Array | None
    scale: float
    shape: tuple[int, ...]

    def test_values(self) -> Array:
        """x of the held-out records, float32 [m, D]."""
        return self.test.astype(np.float32) * np.float32(self.scale or 1.0)


def load(name: str, data_dir: Path | None, likelihood: str, *, bad_records: str = "stop") -> Dataset:
    """A data set by name ("digits", "mnist", "fashion-mnist"), or the table at a path.

    Args:
        name: of the data set, or a path.
        data_dir: folder with the original IDX files (or with a folder of the data set's name); none means download.
        likelihood: its name; every value must be one that it can score.
        bad_records: "stop", or "set-aside": records of a table that cannot be scored stay among those to stream, for
            the run to set aside, and are left out of those held out.

    Raises:
        SourceError: unknown name, missing or damaged file, no network.
        DataError: a value that the likelihood cannot score.
        MissingExtra: the data set needs a package that is not installed.
    """
    if name == "digits":
        return _digits(likelihood)
    if name in _DOWNLOADS:
        return _images(name, data_dir, likelihood)
    if not Path(name).suffix and not Path(name).exists():
        raise SourceError(
            f"unknown data set {name!r}: expected digits, mnist, fashion-mnist, or a path "
            "to an IDX, .npy, .npz or .csv file"
        )
    table = read_table(Path(name))
    dataset = _split(table, name, None, _scale(table, likelihood, 1 / 255))
    if bad_records == "stop":
        require_scorable(table, likelihood)
        return dataset
    return dataset._replace(test=dataset.test[scorable_rows(table._replace(x=dataset.test), likelihood)])


def train_labels(name: str, data_dir: Path | None) -> Array:
    """Labels [n] of the training table of "digits", "mnist" or "fashion-mnist", in its order.

    Raises:
        SourceError, MissingExtra: as `load`.
    """
    if name == "digits":
        labels = _load_digits().target
        return np.asarray(labels[_hold_out(name, len(labels))[0]])
    return read_idx(_locate(name, "train_labels", data_dir))


def read_for(num_columns: int, path: Path, likelihood: str) -> Array:
    """Values of a table to be scored by a model of D columns, float32 [n, D].

    Raises:
        SourceError: the file cannot be read, or has another width.
        DataError: a value that the likelihood cannot score.
    """
    table: Table = read_table(path)
    if table.x.shape[1] != num_columns:
        raise SourceError(
            f"{path}: {table.x.shape[1]} columns came, the model expects {num_columns}. "
            "Score data of the width it was fitted on"
        )
    require_scorable(table, likelihood)
    return table.x.astype(np.float32) * np.float32(_scale(table, likelihood, 1 / 255) or 1.0)


def _scale(table: Table, likelihood: str, byte_scale: float) -> float:
    """`Dataset.scale`: floating point stays as it is; bytes are scaled unless the likelihood takes whole numbers."""
    if table.x.dtype != np.uint8:
        return 0.0
    return 1.0 if takes_whole_numbers(likelihood) else byte_scale


def _load_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("digits needs scikit-learn. Type pip install 'streaming-vb[demo]'") from None
    return load_digits()


def _digits(likelihood: str) -> Dataset:
    bunch = _load_digits()
    table = _byte_table(bunch.images.astype(np.uint8), "digits")  # 8 x 8 counts, 0 to 16
    require_scorable(table, likelihood)
    return _split(table, "digits", bunch.target, _scale(table, likelihood, 1 / 16))


def _byte_table(images: Array, where: str) -> Table:
    x = images.reshape(len(images), -1)
    return Table(x, tuple(str(i) for i in range(x.shape[1])), images.shape[1:], where)


def _split(table: Table, name: str, labels: Array | None, scale: float) -> Dataset:
    train, test = _hold_out(name, len(table.x))
    return Dataset(name, table.x[train], table.x[test], None if labels is None else labels[test], scale, table.shape)


def _hold_out(name: str, num_records: int) -> tuple[Array, Array]:
    """Rows to stream and rows to hold out: those that a fixed permutation puts into the last tenth; each in order."""
    if num_records < 20:
        raise SourceError(f"{name}: {num_records} records; at least 20 are needed to hold a tenth of them out")
    num_held_out = max(1, round(HELD_OUT * num_records))
    order = numpy_generator(0, "held out").permutation(num_records)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _images(name: str, data_dir: Path | None, likelihood: str) -> Dataset:
    parts = {part: read_idx(_locate(name, part, data_dir)) for part in ("train", "test", "labels")}
    shape = parts["train"].shape[1:]
    if parts["test"].shape[1:] != shape or len(parts["labels"]) != len(parts["test"]):
        raise SourceError(
            f"{name}: shapes of the parts do not fit: {', '.join(str(part.shape) for part in parts.values())}"
        )
    train, test = (_byte_table(parts[part], f"{name}, {_FILES[part]}") for part in ("train", "test"))
    for table in (train, test):
        require_scorable(table, likelihood)
    return Dataset(name, train.x, test.x, parts["labels"], _scale(train, likelihood, 1 / 255), shape)


def _locate(name: str, part: str, data_dir: Path | None) -> Path:
    return _download(name, part) if data_dir is None else _find(name, part, data_dir)


def _find(name: str, part: str, data_dir: Path) -> Path:
    candidates = [
        folder / f"{_FILES[part]}{ending}" for folder in (data_dir, data_dir / name) for ending in (".gz", "")
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise SourceError(
        f"--data-dir {data_dir}: expected {candidates[0].name} of {name} there, found none. "
        "Give the folder with the original files, or leave --data-dir out to download them"
    )


def _download(name: str, part: str) -> Path:
    try:
        import pooch
    except ImportError:
        raise MissingExtra(
            f"downloading {name} needs pooch. Type pip install 'streaming-vb[data]', or give --data-dir"
        ) from None
    address, checksums = _DOWNLOADS[name]
    url = f"{address}{_FILES[part]}.gz"
    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(
            pooch.retrieve(
                url, f"sha256:{checksums[part]}", f"{name}-{_FILES[part]}.gz", pooch.os_cache("streaming-vb")
            )
        )
    except (OSError, ValueError) as error:  # requests' errors are OSError; ValueError is a wrong checksum
        raise SourceError(
            f"{name}: cannot download {url} ({type(error).__name__}). Check the network, or get the file elsewhere and "
            "give its folder with --data-dir"
        ) from error
