"""Policies that need no training: fixed, random, stochastic, all layers."""

import jax
import jax.numpy as jnp
import numpy as np

from adavit_jax.models.actions import Actions

# (MSA, MLP) layers dropped by policies 1 to 5, Table 1 of US 12,394,190.
TABLE_1 = {1: (5, 5), 2: (5, 3), 3: (3, 3), 4: (1, 2), 5: (0, 0)}


def all_layers(num_layers):
  """Keeps everything: `Actions` of ones [L]."""
  return drop(num_layers, 0, 0)


def drop(num_layers, num_msa, num_mlp, *, which='last'):
  """Drops a number of MSA and MLP layers at one end of the adaptive encoders.

  Args:
    num_layers: L.
    num_msa: MSA layers to drop.
    num_mlp: MLP layers to drop.
    which: 'last' (nearest to the output) or 'first' (as Table 1 prints it,
      against the finding stated beside it that early layers matter more).

  Returns:
    `Actions` of NumPy float32 [L].

  Raises:
    ValueError: if there are fewer layers than are to be dropped.
  """
  if which not in ('first', 'last'):
    raise ValueError(f"which={which!r} must be 'first' or 'last'")
  if not 0 <= num_msa <= num_layers or not 0 <= num_mlp <= num_layers:
    raise ValueError(f'cannot drop {num_msa} MSA and {num_mlp} MLP layers of '
                     f'{num_layers} adaptive encoders')
  def keep(num):
    a = np.ones(num_layers, np.float32)
    a[slice(0, num) if which == 'first' else slice(num_layers - num, None)] = 0
    return a
  return Actions(keep(num_msa), keep(num_mlp))


def table_1(number, num_layers, *, which='first'):
  """Fixed policy 1 to 5 of Table 1, US 12,394,190; see `drop`."""
  if number not in TABLE_1:
    raise ValueError(f'policy {number} is not in Table 1; known: 1 to 5')
  return drop(num_layers, *TABLE_1[number], which=which)


def parse(keep, num_layers):
  """A mask from text: 2L digits 0 or 1, all MSA first, to `Actions` [L].

  Raises:
    ValueError: if the text has another length or other characters.
  """
  if len(keep) != 2 * num_layers or set(keep) - {'0', '1'}:
    raise ValueError(f'keep={keep!r} must be {2 * num_layers} digits 0 or 1, '
                     f'for {num_layers} MSA, then {num_layers} MLP layers')
  return Actions.from_keep(np.array(list(keep), np.float32))


def survival(num_layers, final):
  """Survival probability falling linearly with depth (figure 9), [L].

  The first adaptive encoder lies one step below 1, the last one at `final`.
  """
  return 1 - (1 - final) * jnp.arange(1, num_layers + 1) / num_layers


def stochastic(key, batch_size, num_layers, *, final):
  """Samples actions whose survival probability falls with depth.

  Args:
    key: PRNG key.
    batch_size: B.
    num_layers: L.
    final: survival probability of the last encoder, in [0, 1].

  Returns:
    `Actions` [B, L].
  """
  keep = jnp.tile(survival(num_layers, final), 2)
  shape = (batch_size, 2 * num_layers)
  return Actions.from_keep(
      jax.random.bernoulli(key, keep, shape).astype(jnp.float32))


def uniform(key, batch_size, num_layers, *, keep):
  """Keeps each layer with probability `keep`: `Actions` [B, L].

  With `keep` = the share of adaptive MACs that may be spent, the expected MACs
  meet the budget exactly, whatever MSA and MLP layers cost.
  """
  shape = (batch_size, 2 * num_layers)
  return Actions.from_keep(
      jax.random.bernoulli(key, keep, shape).astype(jnp.float32))
