"""What a worker does with a lease: read the interval, check it, fit it from the snapshot, and say what came out."""

from dataclasses import dataclass

from streaming_vb.errors import NumericalError
from streaming_vb.seeding import interval_seed
from streaming_vb.streaming.forgetting import Forgetting
from streaming_vb.streaming.merge import is_finite
from streaming_vb.types import Delta, Lease, Model, NaturalParameters, Primitive, Snapshot, Source


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
    """

    run_id: str
    model: Model
    primitive: Primitive
    source: Source
    prior: NaturalParameters
    forgetting: Forgetting
    seed: int

    def __call__(self, lease: Lease, snapshot: Snapshot) -> Delta:
        """The delta of a lease.

        Raises:
            SourceError: the interval cannot be read, or holds values that cannot be scored.
            NumericalError: the fit is not finite.
        """
        records = self.source.read(lease.interval)
        self.model.validate(records)
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
        return Delta(self.run_id, lease, fit, len(records))
