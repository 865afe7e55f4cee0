"""The 3D convolution, by platform: 3x3x3 kernel, stride 1, zero padding.

XLA's 3D convolution is fast on GPU and TPU, but on CPU it takes about five times as long as the same work done by its
2D convolution. The functions without a suffix therefore choose a form when the program is compiled: `*_cpu`, made of
2D convolutions and matrix products, on CPU, and `*_native`, XLA's 3D convolution, everywhere else. Both forms compute
the same values up to rounding.

Shapes: B nodules, depth D, height H, width W, C input channels, F output channels (features).
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pnsamp_jax.models.pooling import up_pool

Array = jax.Array

# `_conv2d` computes several neighbouring voxels at once where both sides have at most NARROW_CHANNELS channels, until
# they have MIN_COLUMNS output channels together. Measured on CPU.
NARROW_CHANNELS = 16
MIN_COLUMNS = 32


def conv3d(x: Array, kernel: Array) -> Array:
    """Convolve (B, D, H, W, C) with a (3, 3, 3, C, F) kernel -> (B, D, H, W, F)."""
    return lax.platform_dependent(x, kernel, cpu=conv3d_cpu, default=conv3d_native)


def conv3d_native(x: Array, kernel: Array) -> Array:
    """Compute `conv3d` by XLA's 3D convolution."""
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


