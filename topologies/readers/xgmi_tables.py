"""Tables of weights and link types between AMD's devices, as ``rocm-smi`` and ``amd-smi`` both print them.

    Weight  15 a direct XGMI link, 30 over one other device; PCIe 20 a segment      Link Type  XGMI, PCIE

``Hops`` are no hops but 1 for XGMI, 2 and 3 for PCIe, so weights tell direct neighbours.

Source: ROCm/rocm-systems issue 5763 and pull request 7372.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from topologies.errors import BadInput
from topologies.readers.bounded import whole
from topologies.readers.seen import Wire

MOST_DEVICES = 512
PARTITIONED = ("DPX", "TPX", "QPX", "CPX")
MEMORY_MODES = ("NPS1", "NPS2", "NPS4", "NPS8")
_DIRECT = 15
_ITSELF = ("0", "N/A", "SELF")


@dataclass
class Tables:
    """Matrices by name (``weight``, ``hops``, ``type``), rows by device, and single facts by device."""

    matrices: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)

    def checked(self, origin: str, tool: str) -> list[str]:
        """Names of the devices, in order. Raises ``BadInput`` for tables that are missing, cut or do not agree."""
        for name, matrix in self.matrices.items():
            _check_square(name, matrix, origin)
        for what in ("weight", "type"):
            if not self.matrices.get(what):
                raise BadInput(f"{origin}: no table of {what}s between two GPUs; give the whole output of {tool}")
        names = list(self.matrices["type"])
        if any(list(matrix) != names for matrix in self.matrices.values()):
            raise BadInput(f"{origin}: the tables of weights and types name different devices; was the text cut?")
        return names


def _check_square(name: str, matrix: dict[str, list[str]], origin: str) -> None:
    if len(matrix) > MOST_DEVICES:
        raise BadInput(f"{origin}: the table of {name}s has {len(matrix)} rows; a host has at most {MOST_DEVICES}")
    for row, cells in matrix.items():
        if len(cells) != len(matrix):
            raise BadInput(
                f"{origin}: row {row} of the table of {name}s has {len(cells)} cells for {len(matrix)} devices; "
                "was the text cut or wrapped?"
            )


def wires(tables: Tables, names: list[str], origin: str) -> Iterator[Wire]:
    """One link between any two devices that are direct neighbours over XGMI, as both directions say."""
    types, weights = tables.matrices["type"], tables.matrices["weight"]
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            kinds = {_kind(types[a][j], origin), _kind(types[b][i], origin)}
            far = max(whole(weights[a][j], f"weight of {a} and {b}", origin), whole(weights[b][i], "a weight", origin))
            if kinds == {"XGMI"} and far <= _DIRECT:
                yield Wire((b, a), "XGMI", 1, origin)


def _kind(cell: str, origin: str) -> str:
    if cell.upper() not in ("XGMI", "PCIE", *_ITSELF):
        raise BadInput(f"{origin}: a link type is XGMI, PCIE, SELF or 0; got {cell[:20]!r}")
    return cell.upper()


def asymmetries(tables: Tables, origin: str) -> Iterator[str]:
    """Cells that are not as their mirror says, and devices with links to themselves."""
    for what, matrix in tables.matrices.items():
        rows = list(matrix)
        for i, a in enumerate(rows):
            if matrix[a][i] not in _ITSELF:
                yield f"{origin}: {a} has {what} {matrix[a][i][:20]} to itself, not 0"
            for j, b in enumerate(rows[:i]):
                if matrix[a][j] != matrix[b][i]:
                    yield (
                        f"{origin}: {what} from {a} to {b} is {matrix[a][j][:20]}, back {matrix[b][i][:20]}: "
                        "the table is not symmetric"
                    )


def partition_mode(compute: Iterable[str], memory: Iterable[str], origin: str) -> str:
    """``CPX``, or ``CPX/NPS4`` where the memory's mode is told too; empty for whole devices.

    Partitions after a package's first say ``N/A`` of both. Raises ``BadInput`` for packages in different modes.
    """
    found = []
    for told, legal in ((compute, ("SPX", *PARTITIONED)), (memory, MEMORY_MODES)):
        words = {word.upper() for word in told} & set(legal)
        if len(words) > 1:
            raise BadInput(
                f"{origin}: packages are in different modes ({', '.join(sorted(words))}); a host's are planned alike: "
                "describe those of one mode, or set all to the same"
            )
        found.append(next(iter(words), ""))
    mode, pools = found
    return "" if mode in ("", "SPX") else f"{mode}/{pools}" if pools else mode
