"""What the README and the pages of the site say exists: files, headings, options, config fields, columns and classes.

MkDocs checks the links of the built site. These tests need no MkDocs; they check the links as they are in the
repository.
"""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import pnsamp_jax
from pnsamp_jax import cli, config_file
from pnsamp_jax.ct.read import read_ct
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import sample
from pnsamp_jax.inference import masks
from pnsamp_jax.main import MODES
from pnsamp_jax.report import write
from pnsamp_jax.workdir import tables

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BESIDE = ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "experiments/RELIABILITY", "pnsamp_jax/weights/README")
WRITTEN = [*(REPOSITORY / f"{name}.md" for name in BESIDE), *PAGES]

LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FIELD = re.compile(r"(?<![\w.])config\.([a-z][\w.]*\w)(?!\w*\()")


def name_of(path):
    return path.relative_to(REPOSITORY).as_posix()


def commands(text):
    """Return the commands of this package in a page's blocks and spans of code, each as its words."""
    lines = [line for _, block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += SPAN.findall(BLOCK.sub("", text))
    parts = [part.strip() for line in lines for part in re.split(r" && |  # ", line.strip().removeprefix("srun "))]
    return [part.split() for part in parts if part.startswith(("pnsamp ", "python -m "))]


def options_of(command):
    """Return the options that a command of `pnsamp` takes."""
    return {option for parameter in cli.pnsamp.commands[command].params for option in parameter.opts} | {"--help"}


def fields(config, prefix=""):
    """Return the dotted names of a config's fields and sections."""
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from fields(value, f"{prefix}{name}.")


KNOWN_FIELDS = set(fields(config_file.load("base")))


def anchors(path):
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    plain = [unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip()) for heading in plain}


def test_the_pages_in_the_navigation_are_those_that_exist():
    navigation = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert len(named) == len(set(named)) and not [
        page for page in named if not (DOCS / page).is_file() and not (REPOSITORY / page).is_file()
    ]
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} <= set(named)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_links_and_pictures_lead_to_files_and_headings(page):
    for target, anchor in LINK.findall(BLOCK.sub("", page.read_text())):
        path = page.parent / target if target else page
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_options_and_configs_exist(page):
    for command in commands(page.read_text()):
        given = {word.partition("=")[0] for word in command if word.startswith("--")}
        options = {option for option in given if not option.startswith("--config.")}
        if command[0] == "pnsamp" and command[1] in {"--help", "--version"}:
            continue
        if command[0] == "pnsamp":
            assert options <= options_of(command[1]), command
        elif command[2] == "pnsamp_jax.main":
            assert options <= {"--config", "--workdir", "--mode"}, command
        elif command[2].startswith(("pnsamp_jax", "experiments")):
            assert any(
                (REPOSITORY / f"{command[2].replace('.', '/')}{end}").is_file() for end in (".py", "/__main__.py")
            )
        if "--config" in command:
            name = command[command.index("--config") + 1]
            assert name == "NAME" or name in config_file.shipped() or (REPOSITORY / name).is_file(), command
        if "--mode" in command:
            assert command[command.index("--mode") + 1] in {"MODE", *MODES}, command


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_options_that_are_named_alone_exist(page):
    known = {option for command in cli.pnsamp.commands for option in options_of(command)}
    known |= {"--mode", "--systems", "--series"}  # of pnsamp_jax.main, and of the tables and speeds in experiments/
    alone = [span for span in SPAN.findall(BLOCK.sub("", page.read_text())) if span.startswith("--")]
    names = {word.partition("=")[0] for span in alone for word in span.split() if word.startswith("--")}
    foreign = {"--data_file_base_dir", "--beam_pipeline_options", "--file_format"}  # of MONAI's bundle, `tfds build`
    assert {name for name in names if not name.startswith("--config.")} <= known | foreign


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_config_fields_exist(page):
    text = page.read_text()
    code = "\n".join([block for _, block in BLOCK.findall(text)] + SPAN.findall(BLOCK.sub("", text)))
    assert {name for name in FIELD.findall(code) if name not in ("py", "json", "field")} <= KNOWN_FIELDS


