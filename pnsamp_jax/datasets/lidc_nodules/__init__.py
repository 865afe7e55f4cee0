"""The nodules as a TFDS dataset, `lidc_nodules`, and a reader that keeps TensorFlow optional.

`read_dataset` gives what `pnsamp_jax.data.prepare.read_records` gives, by way of TFDS records on disk. To use the
dataset through TFDS itself, import `lidc_nodules_dataset_builder`, which registers it, and call `tfds.load`.
"""

import json
from pathlib import Path

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.prepare import Member, Source, folder_name, join_records, prepare
from pnsamp_jax.errors import UserError


def read_dataset(
    source: Source, geometry: Geometry, cache: Path, workers: int = 0, member: Member | None = None
) -> dict[str, np.ndarray]:
    """Reads a source's records into memory from TFDS, building the dataset under `cache`/tfds where there is none.

    Args:
      source: where nodules come from.
      geometry: the patch grid.
      cache: folder for prepared sources, the same as for `prepare`, and for the TFDS dataset.
      workers: processes that prepare; 0 for one per core.
      member: (n, 9, 6) rating_counts -> (n,) bool, which nodules to keep; all by default.

    Returns:
      Arrays under the names of `schema`, with N nodules on the leading axis, sorted by nodule id: the same as
      `read_records` gives.

    Raises:
      UserError: TensorFlow is not installed, no series could be read, or no nodule is a member.
    """
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError("config.data.pipeline: 'tfdata' needs TensorFlow; pip install 'pnsamp-jax[tf]'") from error
    from pnsamp_jax.datasets.lidc_nodules.lidc_nodules_dataset_builder import LidcNodules, LidcNodulesConfig

    tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX
    config = LidcNodulesConfig(
        name=folder_name(source, geometry), source=source, geometry=geometry, cache=str(cache), workers=workers
    )

    def make_builder() -> LidcNodules:
        return LidcNodules(config=config, data_dir=cache / "tfds")

    builder = make_builder()
    mode = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    if builder.data_path.exists() and (failures := builder.info.metadata["failures"]):
        # As `prepare` does, give the series that were left out another chance.
        folder = prepare(source, geometry, cache, workers)
        if json.loads((folder / "failures.json").read_text()).keys() != failures.keys():
            mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS  # builds anew
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(download_mode=mode, try_download_gcs=False)
        )
    except OSError:
        # A process beside this one, on another fold, may have put the same dataset in place first.
        if not builder.data_path.exists():
            raise
        builder = make_builder()
    records = builder.as_dataset(split="all", read_config=tfds.ReadConfig(try_autocache=False))
    return join_records(
        {name: np.array([_to_str(value)]) for name, value in record.items()}
        for record in records.as_numpy_iterator()
        if member is None or member(record[schema.RATING_COUNTS][None])[0]
    )


def _to_str(value):
    """TensorFlow's strings are bytes; other values stay as they are."""
    return value.decode() if isinstance(value, bytes) else value
