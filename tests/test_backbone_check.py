"""What a backbone does not keep of the contract is named."""

from adavit_jax import models
from adavit_jax.models import backbone
from adavit_jax.models.vit import ViT
import jax.numpy as jnp
import pytest
import tiny

_VIT = {key: getattr(tiny.model(), key) for key in (
    'image_size', 'num_classes', 'channels', 'patch_size', 'width', 'depth',
    'num_heads', 'mlp_ratio')}


@pytest.mark.parametrize('name', [
    'vit_digits_patch2_8', 'ravit_cifar_patch4_32'])
def test_models_of_the_library_keep_it(name):
  models.check_backbone(models.create(name, num_fixed=0, exits=((1, 'vit'),)))


def _stack(**changes):
  return lambda self: (super(type(self), self).plan()[0]._replace(**changes),)


def _branch(**changes):
  def plan(self):
    stack, = super(type(self), self).plan()
    msa, mlp = stack.branches
    return stack._replace(branches=(msa._replace(**changes), mlp)),
  return plan


@pytest.mark.parametrize('method, function, field', [
    ('plan', _stack(group='encoder'), "group .*'encoder'"),
    ('plan', _stack(start=1), 'encoders 1 to 5'),
    ('plan', _stack(at=backbone.Tokens(16, 9)), '`at`'),
    ('plan', _stack(each=('rows',)), r"each=\('rows',\)"),
    ('plan', _stack(out={'rows': None}), r"out=\('rows',\)"),
    ('plan', lambda self: (
        *ViT.plan(self), backbone.Bridge(None, 0, keys=('rows',))),
     r"keys=\('rows',\)"),
    ('plan', lambda self: (), r'Broken.plan\(\)'),
    ('plan', _branch(kind='attention'), "'attention'"),
    ('plan', _branch(run=lambda params, x, read, ctx: x), "branch 0 .*Delta"),
    ('plan', _branch(run=lambda *_: backbone.Delta(jnp.ones((2, 5, 3)))),
     'branch 0 .*shape'),
    ('embed', lambda self, params, images, ctx: images, 'embed'),
    ('classify', lambda self, params, x, index, ctx: (x, {}), 'classify'),
    ('fold', lambda self, params, stats: {}, 'folded'),
    ('own_exits', lambda self: (backbone.OwnExit(2, 0, ()),), 'own_exits'),
])
def test_what_does_not_fit_is_named(method, function, field):
  broken = type('Broken', (ViT,), {method: function})(**_VIT)
  with pytest.raises(ValueError, match=field):
    models.check_backbone(broken)
