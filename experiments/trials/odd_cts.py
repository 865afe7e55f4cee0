"""Odd CTs: some 300 kinds of damaged or unusual input, made from one clean scan, and how each is read.

    python -m experiments.trials.odd_cts --dicom=/path/to/dicom/folder --point=56.4,86.3,-116.0

From each kind a patch is read at the point, as in `--mode predict`. The result must be the one that the kind states:
the clean scan's patch, within a tolerance, or one line that names the file and what is wrong. Anything else is a
failure: a different patch, a needless or unclear refusal, another exception or a warning, a crash of the process, too
much time, or more than twice the memory of the clean scan. Prints the counts and the failures; the exit status is 1 if
there are failures.
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
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from absl import flags
from tqdm import tqdm

from experiments.launch import launch, path_flag
from experiments.trials import odd_dicom, odd_nifti, odd_syntaxes, odd_text_headers
from experiments.trials.odd_kinds import Case, Kind, Scan, Unavailable, write_series
from pnsamp_jax.ct.dicom import slice_positions
from pnsamp_jax.ct.dicom_folder import only_series
from pnsamp_jax.ct.read import read_ct
from pnsamp_jax.data.patches import Geometry, sample
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import readable

KINDS = (*odd_dicom.kinds(), *odd_syntaxes.kinds(), *odd_nifti.kinds(), *odd_text_headers.kinds())
SPACING_MM = Geometry().spacing_mm
ALLOWANCE_MB = 48  # in addition to twice the clean scan's memory: for libraries loaded on first use, and the patch
ADDRESS_MB = 4096  # most memory that a process may map, so that a failure does not bring down the machine


class Answer(NamedTuple):
    """The result of reading an input.

    Attributes:
      patch: the HU, if the input was read.
      refusal: the message of the UserError, if it was refused.
      failure: a description, if anything else happened.
      peak_mb: by how much the peak memory of the process rose.
    """

    patch: np.ndarray | None = None
    refusal: str = ""
    failure: str = ""
    peak_mb: float = 0.0


class Outcome(NamedTuple):
    """The judged result of a kind; `verdict` is "right", "refused", "unavailable" or "FAILED"."""

    kind: Kind
    verdict: str
    detail: str


def cut(path: Path, point: np.ndarray, size: int) -> np.ndarray:
    """Read the HU around a point (3,) in LPS mm, (size, size, size) int16, as `--mode predict` does."""
    ct = read_ct(path)
    if not ct.holds(point):
        raise UserError(f"{path}: the point lies outside")
    return np.rint(sample(ct, point, size, SPACING_MM)).astype(np.int16)


def ask(path: Path, point: np.ndarray, size: int, seconds: float) -> Answer:
    """Read an input in a process of its own, since C++ libraries may abort it, and a hang can only be killed."""
    context = multiprocessing.get_context("forkserver")  # forked from a process without threads
    context.set_forkserver_preload(["nibabel", "SimpleITK", "scipy.ndimage", "absl.app", "tqdm", __name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, path, point, size))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else Answer(failure=f"hangs for more than {seconds:g} s")
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
    except BaseException:  # of any kind: they are what the trial looks for
        answer = Answer(failure=traceback.format_exc(limit=-2))
    sender.send(answer._replace(peak_mb=_peak_mb() - before))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judge(kind: Kind, case: Case, answer: Answer, budget_mb: float) -> Outcome:
    """Compare an answer with what the kind expects.

    Args:
      kind: of the input.
      case: the input, with its truth and point.
      answer: of the reader.
      budget_mb: allowed memory.
    """
    if answer.failure:
        return Outcome(kind, "FAILED", answer.failure)
    if answer.peak_mb > budget_mb:
        return Outcome(kind, "FAILED", f"took {answer.peak_mb:.0f} MB, but {budget_mb:.0f} are allowed")
    if isinstance(kind.expected, str):
        if answer.patch is not None:
            return Outcome(kind, "FAILED", f"was read, but should be refused for its {kind.expected}")
        one_line = len(answer.refusal.splitlines()) == 1 and readable(str(case.path.parent)) in answer.refusal
        clear = one_line and re.search(kind.expected, answer.refusal)
        return Outcome(kind, "refused" if clear else "FAILED", answer.refusal)
    if answer.patch is None:
        return Outcome(kind, "FAILED", f"needlessly refused: {answer.refusal}")
    assert case.truth is not None and case.point is not None
    truth = sample(case.truth, case.point, len(answer.patch), SPACING_MM)
    difference = np.abs(answer.patch - np.rint(truth)).max()
    return Outcome(kind, "right" if difference <= kind.expected else "FAILED", f"differs by {difference:.0f} HU")


def try_kinds(kinds: Iterable[Kind], scan: Scan, scratch: Path, size: int, seconds: float) -> Iterator[Outcome]:
    """Make kinds one after the other, each in its own folder in `scratch`, and read them.

    Args:
      kinds: to try.
      scan: the clean scan.
      scratch: a folder.
      size: voxels on a side of the patch.
      seconds: allowed time for one reading.

    Raises:
      UserError: the clean scan cannot be read.
    """
    clean = ask(scan.files[0].parent, scan.point, size, seconds)
    if clean.patch is None:
        raise UserError(f"{scan.files[0].parent}: the clean scan cannot be read: {clean.refusal or clean.failure}")
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            # The files break the standard on purpose.
            with warnings.catch_warnings(), pydicom.config.disable_value_validation():
                warnings.simplefilter("ignore")
                path, truth, special_point = kind.make(scan, folder)
            point = scan.point if special_point is None else special_point
            answer = ask(path, point, size, seconds)
            yield judge(kind, Case(path, truth or scan.volume, point), answer, 2 * clean.peak_mb + ALLOWANCE_MB)
        except Unavailable as error:
            yield Outcome(kind, "unavailable", str(error))
        finally:
            shutil.rmtree(folder)


def stage(dicom: Path, point: np.ndarray, folder: Path, half: Sequence[int] | None = None) -> Scan:
    """Copy a clean scan to a folder, whole or within `half` (d, h, w) voxels of the point, for the kinds to link to.

    Raises:
      UserError: the scan cannot be read, or the point lies outside it.
    """
    files, volume = only_series(dicom), read_ct(dicom)
    if not volume.holds(point):
        raise UserError(f"--point: {point} lies outside {dicom}; give LPS mm")
    depths = volume.to_index(slice_positions(files))[:, 0]
    scan = Scan(volume, [Path(files[i]) for i in np.argsort(depths)], point)
    part = scan.around(half or volume.array.shape)
    first = int(np.rint(volume.to_index(part.affine[:3, 3])[0]))
    write_series(scan.files[first:], folder, part)
    return Scan(read_ct(folder), sorted(folder.iterdir()), point)


def run(dicom: Path, point: list[str], only: str, patch_size: int, seconds: float, verbose: bool) -> None:
    """Try the kinds, print their counts and failures, and exit; see the module's docstring.

    Args:
      dicom: folder of the clean series.
      point: x, y, z in LPS mm.
      only: regular expression that is searched in the names of the kinds; others are left out.
      patch_size: voxels on a side of the patch.
      seconds: allowed time for one reading.
      verbose: whether to print the other outcomes too.
    """
    chosen = [kind for kind in KINDS if re.search(only, kind.name)]
    with tempfile.TemporaryDirectory() as scratch:
        scan = stage(dicom, np.array([float(x) for x in point]), Path(scratch) / "clean")
        tried = try_kinds(chosen, scan, Path(scratch), patch_size, seconds)
        outcomes = list(tqdm(tried, total=len(chosen), unit="kind"))
    counts = Counter(outcome.verdict for outcome in outcomes)
    for outcome in outcomes:
        if outcome.verdict in ("FAILED", "unavailable") or verbose:
            print(f"{outcome.verdict}: {outcome.kind.name}: {outcome.detail}")
    print(
        f"{len(outcomes) - counts['unavailable']} trials: {counts['right']} right answers, {counts['refused']} clear "
        f"refusals, {counts['FAILED']} failures; {counts['unavailable']} kinds cannot be made here"
    )
    sys.exit(counts["FAILED"] > 0)


if __name__ == "__main__":
    launch(
        run,
        dicom=path_flag("dicom", "Folder of one clean DICOM CT series.", required=True),
        point=flags.DEFINE_list("point", None, "x,y,z of a nodule in it, LPS mm.", required=True),
        only=flags.DEFINE_string("only", "", "Regular expression: only the kinds in whose name it is found."),
        patch_size=flags.DEFINE_integer("patch_size", Geometry().patch_size, "Voxels on a side of the patch."),
        seconds=flags.DEFINE_float("seconds", 120, "Allowed time for one reading."),
        verbose=flags.DEFINE_bool("verbose", False, "Also print the outcomes that are no failures."),
    )
