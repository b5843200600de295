"""Datasets, batches, and augmentation on the device."""

from adavit_jax.data.augment import augment
from adavit_jax.data.augment import check_channels
from adavit_jax.data.augment import normalize
from adavit_jax.data.batches import ahead
from adavit_jax.data.batches import batch_indices
from adavit_jax.data.batches import train_batches
from adavit_jax.data.crops import on_reading as crop_on_reading
from adavit_jax.data.data_config import check_augmentation
from adavit_jax.data.data_config import check_regression
from adavit_jax.data.data_config import default_config
from adavit_jax.data.decode import CorruptImageError
from adavit_jax.data.decode import center
from adavit_jax.data.sources import load
from adavit_jax.data.splits import ArraySplit
from adavit_jax.data.splits import Dataset
from adavit_jax.data.splits import Split
from adavit_jax.data.splits import Target
from adavit_jax.data.splits import fingerprint

__all__ = [
    'ArraySplit', 'CorruptImageError', 'Dataset', 'Split', 'Target', 'ahead',
    'augment', 'batch_indices', 'center', 'check_augmentation',
    'check_channels', 'check_regression', 'crop_on_reading', 'default_config',
    'fingerprint', 'load', 'normalize', 'train_batches',
]
