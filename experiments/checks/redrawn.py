"""Do contributions follow the evidence? Phantom nodules are drawn twice, with and without what shows an attribute.

The phantom (`data.phantom`) draws a nodule as it is rated: spicules, a cavity, calcium, the softness of its edge. So
the same nodule, in the same lung, with the same noise, can be drawn with another rating of one attribute. If
contributions are right, the contribution of this attribute changes as the malignancy does.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pnsamp_jax import metrics
from pnsamp_jax.data import lidc, patches, schema
from pnsamp_jax.data.phantom_voxels import named_generator, simulate
from pnsamp_jax.inference import attribution, ensemble

# Of each attribute that the phantom paints: the class with the evidence, and the one without it.
EVIDENCE = {
    "subtlety": (5, 1),
    "internal_structure": (4, 1),  # air, or soft tissue
    "calcification": (3, 6),  # solid, or absent
    "margin": (1, 5),
    "spiculation": (5, 1),
    "texture": (1, 5),
}
SIZES_MM = (8.0, 20.0)  # large enough to show the evidence, small enough for the patch


class Redrawn(NamedTuple):
    """What changes with the evidence, for P nodules and the A attributes of `EVIDENCE`: with it minus without it.

    Attributes:
      malignancy: (P, A) expected malignancy.
      contributions: (P, A, 8) of all attributes.
      rating: (P, A) expected rating of the attribute itself, or the probability of the class with the evidence if it
        is nominal.
      patients: (P,).
    """

    malignancy: np.ndarray
    contributions: np.ndarray
    rating: np.ndarray
    patients: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """Return the changes of the contribution of the attribute that was redrawn, (P, A)."""
        indices = np.array([schema.RATING_NAMES.index(name) for name in EVIDENCE])
        return np.take_along_axis(self.contributions, indices[None, :, None], axis=2)[..., 0]


def drawn(item: lidc.LidcNodule, attribute: str, k: int, seed: int) -> patches.MarkedNodule:
    """Return the simulated CT of a nodule as if all its readers had given class k to an attribute."""
    ratings = item.nodule.ratings.copy()
    ratings[:, schema.RATING_NAMES.index(attribute)] = k
    changed = replace(item, nodule=replace(item.nodule, ratings=ratings))
    outline = (changed, *changed.masks())
    return simulate(outline, [outline], seed)


def nodules(count: int, seed: int) -> list[lidc.LidcNodule]:
    """Return at most `count` nodules of different patients, of `SIZES_MM` and outlined by three readers or more."""
    found: list[lidc.LidcNodule] = []
    patients = sorted({scan.patient_id for scan in lidc.scans_by_series().values()})
    for index in named_generator(seed, "redrawn").permutation(len(patients)):
        if len(found) == count:
            break
        outlined = [item for item in lidc.patient_nodules(patients[index]) if len(item.annotations) >= 3]
        found += [item for item in outlined if SIZES_MM[0] <= item.row()["diameter_mm"] <= SIZES_MM[1]][:1]
    return found


def ask(networks: ensemble.Networks, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities (N, 9, 6) and the contributions of the attributes (N, 8) of patches."""
    predictions = ensemble.predict(networks, images, flips=False)
    parts = attribution.mean_contributions(networks, predictions)[:, : schema.MALIGNANCY]
    return predictions.mean_probabilities, parts


def check(networks: ensemble.Networks, count: int, seed: int) -> Redrawn:
    """Draw nodules with and without the evidence of each attribute, and ask all networks together.

    Args:
      networks: tested.
      count: of nodules.
      seed: of their voxels.
    """
    source = nodules(count, seed)
    grid = (networks.patch_size, networks.spacing_mm)
    malignancy, contributions, ratings = [], [], []
    for item in tqdm(source, desc="Redrawn", unit="nodule", leave=False):
        images = []
        for attribute, classes in EVIDENCE.items():
            for k in classes:
                marked = drawn(item, attribute, k, seed)
                images.append(patches.sample(marked.ct, patches.consensus_centroid(marked.readers), *grid))
        p, parts = ask(networks, np.rint(np.stack(images)).astype(np.int16))
        expected = metrics.expected(p[:, schema.MALIGNANCY])
        malignancy.append(expected[::2] - expected[1::2])
        contributions.append(parts[::2] - parts[1::2])
        shown = []
        for i, (attribute, (present, _)) in enumerate(EVIDENCE.items()):
            index = schema.RATING_NAMES.index(attribute)
            both = p[2 * i : 2 * i + 2, index]
            values = both[:, present - 1] if schema.NOMINAL[index] else metrics.expected(both)
            shown.append(values[0] - values[1])
        ratings.append(shown)
    patients = np.array([item.scan.patient_id for item in source])
    return Redrawn(np.array(malignancy), np.array(contributions), np.array(ratings), patients)
