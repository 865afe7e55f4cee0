"""Odd CTs: some 300 kinds of damaged or unusual input, made from one clean scan, and what is made of each.

    python -m experiments.trials.odd_cts --dicom=/path/to/dicom/folder --point=56.4,86.3,-116.0

Each kind is read and cut at the point as `--mode predict` does it, and has to end as it states: in the clean scan's
patch, within a tolerance, or in one line that names the file and what is wrong. Anything else is a failure: a patch
that differs, a needless or unclear refusal, another exception or a warning, the end of the process, too much time, or
more than twice the memory of the clean scan. Prints the counts and the failures; exits with status 1 if there are any.
"""

import multiprocessing
import re
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from absl import app, flags
from tqdm import tqdm

from experiments.trials import odd_dicom, odd_images
from experiments.trials.odd_kinds import Case, Kind, Scan, Unavailable, write_series
from pnsamp_jax.ct.dicom import slice_positions
from pnsamp_jax.ct.dicom_index import only_series
from pnsamp_jax.ct.read import read_ct
from pnsamp_jax.data.patches import Geometry, sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable

KINDS = (*odd_dicom.kinds(), *odd_images.kinds())
SPACING_MM = Geometry().spacing_mm
ALLOWANCE_MB = 48  # beside twice the clean scan's: what libraries load when they are first needed, and the patch
ADDRESS_MB = 4096  # what a process may map at most, so that a failure does not take the machine along


class Answer(NamedTuple):
    """A reader's patch, or the line of its `UserError`, or what else ended it; and the memory that it took."""

    patch: np.ndarray | None = None
    refusal: str = ""
    failure: str = ""
    peak_mb: float = 0.0


class Outcome(NamedTuple):
    """How a kind ended: `verdict` is "right", "refused", "unavailable" or "FAILED"."""

    kind: Kind
    verdict: str
    detail: str


def cut(path: Path, point: np.ndarray, size: int) -> np.ndarray:
    """(size, size, size) int16 HU round a point (3,) in LPS mm, as `--mode predict` reads and cuts it."""
    ct = read_ct(path)
    if not ct.holds(point):
        raise UserError(f"{path}: the point lies outside")
    return np.rint(sample(ct, point, size, SPACING_MM)).astype(np.int16)


