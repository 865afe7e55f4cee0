"""Are the voxels that the saliency names the ones that matter? They are deleted, or inserted, the strongest first.

Deletion and insertion (Petsiuk et al., "RISE", BMVC 2018): if a map is right, the expected malignancy falls faster
when the voxels that it says raise it most are replaced by lung, and rises faster when these are put into a patch of
lung, than with the voxels in another order. The orders to beat: smooth noise, the edges of the CT, and the predicted
mask.
"""

import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from pnsamp_jax import metrics, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.inference import attribution, ensemble
from pnsamp_jax.inference.asking import SALIENCY_MM

# A nodule fills about one voxel in a hundred, so shares of the patch are spaced geometrically.
SHARES = np.geomspace(0.001, 0.5, 10)
ORDERS = ("saliency", "random", "edges", "mask")
CURVES = ("deletion", "insertion")


def order_maps(networks: ensemble.Networks, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return for each of the `ORDERS` a map of each image, (N, S, S, S): voxels with the largest values come first."""
    sigma = SALIENCY_MM / networks.spacing_mm
    rng = np.random.default_rng(seed)
    mask = ensemble.predict(networks, images, flips=False).mask
    assert mask is not None

    def smooth(maps: np.ndarray) -> np.ndarray:
        return np.stack([ndimage.gaussian_filter(one, sigma) for one in maps])

    windowed = np.asarray(transforms.window(jnp.asarray(images), networks.windows))[..., 0]
    return {
        "saliency": smooth(attribution.saliency(networks, images.astype(np.float32))),
        "random": smooth(rng.normal(size=images.shape)),
        "edges": np.stack([ndimage.gaussian_gradient_magnitude(one, 1.0) for one in windowed]),
        "mask": smooth(mask),
    }


def changed_patches(image: np.ndarray, order_map: np.ndarray) -> np.ndarray:
    """Delete from a patch, and insert into lung, ever more voxels.

    Args:
      image: (S, S, S) HU.
      order_map: (S, S, S), the voxels with the largest values are changed first.

    Returns:
      (2, len(SHARES), S, S, S) HU: deleted and inserted.
    """
    rank = np.empty(image.size, int)
    rank[np.argsort(-order_map, axis=None, kind="stable")] = np.arange(image.size)
    chosen = rank.reshape(image.shape) < (SHARES * image.size)[:, None, None, None]
    lung = np.int16(attribution.LUNG_HU)
    return np.stack([np.where(chosen, lung, image), np.where(chosen, image, lung)])


def expected_malignancy(networks: ensemble.Networks, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the expected malignancy of patches, asked without flips: (N, S, S, S) HU -> (N,)."""
    found = []
    for batch in np.array_split(images, -(-len(images) // batch_size)):
        padded = np.resize(batch, (batch_size, *batch.shape[1:]))
        p = ensemble.predict(networks, padded, flips=False).mean_probabilities[: len(batch), schema.MALIGNANCY]
        found.append(metrics.expected(p))
    return np.concatenate(found)


def check(networks: ensemble.Networks, stored: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Delete and insert the voxels of nodules in all `ORDERS`.

    Args:
      networks: of one member.
      stored: (N, T, T, T) int16 HU, T at least the patch size.
      batch_size: patches that are asked about together.
      seed: of the noise.

    Returns:
      (N, orders, 2, len(SHARES)) changes of the expected malignancy: by how much it has fallen from that of the patch
      after a deletion, or risen from that of lung after an insertion.
    """
    size = networks.patch_size
    images = np.stack([np.asarray(transforms.crop(image, size)) for image in stored]).astype(np.int16)
    maps: dict[str, list[np.ndarray]] = {name: [] for name in ORDERS}
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.resize(batch, (batch_size, *batch.shape[1:]))
        for name, found in order_maps(networks, padded, seed + start).items():
            maps[name] += list(found[: len(batch)])
    lung = np.full_like(images[:1], attribution.LUNG_HU)
    whole = expected_malignancy(networks, np.concatenate([images, lung]), batch_size)
    changes = []
    for index, image in enumerate(tqdm(images, desc="Deleted", unit="nodule", leave=False)):
        patches = np.stack([changed_patches(image, maps[name][index]) for name in ORDERS])
        values = expected_malignancy(networks, patches.reshape(-1, size, size, size), batch_size)
        deleted, inserted = np.moveaxis(values.reshape(patches.shape[:3]), 1, 0)
        changes.append(np.stack([whole[index] - deleted, inserted - whole[-1]], axis=1))
    return np.array(changes)
