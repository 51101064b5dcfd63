// The contact sheet: two orders of the photos, one page at a time. Moves nodes, and writes text, never markup.
(() => {
  'use strict';
  const PAGE = 60; // photos
  const element = (id) => document.getElementById(id);
  const thousands = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  const cards = Array.from(element('photos').children);
  const inOrder = (key) =>
    cards.filter((card) => Number(card.dataset[key]) >= 0).sort((a, b) => a.dataset[key] - b.dataset[key]);
  const orders = { first: inOrder('first'), uncertain: inOrder('uncertain') };
  let order = 'first';
  let start = 0;

  const draw = () => {
    const shown = orders[order];
    const last = Math.min(start + PAGE, shown.length);
    element('photos').replaceChildren(...shown.slice(start, last));
    element('count').textContent = shown.length
      ? thousands(start + 1) + '–' + thousands(last) + ' of ' + thousands(shown.length)
      : 'no photos';
    element('previous').disabled = start === 0;
    element('next').disabled = last >= shown.length;
    element('bar').classList.toggle('one', shown.length <= PAGE);
  };
  const turn = (target) => {
    start = target;
    draw();
    element('bar').scrollIntoView();
  };
  for (const key of Object.keys(orders)) {
    element('by-' + key).addEventListener('change', () => {
      order = key;
      start = 0;
      draw();
    });
    if (element('by-' + key).checked) order = key; // a reloaded page may keep the choice
  }
  element('previous').addEventListener('click', () => turn(Math.max(0, start - PAGE)));
  element('next').addEventListener('click', () => turn(start + PAGE));
  draw();
  document.body.classList.add('live');
})();
