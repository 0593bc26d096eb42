import pytest

from streaming_vb import errors

EXIT_CODES = {
    "StreamingVBError": 1,
    "NumericalError": 1,
    "MergeRejected": 1,
    "ConfigError": 2,
    "MissingExtra": 2,
    "ResumeMismatch": 2,
    "RunInUse": 2,
    "MergeRefused": 2,
    "SourceError": 3,
    "DataError": 3,
    "ClusterError": 4,
    "IntegrityError": 5,
    "FormatTooNew": 5,
    "StaleWriter": 5,
}


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_every_error_has_the_exit_code_of_its_class(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code
    assert issubclass(getattr(errors, name), errors.StreamingVBError)


def test_no_error_is_missing_above() -> None:
    assert {name for name, value in vars(errors).items() if isinstance(value, type)} == EXIT_CODES.keys()


@pytest.mark.parametrize("error", [errors.ConfigError, errors.DataError])
def test_what_a_user_can_get_wrong_is_a_value_error(error: type) -> None:
    assert issubclass(error, ValueError)
