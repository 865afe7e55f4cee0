"""The static settings of the training and evaluation steps, from which they are compiled."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pnsamp_jax import losses, models, transforms
from pnsamp_jax.appearance import Appearance, change_appearance

Windows = tuple[tuple[float, float], ...]

AXIS = "batch"  # over which the devices share a batch
LOOK = 1000  # of the keys of the appearance; small numbers give those that `transforms.augment` splits off


class Task(NamedTuple):
    """The static settings of the training and evaluation steps.

    Attributes:
      model: from `models.create`, with `axis_name=AXIS`.
      patch_size: voxels on a side of the model's input.
      windows: (width, centre) in HU of each input channel.
      augmentation: of the training patches.
      labels: which targets the ratings are trained on, see `transforms.rating_targets`.
      weights: of the terms of the loss.
      nominal: how the nominal ratings become one class, see `cohort.NOMINAL_RULES`.
      appearance: how far the look of the training patches may change.
      indeterminate: whether malignancy is learnt from nodules whose rating rounds to 3.
      average_decay: of the exponential moving average of the weights; 0 for none.
    """

    model: nn.Module
    patch_size: int
    windows: Windows
    augmentation: transforms.Augmentation
    labels: str
    weights: losses.Weights
    nominal: str
    appearance: Appearance = Appearance()
    indeterminate: bool = True
    average_decay: float = 0.0

    @property
    def shape(self) -> tuple[nn.Module, int, int, bool]:
        """Return what the shapes of the state follow from, the arguments of `state.state_shapes`."""
        return self.model, self.patch_size, len(self.windows), self.average_decay > 0

    def targets(self, rating_counts: jax.Array) -> jax.Array:
        """Return the targets of the ratings, (B, 9, 6), see `transforms.rating_targets`."""
        targets = transforms.rating_targets(rating_counts, self.labels, self.nominal)
        return targets if self.indeterminate else transforms.without_indeterminate(targets, rating_counts)

    def augment(self, keys: jax.Array, images: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Augment stored patches.

        Args:
          keys: (B,) random keys.
          images: (B, ...) stored HU.
          masks: (B, ...) of the readers.

        Returns:
          Images and masks (B, S, S, S) float32, and (B,) bool: whether the ratings of a nodule still hold.
        """
        move = partial(transforms.augment, size=self.patch_size, options=self.augmentation)
        images, masks = jax.vmap(move)(keys, images, masks)
        if not self.appearance.changes:
            return images, masks, jnp.ones(len(images), bool)
        change = jax.vmap(partial(change_appearance, options=self.appearance))
        return change(jax.vmap(partial(jax.random.fold_in, data=LOOK))(keys), images, masks)


def build_model(fields: dict[str, Any]) -> tuple[nn.Module, Windows]:
    """Return the model that the fields of config.model describe, and its windows.

    Args:
      fields: `name`, `windows`, `dtype` and those of the model itself; sequences may be lists, as JSON has them.

    Raises:
      UserError: there is no such model, or it has no such field.
    """
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    windows = tuple((float(width), float(centre)) for width, centre in own.pop("windows"))
    return models.create(own.pop("name"), own.pop("dtype"), AXIS, **own), windows
