"""All fields with their defaults: PN-SAMP M on the phantom, at the paper's size.

A variant imports this file and overrides only the fields that differ.

    python -m pnsamp_jax.main --config base --workdir runs/base --config.num_epochs=50
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return a new config, which the caller may change."""
    config = ConfigDict()

    config.seed = 0  # determines the split, the initial weights, the order of the batches and the augmentation
    config.fold = -1  # index of the only fold to run; -1 runs all folds
    config.num_folds = 5  # number of folds in the split
    config.init = ""  # networks to start from: "shipped", or the workdir of a run; "" starts from random weights
    config.split = "patient"  # "patient" keeps a patient's nodules together; "nodule", as in the paper, does not
    config.validation_fraction = 0.1  # share of a fold's training nodules, held out to choose the best checkpoint

    config.patch_size = 64  # voxels on a side; PN-SAMP needs a multiple of 16
    config.spacing_mm = 0.6  # size of a voxel, the same in every direction

    config.data = _data()
    config.augment = _augment()
    config.appearance = _appearance()
    config.model = _model()
    config.loss = _loss()

    # The paper gives neither the size of the batches nor the number of epochs; both are chosen here.
    config.batch_size = 8  # nodules in a batch, over all devices; a full-size step takes 0.2 GB per nodule
    config.num_epochs = 100  # of each fold; at a constant rate, it may be raised later to train on
    config.learning_rate = 1e-3  # peak learning rate of Adam (the paper)
    config.schedule = "constant"  # of the learning rate: "constant" (the paper), "cosine" or "one_cycle"
    config.average_decay = 0.0  # of the exponential moving average of the weights that is tested; 0 tests the weights
    config.log_every_steps = 10  # steps from one line of metrics.jsonl to the next
    config.steps_per_call = 1  # training steps in one call of the device; more of them save calls on a fast device
    config.distributed = ""  # several processes: "auto" (SLURM, TPU pod), "address:port,rank,count"; "" for one
    config.checkpoint_every_epochs = 1  # epochs from one validation and checkpoint to the next
    config.refit_copies = 0  # copies of each nodule to fit new heads to after a training without `init`; 0: none
    config.fit_threshold = False  # give each mask the threshold of the largest expected Dice, instead of one half
    config.test_flips = False  # average the predictions for the test nodules over the eight flips
    config.checkpoint = "best"  # the checkpoint to test: "best" (lowest validation loss) or "last"

    config.predict = _predict()
    return config


def _data() -> ConfigDict:
    """Return where the nodules come from, and which of them are used."""
    data = ConfigDict()
    data.source = "phantom"  # "phantom" (simulated voxels), "lidc", "luna16" or "folder"
    data.dicom_root = ""  # lidc: folder with LIDC-IDRI's DICOM files, in any layout
    data.root = ""  # folder: the one with nodules.csv, ratings.csv, images/ and masks/; luna16: that with the subsets
    data.phantom_nodules = 0  # phantom: number of nodules; 0 for the whole cohort
    data.cohort = "rounded_ne_3"  # which nodules are split into folds; also "mean_ne_3", "median_ne_3" or "all"
    data.train_cohort = ""  # a wider cohort, such as "all", whose additional nodules join the training subset
    data.min_readers = 1  # leave out nodules that fewer readers marked
    data.nominal = "modal"  # internal structure, calcification: most readers' class, or the rounded "mean" (the paper)
    data.diagnosis = ""  # table of diagnoses by patient (.xls or CSV), with which the evaluation also compares
    data.background = 0  # points beside each nodule, from which the test learns `nodule_like`; 0 leaves it blank
    data.margin = 8  # voxels stored around the patch, from which shifts and rotations fill it up
    data.cache = ""  # folder for prepared patches; by default pnsamp_jax in the user's cache folder
    data.pipeline = "device"  # "device" keeps all patches on the device; "tfdata" reads each batch from disk
    data.workers = 0  # processes that prepare patches; 0 for one per core
    data.beam = ""  # options of Apache Beam, whose workers prepare them instead: "runner=FlinkRunner,parallelism=16"
    return data


