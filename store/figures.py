"""How long the stages of all jobs took: what the metrics count, kept across restarts."""

from dataclasses import dataclass

import sqlalchemy as sa

from store.database import insert_into, stage_seconds


@dataclass(frozen=True)
class StageTotal:
    """Of one stage, over all jobs: how many completed it, and their seconds together."""

    count: int
    seconds: float


class StageFigures:
    """The seconds of each completed stage of each job."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def record(self, job_id: str, stage: str, seconds: float) -> None:
        """Record a completed stage. Recording it again, after a takeover, counts it once."""
        values = {"job_id": job_id, "stage": stage, "seconds": seconds}
        statement = insert_into(self._engine, stage_seconds).values(values)
        with self._engine.begin() as connection:
            connection.execute(statement.on_conflict_do_nothing())

    def totals(self) -> dict[str, StageTotal]:
        """Return the totals by stage; a stage that no job completed is absent."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(
                    stage_seconds.c.stage,
                    sa.func.count(),
                    sa.func.sum(stage_seconds.c.seconds),
                ).group_by(stage_seconds.c.stage)
            )
            return {stage: StageTotal(int(n), float(seconds)) for stage, n, seconds in rows}
