// The page written by FeatureExplorer.export_html: a list of atoms, and one latent in full.
// Text of the data is set with textContent only, so it never becomes markup.
'use strict';

const page = JSON.parse(document.getElementById('data').textContent);
const TILE_WIDTH = 44;
const SVG = 'http://www.w3.org/2000/svg';
let selected = null;   // the latent that is shown in full

const find = id => document.getElementById(id);

function addElement(kind, text, parent) {
  const element = document.createElement(kind);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// A cell of a sheet of pictures: the sheet is the background, shifted to the column and row.
function addTile(kind, sheet, column, row, parent, zoom = 1) {
  const tile = addElement(kind, undefined, parent);
  const width = TILE_WIDTH*zoom, height = width*page.aspect;
  tile.className = 'tile ' + sheet;
  tile.style.cssText =
    `width:${width}px;height:${height}px;background-size:${page.columns[sheet]*width}px auto;` +
    `background-position:${-column*width}px ${-row*height}px`;
  return tile;
}

function addAtom(kind, latent, parent, zoom = 1) {
  const columns = page.columns.atom;
  return addTile(kind, 'atom', latent.position % columns, Math.floor(latent.position / columns),
                 parent, zoom);
}

// Sort keys, ascending, by the names of the orders in explorer.ORDERS; other orders are ranks.
const ORDERS = {
  'most active': latent => -latent.mean,
  'densest': latent => -latent.density,
  'rarest': latent => latent.density || Infinity,
  'similar': latent => {
    if (latent === selected) return -1;
    const rank = selected.nearest.findIndex(([id]) => id === latent.id);
    return rank < 0 ? Infinity : rank;
  },
  'number': latent => latent.id,
};

function showList() {
  const text = find('search').value.trim().toLowerCase();
  const order = find('order').value, key = ORDERS[order] ?? (latent => latent.ranks[order]);
  const matches = page.latents.filter(latent => !text || String(latent.id) === text ||
                                                latent.label.toLowerCase().includes(text));
  matches.sort((a, b) => key(a) - key(b) || a.id - b.id);   // Infinity - Infinity is NaN: by number
  find('count').textContent = `${matches.length} of ${page.latents.length} latents`;
  find('atoms').replaceChildren();
  for (const latent of matches) {
    const button = page.is_text
      ? addElement('button', `${latent.id}  ${latent.label}`, find('atoms'))
      : addAtom('button', latent, find('atoms'));
    if (page.is_text) button.className = 'name';
    button.title = `latent ${latent.id}` + (latent.label && `: ${latent.label}`);
    button.setAttribute('aria-label', button.title);
    button.setAttribute('aria-pressed', latent === selected);
    button.onclick = () => showLatent(latent);
  }
  const isNumber = /^[0-9]+$/.test(text);
  if (isNumber && matches.length === 1 && matches[0] !== selected) showLatent(matches[0]);
}

function addHistogram(latent, parent) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 360 110');
  svg.setAttribute('width', 360);
  const add = (kind, attributes, text) => {
    const element = document.createElementNS(SVG, kind);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    if (text !== undefined) element.textContent = text;
    svg.append(element);
  };
  const largest = Math.max(...latent.counts, 1), width = 360 / Math.max(latent.counts.length, 1);
  latent.counts.forEach((count, bin) => {
    const height = 85*count/largest;
    add('rect', { x: bin*width + 1, y: 90 - height, width: width - 2, height });
  });
  add('text', { x: 0, y: 106 }, latent.range[0]);
  add('text', { x: 360, y: 106, 'text-anchor': 'end' }, latent.range[1]);
  parent.append(svg);
}

// Samples are triples [note, context, marked]; context is null for pictures, which lie in the
// latent's row of the sheet of samples, from firstColumn on.
function addSamples(title, samples, latent, firstColumn, panel) {
  if (!samples.length) return;
  addElement('h2', title, panel);
  const row = addElement('div', undefined, panel);
  samples.forEach(([note, context, marked], k) => {
    if (context) return addContext(note, context, marked, row);
    row.className = 'row';
    const figure = addElement('figure', undefined, row);
    addTile('div', 'sample', firstColumn + k, latent.position, figure);
    addElement('figcaption', note, figure);
  });
}

