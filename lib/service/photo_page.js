// The page of the service: a queue of photos, each sent, answered, and confirmed or corrected. Writes text, never markup.
(() => {
  'use strict';
  const MAX_SENDING = 4; // photos at a time, which the service computes as a batch
  const MAX_THUMBNAILS = 500;
  const MAX_PAUSE_SECONDS = 30;
  const TOP_K = 5;
  const MB = 1e6;
  const options = element('page').dataset;
  const [maxBytes, takesFeedback] = [Number(options.maxBytes), 'feedback' in options];
  const megabytes = (bytes) => (bytes / MB).toFixed(bytes < 10 * MB ? 1 : 0) + '\u202fMB';
  const photos = (value) => thousands(value) + (value === 1 ? ' photo' : ' photos');
  const say = (text) => (element('status').textContent = text);
  const note = (text) => {
    if (element('note').textContent !== text) element('note').textContent = text;
    element('note').hidden = !text;
  };

  // Requests. Obstacles (no connection, a busy service, no token) pause all of them until they are over.
  const stored = () => {
    try {
      return sessionStorage.getItem('token') ?? '';
    } catch {
      return '';
    }
  };
  let token = stored();
  class Obstacle extends Error {
    constructor(text, seconds, asksToken = false) {
      super(text);
      Object.assign(this, { seconds, asksToken });
    }
  }
  const request = async (method, path, body) => {
    const headers = { ...(token && { Authorization: 'Bearer ' + token }), ...(body && { 'Content-Type': body.type || 'application/octet-stream' }) };
    const used = token;
    let response, text;
    try {
      response = await fetch(path, { method, headers, body, cache: 'no-store', credentials: 'omit', redirect: 'error' });
      if (response.ok) return response;
      text = await response.text();
    } catch {
      throw new Obstacle('No connection to the service. Photos wait here, and are sent as soon as it answers.', 0);
    }
    try {
      text = String(JSON.parse(text).error ?? '');
    } catch {
      text = ''; // an answer of a proxy
    }
    const seconds = Number(response.headers.get('Retry-After')) || 0;
    if (response.status === 401 && used !== token) throw new Obstacle('', 0.1); // another one was entered meanwhile
    if (response.status === 401) throw new Obstacle(used ? 'The service does not accept this token.' : '', 0, true);
    if (response.status === 429) throw new Obstacle('The service is busy. Photos wait here, and are sent again.', seconds || 1);
    if ([502, 503, 504].includes(response.status)) throw new Obstacle('The service is not ready: ' + (text || response.status), seconds);
    throw new Error(text || 'The service answered with error ' + response.status + '.');
  };
  const askToken = (text) =>
    new Promise((resolve) => {
      const dialog = element('login');
      element('login-note').textContent = text;
      element('token').value = '';
      // A token is needed for everything: a closed dialog opens again.
      dialog.onclose = () => {
        token = element('token').value.trim();
        if (!token) return dialog.showModal();
        try {
          sessionStorage.setItem('token', token);
        } catch {
          // The token is used until the page is closed.
        }
        resolve();
      };
      for (const other of document.querySelectorAll('dialog[open]')) other.close();
      dialog.showModal();
    });
  const wait = (seconds) =>
    new Promise((resolve) => {
      setTimeout(resolve, 1000 * seconds);
      addEventListener('online', resolve, { once: true });
    });
  let pause = null;
  const persistently = async (run) => {
    for (let number = 0; ; number++) {
      while (pause) await pause;
      try {
        const result = await run();
        if (!pause) note('');
        return result;
      } catch (failure) {
        if (!(failure instanceof Obstacle)) throw failure;
        if (pause) continue;
        if (!failure.asksToken) note(failure.message);
        const seconds = Math.min(failure.seconds || 2 ** number, MAX_PAUSE_SECONDS);
        pause = (failure.asksToken ? askToken(failure.message) : wait(seconds)).finally(() => (pause = null));
      }
    }
  };

  // The queue. An item has a state: waiting, sending, answered or failed; once it is answered, maybe a decision.
  const items = [];
  const history = []; // [item, decision before]
  let position = 0;
  let model = '';
  const current = () => items[position];
  const stateOf = (item) => {
    if (item.decision) return item.decision.action === 'drop' ? 'dropped' : item.decision.name === item.answers[0]?.name ? 'confirmed' : 'corrected';
    return item.state === 'answered' && (item.accepted === false || item.unknown) ? 'unsure' : item.state;
  };
  const isOpen = (item) => !item.decision && item.state !== 'failed';

  const add = (files) => {
    const added = Array.from(files, (file) => ({ file, state: 'waiting', error: '', remark: '', answers: [], neighbors: [] }));
    if (!added.length) return;
    const wasDone = !items.some(isOpen);
    items.push(...added);
    if (wasDone) position = items.length - added.length;
    draw();
    say(photos(added.length) + ' added');
    send();
  };
  const readable = async (file) => {
    try {
      return new Blob([await file.arrayBuffer()], { type: file.type }); // the file may change or go
    } catch {
      throw new Error('The file cannot be read.');
    }
  };
  // A photo that is larger than the service accepts is reduced.
  const reduced = async (item) => {
    const { file } = item;
    const limit = 'the service accepts ' + megabytes(maxBytes);
    let image;
    try {
      image = await createImageBitmap(file);
    } catch {
      throw new Error('The file has ' + megabytes(file.size) + ', but ' + limit + '.');
    }
    for (let side = 4096; side >= 256; side /= 2) {
      const scale = Math.min(1, side / Math.max(image.width, image.height));
      const canvas = new OffscreenCanvas(Math.max(1, image.width * scale), Math.max(1, image.height * scale));
      canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
      const blob = await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.9 });
      if (blob.size > maxBytes) continue;
      item.remark = 'reduced from ' + megabytes(file.size) + ' to ' + megabytes(blob.size) + ': ' + limit;
      return blob;
    }
    throw new Error('The photo cannot be reduced to ' + megabytes(maxBytes) + '.');
  };
  const contentOf = async (item) => (item.file.size > maxBytes ? (item.reduced ??= await reduced(item)) : readable(item.file));
  let numSending = 0;
  const send = async () => {
    const item = numSending < MAX_SENDING && items.find((one) => one.state === 'waiting');
    if (!item) return;
    numSending++;
    item.state = 'sending';
    update(item);
    send();
    try {
      const { size, type } = item.file;
      if (!size) throw new Error('The file is empty.');
      if (type && !type.startsWith('image/')) throw new Error('The file is no photo.');
      const photo = await contentOf(item);
      const response = await persistently(() => request('POST', 'predict?neighbors=true&top_k=' + TOP_K, photo));
      const answer = await response.json();
      const result = answer.results[0];
      if (result.error) throw new Error(result.error);
      setModel(answer.model);
      Object.assign(item, { state: 'answered', model, answers: result.classes, accepted: result.accepted, unknown: result.unknown, neighbors: result.neighbors ?? [] });
    } catch (failure) {
      Object.assign(item, { state: 'failed', error: failure.message });
    }
    numSending--;
    update(item);
    if (item === current()) say(describe(item));
    send();
  };
  const sendAgain = (item) => {
    item.state = 'waiting';
    draw();
    send();
  };
  const setModel = (version) => {
    if (version === model) return;
    model = version;
    names = null;
    forgetThumbnails();
    element('model').textContent = ' · model ' + version;
  };

  // Feedback: one request after the other, so that the last decision about a photo is the last one stored.
  let saving = Promise.resolve();
  let numSaving = 0;
  const save = (item, decision) => {
    numSaving++;
    item.numSaving = (item.numSaving ?? 0) + 1;
    saving = saving.then(async () => {
      try {
        await store(item, decision);
        item.fault = '';
      } catch (failure) {
        item.fault = failure.message;
        say('not saved: ' + item.fault);
      }
      numSaving--;
      item.numSaving--;
      update(item);
    });
  };
  const store = async (item, decision) => {
    decision ??= item.before; // what the service had before
    if (decision) {
      const query = new URLSearchParams({ action: decision.action, name: decision.name ?? '' });
      const photo = await contentOf(item); // read again: a long queue of photos does not fit into memory
      const response = await persistently(() => request('POST', 'feedback?' + query, photo));
      const { id, before } = await response.json();
      if (item.id === undefined) Object.assign(item, { id, before });
    } else if (item.id !== undefined) await persistently(() => request('DELETE', 'feedback/' + item.id));
  };
  addEventListener('beforeunload', (event) => numSaving && event.preventDefault());

  const decide = (action, name) => {
    const item = current();
    if (!takesFeedback || !item) return;
    if (item.state !== 'answered') return say(item.state === 'failed' ? 'There is no answer about this photo.' : 'The answer is not here yet.');
    if (action === 'relabel' && name === undefined) return say('There is no answer to confirm: press / to search for a class.');
    history.push([item, item.decision]);
    const before = item.decision;
    item.decision = { action, name };
    save(item, item.decision);
    let next = before ? position + 1 : items.findIndex((one, k) => k > position && isOpen(one));
    if (next < 0) next = items.findIndex(isOpen);
    position = next < 0 || next >= items.length ? position : next;
    draw();
    const number = items.filter((one) => one.decision).length;
    say(describe(item) + (items.some(isOpen) ? '' : '. ' + (number === 1 ? 'The photo is' : 'All of ' + photos(number) + ' are') + ' decided.'));
  };
  const undo = () => {
    const last = history.pop();
    if (!last) return say('Nothing to undo.');
    const [item, before] = last;
    item.decision = before;
    position = items.indexOf(item);
    save(item, before);
    draw();
    say('undone: ' + item.file.name);
  };
  const move = (step) => {
    const target = position + step;
    if (target >= 0 && target < items.length) {
      position = target;
      draw();
      say(describe(current()));
    } else if (items.length) say(step < 0 ? 'This is the first photo.' : 'This is the last photo.');
  };
  const clear = () => {
    for (const item of items) URL.revokeObjectURL(item.address);
    items.length = history.length = position = 0;
    draw();
    say('');
    element('choose').focus();
  };

  // Thumbnails of training photos, which need the token, too.
  const thumbnails = new Map(); // row -> promise of an address
  const forgetThumbnails = () => {
    for (const address of thumbnails.values()) address.then(URL.revokeObjectURL);
    thumbnails.clear();
  };
  const thumbnail = (row) => {
    if (!thumbnails.has(row)) {
      if (thumbnails.size >= MAX_THUMBNAILS) forgetThumbnails();
      const load = async () => URL.createObjectURL(await (await persistently(() => request('GET', 'photos/' + row + '.jpg'))).blob());
      thumbnails.set(row, load().catch(() => ''));
    }
    return thumbnails.get(row);
  };
  const neighborsOf = (item, name) => {
    const rows = item.neighbors.filter((one) => one.name === name).map((one) => one.row);
    if (!rows.length || item.model !== model) return []; // rows of another model's training photos
    const shown = rows.map((row) => {
      const image = make('img', { class: 'photo', alt: '', decoding: 'async' });
      thumbnail(row).then((address) => (address ? (image.src = address) : image.parentElement?.remove()));
      return make('li', {}, image);
    });
    return [make('ul', { 'aria-label': 'nearest training photos' }, ...shown)];
  };

  // The photo, its answers, and the buttons.
  const describe = (item) => {
    const state = stateOf(item);
    const best = item.answers[0];
    if (item.decision) return state + (state === 'dropped' ? '' : ': ' + item.decision.name);
    if (state === 'failed') return item.error;
    if (state === 'waiting' || state === 'sending') return item.state === 'sending' ? 'recognizing …' : 'waiting …';
    const doubt = item.unknown ? 'unknown product, nearest: ' : state === 'unsure' ? 'not sure: ' : '';
    return best ? doubt + best.name + ', ' + percent(best.probability) : 'no answer';
  };
  const photoOf = (item) => {
    item.address ??= URL.createObjectURL(item.file);
    if (item.noPreview) return make('div', { class: 'photo none' }, 'no preview');
    const fail = (event) => {
      item.noPreview = true; // such as HEIC
      event.currentTarget.replaceWith(photoOf(item));
    };
    return make('img', { class: 'photo', alt: item.file.name, decoding: 'async', src: item.address, error: fail });
  };
  const press = (event, run) => {
    releaseFocus(event);
    const action = event.currentTarget.dataset.action;
    run();
    if (event.detail === 0 && action) element('item').querySelector('[data-action="' + action + '"]')?.focus();
  };
  const answerOf = (item, answer, k) => {
    const bar = make('i', {});
    bar.style.setProperty('--p', 100 * answer.probability + '%');
    const content = [
      ...(takesFeedback ? [keyHint(k + 1)] : [make('span', {})]),
      make('bdi', {}, answer.name),
      make('span', { class: 'soft' }, percent(answer.probability)),
      make('span', { class: 'bar-of' }, bar),
    ];
    const isChosen = item.decision?.name === answer.name;
    const label = (k ? 'Correct to ' : 'Confirm ') + answer.name + ', ' + percent(answer.probability);
    const click = (event) => press(event, () => decide('relabel', answer.name));
    const row = takesFeedback
      ? make('button', { type: 'button', class: 'answer', 'aria-label': label, 'aria-pressed': String(isChosen), 'data-action': k, click }, ...content)
      : make('div', { class: 'answer' }, ...content);
    return make('section', { class: 'panel' + (isChosen ? ' chosen ' + stateOf(item) : '') }, row, ...neighborsOf(item, answer.name));
  };
  const panelsOf = (item) => {
    const again = (event) => press(event, () => sendAgain(item));
    if (item.state === 'failed')
      return [make('p', { class: 'verdict failed decided' }, item.error), make('p', {}, make('button', { type: 'button', 'data-action': 'again', click: again }, 'Try again'))];
    if (item.state !== 'answered') return [make('p', { class: 'soft' }, describe(item)), make('div', { class: 'busy' })];
    const doubt = item.unknown
      ? [make('span', { class: 'badge' }, 'unknown product'), 'These are the nearest known ones.']
      : [make('span', { class: 'badge' }, 'not sure'), 'It may be one of these, or another product.'];
    return [
      ...(item.accepted === false || item.unknown ? [make('p', { class: 'verdict' }, ...doubt)] : []),
      ...item.answers.map((answer, k) => answerOf(item, answer, k)),
    ];
  };
  const decisionOf = (item) => {
    if (!takesFeedback || item.state !== 'answered') return [];
    if (item.fault) return [make('p', { class: 'decided failed', role: 'alert' }, 'not saved: ' + item.fault)];
    if (!item.decision) return [];
    return [make('p', { class: 'decided ' + stateOf(item) }, describe(item), ...(item.numSaving ? [make('small', { class: 'soft' }, ' · saving …')] : []))];
  };
  const actionsOf = (item) => {
    const act = (kind, text, letter, run, enabled) => {
      const attributes = { type: 'button', class: kind, 'aria-keyshortcuts': letter, disabled: !enabled, 'data-action': text.toLowerCase() };
      if (kind) attributes['aria-pressed'] = String(stateOf(item) === kind);
      return make('button', { ...attributes, click: (event) => press(event, run) }, text, keyHint(letter === 'Enter' ? '↵' : letter));
    };
    const isAnswered = item.state === 'answered';
    return make(
      'div', { class: 'actions', role: 'group', 'aria-label': 'Decision' },
      act('confirmed', 'Confirm', 'Enter', keys.Enter, isAnswered && item.answers.length),
      act('corrected', 'Other', '/', keys['/'], isAnswered),
      act('dropped', 'Drop', 'd', keys.d, isAnswered),
      act('', 'Undo', 'z', undo, history.length),
    ); // prettier-ignore
  };
  const drawItem = () => {
    const item = current();
    element('item').hidden = !item;
    if (!item) return element('item').replaceChildren();
    const focused = element('item').contains(document.activeElement) ? document.activeElement.dataset.action : undefined;
    const count = items.length > 1 ? thousands(position + 1) + ' of ' + thousands(items.length) : '';
    const open = takesFeedback && item.state === 'answered' && !item.decision ? 'not decided' : '';
    const remarks = [count, item.remark, open].filter(Boolean).join(' · ');
    element('item').replaceChildren(
      make('div', {}, make('div', { class: 'shot' }, photoOf(item)),
        make('h2', {}, make('bdi', {}, item.file.name)),
        ...(remarks ? [make('p', { class: 'soft' }, remarks)] : []), ...decisionOf(item)),
      make('div', { class: 'panels' }, ...panelsOf(item)),
      ...(takesFeedback ? [actionsOf(item)] : []),
    ); // prettier-ignore
    if (focused !== undefined) element('item').querySelector('[data-action="' + focused + '"]')?.focus();
  };
  const drawStrip = () => {
    const side = 4;
    const start = Math.max(0, Math.min(position - side, items.length - 2 * side - 1));
    const end = Math.min(items.length, start + 2 * side + 1);
    const nodes = [];
    for (let k = start; k < end; k++) {
      const item = items[k];
      const far = Math.abs(k - Math.min(Math.max(position, start + 2), end - 3)) > 2 ? ' far' : '';
      const go = (event) => press(event, () => move(k - position));
      const attributes = { type: 'button', class: 'small ' + stateOf(item) + far, 'aria-current': String(k === position), click: go };
      nodes.push(make('button', { ...attributes, 'aria-label': 'photo ' + (k + 1) + ', ' + describe(item) }, photoOf(item)));
    }
    const turn = (step, text, off) =>
      make('button', { type: 'button', 'aria-label': text, disabled: off, 'data-step': step, click: (event) => press(event, () => move(step)) }, step < 0 ? '←' : '→');
    const focused = document.activeElement?.dataset?.step;
    element('strip').hidden = items.length < 2;
    element('strip').replaceChildren(turn(-1, 'previous photo', position <= 0), ...nodes, turn(1, 'next photo', position >= items.length - 1));
    if (focused) element('strip').querySelector('[data-step="' + focused + '"]').focus();
  };
  const drawProgress = () => {
    const number = {};
    for (const item of items) number[stateOf(item)] = (number[stateOf(item)] ?? 0) + 1;
    const kinds = takesFeedback ? ['confirmed', 'corrected', 'dropped'] : ['answered', 'unsure', 'failed'];
    element('track').replaceChildren(
      ...kinds.filter((kind) => number[kind]).map((kind) => {
        const part = make('i', { class: kind });
        part.style.setProperty('--p', (100 * number[kind]) / items.length + '%');
        return part;
      }),
    );
    const done = kinds.reduce((sum, kind) => sum + (number[kind] ?? 0), 0);
    element('track').hidden = items.length < 2;
    element('track').setAttribute('aria-label', thousands(done) + ' of ' + photos(items.length) + (takesFeedback ? ' decided' : ' answered'));
    element('drop').classList.toggle('filled', items.length > 0);
    element('clear').hidden = !items.length;
  };
  const draw = () => {
    drawProgress();
    drawItem();
    drawStrip();
    // The next photo is seen from its top, also if the one before was scrolled.
    if (element('item').getBoundingClientRect().top < 0) element('page').scrollIntoView();
  };
  const update = (item) => {
    if (!items.includes(item)) return; // cleared meanwhile
    drawProgress();
    if (item === current()) drawItem();
    drawStrip();
  };

  // All class names, read when they are searched first.
  let names = null;
  const search = openClassSearch({
    load: async () => {
      if (names) return names;
      try {
        const answer = await (await persistently(() => request('GET', 'classes'))).json();
        setModel(answer.model);
        names = answer.classes;
      } catch (failure) {
        say('no class names: ' + failure.message);
      }
      return names;
    },
    proposals: () => current()?.answers.map((answer) => answer.name) ?? [],
    remark: (name) => (name === current()?.answers[0]?.name ? 'first answer' : ''),
    takesNew: true,
    choose: (name) => decide('relabel', name),
  });

  // Keys of the page.
  const keys = {
    j: () => move(1),
    p: () => move(-1),
    ArrowRight: () => move(1),
    ArrowLeft: () => move(-1),
    '?': () => element('help').showModal(),
  };
  const decisionKeys = {
    Enter: () => decide('relabel', current()?.answers[0]?.name),
    d: () => decide('drop'),
    z: undo,
    '/': () => current()?.state === 'answered' && search(),
  };
  if (takesFeedback) Object.assign(keys, decisionKeys);
  addEventListener('keydown', (event) => {
    const { key, target } = event;
    if (event.altKey || event.isComposing || document.querySelector('dialog[open]')) return;
    if ((event.ctrlKey || event.metaKey) && (key !== 'z' || event.shiftKey)) return;
    if (key === 'Enter' && target.closest('a, button, input, label')) return; // it presses the button
    const answer = /^[1-9]$/.test(key) ? current()?.answers[Number(key) - 1] : undefined;
    const name = key.length === 1 ? key.toLowerCase() : key;
    const run = answer ? () => decide('relabel', answer.name) : Object.hasOwn(keys, name) && keys[name];
    if (!run) return;
    event.preventDefault();
    if (!event.repeat || key.startsWith('Arrow') || name === 'j' || name === 'p') run();
  });

  // Photos come from the file dialog, the camera, the clipboard, or are dropped anywhere on the page.
  for (const id of ['choose', 'capture'])
    element(id).addEventListener('change', (event) => {
      add(event.target.files);
      event.target.value = ''; // so that the same file can be chosen again
      event.target.blur();
    });
  addEventListener('paste', (event) => add(event.clipboardData?.files ?? []));
  const dragging = (event, is) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    document.body.classList.toggle('dragging', is);
  };
  addEventListener('dragover', (event) => dragging(event, true));
  addEventListener('dragleave', (event) => event.relatedTarget || dragging(event, false));
  addEventListener('drop', (event) => {
    dragging(event, false);
    add(event.dataTransfer?.files ?? []);
  });
  element('clear').addEventListener('click', clear);
  element('ask').addEventListener('click', keys['?']);
  element('page').hidden = false;
  draw();
})();