@jax.custom_vjp
def conv3d_cpu(x: Array, kernel: Array) -> Array:
    """Compute `conv3d` as one 2D convolution with depth folded into the batch.

    The three depth offsets of the kernel are stacked on the channels of the side that has fewer: on the input
    (neighbouring slices are gathered first) or on the output (the results are shifted and added afterwards). The
    kernel's gradient is written out as matrix products, because the convolution that XLA derives for it runs on one
    core only.
    """
    batch, depth, height, width, channels = x.shape
    features = kernel.shape[-1]
    if channels <= features:
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        stacked = jnp.concatenate([padded[:, d : d + depth] for d in range(3)], axis=-1)
        weights = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, 3 * channels, features)
        y = _conv2d(stacked.reshape(batch * depth, height, width, 3 * channels), weights)
        return y.reshape(batch, depth, height, width, features)
    weights = kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, channels, 3 * features)
    y = _conv2d(x.reshape(batch * depth, height, width, channels), weights)
    y = y.reshape(batch, depth, height, width, 3, features)
    from_previous = jnp.pad(y[:, :-1, ..., 0, :], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    from_next = jnp.pad(y[:, 1:, ..., 2, :], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    return from_previous + y[..., 1, :] + from_next


def _conv2d(x: Array, kernel: Array) -> Array:
    """Convolve (N, H, W, C) with a (3, 3, C, F) kernel, zero padding -> (N, H, W, F), in the form fastest on CPU.

    Two things make it fast. With few channels on both sides, the matrix product for one voxel is too small to be worth
    its overhead. So `group` neighbouring voxels of a row are computed at once, as the channels of a strided
    convolution whose kernel holds `group` copies of this one, each shifted by one voxel more. And one extra row of
    output keeps XLA from handing the convolution to YNNPACK, which accepts only outputs no larger than their input and
    runs on one core.
    """
    count, height, width, channels = x.shape
    features = kernel.shape[-1]
    group = 1
    if max(channels, features) <= NARROW_CHANNELS:
        while group * features < MIN_COLUMNS and width % (2 * group) == 0:
            group *= 2
    copies = [jnp.pad(kernel, ((0, 0), (shift, group - 1 - shift), (0, 0), (0, 0))) for shift in range(group)]
    y = lax.conv_general_dilated(
        x, jnp.concatenate(copies, axis=-1), (1, group), ((1, 2), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y[:, :height].reshape(count, height, width, features)


def _kernel_gradient(x: Array, dy: Array) -> Array:
    """Compute the kernel's gradient (3, 3, 3, C, F) from the input (B, D, H, W, C) and the output's gradient
    (B, D, H, W, F).

    Each matrix product serves three neighbouring offsets of the kernel. The side with fewer channels is shifted, with
    its channels on the leading axis, so that the copies run along rows of voxels. The loop over the depth halves the
    memory of a training step, since XLA would make all copies before the first product.
    """
    narrow, wide = (x, dy) if x.shape[-1] <= dy.shape[-1] else (dy, x)
    depth, height, width, channels = narrow.shape[1:]
    padded = jnp.pad(narrow.transpose(4, 0, 1, 2, 3), ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    columns = wide.reshape(-1, wide.shape[-1])

    def at_depth(d: Array) -> Array:
        """Return the products for one offset along the depth: (3, 3 C, F)."""
        slices = lax.dynamic_slice_in_dim(padded, d, depth, axis=2)
        products = []
        for h in range(3):
            rows = slices[:, :, :, h : h + height]
            shifted = [rows[..., w : w + width].reshape(channels, -1) for w in range(3)]
            products.append(jnp.concatenate(shifted) @ columns)
        return jnp.stack(products)

    gradient = lax.map(at_depth, jnp.arange(3)).reshape(3, 3, 3, channels, -1)
    if narrow is x:
        return gradient
    return gradient[::-1, ::-1, ::-1].swapaxes(3, 4)  # shifting the output is shifting the input the opposite way


def _conv3d_cpu_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = conv3d_cpu(dy, kernel[::-1, ::-1, ::-1].transpose(0, 1, 2, 4, 3))
    return dx, _kernel_gradient(x, dy).astype(kernel.dtype)


conv3d_cpu.defvjp(lambda x, kernel: (conv3d_cpu(x, kernel), (x, kernel)), _conv3d_cpu_backward)


@jax.custom_vjp
def conv3d_of_affine(x: Array, scale: Array, bias: Array, kernel: Array) -> Array:
    """Compute `conv3d` of x * scale + bias, (C,) each, in the precision of the kernel.

    The gradients of scale and bias are derived from the kernel's gradient. Autodiff would sum them from the input's
    gradient instead. For the first layer of a network, that gradient costs a convolution and is used for nothing else.
    """
    return conv3d((x * scale + bias).astype(kernel.dtype), kernel)


def _conv3d_of_affine_backward(
    saved: tuple[Array, Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array, Array]:
    """Compute the gradients of x, scale, bias and kernel.

    The output is linear in x * scale + bias. So the kernel's gradient is scale times its gradient for the input x plus
    bias times its gradient for an input of ones. The gradients of scale and bias are the inner products of these two
    with the kernel, channel by channel.
    """
    x, scale, bias, kernel = saved
    dx, for_x = jax.vjp(conv3d, x.astype(kernel.dtype), kernel)[1](dy)
    for_ones, weights, for_x = _kernel_gradient_for_ones(dy), kernel.astype(jnp.float32), for_x.astype(jnp.float32)
    dkernel = scale[:, None] * for_x + bias[:, None] * for_ones[..., None, :]
    dscale, dbias = jnp.einsum("dhwcf,dhwcf->c", weights, for_x), jnp.einsum("dhwcf,dhwf->c", weights, for_ones)
    return (scale * dx).astype(x.dtype), dscale, dbias, dkernel.astype(kernel.dtype)


conv3d_of_affine.defvjp(lambda *saved: (conv3d_of_affine(*saved), saved), _conv3d_of_affine_backward)


def _kernel_gradient_for_ones(dy: Array) -> Array:
    """Compute the kernel's gradient for an input of ones: (B, D, H, W, F) -> (3, 3, 3, F) float32.

    That is, for each offset of the kernel, the sum of dy over the output voxels whose input at that offset lies inside
    the map and not in the zero padding.
    """
    batch, depth, height, width, features = dy.shape

    def inside(size: int) -> np.ndarray:
        """Return (3, size): 1 where the input at that offset lies inside the map, else 0."""
        mask = np.ones((3, size), np.float32)
        mask[0, 0] = mask[2, -1] = 0
        return mask

    planes = np.tile(inside(depth), batch) @ dy.astype(jnp.float32).reshape(batch * depth, -1)
    planes = planes.reshape(3, height, width, features)
    return jnp.einsum("jh,kw,ihwf->ijkf", inside(height), inside(width), planes)


def conv3d_of_upsampled_concat(x: Array, skip: Array, kernel: Array) -> Array:
    """Convolve the concatenation of an up-pooled map and a skip.

    Args:
      x: (B, D, H, W, C), to be up-pooled.
      skip: (B, 2D, 2H, 2W, S).
      kernel: (3, 3, 3, C + S, F).

    Returns:
      (B, 2D, 2H, 2W, F).
    """
    return lax.platform_dependent(
        x, skip, kernel, cpu=conv3d_of_upsampled_concat_cpu, default=conv3d_of_upsampled_concat_native
    )


def conv3d_of_upsampled_concat_native(x: Array, skip: Array, kernel: Array) -> Array:
    """Compute `conv3d_of_upsampled_concat` as it is written."""
    return conv3d_native(jnp.concatenate([up_pool(x), skip], axis=-1), kernel)


def conv3d_of_upsampled_concat_cpu(x: Array, skip: Array, kernel: Array) -> Array:
    """Compute `conv3d_of_upsampled_concat` as the sum of two convolutions, without building the concatenation."""
    kernel_x, kernel_skip = jnp.split(kernel, [x.shape[-1]], axis=3)
    return conv3d_of_upsampled_cpu(x, kernel_x) + conv3d_cpu(skip, kernel_skip)


# Along one axis, up-pooling turns each voxel into a cell of two. The three taps of a kernel centred on either voxel of
# a cell fall on only two voxels of the small map: UPSAMPLED_TAPS[i, v, t] is 1 if tap t, centred on voxel i of the
# cell, falls on the first (v = 0) or the second (v = 1) of them.
UPSAMPLED_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def conv3d_of_upsampled_cpu(x: Array, kernel: Array) -> Array:
    """Convolve the up-pooled (B, D, H, W, C) with (3, 3, 3, C, F) -> (B, 2D, 2H, 2W, F), in 8/27 of the operations.

    Each of the eight voxels of a 2x2x2 cell of the output is a 2x2x2 convolution of the small map, with sums of the
    kernel's weights. All eight are computed by one matrix product.
    """
    batch, depth, height, width, channels = x.shape
    features = kernel.shape[-1]
    padded, cell = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))), list(product(range(2), repeat=3))
    corners = [padded[:, i : i + depth + 1, j : j + height + 1, k : k + width + 1] for i, j, k in cell]
    taps = UPSAMPLED_TAPS.astype(x.dtype)
    weights = jnp.einsum("dhwcf,aid,bjh,ekw->ijkcabef", kernel, taps, taps, taps)
    y = jnp.concatenate(corners, axis=-1) @ weights.reshape(8 * channels, 8 * features)
    # The second voxel of a cell reads from one voxel further on in the small map than the first.
    y = y.reshape(*y.shape[:-1], 8, features)
    voxels = [y[:, i : i + depth, j : j + height, k : k + width, n] for n, (i, j, k) in enumerate(cell)]
    y = jnp.stack(voxels, axis=4).reshape(batch, depth, height, width, 2, 2, 2, features)
    return y.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, 2 * depth, 2 * height, 2 * width, features)
