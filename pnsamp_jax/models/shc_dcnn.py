"""The appearance part of SHC-DCNN: a 2D network that reads three orthogonal planes through a nodule.

Buty et al., "Characterization of lung nodule malignancy using hybrid shape and appearance features", MICCAI 2016.

From the paper: the three orthogonal planes through the nodule's centre, one network for all of them, and a random
forest on its features together with spherical-harmonic coefficients of the nodule's surface
(`experiments/baselines/shc_dcnn.py`). Chosen here: the network (see `planes`) is trained from scratch on all nine
ratings, whereas the paper's is pre-trained on ImageNet; and, since a patch has an even number of slices, a central
plane is the mean of the two middle slices.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import Heads
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.planes import FEATURES, PlaneCNN

Array = jax.Array


def central_planes(x: Array) -> Array:
    """Average the two central slices along each axis: (B, S, S, S, C), S even -> (B, 3, S, S, C)."""
    middle = x.shape[1] // 2
    pairs = [lax.slice_in_dim(x, middle - 1, middle + 1, axis=axis) for axis in (1, 2, 3)]
    return jnp.stack([pair.mean(axis=axis) for axis, pair in enumerate(pairs, start=1)], axis=1)


class SHCDCNN(nn.Module):
    """The network of SHC-DCNN. It predicts all nine ratings.

    Attributes:
      features: channels of the five convolutions.
      hidden: width of the dense layer on the features of all planes.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 8  # three poolings halve the patch

    features: tuple[int, ...] = FEATURES
    hidden: int = 128
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, S, S, S, windows) in 0..1, with S even, to `Outputs`."""
        planes = central_planes(x)
        batch, views = planes.shape[:2]
        network = PlaneCNN(self.features, self.axis_name, self.dtype, name="planes")
        all_planes = network(planes.reshape(batch * views, *planes.shape[2:]), train=train).reshape(batch, -1)
        features = nn.relu(nn.Dense(self.hidden, name="features")(all_planes))
        return Outputs(ratings=Heads(schema.RATING_NAMES, name="heads")(features), features=features)
