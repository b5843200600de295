"""The mapping from tensors of a checkpoint file to parameter groups."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Of the channels of ImageNet's images in [0, 1].
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Tensor(NamedTuple):
  """One tensor of a file and the leaf of the parameter groups that it fills.

  Attributes:
    name: name in the file.
    leaf: path in its group. An integer selects a row of a stack of encoders:
      ('encoders', 2, 'fc1', 'bias') is row 2 of ('encoders', 'fc1', 'bias').
      Tensors with the same path are concatenated along the last axis, in order
      (q, k, v); `save` needs the `columns` of each.
    shape: shape in the file.
    axes: transposition from the file to the leaf; None for none.
    shape_here: shape of the leaf if it is not the transposed `shape`.
    group: 'backbone' or 'batch_stats'.
    columns: (start, stop) of the part of the leaf's last axis that it fills;
      None for all of it.
  """
  name: str
  leaf: tuple[Any, ...]
  shape: tuple[int, ...]
  axes: tuple[int, ...] | None = None
  shape_here: tuple[int, ...] | None = None
  group: str = 'backbone'
  columns: tuple[int, int] | None = None

  @property
  def order(self):
    """`axes`, with None replaced by the identity."""
    return tuple(range(len(self.shape))) if self.axes is None else self.axes

  def to_leaf(self, x):
    """Converts the array in the file to the float32 leaf."""
    x = np.asarray(x, np.float32).transpose(self.order)
    return x.reshape(self.shape_here or x.shape)

  def from_leaf(self, x):
    """The inverse of `to_leaf`."""
    x = np.reshape(x, [self.shape[i] for i in self.order])
    x = np.transpose(x, np.argsort(self.order))
    # safetensors writes the raw memory and ignores strides.
    return np.ascontiguousarray(x, np.float32)


class Format(NamedTuple):
  """A file layout.

  Attributes:
    title: name for messages.
    recognizes: (tensor names) -> bool.
    clean: (arrays by name) -> new dict without prefixes and unused tensors.
    tensors: (model, cleaned names) -> list of `Tensor`, one for each tensor
      that the file should hold.
    block: regular expression for tensor names whose first group is the index of
      the encoder; '' if names have none.
    heads: names of the parameters whose output is the class logits. They are
      initialized if the first one is missing or has other classes.
    dist: name of the distillation token after cleaning.
    adapt: (model, path, format, tensors, arrays) -> None, adapts the cleaned
      arrays to the model in place; None for no adaptation.
    sizes: (format, tensors, arrays) -> {model attribute: value} implied by the
      arrays, for messages; None for no such hints.
    images: (arrays) -> fields of `Preprocessing`; None if a file tells nothing.
    further: (model, tensors by name) -> dict of tensors that `save` adds and
      `clean` removes, such as copies; None for none.
  """
  title: str
  recognizes: Callable[..., bool]
  clean: Callable[..., dict]
  tensors: Callable[..., list[Tensor]]
  block: str = ''
  heads: tuple[str, ...] = ()
  dist: str = ''
  adapt: Callable[..., None] | None = None
  sizes: Callable[..., dict] | None = None
  images: Callable[..., dict] | None = None
  further: Callable[..., dict] | None = None


def torch_dense(name, leaf, num_in, num_out):
  """A torch Linear: weight [out, in] and bias."""
  return [
      Tensor(f'{name}.weight', (*leaf, 'kernel'), (num_out, num_in), (1, 0)),
      Tensor(f'{name}.bias', (*leaf, 'bias'), (num_out,))]


def torch_conv(name, leaf, shape, bias=True):
  """A torch Conv2d of a kernel [h, w, in, out], or [in, out] if it is 1x1."""
  h, w, num_in, num_out = (1, 1, *shape)[-4:]
  weight = Tensor(f'{name}.weight', (*leaf, 'kernel'), (num_out, num_in, h, w),
                  (2, 3, 1, 0), shape)
  return [weight] + bias * [Tensor(f'{name}.bias', (*leaf, 'bias'), (num_out,))]


def torch_norm(name, leaf, width):
  """A torch LayerNorm, or the parameters of a BatchNorm."""
  return [Tensor(f'{name}.weight', (*leaf, 'scale'), (width,)),
          Tensor(f'{name}.bias', (*leaf, 'bias'), (width,))]


def torch_batch_norm(name, leaf, width):
  """A torch BatchNorm; its statistics have the path of its parameters."""
  return [
      *torch_norm(name, leaf, width),
      Tensor(f'{name}.running_mean', (*leaf, 'mean'), (width,),
             group='batch_stats'),
      Tensor(f'{name}.running_var', (*leaf, 'var'), (width,),
             group='batch_stats')]


def torch_encoder(name, leaf, width, hidden):
  """An encoder of timm's ViT: norms, attention and an MLP of width `hidden`."""
  dense = lambda there, here, num_in, num_out: torch_dense(
      f'{name}.{there}', (*leaf, here), num_in, num_out)
  return [
      *torch_norm(f'{name}.norm1', (*leaf, 'norm1'), width),
      *dense('attn.qkv', 'qkv', width, 3 * width),
      *dense('attn.proj', 'proj', width, width),
      *torch_norm(f'{name}.norm2', (*leaf, 'norm2'), width),
      *dense('mlp.fc1', 'fc1', width, hidden),
      *dense('mlp.fc2', 'fc2', hidden, width)]
