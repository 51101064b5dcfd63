"""MODEL, MIX, OPTIMIZER and SCHEDULE: the network and how it is optimized."""

from lib.config.key import Key, Section

# Backbones with MODEL.PRETRAINED bundled: those in lib/backbone/bundled.py.
BUNDLED = ('tf_efficientnet_lite0', 'tf_efficientnet_lite1', 'tf_efficientnet_lite2')
_WITH_MOMENTUM = ('OPTIMIZER.TYPE', ('sgd',))
_WITH_STEPS = ('OPTIMIZER.TYPE', ('sgd', 'adam', 'adamw'))  # all but L-BFGS
_FROM_TEXT = ('MODEL.CLASSIFIER_INIT', ('text',))
_WITH_ADAPTERS = ('MODEL.TUNE', ('lora', 'adaptformer'))


def _of_mix(*names: str) -> tuple[str, tuple[str, ...]]:
    return ('MIX.TYPE', names)


class ModelKeys(Section, title='backbone and classifier'):
    BACKBONE = Key(
        'resnest50',
        'Backbone: any model name of timm, or res50, res101, res152, resnest50, resnest101, resnest200, resnest269, '
        'res32_cifar.',
    )
    PRETRAINED = Key(
        'auto',
        f"Backbone weights: 'bundled' (with requirements.txt: {BUNDLED[0]}; with requirements-weights.txt: "
        f"{', '.join(BUNDLED[1:])}), 'timm' to download them, a local file, or the name of one in ./pretrain_models. "
        'auto: bundled if MODEL.BACKBONE has such weights, else none. Empty: random initialization.',
        is_path=True,
    )
    POOL = Key(
        '',
        "Pooling of the last feature map, or of a transformer's tokens: avg, max, gem (generalized mean with a learned "
        "exponent, from 3; feature maps only), cls (class token). Empty: the backbone's own.",
        choices=('', 'avg', 'max', 'gem', 'cls'),
    )
    EMBEDDING = Key(
        0,
        'Width of an embedding (a linear layer and BatchNorm) between backbone and classifier, which product search '
        'compares by cosine similarity. 256 to 512 are usual. 0: none.',
        low=0,
        high=65_536,
    )
    CLASSIFIER = Key(
        'FC',
        'Classifier: FC or linear (with bias), FCNorm or cosine (cosine similarity), lws (linear with a learnable '
        'scale per class).',
        choices=('FC', 'FCNorm', 'linear', 'cosine', 'lws'),
    )
    CLASSIFIER_INIT = Key(
        'checkpoint',
        'Initial classifier for trained weights. checkpoint: the classifier in the checkpoint, or random rows without '
        'one. random: random rows. class_means: the mean feature of each class. text: embeddings of the class names by '
        'TEXT_MODEL.',
        choices=('checkpoint', 'random', 'class_means', 'text'),
    )
    TEXT_MODEL = Key(
        'ViT-B-16:openai',
        'CLIP model whose image encoder is MODEL.BACKBONE: its name in open_clip, a colon, and a tag of weights to '
        'download or a local file. Needs requirements-text.txt.',
        used_by=_FROM_TEXT,
    )
    TEXT_PROMPT = Key('a photo of a {}.', 'Prompt around each class name, which replaces {}.', used_by=_FROM_TEXT)
    FREEZE_CLASSIFIER = Key(False, 'Train only the scales of the classifier.', used_by=('MODEL.CLASSIFIER', ('lws',)))
    COSINE_SCALE = Key(
        16.0,
        'Scale s of the cosine logits.',
        low=1e-3,
        neutral=1.0,
        used_by=('MODEL.CLASSIFIER', ('FCNorm', 'cosine')),
    )
    CENTERS = Key(
        1,
        'Centers per class of the cosine classifier; the nearest counts (sub-center ArcFace).',
        low=1,
        high=64,
        used_by=('MODEL.CLASSIFIER', ('FCNorm', 'cosine')),
    )
    FREEZE_BACKBONE = Key(
        False, 'Train only embedding and classifier; BatchNorm statistics are frozen, too. The same as MODEL.TUNE head.'
    )
    FREEZE_STAGES = Key(
        0,
        'Number of initial stages of the backbone that are frozen, BatchNorm statistics included; 1 is the stem alone. '
        'Steps are faster, with little loss on small sets.',
        low=0,
        used_by=('MODEL.TUNE', ('full',)),
    )
    TUNE = Key(
        'full',
        'Trained part of the backbone, besides embedding and classifier. full: everything. head: nothing. norm, bias: '
        'these parameters. ssf: a scale and a shift after each layer. lora, adaptformer: adapters in transformer '
        'blocks.',
        choices=('full', 'head', 'norm', 'bias', 'ssf', 'lora', 'adaptformer'),
    )
    TUNE_RANK = Key(
        0, 'Rank of LoRA, width of AdaptFormer. 0: 8 for lora, 64 for adaptformer.', low=0, used_by=_WITH_ADAPTERS
    )
    TUNE_SCALE = Key(
        0.0,
        'Scale of the adapters: alpha / rank of LoRA, initial s of AdaptFormer. 0: 1 for lora, 0.1 for adaptformer.',
        low=0.0,
        used_by=_WITH_ADAPTERS,
    )
    SYNC_BATCHNORM = Key(
        False, 'Compute BatchNorm statistics over the images of all GPUs (under torchrun) instead of per GPU.'
    )
    BACKBONE_SHARDED = Key(
        False,
        'Split parameters, gradients, optimizer state and EMA of the backbone over the ranks of torchrun (FSDP2, ZeRO '
        'stage 3); the parameters of a block are gathered only while it computes.',
    )
    CLASSIFIER_SHARDED = Key(
        False, 'Split the classes over the ranks of torchrun; each rank holds the classifier rows of its shard.'
    )
    SHIFT_BATCHNORM = Key(False, 'Update the BatchNorm statistics of a frozen backbone in training.')


