"""Laws of every model."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from checks import example_records, fingerprint
from discovery import examples

from streaming_vb.errors import DataError
from streaming_vb.types import Array, Model, Records

every_model = pytest.mark.parametrize("model", examples("models"))
START = 1000
"""A record is named by its place in the stream, so the interval does not start at 0."""


class Observed(Mapping[str, Array]):
    """Fields that remember which of them were read."""

    def __init__(self, fields: Mapping[str, Array]) -> None:
        self.fields, self.read = fields, set[str]()

    def __getitem__(self, name: str) -> Array:
        self.read.add(name)
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


def fields_read(model: Model) -> set[str]:
    """Fields of the records that `validate` looks at."""
    records = example_records(model, 5)
    observed = Observed(records.fields)
    model.validate(Records(records.interval, observed))
    return observed.read


def with_field(records: Records, name: str, array: Array) -> Records:
    return Records(records.interval, {**records.fields, name: array})


@every_model
def test_the_prior_is_a_function_of_the_seed(model: Model) -> None:
    assert fingerprint(model.prior(3)) == fingerprint(model.prior(3))


@every_model
def test_the_centre_of_a_neural_prior_differs_between_seeds(model: Model) -> None:
    if hasattr(model, "layout"):
        means = [model.family.mean(model.prior(seed)) for seed in (3, 4)]
        assert np.mean(means[0] == means[1]) < 0.01


@every_model
def test_the_prior_is_a_distribution_in_float64(model: Model) -> None:
    prior = model.prior(0)
    assert model.family.is_normalizable(prior)
    assert {array.dtype for array in prior.arrays.values()} == {np.dtype(np.float64)}


@every_model
def test_the_layout_covers_the_prior(model: Any) -> None:
    if hasattr(model, "layout"):
        assert model.family.mean(model.prior(0)).shape == (model.layout.num_weights,)


@every_model
def test_the_description_survives_json(model: Model) -> None:
    description = dict(model.describe())
    assert json.loads(json.dumps(description)) == description
    assert isinstance(description["model"], str)


@every_model
def test_records_of_its_kind_are_accepted_and_not_touched(model: Model) -> None:
    records = example_records(model, 5, START)
    before = fingerprint(records)
    model.validate(records)
    assert fingerprint(records) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@every_model
def test_a_value_that_is_not_finite_is_refused_with_record_and_column(model: Model, value: float) -> None:
    if "x" in fields_read(model):
        records = example_records(model, 5, START)
        x = records["x"].copy()
        x[3, 1] = value
        with pytest.raises(DataError, match=rf"record {START + 3} column 1\b"):
            model.validate(with_field(records, "x", x))


@every_model
def test_a_target_that_is_not_finite_is_refused_with_its_record(model: Model) -> None:
    if "y" in fields_read(model):
        records = example_records(model, 5, START)
        y = records["y"].copy()
        y[3] = np.nan
        with pytest.raises(DataError, match=rf"record {START + 3}\b"):
            model.validate(with_field(records, "y", y))


@pytest.mark.parametrize("extra", [-1, 1])
@every_model
def test_records_of_another_width_are_refused(model: Model, extra: int) -> None:
    if "x" in fields_read(model):
        records = example_records(model, 5)
        columns = records["x"].shape[1]
        with pytest.raises(DataError, match=rf"(?s){columns + extra}.*{columns}|{columns}.*{columns + extra}"):
            model.validate(with_field(records, "x", np.zeros((5, columns + extra), np.float32)))


@every_model
def test_every_field_it_reads_must_have_the_right_kind(model: Model) -> None:
    records = example_records(model, 5)
    for name in fields_read(model):
        with pytest.raises(DataError):
            model.validate(with_field(records, name, np.full((5, 2, 2), 0.5)))
