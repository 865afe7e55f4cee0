"""Every field, with its default. A variant imports this file and overrides only what differs.

python -m pnsamp_jax.main --config configs/base.py --workdir runs/base --config.num_epochs=50
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """PN-SAMP M on the phantom, at the paper's size."""
    config = ConfigDict()

    config.seed = 0  # decides the split, the initial weights, the order of the batches and the augmentation
    config.fold = -1  # which fold to run; -1 runs all of them
    config.num_folds = 5
    config.split = "patient"  # "patient": a patient's nodules stay together; "nodule": as in the paper, leaky
    config.validation_fraction = 0.1  # of the training part of each fold, to choose the best checkpoint

    config.patch_size = 64  # voxels on a side; PN-SAMP needs a multiple of 16
    config.spacing_mm = 0.6

    config.data = ConfigDict()
    config.data.source = "phantom"  # "phantom" (simulated voxels), "lidc" or "folder"
    config.data.dicom_root = ""  # lidc: folder with LIDC-IDRI's DICOM files, in any layout
    config.data.root = ""  # folder: holds nodules.csv, ratings.csv, images/ and masks/
    config.data.phantom_nodules = 0  # phantom: how many nodules; 0 for all of the cohort
    config.data.cohort = "rounded_ne_3"  # or "mean_ne_3", "median_ne_3", "all"
    config.data.train_cohort = ""  # a wider cohort, as "all", whose further nodules are added to the training part
    config.data.min_readers = 1  # least number of readers of a nodule
    config.data.margin = 8  # voxels round the patch that shifts and turns can bring in
    config.data.cache = ""  # folder for prepared patches; default: pnsamp_jax in the user's cache folder
    config.data.pipeline = "device"  # "device": patches live on the device; "tfdata": TFDS records through tf.data
    config.data.workers = 0  # processes that prepare; 0 for one per core

    config.augment = ConfigDict()
    config.augment.flip = True  # along each axis, at even odds
    config.augment.turn = True  # by 0, 90, 180 or 270 degrees in the axial plane
    config.augment.permute = False  # the three axes, at random: for slabs, whose ends betray where a nodule ends
    config.augment.translate = 4  # whole voxels at most, along each axis
    config.augment.rotate = 10.0  # degrees at most, about a random axis

    config.model = ConfigDict()
    config.model.name = "pn_samp"
    config.model.windows = ((1600.0, -600.0), (700.0, -600.0))  # (width, centre) in HU of each input channel
    config.model.segment = True  # False for the single-task form C
    config.model.rate = True  # False for the single-task form Seg
    config.model.dropout = 0.0  # on the fused features; its draws depend on the number of devices
    config.model.dtype = "float32"  # of activations; "bfloat16" on GPU and TPU. Parameters and loss stay float32.

    config.loss = ConfigDict()  # the fixed trade-off between the three tasks
    config.loss.segmentation = 1.0
    config.loss.attributes = 1.0  # on the mean cross-entropy of the eight attributes
    config.loss.malignancy = 1.0
    config.loss.labels = "rounded"  # of the ratings: "rounded" mean of the readers (the paper), or their "distribution" over the classes

    config.batch_size = 8  # over all devices; a step at the full size takes 0.4 GB for each
    config.num_epochs = 100
    config.learning_rate = 1e-3  # Adam
    config.schedule = "constant"  # "constant" (the paper), "cosine" or "one_cycle"
    config.log_every_steps = 10
    config.checkpoint_every_epochs = 1
    config.test_flips = False  # average the predictions for the test nodules over the eight flips
    config.checkpoint = "best"  # which one is tested: "best" (least validation loss) or "last"

    config.predict = ConfigDict()  # --mode predict
    config.predict.image = ""  # NIfTI, NRRD or MetaImage file, or a folder that holds one DICOM series
    config.predict.points = ""  # of its nodules: "x,y,z;x,y,z", or a CSV with nodule_id, image, x_mm, y_mm, z_mm
    config.predict.units = "mm"  # of the points: LPS "mm", or "voxel" for i, j, k from 0 (columns i, j, k of a CSV)
    config.predict.checkpoint = ""  # the workdir of a training; by default the weights that come with the project
    config.predict.flips = True  # average over the eight flips of the patch
    config.predict.shown = 100  # how many nodules, from the first, stand in the report and the figures

    return config