def _augment() -> ConfigDict:
    """Return how training patches are varied at random.

    All but rotations move voxels onto voxels. A rotation by any angle interpolates: up to 10 degrees leave 82 % of the
    second differences of real patches (78 % at 1.2 mm; with a cubic spline 95 %). Test patches are never rotated.
    """
    augment = ConfigDict()
    augment.flip = True  # along each axis, with probability 1/2
    augment.turn = True  # by 0, 90, 180 or 270 degrees in the axial plane
    augment.permute = False  # reorder the axes; for slabs, whose ends would reveal where a nodule ends
    augment.translate = 4  # largest shift along each axis, in whole voxels
    augment.rotate = 0.0  # largest rotation, in degrees, about a random axis; it blurs, see above
    return augment


def _appearance() -> ConfigDict:
    """Return how the look of training patches changes at random. Faded or enlarged ones teach the outline only."""
    look = ConfigDict()
    look.fade = 0.0  # probability that a nodule is faded to ground glass
    look.uneven = 0.0  # how much the density within a faded nodule varies at most, as a logarithm; 0 fades evenly
    look.enlarge = 0.0  # probability that a nodule is enlarged
    look.enlarge_faded = 0.0  # probability that a faded nodule is enlarged as well
    look.largest = 2.0  # largest factor of enlargement
    look.noise = 0.0  # largest standard deviation of added noise, in HU
    look.smear = 0.0  # probability that a patch is smoothed along one axis, as thick slices are
    return look


def _model() -> ConfigDict:
    """Return the fields of the network. Other models have other fields, see `pnsamp_jax/models`."""
    model = ConfigDict()
    model.name = "pn_samp"  # one of pnsamp_jax.models.MODELS
    model.windows = ((1600.0, -600.0), (700.0, -600.0))  # (width, centre) in HU of each input channel
    model.segment = True  # False for the single-task variant C
    model.rate = True  # False for the single-task variant Seg
    model.dropout = 0.0  # rate on the fused features; what is dropped depends on the number of devices
    model.dtype = "float32"  # of activations; "bfloat16" on GPU and TPU. Parameters and loss stay float32.
    return model


def _loss() -> ConfigDict:
    """Return the fixed weights of the three tasks, and their labels.

    The paper has a fixed trade-off between the tasks, but does not give it. It is chosen here: equal weights of the
    segmentation, of the mean of the eight attributes, and of malignancy.
    """
    loss = ConfigDict()
    loss.segmentation = 1.0  # weight of the Dice loss, equation (1) of the paper
    loss.voxels = 0.0  # weight of the voxels' cross-entropy, beside the Dice loss
    loss.attributes = 1.0  # weight of the mean cross-entropy of the eight attributes
    loss.malignancy = 1.0  # weight of the cross-entropy of malignancy
    loss.labels = "rounded"  # the readers' "rounded" mean (the paper), or their "distribution" over the classes
    loss.indeterminate = True  # False: malignancy is not trained on nodules rated 3; heads fitted anew always are
    return loss


def _predict() -> ConfigDict:
    """Return the fields of `--mode predict`."""
    predict = ConfigDict()
    predict.image = ""  # a NIfTI, NRRD, MetaImage or enhanced CT file, a folder with a DICOM series, or a .zip or .tar
    predict.series = ""  # SeriesInstanceUID, for a folder that holds several CT series
    predict.points = ""  # "x,y,z;x,y,z", a CSV with nodule_id, image, x_mm, y_mm, z_mm, or another file of points
    predict.units = "mm"  # of the points: "mm" (LPS), "ras" (RAS mm), or "voxel" for i, j, k from 0
    predict.min_score = 0.0  # leave out detections with a lower score; the file of points must have scores
    predict.checkpoint = ""  # workdir of a training; by default the weights that come with the package
    predict.flips = True  # average over the eight flips of the patch
    predict.runtime = "jax"  # what computes the networks' answers: "jax", or on CPU "openvino" (extra `openvino`)
    predict.shown = 100  # largest number of nodules in the report and the figures, the first ones; 0 writes neither
    return predict
