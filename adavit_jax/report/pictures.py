"""Figures: keep rates, accuracy against MACs, easy and hard images, exits."""

from etils import epath
import numpy as np


def keep_rates(keep_rate, encoders, path):
  """Draws bars of the keep rate of every adaptive layer.

  Args:
    keep_rate: dict of msa [L1] and mlp [L2].
    encoders: index of the encoder of each layer, `Actions` [L1], [L2].
    path: path of the PNG file.
  """
  figure = new_figure(6, 3)
  axes = figure.subplots()
  for kind, numbers, shift in zip(('msa', 'mlp'), encoders, (-0.2, 0.2)):
    axes.bar(numbers + 1 + shift, keep_rate[kind], 0.38, label=kind.upper())
  x = np.unique(np.concatenate(encoders)) + 1
  axes.set(xlabel='encoder', ylabel='share of images that run it',
           xticks=x, ylim=(0, 1))
  axes.legend(ncols=2, loc='upper center', bbox_to_anchor=(0.5, 1.15))
  save(figure, path)


def accuracy_against_macs(report, path):
  """Draws accuracy against MACs of all rows and curves of a report.

  Args:
    report: dict as in report.json.
    path: path of the PNG file.
  """
  figure = new_figure(6, 4)
  axes = figure.subplots()
  def curve(rows, label, **style):
    rows = sorted(rows, key=lambda r: r['macs_ratio'])
    axes.plot([r['macs_ratio'] for r in rows],
              [100 * r['accuracy'] for r in rows], label=label, **style)
  points = []
  def point(row, label, marker):
    points.append(100 * row['accuracy'])
    axes.plot(row['macs_ratio'], 100 * row['accuracy'], marker, label=label,
              markersize=8, linestyle='none')
  curve(report['sweep'], 'adaptive, threshold swept', color='C0')
  point(report['adaptive'], 'adaptive', 'o')
  point(report['dense'], 'dense', 'k^')
  for name, marker in (
      ('value', 'C0P'), ('promised', 'C0*'), ('adaptive_at_static', 'C0v'),
      ('static', 's'), ('static_last', 'D'), ('random', 'x'),
      ('shuffled', '+')):
    if name in report:
      point(report[name], name.replace('_', ' '), marker)
  one = report.get('one_set_of_weights')
  if one:
    curve(one['frontier'], 'static, dense weights', color='C7', linestyle=':')
    point(one['adaptive'], 'adaptive, dense weights', 'C7v')
  axes.set(xlabel="MACs as a share of the dense model's",
           ylabel='test accuracy, %', ylim=(min(points) - 4, None))
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  save(figure, path)


def exits(report, path):
  """Draws accuracy against MACs of a cascade and of each exit alone.

  Args:
    report: dict from `exit_report.evaluate`.
    path: path of the PNG file.
  """
  figure = new_figure(6, 4)
  axes = figure.subplots()
  classes = 'accuracy' in report['exits'][0]
  score = (lambda r: 100 * r['accuracy']) if classes else (lambda r: r['mae'])
  def draw(rows, style, label):
    axes.plot([r['macs'] / 1e6 for r in rows], [score(r) for r in rows], style,
              label=label)
  draw(report['exits'], 'k^:', 'exits alone; between them: chosen at random')
  if 'curve' in report:
    draw(report['curve'], 'C0-', 'cascade, thresholds swept')
  for name, style in (('same_accuracy', 'C0o'), ('slack', 'C0v'),
                      ('mac_target', 'C0s'), ('threshold', 'C0D'),
                      ('promised', 'C0*')):
    if name in report:
      draw([report[name]], style, 'cascade, ' + name.replace('_', ' '))
  axes.set(xlabel='million MACs per image',
           ylabel='test accuracy, %' if classes else 'mean absolute error')
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  save(figure, path)


def easy_and_hard(split, actions, class_names, prediction, path, *,
                  columns=10):
  """Draws the images with the fewest and most layers (figure 5 of the patent).

  Args:
    split: `Split` of n images.
    actions: `Actions` of each image, [n, L1], [n, L2].
    class_names: K names.
    prediction: [n] classes.
    path: path of the PNG file.
    columns: maximum number of images in a row. Each kind has two rows; with
      four images or more, no image is in both kinds.
  """
  kept, (msa, mlp) = actions.num_kept, (a.sum(-1) for a in actions)
  columns = max(min(columns, len(kept) // 4), 1)
  # Ties are broken at random, with a fixed seed: a sort would order by class.
  order = np.lexsort((np.random.default_rng(0).random(len(kept)), kept))
  chosen = [order[:2 * columns], order[-2 * columns:]]
  figure = new_figure(columns * 0.9, 4.6)
  parts = figure.subfigures(2, 1)
  for part, rows, title in zip(parts, chosen, ('fewest', 'most')):
    part.suptitle(f'{title} layers kept, MSA + MLP', fontsize=10)
    for axes, i in zip(part.subplots(2, columns).flat, rows):
      image = split.images(np.array([i]))[0]
      axes.imshow(image.squeeze(), cmap='gray')
      wrong = prediction[i] != split.labels[i]
      axes.set_title(
          f'{class_names[split.labels[i]]}: {int(msa[i])} + {int(mlp[i])}',
          fontsize=7, pad=2, color='C3' if wrong else 'black',
          parse_math=False)
      axes.axis('off')
  save(figure, path)


def new_figure(*size):
  """Returns an empty figure of so many inches."""
  from matplotlib.figure import Figure  # here: its import takes half a second
  return Figure(figsize=size, layout='constrained')


def save(figure, path):
  """Writes a figure as PNG."""
  with epath.Path(path).open('wb') as f:
    figure.savefig(f, dpi=130, format='png')
