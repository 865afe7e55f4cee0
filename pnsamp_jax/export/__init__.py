"""Trained networks as files that run without this package: StableHLO, ONNX and OpenVINO."""
