"""pnsamp_jax.models.conv3d: the forms for CPU compute the same convolutions and gradients as the native ones."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnsamp_jax.models import conv3d
from pnsamp_jax.models.pooling import up_pool

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOLUME_CONVOLUTION = r"stablehlo\.convolution\(.*0, 1, 2"  # a convolution over three dimensions in StableHLO


def draw(shape, seed=0, dtype=jnp.float32):
    """Return standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(conv, x, kernel, dy):
    """Return the output, and the gradients of x and of the kernel for the gradient dy of the output."""
    y, backward = jax.vjp(conv, x, kernel)
    return y, *backward(dy)


def difference(a, b):
    """Return the largest difference relative to the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


# conv3d


@pytest.mark.parametrize(("channels", "features"), [(2, 5), (4, 4), (5, 2), (1, 8), (3, 18)])
@pytest.mark.parametrize(
    "shape",
    # Widths that are no multiple of any group of voxels, and some that are multiples of 4, 8 and 16.
    [(1, 1, 3, 5), (2, 2, 5, 3), (1, 5, 4, 7), (3, 4, 1, 2), (1, 2, 3, 12), (2, 1, 2, 16)],
)
def test_convolution_on_cpu_is_the_native_one(shape, channels, features):
    x, kernel, dy = draw((*shape, channels)), draw((3, 3, 3, channels, features), 1), draw((*shape, features), 2)
    with jax.default_matmul_precision("highest"):  # no TF32 on GPU
        on_cpu = value_and_gradients(conv3d.conv3d_cpu, x, kernel, dy)
        native = value_and_gradients(conv3d.conv3d_native, x, kernel, dy)
    for ours, theirs in zip(on_cpu, native, strict=True):
        assert ours.dtype == jnp.float32
        assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(("channels", "features"), [(2, 5), (5, 2)])
def test_convolution_on_cpu_in_bfloat16(channels, features):
    shape = (2, 4, 5, 6)
    arrays = draw((*shape, channels)), draw((3, 3, 3, channels, features), 1), draw((*shape, features), 2)
    halves = [array.astype(jnp.bfloat16) for array in arrays]
    exact = value_and_gradients(conv3d.conv3d_native, *[half.astype(jnp.float32) for half in halves])
    for ours, theirs in zip(value_and_gradients(conv3d.conv3d_cpu, *halves), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert difference(ours, theirs) < 0.02


def test_convolution_of_a_single_voxel_is_the_flipped_kernel():
    image = jnp.zeros((1, 3, 3, 3, 1)).at[0, 1, 1, 1, 0].set(1.0)
    kernel = draw((3, 3, 3, 1, 1))
    y = conv3d.conv3d(image, kernel)[0, ..., 0]
    # From each voxel, the one that is set lies at the opposite offset of the kernel.
    np.testing.assert_allclose(y, kernel[::-1, ::-1, ::-1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(2, 5), (5, 2)])
def test_conv3d_has_no_volume_convolution_on_cpu_only(channels, features):
    x, kernel, dy = draw((1, 4, 4, 4, channels)), draw((3, 3, 3, channels, features)), draw((1, 4, 4, 4, features))

    def program(platform):
        traced = value_and_gradients.trace(conv3d.conv3d, x, kernel, dy)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    on_cpu = program("cpu")
    assert "stablehlo.convolution" in on_cpu and not re.search(VOLUME_CONVOLUTION, on_cpu)
    # Elsewhere the value and both gradients are native convolutions, which shows that the search finds them.
    assert len(re.findall(VOLUME_CONVOLUTION, program("cuda"))) == 3


# conv3d_of_affine


def affine_and_gradients(conv, dtype, shape=(2, 3, 4, 5), channels=2, features=3):
    """Return a convolution of x * scale + bias and the gradients of x, scale, bias and kernel."""
    arrays = draw((*shape, channels)), 1 + draw((channels,), 1), draw((channels,), 2)
    kernel, dy = draw((3, 3, 3, channels, features), 3, dtype), draw((*shape, features), 4, dtype)
    with jax.default_matmul_precision("highest"):
        y, backward = jax.vjp(conv, *arrays, kernel)
        return y, *backward(dy)


def plain_conv3d_of_affine(x, scale, bias, kernel):
    """Compute what `conv3d_of_affine` computes, with the gradients of autodiff."""
    return conv3d.conv3d_native((x * scale + bias).astype(kernel.dtype), kernel)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 1, 6)])
def test_convolution_of_an_affine_map_has_the_gradients_of_autodiff(shape):
    ours = affine_and_gradients(conv3d.conv3d_of_affine, jnp.float32, shape)
    theirs = affine_and_gradients(plain_conv3d_of_affine, jnp.float32, shape)
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == jnp.float32
        assert difference(our, their) < 1e-5


def test_convolution_of_an_affine_map_with_a_scale_of_zero():
    x, zero, dy = draw((1, 2, 3, 4, 2)), jnp.zeros(2), draw((1, 2, 3, 4, 3))
    kernel = draw((3, 3, 3, 2, 3))
    functions = (conv3d.conv3d_of_affine, plain_conv3d_of_affine)
    gradients = [jax.vjp(function, x, zero, zero, kernel)[1](dy) for function in functions]
    for our, their in zip(*gradients, strict=True):  # nothing is divided by the scale
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4)


def test_convolution_of_an_affine_map_in_bfloat16():
    ours, exact = (affine_and_gradients(conv3d.conv3d_of_affine, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert [array.dtype.name for array in ours] == ["bfloat16", "float32", "float32", "float32", "bfloat16"]
    for our, their in zip(ours, exact, strict=True):
        assert difference(our, their) < 0.03  # bfloat16 keeps 8 bits of kernel, map and gradient each


# conv3d_of_upsampled_concat


@pytest.mark.parametrize("shape", [(1, 1, 3, 2, 4, 2), (2, 3, 1, 4, 2, 5), (1, 4, 4, 4, 3, 3)])
def test_convolution_of_an_up_pooled_map_on_cpu_is_the_native_one(shape):
    *small, features = shape
    batch, depth, height, width, channels = small
    x, kernel = draw(small), draw((3, 3, 3, channels, features), 1)
    dy = draw((batch, 2 * depth, 2 * height, 2 * width, features), 2)
    with jax.default_matmul_precision("highest"):
        on_cpu = value_and_gradients(conv3d.conv3d_of_upsampled_cpu, x, kernel, dy)
        native = value_and_gradients(lambda x, kernel: conv3d.conv3d_native(up_pool(x), kernel), x, kernel, dy)
    for ours, theirs in zip(on_cpu, native, strict=True):
        assert difference(ours, theirs) < 1e-5


def test_convolution_of_an_up_pooled_map_on_cpu_in_bfloat16():
    x, kernel = draw((2, 2, 3, 4, 5), 0, jnp.bfloat16), draw((3, 3, 3, 5, 2), 1, jnp.bfloat16)
    on_cpu = conv3d.conv3d_of_upsampled_cpu(x, kernel)
    assert on_cpu.dtype == jnp.bfloat16
    exact = conv3d.conv3d_native(up_pool(x).astype(jnp.float32), kernel.astype(jnp.float32))
    assert difference(on_cpu, exact) < 0.02  # bfloat16 keeps 8 bits, and the sums of weights are rounded once more
