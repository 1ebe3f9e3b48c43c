"""A study on emulated clusters: calibrate there, plan every strategy, run them in rounds; said again, it goes on.

FOLDER/NETWORK/calibration.toml, cluster.toml    what calibrate measured there
FOLDER/NETWORK/plans/CASE-k.json                 the plan of every case and strategy under it
FOLDER/runs.jsonl                                a line a run (``Run``)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from planner.emulated.cases import CASES, STRATEGIES, Case
from planner.emulated.network import Network, built
from planner.errors import BadInput
from planner.machine.calibrate_command import CALIBRATE_JOB, measured_texts
from planner.machine.local_job import run_job
from planner.whole_files import write_whole

STUDY_JOB = "planner.runtime.study_job"
FIRST_PORT = 29500
PORTS = 2000
LIMIT_S = 900.0


class Rank(BaseModel):
    """What one rank saw: seconds of every timed step, and its peak bytes where they were counted."""

    pipeline_rank: int = Field(ge=0)
    step_s: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    peak_bytes: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Run(BaseModel):
    """A line of the runs: what was run, ``plan`` being its file's digest, and what every rank saw."""

    network: str
    case: str
    strategy: str
    round: int = Field(ge=0)
    steps: int = Field(ge=1)
    plan: str
    ranks: list[Rank] = Field(min_length=1)

    def key(self) -> dict[str, Any]:
        """All but what was seen."""
        return self.model_dump(exclude={"ranks"})


def _run_of(line: str) -> Run | None:
    try:
        found = Run.model_validate_json(line)
    except ValidationError:
        return None
    return found if all(len(rank.step_s) == found.steps for rank in found.ranks) else None


@dataclass(frozen=True)
class Study:
    """Where a study lives, how many rounds, timed steps a run and seconds of benchmarks it takes."""

    folder: Path
    rounds: int = 3
    steps: int = 4
    calibrate_s: float = 45.0

    @property
    def record(self) -> Path:
        """The file of runs."""
        return self.folder / "runs.jsonl"

    def runs(self) -> list[Run]:
        """Every run so far; a line that was broken off or is no run is left out."""
        if not self.record.is_file():
            return []
        lines = self.record.read_text(encoding="utf-8", errors="replace").splitlines()
        return [run for line in lines if (run := _run_of(line)) is not None]

    def planned_runs(self, network: Network) -> list[Run]:
        """The runs of the plans that there are now, by whatever number of steps."""
        digests = {(case.name, pins): self._digest(network, case, k) for case, k, pins in strategies(network)}
        mine = [run for run in self.runs() if run.network == network.name]
        return [run for run in mine if digests.get((run.case, run.strategy)) == run.plan]

    def go_on(self, network: Network, seconds: float, heard: Callable[[str], None]) -> int:
        """Does what is missing on a network until ``seconds`` have passed; returns how many runs are still missing."""
        end = time.monotonic() + seconds
        if not self.missing(network):
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        with built(network):
            self._calibrate(network, heard)
            self._plan(network, heard)
            missing = self.missing(network)
            left = end - time.monotonic()
            if missing and left > 0:
                self._run(network, missing, left, heard)
        return len(self.missing(network))

    def _calibrate(self, network: Network, heard: Callable[[str], None]) -> None:
        place = self.folder / network.name
        if (place / "calibration.toml").is_file():
            return
        launches = network.launches(CALIBRATE_JOB, ("--hosts", str(network.hosts)), _port())
        texts, _ = measured_texts(launches, self.calibrate_s, heard, network.name)
        write_whole(place, texts)

    def _plan(self, network: Network, heard: Callable[[str], None]) -> None:
        for case, k, pins in strategies(network):
            file = self._file(network, case, k)
            if not file.is_file():
                heard(f"planning {case.name} {pins}")
                write_whole(file.parent, {file.name: self._planned(network, case, pins)})

    def _planned(self, network: Network, case: Case, pins: str) -> str:
        from planner.api import plan

        cluster = str((self.folder / network.name / "cluster.toml").resolve())
        world = network.hosts * network.per_host
        found = plan(
            case.config, cluster, seq_len=case.seq_len, global_batch=case.global_batch, pins=f"{pins},devices={world}",
            alternatives=0,
        )  # fmt: skip
        return found.to_json()

    def _file(self, network: Network, case: Case, k: int) -> Path:
        return self.folder / network.name / "plans" / f"{case.name}-{k}.json"

    def missing(self, network: Network) -> list[dict[str, Any]]:
        """What the job is to run: plans that this or an earlier round lacks with as many steps, round by round."""
        done = [run.key() for run in self.planned_runs(network)]
        listed = [
            {
                "plan": str(self._file(network, case, k).resolve()), "memory": number == 0,
                "key": {
                    "network": network.name, "case": case.name, "strategy": pins, "round": number, "steps": self.steps,
                    "plan": self._digest(network, case, k),
                },
            }
            for number in range(self.rounds)
            for case, k, pins in strategies(network)
        ]  # fmt: skip
        return [item for item in listed if item["key"] not in done]

    def _digest(self, network: Network, case: Case, k: int) -> str | None:
        """Of the plan's file; ``None`` before there is one."""
        file = self._file(network, case, k)
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None

    def _run(self, network: Network, missing: list[dict[str, Any]], seconds: float, heard: Callable) -> None:
        write_whole(self.folder, {"next.json": json.dumps(missing)})
        words = (
            "--list", str((self.folder / "next.json").resolve()), "--record", str(self.record.resolve()),
            "--steps", str(self.steps), "--seconds", str(seconds),
        )  # fmt: skip
        run_job(network.launches(STUDY_JOB, words, _port()), seconds + LIMIT_S, heard)


def strategies(network: Network) -> Iterator[tuple[Case, int, str]]:
    """Every case with every strategy for the network's ranks. Raises ``BadInput`` where none are known."""
    world = network.hosts * network.per_host
    if world not in STRATEGIES:
        known = ", ".join(map(str, STRATEGIES))
        raise BadInput(f"{network.name} has {world} ranks; there are strategies for {known}; take such a network")
    for case in CASES:
        for k, pins in enumerate(STRATEGIES[world]):
            yield case, k, pins


def _port() -> int:
    """A port that the last job has not used: the namespaces are new, but a socket may linger."""
    return FIRST_PORT + int(time.monotonic()) % PORTS
