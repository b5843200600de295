from setuptools import find_packages, setup
setup(name='adavit_jax', packages=find_packages(include=['adavit_jax*']))
