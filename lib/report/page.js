// Parts of the pages that work by keyboard: nodes, numbers, and the search for a class. Writes text, never markup.
const element = (id) => document.getElementById(id);
const thousands = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, '\u202f');
const percent = (value) =>
  value > 0.999 ? 'above 99.9\u202f%' : (100 * value).toFixed(value > 0.99 || value < 0.1 ? 1 : 0) + '\u202f%';
const make = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children); // strings become text nodes
  return node;
};
const keyHint = (text) => make('kbd', { 'aria-hidden': 'true' }, text);
// A button that the mouse has pressed must not take the next Enter.
const releaseFocus = (event) => {
  if (event.detail > 0 && document.activeElement !== document.body) document.activeElement.blur();
};

// The dialog in which a class is found by words of its name; return a function that opens it.
// load: resolves to all names, or null. proposals: names to begin with. remark: a word about a name.
// takesNew: whether a typed name may be that of a new class. choose: called with the name.
const openClassSearch = ({ load, proposals, remark, takesNew, choose }) => {
  const MAX_FOUND = 30;
  const MAX_RECENT = 5;
  const fold = (text) => text.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase();
  const recent = [];
  let names = null;
  let folded = [];
  let options = []; // [name, remark]
  let active = 0;
  const matches = (query) => {
    const words = fold(query).split(/\s+/).filter(Boolean);
    if (!words.length) return [Array.from(new Set([...recent, ...proposals()])), 'Type words of the name.'];
    const whole = words.join(' ');
    const ranked = [];
    for (let c = 0; c < folded.length; c++) {
      const name = folded[c];
      if (!words.every((word) => name.includes(word))) continue;
      const start = name.indexOf(words[0]);
      const rank = name === whole ? 0 : name.startsWith(whole) ? 1 : start === 0 || name[start - 1] === ' ' ? 2 : 3;
      ranked.push([rank, name.length, c]);
    }
    ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
    const found = Array.from(new Set(ranked.slice(0, MAX_FOUND).map(([, , c]) => names[c])));
    const number = thousands(ranked.length) + (ranked.length === 1 ? ' class matches' : ' classes match');
    return [found, ranked.length > MAX_FOUND ? number + '; the first ' + MAX_FOUND + ' are listed.' : number + '.'];
  };
  const draw = () => {
    const typed = element('query').value.trim().normalize('NFC');
    const [found, text] = names ? matches(typed) : [[], 'Reading the names …'];
    options = found.map((name) => [name, remark(name)]);
    if (names && takesNew && typed && !names.includes(typed)) options.push([typed, 'new class']);
    active = Math.min(active, Math.max(0, options.length - 1));
    element('found').replaceChildren(
      ...options.map(([name, text], k) => {
        const attributes = { role: 'option', id: 'found-' + k, 'aria-selected': String(k === active), click: () => pick(name) };
        return make('li', attributes, make('bdi', {}, name), make('small', { class: 'soft' }, text));
      }),
    );
    element('query').setAttribute('aria-activedescendant', options.length ? 'found-' + active : '');
    element('found-note').textContent = text;
    element('found-' + active)?.scrollIntoView({ block: 'nearest' });
  };
  const pick = (name) => {
    element('search').close();
    const known = recent.indexOf(name);
    if (known >= 0) recent.splice(known, 1);
    recent.unshift(name);
    recent.length = Math.min(recent.length, MAX_RECENT);
    choose(name);
  };
  element('query').addEventListener('input', () => {
    active = 0;
    draw();
  });
  element('query').addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && options.length) active = (active + step + options.length) % options.length;
    else if (event.key === 'Enter' && options.length && !event.isComposing) pick(options[active][0]);
    else return;
    event.preventDefault();
    if (step) draw();
  });
  return async () => {
    element('query').value = '';
    active = 0;
    element('search').showModal();
    draw();
    const loaded = await load();
    if (loaded && loaded !== names) [names, folded] = [loaded, loaded.map(fold)];
    draw();
  };
};

