"""Data sets by name, and a user's own table, each with a held-out part."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from streaming_vb.errors import MissingExtra, SourceError
from streaming_vb.seeding import numpy_generator
from streaming_vb.sources.files import Table, read_idx, read_table, require_scorable
from streaming_vb.types import Array

HELD_OUT = 0.1
"""Part held out where a data set has no test split."""

_FILES = {
    "train": "train-images-idx3-ubyte",
    "test": "t10k-images-idx3-ubyte",
    "labels": "t10k-labels-idx1-ubyte",
}
_DOWNLOADS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "test": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": (
        "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "test": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
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


def load(name: str, data_dir: Path | None, likelihood: str) -> Dataset:
    """A data set by name ("digits", "mnist", "fashion-mnist"), or the table at a path.

    Args:
        name: of the data set, or a path.
        data_dir: folder with the original IDX files (or with a folder of the data set's name); none means download.
        likelihood: the values must lie in its range.

    Raises:
        SourceError: unknown name, missing or damaged file, no network.
        DataError: a value that the likelihood cannot score.
        MissingExtra: the data set needs a package that is not installed.
    """
    if name == "digits":
        return _digits()
    if name in _DOWNLOADS:
        return _images(name, data_dir)
    if not Path(name).suffix and not Path(name).exists():
        raise SourceError(
            f"unknown data set {name!r}: expected digits, mnist, fashion-mnist, or a path "
            "to an IDX, .npy, .npz or .csv file"
        )
    table = read_table(Path(name))
    require_scorable(table, likelihood)
    return _split(name, table.x, None, _byte_scale(table), table.shape)


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
    return table.x.astype(np.float32) * np.float32(_byte_scale(table) or 1.0)


def _byte_scale(table: Table) -> float:
    return 1 / 255 if table.x.dtype == np.uint8 else 0.0


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("digits needs scikit-learn. Type pip install 'streaming-vb[demo]'") from None
    bunch = load_digits()
    x = bunch.data.astype(np.uint8)  # 8 x 8 counts, 0 to 16
    return _split("digits", x, bunch.target, 1 / 16, (8, 8))


def _split(name: str, x: Array, labels: Array | None, scale: float, shape: tuple[int, ...]) -> Dataset:
    """Hold out every record that a fixed permutation puts into the last tenth; the others keep their order."""
    num_held_out = max(1, round(HELD_OUT * len(x)))
    if len(x) < 20:
        raise SourceError(f"{name}: {len(x)} records; at least 20 are needed to hold a tenth of them out")
    order = numpy_generator(0, "held out").permutation(len(x))
    train, test = np.sort(order[num_held_out:]), np.sort(order[:num_held_out])
    return Dataset(name, x[train], x[test], None if labels is None else labels[test], scale, shape)


def _images(name: str, data_dir: Path | None) -> Dataset:
    parts = {}
    for part in _FILES:
        path = _download(name, part) if data_dir is None else _find(name, part, data_dir)
        parts[part] = read_idx(path)
    shape = parts["train"].shape[1:]
    if parts["test"].shape[1:] != shape or len(parts["labels"]) != len(parts["test"]):
        raise SourceError(
            f"{name}: shapes of the parts do not fit: {', '.join(str(part.shape) for part in parts.values())}"
        )
    train, test = (parts[part].reshape(len(parts[part]), -1) for part in ("train", "test"))
    return Dataset(name, train, test, parts["labels"], 1 / 255, shape)


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
