"""Fit the rating heads of a trained network again, to the features that it has once its training is over.

While all of a network is trained, the heads follow features that move, and that are normalised over a batch of a few
nodules. So they learn less than the features hold (experiments/RESULTS.md, "Heads that are fitted again"). Afterwards
the features of the training nodules can be computed a few times, with the augmentation of the training, and new heads
fitted to them within a minute. Everything else of the network, its mask and its features, stays as it is.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

from pnsamp_jax import input_pipeline, losses, steps, testing, transforms
from pnsamp_jax.data import schema
from pnsamp_jax.errors import UserError
from pnsamp_jax.inference import ensemble
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.pn_samp import RatingHeads
from pnsamp_jax.models.pn_samp_plus import AdditiveHeads, PNSAMPPlus
from pnsamp_jax.run import Run
from pnsamp_jax.task import Task
from pnsamp_jax.workdir.heads import save_heads, with_heads

Array = jax.Array

STEPS, BATCH_SIZE = 2000, 64
PEAK_RATE, WEIGHT_DECAY, DROPOUT = 2e-3, 0.1, 0.5


def refit_fold(run: Run, fold: int) -> None:
    """Fit the heads of a trained fold again, and write them, unless that was done at its last step on as many copies.

    Raises:
      UserError: see `testing.load_trained`.
    """
    networks, step = testing.load_trained(run, fold)
    [network] = networks.members.values()
    folder, copies = run.fold_folder(fold), run.settings.refit_copies
    try:
        with_heads(folder, step, copies, network.variables)
    except UserError:  # none, or of another step, of fewer copies, or damaged
        (folder / "calibration.json").unlink(missing_ok=True)  # which was fitted to other heads
        features, held = training_features(run, fold, networks)
        counts = np.asarray(run.records[schema.RATING_COUNTS])[run.indices(fold)["train"]]
        task = run.settings.task
        targets = np.asarray(transforms.rating_targets(jnp.asarray(counts), task.labels, task.nominal))
        heads = fit_heads(heads_of(task.model), features, held, targets, task.weights, run.seed(fold), STEPS)
        save_heads(folder, step, copies, heads)


def heads_of(model: nn.Module) -> nn.Module:
    """Return the heads of a PN-SAMP network, with the dropout that they are fitted with."""
    return AdditiveHeads(DROPOUT) if isinstance(model, PNSAMPPlus) else RatingHeads(DROPOUT)


def training_features(run: Run, fold: int, networks: ensemble.Networks) -> tuple[np.ndarray, np.ndarray]:
    """Compute the features of augmented training nodules, `settings.refit_copies` times each.

    Nodules are not faded. Some are enlarged; of these the ratings do not hold, and they do not count.

    Args:
      run: holds the nodules.
      fold: its number.
      networks: of the fold alone.

    Returns:
      (copies, n, F) float32, and (copies, n) bool: whether the ratings hold.
    """
    settings, nodules = run.settings, run.indices(fold)["train"]
    [network] = networks.members.values()
    ask = _compile_features(settings.task._replace(appearance=settings.task.appearance._replace(fade=0.0)))
    copies: list[tuple[np.ndarray, np.ndarray]] = []
    total = settings.refit_copies * len(nodules)
    with tqdm(total=total, desc=f"Fold {fold}: features for its heads", unit="patch", mininterval=1) as bar:
        for copy in range(settings.refit_copies):
            found: list[tuple[np.ndarray, np.ndarray]] = []
            for batch, count in input_pipeline.eval_batches(run.records, nodules, settings.batch_size):
                positions = sum(len(part[1]) for part in found) + np.arange(len(batch[schema.IMAGE]))
                keys = steps.sample_keys(jnp.uint32(run.seed(fold)), jnp.int32(copy), jnp.asarray(positions))
                features, held = ask(network.variables, batch[schema.IMAGE], batch[schema.MASK], keys)
                found.append((np.asarray(features)[:count], np.asarray(held)[:count]))
                bar.update(count)
            copies.append((np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])))
    return np.stack([features for features, _ in copies]), np.stack([held for _, held in copies])


def _compile_features(task: Task) -> Callable[[dict, Array, Array, Array], tuple[Array, Array]]:
    """Compile (variables, images, masks of (B, S, S, S), keys of (B,)) -> features (B, F) and held ratings (B,)."""

    def features(variables: dict, images: Array, masks: Array, keys: Array) -> tuple[Array, Array]:
        images, _, held = task.augment(keys, images, masks)
        found = steps.apply_model(task.model, variables, transforms.window(images, task.windows)).features
        assert found is not None, "the model has no features"
        return found, held

    return jax.jit(features)


def fit_heads(
    heads: nn.Module,
    features: np.ndarray,
    held: np.ndarray,
    targets: np.ndarray,
    weights: losses.Weights,
    seed: int,
    num_steps: int,
) -> dict:
    """Fit heads from random parameters by AdamW (Loshchilov & Hutter, ICLR 2019) on a one-cycle schedule.

    Args:
      heads: of `heads_of`.
      features: (copies, n, F) of the nodules.
      held: (copies, n) bool, whether a copy's ratings hold.
      targets: (n, 9, 6) distributions over the classes; all zero where a rating is missing.
      weights: the trade-off of the attributes and the malignancy.
      seed: of the parameters, the order and the dropout.
      num_steps: of `BATCH_SIZE` copies each.

    Returns:
      The parameters of the heads.
    """
    first, *keys = jax.random.split(jax.random.key(seed), 1 + num_steps)
    params = heads.init(first, jnp.zeros((1, features.shape[-1])), train=False)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(num_steps, PEAK_RATE), weight_decay=WEIGHT_DECAY)

    def loss_of(params: dict, key: Array, x: Array, y: Array) -> Array:
        logits = heads.apply(params, x, train=True, rngs={"dropout": key})
        assert isinstance(logits, Array)
        loss, _ = losses.total(Outputs(ratings=logits), jnp.zeros(()), y, weights)
        return loss.mean()

    def take(state: tuple, key: Array) -> tuple[tuple, None]:
        params, moments = state
        chosen, dropped = jax.random.split(key)
        copy = jax.random.randint(chosen, (BATCH_SIZE,), 0, features.shape[0])
        nodule = jax.random.randint(jax.random.fold_in(chosen, 1), (BATCH_SIZE,), 0, features.shape[1])
        y = all_targets[nodule] * all_held[copy, nodule][:, None, None]
        gradient = jax.grad(loss_of)(params, dropped, all_features[copy, nodule], y)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    all_features, all_held, all_targets = jnp.asarray(features), jnp.asarray(held), jnp.asarray(targets)
    (params, _), _ = jax.jit(partial(jax.lax.scan, take))((params, optimizer.init(params)), jnp.stack(keys))
    return dict(params["params"])
