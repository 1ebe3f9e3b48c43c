"""Every file of the catalogue: it loads, cites, and its figures are in a sensible order."""

import datetime
from pathlib import Path

import pytest

from topologies import catalogue
from topologies.catalogue import CATALOGUE, KINDS, Accelerator, Facility, load, names, parse_part
from topologies.errors import BadInput, UnknownName
from topologies.ready import read_cluster
from topologies.toml_file import file_text, read_toml

PARTS = [(kind, name) for kind in KINDS for name in names(kind)]
FAMILIES = {
    "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell", "rubin", "vega20", "cdna1", "cdna2", "cdna3",
    "cdna4", "gaudi", "tpu", "trainium", "ascend", "xe", "cpu",
}  # fmt: skip
FIRST_READ = datetime.date(2026, 11, 23)


def figures(part):
    package = getattr(part, "package", None)
    own = {field: figure for field, figure in part.figures if figure is not None}
    return own | ({f"package.{field}": figure for field, figure in package.figures if figure} if package else {})


def cited(part):
    package = getattr(part, "package", None)
    modes = {package.modes_source} if package and package.modes else set()
    inside = getattr(part, "inside", None)
    return {figure.source for figure in figures(part).values()} | modes | ({inside.source} if inside else set())


def accelerators():
    return [pytest.param(load("accelerators", name), id=name) for name in names("accelerators")]


def hosts():
    return [pytest.param(load("hosts", name), id=name) for name in names("hosts")]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_part_loads_under_its_file_name(kind, name):
    part = load(kind, name)

    assert part.name == name
    assert part.title


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_sources_and_figures_fit_each_other(kind, name):
    """Every source is cited; what was not read on a day is never called published or measured."""
    part = load(kind, name)

    assert cited(part) == set(part.sources)
    for field, figure in figures(part).items():
        read_on = part.sources[figure.source].read_on
        assert read_on is None or read_on >= FIRST_READ
        assert (figure.kind == "assumed") or read_on is not None, f"{field} cites a source nobody read"
        assert figure.kind != "derived" or figure.note, f"{field} is derived, but from what?"
        assert figure.value > 0 or field == "power_per_port"


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=str)
def test_no_path_of_a_workplace(kind, name):
    text = (CATALOGUE / kind / f"{name}.toml").read_text(encoding="utf-8")

    assert not [word for word in ("/work", "/tmp", "/home", "hardware.md", "shared/") if word in text]


def test_the_catalogue_is_wide():
    found = [load("accelerators", name) for name in names("accelerators")]

    assert len(found) >= 30
    assert {part.family for part in found} == FAMILIES
    assert {part.name for part in found if part.announced} == {"rubin", "mi455x"}


@pytest.mark.parametrize("part", accelerators())
def test_narrower_types_are_never_slower(part):
    f = figures(part)
    order = ["peak_fp32", "peak_tf32", "peak_bf16", "peak_fp8", "peak_fp4"]
    peaks = [f[name].value for name in order if name in f]

    assert peaks == sorted(peaks)
    half = 0.5 if part.family == "cdna1" else 1.0  # its matrix units take bf16 at half the rate of fp16
    assert "peak_fp16" not in f or "peak_bf16" not in f or f["peak_bf16"].value == half * f["peak_fp16"].value


@pytest.mark.parametrize("part", accelerators())
def test_accelerator_figures_are_of_one_machine(part):
    f = part.figures

    assert f.idle_power.value < f.board_power.value / 2
    assert f.memory_usable is None or f.memory_usable.value <= f.memory_capacity.value
    assert f.memory_usable is None or f.memory_usable.value >= 0.9 * f.memory_capacity.value
    assert f.scale_up_bandwidth.value <= f.memory_bandwidth.value
    assert f.board_power.value < 2500


@pytest.mark.parametrize("part", hosts())
def test_host_is_made_of_a_known_accelerator(part):
    accelerator = load("accelerators", part.accelerator)

    assert part.devices >= 1 and part.nics >= 1
    assert part.scale_up_devices % part.devices == 0
    assert part.figures.nic_bandwidth.value * part.nics / part.devices <= accelerator.figures.scale_up_bandwidth.value


