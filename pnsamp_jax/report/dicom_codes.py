"""The coded concepts of the ratings in DICOM objects.

They are those of TCIA's DICOM version of the LIDC-IDRI readings (Fedorov et al., *DICOM re-encoding of volumetrically
annotated Lung Imaging Database Consortium (LIDC) nodules*, Medical Physics 2020), so that a search for the readers'
ratings also finds the predicted ones.
"""

from collections.abc import Callable

from pydicom.sr.codedict import Code


def _codes_of(scheme: str) -> Callable[[str, str], Code]:
    return lambda value, meaning: Code(value, scheme, meaning)


_lidc, _ncit, _radlex = map(_codes_of, ("99LIDCQIICR", "NCIt", "RadLex"))
# No standard code says that a measurement is a lower bound.
_own = _codes_of("99PNSAMP")
EXTENT = _own("extent", "Extent of the segmentation")
LOWER_BOUNDS = _own("truncated", "Reaches the border: volume and diameters are lower bounds")
# Nor that an observer may choose any of several classes.
MALIGNANCY_SET = _own("malignancy_set", "One of the malignancy classes that hold in 8 of 10 nodules")
# Nor how much something looks like a nodule.
LIKENESS = _own("nodule_like", "Likeness to the nodules of the training")
UNLIKE_NODULES = _own("unlike_nodules", "Does not look like the nodules that the network learnt from")

_2, _3, _4 = _lidc("002", "2 out of 5"), _lidc("003", "3 out of 5"), _lidc("004", "4 out of 5")

# For each of `schema.RATINGS`: its concept, and the codes of its classes 1, 2, ...
RATING_CODES: dict[str, tuple[Code, tuple[Code, ...]]] = {
    "subtlety": (_ncit("C45992", "Subtlety score"), (
        _lidc("101", "1 out of 5 (Extremely subtle)"), _lidc("102", "2 out of 5 (Moderately subtle)"),
        _lidc("103", "3 out of 5 (Fairly subtle)"), _lidc("104", "4 out of 5 (Moderately obvious)"),
        _lidc("105", "5 out of 5 (Obvious)"))),
    "internal_structure": (_lidc("200", "Internal structure"), (
        _ncit("C12471", "Soft tissue"), _ncit("C25278", "Fluid"), _ncit("C12472", "Adipose tissue"),
        _ncit("C73434", "Air"))),
    "calcification": (_ncit("C3672", "Calcification"), (
        _radlex("RID35453", "Popcorn calcification sign"), _lidc("302", "Laminated appearance"),
        _radlex("RID5741", "Solid appearance"), _lidc("304", "Non-central appearance"),
        _radlex("RID5827", "Central calcification"), _radlex("RID28473", "Absent"))),
    "sphericity": (_lidc("400", "Sphericity"), (
        _radlex("RID5811", "linear"), _2, _radlex("RID5800", "ovoid"), _4, _radlex("RID5799", "round"))),
    "margin": (_ncit("C25563", "Margin"), (
        _radlex("RID5709", "Indistinct margin"), _2, _3, _4, _radlex("RID5707", "Circumscribed margin"))),
    "lobulation": (_ncit("C62175", "Lobular Pattern"), (
        _lidc("601", "1 out of 5 (No lobulation)"), _2, _3, _4, _lidc("605", "5 out of 5 (Marked lobulation)"))),
    "spiculation": (_ncit("C28749", "Spiculation"), (
        _lidc("701", "1 out of 5 (No spiculation)"), _2, _3, _4, _lidc("705", "5 out of 5 (Marked spiculation)"))),
    "texture": (_ncit("C41144", "Texture"), (
        _radlex("RID50153", "non-solid pulmonary nodule"), _2, _radlex("RID50152", "part-solid pulmonary nodule"),
        _4, _radlex("RID50151", "solid pulmonary nodule"))),
    "malignancy": (_radlex("RID36042", "Malignancy"), (
        _lidc("901", "1 out of 5 (Highly Unlikely for Cancer)"),
        _lidc("902", "2 out of 5 (Moderately Unlikely for Cancer)"),
        _lidc("903", "3 out of 5 (Indeterminate Likelihood)"),
        _lidc("904", "4 out of 5 (Moderately Suspicious for Cancer)"),
        _lidc("905", "5 out of 5 (Highly Suspicious for Cancer)"))),
}  # fmt: skip
