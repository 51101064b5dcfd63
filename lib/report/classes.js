// The table of all classes: sorts, searches, and renders one page of rows at a time. Writes text, never markup.
(() => {
  'use strict';
  const PAGE = window.innerWidth < 704 ? 10 : 25; // rows; 44rem is where a row becomes a card
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element('class-data').textContent);
  const count = data.images.length;
  const thousands = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  const percent = (value) => value.toFixed(1) + '\u202f%';
  const nameOf = (c) => (data.names ? data.names[c] : 'class ' + c);
  const parentOf = (c) => (data.parent ? data.chains[data.parent[c]] : '');
  const wrong = (c) => data.images[c] - data.right[c];
  const error = (c) => 1 - data.right[c] / data.images[c]; // NaN without images

  // Sorting all names takes a while, so it is done at first use.
  let ranks = null;
  const rankOf = (c) => {
    if (!ranks) {
      const names = Array.from({ length: count }, (_, i) => nameOf(i));
      const order = new Intl.Collator('en', { numeric: true });
      const sorted = Array.from(names.keys()).sort((a, b) => order.compare(names[a], names[b]));
      ranks = new Int32Array(count);
      sorted.forEach((number, rank) => (ranks[number] = rank));
    }
    return ranks[c];
  };
  let chainRanks = null;
  const chainRankOf = (c) => {
    if (!chainRanks) {
      const order = new Intl.Collator('en', { numeric: true });
      chainRanks = new Int32Array(data.chains.length);
      Array.from(data.chains.keys())
        .sort((a, b) => order.compare(data.chains[a], data.chains[b]))
        .forEach((number, rank) => (chainRanks[number] = rank));
    }
    return chainRanks[data.parent[c]];
  };

  // Each column: heading, class -> text, class -> sort key (NaN comes last), true if the largest comes first.
  const columns = [
    ['Class', (c) => String(c), (c) => c, false],
    ['Name', nameOf, rankOf, false],
    ...(data.parent ? [['Parents', parentOf, chainRankOf, false]] : []),
    ...(data.train ? [['Training', (c) => thousands(data.train[c]), (c) => data.train[c], true]] : []),
    ['Valid', (c) => thousands(data.images[c]), (c) => data.images[c], true],
    ['Correct', (c) => (data.images[c] ? thousands(data.right[c]) : '–'), (c) => (data.images[c] ? data.right[c] : NaN), true],
    ['Error', (c) => (data.images[c] ? percent(100 * error(c)) : '–'), error, true],
    [
      '95\u202f% interval',
      (c) => (data.images[c] ? (data.low[c] / 10).toFixed(1) + '–' + percent(data.high[c] / 10) : '–'),
      (c) => (data.images[c] ? data.low[c] : NaN),
      true,
    ],
    [
      'Most confused with',
      (c) => (data.mistaken[c] < 0 ? '–' : nameOf(data.mistaken[c]) + ' (' + thousands(data.times[c]) + '×)'),
      (c) => (data.mistaken[c] < 0 ? NaN : rankOf(data.mistaken[c])),
      false,
    ],
  ];
  const INTERVAL = columns.length - 2;
  const textColumns = new Set(['Name', 'Parents', 'Most confused with']);

  let searchTexts = null;
  const matches = (words) => {
    searchTexts ||= Array.from({ length: count }, (_, c) => (c + ' ' + nameOf(c) + ' ' + parentOf(c)).toLowerCase());
    return (c) => words.every((word) => searchTexts[c].includes(word));
  };

  let sorted = Array.from({ length: count }, (_, c) => c);
  let shown = sorted;
  let first = 0;
  let by = INTERVAL;
  let descending = true;

  const sort = () => {
    const keys = new Float64Array(count);
    const worst = descending ? -Infinity : Infinity;
    for (let c = 0; c < count; c++) {
      const key = columns[by][2](c);
      keys[c] = Number.isNaN(key) ? worst : key;
    }
    const sign = descending ? -1 : 1;
    sorted.sort((a, b) => (keys[a] === keys[b] ? wrong(b) - wrong(a) || a - b : sign * (keys[a] - keys[b])));
  };
  const filter = () => {
    const words = element('class-search').value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    shown = words.length ? sorted.filter(matches(words)) : sorted;
    // A class whose index is the search text comes first.
    const exact = words.length === 1 && /^\d+$/.test(words[0]) ? Number(words[0]) : -1;
    if (exact >= 0 && exact < count) shown = [exact, ...shown.filter((c) => c !== exact)];
    first = 0;
  };
  const cell = (kind, column, text) => {
    const node = document.createElement(kind);
    node.textContent = text;
    node.dataset.label = columns[column][0];
    if (textColumns.has(columns[column][0])) node.className = 'text';
    return node;
  };
  const draw = () => {
    const rows = shown.slice(first, first + PAGE).map((c) => {
      const row = document.createElement('tr');
      row.append(...columns.map((column, i) => cell('td', i, column[1](c))));
      return row;
    });
    element('class-rows').replaceChildren(...rows);
    const last = Math.min(first + PAGE, shown.length);
    element('class-count').textContent = shown.length
      ? thousands(first + 1) + '–' + thousands(last) + ' of ' + thousands(shown.length) + (shown.length < count ? ' found' : ' classes')
      : 'No class matches.';
    element('class-first').disabled = element('class-previous').disabled = first === 0;
    element('class-next').disabled = element('class-last').disabled = last >= shown.length;
    headings.forEach((heading, i) => {
      if (i === by) heading.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      else heading.removeAttribute('aria-sort');
    });
  };

  const headings = columns.map((column, i) => {
    const heading = document.createElement('th');
    const button = document.createElement('button');
    heading.scope = 'col';
    heading.dataset.label = column[0];
    button.type = 'button';
    button.textContent = column[0];
    if (textColumns.has(column[0])) heading.className = 'text';
    button.addEventListener('click', () => {
      descending = by === i ? !descending : column[3];
      by = i;
      sort();
      filter();
      draw();
    });
    heading.append(button);
    return heading;
  });
  element('class-headings').append(...headings);
  element('class-search').addEventListener('input', () => {
    filter();
    draw();
  });
  const onClick = (id, target) =>
    element(id).addEventListener('click', () => {
      first = target();
      draw();
    });
  onClick('class-first', () => 0);
  onClick('class-previous', () => Math.max(0, first - PAGE));
  onClick('class-next', () => first + PAGE);
  onClick('class-last', () => Math.floor((shown.length - 1) / PAGE) * PAGE);
  sort();
  draw();
  element('classes').classList.add('live');
})();
