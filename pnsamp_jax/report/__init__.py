"""Outputs for people and viewers: figures, the HTML report, DICOM objects, and the files of a prediction."""

SIMULATED = "These networks were trained on simulated voxels: what they predict says nothing about a real CT."
