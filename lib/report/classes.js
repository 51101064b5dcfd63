// The table of all classes: sorts, searches, and draws the few rows that are looked at. Writes text, never markup.
(() => {
  'use strict';
  const PAGE = window.innerWidth < 704 ? 10 : 25; // rows; 44rem is where a row becomes a card
  const place = (id) => document.getElementById(id);
  const data = JSON.parse(place('class-data').textContent);
  const count = data.images.length;
  const thousands = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  const percent = (value) => value.toFixed(1) + '\u202f%';
  const nameOf = (c) => (data.names ? data.names[c] : 'class ' + c);
  const parentOf = (c) => (data.parent ? data.chains[data.parent[c]] : '');
  const wrong = (c) => data.images[c] - data.right[c];
  const error = (c) => 1 - data.right[c] / data.images[c]; // NaN without images

  // How names are sorted takes a while to find out, so it is done when first asked for.
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

  // Of each column: heading, what to show, what to sort by (NaN comes last), whether the largest comes first.
  const columns = [
    ['Class', (c) => String(c), (c) => c, false],
    ['Name', nameOf, rankOf, false],
    ...(data.parent ? [['Parents', parentOf, chainRankOf, false]] : []),
    ...(data.train ? [['Training', (c) => thousands(data.train[c]), (c) => data.train[c], true]] : []),
    ['Valid', (c) => thousands(data.images[c]), (c) => data.images[c], true],
    ['Right', (c) => (data.images[c] ? thousands(data.right[c]) : '–'), (c) => (data.images[c] ? data.right[c] : NaN), true],
    ['Error', (c) => (data.images[c] ? percent(100 * error(c)) : '–'), error, true],
    [
      '95\u202f% interval',
      (c) => (data.images[c] ? (data.low[c] / 10).toFixed(1) + '–' + percent(data.high[c] / 10) : '–'),
      (c) => (data.images[c] ? data.low[c] : NaN),
      true,
    ],
    [
      'Mostly taken for',
      (c) => (data.mistaken[c] < 0 ? '–' : nameOf(data.mistaken[c]) + ' (' + thousands(data.times[c]) + '×)'),
      (c) => (data.mistaken[c] < 0 ? NaN : rankOf(data.mistaken[c])),
      false,
    ],
  ];
  const INTERVAL = columns.length - 2;
  const texts = new Set(['Name', 'Parents', 'Mostly taken for']);

  let haystacks = null;
  const matches = (words) => {
    haystacks ||= Array.from({ length: count }, (_, c) => (c + ' ' + nameOf(c) + ' ' + parentOf(c)).toLowerCase());
    return (c) => words.every((word) => haystacks[c].includes(word));
  };

  let sorted = Array.from({ length: count }, (_, c) => c);
  let shown = sorted;
  let first = 0;
  let by = INTERVAL;
  let falling = true;

  const sort = () => {
    const keys = new Float64Array(count);
    const worst = falling ? -Infinity : Infinity;
    for (let c = 0; c < count; c++) {
      const key = columns[by][2](c);
      keys[c] = Number.isNaN(key) ? worst : key;
    }
    const sign = falling ? -1 : 1;
    sorted.sort((a, b) => (keys[a] === keys[b] ? wrong(b) - wrong(a) || a - b : sign * (keys[a] - keys[b])));
  };
  const filter = () => {
    const words = place('class-search').value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    shown = words.length ? sorted.filter(matches(words)) : sorted;
    // A class that is called by its number comes first.
    const exact = words.length === 1 && /^\d+$/.test(words[0]) ? Number(words[0]) : -1;
    if (exact >= 0 && exact < count) shown = [exact, ...shown.filter((c) => c !== exact)];
    first = 0;
  };
  const cell = (kind, column, text) => {
    const made = document.createElement(kind);
    made.textContent = text;
    made.dataset.label = columns[column][0];
    if (texts.has(columns[column][0])) made.className = 'text';
    return made;
  };
  const draw = () => {
    const rows = shown.slice(first, first + PAGE).map((c) => {
      const row = document.createElement('tr');
      row.append(...columns.map((column, i) => cell('td', i, column[1](c))));
      return row;
    });
    place('class-rows').replaceChildren(...rows);
    const last = Math.min(first + PAGE, shown.length);
    place('class-count').textContent = shown.length
      ? thousands(first + 1) + '–' + thousands(last) + ' of ' + thousands(shown.length) + (shown.length < count ? ' found' : ' classes')
      : 'No class is called that.';
    place('class-first').disabled = place('class-previous').disabled = first === 0;
    place('class-next').disabled = place('class-last').disabled = last >= shown.length;
    headings.forEach((heading, i) => {
      if (i === by) heading.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
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
    if (texts.has(column[0])) heading.className = 'text';
    button.addEventListener('click', () => {
      falling = by === i ? !falling : column[3];
      by = i;
      sort();
      filter();
      draw();
    });
    heading.append(button);
    return heading;
  });
  place('class-headings').append(...headings);
  place('class-search').addEventListener('input', () => {
    filter();
    draw();
  });
  const turn = (id, target) =>
    place(id).addEventListener('click', () => {
      first = target();
      draw();
    });
  turn('class-first', () => 0);
  turn('class-previous', () => Math.max(0, first - PAGE));
  turn('class-next', () => first + PAGE);
  turn('class-last', () => Math.floor((shown.length - 1) / PAGE) * PAGE);
  sort();
  draw();
  place('classes').classList.add('live');
})();
