"""What the networks answer at a point of a CT, as plain values in Python."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import user_path
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.requests import Located, by_image, require_ids
from pnsamp_jax.report import SIMULATED, rows, write


class RatingAnswer(NamedTuple):
    """The predicted rating of a nodule by radiologists.

    Attributes:
      likeliest: the likeliest class, from 1.
      words: its meaning, such as "moderately suspicious".
      within_one: the class most probably right within one; None for kinds without an order.
      expected: the mean over the classes; None for kinds without an order.
      probabilities: of the classes 1, 2, and so on.
    """

    likeliest: int
    words: str
    within_one: int | None
    expected: float | None
    probabilities: tuple[float, ...]

    def __repr__(self) -> str:
        """Return the class with its meaning and its probability."""
        return f"{self.likeliest} ({self.words}, {100 * self.probabilities[self.likeliest - 1]:.0f} %)"


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """What the networks answer at one point of a CT.

    Where nothing is segmented there is no answer: the mask is empty, `ratings` too, and sizes are None.

    Attributes:
      located: the point and its CT.
      finding: the answer in the network's own patch.
      header: which networks answered, as the first fields of predictions.json.

    Examples:
        >>> import pnsamp_jax
        >>> answer = pnsamp_jax.load(flips=False)(pnsamp_jax.EXAMPLE_CT, (56.4, 86.3, -116.0))
        >>> 20 < answer.diameter_mm < 30
        True
        >>> sorted(answer.ratings)[:3]
        ['calcification', 'internal_structure', 'lobulation']
    """

    located: Located
    finding: Finding
    header: dict[str, Any]

    @property
    def nodule_id(self) -> str:
        """Return the name of the nodule."""
        return self.finding.nodule_id

    @property
    def image(self) -> str:
        """Return the CT as it was named."""
        return self.finding.image

    @property
    def point_mm(self) -> tuple[float, ...]:
        """Return the point, (x, y, z) in LPS mm."""
        return tuple(self.finding.point_mm.tolist())

    @property
    def status(self) -> str:
        """Return "ok" or "nothing segmented"."""
        return self.finding.status

    @property
    def note(self) -> str:
        """Return what one must know of this answer, such as that the mask touches a border; "" for nothing."""
        return self.finding.note

    @cached_property
    def mask(self) -> np.ndarray:
        """Return the mask on the CT's own grid, bool, indexed as the CT's array: (depth, height, width) of a file."""
        return self.finding.mask_on(self.located.shape, self.located.affine).array

    @property
    def affine(self) -> np.ndarray:
        """Return the (4, 4) matrix from the index of `mask` to LPS mm."""
        return self.located.affine

    @property
    def volume_mm3(self) -> float | None:
        """Return the volume of the mask in mm3; a lower bound if `truncated`."""
        return self.finding.volume_mm3 if self.finding.segmented else None

    @property
    def diameter_mm(self) -> float | None:
        """Return the longest axial diameter of the mask in mm; a lower bound if `truncated`."""
        return self.finding.diameters.long_mm if self.finding.segmented else None

    @property
    def truncated(self) -> bool:
        """Return whether the mask touches the border of what the network sees, or of the CT."""
        return self.finding.truncated

    @property
    def suspicion(self) -> float | None:
        """Return the probability that radiologists rate the malignancy 4 or 5, given that they do not rate it 3."""
        return self.finding.malignant_probability if self.finding.segmented else None

    @property
    def malignancy_set(self) -> tuple[int, ...]:
        """Return the malignancy classes that hold the radiologists' in 8 of 10 nodules; () if not known."""
        return self.finding.malignancy_set if self.finding.segmented else ()

    @property
    def unsure(self) -> bool | None:
        """Return whether `malignancy_set` reaches from 2 or below to 4 or above; None if it is not known."""
        return self.finding.unsure if self.finding.segmented else None

    @property
    def nodule_like(self) -> float | None:
        """Return how much this looks like the nodules that the networks learnt from, 0 to 1; None if not known."""
        return self.finding.nodule_like if self.finding.segmented else None

    @property
    def volume_range_mm3(self) -> tuple[float, float] | None:
        """Return the interval that holds the readers' volume in 9 of 10 nodules; None if not known."""
        return self.finding.volume_range_mm3 if self.finding.segmented else None

    @property
    def diameter_range_mm(self) -> tuple[float, float] | None:
        """Return the interval that holds the readers' longest axial diameter in 9 of 10 nodules; None if not known."""
        return self.finding.diameter_range_mm if self.finding.segmented else None

    @property
    def ratings(self) -> dict[str, RatingAnswer]:
        """Return the nine ratings by name, in the order of `schema.RATINGS`; none where nothing is segmented."""
        finding = self.finding
        if not finding.segmented:
            return {}
        return {
            rating.name: RatingAnswer(
                likeliest=int(finding.arg_max[i]),
                words=finding.words[i],
                within_one=None if rating.nominal else int(finding.within_one[i]),
                expected=None if rating.nominal else float(finding.expected[i]),
                probabilities=tuple(finding.probabilities[i, : rating.classes].tolist()),
            )
            for i, rating in enumerate(schema.RATINGS)
        }

    @property
    def contributions(self) -> dict[str, float]:
        """Return by how much each attribute raises the expected malignancy against an average nodule's."""
        return self.finding.contributions if self.finding.segmented else {}

    def __repr__(self) -> str:
        """Return the answer in one line."""
        where = ", ".join(f"{value:.1f}" for value in self.point_mm)
        if not self.finding.segmented:
            return f"<Answer {self.nodule_id} at ({where}): nothing segmented>"
        return (
            f"<Answer {self.nodule_id} at ({where}): {self.diameter_mm:.1f} mm, {self.volume_mm3:,.0f} mm3, "
            f"malignancy {self.ratings['malignancy']!r}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of predictions.json, without the path of a mask, which is not written yet."""
        nodule = rows.described(self.finding)
        return {name: value for name, value in nodule.items() if name != "mask"}

    def _repr_png_(self) -> bytes:
        """Return the figure of the nodule, which Jupyter shows."""
        from pnsamp_jax.report.nodule_figure import draw_nodules  # imports matplotlib

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "nodule.png"
            draw_nodules([self.finding], path, warning=_warning([self]))
            return path.read_bytes()

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the files of a prediction into a folder; see `save`."""
        return save([self], folder)


def save(answers: Sequence[Answer] | Answer, folder: str | PathLike[str]) -> Path:
    """Write the files that `pnsamp predict` writes: tables, masks, figures, the report and, for DICOM, SEG and SR.

    Args:
      answers: with different ids; or a single one.
      folder: that holds no prediction yet, so that none is lost; it is made if it does not exist.

    Returns:
      The folder.

    Raises:
      UserError: there are no answers, ids repeat, the folder holds a prediction or cannot be written to, or, after all
        other files are written, a DICOM object could not be made.

    Examples:
        >>> import tempfile
        >>> import pnsamp_jax
        >>> answers = pnsamp_jax.load(flips=False)(pnsamp_jax.EXAMPLE_CT, [(56.4, 86.3, -116.0)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in pnsamp_jax.save(answers, folder).iterdir())
        ['figures', 'masks', 'predictions.csv', 'predictions.json', 'report.html']
    """
    if not isinstance(folder, str | PathLike) or str(folder) == "":
        raise UserError("folder: is empty; name the folder of the prediction")
    path = user_path(folder)
    answers = _listed(answers)
    if (path / "predictions.json").is_file():
        raise UserError(f"{path}: holds a prediction already; choose another folder, or save all answers at once")
    write.check_workdir(path, [answer.located.request for answer in answers])
    with write.writing(path):
        _write_files(answers, path)
    return path


def _write_files(answers: list[Answer], path: Path) -> None:
    requests = [answer.located.request for answer in answers]
    pairs = {answer.located.request.nodule_id: (answer.located, answer.finding) for answer in answers}
    header = _common_header(answers)
    with write.replacing(path) as unfinished:
        results = write.write_masks((pairs[one.nodule_id] for one in by_image(requests)), len(pairs), unfinished)
        write.write_tables(requests, results, header, unfinished)
    complaints = write.write_dicom_objects(results.series, bool(header["trained_on_simulated_voxels"]), path)
    write.write_report(results.shown, [], header, path)
    if complaints:
        raise UserError(f"all other files are written, but DICOM objects are missing: {complaints[0]}")


def save_report(answers: Sequence[Answer] | Answer, path: str | PathLike[str]) -> Path:
    """Write the HTML report of answers into one file, and return its path.

    Raises:
      UserError: there are no answers, ids repeat, or the file cannot be written.

    Examples:
        >>> import pathlib, tempfile
        >>> import pnsamp_jax
        >>> answer = pnsamp_jax.load(flips=False)(pnsamp_jax.EXAMPLE_CT, (56.4, 86.3, -116.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pnsamp_jax.save_report(answer, pathlib.Path(folder, "report.html")).name
        'report.html'
    """
    from pnsamp_jax.report.html_page import write_page

    several = _listed(answers)
    file = user_path(path)
    findings = [answer.finding for answer in several]
    with write.writing(file):
        write_page(findings, write.TITLE, file, [], _warning(several), _common_header(several))
    return file


def _listed(answers: Iterable[Answer] | Answer) -> list[Answer]:
    """Return one answer or several as a list. Raise UserError if there are none, or no answers, or ids repeat."""
    several = [answers] if isinstance(answers, Answer) else list(answers)
    strangers = [type(answer).__name__ for answer in several if not isinstance(answer, Answer)]
    if strangers:
        raise UserError(f"answers: hold a {strangers[0]}; give answers only, and of `from_file` its first value")
    if not require_ids([answer.located.request for answer in several]):
        raise UserError("there are no answers to write")
    return several


def _common_header(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the header of all answers; a field in which they differ lists its values."""
    fields = {name: list(dict.fromkeys(answer.header[name] for answer in answers)) for name in answers[0].header}
    return {name: ", ".join(map(str, found)) if len(found) > 1 else found[0] for name, found in fields.items()}


def _warning(answers: Sequence[Answer]) -> str:
    return SIMULATED if any(answer.header["trained_on_simulated_voxels"] for answer in answers) else ""
