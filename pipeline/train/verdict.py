"""Which rank holds up the others: a pure rule over what every rank last said of itself.

Times are seconds. A rank is *silent* when nothing was heard of it, *stuck* when it is heard but does not move while all
others wait for it inside a collective. Waiting for data, saving and the first step (which may compile) are not stuck.

A rank that was at one and the same line whenever somebody looked is given two of the longest steps so far, one that
moves twenty: it may be slow. So in steps of up to 4 s, and 0.4 s, both are found within 10 s; in longer ones later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BEAT_SECONDS = 0.5
STOPPED_SECONDS = 3.0  # silent, and the kernel says that it is stopped
SILENT_SECONDS = 7.0  # silent, and nothing is known of its process: it and the round of judging stay below 10 s
BUSY_SECONDS = 30.0  # silent, but its process runs: something holds the interpreter, or the machine is overloaded
STUCK_SECONDS = 8.0  # it, half a second to be heard and one for a round of judging stay below 10 s
STILL_STEPS, MOVING_STEPS = 2.0, 20.0  # or so many of the longest step so far, when these take longer
ALL_WAIT_SECONDS, ALL_WAIT_STEPS = 60.0, 120.0  # every rank waits for others: nobody is to blame, but nothing will come

STARTING, FIRST_STEP, DATA, STEP, SAVING, ENDING = (
    "starting",
    "first step",
    "waiting for data",
    "step",
    "saving",
    "ending",
)
_STOPPED_STATES, _GONE_STATES = {"T", "t"}, {"Z", "X"}


@dataclass(frozen=True)
class Seen:
    """A rank as it was last heard. *state* is its process's state as the kernel says it, "" where nobody can look.

    *still*: whenever somebody looked in this phase, its thread of training was at *place*.
    """

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    phase_seconds: float
    waits: bool
    longest_seconds: float
    silent_seconds: float
    state: str = ""
    place: str = ""
    still: bool = False

    def __str__(self) -> str:
        place = f", at {self.place}" if self.place else ""
        return f"rank {self.rank} (host {self.host}, pid {self.pid}, step {self.step}, {self.phase}{place})"


@dataclass(frozen=True)
class Verdict:
    """Training cannot go on; *culprits* are to be killed, the other ranks end themselves."""

    culprits: tuple[Seen, ...]
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.culprits))}: {self.reason}" if self.culprits else self.reason


def judge(ranks: Sequence[Seen], world_size: int) -> Verdict | None:
    """The verdict over *ranks*, of which there may be fewer than *world_size* while they start; None: all is well."""
    longest = max((seen.longest_seconds for seen in ranks), default=0.0)
    silent = [seen for seen in ranks if seen.silent_seconds > _patience(seen, ranks, world_size)]
    if silent:
        return Verdict(tuple(silent), f"{_why_silent(silent[0])} for {silent[0].silent_seconds:.0f} s")
    if len(ranks) < world_size or world_size == 1:
        return None
    if any(seen.phase != STEP for seen in ranks):
        return None
    held = min(seen.phase_seconds for seen in ranks)
    stuck = [seen for seen in ranks if not seen.waits]
    if not stuck and held > max(ALL_WAIT_SECONDS, ALL_WAIT_STEPS * longest):
        return Verdict((), f"every rank has waited for the others for {held:.0f} s in step {ranks[0].step}")
    steps = STILL_STEPS if all(seen.still for seen in stuck) else MOVING_STEPS
    if stuck and len(stuck) < len(ranks) and held > max(STUCK_SECONDS, steps * longest):
        return Verdict(tuple(stuck), f"stuck for {held:.0f} s while the others wait for it")
    return None


def _patience(seen: Seen, ranks: Sequence[Seen], world_size: int) -> float:
    """Seconds of silence. One that runs may be short of time on its machine, unless all others have waited so long."""
    if seen.state in _STOPPED_STATES | _GONE_STATES:
        return STOPPED_SECONDS
    if not seen.state:
        return SILENT_SECONDS
    others = [other for other in ranks if other is not seen]
    if seen.phase not in (DATA, STEP) or not others or len(ranks) < world_size:
        return BUSY_SECONDS
    limit = max(STUCK_SECONDS, STILL_STEPS * max(one.longest_seconds for one in ranks))
    if any(other.phase != STEP or not other.waits or other.phase_seconds < limit for other in others):
        return BUSY_SECONDS
    return min(BUSY_SECONDS, limit)


def _why_silent(seen: Seen) -> str:
    if seen.state in _STOPPED_STATES:
        return "stopped (SIGSTOP)"
    return "gone" if seen.state in _GONE_STATES else "not heard of"