function addContext(note, context, marked, parent) {
  const line = addElement('div', undefined, parent);
  line.className = 'context';
  addElement('span', note, line).className = 'note';
  const text = addElement('span', undefined, line);
  context.forEach(([token, strength], k) => {
    const spaces = /^ +(?=[^ ])/.exec(token)?.[0] ?? '';   // they have no colour
    text.append(spaces);
    const span = addElement('span', token.slice(spaces.length).replaceAll('\n', '⏎'), text);
    span.style.background = `rgba(230,150,0,${strength})`;
    if (k === marked) span.className = 'marked';
  });
}

const byNumber = id => page.latents.find(latent => latent.id === id);   // undefined: not exported

function addNearest(latent, panel) {
  addElement('h2', 'Most similar atoms (cosine)', panel);
  const row = addElement('div', undefined, panel);
  row.className = 'row';
  for (const [id, cosine] of latent.nearest) {
    const figure = addElement('figure', undefined, row), neighbour = byNumber(id);
    if (neighbour) addAtom('button', neighbour, figure).onclick = () => showLatent(neighbour);
    addElement('figcaption', `${id} (${cosine})`, figure);
  }
}

// A table of text; in the table of nearest latents the number of a latent is a button.
function addTable([header, rows], parent) {
  const table = addElement('table', undefined, parent);
  const head = addElement('tr', undefined, table);
  for (const title of header) addElement('th', title, head);
  for (const cells of rows) {
    const row = addElement('tr', undefined, table);
    cells.forEach((text, column) => {
      const cell = addElement('td', undefined, row);
      const isLatent = header[0] === 'nearest latents' && column === 0;
      const neighbour = isLatent && byNumber(Number(text.replaceAll(',', '')));
      if (!neighbour) { cell.textContent = text; return; }
      const button = addElement('button', text, cell);
      button.className = 'name';
      button.onclick = () => showLatent(neighbour);
    });
  }
}

function markOnMap(latent) {
  for (const circle of document.querySelectorAll('#map circle')) {
    circle.setAttribute('aria-pressed', Number(circle.dataset.latent) === latent.id);
  }
}

function colorMap() {
  const { colors, legend } = page.map[find('color').value];
  document.querySelectorAll('#map circle').forEach((circle, k) => {
    circle.setAttribute('fill', colors[k]);
  });
  find('legend').replaceChildren();
  for (const [text, color] of legend) {
    const entry = addElement('span', undefined, find('legend'));
    addElement('span', '● ', entry).style.color = color;
    entry.append(text);
  }
}

function startMap() {
  const titles = Object.keys(page.map), svg = document.querySelector('#map svg');
  find('map').hidden = !titles.length;
  if (!titles.length) return;
  for (const title of titles) addElement('option', title, find('color'));
  find('color').onchange = colorMap;
  svg.onclick = svg.onkeydown = event => handleMap(svg, event, id => showLatent(byNumber(id)));
  colorMap();
}

function showLatent(latent) {
  selected = latent;
  const panel = find('latent'), isActive = latent.top.length > 0;
  panel.replaceChildren();
  addElement('h1', `Latent ${latent.id}`, panel);
  if (latent.label) addElement('div', latent.label, panel);
  if (latent.scores.length) {
    addElement('div', latent.scores.map(([title, text]) => `${title} ${text}`).join(', '), panel);
  }
  addElement('div', isActive
    ? `active on ${(100*latent.density).toPrecision(3)} % of ${page.n} samples, ` +
      `mean activation ${latent.mean.toPrecision(3)}`
    : `never active on ${page.n} samples`, panel);
  if (!page.is_text) addAtom('div', latent, panel, 3);
  if (isActive) {
    addElement('h2', 'Activations, where active (logarithmic scale)', panel);
    addHistogram(latent, panel);
  }
  addSamples('Activate it most', latent.top, latent, 0, panel);
  addSamples('Near quantiles of its activations', latent.quantiles, latent, latent.top.length,
             panel);
  if (!page.is_text) addNearest(latent, panel);
  const tables = addElement('div', undefined, panel);
  tables.className = 'tables';
  for (const table of latent.tables) addTable(table, tables);
  markOnMap(latent);
  for (const button of find('atoms').children) {
    button.setAttribute('aria-pressed', button.title.split(':')[0] === `latent ${latent.id}`);
  }
  if (find('order').value === 'similar') showList();
}

find('search').oninput = find('order').onchange = showList;
startMap();
if (page.latents.length) selected = page.latents[0];
showList();
if (selected) showLatent(selected);
