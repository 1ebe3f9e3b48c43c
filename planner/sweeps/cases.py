"""The cases of a sweep: one planning question each, from lists of alternatives, a file, or one by one.

model = ["llama-3.1-8b", "llama-3.1-70b"]      every combination of one from each list is a case
cluster = ["dgx-h100:{1,2,4}"]                 braces make alternatives of text
global_batch = [256, 512]
time_limit_s = 20.0                            all else that plan() takes
[[cases]]                                      or case by case; what stands above holds for each
model = "mixtral-8x7b"
cluster = "dgx-h100:4"
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cost_models.model_graph import ModelGraph
from planner import __version__
from planner.errors import BadInput, PlannerError
from planner.limits import limits_of, tokens_of
from planner.objectives import slack_of
from planner.options import pins_of, tiers_of, watts
from topologies.cluster import Cluster
from topologies.mixed import MixedCluster

MOST_CASES = 100_000
LARGEST_FILE_BYTES = 4_000_000
SPELLINGS = {"limits": limits_of, "tokens": tokens_of, "slack": slack_of, "tiers": tiers_of}
"""Options that mean the same in several spellings, and what makes one of them."""
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Case:
    """One question: ``plan(model, cluster, **options)``."""

    model: str | Path | dict | ModelGraph
    cluster: str | Path | Cluster | MixedCluster
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """A case that was read: its digest, and the model and cluster themselves, or why they cannot be read."""

    digest: str
    case: Case
    model: ModelGraph | None
    cluster: Cluster | MixedCluster | None
    error: str = ""


@lru_cache(maxsize=1)
def plan_options() -> dict[str, Any]:
    """What :func:`planner.api.plan` takes beside model and cluster, with defaults; rows have no alternatives."""
    from planner.api import plan

    taken = inspect.signature(plan).parameters.values()
    found = {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY and p.name != "progress"}
    return found | {"alternatives": 0}


def case_of(given: Case | Mapping[str, Any]) -> Case:
    """A case from a mapping of ``model``, ``cluster`` and options of ``plan``. Raises ``BadInput`` for other names."""
    if not isinstance(given, Case):
        if not isinstance(given, Mapping) or not {"model", "cluster"} <= given.keys():
            raise BadInput(f"a case is a mapping with model and cluster; got {str(given)[:120]!r}")
        rest = {name: value for name, value in given.items() if name not in ("model", "cluster")}
        given = Case(given["model"], given["cluster"], rest)
    if unknown := [str(name)[:40] for name in given.options if name not in plan_options()]:
        raise BadInput(f"{', '.join(unknown)}: no option of a case; there are: {', '.join(plan_options())}")
    return given


def asked(cases: Iterable[Case | Mapping[str, Any]]) -> list[Asked]:
    """The cases, each read and digested once; a question that is asked twice stands once."""
    known: dict[tuple[str, str], Any] = {}
    found: dict[str, Asked] = {}
    for number, given in enumerate(cases):
        if number >= MOST_CASES:
            raise BadInput(f"a sweep takes at most {MOST_CASES:,} cases; split it")
        one = _read(case_of(given), known)
        found.setdefault(one.digest, one)
    return list(found.values())


def _read(case: Case, known: dict[tuple[str, str], Any]) -> Asked:
    from planner.read_model import read_model
    from topologies.ready import read_any_cluster

    model, wrong_model = _known(known, "model", case.model, read_model)
    cluster, wrong_cluster = _known(known, "cluster", case.cluster, read_any_cluster)
    error = "; ".join(filter(None, (wrong_model, wrong_cluster)))
    constants = None if cluster is None else _constants(known, cluster)
    return Asked(_digest(case, model, cluster, constants), case, model, cluster, error)


def _known(known: dict[tuple[str, str], Any], kind: str, what: Any, read: Any) -> tuple[Any, str]:
    """What ``what`` reads as, or why it does not; text is read once a sweep."""
    if not isinstance(what, str | Path):
        return _tried(read, what)
    key = (kind, str(what))
    if key not in known:
        known[key] = _tried(read, what)
    return known[key]


def _tried(read: Any, what: Any) -> tuple[Any, str]:
    try:
        return read(what), ""
    except PlannerError as error:
        return None, str(error)


def _digest(case: Case, model: ModelGraph | None, cluster: Cluster | MixedCluster | None, constants: str | None) -> str:
    """Sixteen hexadecimal digits of all that decides the answer: contents, not names, and every option."""
    question = {
        "version": __version__,
        "model": str(case.model)[:1000] if model is None else [model.name, model.digest],
        "cluster": str(case.cluster)[:1000] if cluster is None else [cluster.name, cluster.digest],
        "constants": constants,
        "options": {name: _settled(name, case.options.get(name, usual)) for name, usual in plan_options().items()},
    }
    text = json.dumps(question, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _constants(known: dict[tuple[str, str], Any], cluster: Cluster | MixedCluster) -> str:
    """The digest of what was fitted: plans of other constants are other answers."""
    from cost_models.calibration import calibrate

    key = ("constants", cluster.digest)
    if key not in known:
        parts = cluster.parts if isinstance(cluster, MixedCluster) else (cluster,)
        known[key] = "+".join(calibrate(part).digest for part in parts)
    return known[key]


def _settled(name: str, value: Any) -> Any:
    """One spelling of values that mean the same: pins as text, watts with a unit, 60 for 60.0."""
    try:
        if name == "pins":
            return pins_of(value)
        if name == "power_cap":
            value = watts(value)
        if name in SPELLINGS:
            value = SPELLINGS[name](value)
    except BadInput:
        return value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def every_case(lists: Mapping[str, Any]) -> list[Case]:
    """A case for every combination of one value from each list; a value that is no list is the only one.

    Raises ``BadInput`` for a list without values, and for more than 100,000 cases.
    """
    choices = {name: _alternatives(name, value) for name, value in lists.items()}
    if empty := [name for name, values in choices.items() if not values]:
        raise BadInput(f"{', '.join(empty)}: an empty list leaves no case; give a value or leave it out")
    count = math.prod(len(values) for values in choices.values())
    if count > MOST_CASES:
        sizes = " * ".join(f"{len(values)} {name}" for name, values in choices.items())
        raise BadInput(f"{sizes} = {count:,} cases; a sweep takes at most {MOST_CASES:,}: split it")
    return [case_of(dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def _alternatives(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if name not in ("model", "cluster"):
        return values
    return [one for text in values for one in (expanded(text) if isinstance(text, str) else [text])]


def expanded(text: str) -> list[str]:
    """``"dgx-h100:{1,2}"`` as ``["dgx-h100:1", "dgx-h100:2"]``; text without braces is itself."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    options = match[1].split(",")
    return [one for option in options for one in expanded(text[: match.start()] + option.strip() + text[match.end() :])]


def cases_in(path: Path) -> list[Case]:
    """The cases that a TOML or YAML file lists. Raises ``BadInput`` naming the file and what is wrong in it."""
    tables = _tables(path)
    common = {name: value for name, value in tables.items() if name != "cases"}
    parts = tables.get("cases", [{}])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadInput(f"{path}: cases is a list of tables, written [[cases]] in TOML")
    try:
        found = [case for part in parts for case in every_case({**common, **part})]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    if len(found) > MOST_CASES:
        raise BadInput(f"{path}: {len(found):,} cases; a sweep takes at most {MOST_CASES:,}: split it")
    return found


def _tables(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise BadInput(f"{str(path)[:200]!r} is not a file; give a TOML or YAML file that lists cases")
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise BadInput(f"{path} is {path.stat().st_size:,} bytes; a sweep's file is at most {LARGEST_FILE_BYTES:,}")
        found = _parsed(path, path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not a table of names and values, such as model: [llama-3.1-8b]")
    return {str(name): value for name, value in found.items()}


def _parsed(path: Path, text: str) -> Any:
    if path.suffix.lower() == ".toml":
        return tomllib.loads(text)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise BadInput(f"{path} must end in .toml, .yaml or .yml")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