def ask(path: Path, point: np.ndarray, size: int, seconds: float) -> Answer:
    """Has an input read in a process of its own: C++ libraries may abort theirs, and a hang can only be killed."""
    context = multiprocessing.get_context("forkserver")  # forked from a process without threads
    context.set_forkserver_preload(["nibabel", "SimpleITK", "scipy.ndimage", "absl.app", "tqdm", __name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, path, point, size))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else Answer(failure=f"hangs, for more than {seconds:g} s")
    except EOFError:
        process.join()
        return Answer(failure=f"its process ended with exit status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _answer(sender: Connection, path: Path, point: np.ndarray, size: int) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (ADDRESS_MB << 20),) * 2)
    warnings.simplefilter("error")
    before = _peak_mb()
    try:
        answer = Answer(patch=cut(path, point, size))
    except UserError as error:
        answer = Answer(refusal=str(error))
    except BaseException:  # whatever it is belongs into the report
        answer = Answer(failure=traceback.format_exc(limit=-2))
    sender.send(answer._replace(peak_mb=_peak_mb() - before))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judge(kind: Kind, case: Case, answer: Answer, budget_mb: float) -> Outcome:
    """Holds an answer against what the kind expects; the case tells its truth and point."""
    if answer.failure:
        return Outcome(kind, "FAILED", answer.failure)
    if answer.peak_mb > budget_mb:
        return Outcome(kind, "FAILED", f"took {answer.peak_mb:.0f} MB, {budget_mb:.0f} are allowed")
    if isinstance(kind.expected, str):
        if answer.patch is not None:
            return Outcome(kind, "FAILED", f"read, but to be refused for its {kind.expected}")
        one_line = len(answer.refusal.splitlines()) == 1 and readable(str(case.path.parent)) in answer.refusal
        clear = one_line and re.search(kind.expected, answer.refusal)
        return Outcome(kind, "refused" if clear else "FAILED", answer.refusal)
    if answer.patch is None:
        return Outcome(kind, "FAILED", f"needlessly refused: {answer.refusal}")
    truth = sample(case.truth, case.point, len(answer.patch), SPACING_MM)
    difference = np.abs(answer.patch - np.rint(truth)).max()
    return Outcome(kind, "right" if difference <= kind.expected else "FAILED", f"differs by {difference:.0f} HU")


def try_kinds(kinds: Iterable[Kind], scan: Scan, scratch: Path, size: int, seconds: float) -> Iterator[Outcome]:
    """Makes kinds one after the other, each in a folder of its own under `scratch`, and has them read."""
    clean = ask(scan.files[0].parent, scan.point, size, seconds)
    if clean.patch is None:
        raise UserError(f"{scan.files[0].parent}: the clean scan is not read: {clean.refusal or clean.failure}")
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            # What is written breaks the standard, on purpose.
            with warnings.catch_warnings(), pydicom.config.disable_value_validation():
                warnings.simplefilter("ignore")
                path, truth, point = kind.make(scan, folder)
            case = Case(path, truth or scan.volume, scan.point if point is None else point)
            answer = ask(path, case.point, size, seconds)
            yield judge(kind, case, answer, 2 * clean.peak_mb + ALLOWANCE_MB)
        except Unavailable as error:
            yield Outcome(kind, "unavailable", str(error))
        finally:
            shutil.rmtree(folder)


def stage(dicom: Path, point: np.ndarray, folder: Path, half=None) -> Scan:
    """Copies a clean scan, whole or within `half` (d, h, w) voxels of the point, to a folder that kinds link to."""
    files, volume = only_series(dicom), read_ct(dicom)
    if not volume.holds(point):
        raise UserError(f"--point: {point} lies outside {dicom}; give LPS mm")
    depths = volume.to_index(slice_positions(files))[:, 0]
    scan = Scan(volume, [Path(files[i]) for i in np.argsort(depths)], point)
    part = scan.around(half or volume.array.shape)
    first = int(np.rint(volume.to_index(part.affine[:3, 3])[0]))
    write_series(scan.files[first:], folder, part)
    return Scan(read_ct(folder), sorted(folder.iterdir()), point)


def main(argv: list[str]) -> None:
    """Tries all kinds; a user's mistake becomes one line."""
    del argv
    values = flags.FLAGS
    chosen = [kind for kind in KINDS if re.search(values.only, kind.name)]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            clean = Path(scratch) / "clean"
            scan = stage(Path(values.dicom), np.array([float(x) for x in values.point]), clean)
            tried = try_kinds(chosen, scan, Path(scratch), values.patch_size, values.seconds)
            outcomes = list(tqdm(tried, total=len(chosen), unit="kind"))
        except UserError as error:
            sys.exit(f"odd_cts: {error}")
    counts = Counter(outcome.verdict for outcome in outcomes)
    for outcome in outcomes:
        if outcome.verdict in ("FAILED", "unavailable") or values.verbose:
            print(f"{outcome.verdict}: {outcome.kind.name}: {outcome.detail}")
    print(
        f"{len(outcomes) - counts['unavailable']} trials: {counts['right']} right answers, {counts['refused']} clear "
        f"refusals, {counts['FAILED']} failures; {counts['unavailable']} kinds cannot be made here"
    )
    sys.exit(counts["FAILED"] > 0)


if __name__ == "__main__":
    flags.DEFINE_string("dicom", None, "Folder of one clean DICOM CT series.", required=True)
    flags.DEFINE_list("point", None, "x,y,z of a nodule in it, LPS mm.", required=True)
    flags.DEFINE_string("only", "", "Regular expression: only the kinds in whose name it is found.")
    flags.DEFINE_integer("patch_size", Geometry().patch_size, "Voxels on a side of the patch.")
    flags.DEFINE_float("seconds", 120, "How long one reading may take.")
    flags.DEFINE_bool("verbose", False, "Also list what went well.")
    app.run(main)
