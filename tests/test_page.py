"""The report as one HTML file."""

import base64
from html import parser
import re

from adavit_jax.report import page as page_lib
from adavit_jax.report import policy_page

TAGS = 'td', 'th', 'h1', 'h2', 'p'


class _Reader(parser.HTMLParser):
  """Collects (tag, text) of a page and its pictures, and checks the nesting."""

  def __init__(self):
    super().__init__()
    self.found, self.pictures, self.open = [], [], []

  def handle_starttag(self, tag, attrs):
    if tag == 'img':
      self.pictures.append(dict(attrs)['src'])
    elif tag != 'meta':
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in TAGS:
      self.found.append((self.open[-1], data))


def test_a_page_has_what_is_printed(tmp_path, capsys):
  picture = tmp_path / 'a.png'
  picture.write_bytes(b'\x89PNG')
  page = page_lib.Page('Report on a&b', '3 images')
  page.table([('dense', dict(x=1.5))], [('x <', lambda row: f"{row['x']:.2f}")])
  page.heading('<more>')
  page.text('one\ntwo')
  page.picture(picture, 'A picture')
  page.write(tmp_path / 'a.html')
  text = (tmp_path / 'a.html').read_text(encoding='utf-8')
  reader = _Reader()
  reader.feed(text)
  assert not reader.open and reader.found == [
      ('h1', 'Report on a&b'), ('p', '3 images'), ('th', 'x <'),
      ('td', 'dense'), ('td', '1.50'), ('h2', '<more>'), ('p', 'one\ntwo'),
      ('h2', 'A picture')]
  kind, data = reader.pictures[0].split(',')
  assert kind == 'data:image/png;base64'
  assert base64.b64decode(data) == picture.read_bytes()
  assert not re.search(r'(src|href)="(?!data:)', text)
  assert capsys.readouterr().out == (
      '\n3 images\n\n        x <\n-----------\ndense  1.50\n\n<more>\n\none\n'
      'two\n')


def test_rows_of_given_layers_have_their_label(tmp_path, capsys):
  row = dict(accuracy=0.5, loss=1., macs=2e6, macs_ratio=0.5,
             encoder_macs_ratio=0.5)
  policy_page.show_rows(
      dict(workdir=str(tmp_path), phase='joint', step=3, best=False, num_test=4,
           finished=True, attributes={}, budget=0.5, seed=0, device='cpu',
           dense=row, given=row),
      [('dense', 'dense'), ('policy 4', 'given')])
  assert 'policy 4' in capsys.readouterr().out
  assert 'policy 4' in (tmp_path / 'report.html').read_text()
