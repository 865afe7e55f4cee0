"""The state of a training: everything that a step reads and returns, and that a checkpoint holds."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from pnsamp_jax.errors import UserError

# Adam (Kingma & Ba, ICLR 2015) without its learning rate, which is an argument of the training step.
ADAM = optax.scale_by_adam()

SCHEDULES = ("constant", "cosine", "one_cycle")


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step. Random keys are derived from the seed and `step`, never stored.

    Attributes:
      step: () int32, number of steps taken.
      params: parameters of the model.
      batch_stats: running statistics of BatchNorm.
      opt_state: of the optimizer.
      average: exponential moving average of `params` and `batch_stats` under these names; None for none.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    average: dict | None = None

    @property
    def variables(self) -> dict:
        """Return what `model.apply` takes to predict: the moving average if there is one."""
        if self.average is not None:
            return self.average
        return {"params": self.params, "batch_stats": self.batch_stats}


def learning_rates(schedule: str, peak: float, num_steps: int) -> np.ndarray:
    """Return the learning rate of each step, (num_steps,) float32.

    Args:
      schedule: "constant" (the paper), "cosine" (decay to zero) or "one_cycle" (warm-up, then decay).
      peak: the highest learning rate.
      num_steps: of the whole training.

    Raises:
      UserError: the schedule is unknown.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"config.schedule: '{schedule}' is none of {', '.join(SCHEDULES)}")
    rate = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, num_steps),
        "one_cycle": lambda: optax.cosine_onecycle_schedule(num_steps, peak),
    }[schedule]()
    return np.asarray(jax.vmap(rate)(jnp.arange(num_steps)), np.float32) * np.ones(num_steps, np.float32)


def create_state(model: nn.Module, patch_size: int, channels: int, seed: int, average: bool = False) -> TrainState:
    """Return the initial state, with parameters drawn from a seed.

    Args:
      model: from `models.create`.
      patch_size: voxels on a side of its input.
      channels: of its input.
      seed: of the parameters.
      average: whether the state holds a moving average of the variables, which begins at their first values.
    """
    # The "rbg" generator compiles in a quarter of the default one's time.
    variables = _init(model, patch_size, channels, jax.random.key(seed, impl="rbg"))
    params, batch_stats = variables["params"], variables["batch_stats"]
    # The step consumes its state, so the average needs arrays of its own.
    copy = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if average else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, ADAM.init(params), copy)


@partial(jax.jit, static_argnums=(0, 1, 2))  # compiled once for all folds
def _init(model: nn.Module, patch_size: int, channels: int, key: jax.Array) -> dict:
    return dict(model.init(key, jnp.zeros((1, patch_size, patch_size, patch_size, channels))))


def state_shapes(model: nn.Module, patch_size: int, channels: int, average: bool = False) -> TrainState:
    """Return the shapes and types of a state on the first local device, as the target of restoring a checkpoint."""
    first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(partial(create_state, model, patch_size, channels, seed=0, average=average))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first_device), shapes)