class MixKeys(Section, title='mixing of image pairs'):
    TYPE = Key(
        '',
        'Mix pairs of training images. Empty: no mixing.',
        choices=('', 'mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo', 'bbn'),
    )
    ALPHA = Key(
        1.0,
        'alpha: the mixing coefficient lam is drawn from Beta(alpha, alpha).',
        low=1e-3,
        used_by=_of_mix('mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo'),
    )
    PROBABILITY = Key(
        1.0,
        'Probability that an image is mixed.',
        low=0.0,
        high=1.0,
        used_by=_of_mix('mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo'),
    )
    STAGES = Key[tuple[float, ...]](
        (0.0, 1.0, 2.0),
        'Layers at which manifold mixup mixes: 0 is the image, 1 the output of the first backbone stage, ... Each step '
        'draws one of them.',
        low=0.0,
        used_by=_of_mix('manifold_mixup'),
    )
    KAPPA = Key(
        3.0,
        'Remix kappa: smallest ratio of the class sizes for which the rarer class may get the whole label.',
        low=1.0,
        used_by=_of_mix('remix'),
    )
    TAU = Key(
        0.5,
        'Remix tau: the rarer class gets the whole label if lam of the larger class is below tau.',
        low=0.0,
        high=1.0,
        used_by=_of_mix('remix'),
    )
    OFF_EPOCHS = Key(
        0,
        'Number of epochs without mixing at the end of the run.',
        low=0,
        used_by=_of_mix('mixup', 'cutmix', 'manifold_mixup', 'remix', 'cmo'),
    )


