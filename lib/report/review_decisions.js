// The decisions of the review page: stored in the browser, exported and imported as decisions.json.
const ACTIONS = ['keep', 'relabel', 'drop', 'unsure', 'weight'];
// A path may be listed with two labels. The JSON of a text that is not valid Unicode is valid.
const idOf = (fpath, label) => JSON.stringify([fpath, label]);

// data: of the page. warn: shows a text that the user must know.
const openDecisions = (data, warn) => {
  'use strict';
  const byId = new Map();
  // The browser stores each decision under a key of its own, so that the pages of a set, in any tabs, share them.
  const prefix = 'review:' + data.review + ':';
  let store = null;
  let unsaved = false; // decided, but neither stored nor exported
  let lastTime = 0;

  const isText = (value) => typeof value === 'string' && value !== '';
  const isValid = (one) =>
    one !== null &&
    typeof one === 'object' &&
    isText(one.fpath) &&
    ACTIONS.includes(one.action) &&
    typeof one.label === 'string' &&
    (one.action !== 'relabel' || isText(one.to)) &&
    (one.action !== 'weight' || (one.weight > 0 && one.weight <= 1));
  const fieldsOf = ({ fpath, action, label, to, weight, by }) => ({
    fpath,
    action,
    label,
    ...(action === 'relabel' && { to }),
    ...(action === 'weight' && { weight }),
    ...(isText(by) && { by }),
  });
  const parse = (text) => {
    try {
      return JSON.parse(text);
    } catch {
      return null;
    }
  };

  const load = () => {
    if (!store) return;
    const stored = [];
    for (let i = 0; i < store.length; i++) {
      const key = store.key(i);
      const one = key.startsWith(prefix + '[') ? parse(store.getItem(key)) : null;
      if (isValid(one)) stored.push(one);
    }
    stored.sort((a, b) => a.time - b.time);
    if (!unsaved) byId.clear();
    for (const one of stored) byId.set(idOf(one.fpath, one.label), one);
  };
  const put = (id, decision) => {
    if (decision) {
      lastTime = Math.max(Date.now(), lastTime + 1);
      decision = { ...fieldsOf(decision), time: lastTime };
      byId.set(id, decision);
    } else byId.delete(id);
    try {
      if (!store) unsaved = true;
      else if (decision) store.setItem(prefix + id, JSON.stringify(decision));
      else store.removeItem(prefix + id);
    } catch {
      unsaved = true;
      warn('The storage of this browser is full. Export the decisions before you close the page: the last ones are not stored.');
    }
  };

  // Download all decisions, and those of `earlier` where none is made here; return their number.
  const download = (earlier) => {
    load(); // other tabs may have decided
    const all = new Map(earlier.map((one) => [idOf(one.fpath, one.label), one]));
    for (const [id, one] of byId) all.set(id, one);
    const lines = Array.from(all.values(), (one) => JSON.stringify(fieldsOf(one)));
    const text = '{"split": ' + JSON.stringify(data.split) + ', "decisions": [\n' + lines.join(',\n') + '\n]}\n';
    const address = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
    const link = document.createElement('a');
    link.href = address;
    link.download = 'decisions.json';
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    unsaved = false;
    return all.size;
  };
  // Return the list of [id, undefined] that undoes the import, and a text; decisions made here have precedence.
  const merge = (content, isStale) => {
    const found = parse(content.replace(/^\ufeff/, ''));
    if (!found || !Array.isArray(found.decisions)) return [[], 'Not imported: this file is no decisions.json.'];
    const split = found.split ?? 'train';
    if (split !== data.split) return [[], 'Not imported: its decisions are about the ' + split + ' images, not the ' + data.split + ' images.'];
    const added = [];
    const number = { invalid: 0, decided: 0, stale: 0 };
    for (const one of found.decisions) {
      const id = isValid(one) && idOf(one.fpath, one.label);
      if (!id) number.invalid++;
      else if (byId.has(id)) number.decided++;
      else if (isStale(one)) number.stale++;
      else {
        put(id, one);
        added.push([id, undefined]);
      }
    }
    const reasons = { decided: 'decided here', stale: 'of another label than now', invalid: 'invalid' };
    const others = Object.keys(reasons).filter((name) => number[name]);
    const skipped = others.map((name) => number[name] + ' ' + reasons[name]).join(', ');
    return [added, added.length + ' of ' + found.decisions.length + ' decisions imported' + (skipped && '; not imported: ' + skipped)];
  };

  try {
    localStorage.setItem(prefix + 'page-' + data.page, '1');
    store = localStorage;
  } catch {
    warn('This browser stores nothing for this page. Export the decisions before you close it: they are lost then.');
  }
  // A link from another page of the set, which has left its mark if the browser lets pages share their storage.
  const origin = /^#from-\d+$/.test(location.hash) ? 'page-' + location.hash.slice(6) : '';
  if (store && origin && !store.getItem(prefix + origin)) {
    warn('This browser stores the decisions of each page separately. Export them on each page, and import them on the next one.');
  }
  addEventListener('beforeunload', (event) => unsaved && event.preventDefault());
  load();
  return { get: (id) => byId.get(id), ids: () => Array.from(byId.keys()), size: () => byId.size, put, load, merge, download };
};
