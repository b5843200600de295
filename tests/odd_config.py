"""A config file whose get_config returns no config, for test_config.py."""


def get_config():
  return 3
