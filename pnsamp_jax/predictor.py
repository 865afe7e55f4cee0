"""The Python interface: load networks, and ask them about points of a CT.

    predictor = pnsamp_jax.load()
    answer = predictor("ct.nii.gz", (-61.5, 40.2, -120.0))

No file is written unless one asks for it by `answer.save`, `save` or `save_report`.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pnsamp_jax.answer import Answer
from pnsamp_jax.config import use_compilation_cache
from pnsamp_jax.ct.in_memory import ct_in_memory, numbers
from pnsamp_jax.ct.read import Image, open_ct
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import default_cache_folder, readable, user_path
from pnsamp_jax.inference import asking, ensemble
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.point_files import read_requests
from pnsamp_jax.inference.requests import (
    UNITS,
    Failure,
    Located,
    Request,
    by_image,
    locate,
    locate_in,
    mirrored,
    require_ids,
)

BATCH_SIZE = 8  # patches that are predicted together


def load(networks: str | os.PathLike[str] = "shipped", *, flips: bool = True, runtime: str = "jax") -> "Predictor":
    """Return a predictor with the networks of a run.

    Args:
      networks: the workdir of a training, or "shipped" for the networks that come with the package.
      flips: whether to average over the eight flips of a patch, which takes eight times as long.
      runtime: what computes the networks' answers, "jax" or, on CPU, "openvino".

    Raises:
      UserError: the folder holds no networks that are ready, or the runtime is not installed.

    Examples:
        >>> import pnsamp_jax
        >>> pnsamp_jax.load()
        <Predictor: 5 networks, patches of 32 voxels of 1.2 mm>
    """
    if not _is_path(networks):
        raise UserError(f"networks: is a {type(networks).__name__}; give the workdir of a training, or 'shipped'")
    use_compilation_cache(default_cache_folder())
    name = os.fspath(networks)
    return Predictor(ensemble.load(ensemble.chosen_folder("networks", name), runtime), name, flips)


class Predictor:
    """Networks that segment and rate the nodule at a point of a CT. `load` makes one; call it as a function.

    Attributes:
      networks: that are asked.
      name: where they are from.
      flips: whether their answers are averaged over the eight flips of a patch.
    """

    def __init__(self, networks: ensemble.Networks, name: str, flips: bool) -> None:
        self.networks, self.name, self.flips = networks, name, flips

    def __repr__(self) -> str:
        """Return how many networks there are, and what they see."""
        count, size = len(self.networks.members), self.networks.patch_size
        plural = "" if count == 1 else "s"
        return f"<Predictor: {count} network{plural}, patches of {size} voxels of {self.networks.spacing_mm} mm>"

    def __call__(
        self,
        image: Any,
        points: ArrayLike,
        *,
        units: str = "mm",
        affine: ArrayLike | None = None,
        series: str = "",
        nodule_ids: Sequence[str] | str | None = None,
    ) -> Any:
        """Segment and rate the nodules at points of a CT.

        Args:
          image: the path of a NIfTI, NRRD, MetaImage or enhanced CT file, of a folder with a DICOM series or of an
            archive; or a NumPy array of HU, a nibabel image or a SimpleITK image.
          points: (3,) for one nodule, or (N, 3) for several.
          units: of the points: "mm" in the LPS coordinates of DICOM and ITK; "ras" for mm in those of NIfTI and 3D
            Slicer; or "voxel" for indices from 0, along width, height and depth (i, j, k) as files have them, or
            along the axes of a NumPy array in their order.
          affine: (4, 4) from the index of a NumPy array to LPS mm; for no other image.
          series: SeriesInstanceUID, for a folder that holds several CT series.
          nodule_ids: (N,) names of the nodules, or the name of the only one; by default nodule_1, nodule_2 and so on.

        Returns:
          The `Answer` for one point, or the list of those for several points.

        Raises:
          UserError: the image cannot be read or is no chest CT, a point does not lie in it, or an id is not valid.

        Examples:
            >>> import pnsamp_jax
            >>> predictor = pnsamp_jax.load(flips=False)
            >>> answer = predictor(pnsamp_jax.EXAMPLE_CT, (56.4, 86.3, -116.0))
            >>> answer.status, answer.mask.shape
            ('ok', (20, 68, 68))
            >>> answer.ratings["calcification"].words
            'absent'
        """
        where = numbers("points", points)
        if where.ndim not in (1, 2) or where.shape[-1] != 3:
            raise UserError(f"points: have the shape {where.shape}; give (x, y, z), or an array of (N, 3)")
        if not np.isfinite(where).all():
            raise UserError(f"points: {where.tolist()} are not all numbers; leave out points that are not known")
        _check_units(units)
        requests = self._requests(image, np.atleast_2d(where), units, series, nodule_ids)
        ct = self._open(image, affine, series)
        answers = self._ask([self._locate(request, ct) for request in requests], ct)
        return answers[0] if where.ndim == 1 else answers

    def from_file(
        self,
        points: str | os.PathLike[str],
        image: str | os.PathLike[str] = "",
        *,
        units: str = "mm",
        series: str = "",
        min_score: float = 0.0,
    ) -> tuple[list[Answer], dict[str, str]]:
        """Segment and rate the nodules that a file of points names, in one CT or in many.

        Args:
          points: the path of a table, of 3D Slicer's markups, of a detector's output or of a mask; see
            `inference.point_files`.
          image: the path of the CT, or of the folder with the CTs that a challenge's table names; "" if the file names
            its images itself.
          units: of a table with the columns nodule_id, image and x_mm, y_mm, z_mm (or i, j, k): "mm", "ras" or
            "voxel". Other files have units of their own.
          series: SeriesInstanceUID, for a folder that holds several CT series.
          min_score: detections with a lower score are left out; refused for a file that has no scores.

        Returns:
          The answers in the order of the file, and the reasons by nodule id why others could not be answered: an image
          cannot be read, or a point does not lie in it.

        Raises:
          UserError: the file of points cannot be read, or the units are unknown.

        Examples:
            >>> import pnsamp_jax
            >>> table = pnsamp_jax.EXAMPLE_CT.with_name("points.csv")
            >>> answers, failures = pnsamp_jax.load(flips=False).from_file(table)
            >>> [answer.nodule_id for answer in answers], failures
            (['LIDC-IDRI-0001'], {})
        """
        _check_units(units)
        for name, given in (("points", points), ("image", image)):
            if not _is_path(given):
                raise UserError(f"{name}: is a {type(given).__name__}; give a path here, or call the predictor itself")
        if isinstance(min_score, bool) or not isinstance(min_score, int | float):
            raise UserError(f"min_score: is a {type(min_score).__name__}; give a number")
        try:
            requests = read_requests(os.fspath(image), os.fspath(points), units, series, min_score)
        except UserError as error:  # which names fields of a config
            raise type(error)(str(error).replace("config.predict.", "")) from error
        batch_size = asking.batch_size_of(min(BATCH_SIZE, len(requests)))
        located = locate(by_image(requests), self.networks.patch_size, self.networks.spacing_mm)
        outcomes = list(asking.ask(located, self.networks, batch_size, self.flips))
        failures = {one.request.nodule_id: one.reason for one in outcomes if isinstance(one, Failure)}
        found = {one[0].request.nodule_id: one for one in outcomes if not isinstance(one, Failure)}
        findings = {name: finding for name, (_, finding) in found.items()}
        hints = asking.hints(requests, findings, self.networks, batch_size, self.flips)
        hinted = [replace(finding, hint=hints.get(name, "")) for name, finding in findings.items()]
        findings = {one.nodule_id: one for one in asking.add_saliency(hinted, self.networks, batch_size)}
        header = ensemble.described(self.networks, self.name, self.flips)
        names = [request.nodule_id for request in requests if request.nodule_id in found]
        return [Answer(found[name][0], findings[name], header) for name in names], failures

    def _requests(
        self, image: Any, points: np.ndarray, units: str, series: str, nodule_ids: Sequence[str] | str | None
    ) -> list[Request]:
        default = [f"nodule_{number}" for number in range(1, len(points) + 1)]
        given = np.atleast_1d(np.asarray(default if nodule_ids is None else nodule_ids, object))
        names = [str(name) for name in given]
        if len(names) != len(points):
            raise UserError(f"nodule_ids: has {len(names)} names for {len(points)} points")
        if any(name is None or name != name for name in given):  # None and NaN, as pandas has them
            raise UserError("nodule_ids: one is missing; give each nodule a name, or leave them all out")
        path = user_path(image) if _is_path(image) else user_path(f"<{type(image).__name__}>")
        if units == "voxel" and not _is_path(image) and not hasattr(image, "GetOrigin"):
            points = points[:, ::-1]  # the order in which requests have it is that of ITK
        return require_ids(
            [
                Request(name, readable(str(path)), path, point, series, units)
                for name, point in zip(names, points, strict=True)
            ]
        )

    def _open(self, image: Any, affine: ArrayLike | None, series: str) -> Image:
        if isinstance(image, str) and not image.strip():  # which would be the current folder
            raise UserError("image: is empty; give an image file or a folder that holds one DICOM series")
        if not _is_path(image):
            return Image(ct_in_memory(image, affine), None)
        if affine is not None:
            raise UserError("affine: leave it out, because the file has its own")
        return open_ct(user_path(image), series)

    def _locate(self, request: Request, ct: Image) -> Located:
        found = locate_in(ct, request, self.networks.patch_size, self.networks.spacing_mm)
        if isinstance(found, Failure):
            raise UserError(f"{request.nodule_id}: {found.reason}")
        return found

    def _ask(self, located: list[Located], ct: Image) -> list[Answer]:
        batch_size = asking.batch_size_of(max(1, min(BATCH_SIZE, len(located))))
        answered = self._answered(located, batch_size)
        findings = [finding for _, finding in answered]
        for index, (own, finding) in enumerate(answered):
            if not finding.segmented and own.request.units != "voxel":
                other = locate_in(ct, mirrored(own.request), self.networks.patch_size, self.networks.spacing_mm)
                if isinstance(other, Located):
                    [(_, found)] = self._answered([other], batch_size)
                    findings[index] = replace(finding, hint=asking.hint(found, own.request.units))
        findings = asking.add_saliency(findings, self.networks, batch_size)
        header = ensemble.described(self.networks, self.name, self.flips)
        return [Answer(own, finding, header) for (own, _), finding in zip(answered, findings, strict=True)]

    def _answered(self, located: list[Located], batch_size: int) -> list[tuple[Located, Finding]]:
        """Return the nodules, as their patches were moved, with the findings."""
        outcomes = asking.ask(located, self.networks, batch_size, self.flips)
        return [outcome for outcome in outcomes if not isinstance(outcome, Failure)]


def _check_units(units: str) -> None:
    if units not in UNITS:
        raise UserError(f"units: '{units}' is none of {', '.join(UNITS)}")


def _is_path(image: Any) -> bool:
    return isinstance(image, str | os.PathLike)
