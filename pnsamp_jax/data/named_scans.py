"""Find the scans of a folder that are image files named after their SeriesInstanceUID, as those of LUNA16.

LUNA16 has masks of the lungs by the same names, in a folder beside the scans.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pnsamp_jax.ct.notes import note
from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under, readable

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of a folder's name: labels and Tr of labelsTr
# Words in the names of folders of masks, such as seg-lungs-LUNA16. "segmented" and "unlabeled" may be of patients.
OF_MASKS = {"seg", "segmentation", "mask", "lungmask", "label", "labelmap"}
LUNGS = {"lung", "lungs"}  # as the whole name


class NamedScans(NamedTuple):
    """The images under a folder.

    Attributes:
      by_uid: files by their names without their ending; one for each name, if all is well.
      passed_over: how many are in folders that are named as folders of masks, by folder relative to the root.
    """

    by_uid: dict[str, list[Path]]
    passed_over: Counter[str]


def named_scans(root: Path, *endings: str) -> NamedScans:
    """Find the images under a folder.

    Args:
      root: the folder, whose own name tells nothing.
      endings: of the files, in lower case.
    """
    found = NamedScans({}, Counter())
    for path in files_under(root, *endings):
        parents = path.relative_to(root).parts[:-1]
        of_masks = next((number for number, name in enumerate(parents, start=1) if _is_of_masks(name)), None)
        if of_masks is not None:
            found.passed_over[str(Path(*parents[:of_masks]))] += 1
            continue
        ending = next(ending for ending in endings if path.name.lower().endswith(ending))
        found.by_uid.setdefault(path.name[: -len(ending)], []).append(path)
    return found


def note_passed_over(root: Path, scans: NamedScans) -> None:
    """Tell the user how many images were taken for masks by the names of their folders, if any."""
    if scans.passed_over:
        count, folders = scans.passed_over.total(), ", ".join(sorted(scans.passed_over))
        note(
            readable(
                f"{root}: passed over {count} image{'s' * (count > 1)} in folders that are named as folders of masks "
                f"({folders}); rename the folder if they are scans"
            )
        )


def _is_of_masks(name: str) -> bool:
    """Return whether a folder is named as one of masks."""
    words = {word.lower() for word in WORD.findall(name)}
    return name.lower() in LUNGS or bool({word.removesuffix("s") for word in words} & OF_MASKS)


def only_scan(paths: list[Path]) -> Path:
    """Return the file of a scan. Raise UserError if there are several, unless they are links to the same one."""
    if len({path.resolve() for path in paths}) > 1:
        raise UserError(
            f"{paths[0]}: {paths[1]} has the same name, and either may be the CT; move the one that is not out of the "
            "folder"
        )
    return paths[0]
