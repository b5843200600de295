"""The report of a run as text on the terminal and as one HTML file."""

import base64
import html

from etils import epath

from adavit_jax import paths
from adavit_jax.report import table as table_lib

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
p { white-space: pre-line; }
.about { color: #666; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { border-bottom: 2px solid #222; font-weight: 600; }
td { border-bottom: 1px solid #ddd; }
img { max-width: 100%; }
"""


def of(result, more=''):
  """Begins the `Page` of a report.

  Args:
    result: its fields that describe the run.
    more: text that is added to what the page is about.
  """
  return Page(f"Report on {result['workdir']}",
              f"{result['num_test']} test images, after the phase "
              f"{result['phase']}, seed {result['seed']}, {result['device']}"
              f'{more}')


class Page:
  """Prints what it is given, and collects it for a file."""

  def __init__(self, title, about):
    """Begins a page; prints `about`.

    Args:
      title: of the file.
      about: a sentence on the run and the machine.
    """
    self._title = title
    self._parts = [f'<p class="about">{html.escape(about)}</p>']
    print(f'\n{about}')

  def heading(self, text):
    """Adds a heading."""
    print(f'\n{text}')
    self._parts.append(f'<h2>{html.escape(text)}</h2>')

  def text(self, text):
    """Adds lines of text."""
    print(f'\n{text}')
    self._parts.append(f'<p>{html.escape(text)}</p>')

  def table(self, rows, columns=table_lib.COLUMNS):
    """Adds a table; arguments as of `table.format_rows`."""
    print(f'\n{table_lib.format_rows(rows, columns)}')
    head, *body = table_lib.cells(rows, columns)
    line = lambda cells, tag: '<tr>{}</tr>'.format(''.join(
        f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells))
    self._parts.append('<div class="scroll"><table>{}{}</table></div>'.format(
        line(head, 'th'), ''.join(line(cells, 'td') for cells in body)))

  def picture(self, path, caption):
    """Adds a copy of a PNG file, below a caption."""
    data = base64.b64encode(epath.Path(path).read_bytes()).decode()
    caption = html.escape(caption)
    self._parts += [f'<h2>{caption}</h2>',
                    f'<img alt="{caption}" src="data:image/png;base64,{data}">']

  def write(self, path):
    """Writes the HTML file, which refers to no other."""
    title = html.escape(self._title)
    paths.write({path: '\n'.join([
        '<!doctype html>', '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f'<title>{title}</title>', f'<style>{_STYLE}</style>',
        f'<h1>{title}</h1>', *self._parts, '</html>', ''])})
