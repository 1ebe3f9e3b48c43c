"""``meshwright cluster show``, ``cluster read`` and ``detect``: clusters from what machines say of themselves."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli_options import AsJson
from planner.errors import BadInput
from planner.terminal import print_json, show
from planner.whole_files import write_whole

if TYPE_CHECKING:
    from topologies.readers.drawn import Asked

app = typer.Typer(name="cluster", no_args_is_help=True, help="Read a cluster from what machines say of themselves.")

Files = Annotated[
    list[str],
    typer.Argument(help="Dumps and tables, the believed ones first; HOST=FILE names the host that a file describes."),
]
Hosts = Annotated[int | None, typer.Option("--hosts", min=1, help="Hosts like that, where no file names them.")]
AcceleratorName = Annotated[
    str | None, typer.Option("--accelerator", help="Its name in the catalogue, where no file tells.")
]
Like = Annotated[
    str | None, typer.Option("--like", help="Host of the catalogue to take from what no file tells: power, latency.")
]
FabricName = Annotated[str | None, typer.Option("--fabric", help="Fabric of the catalogue.")]
FacilityName = Annotated[str | None, typer.Option("--facility", help="Facility of the catalogue.")]
Nics = Annotated[int | None, typer.Option("--nics", min=0, help="NICs of a host that devices use.")]
ScaleUp = Annotated[
    str | None, typer.Option("--scale-up-bandwidth", help="One direction a device, with unit: '450 GB/s'.")
]
Only = Annotated[
    str | None, typer.Option("--only", help="Hosts to take of those in files, as Slurm lists them: gpu[01-16].")
]
ClusterTitle = Annotated[str | None, typer.Option("--name", help="Name of the cluster.")]


@app.command("read")
def read(
    files: Files, hosts: Hosts = None, accelerator: AcceleratorName = None, like: Like = None,
    fabric: FabricName = None, facility: FacilityName = None, nics: Nics = None, scale_up_bandwidth: ScaleUp = None,
    name: ClusterTitle = None, only: Only = None,
    out: Annotated[str | None, typer.Option("--out", help="TOML file to write; without it, to stdout.")] = None,
) -> None:  # fmt: skip
    """Write the cluster that files show as a TOML file, every figure with its source, for --cluster."""
    from planner.clusters.measured_levels import text_of_files

    asked = _asked(hosts, accelerator, like, fabric, facility, nics, scale_up_bandwidth, name, only)
    drawn, text = text_of_files(files, asked)
    for line in (*drawn.oddities, *drawn.lost):
        typer.echo(f"note: {line}", err=True)
    if out is None:
        typer.echo(text, nl=False)
        return
    _write(out, text)
    typer.echo(f"wrote {out}")


@app.command("show")
def show_files(
    files: Files, hosts: Hosts = None, accelerator: AcceleratorName = None, like: Like = None,
    fabric: FabricName = None, facility: FacilityName = None, nics: Nics = None, scale_up_bandwidth: ScaleUp = None,
    only: Only = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what files say of a cluster, or a ready one by name: levels, bandwidths, memory, sources, what is odd."""
    from planner.clusters.measured_levels import cluster_of_files
    from planner.clusters.report import cluster_json, cluster_view
    from topologies.readers import is_cluster_name

    asked = _asked(hosts, accelerator, like, fabric, facility, nics, scale_up_bandwidth, None, only)
    if len(files) == 1 and (is_cluster_name(files[0]) or _is_no_file(files[0])):
        _show_ready(files[0], asked, as_json)
        return
    drawn, cluster = cluster_of_files(files, asked)
    print_json(cluster_json(drawn, cluster)) if as_json else show(cluster_view(drawn, cluster))


def _is_no_file(text: str) -> bool:
    """Whether a word can only be meant as a ready cluster's name: no path, and no file of that name."""
    return "/" not in text and "." not in text and "=" not in text and not Path(text).exists()


def _show_ready(name: str, asked: Asked, as_json: bool) -> None:
    """A ready cluster or a TOML file. Raises ``BadInput`` for options that say what it says itself."""
    from planner.clusters.report import ready_json, ready_view
    from topologies.ready import read_cluster

    given = [field.name for field in dataclasses.fields(asked) if getattr(asked, field.name) is not None]
    if given:
        options = ", ".join("--" + field.replace("bytes_per_s", "bandwidth").replace("_", "-") for field in given)
        raise BadInput(
            f"{name[:80]!r} is described whole, and options of files that are read ({options}) do not apply; leave "
            "them out, or write NAME:COUNT for another number of hosts"
        )
    cluster = read_cluster(name)
    print_json(ready_json(cluster)) if as_json else show(ready_view(cluster))


def detect(
    hosts: Hosts = None, accelerator: AcceleratorName = None, like: Like = None, fabric: FabricName = None,
    facility: FacilityName = None, nics: Nics = None, scale_up_bandwidth: ScaleUp = None, name: ClusterTitle = None,
    only: Only = None,
    out: Annotated[str | None, typer.Option("--out", help="TOML file to write the cluster to.")] = None,
) -> None:  # fmt: skip
    """Show what the tools of this machine say of it, and the cluster of hosts like it; runs nothing that needs root."""
    from planner.clusters.report import answers_view, cluster_view, memories_view
    from topologies.readers.detect import detect as ask
    from topologies.readers.drawn import draw
    from topologies.readers.tables import cluster_of_text, cluster_text

    asked = _asked(hosts, accelerator, like, fabric, facility, nics, scale_up_bandwidth, name, only)
    seen, answers = ask()
    show(answers_view(answers))
    if not any(host.devices for each in seen for host in each.hosts) and like is None:
        show(memories_view([memory for each in seen for host in each.hosts for memory in host.memories]))
        for line in (text for each in seen for text in each.oddities):
            typer.echo(f"odd: {line}")
        instead = "plan this machine's CPUs with --cluster cpu-local, others by name or file"
        if out is not None:
            raise BadInput(f"no accelerator here, so nothing is written to --out {out[:200]!r}; {instead}")
        typer.echo(f"no accelerator here: {instead}")
        return
    drawn = draw(seen, asked)
    text = cluster_text(drawn, asked)
    show(cluster_view(drawn, cluster_of_text(text, "this machine")))
    if out is not None:
        _write(out, text)
        typer.echo(f"wrote {out}")


def _asked(
    hosts: int | None, accelerator: str | None, like: str | None, fabric: str | None, facility: str | None,
    nics: int | None, scale_up_bandwidth: str | None, name: str | None, only: str | None,
) -> Asked:  # fmt: skip
    """The options as the readers take them. Raises ``BadInput`` for a bandwidth without its unit."""
    from topologies.readers.drawn import Asked
    from topologies.units import parse_quantity

    try:
        inside = None if scale_up_bandwidth is None else parse_quantity(scale_up_bandwidth, "B/s")
    except ValueError as error:
        raise BadInput(f"--scale-up-bandwidth: {error}") from error
    if inside == 0:
        raise BadInput("--scale-up-bandwidth is above 0; got 0; leave it out to take the catalogue's")
    return Asked(accelerator, like, fabric, facility, hosts, nics, inside, name, only)


def _write(out: str, text: str) -> None:
    """The file, whole or not at all. Raises ``BadInput`` where it cannot be written."""
    if not out.endswith(".toml") or "\0" in out or not os.path.isdir(os.path.dirname(out) or "."):
        raise BadInput(f"--out {out[:200]!r} is no TOML file in a directory that exists; name one, ending in .toml")
    write_whole(Path(out).parent, {Path(out).name: text})
