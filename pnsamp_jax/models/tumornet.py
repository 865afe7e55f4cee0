"""TumorNet: a 2D network that reads a nodule's projections and regresses its malignancy rating.

Hussein et al., "TumorNet: lung nodule characterization using multi-view convolutional neural network with Gaussian
process", ISBI 2017.

From the paper: the median-intensity projections along the three axes as the three channels of one image; a network
like AlexNet, trained to predict the mean rating; and a Gaussian process on its features
(`experiments/baselines/tumornet.py`). Chosen here: the size of the network (see `planes`), training from scratch, the
number of features, and the form of the regression (below). The scaled and noisy copies with which the paper augments
its images are replaced by the augmentation that all systems share.

**The regression as a classification.** For a predicted mean m, the logit of class k is -(k - m)^2 / 2. Then
d log p_k / dm = (k - m) - sum_j p_j (j - m) = k - E[k], with E[k] = sum_j p_j j. For targets t that sum to 1, the
cross-entropy L = -sum_k t_k log p_k therefore has the gradient dL/dm = E[k] - sum_k t_k k, which is the expected class
minus the mean of the target. With `config.loss.labels = "distribution"`, that mean is the mean rating of the readers.
So minimising the cross-entropy that all systems share regresses the mean rating: at the minimum, E[k] equals it.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import stack_logits
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.planes import FEATURES, PlaneCNN

Array = jax.Array

CLASSES = np.arange(1.0, schema.RATINGS[schema.MALIGNANCY].classes + 1, dtype=np.float32)
MIDDLE = 3.0  # initial value of the predicted mean


def project(volume: Array) -> Array:
    """Project a volume along each of its axes by the median: (B, S, S, S) -> (B, S, S, 3), one channel per axis."""
    return jnp.stack([jnp.median(volume, axis=axis) for axis in (1, 2, 3)], axis=-1)


def class_logits(mean: Array) -> Array:
    """Turn predicted mean ratings (B,) into the logits (B, 5) of a Gaussian of unit variance around them."""
    return -((mean[:, None] - CLASSES) ** 2) / 2


class TumorNet(nn.Module):
    """TumorNet. It predicts the malignancy rating.

    Attributes:
      features: channels of the five convolutions.
      hidden: width of the dense layer before the predicted mean.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 8  # three poolings halve the patch

    features: tuple[int, ...] = FEATURES
    hidden: int = 64
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, S, S, S, windows) in 0..1 to `Outputs`; only the first window is used."""
        x = PlaneCNN(self.features, self.axis_name, self.dtype, name="views")(project(x[..., 0]), train=train)
        features = nn.relu(nn.Dense(self.hidden, name="features")(x))
        mean = nn.Dense(1, bias_init=nn.initializers.constant(MIDDLE), name="mean")(features)[:, 0]
        return Outputs(ratings=stack_logits({"malignancy": class_logits(mean)}), features=features)
