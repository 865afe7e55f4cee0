"""What a slab tells without its voxels: the nine ratings from the depth of the image file alone.

    pip install -e ".[experiments]"
    python -m experiments.baselines.depth --config depth --workdir runs/depth \\
        --config.data.source=folder --config.data.root=/path/to/nodules

A slab ends one slice beyond its nodule at either end, so that the depth of its file, less these two slices, is the
nodule's height. Each rating is predicted from it as the diameter's baseline predicts it from the diameter. Whatever
this scores on slabs, a network that sees where the volume ends can score without reading a voxel of the nodule; on
whole CTs it means nothing.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.baselines import diameter, second_stage
from experiments.baselines.subsets import Subset
from pnsamp_jax.config import read_settings
from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import MarkedNodule
from pnsamp_jax.data.prepare import Source

ENDS = 2  # slices of a slab that lie beyond its nodule


def depth_mm(volume: Volume) -> float:
    """Return the number of slices between a slab's ends, at least 1, times their distance.

    Slices are stacked along the axis of the array that is nearest to that of the body.
    """
    along = int(np.argmax(np.abs(volume.affine[2, :3]) / volume.spacing))
    return float(max(1, volume.array.shape[along] - ENDS) * volume.spacing[along])


def depths_mm(source: Source) -> dict[str, float]:
    """Return the `depth_mm` of the image of each nodule of a source, by nodule id."""
    return {
        marked.nodule.nodule_id: depth_mm(marked.ct)
        for series in source.series()
        for marked in source.load(series)
        if isinstance(marked, MarkedNodule)
    }


def run(config: ConfigDict, workdir: Path) -> dict:
    """Cross-validate the baseline on the config's nodules, and return the content of results.json."""
    known: dict[str, float] = {}

    def log_depths(subset: Subset) -> np.ndarray:
        if not known:
            known.update(depths_mm(read_settings(config).source))
        return np.log([[known[nodule_id]] for nodule_id in subset.records[schema.NODULE_ID].tolist()])

    def predict(train: Subset, test: Subset, seed: int) -> np.ndarray:
        del seed  # nothing is random
        return second_stage.classify(diameter.classifier, log_depths(train), train.labels, log_depths(test))

    return second_stage.cross_validate(config, workdir, predict, {"name": "depth"})


if __name__ == "__main__":
    second_stage.launch_method(run)
