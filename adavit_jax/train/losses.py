"""Loss terms that phases share, each a mean over images, in float32.

The loss of a phase is the function `loss` in `phases/NAME.py`.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits, targets):
  """Cross-entropy of class distributions, [..., B, K] and [B, K] to []."""
  return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def with_aux(loss, logits):
  """Mean of a loss over the heads of inference and those of training alone: [].

  Args:
    loss: function from `Logits` to [].
    logits: `Logits`; without `aux`, the result is its loss.
  """
  value = loss(logits)
  return value if logits.aux is None else (value + loss(logits.aux)) / 2


def head_cross_entropy(logits, targets):
  """Mean cross-entropy over the heads of a `Logits`, see `with_aux`."""
  def loss(logits):
    value = cross_entropy(logits.cls, targets)
    if logits.dist is not None:
      value = (value + cross_entropy(logits.dist, targets)) / 2
    return value
  return with_aux(loss, logits)


def distillation(logits, teacher_logits, *, temperature=1.0, hard=False):
  """Distillation loss of a student, [..., B, K] and [B, K] to [].

  Args:
    logits: the student's.
    teacher_logits: the teacher's; no gradient flows through them.
    temperature: T of the soft form, KL x T^2 (Hinton et al., 2015).
    hard: use the cross-entropy to the teacher's class instead (DeiT).
  """
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  if hard:
    labels = jax.nn.one_hot(teacher_logits.argmax(-1), logits.shape[-1])
    return cross_entropy(logits, labels)
  log_p = jax.nn.log_softmax(teacher_logits / temperature)
  log_q = jax.nn.log_softmax(logits / temperature)
  return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def supervised(logits, targets, taught, c):
  """Loss of the labels and, with a teacher, of its answers; [].

  Of two heads, the first learns from the labels and the second from the teacher
  (DeiT). A single head learns from both.

  Args:
    logits: `Logits` [..., B, K].
    targets: class distributions [B, K].
    taught: logits of the teacher [B, K]; None without one: every head then
      learns from the labels.
    c: config with distill, the weight of the teacher's part in [0, 1], and
      temperature and hard_distill, see `distillation`.
  """
  if taught is None:
    return head_cross_entropy(logits, targets)
  return ((1 - c.distill) * class_cross_entropy(logits, targets)
          + c.distill * head_distillation(logits, taught, c))


def class_cross_entropy(logits, targets):
  """Cross-entropy of the class head of a `Logits`, see `with_aux`."""
  return with_aux(lambda y: cross_entropy(y.cls, targets), logits)


def head_distillation(logits, taught, c):
  """Distillation loss of the second head, or of a single one; [].

  Args:
    logits: `Logits` [..., B, K], see `with_aux`.
    taught: logits of the teacher [B, K].
    c: config with temperature and hard_distill, see `distillation`.
  """
  return with_aux(lambda y: distillation(
      y.cls if y.dist is None else y.dist, taught, hard=c.hard_distill,
      temperature=c.temperature), logits)


def representation(z1, teacher_z1):
  """Squared error of z1 [B, N, D] over the mean square of the teacher's: []."""
  z1 = z1.astype(jnp.float32)
  teacher_z1 = jax.lax.stop_gradient(teacher_z1).astype(jnp.float32)
  return ((z1 - teacher_z1)**2).mean() / (teacher_z1**2).mean()
