// browser_check.js - put into a report's page by test_browser: looks at it as it was drawn, and
// leaves "PASS" or what is wrong in an element #check of the page around its frame, which
// chromium --dump-dom shows.
//
// Before it `wanted` is set: {width, dark, figures}.
const wrong = [];

function expect(condition, text) {
  if (!condition) wrong.push(text);
}

function luminance(colour) {
  const parts = colour.match(/[\d.]+/g).slice(0, 3).map(x => {
    x /= 255;
    return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}

function contrast(a, b) {
  const x = luminance(a), y = luminance(b);
  return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
}

function checkPlace() {
  expect(innerWidth == wanted.width, `the page is ${innerWidth} wide, not ${wanted.width}`);
  expect(matchMedia('(prefers-color-scheme: dark)').matches == wanted.dark, 'not the asked scheme');
  const root = document.documentElement;
  expect(root.scrollWidth <= innerWidth, `it overflows: ${root.scrollWidth} of ${innerWidth}`);
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (!e.closest('.wide table') && !e.closest('svg') && box.right > innerWidth + 1)
      wrong.push(`${e.tagName} reaches to ${box.right}`);
  }
}

function checkText(page) {
  for (const e of document.querySelectorAll('h1, h2, p, th, td, span, small, li, a, figcaption')) {
    if (!e.textContent.trim() || e.closest('details:not([open])')) continue;
    const s = getComputedStyle(e), box = e.getBoundingClientRect();
    expect(box.height > 0, `not shown: ${e.textContent}`);
    expect(contrast(s.color, page) >= 4.5, `pale: ${e.textContent} ${s.color} on ${page}`);
    expect(parseFloat(s.fontSize) >= 10.5, `small: ${e.textContent} ${s.fontSize}`);
  }
  for (const e of document.querySelectorAll('td.n'))
    expect(getComputedStyle(e).textAlign == 'right', `a number on the left: ${e.textContent}`);
}

function checkFigures(page) {
  const figures = [...document.querySelectorAll('figure')];
  expect(figures.length == wanted.figures, `${figures.length} figures, not ${wanted.figures}`);
  for (const figure of figures) {
    const name = figure.querySelector('figcaption').textContent;
    const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
    expect(box.width > 250 && box.height > 40, `${name}: ${box.width} x ${box.height}`);
    expect(box.left >= 0 && box.right <= innerWidth, `${name} is cut off`);
    const texts = [...svg.querySelectorAll('text')];
    expect(texts.length > 3, `${name} has no marks`);
    for (const text of texts) {
      const own = text.getBoundingClientRect();
      expect(own.left >= box.left - 1 && own.right <= box.right + 1, `${name}: ${text.textContent} is cut`);
      expect(own.height >= 11.5, `${name}: ${text.textContent} is ${own.height} high`);
      expect(contrast(getComputedStyle(text).fill, page) >= 4.5, `${name}: pale ${text.textContent}`);
    }
    const drawn = [...svg.querySelectorAll('path, polygon, rect')].filter(e => {
      const s = getComputedStyle(e), own = e.getBoundingClientRect();
      return own.width + own.height > 3 && !e.classList.contains('gridline') && !e.closest('defs') &&
        [s.fill, s.stroke].some(c => c.startsWith('rgb') && contrast(c, page) >= 2.8);
    });
    expect(drawn.length > 1, `${name}: nothing is drawn`);
  }
}

// The texts of a column, down the rows.
function column(table, i) {
  return [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
}

function isSorted(values, up) {
  const filled = values.filter(x => x !== '');
  const order = filled.every((x, i) => i == 0 || (up ? 1 : -1) * (x - filled[i - 1]) >= 0);
  return order && values.slice(0, filled.length).every(x => x !== '');
}

function checkSorting() {
  const table = document.querySelector('table.runs');
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells];
  const before = column(table, 0).join();
  const hard = heads.findIndex(h => h.textContent.startsWith('Hard'));
  const press = i => heads[i].querySelector('button').click();
  press(hard);
  expect(isSorted(column(table, hard), true), `up: ${column(table, hard)}`);
  expect(heads[hard].getAttribute('aria-sort') == 'ascending', 'no aria-sort');
  press(hard);
  expect(isSorted(column(table, hard), false), `down: ${column(table, hard)}`);
  expect(heads[hard].getAttribute('aria-sort') == 'descending', 'no aria-sort');
  expect(column(table, 0).join() != before, 'sorting changed nothing');
  press(0);
  expect(column(table, 0).join() == before, `by name: ${column(table, 0)}`);
  expect(table.querySelectorAll('[aria-sort]').length == 1, 'several columns say they are sorted');
}

function check() {
  const page = getComputedStyle(document.body).backgroundColor;
  checkPlace();
  checkText(page);
  checkFigures(page);
  checkSorting();
  expect(performance.getEntriesByType('resource').length == 0, 'something was loaded');
}

const errors = [];
addEventListener('error', e => errors.push(e.message));
addEventListener('load', () => {
  try {
    check();
  } catch (e) {
    wrong.push(e.stack);
  }
  const result = parent.document.createElement('pre');
  result.id = 'check';
  result.textContent = [...errors, ...wrong].join('\n') || 'PASS';
  parent.document.body.append(result);
});
