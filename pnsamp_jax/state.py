"""The state of training, in one place: what a step reads and returns, and what a checkpoint holds."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from pnsamp_jax.errors import UserError

# Adam (Kingma & Ba, ICLR 2015) up to the learning rate, which a step is given.
ADAM = optax.scale_by_adam()

SCHEDULES = ("constant", "cosine", "one_cycle")


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step. Random keys are derived from the seed and `step`, never stored."""

    step: jax.Array  # () int32: steps taken
    params: dict
    batch_stats: dict  # running statistics of BatchNorm
    opt_state: optax.OptState


def learning_rates(schedule: str, peak: float, num_steps: int) -> np.ndarray:
    """The learning rate of each step, (num_steps,) float32: constant (the paper), or decaying along a cosine.

    Raises:
      UserError: there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"config.schedule: '{schedule}' is none of {', '.join(SCHEDULES)}")
    rate = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, num_steps),
        "one_cycle": lambda: optax.cosine_onecycle_schedule(num_steps, peak),  # a warm-up first
    }[schedule]()
    return np.asarray(jax.vmap(rate)(jnp.arange(num_steps)), np.float32) * np.ones(num_steps, np.float32)


def create_state(model: nn.Module, patch_size: int, channels: int, seed: int) -> TrainState:
    """Initial state: parameters drawn from the seed."""
    # The "rbg" generator compiles in a quarter of the default one's time.
    variables = _draw(model, patch_size, channels, jax.random.key(seed, impl="rbg"))
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], ADAM.init(params))


@partial(jax.jit, static_argnums=(0, 1, 2))  # compiled once for all folds
def _draw(model: nn.Module, patch_size: int, channels: int, key: jax.Array) -> dict:
    return model.init(key, jnp.zeros((1, patch_size, patch_size, patch_size, channels)))


def state_shapes(model: nn.Module, patch_size: int, channels: int) -> TrainState:
    """Shapes and types of a state, for the first device here wherever it was trained: into it a checkpoint is read."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(partial(create_state, model, patch_size, channels, seed=0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
