"""The TFDS dataset has the same records as the .npz files, whether or not Apache Beam builds it."""

import csv
import json
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from ct_files import write_itk

from pnsamp_jax.data import beam, schema
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.folder_tables import NODULE_COLUMNS, RATING_COLUMNS
from pnsamp_jax.data.patches import Geometry, patch_affine
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import dataset_name, prepare
from pnsamp_jax.data.series_files import join_records, read_records
from pnsamp_jax.errors import UserError

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow: pip install 'pnsamp-jax[tf]'")
tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets: pip install 'pnsamp-jax[tf]'")
pytest.importorskip("dill", reason="tfds.testing needs dill: pip install 'pnsamp-jax[all-tests]'")
pytestmark = [
    pytest.mark.tf,
    # protobuf 6.33, to which Apache Beam holds, warns of itself when TFDS reads its own metadata.
    pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning"),
]

from pnsamp_jax.datasets.lidc_nodules.lidc_nodules_dataset_builder import LidcNodules, LidcNodulesConfig  # noqa: E402

SMALL = Geometry(patch_size=16, margin=2, spacing_mm=2.0)
NODULES = 3


class LidcNodulesTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS's standard tests of a builder, on the phantom."""

    DATASET_CLASS = LidcNodules
    BUILDER_CONFIG_NAMES_TO_TEST = [
        LidcNodulesConfig(name="small", source=PhantomSource(NODULES, seed=1), geometry=SMALL, workers=1)
    ]
    SPLITS = {"train": NODULES}
    MOCK_OUT_FORBIDDEN_OS_FUNCTIONS = False  # preparation needs a local disk: it renames files into place

    @classmethod
    def setUpClass(cls):
        # Nothing is downloaded; the prepared series are written here.
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.EXAMPLE_DIR = folder.name
        super().setUpClass()


