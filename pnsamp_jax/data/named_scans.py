"""Find the scans of a folder that are image files named after their SeriesInstanceUID, as those of LUNA16.

LUNA16 has masks of the lungs by the same names, in a folder beside the scans.
"""

import re
from pathlib import Path

from pnsamp_jax.errors import UserError
from pnsamp_jax.files import files_under

MASK_FOLDER = re.compile(r"seg|mask|label|^lungs?$", re.IGNORECASE)  # such as seg-lungs-LUNA16 and labelsTr


def scans_by_uid(root: Path, *endings: str) -> dict[str, list[Path]]:
    """Return the files under a folder by their names without their ending; one for each name, if all is well.

    Files in folders that are named as folders of masks are left out.

    Args:
      root: the folder, whose own name tells nothing.
      endings: of the files, in lower case.
    """
    by_uid: dict[str, list[Path]] = {}
    for path in files_under(root, *endings):
        if any(map(MASK_FOLDER.search, path.relative_to(root).parts[:-1])):
            continue
        ending = next(ending for ending in endings if path.name.lower().endswith(ending))
        by_uid.setdefault(path.name[: -len(ending)], []).append(path)
    return by_uid


def only_scan(paths: list[Path]) -> Path:
    """Return the file of a scan. Raise UserError if there are several, unless they are links to the same one."""
    if len({path.resolve() for path in paths}) > 1:
        raise UserError(
            f"{paths[0]}: {paths[1]} has the same name, and either may be the CT; move the one that is not out of the "
            "folder"
        )
    return paths[0]
