"""The audit of a training: it outlasts a store that takes nothing for a while."""

from __future__ import annotations

from pipeline.base.store import Store
from pipeline.base.world import World
from pipeline.stream.audit import AuditLog
from pipeline.train.patient import Patient


class PatientAudit(AuditLog):
    """An AuditLog whose rows stay in memory until the store takes them."""

    def __init__(self, store: Store, run: str, attempt: str, world: World, position: int, patient: Patient) -> None:
        super().__init__(store, run, attempt, world, position)
        self._patient = patient

    def flush(self) -> None:
        """See AuditLog; raises nothing."""
        self._patient.stored(super().flush)
