"""Building blocks: a 3D convolution that is fast on CPU too, pooling, up-pooling, and the block of the paper."""

from itertools import product
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def conv3d_native(x: Array, kernel: Array) -> Array:
    """Convolution of (B, D, H, W, C) with a (3, 3, 3, C, F) kernel, stride 1, zero padding -> (B, D, H, W, F)."""
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def _conv2d(x: Array, kernel: Array) -> Array:
    """Convolution of (N, H, W, C) with a (3, 3, C, F) kernel, zero padding -> (N, H, W, F), for XLA on CPU.

    Two things make it fast. With few channels on both sides a matrix product per voxel is too thin to be worth its
    overhead, so that `run` neighbouring voxels of a row are computed at once, as channels of a strided convolution
    whose kernel repeats this one, each time one voxel further. And one row of output too many keeps XLA from handing
    the convolution to YNNPACK, which takes only outputs that are no larger than their input, and runs on one core.
    """
    count, height, width, channels = x.shape
    features = kernel.shape[-1]
    run = 1
    if max(channels, features) <= 16:
        while run * features < 32 and width % (2 * run) == 0:
            run *= 2
    kernels = [jnp.pad(kernel, ((0, 0), (place, run - 1 - place), (0, 0), (0, 0))) for place in range(run)]
    y = lax.conv_general_dilated(
        x, jnp.concatenate(kernels, axis=-1), (1, run), ((1, 2), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y[:, :height].reshape(count, height, width, features)


@jax.custom_vjp
def conv3d_folded(x: Array, kernel: Array) -> Array:
    """The same as `conv3d_native`, as one 2D convolution with depth folded into the batch.

    XLA's 3D convolution on CPU is about five times slower than its 2D one. The three depth offsets are stacked on the
    channels of whichever side is thinner: on the input (gathered before) or on the output (shifted and added after).
    The kernel's gradient is written out as matrix products, because the convolution that XLA derives for it runs on
    one core only.
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
    above = jnp.pad(y[:, :-1, ..., 0, :], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    below = jnp.pad(y[:, 1:, ..., 2, :], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    return above + y[..., 1, :] + below


def _kernel_gradient(x: Array, dy: Array) -> Array:
    """(B, D, H, W, C) input and (B, D, H, W, F) gradient of the output -> (3, 3, 3, C, F) gradient of the kernel.

    One matrix product for three neighbouring offsets of the kernel. Whichever side is thinner is moved, with its
    channels in front, so that the copies run along the rows of voxels.
    """
    thin, wide = (x, dy) if x.shape[-1] <= dy.shape[-1] else (dy, x)
    depth, height, width, channels = thin.shape[1:]
    padded = jnp.pad(thin.transpose(4, 0, 1, 2, 3), ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    columns = wide.reshape(-1, wide.shape[-1])
    products = []
    for d in range(3):
        for h in range(3):
            rows = padded[:, :, d : d + depth, h : h + height]
            moved = [rows[..., w : w + width].reshape(channels, -1) for w in range(3)]
            products.append(jnp.concatenate(moved) @ columns)
    products = jnp.stack(products).reshape(3, 3, 3, channels, -1)
    if thin is x:
        return products
    return products[::-1, ::-1, ::-1].swapaxes(3, 4)  # moving the output one way is moving the input the other


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = conv3d_folded(dy, kernel[::-1, ::-1, ::-1].transpose(0, 1, 2, 4, 3))
    return dx, _kernel_gradient(x, dy).astype(kernel.dtype)


conv3d_folded.defvjp(lambda x, kernel: (conv3d_folded(x, kernel), (x, kernel)), _backward)


def conv3d(x: Array, kernel: Array) -> Array:
    """3x3x3 convolution by the form that is fast where the program runs; see `conv3d_native` for shapes."""
    return lax.platform_dependent(x, kernel, cpu=conv3d_folded, default=conv3d_native)


def _seen_sums(dy: Array) -> Array:
    """(B, D, H, W, F) -> (3, 3, 3, F) float32: by offset of the kernel, the sum over the voxels from which it does not
    lead out of the map."""
    batch, depth, height, width, features = dy.shape

    def inside(size: int) -> np.ndarray:
        seen = np.ones((3, size), np.float32)
        seen[0, 0] = seen[2, -1] = 0
        return seen

    planes = np.tile(inside(depth), batch) @ dy.astype(jnp.float32).reshape(batch * depth, -1)
    planes = planes.reshape(3, height, width, features)
    return jnp.einsum("jh,kw,ihwf->ijkf", inside(height), inside(width), planes)


@jax.custom_vjp
def conv3d_scaled(x: Array, scale: Array, bias: Array, kernel: Array) -> Array:
    """`conv3d` of x * scale + bias, (C,) each, in the precision of the kernel.

    The gradients of scale and bias follow from the kernel's. Otherwise they would be sums over the gradient of the
    map, which for the first layer of a network costs a convolution and is of no other use.
    """
    return conv3d((x * scale + bias).astype(kernel.dtype), kernel)


def _scaled_backward(saved: tuple[Array, Array, Array, Array], dy: Array) -> tuple[Array, Array, Array, Array]:
    x, scale, bias, kernel = saved
    dx, of_x = jax.vjp(conv3d, x.astype(kernel.dtype), kernel)[1](dy)  # as without scale and bias
    of_ones, weights, of_x = _seen_sums(dy), kernel.astype(jnp.float32), of_x.astype(jnp.float32)
    dkernel = scale[:, None] * of_x + bias[:, None] * of_ones[..., None, :]
    dscale, dbias = jnp.einsum("dhwcf,dhwcf->c", weights, of_x), jnp.einsum("dhwcf,dhwf->c", weights, of_ones)
    return (scale * dx).astype(x.dtype), dscale, dbias, dkernel.astype(kernel.dtype)


conv3d_scaled.defvjp(lambda *saved: (conv3d_scaled(*saved), saved), _scaled_backward)


# How an output voxel of a 2x2x2 cell, on one axis, shares out the kernel's three weights between the two voxels of the
# smaller map that it sees: (place in the cell, voxel, weight).
SHARES = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def conv3d_up_folded(x: Array, kernel: Array) -> Array:
    """`conv3d` of the up-pooled (B, D, H, W, C) -> (B, 2D, 2H, 2W, F), in 8/27 of the multiplications.

    Where a map repeats each voxel, three neighbours are but two voxels of the smaller map. So each of the eight voxels
    of a cell is a 2x2x2 convolution of the smaller map, with sums of the kernel's weights; all are one matrix product.
    """
    batch, depth, height, width, channels = x.shape
    features = kernel.shape[-1]
    padded, cell = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))), list(product(range(2), repeat=3))
    corners = [padded[:, i : i + depth + 1, j : j + height + 1, k : k + width + 1] for i, j, k in cell]
    shares = SHARES.astype(x.dtype)
    weights = jnp.einsum("dhwcf,aid,bjh,ekw->ijkcabef", kernel, shares, shares, shares)
    y = jnp.concatenate(corners, axis=-1) @ weights.reshape(8 * channels, 8 * features)
    # The second voxel of a cell sees the corner that is the first of the next cell.
    y = y.reshape(*y.shape[:-1], 8, features)
    voxels = [y[:, i : i + depth, j : j + height, k : k + width, n] for n, (i, j, k) in enumerate(cell)]
    y = jnp.stack(voxels, axis=4).reshape(batch, depth, height, width, 2, 2, 2, features)
    return y.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, 2 * depth, 2 * height, 2 * width, features)


def conv3d_joined_native(x: Array, skip: Array, kernel: Array) -> Array:
    """Convolution of an up-pooled map (B, D, H, W, C) joined with its skip (B, 2D, 2H, 2W, S), with a kernel
    (3, 3, 3, C + S, F) -> (B, 2D, 2H, 2W, F)."""
    return conv3d_native(jnp.concatenate([up_pool(x), skip], axis=-1), kernel)


def conv3d_joined_folded(x: Array, skip: Array, kernel: Array) -> Array:
    """The same as the sum of a convolution of either, so that the joined map is never built."""
    below, beside = jnp.split(kernel, [x.shape[-1]], axis=3)
    return conv3d_up_folded(x, below) + conv3d_folded(skip, beside)


def conv3d_joined(x: Array, skip: Array, kernel: Array) -> Array:
    """By the form that is fast where the program runs; see `conv3d_joined_native` for shapes."""
    forms = {"cpu": conv3d_joined_folded, "default": conv3d_joined_native}
    return lax.platform_dependent(x, skip, kernel, **forms)


class Conv3x3x3(nn.Module):
    """3x3x3 convolution with bias, zero padding: (B, D, H, W, C) -> (B, D, H, W, features).

    With a skip, the convolution of both joined: see `conv3d_joined`. With `scaled`, (C,) each, of the scaled map: see
    `conv3d_scaled`.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None, scaled: tuple[Array, Array] | None = None) -> Array:
        channels = x.shape[-1] + (0 if skip is None else skip.shape[-1])
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel.astype(self.dtype)
        if scaled is not None:
            y = conv3d_scaled(x, *scaled, kernel)
        elif skip is None:
            y = conv3d(x.astype(self.dtype), kernel)
        else:
            y = conv3d_joined(x.astype(self.dtype), skip.astype(self.dtype), kernel)
        return y + bias.astype(self.dtype)


def max_pool(x: Array) -> Array:
    """Halves depth, height and width by the maximum of each 2x2x2 cell."""
    for axis in (1, 2, 3):
        shape = x.shape
        pairs = x.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
        x = jnp.maximum(lax.index_in_dim(pairs, 0, axis + 1, False), lax.index_in_dim(pairs, 1, axis + 1, False))
    return x


def up_pool(x: Array) -> Array:
    """Doubles depth, height and width by repeating each voxel (nearest)."""
    batch, depth, height, width, channels = x.shape
    cells = jnp.broadcast_to(x[:, :, None, :, None, :, None], (batch, depth, 2, height, 2, width, 2, channels))
    return cells.reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015) of maps as if they were joined, in float32.

    Flax's own, but that it takes the maps apart, and leaves the scaling to do: it gives each map (B, D, H, W, C) with
    mean 0 and variance 1, and the (C,) scale and bias that it is to have. One that is up-pooled later has the same
    statistics as it has now.

    Attributes:
      train: whether it uses the batch's statistics, and updates the running ones.
      axis_name: pmap axis over which the batch's statistics are averaged, if any.
    """

    MOMENTUM: ClassVar[float] = 0.9
    EPSILON: ClassVar[float] = 1e-5

    train: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, *maps: Array) -> list[tuple[Array, Array, Array]]:
        widths = [x.shape[-1] for x in maps]
        scale = self.param("scale", nn.initializers.ones, (sum(widths),))
        bias = self.param("bias", nn.initializers.zeros, (sum(widths),))
        running = {
            name: self.variable("batch_stats", name, initial, sum(widths))
            for name, initial in (("mean", jnp.zeros), ("var", jnp.ones))
        }
        maps = [x.astype(jnp.float32) for x in maps]
        mean, var = running["mean"].value, running["var"].value
        if self.train and not self.is_initializing():
            space = (0, 1, 2, 3)
            moments = [jnp.stack([x.mean(space), jnp.square(x).mean(space)]) for x in maps]
            moments = jnp.concatenate(moments, axis=-1)
            mean, square = moments if self.axis_name is None else lax.pmean(moments, self.axis_name)
            var = jnp.maximum(square - jnp.square(mean), 0)
            for name, value in (("mean", mean), ("var", var)):
                running[name].value = self.MOMENTUM * running[name].value + (1 - self.MOMENTUM) * value
        of_all, cuts = (mean, lax.rsqrt(var + self.EPSILON), scale, bias), np.cumsum(widths)[:-1]
        of_each = zip(maps, *(jnp.split(it, cuts) for it in of_all), strict=True)
        return [((x - mean) * factor, scale, bias) for x, mean, factor, scale, bias in of_each]


class Block(nn.Module):
    """BatchNorm -> Conv 3x3x3 -> ELU, the unit that PN-SAMP is made of: (B, D, H, W, C) -> (B, D, H, W, features).

    With a skip (B, 2D, 2H, 2W, S), of the up-pooled map joined with it: -> (B, 2D, 2H, 2W, features).

    Attributes:
      features: output channels.
      train, axis_name: see `BatchNorm`.
      dtype: that the convolution computes in.
      of_data: whether the map is data, of which training needs no gradient: see `conv3d_scaled`.
    """

    features: int
    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32
    of_data: bool = False

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None) -> Array:
        maps = BatchNorm(self.train, self.axis_name)(*((x,) if skip is None else (x, skip)))
        convolution = Conv3x3x3(self.features, self.dtype)
        if self.of_data:
            [(x, *scaled)] = maps
            return nn.elu(convolution(x, scaled=scaled))
        return nn.elu(convolution(*[x * scale + bias for x, scale, bias in maps]))
