"""Apache Beam as a way to run many jobs: a runner deals them out to the processes of a machine or a cluster.

Every worker has to find the files that a job reads and writes under the same paths. Apache Beam is imported only by
the functions that need it.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pnsamp_jax.errors import UserError

Job = Callable[[str, Path], tuple[str | None, list[str]]]  # (key, file to write) -> (None or its failure, notes)


def read_options(text: str) -> Any:
    """Return Beam's `PipelineOptions` from flags without dashes, separated by commas.

    `tfds build --beam_pipeline_options` takes them in the same way.

    Raises:
      UserError: Apache Beam is not installed, or a flag has a value that it cannot have.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("config.data.beam: needs Apache Beam; pip install 'pnsamp-jax[beam]'") from error
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            options = PipelineOptions([f"--{flag.strip()}" for flag in text.split(",")])
            options.get_all_options()  # parses them
        except SystemExit as error:
            reason = ["refused", *printed.getvalue().split("error: ")][-1].strip()
            raise UserError(f"config.data.beam: '{text}': {reason}") from error
    return options


def run(job: Job, files: dict[str, Path], options: Any) -> Iterator[tuple[str, str | None, list[str]]]:
    """Run a job for each key, and yield (key, None or its failure, notes) when all have ended.

    Args:
      job: is pickled for the workers.
      files: that the jobs write, by key; all in one folder.
      options: Beam's `PipelineOptions`, see `read_options`.

    Raises:
      UserError: there is no such runner.
    """
    if not files:
        return
    import apache_beam as beam

    def work(number: int, key: str, path: str) -> None:
        failure, notes = job(key, Path(path))
        Path(folder, f"{number}.json").write_text(json.dumps([key, failure, notes]))

    jobs = [(number, key, str(path)) for number, (key, path) in enumerate(files.items())]
    with TemporaryDirectory(dir=next(iter(files.values())).parent, prefix=".beam-") as folder:
        try:
            pipeline = beam.Pipeline(options=options)
        except ValueError as error:  # names the runners that there are
            raise UserError(f"config.data.beam: {error}") from error
        with pipeline:
            _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.MapTuple(work)
        for number in range(len(jobs)):
            key, failure, notes = json.loads(Path(folder, f"{number}.json").read_text())
            yield key, failure, notes
