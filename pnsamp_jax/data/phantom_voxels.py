"""The phantom's simulated voxels: a CT crop around one nodule of LIDC-IDRI.

The crop shows lung, vessels and sometimes a chest wall. In it lies the nodule in the shape that its readers drew, with
the density, edge, spicules and calcification that they rated. Everything is painted on a fine grid, and then blurred
and given noise as a scanner would.

Arguments that the functions share: `axes` are three float32 arrays, in mm from the nodule's centre, that broadcast to
the grid (d, h, w); `voxel` is the (3,) size of the grid's voxels in mm; `cover` is the share of each voxel, 0..1, that
a structure fills. The order of the random draws determines the voxels: keep it, or raise `VERSION`.
"""

import zlib

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import cohort, schema
from pnsamp_jax.data.lidc import LidcNodule
from pnsamp_jax.data.lidc_database import Scan
from pnsamp_jax.data.patches import MarkedNodule, consensus

VERSION = 1  # raise it when the simulated voxels change: records prepared from the old ones are then ignored

HALF_WIDTH_MM = 26.0  # half the crop's side: half a stored patch of 64 + 2 * 8 voxels of 0.6 mm, plus a margin
IMAGE_SIZE = 512  # rows and columns of every scan of LIDC-IDRI
WALL_SHARE, PLEURAL_SHARE = 0.55, 0.4  # share of crops with a chest wall, and of these where it touches the nodule
NOISE_HU = (15.0, 40.0)  # range of the noise's standard deviation
FINE_STEP_MM = 1.0  # approximate distance between the layers of the fine grid, which are averaged into slices

# Indexed by rating - 1. Densities were chosen to match the median HU inside the consensus of real nodules.
RIM_HU = (-560, -510, -340, -160, 30)  # by texture: from ground glass to solid
CORE_HU = (-500, -360, 0, 30, 55)
CORE_DEPTH = (0.7, 0.55, 0.45, 0.25, 0.2)  # by texture: where the core begins, 0 at the surface, 1 in the middle
GRAIN_HU = (45, 50, 45, 28, 18)  # by texture: standard deviation inside the nodule
EDGE_MM = (2.0, 1.4, 0.9, 0.55, 0.3)  # by margin: sigma of the edge's blur, from poorly defined to sharp
SPICULES = (0, 4, 9, 15, 22)  # by spiculation: how many
CONTRAST = (0.78, 0.84, 0.9, 0.95, 1.0)  # by subtlety: contrast of the nodule against the lung
CONTENT_HU = {2: 10.0, 3: -80.0, 4: -900.0}  # by internal structure: fluid, fat, air; 1 is soft tissue
POPCORN, LAMINATED, SOLID, NON_CENTRAL, CENTRAL = 1, 2, 3, 4, 5  # classes of calcification; 6 is absent

# One nodule of a scan, its (readers, d, h, w) bool masks, and the (3,) index of their first voxel in the scan.
Outline = tuple[LidcNodule, np.ndarray, np.ndarray]