@pytest.mark.parametrize("part", hosts())
def test_devices_draw_most_of_a_host(part):
    """GPUs are about 70 % of server power in training (Zeus); 53 to 90 % over everything listed."""
    devices = part.devices * load("accelerators", part.accelerator).figures.board_power.value
    share = devices / (devices + part.figures.power.value)

    assert 0.53 <= share <= 0.9
    rated = part.figures.rated_power
    if rated is not None and part.scale_up_devices == part.devices:
        assert devices + part.figures.power.value <= rated.value * 1.05


@pytest.mark.parametrize("name", names("facilities"))
def test_facilities(name):
    part = load("facilities", name)

    assert 1.0 <= part.figures.pue.value <= 2.2
    assert 0.03 <= part.figures.electricity_price.value <= 0.5


def test_the_h100_by_hand():
    f = load("accelerators", "h100-sxm").figures

    assert f.peak_bf16.value == 989e12
    assert f.memory_bandwidth.value == 3.35e12
    assert f.scale_up_bandwidth.value == 450e9
    assert f.memory_usable.value == pytest.approx(79.18 * 2**30)


def test_the_panel_contrast_of_cooling():
    assert load("facilities", "air").figures.pue.value == 1.7
    assert load("facilities", "liquid").figures.pue.value == 1.2


def test_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownName, match=r"no accelerator 'h1000'.*nearest: .*h100-sxm"):
        load("accelerators", "h1000")


@pytest.mark.parametrize(
    ("kind", "one"),
    [("accelerators", "accelerator"), ("hosts", "host"), ("fabrics", "fabric"), ("facilities", "facility")],
)
def test_unknown_names_say_what_is_looked_for(kind, one):
    with pytest.raises(UnknownName, match=f"no {one} 'nothing-like-it' in the catalogue"):
        load(kind, "nothing-like-it")


def test_a_figure_without_a_listed_source_is_refused():
    tables = read_toml(CATALOGUE / "facilities" / "air.toml")
    tables["figures"]["pue"]["source"] = "hearsay"

    with pytest.raises(BadInput, match=r"here: .*'pue': 'hearsay'"):
        parse_part(Facility, tables, "here")


def test_a_device_that_draws_more_idle_than_at_board_power_is_refused():
    """What it adds under load is joules above idle, of which no bound holds below 0."""
    tables = read_toml(CATALOGUE / "accelerators" / "h100-sxm.toml")
    tables["figures"]["idle_power"]["value"] = "701 W"

    with pytest.raises(BadInput, match=r"mine.toml: .*idle_power is 701 W, above board_power of 700 W"):
        parse_part(Accelerator, tables, "mine.toml")


def test_every_wrong_field_is_named():
    tables = read_toml(CATALOGUE / "accelerators" / "h100-sxm.toml")
    tables["colour"] = "green"
    tables["figures"]["board_power"]["value"] = 700
    del tables["figures"]["idle_power"]

    with pytest.raises(BadInput) as refused:
        parse_part(Accelerator, tables, "mine.toml")
    for part in ("mine.toml", "colour", "figures.board_power.value", "700 W", "figures.idle_power"):
        assert part in str(refused.value)


def test_parts_are_read_once():
    assert catalogue.load("hosts", "dgx-h100") is catalogue.load("hosts", "dgx-h100")


@pytest.mark.parametrize(
    ("path", "said"),
    [("a\0b.toml", "null byte"), ("/" + "long/" * 2000 + "x.toml", "too long"), ("gone.toml", "No such file")],
)
def test_paths_that_no_file_can_have_are_refused_in_one_short_line(path, said):
    with pytest.raises(BadInput, match=said) as error:
        file_text(Path(path))

    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_the_cluster_file_that_the_folders_page_shows_loads(tmp_path):
    """With racks, a fleet and a store of its own above the tables of its switches."""
    page = Path(__file__).parents[1].joinpath("topologies", "README.md").read_text(encoding="utf-8")
    text = page.partition("## A cluster of your own\n\n```toml\n")[2].partition("```")[0]
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "calibration.toml").write_text("")
    cluster = read_cluster(tmp_path / "own.toml")

    assert [level.name for level in cluster.levels] == ["scale-up", "leaf", "scale-out"]
    assert (cluster.hosts_per_rack, cluster.fleet.name, cluster.store.name) == (2, "rsc-2", "local-nvme")
