"""The optimizer and the learning rates, against the published algorithm."""

import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.state import ADAM


def published_adam(gradients):
    """Return the steps of Algorithm 1 of Kingma & Ba (ICLR 2015) with its good default settings, in units of alpha."""
    first = second = 0.0
    steps = []
    for t, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        steps.append(first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8))
    return steps


# A change of sign and size, which tells the decay rates, and gradients so small that the epsilon would show.
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_adam_is_the_published_algorithm(scale):
    gradients = scale * np.array([1.0, -0.5, 2.0, 0.0, 0.0, 3.0])
    state, steps = ADAM.init(jnp.zeros(())), []
    for gradient in gradients:
        step, state = ADAM.update(jnp.float32(gradient), state)
        steps.append(float(step))
    np.testing.assert_allclose(steps, published_adam(gradients), rtol=1e-4)
