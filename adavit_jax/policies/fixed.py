"""Policies without training: fixed, random, stochastic and all layers."""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models import actions as actions_lib
from adavit_jax.models.actions import Actions

# (MSA, MLP) layers dropped by policies 1 to 5 (Table 1 of US 12,394,190).
TABLE_1 = {1: (5, 5), 2: (5, 3), 3: (3, 3), 4: (1, 2), 5: (0, 0)}


class Stochastic(NamedTuple):
  """A policy that draws the layers of each image (figure 9), see `survival`.

  Attributes:
    final: survival probability of the last layer, in [0, 1].
  """
  final: float


def all_layers(num_layers):
  """Keeps all (L1, L2) = num_layers layers: `Actions` of ones [L1], [L2]."""
  return drop(num_layers, 0, 0)


def drop(num_layers, num_msa, num_mlp, *, which='last'):
  """Drops the first or last MSA and MLP layers of the adaptive encoders.

  Args:
    num_layers: (L1, L2).
    num_msa: number of MSA layers to drop.
    num_mlp: number of MLP layers to drop.
    which: 'last' (nearest to the output) or 'first' (as printed in Table 1,
      although its text finds that early layers matter more).

  Returns:
    `Actions` of NumPy float32 [L1], [L2].

  Raises:
    ValueError: if there are fewer layers than should be dropped.
  """
  if which not in ('first', 'last'):
    raise ValueError(f"which={which!r} must be 'first' or 'last'")
  wanted = num_msa, num_mlp
  if not all(0 <= drop <= num for drop, num in zip(wanted, num_layers)):
    raise ValueError(f'cannot drop {num_msa} MSA and {num_mlp} MLP layers of '
                     f'{num_layers[0]} and {num_layers[1]}')
  def keep(num, total):
    a = np.ones(total, np.float32)
    a[slice(0, num) if which == 'first' else slice(total - num, None)] = 0
    return a
  return Actions(*map(keep, wanted, num_layers))


def table_1(number, num_layers, *, which='first'):
  """Fixed policy 1 to 5 of Table 1 in US 12,394,190; see `drop`."""
  if number not in TABLE_1:
    raise ValueError(f'policy {number} is not in Table 1; give 1 to 5')
  return drop(num_layers, *TABLE_1[number], which=which)


def parse(keep, num_layers):
  """Parses a mask of L1 MSA digits, then L2 MLP digits, 0 or 1, to `Actions`.

  Raises:
    ValueError: if the text has another length or other characters.
  """
  if len(keep) != sum(num_layers) or set(keep) - {'0', '1'}:
    raise ValueError(f'keep={keep!r} must be {sum(num_layers)} digits 0 or 1, '
                     f'for {num_layers[0]} MSA, then {num_layers[1]} MLP '
                     f'layers')
  return Actions.from_keep(np.array(list(keep), np.float32), num_layers)


def choose(value, num_layers):
  """Converts what a user may give to choose layers for every image.

  Args:
    value: the number of a policy of Table 1, which drops the first layers, as
      printed; a mask, as text for `parse` or as `Actions` of array-likes; or a
      `Stochastic`.
    num_layers: (L1, L2).

  Returns:
    `Actions` of read-only NumPy arrays [L1], [L2], or the `Stochastic`.

  Raises:
    ValueError: if the value is none of these, or does not fit the layers.
  """
  if isinstance(value, Stochastic):
    if not (isinstance(value.final, numbers.Real) and 0 <= value.final <= 1):
      raise ValueError(f'{value} must have a probability in [0, 1]')
    return value
  if isinstance(value, str):
    actions = parse(value, num_layers)
  elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
    actions = table_1(value, num_layers)
  elif isinstance(value, tuple) and len(value) == 2:
    actions = actions_lib.checked(value, None, num_layers, gates=False)
  else:
    raise ValueError(f'actions={value!r}: give 1 to 5 for a policy of Table 1, '
                     f'a mask of digits 0 and 1, Actions or Stochastic')
  return Actions(*map(_read_only, actions))


def _read_only(array):
  copied = np.array(array, np.float32)
  copied.setflags(write=False)
  return copied


def parse_choice(text, num_layers):
  """Parses text to layers for every image, see `choose`.

  Args:
    text: '1' to '5' for a policy of Table 1, a mask for `parse`, or
      'stochastic:FINAL' for a `Stochastic`.
    num_layers: (L1, L2).

  Returns:
    `Actions` of NumPy arrays [L1], [L2], or a `Stochastic`.

  Raises:
    ValueError: as `choose`.
  """
  kind, _, final = text.partition(':')
  if kind == 'stochastic':
    try:
      return choose(Stochastic(float(final)), num_layers)
    except ValueError as e:
      raise ValueError(f'actions={text!r}: give stochastic:FINAL with a '
                       f'probability in [0, 1]') from e
  return choose(int(text) if len(text) == 1 and text.isdecimal() else text,
                num_layers)


def survival(num_layers, final):
  """Survival probabilities that decrease linearly with depth (figure 9).

  That of the first adaptive layer is one step below 1, that of the last one is
  `final`.

  Returns:
    `Actions` [L1], [L2].
  """
  return Actions(*(1 - (1 - final) * jnp.arange(1, num + 1) / num
                   for num in num_layers))


def draw(key, batch_size, keep):
  """Samples actions with one keep probability per layer.

  Args:
    key: PRNG key.
    batch_size: B.
    keep: keep probabilities, `Actions` [L1], [L2].

  Returns:
    `Actions` of 0 and 1, [B, L1], [B, L2].
  """
  return Actions(*(
      jax.random.bernoulli(k, p, (batch_size, len(p))).astype(jnp.float32)
      for k, p in zip(jax.random.split(key), keep)))


def stochastic(key, batch_size, num_layers, *, final):
  """Samples actions whose survival probability decreases with depth.

  Args:
    key: PRNG key.
    batch_size: B.
    num_layers: (L1, L2).
    final: survival probability of the last layer, in [0, 1].

  Returns:
    `Actions` [B, L1], [B, L2].
  """
  return draw(key, batch_size, survival(num_layers, final))


def stochastic_rows(key, rows, num_layers, *, final):
  """`stochastic`, where each image's actions depend on its row alone.

  Args:
    key: PRNG key.
    rows: [B] int, the place of each image among all images of the key.
    num_layers: (L1, L2).
    final: see `stochastic`.

  Returns:
    `Actions` [B, L1], [B, L2].
  """
  def one(row):
    drawn = stochastic(
        jax.random.fold_in(key, row), 1, num_layers, final=final)
    return Actions(*(a[0] for a in drawn))
  return jax.vmap(one)(rows)


def uniform(key, batch_size, num_layers, *, keep):
  """Keeps each layer with probability `keep`: `Actions` [B, L1], [B, L2].

  If `keep` is the budget as a share of the adaptive MACs, the expected MACs
  equal the budget, whatever the costs of MSA and MLP layers.
  """
  return draw(key, batch_size,
              Actions(*(jnp.full(num, keep) for num in num_layers)))
