"""What determines a run besides model, source and primitive."""

from dataclasses import dataclass

from streaming_vb.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """What determines a run besides model, source and primitive.

    Args:
        records: records to count; none means the whole source.
        seed: of the prior's centre and of every fit.
        mode: "async" (merge on arrival) or "ordered" (fixed rounds, bit for bit the same for any number of workers).
        batch_size: M, records per local step.
        local_steps: H; an interval holds M H records.
        ramp: records per additional fit in flight; 0 means all from the start.
        share: "auto" (1/W(t)) or "1" (plain SDA-Bayes).
        round_size: K, intervals per round of the ordered mode.
        forgetting: "auto" (a window for neural models, none for conjugate ones), "none" or "window:MIN:KAPPA".
        bad_records: "stop" (a record that cannot be scored ends the run) or "set-aside" (it is left out, and the ledger
            says which and why).
        audit: share of the intervals that are fitted twice, by two workers, and must agree in every bit.
        keep_deltas: keep every delta in the journal, so that an interval can be taken out again (`unlearn`).

    Raises:
        ConfigError: a setting is out of range.
    """

    records: int | None = None
    seed: int = 0
    mode: str = "async"
    batch_size: int = 100
    local_steps: int = 10
    ramp: int = 30_000
    share: str = "auto"
    round_size: int = 8
    forgetting: str = "auto"
    bad_records: str = "stop"
    audit: float = 0.0
    keep_deltas: bool = False

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "local_steps": 1, "ramp": 0, "round_size": 1, "seed": 0, "records": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                flag = "--" + {"round_size": "round"}.get(name, name).replace("_", "-")
                raise ConfigError(f"{flag} must be at least {bound}, got {value}")
        choices = {"mode": ("async", "ordered"), "share": ("auto", "1"), "bad_records": ("stop", "set-aside")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0.0 <= self.audit <= 1.0:
            raise ConfigError(f"--audit must be a share from 0 to 1, got {self.audit}")
