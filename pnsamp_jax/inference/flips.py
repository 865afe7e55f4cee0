"""Asking networks about the eight flips of patches: flip by flip, or about all flips in one call.

A network is here a function from patches to what it answers.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

Flip = tuple[bool, ...]  # whether depth, height and width are flipped
FLIPS: tuple[Flip, ...] = tuple(itertools.product((False, True), repeat=3))  # the first flips nothing

Answer = dict[str, np.ndarray]
Ask = Callable[[np.ndarray], Answer]


def one_by_one(asks: Sequence[Ask], images: np.ndarray, flips: Sequence[Flip], workers: int) -> Iterator[Answer]:
    """Yield what each network answers about each flip, in this order.

    Args:
      asks: from images (N, S, S, S) to the results of `steps.predict_step`, for each network.
      images: (N, S, S, S) HU.
      flips: F of them.
      workers: questions that are asked at the same time.

    Yields:
      `mask` (N, S, S, S), flipped back; `probabilities` (1, N, 9, 6) and `features` (1, N, C); as far as there are.
    """

    def answer(ask: Ask, flip: Flip) -> Answer:
        axes = tuple(axis for axis, flipped in enumerate(flip, start=1) if flipped)
        outputs = jax.device_get(ask(np.flip(images, axes)))
        return {
            name: np.flip(values, axes) if name == "mask" else values[np.newaxis] for name, values in outputs.items()
        }

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(answer, *zip(*itertools.product(asks, flips), strict=True))


def at_once(asks: Sequence[Ask], images: np.ndarray) -> Iterator[Answer]:
    """Yield what each network answers about all flips.

    Args:
      asks: from images (N, S, S, S) to the results of `steps.predict_flips_step`, for each network.
      images: (N, S, S, S) HU.

    Yields:
      `mask` (N, S, S, S), the sum over the flips, each flipped back; `probabilities` (F, N, 9, 6) and `features`
      (F, N, C); as far as there are.
    """
    called = [ask(images) for ask in asks]  # an accelerator computes one while the host takes another's answer
    for outputs in map(jax.device_get, called):
        yield {name: values if name == "mask" else values.swapaxes(0, 1) for name, values in outputs.items()}
