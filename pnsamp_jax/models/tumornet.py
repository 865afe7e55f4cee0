"""TumorNet: a 2D network that reads a nodule's projections and regresses its malignancy rating.

Hussein et al., "TumorNet: lung nodule characterization using multi-view convolutional neural network with Gaussian
process", ISBI 2017.

From the paper: the median-intensity projections along the three axes as the three channels of one image, a network of
AlexNet's kind, and the mean rating as what it is trained to give; its features go on to a Gaussian process
(`experiments/tumornet.py`). Chosen here: the network's size (see `planes`), weights from scratch, the features' width,
and how the regression is put (below). The paper's scaled and noisy copies of the images are left to the augmentation
that all systems share.

**The regression as a classification.** For a predicted mean m the logit of class k is -(k - m)^2 / 2. Then
d log p_k / dm = (k - m) - sum_j p_j (j - m) = k - E[k], with E[k] = sum_j p_j j. Targets t that sum to 1 therefore
give the cross-entropy L = -sum_k t_k log p_k the gradient dL/dm = E[k] - sum_k t_k k: the expected class less the
target's mean. With `config.loss.labels = "distribution"` that mean is the mean rating over the readers. So the trainer and
the loss of the classification regress a mean rating: at the minimum E[k] equals it.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import rating_logits
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.planes import FEATURES, PlaneCNN

Array = jax.Array

CLASSES = np.arange(1.0, schema.RATINGS[schema.MALIGNANCY].classes + 1, dtype=np.float32)
MIDDLE = 3.0  # where the predicted mean starts


def project(volume: Array) -> Array:
    """(B, S, S, S) -> (B, S, S, 3): the medians along each of the three axes, as channels."""
    return jnp.stack([jnp.median(volume, axis=axis) for axis in (1, 2, 3)], axis=-1)


def class_logits(mean: Array) -> Array:
    """(B,) predicted mean rating -> (B, 5) logits, by a unit Gaussian about it."""
    return -((CLASSES - mean[:, None]) ** 2) / 2


class TumorNet(nn.Module):
    """TumorNet; it gives the malignancy rating and features.

    Attributes:
      features: channels of the five convolutions.
      hidden: width of the dense layer before the predicted mean.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 8  # three poolings halve it

    features: tuple[int, ...] = FEATURES
    hidden: int = 64
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Maps windowed patches (B, S, S, S, windows) in 0..1, of which the first window is read, to `Outputs`."""
        x = PlaneCNN(train, self.features, self.axis_name, self.dtype, name="views")(project(x[..., 0]))
        features = nn.relu(nn.Dense(self.hidden, name="features")(x))
        mean = nn.Dense(1, bias_init=nn.initializers.constant(MIDDLE), name="mean")(features)[:, 0]
        return Outputs(ratings=rating_logits({"malignancy": class_logits(mean)}), features=features)
