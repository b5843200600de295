"""How the tensors of a checkpoint file lie in our groups of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Tensor(NamedTuple):
  """One tensor of a file and the leaf of our groups that it fills.

  Attributes:
    name: in the file.
    leaf: path in its group. A number in it is a row of a stack of encoders:
      ('encoders', 2, 'fc1', 'bias') is row 2 of the leaf without the number.
      Tensors of the same path are joined along its last axis, in order (q, k,
      v).
    shape: in the file.
    axes: transposition from the file to us; None keeps the order.
    shape_here: of the leaf, where it is not `shape` transposed.
    group: 'backbone' or 'batch_stats'.
  """
  name: str
  leaf: tuple[Any, ...]
  shape: tuple[int, ...]
  axes: tuple[int, ...] | None = None
  shape_here: tuple[int, ...] | None = None
  group: str = 'backbone'

  @property
  def order(self):
    """`axes`, also where the order is kept."""
    return tuple(range(len(self.shape))) if self.axes is None else self.axes

  def to_leaf(self, x):
    """The file's array as float32 in our layout."""
    x = np.asarray(x, np.float32).transpose(self.order)
    return x.reshape(self.shape_here or x.shape)

  def from_leaf(self, x):
    """The inverse of `to_leaf` where `shape_here` is None."""
    x = np.transpose(x, np.argsort(self.order))
    # The safetensors library writes the memory, whatever its strides.
    return np.ascontiguousarray(x, np.float32)


class Format(NamedTuple):
  """A family of files.

  Attributes:
    title: for messages.
    recognises: (names of a file) -> bool.
    clean: (arrays by name) -> the same without prefixes and unused tensors, a
      new dict.
    tensors: (model, cleaned names) -> list of `Tensor`, one for each tensor
      that the file should hold.
    block: regular expression whose first group is an encoder's number; ''
      where names have none.
    heads: names of our groups of parameters that end in the classes. They
      are initialised where the first is missing or of other classes.
    dist: name of the distillation token after cleaning.
    adapt: (model, path, format, tensors, arrays) -> None, makes of the cleaned
      arrays those that the model needs, in place; None where nothing is to do.
    sizes: (format, tensors, arrays) -> {attribute of the model: value} that
      the arrays show, for messages; None without.
  """
  title: str
  recognises: Callable[..., bool]
  clean: Callable[..., dict]
  tensors: Callable[..., list[Tensor]]
  block: str = ''
  heads: tuple[str, ...] = ()
  dist: str = ''
  adapt: Callable[..., None] | None = None
  sizes: Callable[..., dict] | None = None


def torch_dense(name, leaf, num_in, num_out):
  """A torch Linear: weight [out, in] and bias."""
  return [
      Tensor(f'{name}.weight', (*leaf, 'kernel'), (num_out, num_in), (1, 0)),
      Tensor(f'{name}.bias', (*leaf, 'bias'), (num_out,))]


def torch_norm(name, leaf, width):
  """A torch LayerNorm."""
  return [Tensor(f'{name}.weight', (*leaf, 'scale'), (width,)),
          Tensor(f'{name}.bias', (*leaf, 'bias'), (width,))]
