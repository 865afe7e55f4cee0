"""What networks answer at random points of a whole CT, far from its nodules.

    python -m experiments.random_points --workdir runs/plus --image /path/to/series --nodules "56.4,86.3,-116.0"

The points are drawn as in `data.background`: uniformly in the body, which is where the mean of the patch is at least
-950 HU, so that all of the body, the lungs and the trachea count and the air around it does not; at least 15 mm from
the nodules that are named; and every second one is moved to the brightest voxel within 5 mm. Prints a Markdown table
like that of `experiments.nodule_or_not`, and the answers at the nodules. Of the networks, those that were trained on
the patient know the scan; --fold asks one alone.
"""

from pathlib import Path

import numpy as np
from absl import flags

from experiments.launch import launch, path_flag
from experiments.nodule_or_not import Points, point_lines
from pnsamp_jax import metrics
from pnsamp_jax.ct.read import open_ct
from pnsamp_jax.data.background import draw_points
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import asking, ensemble
from pnsamp_jax.inference.point_files import read_requests
from pnsamp_jax.inference.requests import Failure, Request, locate_in

BATCH_SIZE = 8


def run(workdir: Path, image: Path, nodules: str, count: int = 300, fold: int = -1, flips: bool = True) -> str:
    """Print what networks answer at random points of a CT; see the module's docstring.

    Args:
      workdir: of a run, or exported weights.
      image: the CT.
      nodules: the points of all of its nodules, as `predict.points`.
      count: how many random points.
      fold: whose network is asked alone; -1 for all.
      flips: whether to average over the eight flips.

    Returns:
      What is printed.

    Raises:
      UserError: a network does not know what looks like a nodule, or the CT has no room for a point.
    """
    networks = ensemble.load(workdir)
    networks = networks if fold < 0 else networks.member(fold)
    if any(one.likeness is None for one in networks.members.values()):
        raise UserError(f"{workdir}: a calibration.json has no likeness; test the run with --config.data.background")
    opened = open_ct(image)
    known = [request.point_mm for request in read_requests(str(image), nodules, "mm")]
    side_mm = networks.patch_size * networks.spacing_mm
    random = np.random.default_rng(0)
    drawn = draw_points(opened.volume, np.array(known), np.zeros((0, 3)), count, side_mm, random)
    if not len(drawn):
        raise UserError(f"{image}: has no room for a patch of {side_mm:g} mm beside its nodules")
    asked = [Request(f"point_{i}", str(image), image, point) for i, point in enumerate([*known, *drawn])]
    located = (locate_in(opened, request, networks.patch_size, networks.spacing_mm) for request in asked)
    batch_size = asking.batch_size_of(BATCH_SIZE)
    answers = list(asking.ask(located, networks, batch_size, flips))
    findings = [answer[1] for answer in answers if not isinstance(answer, Failure)]
    if len(findings) < len(answers):
        raise UserError(f"{image}: does not hold all nodules; give their points in LPS mm")
    own, others = findings[: len(known)], findings[len(known) :]
    points = Points(
        patients=np.arange(len(others)),
        bright=np.arange(len(others)) % 2 == 1,
        nodule_like=np.array([finding.nodule_like for finding in others]),
        volume_mm3=np.array([finding.volume_mm3 for finding in others]),
        suspicion=np.array([finding.malignant_probability for finding in others]),
        context=np.full(len(others), "ct"),
        fold=np.full(len(others), fold),
    )
    at_nodules = np.array([finding.nodule_like for finding in own])
    nodule = np.arange(len(findings)) < len(own)
    auc = metrics.auc(np.concatenate([at_nodules, points.nodule_like]), nodule)
    lines = [
        f"{len(others)} points, {len(own)} nodules of {image.name}; AUC {100 * auc:.1f}; nodule_like at the nodules: "
        + ", ".join(f"{value:.2f}" for value in at_nodules),
        "",
        *point_lines(points),
    ]
    text = "\n".join(lines)
    print(text)
    return text


if __name__ == "__main__":
    launch(
        run,
        workdir="Workdir of a run whose folds were tested with data.background, or exported weights.",
        image=path_flag("image", "The CT: a file, or a folder with a DICOM series.", required=True),
        nodules=flags.DEFINE_string("nodules", None, "Points of all of its nodules, LPS mm.", required=True),
        count=flags.DEFINE_integer("count", 300, "Number of random points."),
        fold=flags.DEFINE_integer("fold", -1, "The only fold whose network is asked; -1 for all."),
        flips=flags.DEFINE_bool("flips", True, "Whether to average over the eight flips of a patch."),
    )
