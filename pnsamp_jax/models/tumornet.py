"""TumorNet: a 2D network that reads a nodule's projections and regresses its malignancy rating.

Hussein et al., "TumorNet: lung nodule characterization using multi-view convolutional neural network with Gaussian
process", ISBI 2017.

From the paper: the median-intensity projections of the nodule along the three axes as the three channels of one image;
a network like AlexNet, trained to predict the mean rating; and a Gaussian process on its features
(`experiments/baselines/tumornet.py`). Chosen here: the size of the network (see `planes`), training from scratch, the
number of features, and the form of the regression (below). The paper adds scaled, rotated and noisy copies of its
images; here the images vary as the patches of all systems do (`config.augment`), without a change of scale and without
noise.

Also chosen is how deep the projection is. The median shows what fills more than half of its depth: through the whole
patch of 38 mm, nothing below 19 mm. It therefore runs through the middle quarter of the patch, 9.6 mm, which shows
nodules from about 5 mm on. The images stay as wide as the patch. (A projection through each nodule's own depth would
need its outline, which no system receives here unless it is marked.)

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
from jax import lax

from pnsamp_jax.data import schema
from pnsamp_jax.models.heads import stack_logits
from pnsamp_jax.models.outputs import Outputs
from pnsamp_jax.models.planes import FEATURES, PlaneCNN

Array = jax.Array

CLASSES = np.arange(1.0, schema.RATINGS[schema.MALIGNANCY].classes + 1, dtype=np.float32)
MIDDLE = 3.0  # initial value of the predicted mean


def project(volume: Array, depth: float) -> Array:
    """Project the middle of a volume along each of its axes by the median.

    Args:
      volume: (B, S, S, S).
      depth: share of S through which the median runs, about the centre.

    Returns:
      (B, S, S, 3), one channel per axis.
    """
    size = volume.shape[1]
    margin = round(size * (1 - depth) / 2)
    middles = [lax.slice_in_dim(volume, margin, size - margin, axis=axis) for axis in (1, 2, 3)]
    return jnp.stack([jnp.median(middle, axis=axis) for axis, middle in enumerate(middles, start=1)], axis=-1)


def class_logits(mean: Array) -> Array:
    """Turn predicted mean ratings (B,) into the logits (B, 5) of a Gaussian of unit variance around them."""
    return -((mean[:, None] - CLASSES) ** 2) / 2


class TumorNet(nn.Module):
    """TumorNet. It predicts the malignancy rating.

    Attributes:
      depth: share of the patch through which the median runs.
      features: channels of the five convolutions.
      hidden: width of the dense layer before the predicted mean.
      axis_name: pmap axis over which BatchNorm averages its statistics, if any.
      dtype: of the activations; parameters, statistics and outputs are float32.
    """

    PATCH_MULTIPLE: ClassVar[int] = 8  # three poolings halve the patch

    depth: float = 0.25
    features: tuple[int, ...] = FEATURES
    hidden: int = 64
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Outputs:
        """Map windowed patches (B, S, S, S, windows) in 0..1 to `Outputs`; only the first window is used."""
        views = project(x[..., 0], self.depth)
        x = PlaneCNN(self.features, self.axis_name, self.dtype, name="views")(views, train=train)
        features = nn.relu(nn.Dense(self.hidden, name="features")(x))
        mean = nn.Dense(1, bias_init=nn.initializers.constant(MIDDLE), name="mean")(features)[:, 0]
        return Outputs(ratings=stack_logits({"malignancy": class_logits(mean)}), features=features)
