"""What a user can get wrong, and the exit code of each class.

    StreamingVBError
    +-- ConfigError             2   a flag, a setting, a missing extra
    |   +-- MissingExtra
    |   +-- ResumeMismatch          run directory made with other settings
    |   +-- RunInUse                another process writes the run directory
    |   +-- MergeRefused            posteriors that cannot be added to or subtracted from each other
    +-- SourceError             3   data that cannot be found or read
    |   +-- DataError               a value that cannot be scored, with record and column
    +-- ClusterError            4   Ray: no cluster, wrong token, lost server
    +-- IntegrityError          5   a posterior file that is corrupt or foreign
    |   +-- FormatTooNew
    |   +-- StaleWriter             a newer process took the run directory over
    +-- NumericalError          1   a local fit that is not finite
    +-- MergeRejected           1   a delta that must not be added

Text of every message, one line: what was expected, what came, where, and what to type.
"""


class StreamingVBError(Exception):
    """Base of every error that a user can cause."""

    exit_code = 1


class ConfigError(StreamingVBError, ValueError):
    """A setting that cannot be used."""

    exit_code = 2


class MissingExtra(ConfigError):
    """An optional dependency is not installed."""


class ResumeMismatch(ConfigError):
    """The run directory was made with other settings."""


class RunInUse(ConfigError):
    """Another process writes the run directory."""


class MergeRefused(ConfigError):
    """Posteriors that cannot be added to, or subtracted from, each other."""


class SourceError(StreamingVBError):
    """The data cannot be found or read."""

    exit_code = 3


class DataError(SourceError, ValueError):
    """A record holds a value that the model cannot score."""


class ClusterError(StreamingVBError):
    """The Ray cluster cannot be used, or lost a part that the run cannot do without."""

    exit_code = 4


class IntegrityError(StreamingVBError):
    """A posterior file is corrupt, truncated or not ours."""

    exit_code = 5


class FormatTooNew(IntegrityError):
    """The file was written by a newer version."""


class StaleWriter(IntegrityError):
    """A newer process took the run directory over; nothing that this one writes counts any more."""


class NumericalError(StreamingVBError):
    """A local fit is not finite."""


class MergeRejected(StreamingVBError):
    """A delta that must not be added; the posterior is unchanged."""