def write_folder(root: Path) -> FolderSource:
    """Write two images with three nodules of one to three readers, and one row whose image is damaged."""
    rng = np.random.default_rng(0)
    nodules, ratings = [], []
    for image, readers in (("b", (3, 1)), ("a", (2,))):
        affine = patch_affine(np.array([10.0, -20.0, 30.0]), 24, 2.0)
        write_itk(root / f"images/{image}.nii.gz", rng.integers(-1000, 400, (24, 24, 24)).astype(np.int16), affine)
        for number, count in enumerate(readers):
            middle = np.array([8, 10, 12]) + 3 * number
            distance = np.linalg.norm(np.indices((24, 24, 24)).T - middle[::-1], axis=-1).T
            bits = sum((distance <= 2.5 + reader).astype(np.uint8) << reader for reader in range(count))
            name = f"{image}-{number}"
            write_itk(root / f"masks/{name}.nrrd", bits.astype(np.uint8), affine)
            point = affine[:3] @ [*middle[::-1], 1]
            nodules.append([name, f"patient of {image}", f"images/{image}.nii.gz", f"masks/{name}.nrrd", *point])
            ratings += [[name, reader, *rng.integers(1, 5, 9)] for reader in range(count)]
    (root / "images/broken.nii.gz").write_bytes(b"not an image")
    nodules.append(["broken-0", "patient", "images/broken.nii.gz", "masks/a-0.nrrd", 10, -20, 30])
    for table, columns, rows in (("nodules", NODULE_COLUMNS, nodules), ("ratings", RATING_COLUMNS, ratings)):
        with (root / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    return FolderSource(str(root))


@pytest.fixture
def source(tmp_path) -> FolderSource:
    root = tmp_path / "root"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    return write_folder(root)


@pytest.fixture
def offline(monkeypatch):
    """Fails the test if it tries to reach the network."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name].dtype == values.dtype, name
        np.testing.assert_array_equal(actual[name], values, err_msg=name, strict=True)


def build(source, folder, **settings):
    """Build the dataset of a source, and return its builder. `settings` are those of TFDS's DownloadConfig."""
    name = dataset_name(source, SMALL)
    config = LidcNodulesConfig(name=name, source=source, geometry=SMALL, cache=str(folder / "cache"), workers=1)
    builder = LidcNodules(config=config, data_dir=folder / "tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False, **settings))
    return builder


def read(builder):
    """Return all records of a dataset, sorted by id, as `read_records` does."""
    records = builder.as_dataset(split="all", read_config=tfds.ReadConfig(try_autocache=False)).as_numpy_iterator()
    plain = [{name: getattr(value, "decode", lambda v=value: v)() for name, value in one.items()} for one in records]
    return join_records({name: np.array([value]) for name, value in one.items()} for one in plain)


@pytest.mark.usefixtures("offline")
def test_dataset_equals_the_prepared_records(source, tmp_path):
    prepared = prepare(source, SMALL, tmp_path / "prepared", workers=1)
    records = read(build(source, tmp_path))
    assert_same(records, read_records(prepared.files))
    assert records[schema.NODULE_ID].tolist() == ["a-0", "b-0", "b-1"]
    assert np.isnan(records[schema.READER_DICE]).tolist() == [True, False, True]
    assert records[schema.MASK].any(axis=(1, 2, 3)).all()


def test_a_damaged_series_is_listed_and_tried_again(source, tmp_path, capsys):
    def failures(builder):
        return json.loads((Path(builder.data_dir) / "metadata.json").read_text())["failures"]

    builder = build(source, tmp_path)
    assert "Left out 1 of 3 series" in capsys.readouterr().out
    assert list(failures(builder)) == ["images/broken.nii.gz"]
    assert "broken.nii.gz" in failures(builder)["images/broken.nii.gz"]

    images = Path(source.root) / "images"
    (images / "broken.nii.gz").write_bytes((images / "a.nii.gz").read_bytes())
    builder = build(source, tmp_path)
    assert read(builder)[schema.NODULE_ID].tolist() == ["a-0", "b-0", "b-1", "broken-0"]
    assert failures(builder) == {}


def test_a_source_without_readable_series_is_an_error(source, tmp_path):
    for image in (Path(source.root) / "images").iterdir():
        image.write_bytes(b"")
    with pytest.raises(UserError, match="^no series could be prepared; the first reason: .*nii.gz"):
        build(source, tmp_path)
    assert not list((tmp_path / "tfds").rglob("*.tfrecord*"))


@pytest.mark.slow
def test_beam_builds_the_same_dataset(source, tmp_path):
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'pnsamp-jax[beam]'")
    local = build(source, tmp_path / "local")
    options = beam.read_options("runner=FnApiRunner,direct_running_mode=multi_processing,direct_num_workers=2")
    found = build(source, tmp_path / "beam", beam_options=options)
    assert_same(read(found), read(local))
    assert found.info.metadata == local.info.metadata and list(found.info.metadata["failures"])


def test_configs_and_documentation(source, tmp_path):
    assert list(LidcNodules.builder_configs) == ["phantom", "lidc", "folder"]
    builder = LidcNodules(data_dir=tmp_path)
    assert builder.builder_config.name == "phantom"
    assert "Armato" in builder.info.citation and "Wu, Botong" in builder.info.citation
    features = builder.info.features
    assert features[schema.IMAGE].shape == (80, 80, 80)
    names = {
        getattr(schema, name)
        for name in "IMAGE MASK RATING_COUNTS NODULE_ID PATIENT_ID CONTEXT READER_DICE DIAMETER".split()
    }
    assert set(features) == names
    assert all(features[name].doc.desc for name in names)


def test_named_config_reads_manual_dir(source, tmp_path):
    builder = tfds.builder("lidc_nodules/folder", data_dir=tmp_path / "data")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=source.root, try_download_gcs=False)
    )
    assert builder.info.splits["train"].num_examples == 3


def test_dataset_name_depends_on_source_and_geometry(source):
    one, two = PhantomSource(NODULES), PhantomSource(NODULES + 1)
    names = {
        dataset_name(one, SMALL),
        dataset_name(two, SMALL),
        dataset_name(one, Geometry()),
        dataset_name(source, SMALL),
    }
    assert len(names) == 4
    assert dataset_name(source, SMALL).startswith("folder-")