def named_generator(seed: int, name: str) -> np.random.Generator:
    """Return a generator whose numbers depend only on the seed and the name, in any process and any order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def simulate(outline: Outline, neighbours: list[Outline], seed: int) -> MarkedNodule:
    """Simulate the CT around one nodule.

    Args:
      outline: the nodule.
      neighbours: all nodules of its scan; those that reach into the crop are painted too.
      seed: determines the voxels, together with the nodules' ids.
    """
    item, masks, origin = outline
    scan = item.scan
    majority = consensus(masks)
    marked = np.argwhere(majority if majority.any() else masks.any(axis=0)) + origin
    middle = marked.mean(axis=0)  # in the scan's (slice, row, column)
    index = round(middle[0])
    step = _slice_step_mm(scan, index)
    to_mm = np.array([step, scan.pixel_spacing_mm, scan.pixel_spacing_mm])

    def affine(first: np.ndarray) -> np.ndarray:
        """Return the affine of a box of the scan whose first voxel is at (slice, row, column) `first`."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.diag(to_mm)[::-1]
        matrix[:3, 3] = (first * to_mm)[::-1] + (0, 0, scan.slice_z_mm[index] - index * step)
        return matrix

    size = (len(scan.slice_z_mm), IMAGE_SIZE, IMAGE_SIZE)
    low = np.maximum(np.floor(middle - HALF_WIDTH_MM / to_mm), 0).astype(int)
    high = np.minimum(np.ceil(middle + HALF_WIDTH_MM / to_mm) + 1, size).astype(int)
    layers = max(1, round(step / FINE_STEP_MM))  # of the fine grid per slice
    voxel = to_mm / (layers, 1, 1)
    counts = (high - low - 1) * (layers, 1, 1) + 1
    first = (low - middle) * to_mm
    axes = np.ix_(
        *((start + v * np.arange(n)).astype(np.float32) for start, v, n in zip(first, voxel, counts, strict=True))
    )

    rng = named_generator(seed, item.nodule.nodule_id)
    outward = _unit(rng.normal(size=3) * (0.25, 1, 1))  # from the hilum to the chest wall
    smooth = _texture(rng, axes, 3.0 / voxel)
    hu = rng.uniform(-890, -835) + 28 * _texture(rng, axes, 0.8 / voxel) + 16 * smooth
    any_share = np.zeros_like(hu)
    for neighbour, neighbour_masks, neighbour_origin in neighbours:
        share = _fine_share(neighbour_masks, neighbour_origin, low, high, layers)
        if share is not None:
            # A generator per nodule: it looks the same in every crop that shows it.
            own = named_generator(seed, f"{neighbour.nodule.nodule_id} itself")
            _paint_nodule(own, hu, axes, voxel, share, cohort.rounded_rating(neighbour.nodule.rating_counts))
            np.maximum(any_share, share, out=any_share)
    _brighten(hu, _vessels(rng, axes, voxel, outward), rng.uniform(10, 60))
    if rng.random() < WALL_SHARE:
        gap = rng.uniform(-0.5, 0.5) if rng.random() < PLEURAL_SHARE else rng.uniform(2, 22)
        cover, tissue = _wall(rng, axes, voxel, outward, (marked - middle) * to_mm, gap, smooth)
        hu += cover * (1 - any_share) * (tissue - hu)

    ct = Volume(_scan(rng, hu, voxel, layers, scan.slice_thickness_mm), affine(low))
    return MarkedNodule(item.nodule, ct, Volume(masks, affine(origin)), "simulated")


def _slice_step_mm(scan: Scan, index: int) -> float:
    """Return the median step between the slices around `index`, where single slices may be missing or repeated."""
    steps = np.diff(scan.slice_z_mm[max(index - 8, 0) : index + 9])
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else scan.slice_thickness_mm


def _fine_share(masks, origin, low, high, layers) -> np.ndarray | None:
    """Return the share of readers per voxel of the box low <= index < high, on the fine grid; None if all are 0."""
    start, stop = np.maximum(origin, low), np.minimum(origin + masks.shape[1:], high)
    if (start >= stop).any():
        return None
    share = np.zeros(high - low, np.float32)
    inside = masks[(slice(None), *map(slice, start - origin, stop - origin))]
    share[tuple(map(slice, start - low, stop - low))] = inside.mean(axis=0)
    below, part = np.divmod(np.arange((len(share) - 1) * layers + 1), layers)
    part = (part / layers).astype(np.float32)[:, None, None]
    share = (1 - part) * share[below] + part * share[np.minimum(below + 1, len(share) - 1)]
    return share if share.any() else None


def _paint_nodule(rng, hu, axes, voxel, share, ratings) -> None:
    """Paint a nodule with the given (9,) ratings over `hu`, in place; `share` is the share of readers on its grid."""
    rated = dict(zip(schema.RATING_NAMES, ratings, strict=True))
    subtlety, margin, spiculation, texture = (
        max(rated[name], 1) - 1 for name in ("subtlety", "margin", "spiculation", "texture")
    )
    found = ndimage.find_objects((share > 0).astype(np.int8))[0]
    pad = np.ceil(10.0 / voxel).astype(int)
    box = tuple(slice(max(s.start - p, 0), s.stop + p) for s, p in zip(found, pad, strict=True))
    share, view = share[box], hu[box]
    axes = np.ix_(*(axis.ravel()[s] for axis, s in zip(axes, box, strict=True)))

    solid = share >= min(0.5, share.max())
    radius = np.cbrt(solid.sum() * voxel.prod() * 3 / (4 * np.pi))
    depth = ndimage.distance_transform_edt(solid, sampling=voxel).astype(np.float32)
    depth /= depth.max()
    grain = _texture(rng, axes, 0.8 / voxel)

    core = _step(depth + 0.1 * grain - CORE_DEPTH[texture], 0.3)
    tissue = RIM_HU[texture] + core * (CORE_HU[texture] - RIM_HU[texture]) + GRAIN_HU[texture] * grain
    if rated["internal_structure"] in CONTENT_HU:
        inner = _step(depth + 0.05 * grain - 0.45, 0.2)
        tissue += inner * (CONTENT_HU[rated["internal_structure"]] - tissue)
    edge = min(EDGE_MM[margin], 0.4 * radius)
    view += CONTRAST[subtlety] * ndimage.gaussian_filter(share, edge / voxel, truncate=3.0) * (tissue - view)
    _brighten(view, _spicules(rng, axes, voxel, solid, radius, SPICULES[spiculation]), RIM_HU[texture])

    calcified = _calcium(rng, axes, depth, grain, radius, rated["calcification"])
    if calcified is not None:
        calcified = np.minimum(calcified, share > 0)
        # The scanner's blur removes most of a small calcification's density. Since the readers saw it, it was denser.
        seen = ndimage.gaussian_filter(calcified, (1.0, 0.7, 0.7) / voxel).max()
        _brighten(view, calcified, rng.uniform(300, 600) + 600 * (1 / max(float(seen), 0.2) - 1))


