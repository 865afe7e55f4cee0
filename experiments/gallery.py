"""Draws nodules of a test fold with the readers' and the predicted outline, and the malignancy ratings.

    python -m experiments.gallery --config configs/pn_samp_m_32.py --workdir runs/m32 --config.fold=0 \\
        --config.data.source=folder --config.data.root=/path/to/nodules --out docs/nodules.png
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import config_flags

from pnsamp_jax import metrics, settings, train, transforms
from pnsamp_jax.checkpoint import Checkpoints
from pnsamp_jax.data import cohort, keys
from pnsamp_jax.data.prepare import atomic_path
from pnsamp_jax.errors import UserError
from pnsamp_jax.state import create_state

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file of the run.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run.")
OUT = flags.DEFINE_string("out", None, "PNG file to write.")
COUNT = flags.DEFINE_integer("count", 10, "How many nodules, spread evenly over the test fold by diameter.")

READERS_COLOR, PREDICTED_COLOR = "#ffd92f", "#4eb3ff"


def draw(records: dict, masks: np.ndarray, probabilities: np.ndarray, size: int, path: Path) -> None:
    """One axial slice a nodule, in two rows: (N, D, H, W) bool masks, (N, 9, 6) probabilities."""
    columns = (len(masks) + 1) // 2
    picture = Figure(figsize=(2.0 * columns, 4.9), layout="constrained")
    FigureCanvasAgg(picture)
    label = cohort.rounded_rating(records[keys.VOTES])[:, keys.MALIGNANCY]
    said = metrics.arg_max(probabilities[:, keys.MALIGNANCY])
    for index, mask in enumerate(masks):
        axes = picture.add_subplot(2, columns, index + 1)
        image = np.asarray(transforms.crop(records[keys.IMAGE][index], size))
        readers = np.asarray(transforms.segmentation_target(transforms.crop(records[keys.MASK][index], size)))
        axes.imshow(image[size // 2], cmap="gray", vmin=-1400, vmax=200, interpolation="bicubic")
        for outline, color in ((readers, READERS_COLOR), (mask, PREDICTED_COLOR)):
            if outline[size // 2].any():
                axes.contour(outline[size // 2], levels=[0.5], colors=color, linewidths=1.3)
        axes.set_title(f"malignancy {said[index]} / {label[index]}", fontsize=9)
        axes.set_axis_off()
    title = "yellow: readers' consensus; blue: predicted; malignancy rating predicted / readers"
    picture.suptitle(title, fontsize=9)
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=110)


def run(config, workdir: Path, out: Path, count: int) -> None:
    """Draws `count` test nodules of the config's fold."""
    settings.check_workdir(config, workdir)
    records = train.load_records(config)
    folds = train.load_folds(config, records, workdir / "folds.json")
    test = train.places_of(records, folds[max(config.fold, 0)]["test"])
    by_size = test[np.argsort(records[keys.DIAMETER][test])]
    spread = np.linspace(0, len(by_size) - 1, count).round().astype(int)
    chosen = {name: values[by_size[spread]] for name, values in records.items()}
    task = train.make_task(config)
    like = create_state(task.model, task.patch_size, len(task.windows), seed=0)
    with Checkpoints(workdir / f"fold_{max(config.fold, 0)}" / "checkpoints") as checkpoints:
        state = checkpoints.restore(like, config.checkpoint)
    images = np.stack([np.asarray(transforms.crop(image, config.patch_size)) for image in chosen[keys.IMAGE]])
    inputs = transforms.window(images, task.windows)
    model = task.model.clone(axis_name=None)
    outputs = model.apply({"params": state.params, "batch_stats": state.batch_stats}, inputs)
    draw(chosen, np.asarray(outputs.mask) > 0, np.asarray(outputs.ratings), config.patch_size, out)


def main(argv: list[str]) -> None:
    """Draws the picture; a user's mistake becomes one line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        run(CONFIG.value, Path(WORKDIR.value), Path(OUT.value), COUNT.value)
    except UserError as error:
        sys.exit(f"gallery: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir", "out"])
    app.run(main)
