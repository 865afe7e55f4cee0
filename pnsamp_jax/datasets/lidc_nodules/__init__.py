"""The TFDS dataset `lidc_nodules`, and a reader that imports TensorFlow only when it is called.

`read_dataset` reads all TFDS records into memory and returns what `pnsamp_jax.data.prepare.read_records` returns. To
use the dataset through TFDS itself, import `lidc_nodules_dataset_builder`, which registers it, and call `tfds.load`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.prepare import Member, Source, dataset_name, join_records, prepare
from pnsamp_jax.errors import UserError


def read_dataset(
    source: Source, geometry: Geometry, cache: Path, workers: int = 0, member: Member | None = None
) -> schema.Records:
    """Read all of a source's TFDS records into memory, after building the dataset under `cache`/tfds if necessary.

    Args:
      source: the source of nodules.
      geometry: the patch grid.
      cache: folder of prepared sources, as for `prepare`, and of the TFDS dataset.
      workers: number of processes that prepare; 0 for one per core.
      member: selects the nodules to keep: (n, 9, 6) rating counts -> (n,) bool; None for all.

    Returns:
      The same records as `read_records`, sorted by nodule id.

    Raises:
      UserError: TensorFlow is not installed, no series could be read, or no nodule is selected.
    """
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError("config.data.pipeline: 'tfdata' needs TensorFlow; pip install 'pnsamp-jax[tf]'") from error
    from pnsamp_jax.datasets.lidc_nodules.lidc_nodules_dataset_builder import LidcNodules, LidcNodulesConfig

    tf.config.set_visible_devices([], "GPU")  # the accelerators belong to JAX
    config = LidcNodulesConfig(
        name=dataset_name(source, geometry), source=source, geometry=geometry, cache=str(cache), workers=workers
    )

    def make_builder() -> LidcNodules:
        return LidcNodules(config=config, data_dir=cache / "tfds")

    builder = make_builder()
    mode = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    if builder.data_path.exists() and (failures := builder.info.metadata["failures"]):
        # Like `prepare`, try the series that failed again.
        if prepare(source, geometry, cache, workers).failures.keys() != failures.keys():
            mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS  # builds the dataset again
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(download_mode=mode, try_download_gcs=False)
        )
    except OSError:
        # Another process, training another fold, may have built the same dataset first.
        if not builder.data_path.exists():
            raise
        builder = make_builder()
    records = builder.as_dataset(split="all", read_config=tfds.ReadConfig(try_autocache=False))
    return join_records(
        {name: np.array([_to_str(value)]) for name, value in record.items()}
        for record in records.as_numpy_iterator()
        if member is None or member(record[schema.RATING_COUNTS][None])[0]
    )


def _to_str(value: Any) -> Any:
    """Decode TensorFlow's strings, which are bytes; return other values unchanged."""
    return value.decode() if isinstance(value, bytes) else value
