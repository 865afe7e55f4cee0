"""Tables of diagnoses: the archive's own, as published and saved as CSV, and one with plain names and words."""

import csv
import sys
from collections import Counter

import pytest
from ct_files import refusal

from pnsamp_jax.data.diagnosis import DIAGNOSES, METHODS, Diagnosis, read_diagnoses

PUBLISHED = (
    "TCIA Patient ID",
    "Diagnosis at the Patient Level\n0=Unknown\n1=benign or non-malignant disease\n2= malignant, primary lung cancer",
    "Diagnosis Method\n0 = unknown\n1 = review of radiological images to show 2 years of stable nodule",
    "Primary tumor site for metastatic disease",
    "Nodule 1\nDiagnosis at the Nodule Level \n0=Unknown\n1=benign or non-malignant disease",
    "Nodule 1\nDiagnosis Method at the Nodule Level\n0 = unknown",
)
ROWS = [("a", 3, 4, "Head & Neck", 1, 1), ("b", 1, 1, "", 3, 2), ("c", 0, 0, "", "", ""), ("d", 2, 3, "lung", 2, 3)]
EXPECTED = {
    "a": Diagnosis("metastatic", "progression_or_response"),
    "b": Diagnosis("benign", "two_years_stable"),
    "c": Diagnosis("unknown", "unknown"),
    "d": Diagnosis("primary", "resection"),
}


def write(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("code", ["{}", "{}.0", " {} "])
def test_the_published_table_saved_as_csv(tmp_path, delimiter, code):
    rows = [(name, code.format(diagnosis), code.format(method), *rest) for name, diagnosis, method, *rest in ROWS]
    assert read_diagnoses(write(tmp_path / "t.csv", [PUBLISHED, *rows], delimiter)) == EXPECTED


def test_line_breaks_in_the_names_may_have_become_spaces(tmp_path):
    header = [name.replace("\n", " ") for name in PUBLISHED]
    assert read_diagnoses(write(tmp_path / "t.csv", [header, *ROWS])) == EXPECTED


def test_plain_names_and_words_in_any_order(tmp_path):
    rows = [(DIAGNOSES[diagnosis], name, METHODS[method].upper()) for name, diagnosis, method, *_ in ROWS]
    assert read_diagnoses(write(tmp_path / "t.csv", [("Diagnosis", "patient_id", "method"), *rows])) == EXPECTED


@pytest.mark.parametrize("name", ["Patient ID", "PatientID", "PATIENT_ID", '"Patient ID"', "tcia_patient_id"])
def test_the_name_of_the_column_of_patients_is_compared_loosely(tmp_path, name):
    rows = [(patient, diagnosis, method) for patient, diagnosis, method, *_ in ROWS]
    assert read_diagnoses(write(tmp_path / "t.csv", [(name, "Diagnosis", "Method"), *rows])) == EXPECTED


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            [("patient_id", "method"), ("a", 1)],
            "no column diagnosis, nor one whose name begins with 'diagnosis at the",
        ),
        ([("patient_id", "diagnosis"), ("a", 1)], "no column method"),
        ([("patient", "diagnosis", "method"), ("a", 1, 1)], "no column patient_id"),
        ([("patient_id", "diagnosis", "method"), ("a", 4, 1)], "line 2, column diagnosis: '4' is none of 0..3 or unk"),
        (
            [("patient_id", "diagnosis", "method"), ("a", 1, "guess")],
            "column method: 'guess' is none of 0..4 or unknow",
        ),
        ([("patient_id", "diagnosis", "method"), ("a", "", 1)], "line 2, column diagnosis: is empty"),
        ([("patient_id", "diagnosis", "method"), ("a", 1.5, 1)], "column diagnosis: '1.5' is none of"),
        ([("patient_id", "diagnosis", "method"), ("", 1, 1)], "line 2, column patient_id: is empty"),
        ([("patient_id", "diagnosis", "method"), ("a", 1, 1), ("a", 1, 1)], "line 3: patient 'a' appears twice"),
        (
            [("patient_id", "diagnosis", "method"), ("P_1", 1, 1), ("p01", 2, 1)],
            "line 3: 'p01' and 'P_1' differ only in case, blanks, hyphens, underscores, leading zeros or a final .0, "
            "so a patient appears twice; keep one line",
        ),
        ([("patient_id", "diagnosis", "method", "diagnosis"), ("a", 1, 1, 2)], "two columns diagnosis"),
        ([("patient_id", "diagnosis", "method")], "names no patient"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, rows, complaint):
    assert complaint in refusal(read_diagnoses, write(tmp_path / "t.csv", rows))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    assert "config.data.diagnosis: no such file" in refusal(read_diagnoses, tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "not of the kind .xls; save it as CSV" in refusal(read_diagnoses, tmp_path / "t.xlsx")


def test_the_table_as_published(diagnosis_files):
    published, words = diagnosis_files
    found = read_diagnoses(published)
    assert found == read_diagnoses(words)
    assert Counter(one.diagnosis for one in found.values()) == {
        "metastatic": 51,
        "primary": 43,
        "benign": 36,
        "unknown": 27,
    }
    assert found["LIDC-IDRI-0068"] == Diagnosis("metastatic", "progression_or_response")


@pytest.mark.parametrize("length", [8, 600, 20_000, 40_000])
def test_a_published_table_that_is_cut_off_is_refused(tmp_path, diagnosis_files, length):
    (tmp_path / "t.xls").write_bytes(diagnosis_files[0].read_bytes()[:length])
    assert "t.xls: cannot be read as .xls; copy it again" in refusal(read_diagnoses, tmp_path / "t.xls")


def test_without_xlrd_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xlrd", None)
    (tmp_path / "t.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    assert "pip install 'pnsamp-jax[experiments]'" in refusal(read_diagnoses, tmp_path / "t.xls")