class OptimizerKeys(Section, title='optimizer'):
    TYPE = Key(
        'sgd',
        'Optimizer. lbfgs: L-BFGS over the whole training set, for heads on cached features (TRAIN.FEATURES cached). '
        'Epoch e (from 0) minimizes the mean loss + lambda_e / 2 |W|^2, lambda_e = FIRST_LAMBDA x 10^(e/2), for '
        'features of mean 0 and total variance 1, so TRAIN.SELECT_RULE selects the regularization.',
        choices=('sgd', 'adam', 'adamw', 'lbfgs'),
    )
    LR = Key(
        0.1,
        'Base learning rate; with SCHEDULE.TYPE one_cycle, its maximum. auto: depends on the number of training '
        'images.',
        low=0.0,
        auto=-1.0,
        used_by=_WITH_STEPS,
    )
    FIRST_LAMBDA = Key(
        1e-7,
        'lambda of the first epoch, the weakest regularization. 0: no regularization, and each epoch takes up to 100 '
        'more iterations.',
        low=0.0,
        high=1e3,
        used_by=('OPTIMIZER.TYPE', ('lbfgs',)),
    )
    MOMENTUM = Key(0.9, 'Momentum.', low=0.0, high=0.9999, used_by=_WITH_MOMENTUM)
    NESTEROV = Key(False, 'Use Nesterov momentum.', used_by=_WITH_MOMENTUM)
    BETAS = Key(
        (0.9, 0.999),
        'beta_1 and beta_2 of Adam.',
        low=0.0,
        high=0.999999,
        used_by=('OPTIMIZER.TYPE', ('adam', 'adamw')),
    )
    WEIGHT_DECAY = Key(1e-4, 'Weight decay.', low=0.0, used_by=_WITH_STEPS)
    MAX_NORM = Key(
        0.0,
        'Maximum L2 norm of each classifier row, enforced after every step (MaxNorm). 0: no limit.',
        low=0.0,
        used_by=_WITH_STEPS,
    )
    CLIP_NORM = Key(
        0.0,
        'Maximum L2 norm of all gradients together (gradient clipping). 0: no limit.',
        low=0.0,
        used_by=_WITH_STEPS,
    )
    LAYER_DECAY = Key(
        1.0,
        'Layer-wise learning rate decay: factor per backbone block, counted from the classifier.',
        low=1e-3,
        high=1.0,
    )
    DECAY_NORM_AND_BIAS = Key(True, 'Apply weight decay to biases and normalization layers, too.', used_by=_WITH_STEPS)


class ScheduleKeys(Section, title='learning rate schedule'):
    TYPE = Key(
        'multistep',
        'Learning rate schedule.',
        choices=('multistep', 'cosine', 'one_cycle'),
        used_by=_WITH_STEPS,
    )
    WARMUP_FRACTION = Key(
        0.0,
        'Length of the warm-up as a fraction of TRAIN.MAX_EPOCH.',
        low=0.0,
        high=0.99,
        used_by=_WITH_STEPS,
    )
    WARMUP_EPOCHS = Key(
        -1.0,
        'Length of the warm-up in epochs; replaces WARMUP_FRACTION. -1: WARMUP_FRACTION applies.',
        low=-1.0,
        used_by=_WITH_STEPS,
    )
    MILESTONE_EPOCHS = Key[tuple[float, ...]](
        (10.0, 20.0, 30.0),
        'Epochs at which the learning rate is multiplied by a factor.',
        low=0.0,
        used_by=('SCHEDULE.TYPE', ('multistep',)),
    )
    DECAY_FACTORS = Key[tuple[float, ...]](
        (0.1,),
        'Factor at each milestone, or one factor for all milestones.',
        low=0.0,
        used_by=('SCHEDULE.TYPE', ('multistep',)),
    )
    FINAL_LR = Key(0.0, 'Learning rate at the end of the run.', low=0.0, used_by=('SCHEDULE.TYPE', ('cosine',)))
    DIV_FACTOR = Key(
        25.0, 'Maximum learning rate over the initial one.', low=1.0, used_by=('SCHEDULE.TYPE', ('one_cycle',))
    )
    FINAL_DIV_FACTOR = Key(
        1e4, 'Initial learning rate over the final one.', low=1.0, used_by=('SCHEDULE.TYPE', ('one_cycle',))
    )