def _calcium(rng, axes, depth, grain, radius, kind) -> np.ndarray | None:
    """Return the share of each voxel that is calcified, for the rated kind; None if calcification is absent."""
    if kind == POPCORN:
        return _step(depth - 0.15, 0.2) * _step(grain - 0.3, 0.5)
    if kind == LAMINATED:
        return _step(depth - 0.05, 0.1) * _step(np.cos(5 * np.pi * depth), 0.8)
    if kind == SOLID:
        return _step(depth - 0.1, 0.2)
    if kind not in (NON_CENTRAL, CENTRAL):
        return None
    voxels = np.argwhere(depth >= 0.95 if kind == CENTRAL else (depth > 0) & (depth < 0.6))
    voxels = voxels if len(voxels) else np.argwhere(depth > 0)
    centre = voxels[rng.integers(len(voxels))]
    distance = np.sqrt(sum((axis - axis.ravel()[i]) ** 2 for axis, i in zip(axes, centre, strict=True)))
    return _step(max(0.4 * float(radius), 1.2) - distance + 0.3 * grain, 0.8)


def _spicules(rng, axes, voxel, solid, radius, count) -> np.ndarray:
    """Return the cover of thin, tapering, slightly bent lines that leave the surface of `solid`."""
    cover = np.zeros(solid.shape, np.float32)
    first = np.array([axis.flat[0] for axis in axes])
    middle = np.argwhere(solid).mean(axis=0) * voxel
    along = np.arange(0.0, 3 * radius + 12, 0.5)
    for _ in range(count):
        points = middle + along[:, None] * _unit(rng.normal(size=3))
        index = np.rint(points / voxel).astype(int).clip(0, np.array(solid.shape) - 1)
        out = along - along[solid[tuple(index.T)]].max(initial=0.0)  # mm outside the surface
        length = rng.uniform(2.0, 4.0) + 0.35 * radius
        here = (out > -0.6) & (out < length)
        points += rng.normal(size=3) * 0.02 * out.clip(0)[:, None] ** 2
        thickness = rng.uniform(0.45, 0.75) * (1 - 0.7 * out.clip(0) / length)
        _tube(cover, axes, voxel, (points + first)[here], thickness[here])
    return cover


def _vessels(rng, axes, voxel, outward) -> np.ndarray:
    """Return the cover of trees of vessels that come from the hilum and taper towards the chest wall."""
    cover = np.zeros([axis.size for axis in axes], np.float32)
    low, high = (np.array([axis.flat[end] for axis in axes]) for end in (0, -1))
    pending = []
    for _ in range(rng.integers(5, 12)):
        start = rng.uniform(-26, 26, 3) - outward * rng.uniform(5, 32)
        pending.append((start, _unit(outward + 0.45 * rng.normal(size=3)), rng.uniform(0.5, 1.4) ** 2 + 0.1))
    if rng.random() < 0.4:  # a vessel that feeds the nodule
        pending.append((np.zeros(3), _unit(0.5 * rng.normal(size=3) - outward), rng.uniform(0.5, 1.1)))
    while pending:
        point, direction, radius = pending.pop()
        spacing = 0.4 + 0.4 * radius
        steps = int(rng.uniform(8, 22) / spacing) + 1
        path = direction + np.cumsum(rng.normal(size=(steps, 3)), axis=0) * 0.065 * np.sqrt(spacing)
        path /= np.linalg.norm(path, axis=1, keepdims=True)
        points = point + spacing * np.cumsum(path, axis=0)
        near = ((points > low - radius) & (points < high + radius)).all(axis=1)
        _tube(cover, axes, voxel, points[near], np.linspace(radius, 0.85 * radius, steps)[near])
        for share in (0.82, 0.62):
            if share * radius > 0.35:
                pending.append((points[-1], _unit(path[-1] + 0.45 * rng.normal(size=3)), share * radius))
    return cover


