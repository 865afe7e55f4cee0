"""The TFDS dataset `lidc_nodules`; importing `lidc_nodules_dataset_builder` registers it."""
