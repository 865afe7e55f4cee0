"""Damages every file that a training leaves, in every way, and starts the training again.

    python -m experiments.trials.damage --workdir runs/damage

One fold of a small run is trained. Then, for each file and each of four kinds of damage, a copy of it is damaged and
trained again. It must end as the undamaged run did, to the bit, or with one line that names a file, and then leave
the damaged file as it found it. (The metrics of a fold that is trained are a log, which nothing can make again: they
may stay as they are.) Last, the training is started where no file may grow beyond some size, as on a full disk: it
must end with one line, and end well once there is room. Writes damage.json.
"""

import re
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments.trials import small_run
from pnsamp_jax import train
from pnsamp_jax.errors import UserError

CHANGES = {"fold": 0, "num_epochs": 3}
LOG = "fold_0/metrics.jsonl"
FULL_AT = (0, 200, 1_000, 2_000, 4_000, 16_000, 64_000)  # bytes


def cut(path: Path) -> None:
    """Leaves the first half, as a copy that was interrupted."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def clear(path: Path) -> None:
    """Leaves nothing."""
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """Changes one bit in the middle."""
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


KINDS: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "cleared": clear,
    "flipped bit": flip_a_bit,
    "missing": Path.unlink,
}


def train_again(workdir: Path, cache: Path, damaged: Path, peaceful: Path) -> str:
    """What becomes of a run with a damaged file: "same end", "one line", or what is wrong."""
    before = damaged.read_bytes() if damaged.exists() else None
    try:
        train.train_and_evaluate(small_run.small_config(cache, **CHANGES), workdir)
    except UserError as error:
        if "\n" in str(error) or str(workdir) not in str(error):
            return f"not one line that names a file: {error}"
        kept = damaged.read_bytes() if damaged.exists() else None
        return "one line" if kept == before else f"the damaged file was changed, though refused: {error}"
    except Exception as error:  # of any kind: that is what the trial is for
        return f"{type(error).__name__}: {error}"
    different = small_run.differences(workdir, peaceful)
    if different == [LOG] and damaged == workdir / LOG:
        return "same end"
    return f"ends with other {', '.join(different)}" if different else "same end"


def train_on_full_disk(workdir: Path, cache: Path, size: int, peaceful: Path) -> str:
    """The same for a run of which no file may grow beyond a size, started again without that limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # the child's too
    try:
        process = small_run.start(workdir, cache, None, **CHANGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said, _ = process.communicate()
    if process.returncode not in (0, 1) or "Traceback" in said:
        return f"status {process.returncode}: {said[-300:]}"
    return train_again(workdir, cache, workdir / "none", peaceful)


def measure(workdir: Path, only: str) -> dict:
    """Tries all of which `only` is found in the name of the file, or in "full disk"; see the module.

    Returns:
      `trials` by outcome, and `failures`, each the file, the damage and what became of it.

    Raises:
      UserError: the workdir is not empty.
    """
    peaceful, cache = small_run.empty(workdir) / "in_peace", workdir / "cache"
    train.train_and_evaluate(small_run.small_config(cache, **CHANGES), peaceful)
    files = sorted(path.relative_to(peaceful) for path in peaceful.rglob("*") if path.is_file())
    files = [file for file in files if re.search(only, str(file))]
    outcomes, failures = Counter(), []

    def note(trial: str, outcome: str) -> None:
        outcomes[outcome if outcome in ("same end", "one line") else "failure"] += 1
        if outcome not in ("same end", "one line"):
            failures.append(f"{trial}: {outcome}")
            print(f"failure: {failures[-1]}", flush=True)

    for file, kind in tqdm([(file, kind) for file in files for kind in KINDS], unit="trial"):
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            run = shutil.copytree(peaceful, Path(folder) / "run")
            KINDS[kind](run / file)
            note(f"{file} {kind}", train_again(run, cache, run / file, peaceful))
    for size in FULL_AT if re.search(only, "full disk") else ():
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            note(f"files of at most {size} bytes", train_on_full_disk(Path(folder) / "run", cache, size, peaceful))
    return {"files": len(files), "trials": dict(outcomes), "failures": failures}


def launch() -> None:
    """The command line."""
    only = flags.DEFINE_string("only", "", "Regular expression: only the files in whose name it is found.")
    small_run.launch("damage", lambda workdir: measure(workdir, only.value))


if __name__ == "__main__":
    launch()
