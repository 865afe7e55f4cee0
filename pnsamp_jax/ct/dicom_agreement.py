"""Whether the slices of a DICOM series can be those of one volume, as far as their headers tell.

An element that is often wrong in sound files refuses nothing by itself; see each function.
"""

from collections.abc import Sequence
from itertools import combinations, groupby

import numpy as np

from pnsamp_jax.ct.dicom_slices import IN_TURNS, SHARED, Slice
from pnsamp_jax.ct.dicom_stack import usual_spacing
from pnsamp_jax.ct.volume import SPACING_MM
from pnsamp_jax.errors import UserError

SAME_MM = 1e-3  # points closer than this are the same position
SAME_SPACING = 1e-3  # relative difference of two pixel spacings of which one is rounded
MIN_SCATTERED = 3  # slices with a UID each that an even row of them is taken for one series
# Elements of which a value that returns after another is enough; two values of any other must take turns ...
RETURNING = ("AcquisitionNumber", "SeriesNumber", "ConvolutionKernel", "KVP")
TURNS = 2  # ... this often, as a slice from elsewhere does not ...
TURNS_OF_NONE = 3  # ... or this often with slices that lack the element, as a few that lost it do not
SAME_THICKNESS = 1.25  # ratio up to which thicknesses are the same; some are made up from rounded positions
BREATH_S = 5  # two scans are farther apart in time than this, ...
SWEEP = 3  # ... and each slice farther from the next than from the next but one, by this factor
SAME_STEP, OTHER_STEP = 0.02, 0.1  # relative differences of steps that are the same, and that contradict each other
MAX_OVERHANG = 1.05  # share of ReconstructionDiameter that pixels of a wrong size exceed


def check_alike(first: Slice, other: Slice) -> None:
    """Raise UserError unless two slices can be of one volume."""
    differs = {
        "shape": first.hu.shape != other.hu.shape,
        "ImageOrientationPatient": np.abs(first.orientation - other.orientation).max() > 1e-4,
        "PixelSpacing": np.abs(first.pixel_spacing / other.pixel_spacing - 1).max() > SAME_SPACING,
    }
    for name, different in differs.items():
        if different:
            raise UserError(f"{other.name}: {name} differs from that of {first.name}; give the slices of one volume")


def check_shared(slices: Sequence[Slice]) -> str:
    """Check what all slices share, and return the UID that differs in every slice, "" if there is none.

    Raises:
      UserError: an element differs in some of the slices.
    """
    scattered = ""
    for name in SHARED:
        stated = [item for item in slices if item.shared[name]]
        # An ID that was typed twice may differ in case and blanks.
        values = ["".join(item.shared[name].split()).casefold() for item in stated]
        if len(set(values)) < 2:
            continue
        if name != "PatientID" and len(set(values)) == len(slices) >= MIN_SCATTERED:
            scattered = scattered or name
            continue
        other = next(item for item, value in zip(stated, values, strict=True) if value != values[0])
        raise UserError(f"{other.name}: {name} differs from that of {stated[0].name}; give the slices of one volume")
    return scattered


def require_depths(slices: Sequence[Slice], normal: np.ndarray) -> None:
    """Raise UserError if different slices all lie in one plane, across `normal`, as if their positions were lost."""
    positions = np.stack([item.position for item in slices])
    if np.ptp(positions @ normal) >= SAME_MM or all(np.array_equal(item.hu, slices[0].hu) for item in slices):
        return
    if np.ptp(positions, axis=0).max() < SAME_MM:
        place = "\\".join(f"{value:g}" for value in positions[0])
        raise UserError(
            f"{slices[0].name}: ImagePositionPatient is the same ({place}) in all {len(slices)} slices, as if it was "
            "removed, or as in images of one place over time; export the volume again with its positions"
        )
    raise UserError(
        f"{slices[0].name}: all {len(slices)} slices lie in one plane, so ImagePositionPatient or "
        "ImageOrientationPatient is wrong; export the series again"
    )


def require_no_turns(slices: Sequence[Slice]) -> None:
    """Raise UserError if two volumes take turns in sorted slices. One after the other they are one.

    They may be of two breaths, phases, kernels or thicknesses. One may lack an element that the other has, such as
    the agent of a contrast phase.
    """
    for name in IN_TURNS:
        if name == "AcquisitionTime":
            pair = _times_in_turns([item.marks[name] for item in slices])
        else:
            pair = _in_turns([item.marks[name] for item in slices], name in RETURNING)
        if pair:
            _refuse_turns(slices, name, pair, [item.marks[name] for item in slices])
    thicknesses = _thicknesses([item.measures["SliceThickness"] for item in slices])
    pair = _in_turns(thicknesses, False)
    if pair:
        _refuse_turns(slices, "SliceThickness", pair, thicknesses)


def _refuse_turns(slices: Sequence[Slice], name: str, pair: tuple[int, int], values: Sequence[str]) -> None:
    between, around = pair
    what = f"{name} {values[between]}" if values[between] else f"a slice without {name}"
    others = f"of {values[around]}" if values[around] else f"without {name}"
    raise UserError(
        f"{slices[between].name}: {what} lies between slices {others}; "
        f"give one acquisition and reconstruction of series {slices[0].shared['SeriesInstanceUID']}"
    )


