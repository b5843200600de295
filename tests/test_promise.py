"""Tests of risks on recorded outputs: they keep what they promise."""

import itertools

from adavit_jax.exits import confidence
from adavit_jax.promise import drift
from adavit_jax.promise import p_values
from adavit_jax.promise import promises
from adavit_jax.promise import recorded as recorded_lib
from adavit_jax.promise import request
from adavit_jax.promise import risks
from adavit_jax.promise import testing
import numpy as np
import pytest
import scipy  # which imports scipy.stats, for a second, at its first use

NUM, CLASSES = 8000, 5


def _population(policy, exits, seed=0):
  """`Recorded` of all images there are, and labels: every risk is known."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, NUM)
  hard = rng.random(NUM)
  other = (labels + rng.integers(1, CLASSES, NUM)) % CLASSES
  full = np.where(rng.random(NUM) < 1 - 0.3 * hard ** 2, labels, other)
  prediction = np.zeros((policy, exits, NUM), int)
  sure, lost = np.zeros((2, policy, exits, NUM))
  noise = rng.normal(scale=0.05, size=(exits, NUM))
  drawn = rng.random((exits, NUM))
  for t, e in itertools.product(range(policy), range(exits)):
    late = (e + 1) / exits * (1 - 0.5 * t / policy)
    sure[t, e] = np.clip(1 - hard * (1.2 - late) + noise[e], 0, 1)
    lost = drawn[e] < (1 - late) * hard ** 3
    prediction[t, e] = np.where(lost, other, full)
  macs = np.ones((policy, exits, NUM)) / exits
  macs *= np.linspace(1, 0.4, policy)[:, None, None]
  numbers = (None, *np.linspace(0.1, 0.9, policy - 1))
  rule = 'max_probability' if exits > 1 else None
  return recorded_lib.Recorded(
      'threshold' if policy > 1 else None, numbers, rule, prediction, sure,
      macs, full, 1.), labels


def test_binomial_p_values():
  for count, num, risk in ((0, 299, .01), (4, 1000, .01), (30, 500, .05)):
    assert p_values.binomial(count, num, risk) == pytest.approx(
        scipy.stats.binomtest(count, num, risk, alternative='less').pvalue)
    limit = p_values.binomial_limit(count, num, 0.95)
    interval = scipy.stats.binomtest(count, num).proportion_ci(
        0.9, method='exact')
    assert limit == pytest.approx(interval.high)
    assert p_values.binomial(count, num, limit) == pytest.approx(0.05)
  assert p_values.binomial_limit(7, 7, 0.95) == 1


@pytest.mark.parametrize('kind', risks.CLASSES)
def test_the_least_number_of_images(kind):
  """Without any harm, (1 - risk)^n <= 5 %; pairs need one image more."""
  least = risks.create(kind).least_images
  assert 0 <= least(0.01, 0.95) - 299 <= (kind == 'gap')
  assert 0 <= least(0.005, 0.95) - 598 <= (kind == 'gap')


def _paired_by_hand(harmed, helped, num, risk):
  """The largest probability of outcomes at least as extreme, all added up."""
  outcomes = np.array([(i, j) for i in range(num + 1)
                       for j in range(num + 1 - i)])
  i, j = outcomes.T
  score = p_values._score(harmed, helped, num, risk)
  extreme = outcomes[p_values._score(i, j, num, risk) >= score - 1e-9]
  extreme = np.c_[extreme, num - extreme.sum(1)]
  most = p_values.binomial_limit(harmed + helped, num, 1 - 1e-4)
  found = []
  for share in np.linspace(risk, max(most, risk), 300):
    p = (share + risk) / 2, (share - risk) / 2, 1 - share
    found.append(scipy.stats.multinomial.pmf(extreme, num, p).sum())
  return max(found)


@pytest.mark.parametrize('harmed, helped', [(0, 0), (1, 0), (2, 4), (4, 4)])
def test_paired_p_values(harmed, helped):
  num, risk = 40, 0.1
  want = _paired_by_hand(harmed, helped, num, risk)
  got = p_values.paired(harmed, helped, num, risk)
  assert want - 1e-3 <= got <= want + 2e-3


def test_the_score_of_pairs():
  """The estimate under the hypothesis maximizes its likelihood."""
  num, risk = 50, 0.08
  for harmed, helped in ((3, 2), (0, 5), (6, 0)):
    p = np.linspace(1e-9, (1 - risk) / 2 - 1e-9, 100_001)
    likelihood = (harmed * np.log(p + risk) + helped * np.log(p)
                  + (num - harmed - helped) * np.log(1 - 2 * p - risk))
    best = p[likelihood.argmax()]
    want = (num * risk - (harmed - helped)) / np.sqrt(
        num * (2 * best + risk * (1 - risk)))
    got = p_values._score(harmed, helped, num, risk)
    assert got == pytest.approx(want, rel=1e-3)
  i, j = np.indices((51, 51)).reshape(2, -1)
  i, j = i[i + j < 50], j[i + j < 50]  # the score falls with every harm
  assert (p_values._score(i + 1, j, 50, risk)
          < p_values._score(i, j, 50, risk)).all()


def test_the_tests_are_valid_and_sharp():
  """At the worst expectation, at most 5 % of samples pass; not far fewer."""
  rng = np.random.default_rng(0)
  draws = rng.multinomial(400, [0.03, 0.01, 0.96], 1000)
  passed = np.mean([p_values.paired(int(a), int(b), 400, 0.02) <= 0.05
                    for a, b, _ in draws])
  assert 0.03 < passed < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)
  samples = rng.uniform(-0.5, 0.7, (200, 300))  # mean 0.1
  values = [p_values.betting(x, 0.1, 1.) for x in samples]
  for level in (0.05, 0.2):
    assert np.mean(np.array(values) <= level) < level
  assert np.mean([p_values.betting(x, 0.3, 1.) <= 0.05
                  for x in samples]) > 0.99


def test_wealth_is_that_of_each_bet():
  x, mean = np.array([0.2, 0.9, 0.4]), 0.3
  want = [np.mean([np.prod(1 + c * (x[:n] / mean - 1)) for c in p_values.BETS])
          for n in (1, 2, 3)]
  np.testing.assert_allclose(np.exp(p_values.log_wealth(x, mean)), want)
  # Certain losses of 0: nearly all is bet, as by the binomial test.
  assert p_values.betting(np.zeros(1000), 0.01, 1.) < 20 * 0.99 ** 1000


def test_losses():
  labels, full = np.array([0, 1, 2, 3]), np.array([0, 1, 3, 0])
  prediction = np.array([[0, 2, 2, 1]] * 2)
  of = lambda kind: risks.create(kind).of(prediction, full, labels)[1].tolist()
  assert of('harm') == [0, 1, 0, 0]
  assert of('gap') == [0, 1, -1, 0]
  assert of('disagreement') == [0, 1, 1, 1]
  target = type('Target', (), dict(std=2., unit='mm'))
  numbers = np.array([1., 5., 0.])
  of = lambda kind: risks.create(kind, target=target).of(
      numbers, np.array([2., 2., 0.]), np.array([1., 2., 4.])).tolist()
  assert of('error') == [-1, 2, 0]  # the second is cut off at 2
  assert of('disagreement') == [1, 2, 0]


@pytest.mark.parametrize('policy, exits, kind', [
    (12, 1, 'harm'), (12, 1, 'gap'), (12, 1, 'disagreement'), (1, 2, 'harm'),
    (1, 3, 'gap'), (3, 3, 'harm'), *(pytest.param(
        *shape, kind, marks=pytest.mark.nightly)
        for shape in ((1, 2), (1, 3), (3, 3)) for kind in risks.CLASSES)])
def test_the_promise_is_kept(policy, exits, kind):
  """Over draws of held-out images, and thresholds do save."""
  population, labels = _population(policy, exits)
  loss, draws = risks.create(kind), 40 if exits < 3 else 12
  broken, saved = 0, []
  for seed in range(draws):
    drawn = np.random.default_rng(seed).choice(NUM, 600)
    found = testing.run(
        population.take(drawn), loss, 0.03, 0.9, labels=labels[drawn],
        num_classes=CLASSES, seed=seed)
    if found.setting is None:
      saved.append(0)
      continue
    prediction, macs = population.outcome(found.setting)
    broken += loss.of(prediction, population.full, labels).mean() > 0.03
    saved.append(1 - macs.mean())
  assert broken <= scipy.stats.binom.ppf(0.999, draws, 0.1)
  assert np.mean(saved) > 0.05


def test_thresholds_of_a_rule_of_unknown_range_are_searched():
  population, _ = _population(1, 2)
  loss, drawn = risks.create('disagreement'), np.arange(2000)
  known, images = testing.settings(population, loss, num_classes=CLASSES)
  assert len(images) == NUM
  own = population._replace(rule='own')
  own, images = testing.settings(own.take(drawn), loss, num_classes=CLASSES)
  assert len(images) < len(drawn) and own and own != known
  request.check_number(310, (1, 2), 'margin', loss, 0.01, 0.95)
  with pytest.raises(ValueError, match='^310 images.*448 are needed'):
    request.check_number(310, (1, 2), 'own', loss, 0.01, 0.95)


def test_a_search_on_the_same_images_keeps_no_promise():
  """Why settings are tested on other images than those that found them."""
  population, labels = _population(1, 3)
  loss, broken = risks.create('harm'), 0
  for seed in range(12):
    drawn = np.random.default_rng(seed).choice(NUM, 600)
    part = population.take(drawn)
    settings, _ = testing.settings(
        part, loss, labels=labels[drawn], num_classes=CLASSES, seed=seed)
    losses = lambda s: loss.of(  # noqa: E731
        part.outcome(s)[0], part.full, labels[drawn]).mean()
    chosen = [s for s in settings if losses(s) <= 0.03][-1]
    broken += loss.of(population.outcome(chosen)[0], population.full,
                      labels).mean() > 0.03
  assert broken > 3


def test_settings_go_from_safe_to_cheap():
  population, labels = _population(3, 3)
  part = population.take(np.arange(900))
  settings, images = testing.settings(
      part, risks.create('harm'), labels=labels[:900], num_classes=CLASSES)
  assert len(set(images)) == len(images) == 600
  macs = [population.outcome(s)[1].mean() for s in settings]
  assert all(b < a + 0.01 for a, b in zip(macs, macs[1:]))
  early = [(population.exits(s) < 2).mean() for s in settings[:9]]
  assert early[0] < 0.4 * early[-1] and early == sorted(early)


def test_where_nothing_passes_it_is_said_how_many_images_would_do():
  population, _ = _population(12, 1)
  always = population._replace(prediction=np.where(
      np.arange(NUM) % 100 < 2, (population.full + 1) % CLASSES,
      population.full)[None, None].repeat(12, 1).transpose(1, 0, 2))
  args = risks.create('disagreement'),
  take = lambda num: always._replace(  # noqa: E731
      full=always.full[:num], prediction=always.prediction[..., :num],
      macs=always.macs[..., :num], confidence=always.confidence[..., :num])
  found = promises.make(take(500), 0.03, 0.95, *args)
  assert not found.passed and found.number is None
  assert found.observed == 0.02 and found.limit == 0
  more = 500 + found.more_images
  assert f'{found.more_images} more images' in str(found)
  more += -more % 100  # as many losses as in 500
  for num, passes in ((more + 200, True), (more - 200, False)):
    assert promises.make(take(num), 0.03, 0.95, *args).passed == passes
  found = promises.make(take(500), 0.01, 0.95, *args)
  assert found.more_images is None and 'no number' in str(found)


@pytest.mark.parametrize('given, field', [
    (dict(risk=0.), 'risk=0'), (dict(risk=1.), 'risk=1'),
    (dict(risk=np.nan), 'risk=nan'), (dict(confidence=1.), 'confidence=1'),
    (dict(confidence=-1), 'confidence=-1'),
    (dict(num=200), '200 images .* 299 '),
    (dict(labels=np.full(400, CLASSES)), f'labels .* {CLASSES - 1}'),
    (dict(labels=np.full(400, -1)), 'labels '),
    (dict(labels=np.zeros(400)), 'labels .*float64'),
    (dict(labels=np.zeros(399, int)), r'labels .*\(399,\)'),
    (dict(labels=np.full(400, 3)), 'labels .* 3'),
    (dict(nan=True), 'logits .* 1 of 400')])
def test_bad_input(given, field):
  given = dict(dict(risk=0.01, confidence=0.95, num=400), **given)
  population, labels = _population(1, 2)
  part = population.take(np.arange(given['num']))
  labels = given.get('labels', labels[:given['num']])
  if 'nan' in given:
    part.confidence[0, 0, 3] = np.nan
  with pytest.raises(ValueError, match=field):
    promises.make(part, given['risk'], given['confidence'],
                  risks.create('harm'), labels=labels, num_classes=CLASSES)


@pytest.mark.parametrize('kind, given, field', [
    ('loss', {}, 'kind'), ('error', {}, 'kind'),
    ('harm', dict(labeled=False), 'labels'), ('harm', dict(bound=1.), 'bound'),
    ('error', dict(target=True, bound=0.), 'bound'),
    ('harm', dict(target=True), 'kind')])
def test_losses_that_do_not_fit(kind, given, field):
  if given.get('target'):
    given['target'] = type('Target', (), dict(std=2., unit='mm'))
  with pytest.raises(ValueError, match=f'^{field}='):
    risks.create(kind, **given)


def test_numbers():
  """Of a regression: an image leaves where two exits agree."""
  rng = np.random.default_rng(0)
  labels = rng.normal(scale=10, size=3000)
  spread = rng.exponential(size=3000)
  outputs = labels + np.array([3., 1., 1.])[:, None] * spread * rng.normal(
      size=(3, 3000))
  change = np.abs(np.diff(outputs, axis=0))
  sure = np.concatenate([np.full((1, 3000), -np.inf), -change])
  recorded = recorded_lib.Recorded(
      None, (None,), 'agreement', outputs[None], sure[None],
      np.ones((1, 3, 3000)) / 3, outputs[-1], 1.)
  loss = risks.create(None, target=type(
      'Target', (), dict(std=10., unit='mm')))
  found = promises.make(recorded, 0.5, 0.95, loss, labels=labels)
  assert found.passed and found.kind == 'error' and found.rule == 'agreement'
  assert found.observed < found.limit <= 0.5 and found.macs < 0.9
  assert found.thresholds[0] == confidence.NEVER or found.thresholds[0] < 0
  assert found.disagreement > found.observed
  assert '0.5 mm' in str(found)
  with pytest.raises(ValueError, match='^risk=20 .* 10 mm'):
    promises.make(recorded, 20, 0.95, loss, labels=labels)


def test_a_stream_that_stays_and_one_that_shifts():
  rng = np.random.default_rng(0)
  alarms, limits = 0, []
  for _ in range(40):
    limit = drift.LowerLimit(0.1, 0.9)
    alarms += limit.update(rng.random(200) < 0.1) is not None
    assert (limit.limit >= 0.1) == limit.exceeded
    limits.append(limit.limit)
  assert alarms <= scipy.stats.binom.ppf(0.999, 40, 0.1)
  assert np.mean(limits) > 0.03  # the limit says something
  limit = drift.LowerLimit(0.1, 0.95)
  assert limit.update(rng.random(200) < 0.05) is None
  found = limit.update(rng.random(400) < 0.4)
  assert 3 < found < 100 and limit.num == 600
  assert 0.1 <= limit.limit < 0.4
  # As many as there were before do not make it blind.
  late = drift.LowerLimit(0.1, 0.95)
  assert late.update(rng.random(4000) < 0.05) is None
  assert late.update(rng.random(400) < 0.4) < 150
  for given in ((0., 0.9), (1., 0.9), (0.1, 1.)):
    with pytest.raises(ValueError, match='^(bound|confidence)='):
      drift.LowerLimit(*given)
