"""Damage every file of a training in every way, and start the training again.

    python -m experiments.trials.damage --workdir runs/damage

One fold of a small run is trained. Then, for each file and each of four kinds of damage, the file is damaged in a copy
of the run, and the training is started again. It must end exactly as the undamaged run did, or with one line that
names a file, and then leave the damaged file as it was. (The metrics of a trained fold are a log, which cannot be made
again: they may stay damaged.) Finally, the training is started where no file may grow beyond some size, as on a full
disk: it must end with one line, and succeed once there is room. Writes damage.json.
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
    """Keep the first half, like an interrupted copy."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def clear(path: Path) -> None:
    """Empty the file."""
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle."""
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


def train_again(workdir: Path, cache: Path, damaged: Path, undamaged: Path) -> str:
    """Train a run with a damaged file again, and judge how that ends.

    Args:
      workdir: of the damaged run.
      cache: folder of prepared patches and compiled programs.
      damaged: the file.
      undamaged: workdir of the same run without damage.

    Returns:
      "same end", "one line", or a description of what is wrong.
    """
    before = damaged.read_bytes() if damaged.exists() else None
    try:
        train.train_and_evaluate(small_run.small_config(cache, **CHANGES), workdir)
    except UserError as error:
        if "\n" in str(error) or str(workdir) not in str(error):
            return f"not one line that names a file: {error}"
        after = damaged.read_bytes() if damaged.exists() else None
        return "one line" if after == before else f"the damaged file was changed, though refused: {error}"
    except Exception as error:  # of any kind: they are what the trial looks for
        return f"{type(error).__name__}: {error}"
    different = small_run.differences(workdir, undamaged)
    if different == [LOG] and damaged == workdir / LOG:
        return "same end"
    return f"ends with other {', '.join(different)}" if different else "same end"


def train_on_full_disk(workdir: Path, cache: Path, size: int, undamaged: Path) -> str:
    """Train a run whose files may not grow beyond a size, then again without that limit; see `train_again`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # the child process inherits it
    try:
        process = small_run.start(workdir, cache, None, **CHANGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    output, _ = process.communicate()
    if process.returncode not in (0, 1) or "Traceback" in output:
        return f"status {process.returncode}: {output[-300:]}"
    return train_again(workdir, cache, workdir / "none", undamaged)


def measure(workdir: Path, only: str) -> dict:
    """Run the trials; see the module's docstring.

    Args:
      workdir: an empty folder.
      only: regular expression that is searched in the name of a file, or in "full disk"; other trials are left out.

    Returns:
      `trials` by outcome, and `failures`, each the file, the damage and the outcome.

    Raises:
      UserError: the workdir is not empty.
    """
    undamaged, cache = small_run.make_empty(workdir) / "undamaged", workdir / "cache"
    train.train_and_evaluate(small_run.small_config(cache, **CHANGES), undamaged)
    files = sorted(path.relative_to(undamaged) for path in undamaged.rglob("*") if path.is_file())
    files = [file for file in files if re.search(only, str(file))]
    outcomes: Counter[str] = Counter()
    failures: list[str] = []

    def note(trial: str, outcome: str) -> None:
        outcomes[outcome if outcome in ("same end", "one line") else "failure"] += 1
        if outcome not in ("same end", "one line"):
            failures.append(f"{trial}: {outcome}")
            print(f"failure: {failures[-1]}", flush=True)

    for file, kind in tqdm([(file, kind) for file in files for kind in KINDS], unit="trial"):
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            run = shutil.copytree(undamaged, Path(folder) / "run")
            KINDS[kind](run / file)
            note(f"{file} {kind}", train_again(run, cache, run / file, undamaged))
    for size in FULL_AT if re.search(only, "full disk") else ():
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            note(f"files of at most {size} bytes", train_on_full_disk(Path(folder) / "run", cache, size, undamaged))
    return {"files": len(files), "trials": dict(outcomes), "failures": failures}


if __name__ == "__main__":
    small_run.launch_trial(
        "damage",
        measure,
        only=flags.DEFINE_string("only", "", "Regular expression: only the files in whose name it is found."),
    )
