"""Generated tables, configs and headers are read without error or raise UserError, never another exception.

More examples, and different ones in each run: FUZZ_EXAMPLES=5000 python -m pytest tests/test_fuzz.py
"""

import contextlib
import os

import numpy as np
import pytest
from ct_files import HU, write_itk, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pnsamp_jax.config import read_predict_settings, read_settings
from pnsamp_jax.configs import base
from pnsamp_jax.ct.dicom import read_series
from pnsamp_jax.ct.dicom_index import index_series
from pnsamp_jax.ct.read import read_ct
from pnsamp_jax.data import folder_tables
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import point_files
from pnsamp_jax.workdir import tables

pytestmark = pytest.mark.filterwarnings("error")
fuzz = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # by default the same examples in each run
    database=None,
    deadline=None,  # other processes may slow down the machine
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example overwrites the files
)

# Texts that a cell should not contain; other texts are generated.
ODD_TEXTS = ["", " ", "nan", "inf", "-1", "1e999", "1e99", "1_0", "٣", "0x10", "1,5", '"', "\x00", "\ud800", "a\nb"]
cells = st.one_of(st.sampled_from(["1", "2", "a", *ODD_TEXTS]), st.text(max_size=5))


def csv_bytes(columns):
    """Return a strategy for the bytes of a CSV file: almost valid ones, other text, and any bytes."""
    changes = st.dictionaries(st.sampled_from(columns), cells, max_size=3)
    header = {name: name for name in columns}
    nearly = st.lists(changes, max_size=3).map(
        lambda rows: "\n".join(",".join(row.get(name, "1") for name in columns) for row in [header, *rows])
    )
    return st.one_of(nearly, st.text(max_size=60)).map(lambda text: text.encode("utf-8", "replace")) | st.binary()


@fuzz
@given(csv_bytes(list(folder_tables.NODULE_COLUMNS)), csv_bytes(list(folder_tables.RATING_COLUMNS)))
def test_tables_of_a_folder(tmp_path, nodules, ratings):
    (tmp_path / "nodules.csv").write_bytes(nodules)
    (tmp_path / "ratings.csv").write_bytes(ratings)
    with contextlib.suppress(UserError):
        folder_tables.read_rows(str(tmp_path))


@fuzz
@given(csv_bytes(["nodule_id", "image", "x_mm", "y_mm", "z_mm"]))
def test_table_of_points(tmp_path, content):
    (tmp_path / "points.csv").write_bytes(content)
    with contextlib.suppress(UserError):
        point_files.read_requests(image="", points=str(tmp_path / "points.csv"), units="mm")


@fuzz
@given(st.lists(cells, max_size=4).map(",".join) | st.text(), st.sampled_from(["mm", "voxel", "", "km"]))
def test_points_in_the_config(text, units):
    config = base.get_config()
    config.predict.image, config.predict.points, config.predict.units = "ct.nii", text, units
    with contextlib.suppress(UserError):
        settings = read_predict_settings(config)
        point_files.read_requests(settings.image, settings.points, settings.units)


@fuzz
@given(csv_bytes(tables.prediction_columns("modal")), csv_bytes(tables.reader_columns()))
def test_tables_of_an_evaluation(tmp_path, content, readers):
    (tmp_path / "predictions.csv").write_bytes(content)
    (tmp_path / "readers.csv").write_bytes(readers)
    with contextlib.suppress(UserError):
        tables.read_tables(tmp_path)


FIELDS = sorted(name for name, value in base.get_config().items() if isinstance(value, int | float | str))


@fuzz
@given(st.dictionaries(st.sampled_from(FIELDS), st.integers() | st.floats() | st.text(max_size=9), max_size=3))
def test_config(changes):
    config = base.get_config()
    for name, value in changes.items():
        kind = type(config[name])  # the command line converts values likewise
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            config[name] = kind(value)
    with contextlib.suppress(UserError):
        read_settings(config)


def damaged(content: bytes):
    """Return a strategy for damaged bytes of a file: changed or removed, mostly near the start, or truncated."""

    def change(edits, length):
        data = bytearray(content[:length])
        for index, value in edits:
            data[index % max(len(data), 1) : index % max(len(data), 1) + 1] = value
        return bytes(data)

    indices = st.integers(0, 400) | st.integers(0, len(content))
    edits = st.lists(st.tuples(indices, st.binary(max_size=3)), max_size=4)
    return st.builds(change, edits, st.just(len(content)) | st.integers(0, len(content)))


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.mhd", "ct.nhdr"])
def test_image_headers(tmp_path, name):
    valid = write_itk(tmp_path / name, HU).read_bytes()

    @fuzz
    @given(damaged(valid) | st.binary(max_size=400))
    def attempt(content):
        (tmp_path / name).write_bytes(content)
        with contextlib.suppress(UserError):
            assert read_ct(tmp_path / name).array.dtype == np.int16

    attempt()


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.mha"])
def test_values_of_text_headers(tmp_path, name):
    lines = write_itk(tmp_path / name, HU).read_bytes().split(b"\n")
    fields = [i for i, line in enumerate(lines[:15]) if b": " in line or b" = " in line]
    texts = [
        "0",
        "3",
        "4",
        "7 6 5",
        "-1 6 5",
        "nan nan nan",
        "(1,0,0)",
        "none",
        "9" * 30,
        "LOCAL",
        "True",
        "%s%n",
        "gzip",
    ]
    values = st.sampled_from(texts) | st.text(max_size=9)

    @fuzz
    @given(st.dictionaries(st.sampled_from(fields), values, min_size=1, max_size=3))
    def attempt(changes):
        changed = list(lines)
        for index, value in changes.items():
            separator = b": " if b": " in changed[index] else b" = "
            changed[index] = changed[index].split(separator)[0] + separator + value.encode("utf-8", "replace")
        (tmp_path / name).write_bytes(b"\n".join(changed))
        with contextlib.suppress(UserError):
            read_ct(tmp_path / name)

    attempt()


def test_dicom_headers(tmp_path):
    paths = write_series(tmp_path, HU[:3])
    valid = (tmp_path / "001.dcm").read_bytes()

    @fuzz
    @given(damaged(valid))
    def attempt(content):
        (tmp_path / "001.dcm").write_bytes(content)
        for read in (index_series, lambda _: read_series(paths)):
            with contextlib.suppress(UserError):
                read(tmp_path)

    attempt()
