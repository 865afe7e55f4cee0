"""Ask the networks about nodules: from patches, in batches, to findings."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import jax
import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume, is_default_geometry
from pnsamp_jax.data import schema
from pnsamp_jax.data.patches import patch_affine
from pnsamp_jax.inference import attribution, conformal, ensemble, extent
from pnsamp_jax.inference.diameters import axial_diameters
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.masks import THRESHOLD, central_component, distance_mm, inside, is_truncated
from pnsamp_jax.inference.requests import Failure, Located, Request, by_image, locate, mirrored

CONTRIBUTORS = (*schema.ATTRIBUTE_NAMES, "image")  # what the malignancy head receives
# Distance of an outline's centre from the middle of the patch from which the networks are asked anew. They learnt from
# points up to 2.4 mm off along each axis.
OFF_CENTRE_MM = 3.0
SALIENCY_MM = 1.5  # standard deviation of its smoothing; single voxels of a gradient mean little


def ask(
    outcomes: Iterable[Located | Failure], networks: ensemble.Networks, batch_size: int, flips: bool
) -> Iterator[tuple[Located, Finding] | Failure]:
    """Predict located nodules in batches. Failures pass through; the order is kept.

    Where the networks outline a nodule off the middle of the patch, the patch is moved to the nodule first; see
    `centred`.

    Args:
      outcomes: of `requests.locate`.
      networks: to ask.
      batch_size: patches in a batch, a multiple of the number of local devices.
      flips: whether to average over the eight flips of a patch.
    """
    waiting: list[Located | Failure] = []
    for outcome in outcomes:
        waiting.append(outcome)
        if sum(isinstance(one, Located) for one in waiting) == batch_size:
            yield from _ask_batch(waiting, networks, batch_size, flips)
            waiting = []
    yield from _ask_batch(waiting, networks, batch_size, flips)


def _ask_batch(
    outcomes: list[Located | Failure], networks: ensemble.Networks, batch_size: int, flips: bool
) -> Iterator[tuple[Located, Finding] | Failure]:
    located = [outcome for outcome in outcomes if isinstance(outcome, Located)]
    findings: Iterator[Finding] = iter(())
    if located:
        located = centred(located, networks, batch_size)
        predictions = ensemble.predict(networks, _batch([nodule.hu for nodule in located], batch_size), flips)
        findings = iter(make_findings(located, predictions, networks))
    answered = iter(located)
    for outcome in outcomes:
        yield (next(answered), next(findings)) if isinstance(outcome, Located) else outcome


def centred(located: list[Located], networks: ensemble.Networks, batch_size: int) -> list[Located]:
    """Move the patches of nodules that lie off the middle to the centre of their outline, as whole voxels.

    A point of a detector or a click is often some millimetres off, where the networks outline and rate less well.
    Their mean outline without flips tells where the nodule is, for an eighth of the time of an answer with flips.

    Args:
      located: the nodules of a batch.
      networks: that will be asked.
      batch_size: see `ask`.

    Returns:
      The nodules, without their surroundings, which take more memory than their patches.
    """
    look = ensemble.predict(networks, _batch([nodule.hu for nodule in located], batch_size), flips=False)
    assert look.mask is not None
    moved = []
    for nodule, probability in zip(located, look.mask, strict=False):
        marked = np.argwhere(central_component(probability > THRESHOLD))
        move = marked.mean(axis=0) - (len(probability) - 1) / 2 if len(marked) else np.zeros(3)
        far = np.linalg.norm(move) * networks.spacing_mm > OFF_CENTRE_MM
        moved.append(nodule.moved(np.rint(move)) if far else nodule._replace(around=None))
    return moved


def make_findings(
    located: list[Located], predictions: ensemble.Predictions, networks: ensemble.Networks
) -> list[Finding]:
    """Turn predictions of a batch into findings, without saliency.

    Args:
      located: the nodules, in the order of the batch, which may be longer.
      predictions: of the batch, by networks that predict mask and ratings.
      networks: that made them.
    """
    assert predictions.mask is not None and predictions.features is not None
    probabilities = predictions.mean_probabilities
    contributions = attribution.mean_contributions(networks, predictions)
    average_malignancy = attribution.average_malignancy(networks)
    what_ifs = attribution.what_ifs(networks, predictions)
    ensemble_spread, flip_spread = predictions.ensemble_spread, predictions.flip_spread
    sets, limits = class_sets(networks, predictions), extent_limits(networks)
    nodule_like = networks.nodule_like(predictions)
    findings = []
    for i, nodule in enumerate(located):
        affine = patch_affine(nodule.centre_mm(networks.spacing_mm), len(predictions.mask[i]), networks.spacing_mm)
        # Beyond the image a patch repeats its border, where a network goes on with what it has outlined.
        seen = inside(Volume(predictions.mask[i], affine), nodule.shape, nodule.affine)
        probability = np.where(seen, predictions.mask[i], 0)
        mask = central_component(probability > THRESHOLD)
        volume_mm3 = float(mask.sum() * networks.spacing_mm**3)
        diameters = axial_diameters(probability, mask, (networks.spacing_mm, networks.spacing_mm))
        doubt = extent.doubt(predictions.mask[i])
        findings.append(
            Finding(
                nodule_id=nodule.request.nodule_id,
                image=nodule.request.image,
                point_mm=nodule.point_mm,
                spacing_mm=networks.spacing_mm,
                hu=nodule.hu,
                mask=mask,
                probabilities=probabilities[i],
                ensemble_spread=float(ensemble_spread[i]),
                flip_spread=float(flip_spread[i]),
                contributions=dict(zip(CONTRIBUTORS, contributions[i].tolist(), strict=True)),
                saliency=None,
                volume_mm3=volume_mm3,
                diameters=diameters,
                truncated=is_truncated(Volume(mask, affine), nodule.shape, nodule.affine),
                probability=probability,
                distance_mm=distance_mm(mask, networks.spacing_mm, nodule.move),
                centre_mm=nodule.centre_mm(networks.spacing_mm),
                locator=nodule.locator,
                class_sets=None if sets is None else sets[:, i],
                volume_range_mm3=None if limits is None else extent.interval(volume_mm3, doubt, limits[0]),
                diameter_range_mm=None if limits is None else extent.interval(diameters.long_mm, doubt, limits[1]),
                average_malignancy=average_malignancy,
                what_if=what_ifs[i],
                nodule_like=None if nodule_like is None else float(nodule_like[i]),
                default_geometry=is_default_geometry(nodule.affine),
            )
        )
    return findings


def class_sets(networks: ensemble.Networks, predictions: ensemble.Predictions) -> np.ndarray | None:
    """Return the sets of classes that the networks agree on, (2, N, 9, 6) bool; None if a network has no limits."""
    assert predictions.probabilities is not None
    limits = [network.class_limits for network in networks.members.values() if network.class_limits is not None]
    if len(limits) < len(networks.members):
        return None
    answers = predictions.probabilities.mean(axis=1)  # of the flips
    return conformal.merge(np.array([conformal.class_sets(*one) for one in zip(answers, limits, strict=True)]))


def extent_limits(networks: ensemble.Networks) -> np.ndarray | None:
    """Return the mean limits of volume and diameter over the networks, (2, 2); None if a network has none."""
    limits = [network.extent_limits for network in networks.members.values()]
    known = [one for one in limits if one is not None]
    return np.mean(known, axis=0) if len(known) == len(limits) else None


def hints(
    requests: Iterable[Request],
    findings: dict[str, Finding],
    networks: ensemble.Networks,
    batch_size: int,
    flips: bool,
) -> dict[str, str]:
    """Return hints, by nodule id, for points at which nothing is segmented but at their mirror image a nodule is.

    NIfTI viewers show RAS, in which x and y have the other sign. The images are read again, as this is rare.

    Args:
      requests: that were answered, among others.
      findings: the answers, by nodule id.
      networks: that answered.
      batch_size: see `ask`.
      flips: see `ask`.
    """
    answered = [request for request in requests if request.nodule_id in findings and request.units != "voxel"]
    empty = [request for request in answered if not findings[request.nodule_id].segmented]
    units = {request.nodule_id: request.units for request in empty}
    located = locate(map(mirrored, by_image(empty)), networks.patch_size, networks.spacing_mm, quiet=True)
    found = [one[1] for one in ask(located, networks, batch_size, flips) if not isinstance(one, Failure)]
    return {finding.nodule_id: hint(finding, units[finding.nodule_id]) for finding in found}


def hint(finding: Finding, units: str) -> str:
    """Say what is wrong with a point at which nothing is segmented, if a nodule is at its mirror image; else "".

    Args:
      finding: at the mirror image, see `requests.mirrored`.
      units: of the point that was given, "mm" or "ras".
    """
    if finding.uncertain:
        return ""
    point = ", ".join(f"{value:.6g}" for value in finding.point_mm)
    other = "LPS" if units == "ras" else "RAS"
    return f"({point}) would find a nodule of {finding.diameters.fleischner_mm} mm: are these {other} coordinates?"


def add_saliency(findings: list[Finding], networks: ensemble.Networks | None, batch_size: int) -> list[Finding]:
    """Return the findings, those that are segmented with their smoothed saliency."""
    segmented = [finding for finding in findings if finding.segmented]
    if networks is None or not segmented:
        return findings
    sigma = SALIENCY_MM / networks.spacing_mm
    maps: dict[str, np.ndarray] = {}
    for start in range(0, len(segmented), batch_size):
        batch = segmented[start : start + batch_size]
        found = attribution.saliency(networks, _batch([finding.hu for finding in batch], batch_size))
        maps |= {finding.nodule_id: saliency for finding, saliency in zip(batch, found, strict=False)}
    smoothed = {nodule_id: ndimage.gaussian_filter(saliency, sigma) for nodule_id, saliency in maps.items()}
    return [replace(finding, saliency=smoothed.get(finding.nodule_id)) for finding in findings]


def _batch(patches: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Stack patches, repeating the last one, so that one compiled program serves batches of all sizes."""
    return np.stack([patches[min(i, len(patches) - 1)] for i in range(batch_size)])


def batch_size_of(wanted: int) -> int:
    """Return the batch size raised to a multiple of the number of local devices."""
    devices = jax.local_device_count()
    return -(-wanted // devices) * devices
