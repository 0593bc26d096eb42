"""What a worker does with a lease: read the interval, check it, fit it from the snapshot, and say what came out."""

from dataclasses import dataclass

from streaming_vb.errors import NumericalError
from streaming_vb.failpoints import reach
from streaming_vb.seeding import interval_seed
from streaming_vb.streaming import quarantine
from streaming_vb.streaming.forgetting import Forgetting
from streaming_vb.streaming.merge import is_finite
from streaming_vb.types import (
    Delta,
    Lease,
    Model,
    NaturalParameters,
    Primitive,
    Records,
    SetAside,
    Snapshot,
    Source,
)


@dataclass(frozen=True, slots=True, eq=False)
class LocalUpdate:
    """A worker without its process: settings that never change during a run.

    Attributes:
        run_id: identity of the run.
        model: what is fitted; it checks the records.
        primitive: A(C, prior).
        source: where intervals are read.
        prior: natural parameters of p(w), in the wire format.
        forgetting: gives the served posterior, from which noise is drawn.
        seed: of the run.
        sets_bad_records_aside: leave out records that cannot be scored, and name them in the delta; else they are an
            error.
        is_audited: some fits are done twice and compared by their digest.
    """

    run_id: str
    model: Model
    primitive: Primitive
    source: Source
    prior: NaturalParameters
    forgetting: Forgetting
    seed: int
    sets_bad_records_aside: bool = False
    is_audited: bool = False

    def __call__(self, lease: Lease, snapshot: Snapshot) -> Delta:
        """The delta of a lease.

        Raises:
            SourceError: the interval cannot be read, or holds values that cannot be scored.
            NumericalError: the fit is not finite, or no record of the interval can be scored.
        """
        records, bad = self._read(lease)
        reach("W2")
        primitive = self.primitive.after(snapshot.num_records)
        if lease.attempt:
            primitive = primitive.cautious()
        fit = primitive(
            prior=snapshot.posterior.scale(lease.share),
            served=self.forgetting.served(snapshot.posterior, self.prior, snapshot.num_records),
            fit_state=snapshot.fit_state,
            records=records,
            seed=interval_seed(self.seed, lease.interval, lease.attempt),
        )
        broken = [name for name, array in (*fit.natural.arrays.items(), *fit.fit_state.items()) if not is_finite(array)]
        if broken:
            raise NumericalError(
                f"{lease.interval}: the local fit is not finite ({', '.join(broken)}; score {fit.elbo:.6g} nats per "
                f"record at version {snapshot.version}, attempt {lease.attempt + 1})"
            )
        return Delta(self.run_id, lease, fit, len(records), bad)

    def _read(self, lease: Lease) -> tuple[Records, tuple[SetAside, ...]]:
        """The records to learn, and those that cannot be scored."""
        records = self.source.read(lease.interval)
        if not self.sets_bad_records_aside:
            self.model.validate(records)
            return records, ()
        bad = quarantine.bad_records(self.model, records)
        if not bad:
            return records, ()
        if len(bad) == len(records):
            raise NumericalError(f"{lease.interval}: no record of it can be scored; the first: {bad[0].reason}")
        return quarantine.without(records, bad), bad