def _in_turns(values: Sequence[str], returning: bool) -> tuple[int, int] | None:
    """Return the indices of a value and of one that it lies between, if two take turns; else None.

    Args:
      values: of an element in sorted slices, empty where it is absent.
      returning: whether it is enough that a value returns after another.
    """
    given = [index for index, value in enumerate(values) if value]
    if returning:
        starts = [next(group) for _, group in groupby(given, key=lambda index: values[index])]
        if len(starts) > len({values[index] for index in starts}):
            return starts[1], starts[0]
    begins: dict[str, list[int]] = {}  # where each run of a value begins
    for value, group in groupby(range(len(values)), key=lambda index: values[index]):
        begins.setdefault(value, []).append(next(group))
    for one, other in combinations([found for found in begins.values() if len(found) > 1], 2):
        runs = list(groupby(sorted((*one, *other)), key=lambda index: values[index]))
        if len(runs) >= 2 * (TURNS if values[one[0]] and values[other[0]] else TURNS_OF_NONE):
            early, late = sorted((one, other))
            return late[0], early[0]
    return None


def _thicknesses(values: Sequence[float]) -> list[str]:
    """Return thicknesses as text, those that are about the same in the same words, empty if unknown."""
    known: list[float] = []
    texts = []
    for value in values:
        if not value > 0:
            texts.append("")
            continue
        same = [other for other in known if max(value / other, other / value) <= SAME_THICKNESS]
        if not same:
            known.append(value)
        texts.append(f"{(same or [value])[0]:g}")
    return texts


def _times_in_turns(values: Sequence[str]) -> tuple[int, int] | None:
    """Return the first two indices if sorted slices are by turns of two scans; else None.

    Each slice may have its own time, so the times of neighbours are compared with those of every second slice.
    """
    try:
        times = np.array([float(value) for value in values])  # hhmmss.ffffff
    except ValueError:  # of a slice without a time
        return _in_turns(["given" if value else "" for value in values], False)
    seconds = times // 10000 * 3600 + times // 100 % 100 * 60 + times % 100
    if len(seconds) < 4:
        return None
    near, far = (float(np.median(np.abs(seconds[step:] - seconds[:-step]))) for step in (1, 2))
    return (1, 0) if near > max(BREATH_S, SWEEP * far) else None


def require_stated_sizes(slices: Sequence[Slice], positions: np.ndarray, depths: np.ndarray) -> None:
    """Raise UserError if the sizes of voxels contradict what the files state besides.

    The step of the positions must contradict two other elements that agree with each other: SliceLocation, and
    SpacingBetweenSlices or, if the step is too small, SliceThickness. Where slices overlap, they are thicker than
    their step, too, but then SliceLocation agrees with the positions; where they lie apart, a note tells.

    The pixel spacing is doubted only where it is exactly 1, as if it was lost, and the image is larger than what was
    reconstructed; data may lie beyond ReconstructionDiameter, and a margin without a structure may have been added.

    Args:
      slices: in ascending order, none repeated.
      positions: (n, 3) in mm.
      depths: (n,) in mm, along the normal.
    """
    located = [item.measures["SliceLocation"] for item in slices]
    # With a tilted gantry, the spacing may be meant along the normal or along the table.
    steps = usual_spacing(depths), float(np.median(np.linalg.norm(np.diff(positions, axis=0), axis=1)))
    if np.isfinite(located).all():
        stated = float(np.median(np.abs(np.diff(located))))
        witness = _second_witness(slices, stated, steps)
        if witness and all(abs(step / stated - 1) > OTHER_STEP for step in steps):
            raise UserError(
                f"{slices[0].name}: ImagePositionPatient steps by {steps[0]:.4g} mm from slice to slice, but "
                f"SliceLocation and {witness} by {stated:.4g} mm, as if the positions were counted or "
                "scaled; export the series again"
            )
    diameter = np.median([item.measures["ReconstructionDiameter"] for item in slices])
    if diameter > 0 and all((item.pixel_spacing == 1).all() for item in slices):
        middle = slices[len(slices) // 2].hu
        sides = [int((np.ptp(middle, axis=axis) > 0).sum()) for axis in (0, 1)]  # of columns, of rows
        if min(sides) > MAX_OVERHANG * diameter:
            raise UserError(
                f"{slices[0].name}: PixelSpacing is 1\\1, which makes the image {min(sides)} mm wide, but "
                f"ReconstructionDiameter is {diameter:g} mm, as if the spacing was lost; export the series again"
            )


def _second_witness(slices: Sequence[Slice], stated: float, steps: Sequence[float]) -> str:
    """Return the element that gives the same step in mm as SliceLocation, "" if there is none or one gives `steps`."""
    between, thickness = (
        float(abs(np.median([item.measures[name] for item in slices])))
        for name in ("SpacingBetweenSlices", "SliceThickness")
    )
    if stated <= 0 or any(abs(step - between) <= SAME_STEP * between for step in steps):
        return ""
    if abs(stated - between) < SAME_STEP * between:
        return "SpacingBetweenSlices"
    squeezed = all(SPACING_MM[0] <= step < stated for step in steps)  # others are implausible by themselves
    return "SliceThickness" if squeezed and abs(stated - thickness) < SAME_STEP * thickness else ""
