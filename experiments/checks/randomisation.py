"""Do explanations depend on what the network has learnt? Its layers are randomised one after the other.

Cascading randomisation (Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018): from the output towards the
input, ever more layers get random weights. An explanation that stays the same explains the image, not the network. The
running statistics of the batch normalisation are kept.
"""

from collections.abc import Iterator

import jax
import numpy as np
from scipy import ndimage, stats
from tqdm import tqdm

from pnsamp_jax import transforms
from pnsamp_jax.data import schema
from pnsamp_jax.inference import attribution, ensemble
from pnsamp_jax.inference.asking import SALIENCY_MM

# From the output to the input; a network has those of its architecture.
LAYERS = (
    *("malignancy", "attributes", "fusion", "mask_3", "mask_2", "mask_1", "mask_0", "mask", "up_full"),
    *("up_0", "up_1", "up_2", "up_3", "down_3", "down_2", "down_1", "down_0"),
)
MEASURES = ("saliency", "saliency, without signs", "contributions")


def layer_of(path: str) -> str:
    """Return which of the `LAYERS` a parameter belongs to: "heads/fusion/kernel" -> "fusion"."""
    block, name = path.split("/")[:2]
    if block != "heads":
        return block
    return "malignancy" if name.startswith("malignancy") else "fusion" if name == "fusion" else "attributes"


def cascade(networks: ensemble.Networks, seed: int) -> Iterator[tuple[str, ensemble.Networks]]:
    """Yield the last layer that is randomised, and a single network with it and all layers behind it randomised."""
    [network] = networks.members.values()
    params = jax.device_get(network.variables["params"])
    empty = np.zeros((1, *(networks.patch_size,) * 3, len(networks.windows)), np.float32)
    model = networks.model.clone(axis_name=None)
    fresh = jax.device_get(jax.jit(model.init)(jax.random.key(seed), empty)["params"])

    def layer(path: tuple) -> str:
        return layer_of("/".join(key.key for key in path))

    present = {layer(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    done: set[str] = set()
    for last in (each for each in LAYERS if each in present):
        done.add(last)
        mixed = jax.tree_util.tree_map_with_path(
            lambda path, old, new: new if layer(path) in done else old, params, fresh
        )
        variables = {**network.variables, "params": mixed}
        yield last, _with_variables(networks, variables)


def _with_variables(networks: ensemble.Networks, variables: dict) -> ensemble.Networks:
    """Return a single network with other variables.

    They are moved to the host: programs are compiled for where their arguments lie, and would be compiled anew for
    every mixture of arrays that were restored and made.
    """
    [(name, network)] = networks.members.items()
    return networks._replace(members={name: network._replace(variables=jax.device_get(variables))})


def explain(networks: ensemble.Networks, images: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """Explain nodules by a single network, each explanation as (N, values).

    Args:
      networks: of one member.
      images: (N, S, S, S) HU, S the patch size.
      batch_size: nodules that are asked about together.

    Returns:
      By the names of `MEASURES`: the saliency as the report shows it, and the contributions of the eight attributes
      compared with the mean nodule of these images.
    """
    maps, features = [], []
    for batch in np.array_split(images, -(-len(images) // batch_size)):
        padded = np.resize(batch, (batch_size, *batch.shape[1:]))
        maps.append(attribution.saliency(networks, padded.astype(np.float32))[: len(batch)])
        predictions = ensemble.predict(networks, padded, flips=False)
        assert predictions.features is not None
        features.append(predictions.features[0, 0, : len(batch)])
    sigma = SALIENCY_MM / networks.spacing_mm
    smooth = np.stack([ndimage.gaussian_filter(one, sigma).ravel() for one in np.concatenate(maps)])
    every = np.concatenate(features)
    [(name, network)] = networks.members.items()
    centred = networks._replace(members={name: network._replace(mean_features=every.mean(axis=0))})
    predictions = ensemble.Predictions(None, None, every[None, None])
    parts = attribution.mean_contributions(centred, predictions)[:, : schema.MALIGNANCY]
    return dict(zip(MEASURES, (smooth, np.abs(smooth), parts), strict=True))


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row of two arrays: (N, V), (N, V) -> (N,), 0 where a row is constant."""
    found = []
    for one, other in zip(first, second, strict=True):
        constant = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(0.0 if constant else float(stats.spearmanr(one, other).statistic))
    return np.array(found)


def check(
    networks: ensemble.Networks, stored: np.ndarray, batch_size: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return how similar explanations stay, by measure and last layer that was randomised: (N,) each.

    Args:
      networks: of one member.
      stored: (N, T, T, T) HU, T at least the patch size.
      batch_size: see `explain`.
      seed: of the random weights.
    """
    images = np.stack([np.asarray(transforms.crop(image, networks.patch_size)) for image in stored])
    [network] = networks.members.values()
    trained = explain(_with_variables(networks, network.variables), images, batch_size)
    found: dict[str, dict[str, np.ndarray]] = {measure: {} for measure in MEASURES}
    for layer, randomised in tqdm(cascade(networks, seed), desc="Randomised", unit="layer", leave=False):
        explained = explain(randomised, images, batch_size)
        for measure in MEASURES:
            found[measure][layer] = similarity(trained[measure], explained[measure])
    return found
