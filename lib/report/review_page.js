// The review page: one image at a time, decided by keyboard. Writes text, never markup.
(() => {
  'use strict';
  const data = JSON.parse(element('review-data').textContent);
  const labeled = data.split !== 'unlabeled';
  const PAST = { keep: 'kept', relabel: labeled ? 'relabeled' : 'named', drop: 'dropped', unsure: 'unsure', weight: 'weighted' };
  const STATES = ['all', 'undecided', ...(labeled ? ACTIONS : ACTIONS.filter((action) => action !== 'keep'))];
  const count = data.fpaths.length;
  const images = (value) => thousands(value) + (value === 1 ? ' image' : ' images');
  // A cluster of photos is a proposal for a new class; it gets the name that one of its photos is given.
  const clusterOf = (i) => data.proposals[i].find((c) => c in data.clusterSizes) ?? -1;
  const named = new Map();
  const nameOf = (c) => named.get(c) ?? (c < 0 ? '' : data.classes[c][0]);
  const labelOf = (i) => nameOf(data.labels[i]);
  // Earlier decisions have relabeled some images. All decisions correct the labels as annotated.
  const judgedLabel = (i) => data.annotated[i] || labelOf(i);
  const ids = data.fpaths.map((fpath, i) => idOf(fpath, judgedLabel(i)));
  const rowOf = new Map(ids.map((id, i) => [id, i]));

  const note = (text) => {
    element('note').textContent = text;
    element('note').hidden = false;
  };
  const say = (text) => (element('status').textContent = text);

  const decisions = openDecisions(data, note);
  // What to undo: lists of [id, decision before]; after a reload, the decisions in their order.
  const history = decisions.ids().filter((id) => rowOf.has(id)).map((id) => [[id, undefined]]);

  // The images that are shown, which only a choice of the user changes.
  const filter = { state: 'all', kind: 'all' };
  let shown = [];
  let position = 0;
  const targetOf = (i) => {
    const decision = decisions.get(ids[i]);
    return { keep: judgedLabel(i), relabel: decision?.to }[decision?.action];
  };
  const stateOf = (i) => {
    const target = targetOf(i);
    if (target !== undefined) return target === labelOf(i) ? 'keep' : 'relabel';
    return decisions.get(ids[i])?.action ?? 'undecided';
  };
  const nameClusters = () => {
    named.clear();
    for (let i = 0; i < count; i++) {
      const [c, to] = [clusterOf(i), decisions.get(ids[i])?.to];
      const isOther = () => data.proposals[i].some((other) => other !== c && nameOf(other) === to);
      if (c >= 0 && to && !named.has(c) && !isOther()) named.set(c, to);
    }
  };
  const select = (current) => {
    const has = (i) =>
      (filter.state === 'all' || stateOf(i) === filter.state) && (filter.kind === 'all' || data.kinds[i] === filter.kind);
    shown = Array.from({ length: count }, (_, i) => i).filter(has);
    position = Math.max(0, shown.findIndex((i) => i >= current));
  };

  const decide = (action, to) => {
    if (!shown.length) return;
    const i = shown[position];
    const [fpath, label, judged] = [data.fpaths[i], labelOf(i), judgedLabel(i)];
    if (action === 'relabel' && to === undefined) return say('There is no proposal: press / to search for a class.');
    if (action === 'keep' && !label) return say('This image has no label that could be kept.');
    if (action === 'keep') to = label;
    if (to !== undefined) action = to === judged ? 'keep' : 'relabel';
    const before = decisions.get(ids[i]);
    history.push([[ids[i], before]]);
    decisions.put(ids[i], { fpath, action, label: judged, to, by: 'review' });
    const waits = (j) => stateOf(j) === 'undecided';
    let next = before ? position + 1 : shown.findIndex((j, k) => k > position && waits(j));
    if (next < 0) next = shown.findIndex(waits);
    const done = PAST[stateOf(i)] + (stateOf(i) === 'relabel' ? ' to ' + targetOf(i) : '') + ': ' + fpath;
    const more = data.numPages > data.page ? ' Go to page ' + (data.page + 1) + ', or export.' : ' Export decisions.json.';
    position = next < 0 || next >= shown.length ? position : next;
    draw();
    say(done + (shown.every((j) => !waits(j)) ? '. All of ' + images(shown.length) + ' decided.' + more : ''));
  };
  const acceptCluster = () => {
    const c = shown.length ? clusterOf(shown[position]) : -1;
    const rows = Array.from({ length: count }, (_, i) => i).filter((i) => clusterOf(i) === c && stateOf(i) === 'undecided');
    if (c < 0 || !rows.length) return say(c < 0 ? 'This photo is in no cluster.' : 'All photos of this cluster are decided.');
    const to = nameOf(c);
    history.push(rows.map((i) => [ids[i], undefined]));
    for (const i of rows) decisions.put(ids[i], { fpath: data.fpaths[i], action: 'relabel', label: judgedLabel(i), to, by: 'review' });
    const next = shown.findIndex((i, k) => k > position && stateOf(i) === 'undecided');
    position = next < 0 ? position : next;
    draw();
    say('named ' + images(rows.length) + ' ' + to);
  };
  const undo = () => {
    const last = history.pop();
    if (!last) return say('Nothing to undo.');
    for (const [id, before] of last) decisions.put(id, before);
    const i = rowOf.get(last[0][0]);
    if (i !== undefined && !shown.includes(i)) reset(i);
    if (i !== undefined) position = shown.indexOf(i);
    draw();
    say('undone: ' + (last.length === 1 ? JSON.parse(last[0][0])[0] : thousands(last.length) + ' decisions'));
  };
  const move = (step) => {
    const target = position + step;
    if (target >= 0 && target < shown.length) {
      position = target;
      draw();
    } else say(step < 0 ? 'This is the first image.' : 'This is the last image of this page.');
  };

  // The image, its classes, and the buttons.
  const isLink = (content) => /^(\.\/|file:)/.test(content);
  const jpeg = (content) => (isLink(content) ? content : 'data:image/jpeg;base64,' + content);
  let originals = location.protocol === 'file:'; // the files lie beside a page that is opened from disk
  const photoOf = (i) => {
    const [fpath, content, link] = [data.fpaths[i], data.photos[i], data.links[i]];
    if (!content && !(originals && link)) {
      const text = content === null ? 'unreadable' : link ? 'open the photo' : 'no photo';
      return make(link ? 'a' : 'div', { class: 'photo none', ...(link && { href: link, target: '_blank' }) }, text);
    }
    const image = make('img', { class: 'photo', alt: fpath, decoding: 'async', src: content ? jpeg(content) : link });
    if (originals && link) {
      const original = new Image();
      original.addEventListener('load', () => (image.src = link));
      original.addEventListener('error', () => {
        originals = false; // the page was moved
        if (!content && image.isConnected) draw();
      });
      original.src = link;
    }
    return link ? make('a', { href: link, target: '_blank', title: 'open the photo' }, image) : image;
  };
  const panelOf = (title, c, chosen, action, button, compared = true) => {
    const examples = (compared ? data.classes[c][1] : []).filter((content) => originals || !isLink(content)).map((content) =>
      make('li', {}, make('img', { class: 'photo', alt: '', decoding: 'async', src: jpeg(content) })),
    );
    return make(
      'section', { class: 'panel' + (chosen ? ' chosen ' + action : '') },
      make('h3', {}, make('small', { class: 'soft' }, title), make('bdi', {}, nameOf(c)), ...(button ? [button] : [])),
      ...(examples.length ? [make('ul', { 'aria-label': 'typical photos' }, ...examples)] : []),
    ); // prettier-ignore
  };
  const drawItem = () => {
    const item = element('item');
    if (!shown.length) return item.replaceChildren(make('p', {}, 'No image of this kind.'));
    const i = shown[position];
    const decision = decisions.get(ids[i]);
    const label = labelOf(i);
    const wrong = data.errors[i] === null ? '' : ', label wrong with probability ' + percent(data.errors[i]);
    const meaning = data.kindMeanings[data.kinds[i]] ?? data.kinds[i];
    const state = decision
      ? make('p', { class: 'decided ' + stateOf(i) }, PAST[stateOf(i)] + (stateOf(i) === 'relabel' ? ' to ' + targetOf(i) : ''))
      : make('p', { class: 'soft' }, 'not decided');
    const panels = label ? [panelOf('label', data.labels[i], stateOf(i) === 'keep', 'keep')] : [];
    const proposals = data.proposals[i];
    proposals.forEach((c, k) => {
      const to = nameOf(c);
      const button = make(
        'button', { type: 'button', 'aria-label': 'Relabel to ' + to, click: (event) => press(event, () => decide('relabel', to)) },
        label ? 'Relabel' : 'Choose', keyHint(k + 1),
      ); // prettier-ignore
      const size = data.clusterSizes[c];
      const title = size ? 'new, ' + images(size) : (label || k ? 'proposal ' : 'prediction ') + percent(data.probabilities[i][k]);
      panels.push(panelOf(title, c, targetOf(i) === to, 'relabel', button, k < (label ? 1 : 2)));
    });
    const act = (action, text, letter, run, enabled = true) =>
      make(
        'button',
        { type: 'button', class: action, 'aria-keyshortcuts': letter, disabled: !enabled, 'data-action': text.toLowerCase(),
          ...(ACTIONS.includes(action) && { 'aria-pressed': String(stateOf(i) === action) }), click: (event) => press(event, run) },
        text, keyHint(letter),
      ); // prettier-ignore
    const best = proposals.length ? nameOf(proposals[0]) : undefined;
    item.replaceChildren(
      make('div', {}, make('div', { class: 'shot' }, photoOf(i)),
        make('h2', {}, make('bdi', {}, data.fpaths[i])),
        make('p', { class: 'soft' }, thousands(position + 1) + ' of ' + thousands(shown.length) + ' · ' + meaning + wrong), state),
      make('div', { class: 'panels' }, ...panels),
      make('div', { class: 'actions', role: 'group', 'aria-label': 'Decision' },
        ...(label ? [act('keep', 'Keep', 'k', () => decide('keep'))] : []),
        act('relabel', label ? 'Relabel' : 'Accept', 'r', () => decide('relabel', best), best !== undefined),
        ...(clusterOf(i) >= 0 ? [act('relabel', 'All', 'a', acceptCluster)] : []),
        act('search', 'Search', '/', openSearch),
        act('drop', 'Drop', 'd', () => decide('drop')),
        act('unsure', 'Unsure', 'u', () => decide('unsure')),
        act('undo', 'Undo', 'z', undo, history.length > 0)),
    ); // prettier-ignore
  };
  const press = (event, run) => {
    releaseFocus(event);
    const action = event.currentTarget.dataset.action;
    run();
    if (event.detail === 0 && action) element('item').querySelector('[data-action=' + action + ']')?.focus();
  };
  const drawStrip = () => {
    const side = 4;
    const start = Math.max(0, Math.min(position - side, shown.length - 2 * side - 1));
    const end = Math.min(shown.length, start + 2 * side + 1);
    const nodes = [];
    for (let k = start; k < end; k++) {
      const [i, state] = [shown[k], stateOf(shown[k])];
      const content = data.photos[i] ? make('img', { alt: '', decoding: 'async', src: jpeg(data.photos[i]) }) : thousands(i + 1);
      const text = 'image ' + (k + 1) + ', ' + (PAST[state] ?? state);
      const far = Math.abs(k - Math.min(Math.max(position, start + 2), end - 3)) > 2 ? ' far' : '';
      const go = (event) => press(event, () => ((position = k), draw()));
      nodes.push(make('button', { type: 'button', class: 'small ' + state + far, 'aria-label': text, 'aria-current': String(k === position), click: go }, content));
    }
    const turn = (step, text, off) =>
      make('button', { type: 'button', 'aria-label': text, disabled: off, 'data-step': step, click: (event) => press(event, () => move(step)) }, step < 0 ? '←' : '→');
    const focused = document.activeElement?.dataset?.step;
    element('strip').replaceChildren(turn(-1, 'previous image', position <= 0), ...nodes, turn(1, 'next image', position >= shown.length - 1));
    if (focused) element('strip').querySelector('[data-step="' + focused + '"]').focus();
  };
  const numbers = () => {
    const number = { all: count, undecided: 0 };
    for (let i = 0; i < count; i++) number[stateOf(i)] = (number[stateOf(i)] ?? 0) + 1;
    return number;
  };
  const drawProgress = () => {
    const number = numbers();
    const decided = count - number.undecided;
    element('track').replaceChildren(
      ...ACTIONS.filter((action) => number[action]).map((action) => {
        const part = make('i', { class: action });
        part.style.setProperty('--p', (100 * number[action]) / count + '%');
        return part;
      }),
    );
    element('track').setAttribute('aria-label', thousands(decided) + ' of ' + images(count) + ' decided');
    for (const state of STATES) {
      const chip = element('state-' + state).nextElementSibling;
      chip.lastElementChild.textContent = thousands(number[state] ?? 0);
      if (state === 'weight') chip.hidden = element('state-weight').disabled = !number[state];
    }
    element('export').textContent = 'Export' + (decisions.size() ? ' (' + thousands(decisions.size()) + ')' : '');
    element('export').disabled = !decisions.size();
  };
  const draw = () => {
    nameClusters();
    drawProgress();
    drawItem();
    drawStrip();
  };
  const chips = (group, name, values, words) => {
    for (const value of values) {
      const choose = () => {
        filter[name] = value;
        select(shown[position] ?? 0);
        draw();
      };
      const attributes = { type: 'radio', name, id: name + '-' + value, checked: value === 'all', autocomplete: 'off', change: choose };
      const color = ACTIONS.includes(value) ? { class: value } : {};
      element(group).append(
        make('input', attributes),
        make('label', { for: name + '-' + value, ...color }, words(value), make('b', {}, '')),
      );
    }
  };
  const reset = (current) => {
    Object.assign(filter, { state: 'all', kind: 'all' });
    for (const name of Object.keys(filter)) element(name + '-all').checked = true;
    select(current);
  };

  // All class names and the earlier decisions, which are unpacked when they are needed first.
  let names = null;
  let earlier = [];
  const unpack = async () => {
    if (names) return names;
    try {
      const bytes = Uint8Array.from(atob(JSON.parse(element('review-packed').textContent)), (char) => char.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
      ({ names, earlier } = JSON.parse(await new Response(stream).text()));
    } catch {
      names = Object.values(data.classes).map(([name]) => name);
      note('This browser is too old to search all class names, and to export earlier decisions.');
    }
    return names;
  };
  const search = openClassSearch({
    load: unpack,
    proposals: () => proposed(),
    remark: (name) => (name === labelOf(shown[position]) ? 'the label' : ''),
    takesNew: !labeled,
    choose: (name) => decide('relabel', name),
  });
  const openSearch = () => shown.length && search();

  // Keys of the page.
  const proposed = () => data.proposals[shown[position]].map(nameOf);
  const keys = {
    k: () => decide('keep'),
    r: () => decide('relabel', proposed()[0]),
    Enter: () => decide('relabel', proposed()[0]),
    a: acceptCluster,
    d: () => decide('drop'),
    u: () => decide('unsure'),
    z: undo,
    '/': openSearch,
    '?': () => element('help').showModal(),
    j: () => move(1),
    p: () => move(-1),
    ArrowRight: () => move(1),
    ArrowLeft: () => move(-1),
  };
  addEventListener('keydown', (event) => {
    const { key, target } = event;
    if (event.altKey || event.isComposing || document.querySelector('dialog[open]')) return;
    if ((event.ctrlKey || event.metaKey) && (key !== 'z' || event.shiftKey)) return;
    // Enter on a button presses it, and arrows choose among radio buttons.
    if (key === 'Enter' && target.closest('a, button, input, label')) return;
    if (key.startsWith('Arrow') && target.closest('input')) return;
    const digit = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
    const name = key.length === 1 ? key.toLowerCase() : key;
    const run = digit < 0 ? keys[name] : shown.length && proposed()[digit] !== undefined && (() => decide('relabel', proposed()[digit]));
    if (!run || (digit < 0 && !Object.hasOwn(keys, name))) return;
    event.preventDefault();
    if (!shown.length && !'z?'.includes(name)) return;
    if (!event.repeat || key.startsWith('Arrow') || name === 'j' || name === 'p') run();
  });
  addEventListener('storage', () => {
    decisions.load();
    draw();
  });
  element('ask').addEventListener('click', keys['?']);
  element('export').addEventListener('click', async () => {
    await unpack();
    const number = decisions.download(earlier);
    draw();
    say('exported ' + thousands(number) + (number === 1 ? ' decision' : ' decisions'));
  });
  element('import').addEventListener('change', async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    const paths = new Set(data.fpaths);
    const isStale = ({ fpath, label }) => paths.has(fpath) && !rowOf.has(idOf(fpath, label));
    const [added, text] = decisions.merge(await file.text(), isStale);
    event.target.value = ''; // so that the same file can be chosen again
    if (added.length) history.push(added);
    draw();
    say(text);
  });

  const kinds = Object.keys(data.kindMeanings).filter((kind) => data.kinds.includes(kind));
  chips('states', 'state', STATES, (value) => PAST[value] ?? value);
  chips('kinds', 'kind', ['all', ...kinds], (value) => (value === 'all' ? 'all kinds' : value.replaceAll('_', ' ')));
  for (const kind of kinds) {
    const number = data.kinds.filter((one) => one === kind).length;
    element('kind-' + kind).nextElementSibling.lastElementChild.textContent = thousands(number);
  }
  element('kinds').parentElement.hidden = kinds.length < 2;
  select(Math.max(0, ids.findIndex((id) => !decisions.get(id))));
  element('review').hidden = false;
  draw();
})();
