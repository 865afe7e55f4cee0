"""What a prediction prints when it is done: a short table, what to note about its rows, and where the report is."""

from collections.abc import Iterator
from pathlib import Path

from pnsamp_jax.data import schema
from pnsamp_jax.files import readable
from pnsamp_jax.inference.finding import Finding
from pnsamp_jax.inference.requests import Request
from pnsamp_jax.report import SIMULATED
from pnsamp_jax.report.write import REPORT, TABLES, Results

MOST_ROWS = 20
HEADING = ("nodule", "mean diameter, mm (long x short)", "volume, mm3", "suspicion", "likeliest class", "status")


def print_summary(requests: list[Request], results: Results, simulated: bool, workdir: Path) -> None:
    """Print the table of the first nodules, and the paths of all tables and the report.

    Args:
      requests: in the order of the rows.
      results: of the prediction.
      simulated: whether the networks were trained on simulated voxels.
      workdir: where the files are.
    """
    print("\n" + readable("\n".join(_lines(requests, results, simulated, workdir))))


def _lines(requests: list[Request], results: Results, simulated: bool, workdir: Path) -> Iterator[str]:
    reasons = {failure.request.nodule_id: failure.reason for failure in results.failures}
    shown = [request.nodule_id for request in requests[:MOST_ROWS]]
    rows = [
        _cells(results.findings[name]) if name in results.findings else (name, "", "", "", "", reasons[name])
        for name in shown
    ]
    widths = [max(map(len, column)) for column in zip(HEADING, *rows, strict=True)]
    for row in (HEADING, *rows):
        name, *numbers, words, status = row
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:-2], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *aligned, words.ljust(widths[-2]), status])
    if len(requests) > MOST_ROWS:
        yield f"... and {len(requests) - MOST_ROWS} more"
    notes = [(name, results.findings[name].note) for name in shown if name in results.findings]
    yield from (f"{name}: {note}" for name, note in notes if note)
    yield "Suspicion: how likely radiologists would find the nodule suspicious; not a diagnosis."
    if simulated:
        yield f"WARNING: {SIMULATED}"
    yield f"Tables: {', '.join(str(workdir / name) for name in TABLES)}"
    if (workdir / REPORT).exists():
        yield f"Report: {workdir / REPORT}"


def _cells(finding: Finding) -> tuple[str, ...]:
    if not finding.segmented:
        return finding.nodule_id, "", "", "", "", finding.status
    sign, axes = (">= " if finding.truncated else ""), finding.diameters
    return (
        finding.nodule_id,
        f"{sign}{axes.lung_rads_mm:.1f} ({axes.long_mm:.1f} x {axes.short_mm:.1f})",
        f"{sign}{finding.volume_mm3:,.0f}",
        f"{100 * finding.malignant_probability:.0f} %",
        finding.words[schema.MALIGNANCY],
        f"{finding.status}, but unlike a nodule" if finding.unlike_nodules else finding.status,
    )