def test_config_fields_that_do_not_exist_are_found():
    assert FIELD.findall("--config.data.rot=x, config.nothing") == ["data.rot", "nothing"]
    assert not {"data.rot", "nothing"} & KNOWN_FIELDS


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_names_of_the_package_exist(page):
    text = page.read_text()
    code = "\n".join([block for _, block in BLOCK.findall(text)] + SPAN.findall(BLOCK.sub("", text)))
    for name in re.findall(r"(?<![\w/])pnsamp_jax\.(\w+)", code):
        module = REPOSITORY / "pnsamp_jax" / name
        assert name in dir(pnsamp_jax) or module.with_suffix(".py").is_file() or module.is_dir(), name


def test_the_classes_of_the_ratings_are_those_of_the_code():
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in (DOCS / "concepts.md").read_text().splitlines()]
    words = {row[0]: tuple(cell for cell in row[1:] if cell) for row in rows if row[0] in schema.RATING_NAMES}
    assert words == {rating.name: rating.words for rating in schema.RATINGS}
    assert [row[0] for row in rows if row[0] in schema.RATING_NAMES] == list(schema.RATING_NAMES)


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("### predictions.csv\n", write.columns()),
        ("### predictions.csv of a training\n", tables.prediction_columns("modal", likeness=True)),
        ("### readers.csv\n", tables.reader_columns()),
    ],
)
def test_the_columns_are_those_that_are_written(heading, columns):
    section = (DOCS / "reference" / "files.md").read_text().partition(heading)[2]
    section = re.split(r"^##+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)  # of a table; readers.csv is described in words
    named = {name for text in first_cells or [section] for name in SPAN.findall(text)}
    general = [
        re.sub(r"_([pn])\d$", r"_\1<k>", re.sub(rf"^({'|'.join(schema.RATING_NAMES)})_(?!set)", "<rating>_", name))
        for name in columns
    ]
    assert named - {"ct", "cube", "slab", "simulated"} == set(general)


@pytest.mark.parametrize("texture", [1.5, 4.5])
@pytest.mark.parametrize("probability", [0.04, 0.2, 0.9])
def test_the_voxels_that_deploy_marks_are_those_of_the_package(texture, probability):
    page = (DOCS / "how-to" / "deploy.md").read_text("utf-8")
    [code] = [code for _, code in BLOCK.findall(page) if "def marked" in code]
    names = {}
    exec(code, names)
    distance = np.linalg.norm(np.indices((32, 32, 32)) - 15.5, axis=0)
    mask = np.select([distance < 4, distance < 6, distance < 8], [probability, probability / 5, 0.01], 1e-4)
    ratings = np.zeros((9, 6))
    low = int(texture)
    ratings[7, low - 1 : low + 1] = [low + 1 - texture, texture - low]
    for share in (0.0, 0.5, 1.0):
        expected = masks.adapted(mask, texture, 1.2, share)
        found = names["marked"](mask, ratings, share)
        np.testing.assert_array_equal(found, expected > masks.best_threshold(expected))


@pytest.mark.parametrize("geometry", [{}, {"size": 64, "spacing": 0.6}], ids=["shipped", "full size"])
def test_the_patch_that_deploy_cuts_out_is_that_of_the_package(geometry):
    page = (DOCS / "how-to" / "deploy.md").read_text("utf-8")
    [code] = [code for _, code in BLOCK.findall(page) if "def cut_patch" in code]
    names = {}
    exec(code.partition("images = ")[0], names)
    point = (56.4, 86.3, -116.0)
    cut = names["cut_patch"](sitk.ReadImage(str(pnsamp_jax.EXAMPLE_CT)), point, **geometry)
    size, spacing = geometry.get("size", 32), geometry.get("spacing", 1.2)
    expected = sample(read_ct(pnsamp_jax.EXAMPLE_CT), np.array(point), size, spacing)
    assert cut.shape == expected.shape
    assert np.abs(cut - expected).max() <= 1  # an index is rounded in another order, and a HU may lie at a half
