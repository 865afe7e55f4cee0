"""Outputs for people and viewers: figures, the HTML report, DICOM objects, and the files of a prediction."""
