"""Installs `adavit_jax`; the extras bring what only some machines need."""

import pathlib

from setuptools import find_packages
from setuptools import setup

setup(
    name='adavit_jax',
    version='0.1.0',
    description='Vision transformers that spend only the compute an image '
                'needs, in JAX',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(
        encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The adavit_jax authors',
    keywords=['jax', 'flax', 'vision transformer', 'ViT', 'adaptive inference',
              'dynamic inference', 'early exit', 'layer dropping'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['adavit_jax', 'adavit_jax.*']),
    package_data={'adavit_jax.trained': ['*.safetensors']},
    python_requires='>=3.11',
    install_requires=[
        'absl-py>=2.1',
        'chex>=0.1.90',
        'clu>=0.0.12',
        'etils[epath]>=1.9.1',
        'flatbuffers>=24.3',  # jax.export writes and reads with it
        'flax>=0.11.2',
        'jax>=0.7.2',  # and flax 0.11.2: what Colab ships, and keeps
        'matplotlib>=3.8',
        'ml-collections>=1.0',
        'numpy>=2.0',
        'optax>=0.2.7',
        'orbax-checkpoint>=0.11,<1',  # at 1 another interface takes the name
        'pillow>=10.3',
        'safetensors>=0.4.3',
        'scikit-learn>=1.5',
        'scipy>=1.13',
        'tensorflow-datasets>=4.9.9',
        # tfds imports these two without declaring them everywhere it does.
        'array_record>=0.5; platform_system != "Windows"',
        'importlib_resources',
    ],
    extras_require={
        # On every Python the jax that is the newest on 3.11: from 0.11.2 on,
        # tiny programs take four times as long to compile. .ci/run and
        # .ci/nightly test with the newest, too.
        'test': ['adavit_jax[test_newest]',
                 'jax<0.11; python_version < "3.15"'],
        'test_newest': ['adavit_jax[input]', 'pytest>=8', 'pytest-xdist>=3.8'],
        'test_gcs': ['gcsfs>=2024.6', 'gcp-storage-emulator>=2026.7'],
        # Image sets too large for memory, such as ImageNet.
        'input': ['grain>=0.2.12', 'simplejpeg>=1.8', 'cykooz-resizer>=4'],
        'hub': ['huggingface_hub>=0.25'],
        'gcs': ['gcsfs>=2024.6'],  # work directories gs://
        'onnx': ['jax2onnx>=0.17'],  # and with it onnxruntime
        'torch': ['torch>=2.6'],  # reads .pth files
        'tensorboard': ['tensorboardX>=2.6'],
        'cuda': ['jax[cuda13]>=0.7.2'],
        'cuda12': ['jax[cuda12]>=0.7.2'],
        'tpu': ['jax[tpu]>=0.7.2'],
    },
)
