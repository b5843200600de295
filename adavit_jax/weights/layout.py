"""How the tensors of a checkpoint file lie in our parameter tree."""

from typing import Any, Callable, NamedTuple

import numpy as np


class Tensor(NamedTuple):
  """One tensor of a file and the leaf of our tree that it fills.

  Attributes:
    name: in the file.
    leaf: path in our tree; an encoder's is ('encoders', index, ...), counted
      over fixed and adaptive ones together. Tensors of the same leaf are
      joined along its last axis, in order (q, k, v).
    shape: in the file.
    axes: transposition from the file to us; None keeps the order.
    shape_here: of the leaf, where it is not `shape` transposed.
  """
  name: str
  leaf: tuple[Any, ...]
  shape: tuple[int, ...]
  axes: tuple[int, ...] | None = None
  shape_here: tuple[int, ...] | None = None

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
    clean: (arrays by name) -> the same without prefixes and unused tensors.
    tensors: (model, cleaned names) -> list of `Tensor`, one for each tensor
      that the file should hold.
    block: regular expression whose first group is an encoder's number.
    dist: name of the distillation token after cleaning.
  """
  title: str
  recognises: Callable[..., bool]
  clean: Callable[..., dict]
  tensors: Callable[..., list[Tensor]]
  block: str
  dist: str


def torch_dense(name, leaf, num_in, num_out):
  """A torch Linear: weight [out, in] and bias."""
  return [
      Tensor(f'{name}.weight', (*leaf, 'kernel'), (num_out, num_in), (1, 0)),
      Tensor(f'{name}.bias', (*leaf, 'bias'), (num_out,))]


def torch_norm(name, leaf, width):
  """A torch LayerNorm."""
  return [Tensor(f'{name}.weight', (*leaf, 'scale'), (width,)),
          Tensor(f'{name}.bias', (*leaf, 'bias'), (width,))]


def torch_patches(name, model):
  """A torch Conv2d over patches: weight [D, C, P, P] and bias."""
  d, p, leaf = model.width, model.patch_size, ('patch_embed', 'proj')
  return [
      Tensor(f'{name}.weight', (*leaf, 'kernel'), (d, model.channels, p, p),
             (2, 3, 1, 0)),
      Tensor(f'{name}.bias', (*leaf, 'bias'), (d,))]


def tokens(model, cls, dist, positions):
  """Class token, distillation token if the model has one, and positions."""
  d = model.width
  found = [Tensor(cls, ('cls',), (1, 1, d)),
           Tensor(positions, ('pos_embedding',), (1, model.num_tokens, d))]
  if model.distillation:
    found.append(Tensor(dist, ('dist',), (1, 1, d)))
  return found