def _wall(rng, axes, voxel, outward, nodule, gap, noise) -> tuple[np.ndarray, np.ndarray]:
    """Return the cover of the chest wall and its HU, (d, h, w) each.

    The wall lies outside a large sphere, `gap` mm beyond the outermost of the nodule's (n, 3) points in mm; a negative
    `gap` makes them overlap.
    """
    radius = rng.uniform(60, 140)
    surface = float(np.linalg.norm(nodule + radius * outward, axis=1).max()) + gap
    beyond = np.sqrt(sum((axis + radius * n) ** 2 for axis, n in zip(axes, outward.tolist(), strict=True))) - surface
    beyond += 0.4 * noise
    # Pleura and muscle, with layers of fat further out.
    fat = _step(np.sin(beyond / 2.2 + 1.3 * noise) - 0.1, 0.8) * _step(beyond - 2.5, 1.0)
    tissue = 45 + 10 * noise - 130 * fat
    # Ribs run obliquely, 24 mm apart: cortex around marrow.
    upwards = np.array([1, 0, 0])
    across = _unit(upwards - outward * outward[0] + 0.4 * np.cross(outward, upwards))
    height = sum(axis * a for axis, a in zip(axes, across.tolist(), strict=True)) + rng.uniform(0, 24)
    shell = np.hypot((height % 24 - 12) / 6, (beyond - 6.5) / 4)  # 1 at the rib's surface
    bone = 550 - 380 * _step(0.7 - shell, 0.2) + 40 * noise
    tissue += _step(1 - shell, 0.2) * (bone - tissue)
    return _step(beyond, float(voxel[1])), tissue


def _scan(rng, hu, voxel, layers, thickness_mm) -> np.ndarray:
    """Simulate the scanner: average the fine grid into slices, blur them and add noise; return int16 HU."""
    half = max(thickness_mm / voxel[0], 1.0) / 2
    offsets = np.arange(-int(half) - 1, int(half) + 2)
    box = (np.minimum(offsets + 0.5, half) - np.maximum(offsets - 0.5, -half)).clip(0) / (2 * half)
    image = ndimage.correlate1d(hu, box, axis=0, mode="nearest")[::layers]
    blur = rng.uniform(0.4, 0.6) / voxel[1]
    image = ndimage.gaussian_filter(image, (0, blur, blur), mode="nearest", truncate=3.0)
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), (0.3, 0.5, 0.5))
    image += rng.uniform(*NOISE_HU) / noise.std() * noise
    return np.rint(image).clip(-1024, 3071).astype(np.int16)


def _tube(cover, axes, voxel, points, radii) -> None:
    """Add a string of overlapping balls with centres (n, 3) mm and radii (n,) mm to `cover`, in place."""
    soft = float(voxel[1])  # width of the ramp at the surface
    first = np.array([axis.flat[0] for axis in axes])
    middles, reach = (points - first) / voxel, (radii[:, None] + soft / 2) / voxel
    lows = np.maximum(np.ceil(middles - reach), 0).astype(int)
    highs = np.maximum(np.floor(middles + reach) + 1, lows).astype(int)
    z, y, x = axes
    # Python floats, unlike NumPy's float64 scalars, keep the arrays in float32.
    for (pz, py, px), radius, low, high in zip(*(a.tolist() for a in (points, radii, lows, highs)), strict=True):
        a, b, c = map(slice, low, high)
        distance = np.sqrt((z[a] - pz) ** 2 + (y[:, b] - py) ** 2 + (x[:, :, c] - px) ** 2)
        part = cover[a, b, c]
        np.maximum(part, np.minimum((radius - distance) / soft + 0.5, 1), out=part)


def _brighten(hu, cover, value: float) -> None:
    """Paint `value` over `hu`, in place, wherever it is the brighter of the two."""
    np.maximum(hu, hu + cover * (value - hu), out=hu)


def _texture(rng, axes, sigma) -> np.ndarray:
    """Return Gaussian noise of zero mean and unit variance, correlated over `sigma` (3,) voxels."""
    noise = rng.standard_normal([axis.size for axis in axes], np.float32)
    noise = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=2.5)
    return noise / noise.std()


def _step(value: np.ndarray, width: float) -> np.ndarray:
    """Return a linear ramp from 0 to 1 over `width`, centred at a value of 0."""
    return (value / width + 0.5).clip(0, 1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
