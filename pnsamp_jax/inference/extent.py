"""Intervals for the volume and the diameter of a nodule, which hold the readers' in a stated share of nodules.

A mask that barely changes with its threshold is known better than one that does. So the error of a measurement, as the
logarithm of the readers' value over it, is taken in units of the `doubt` of the mask, and its quantiles among the
validation nodules of a fold give the interval (Lei et al., "Distribution-free predictive inference for regression",
JASA 2018). Where several networks or flips disagree, their mean probability is soft, and the doubt is large.
"""

import numpy as np
from scipy import ndimage

from pnsamp_jax.inference.conformal import patient_quantile
from pnsamp_jax.inference.diameters import axial_diameters
from pnsamp_jax.inference.masks import THRESHOLD, central_component, with_threshold

COVERAGE = 0.9
MEASURES = ("volume", "diameter")
LOOSE, TIGHT = 0.2, 0.8  # thresholds of the mask between which its volume is compared
SLACK = 0.5  # doubt of a mask with the same volume at both; readers differ even there
SMOOTHING_VOXELS = 0.8  # standard deviation by which readers' masks are smoothed before their long axis is measured


def doubt(probability: np.ndarray) -> float:
    """Return how far the logarithm of a mask's volume depends on the threshold, plus `SLACK`.

    Args:
      probability: (D, H, W) of the mask.
    """
    loose, tight = (max(1, central_component(probability > threshold).sum()) for threshold in (LOOSE, TIGHT))
    return float(np.log(loose / tight)) + SLACK


def fit_limits(measured: np.ndarray, true: np.ndarray, doubts: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Find the errors, in units of the doubt, between which the share `COVERAGE` lies.

    Nodules without a measurement or without a true value do not count.

    Args:
      measured: (N,) volumes or diameters of the predicted masks.
      true: (N,) those of the readers' consensus.
      doubts: (N,), see `doubt`.
      patients: (N,) ids.

    Returns:
      (2,) low and high; infinite where there are too few patients.
    """
    known = (measured > 0) & (true > 0)
    errors, patients = np.log(true[known] / measured[known]) / doubts[known], patients[known]
    each_side = (1 + COVERAGE) / 2
    if not known.any():
        return np.array([-np.inf, np.inf])
    return np.array([-patient_quantile(-errors, patients, each_side), patient_quantile(errors, patients, each_side)])


def fit(probability: np.ndarray, consensus: np.ndarray, patients: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Fit the limits of `MEASURES` to nodules that the network was not trained on.

    Args:
      probability: (N, S, S, S) of the mask.
      consensus: (N, S, S, S) bool, the readers'.
      patients: (N,) ids.
      spacing_mm: size of a voxel.

    Returns:
      (2, 2): by measure, see `fit_limits`.
    """
    doubts = np.array([doubt(one) for one in probability])
    measured = np.array([measure(one, central_component(one > THRESHOLD), spacing_mm) for one in probability])
    true = np.array([measure_marked(one, spacing_mm) for one in consensus])
    return np.stack([fit_limits(*pair, doubts, patients) for pair in zip(measured.T, true.T, strict=True)])


def measure(probability: np.ndarray, mask: np.ndarray, spacing_mm: float) -> tuple[float, float]:
    """Return the volume and the long axis of a mask."""
    long_mm = axial_diameters(probability, mask, (spacing_mm, spacing_mm)).long_mm if mask.any() else 0.0
    return float(mask.sum() * spacing_mm**3), long_mm


def measure_marked(mask: np.ndarray, spacing_mm: float) -> tuple[float, float]:
    """Return the volume and the long axis of a mask that is known in whole voxels, as that of a reader is.

    Whole voxels show an outline only to half a voxel, and the longest diameter picks out its outermost points. So the
    mask is smoothed, and its outline is laid where it encloses the same volume. For balls and ellipsoids of 5 to 22 mm
    on voxels of 1.2 mm, the error of the long axis falls from 0.6 to 1.2 mm (root mean square) to 0.2 to 0.6 mm.

    Args:
      mask: (D, H, W) bool.
      spacing_mm: size of a voxel.
    """
    count = int(mask.sum())
    if not 0 < count < mask.size:
        return measure(mask.astype(np.float32), mask, spacing_mm)
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), SMOOTHING_VOXELS, mode="constant")
    threshold = float(np.sort(smooth, axis=None)[mask.size - count - 1 : mask.size - count + 1].mean())
    probability = with_threshold(smooth, threshold)
    return count * spacing_mm**3, measure(probability, probability > THRESHOLD, spacing_mm)[1]


def interval(measured: float, of_doubt: float, limits: np.ndarray) -> tuple[float, float]:
    """Return the interval of a measurement, which always holds the measurement itself.

    Args:
      measured: volume or diameter of a predicted mask.
      of_doubt: of the mask, see `doubt`.
      limits: (2,), see `fit_limits`.
    """
    if measured == 0:  # nothing is segmented, and infinite limits times 0 are no number
        return 0.0, 0.0
    low, high = np.exp(np.array([min(limits[0], 0.0), max(limits[1], 0.0)]) * of_doubt)
    return float(measured * low), float(measured * high)
